//! Watches a child from outside: how long it runs, how much it holds, how much it writes.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use super::Limits;

/// How often the child is looked at.
const POLL: Duration = Duration::from_millis(20);

/// What compilers may hold, if a program may not hold more.
const COMPILER_BYTES: u64 = 2 << 30;

/// The longest first line on stderr.
const FIRST_LINE_BYTES: u64 = 4096;

/// The first line on stderr of a program that starts.
pub(super) const READY: &str = "ready";

/// How a child ended.
pub(super) enum End {
    Exited(ExitStatus),
    TimedOut,
    TooMuchMemory,
    TooMuchOutput,
}

/// What became of a child.
pub(super) struct Watched {
    pub(super) end: End,
    /// The first line on stderr: not the program's, but ours.
    pub(super) first_line: String,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

enum Event {
    Ready,
    Overflow,
}

/// Runs a child to its end, or to the first limit it breaks. The system then ends all it started.
pub(super) fn watch(command: &mut Command, input: &[u8], limits: &Limits) -> io::Result<Watched> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (events, seen) = mpsc::channel();
    thread::scope(|scope| {
        // Nobody has to read what is written: a program that ends early closes the pipe.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
        let stdout = scope.spawn({
            let events = events.clone();
            move || read_bounded(stdout, limits.output_bytes, &events)
        });
        let stderr = scope.spawn(move || {
            let mut stderr = stderr.map(BufReader::new);
            let first_line = read_first_line(stderr.as_mut());
            if first_line == READY {
                let _ = events.send(Event::Ready);
            }
            (
                first_line,
                read_bounded(stderr, limits.output_bytes, &events),
            )
        });

        let end = guard(&mut child, &seen, limits);
        if !matches!(end, Ok(End::Exited(_))) {
            // The walls end with their parent, and every process within them with the first.
            child.kill()?;
            child.wait()?;
        }
        let (stdout, much_stdout) = stdout.join().unwrap_or_default();
        let (first_line, (stderr, much_stderr)) = stderr.join().unwrap_or_default();
        let end = match end? {
            End::Exited(_) if much_stdout || much_stderr => End::TooMuchOutput,
            end => end,
        };
        Ok(Watched {
            end,
            first_line,
            stdout,
            stderr,
        })
    })
}

fn guard(child: &mut Child, events: &Receiver<Event>, limits: &Limits) -> io::Result<End> {
    let mut deadline = Instant::now() + limits.compile;
    let mut memory_bytes = limits.memory_bytes.max(COMPILER_BYTES);
    loop {
        match events.recv_timeout(POLL) {
            Ok(Event::Ready) => {
                deadline = Instant::now() + limits.wall;
                memory_bytes = limits.memory_bytes;
            }
            Ok(Event::Overflow) => return Ok(End::TooMuchOutput),
            Err(RecvTimeoutError::Timeout) => {}
            // Both pipes are closed, so it is about to end.
            Err(RecvTimeoutError::Disconnected) => thread::sleep(Duration::from_millis(1)),
        }
        if let Some(status) = child.try_wait()? {
            return Ok(End::Exited(status));
        }
        if Instant::now() >= deadline {
            return Ok(End::TimedOut);
        }
        if held_bytes(child.id()) > memory_bytes {
            return Ok(End::TooMuchMemory);
        }
    }
}

fn read_first_line(source: Option<&mut BufReader<impl Read>>) -> String {
    let mut line = Vec::new();
    if let Some(source) = source {
        // What cannot be read ends the line.
        let _ = source.take(FIRST_LINE_BYTES).read_until(b'\n', &mut line);
    }
    String::from_utf8_lossy(&line).trim_end().to_owned()
}

/// Reads to the end or to the bound, and says whether there was more than that.
fn read_bounded(
    source: Option<impl Read>,
    bound: usize,
    events: &Sender<Event>,
) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    if let Some(source) = source {
        // What cannot be read ends the output.
        let _ = source.take(bound as u64 + 1).read_to_end(&mut bytes);
    }
    let more = bytes.len() > bound;
    if more {
        bytes.truncate(bound);
        let _ = events.send(Event::Overflow);
    }
    (bytes, more)
}

/// The memory that a process and its descendants hold: their own, shared among them, and swapped
/// out. Pages of files on disk do not count; those that processes share count for each. Orphans
/// stay below the first process within the walls.
fn held_bytes(root: u32) -> u64 {
    let mut bytes = 0;
    let mut rest = vec![root];
    while let Some(process) = rest.pop() {
        // A process that has ended meanwhile holds nothing.
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        bytes += status.lines().filter_map(held_in_line).sum::<u64>();
        rest.extend(children(process));
    }
    bytes
}

fn held_in_line(line: &str) -> Option<u64> {
    let (name, value) = line.split_once(':')?;
    if !matches!(name, "RssAnon" | "RssShmem" | "VmSwap") {
        return None;
    }
    let kibibytes: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024)
}

fn children(process: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else {
        return Vec::new();
    };
    let lists = threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace()
                .flat_map(str::parse)
                .collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_held_counts() {
        assert_eq!(held_in_line("RssAnon:\t    1234 kB"), Some(1234 * 1024));
        assert_eq!(held_in_line("VmSwap:\t       0 kB"), Some(0));
        assert_eq!(held_in_line("RssFile:\t    5678 kB"), None);
    }

    #[test]
    fn output_is_read_to_its_bound() {
        let (events, seen) = mpsc::channel();
        assert_eq!(
            read_bounded(Some(&b"12345"[..]), 5, &events),
            (b"12345".to_vec(), false)
        );
        assert!(seen.try_recv().is_err());
        assert_eq!(
            read_bounded(Some(&b"123456"[..]), 5, &events),
            (b"12345".to_vec(), true)
        );
        assert!(matches!(seen.try_recv(), Ok(Event::Overflow)));
    }
}
