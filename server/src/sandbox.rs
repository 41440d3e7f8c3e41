//! Runs programs that a language model wrote, within walls that they cannot leave.
//!
//! A program sees the system's folders and its language's toolchain, read-only, and an empty
//! folder in memory; no network, no process but its own, no variable of our environment. It runs
//! as nobody in particular, for a bounded time, with bounded memory, output, files and processes.
//! Everything it started ends with it.
//!
//! The walls are Linux namespaces, so they are as good as the kernel: they stop a program that
//! does harm by mistake or by ordinary means, not one that knows a hole in the kernel. Memory that
//! belongs to no process, such as a file in memory that none has mapped, is not counted; should the
//! machine run short, the system ends these programs first.
//!
//! A program decides how it exits. Where that matters, have it print a secret word at its end.

mod probe;
#[cfg(test)]
mod tests;
mod toolchain;
mod walls;
mod watch;

use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use fedllm_models::eval::Language;
use thiserror::Error;

use toolchain::{MEBIBYTES, Toolchain, trivial};
use walls::Walls;
use watch::{End, READY, Watched, watch};

/// Why no program can be run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum SandboxError {
    /// Other systems have no such walls.
    #[error(
        "programs that a model wrote run on Linux only\nhint: grade code on a Linux machine, or in a virtual machine"
    )]
    NotLinux,
    /// No way of building walls works here.
    #[error(
        "programs that a model wrote cannot be run here: no walls hold around them\n{}\nhint: Linux 5.14 or later is needed, with bash, Python 3 and util-linux; an ordinary user also needs user namespaces (where AppArmor forbids them: install bubblewrap and its profile); in a container: run outside it, or allow it CAP_SYS_ADMIN",
        .0.join("\n")
    )]
    NoWalls(Vec<String>),
    /// A language's toolchain is missing or does not work within the walls.
    #[error("{language} programs cannot be run: {reason}")]
    Toolchain {
        /// Which language.
        language: Language,
        /// What is missing.
        reason: String,
    },
    /// The walls did not come up around a program.
    #[error("the sandbox did not start: {0}")]
    Start(String),
    /// The sandbox's own process failed.
    #[error("the sandbox cannot be run: {0}")]
    Io(#[from] io::Error),
}

/// What a sandbox is made with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// The Python to run programs with, such as one of a virtual environment; else `python3`.
    pub(crate) python: Option<PathBuf>,
}

/// A program as a model wrote it.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) language: Language,
    /// One file. In Java, the class with `main` is called `Main`.
    pub(crate) source: String,
    pub(crate) stdin: String,
    /// Runs the functions marked `#[test]` in place of `main`. Rust only.
    pub(crate) tests: bool,
}

impl Program {
    /// A program without input.
    pub(crate) fn new(language: Language, source: impl Into<String>) -> Self {
        Self {
            language,
            source: source.into(),
            stdin: String::new(),
            tests: false,
        }
    }
}

/// What a program may use.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Time to set up and compile.
    pub(crate) compile: Duration,
    /// Time to run.
    pub(crate) wall: Duration,
    /// Time on a processor, for each of its processes; whole seconds, rounded up.
    pub(crate) cpu: Duration,
    /// Memory of all its processes. It is looked at fifty times a second; a single process cannot
    /// reserve more than twice this.
    pub(crate) memory_bytes: u64,
    /// Bytes on stdout, and on stderr.
    pub(crate) output_bytes: usize,
    /// Processes and threads at once.
    pub(crate) processes: u32,
    /// Bytes in its folder, which is in memory, too.
    pub(crate) disk_bytes: u64,
    /// Files in its folder. Bubblewrap does not bound them.
    pub(crate) files: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            compile: Duration::from_secs(60),
            wall: Duration::from_secs(10),
            cpu: Duration::from_secs(10),
            memory_bytes: 1 << 30,
            output_bytes: 1 << 20,
            processes: 128,
            disk_bytes: 128 << 20,
            files: 4096,
        }
    }
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It exited with 0.
    Passed {
        stdout: String,
    },
    /// It exited with another code; 128 and a signal's number if that ended it.
    Failed {
        exit: Option<i32>,
        stdout: String,
        stderr_tail: String,
    },
    /// It never ran.
    CompileError {
        diagnostics: String,
    },
    TimedOut,
    TooMuchMemory,
    TooMuchOutput,
}

/// Runs programs within walls that were tried on this machine.
#[derive(Debug)]
pub(crate) struct Sandbox {
    walls: Walls,
    options: Options,
    toolchains: [OnceLock<Result<Toolchain, String>>; Language::ALL.len()],
}

