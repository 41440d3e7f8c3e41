//! Programs under test: started, watched line by line, signalled, and killed when dropped.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Nothing in a test takes this long, unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(80);

const POLL: Duration = Duration::from_millis(20);

/// A program that runs.
pub struct Process {
    about: String,
    child: Child,
    stdout: Lines,
    stderr: Lines,
}

/// A program that has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The command line.
    pub about: String,
    /// The exit code; nothing if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Process {
    /// Starts `command`.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    pub fn start(mut command: Command) -> Self {
        let about = format!("{command:?}");
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{about}: {e}"));
        let stdout = Lines::read(child.stdout.take());
        let stderr = Lines::read(child.stderr.take());
        Self {
            about,
            child,
            stdout,
            stderr,
        }
    }

    /// Waits for the first line of standard output that is JSON and that `wanted` takes.
    ///
    /// # Panics
    ///
    /// If the program ends without it, or [`PATIENCE`] does.
    pub fn json(&self, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        let mut next = 0;
        let found = self.stdout.wait(|lines| {
            let rest = lines[next..].iter();
            next = lines.len();
            rest.filter_map(|line| serde_json::from_str(line).ok())
                .find(|value| wanted(value))
        });
        found.unwrap_or_else(|| {
            let (out, err) = (self.stdout.text(), self.stderr.text());
            panic!("{} does not say it:\n{out}\n{err}", self.about)
        })
    }

    /// Waits for the event called `name`, as clients write them with `--json`.
    ///
    /// # Panics
    ///
    /// If it does not come.
    pub fn event(&self, name: &str) -> Value {
        self.json(|value| value["event"] == name)
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// If it goes on for longer than [`PATIENCE`].
    pub fn end(mut self) -> Ended {
        let until = Instant::now() + PATIENCE;
        while !self.has_ended() {
            if Instant::now() > until {
                let (out, err) = (self.stdout.text(), self.stderr.text());
                panic!("{} does not end:\n{out}\n{err}", self.about);
            }
            std::thread::sleep(POLL);
        }
        self.collect()
    }

    /// Kills it as `kill -9` does.
    pub fn kill(mut self) -> Ended {
        // An error means that it has ended.
        let _ = self.child.kill();
        self.collect()
    }

    /// Sends it `TERM`, `STOP` or `CONT`.
    ///
    /// # Panics
    ///
    /// If there is no shell to do that.
    pub fn signal(&self, signal: &str) {
        let kill = format!("kill -{signal} {}", self.child.id());
        let sent = Command::new("sh").args(["-c", &kill]).status();
        assert!(sent.is_ok_and(|status| status.success()), "{kill}");
    }

    fn collect(&mut self) -> Ended {
        let status = self.child.wait();
        let status = status.unwrap_or_else(|e| panic!("{}: {e}", self.about));
        // Both are read to their ends.
        let ended = |lines: &Lines| lines.wait(|_| None::<()>);
        let _ = (ended(&self.stdout), ended(&self.stderr));
        Ended {
            about: self.about.clone(),
            code: status.code(),
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only where it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    /// Requires success.
    ///
    /// # Panics
    ///
    /// If the exit code is another.
    pub fn ok(self) -> Self {
        self.failed_with(0)
    }

    /// Requires this exit code.
    ///
    /// # Panics
    ///
    /// If it is another.
    pub fn failed_with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "exit code of {self}");
        self
    }

    /// Requires that standard error has each of `parts`.
    ///
    /// # Panics
    ///
    /// If one is not there.
    pub fn says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not said by {self}");
        }
        self
    }

    /// The last line of standard output as JSON.
    ///
    /// # Panics
    ///
    /// If it is none.
    pub fn json(&self) -> Value {
        let line = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: the last line of {self}"))
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            about,
            code,
            stdout,
            stderr,
        } = self;
        write!(f, "{about}\n{code:?}\n{stdout}\n{stderr}")
    }
}

/// The lines of a stream, as they come.
#[derive(Clone, Default)]
struct Lines(Arc<(Mutex<Seen>, Condvar)>);

#[derive(Default)]
struct Seen {
    lines: Vec<String>,
    ended: bool,
}

impl Lines {
    fn read(stream: Option<impl Read + Send + 'static>) -> Self {
        let lines = Self::default();
        let writer = lines.clone();
        std::thread::spawn(move || {
            let mut reader = stream.map(BufReader::new);
            let mut line = Vec::new();
            while let Some(reader) = &mut reader
                && reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0)
            {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                writer.seen().lines.push(text);
                writer.0.1.notify_all();
                line.clear();
            }
            writer.seen().ended = true;
            writer.0.1.notify_all();
        });
        lines
    }

    /// Looks at the lines until `look` finds something, the stream ends, or patience does.
    fn wait<T>(&self, mut look: impl FnMut(&[String]) -> Option<T>) -> Option<T> {
        let until = Instant::now() + PATIENCE;
        let mut seen = self.seen();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match look(&seen.lines) {
                None if !seen.ended && !left.is_zero() => {}
                found => return found,
            }
            let waited = self.0.1.wait_timeout(seen, left);
            seen = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn text(&self) -> String {
        self.seen().lines.join("\n")
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
