//! Hostile and honest programs, within every kind of walls that this machine allows.
//!
//! Where it allows none, there is nothing to see but that the refusal says why.

mod honest;
mod hostile;

use super::*;

/// One sandbox for each kind of walls that holds here.
fn sandboxes() -> &'static [Sandbox] {
    static SANDBOXES: OnceLock<Vec<Sandbox>> = OnceLock::new();
    SANDBOXES.get_or_init(|| {
        let kinds = [Walls::namespaces(), Walls::bubblewrap()]
            .into_iter()
            .flatten();
        kinds
            .filter_map(|walls| Sandbox::with(walls, Options::default()).ok())
            .collect()
    })
}

fn python(source: &str) -> Program {
    Program::new(Language::Python, source)
}

/// What a program prints that has to end well.
fn printed(sandbox: &Sandbox, program: &Program) -> String {
    match sandbox.run(program, &Limits::default()).unwrap() {
        Outcome::Passed { stdout } => stdout,
        outcome => panic!("{}: {outcome:?}", sandbox.walls.name()),
    }
}

#[test]
fn a_machine_without_walls_says_why() {
    match Sandbox::find(Options::default()) {
        Ok(sandbox) => assert_eq!(printed(&sandbox, &python("print(6 * 7)")), "42\n"),
        Err(SandboxError::NoWalls(reasons)) => {
            assert_eq!(reasons.len(), 2);
            assert!(
                reasons.iter().all(|reason| reason.contains(": ")),
                "{reasons:?}"
            );
            assert!(sandboxes().is_empty());
        }
        Err(error) => assert!(error.to_string().contains("install") || !cfg!(target_os = "linux")),
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_python_that_is_not_there_is_named() {
    let options = Options {
        python: Some("/nowhere/python".into()),
    };
    let error = Sandbox::find(options).unwrap_err().to_string();
    assert!(
        error.contains("/nowhere/python") && error.contains("--python"),
        "{error}"
    );
}
