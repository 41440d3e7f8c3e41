//! Programs that mean well, in every language that is there.

use std::thread;

use super::*;

#[test]
fn programs_read_stdin_and_do_not_have_to() {
    let large = "a line\n".repeat(100_000);
    for sandbox in sandboxes() {
        let reader = Program {
            stdin: large.clone(),
            ..python("import sys\nprint(len(sys.stdin.read()))")
        };
        assert_eq!(printed(sandbox, &reader), "700000\n");
        let ignorer = Program {
            stdin: large.clone(),
            ..python("print('done')")
        };
        assert_eq!(printed(sandbox, &ignorer), "done\n");
    }
}

#[test]
fn several_run_at_once() {
    for sandbox in sandboxes() {
        thread::scope(|scope| {
            for number in 0..4 {
                scope.spawn(move || {
                    let program = format!(
                        "import time\nopen('mine', 'x').write('{number}')\ntime.sleep(0.3)\nprint(open('mine').read())"
                    );
                    assert_eq!(printed(sandbox, &python(&program)), format!("{number}\n"));
                });
            }
        });
    }
}

/// For each language, a program that writes how many bytes it reads, one that fails, and one that
/// its compiler rejects.
const HONEST: [(Language, &str, &str, Option<&str>); 6] = [
    (
        Language::Python,
        "import sys\nprint(len(sys.stdin.read()))",
        "assert 1 + 1 == 3",
        None,
    ),
    (
        Language::JavaScript,
        "console.log(require('fs').readFileSync(0).length)",
        "require('assert').strictEqual(1 + 1, 3)",
        None,
    ),
    (
        Language::Java,
        "import java.util.*;
public class Main {
    public static void main(String[] words) throws Exception {
        System.out.println(System.in.readAllBytes().length);
    }
}",
        "public class Main { public static void main(String[] words) { throw new AssertionError(); } }",
        Some("public class Main { int broken }"),
    ),
    (
        Language::Go,
        "package main

import (\"fmt\"; \"io\"; \"os\")

func main() {
    bytes, _ := io.ReadAll(os.Stdin)
    fmt.Println(len(bytes))
}",
        "package main\nfunc main() { panic(\"wrong\") }",
        Some("package main\nfunc main() { unused := 1 }"),
    ),
    (
        Language::Cpp,
        "#include <iostream>
#include <iterator>
int main() {
    std::istreambuf_iterator<char> bytes(std::cin), end;
    std::cout << std::distance(bytes, end) << std::endl;
}",
        "#include <cassert>\nint main() { assert(1 + 1 == 3); }",
        Some("int main() { return broken; }"),
    ),
    (
        Language::Rust,
        "fn main() { println!(\"{}\", std::io::read_to_string(std::io::stdin()).unwrap().len()); }",
        "fn main() { assert_eq!(1 + 1, 3); }",
        Some("fn main() { broken }"),
    ),
];

#[test]
fn every_language_passes_fails_and_is_rejected() {
    for sandbox in sandboxes() {
        for (language, passing, failing, rejected) in HONEST {
            match sandbox.check(language) {
                Ok(()) => {}
                Err(SandboxError::Toolchain { reason, .. }) => {
                    assert!(reason.contains("install"), "{language}: {reason}");
                    continue;
                }
                Err(error) => panic!("{error}"),
            }
            let passing = Program {
                stdin: "seven\n\n".to_owned(),
                ..Program::new(language, passing)
            };
            assert_eq!(printed(sandbox, &passing), "7\n", "{language}");

            let failing = sandbox.run(&Program::new(language, failing), &Limits::default());
            let failing = failing.unwrap();
            assert!(
                matches!(failing, Outcome::Failed { .. }),
                "{language}: {failing:?}"
            );

            if let Some(source) = rejected {
                let rejected = sandbox.run(&Program::new(language, source), &Limits::default());
                let rejected = rejected.unwrap();
                assert!(
                    matches!(&rejected, Outcome::CompileError { diagnostics } if !diagnostics.is_empty()),
                    "{language}: {rejected:?}"
                );
            }
        }
    }
}

#[test]
fn tests_run_in_place_of_main() {
    let source = |sum: u8| {
        format!(
            "fn main() {{}}\n#[cfg(test)] mod tests {{ #[test] fn sums() {{ assert_eq!(1 + 1, {sum}); }} }}"
        )
    };
    for sandbox in sandboxes()
        .iter()
        .filter(|sandbox| sandbox.check(Language::Rust).is_ok())
    {
        let run = |sum| {
            let program = Program {
                tests: true,
                ..Program::new(Language::Rust, source(sum))
            };
            sandbox.run(&program, &Limits::default()).unwrap()
        };
        assert!(matches!(run(2), Outcome::Passed { stdout } if stdout.contains("1 passed")));
        assert!(matches!(
            run(3),
            Outcome::Failed {
                exit: Some(101),
                ..
            }
        ));
    }
}
