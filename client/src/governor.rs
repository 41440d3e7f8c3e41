//! Keeps the client polite: stops it when asked, and bounds what it takes of the machine.

use std::io;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Asks a training loop to end after its current step. Clones share one flag.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// A flag that nobody has raised.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for the stop; asking again changes nothing.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether the stop was asked for.
    pub fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Lets computations on the CPU use at most `threads` threads. Call it before the first one.
///
/// # Errors
///
/// The threads were already started, or could not be.
pub fn limit_threads(threads: usize) -> io::Result<()> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(io::Error::other)
}

/// Puts this process below normal priority, so that it yields to whatever else the machine does.
///
/// # Errors
///
/// The system's own tool for it is missing or refused.
pub fn lower_priority() -> io::Result<()> {
    let pid = std::process::id().to_string();
    let mut command = if cfg!(windows) {
        let mut command = Command::new("powershell");
        command.args(["-NoProfile", "-Command"]);
        command.arg(format!(
            "(Get-Process -Id {pid}).PriorityClass = 'BelowNormal'"
        ));
        command
    } else {
        let mut command = Command::new("renice");
        command.args(["-n", "10", "-p", &pid]);
        command
    };
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!(
        "the system refused: {}",
        message.trim()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_the_flag() {
        let flag = StopFlag::new();
        let other = flag.clone();
        assert!(!other.is_stopped());
        flag.stop();
        assert!(other.is_stopped());
    }
}