impl Sandbox {
    /// Builds walls and tries them from within.
    ///
    /// # Errors
    ///
    /// [`SandboxError::NoWalls`] says which wall did not hold, or could not be built, and
    /// [`SandboxError::Toolchain`] that there is no Python, which tries them.
    pub(crate) fn find(options: Options) -> Result<Self, SandboxError> {
        if !cfg!(target_os = "linux") {
            return Err(SandboxError::NotLinux);
        }
        let mut reasons = Vec::new();
        // The first bounds more; where it is forbidden, the second can have a permission of its own.
        for walls in [Walls::namespaces()?, Walls::bubblewrap()?] {
            let name = walls.name();
            match Self::with(walls, options.clone()) {
                Ok(sandbox) => return Ok(sandbox),
                Err(SandboxError::Start(reason)) => reasons.push(format!("{name}: {reason}")),
                Err(error) => return Err(error),
            }
        }
        Err(SandboxError::NoWalls(reasons))
    }

    fn with(walls: Walls, options: Options) -> Result<Self, SandboxError> {
        let sandbox = Self {
            walls,
            options,
            toolchains: Default::default(),
        };
        sandbox.try_walls()?;
        sandbox.try_watch()?;
        Ok(sandbox)
    }

    /// Proves that a language's toolchain is there and works within the walls.
    ///
    /// # Errors
    ///
    /// [`SandboxError::Toolchain`] says what is missing.
    pub(crate) fn check(&self, language: Language) -> Result<(), SandboxError> {
        match self.run(
            &Program::new(language, trivial(language)),
            &Limits::default(),
        )? {
            Outcome::Passed { .. } => Ok(()),
            outcome => Err(SandboxError::Toolchain {
                language,
                reason: format!("a program that does nothing does not pass: {outcome:?}"),
            }),
        }
    }

    /// Compiles a program if need be, runs it and says how it ended. Any number may run at once.
    ///
    /// # Errors
    ///
    /// None for what the program does: [`SandboxError`] if it did not get to run.
    pub(crate) fn run(&self, program: &Program, limits: &Limits) -> Result<Outcome, SandboxError> {
        let toolchain = self.toolchain(program.language)?;
        let mut compiler = toolchain.compiler.clone();
        if program.tests {
            compiler.extend(toolchain.tests.map(str::to_owned));
        }
        let mebibytes = (limits.memory_bytes >> 20).max(1).to_string();
        let words = toolchain
            .program
            .iter()
            .map(|word| word.replace(MEBIBYTES, &mebibytes));

        let beside = toolchain
            .beside
            .as_ref()
            .map(|(name, text)| (*name, text.as_str()));
        let files: Vec<_> = beside
            .into_iter()
            .chain([(toolchain.source, program.source.as_str())])
            .collect();
        let mut input: Vec<u8> = files.iter().flat_map(|(_, text)| text.bytes()).collect();
        input.extend(program.stdin.bytes());

        let mut command = self.walls.command(&toolchain.folders, limits);
        command.envs(
            toolchain
                .environment
                .iter()
                .map(|(name, value)| (name, value)),
        );
        command
            .args(walls::limit_words(limits))
            .args(
                files
                    .iter()
                    .flat_map(|(name, text)| [(*name).to_owned(), text.len().to_string()]),
            )
            .args(["--".to_owned(), compiler.len().to_string()])
            .args(compiler)
            .args(words);
        let watched = watch(&mut command, &input, limits).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                let tool = command.get_program().to_string_lossy();
                SandboxError::Start(format!("{tool} is not there; install util-linux"))
            }
            _ => SandboxError::Io(error),
        })?;
        outcome(watched)
    }

    fn toolchain(&self, language: Language) -> Result<&Toolchain, SandboxError> {
        self.toolchains[language as usize]
            .get_or_init(|| Toolchain::find(language, &self.options))
            .as_ref()
            .map_err(|reason| SandboxError::Toolchain {
                language,
                reason: reason.clone(),
            })
    }
}

/// The shells' code for a process that used up its time on a processor: 128 and SIGXCPU.
const EXIT_OUT_OF_CPU: i32 = 128 + 24;

/// How much of stderr is kept.
const TAIL_BYTES: usize = 4096;

fn outcome(watched: Watched) -> Result<Outcome, SandboxError> {
    let stderr_tail = tail(&watched.stderr);
    let exit = match watched.end {
        End::TimedOut => return Ok(Outcome::TimedOut),
        End::TooMuchMemory => return Ok(Outcome::TooMuchMemory),
        End::TooMuchOutput => return Ok(Outcome::TooMuchOutput),
        End::Exited(status) => status.code(),
    };
    let stdout = String::from_utf8_lossy(&watched.stdout).into_owned();
    match (watched.first_line.as_str(), exit) {
        (READY, Some(0)) => Ok(Outcome::Passed { stdout }),
        (READY, Some(EXIT_OUT_OF_CPU)) => Ok(Outcome::TimedOut),
        (READY, exit) => Ok(Outcome::Failed {
            exit,
            stdout,
            stderr_tail,
        }),
        ("rejected", _) => Ok(Outcome::CompileError {
            diagnostics: stderr_tail,
        }),
        ("", exit) => Err(SandboxError::Start(format!("it ended with {exit:?}"))),
        (said, _) => Err(SandboxError::Start(said.to_owned())),
    }
}

fn tail(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..]).into_owned()
}
