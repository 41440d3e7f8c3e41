//! Tries the walls from within, so that no program runs behind walls that do not hold.

use std::io::Write;
use std::net::TcpListener;
use std::time::{Duration, Instant};
use std::{env, fs, process};

use super::walls::{ENVIRONMENT, NAMESPACES};
use super::{Language, Limits, Outcome, Program, Sandbox, SandboxError};

impl Sandbox {
    /// Runs a program that pushes at every wall and says which gives way.
    pub(super) fn try_walls(&self) -> Result<(), SandboxError> {
        let own = &self.toolchain(Language::Python)?.environment;
        let environment: Vec<_> = own
            .iter()
            .map(|(name, _)| name)
            .chain(ENVIRONMENT.iter().map(|(name, _)| name))
            .collect();
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let canary = env::temp_dir().join(format!("fedllm-canary-{}-{port}", process::id()));
        fs::File::create_new(&canary)?.write_all(b"not to be seen")?;
        let limits = Limits {
            wall: Duration::from_secs(20),
            processes: 16,
            ..Limits::default()
        };
        let namespaces = NAMESPACES.map(|kind| {
            let name = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap_or_default();
            (kind.to_owned(), name.to_string_lossy().into())
        });
        let stdin = serde_json::json!({
            "canary": &canary,
            "port": port,
            "namespaces": serde_json::Map::from_iter(namespaces),
            "environment": environment,
            "disk_bytes": limits.disk_bytes,
            "processes": limits.processes,
        });
        let program = Program {
            stdin: stdin.to_string(),
            ..Program::new(Language::Python, include_str!("probe.py"))
        };
        let outcome = self.run(&program, &limits);
        fs::remove_file(&canary)?;
        match outcome? {
            Outcome::Passed { stdout } if stdout == "the walls hold\n" => Ok(()),
            Outcome::Failed { stdout, .. } if !stdout.is_empty() => {
                Err(SandboxError::Start(stdout.trim().replace('\n', ", ")))
            }
            outcome => Err(SandboxError::Start(format!(
                "the walls cannot be tried: {outcome:?}"
            ))),
        }
    }

    /// Sees that memory is watched, and that children which leave their parent end with it.
    pub(super) fn try_watch(&self) -> Result<(), SandboxError> {
        let limits = Limits {
            memory_bytes: 64 << 20,
            ..Limits::default()
        };
        let hog = "import os, time\nif os.fork() == 0: os.setsid()\nelse: held = b'x' * (90 << 20)\ntime.sleep(30)";
        let began = Instant::now();
        match self.run(&Program::new(Language::Python, hog), &limits)? {
            Outcome::TooMuchMemory if began.elapsed() < Duration::from_secs(25) => Ok(()),
            Outcome::TooMuchMemory => Err(SandboxError::Start("processes outlive it".to_owned())),
            _ => Err(SandboxError::Start(
                "its memory cannot be watched".to_owned(),
            )),
        }
    }
}
