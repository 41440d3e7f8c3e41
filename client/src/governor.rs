//! Keeps the client polite: stops it when asked, and bounds what it takes of the machine.

use std::io;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::exit::Code;

/// Asks a training loop to end after its current step. Clones share one flag.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<Stop>);

#[derive(Debug, Default)]
struct Stop {
    raised: AtomicBool,
    waiting: Notify,
}

impl StopFlag {
    /// A flag that nobody has raised.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for the stop; asking again changes nothing.
    pub fn stop(&self) {
        self.0.raised.store(true, Ordering::Release);
        self.0.waiting.notify_waiters();
    }

    /// Whether the stop was asked for.
    pub fn is_stopped(&self) -> bool {
        self.0.raised.load(Ordering::Acquire)
    }

    /// Waits until the stop was asked for.
    pub async fn stopped(&self) {
        let waiting = self.0.waiting.notified();
        tokio::pin!(waiting);
        // Listen before looking, or a stop between the two would be missed.
        waiting.as_mut().enable();
        if !self.is_stopped() {
            waiting.await;
        }
    }
}

/// Notices that the machine slept, or that this process was halted: then connections are dead
/// though nobody said so, and waiting for their time-outs would waste a minute.
///
/// A monotonic clock stands still, or nearly, while a machine sleeps, and a clock on the wall does
/// not; and whoever looks at regular intervals and comes much too late was halted.
#[derive(Debug)]
pub struct SleepWatch {
    interval: Duration,
    last: Option<(Duration, Duration)>,
}

impl SleepWatch {
    /// A pause longer than this, beyond the interval between two looks, counts as sleep.
    pub const TOLERANCE: Duration = Duration::from_secs(20);

    /// A watch that is going to be looked at every `interval`.
    pub fn new(interval: Duration) -> Self {
        Self {
            interval,
            last: None,
        }
    }

    /// Tells the times of a monotonic and of a wall clock, each since any fixed moment; returns
    /// for how long the machine slept since the last look, if it did.
    pub fn look(&mut self, monotonic: Duration, wall: Duration) -> Option<Duration> {
        let (last_monotonic, last_wall) = self.last.replace((monotonic, wall))?;
        let monotonic = monotonic.saturating_sub(last_monotonic);
        let wall = wall.saturating_sub(last_wall);
        let pause = monotonic.max(wall).saturating_sub(self.interval);
        (pause > Self::TOLERANCE).then_some(pause)
    }
}

/// A flag that the first Ctrl-C or request to terminate raises. The second one ends the program at
/// once, with [`Code::Interrupted`].
///
/// Where the system does not let signals be watched, they end the program as they always do.
pub fn stop_on_signals() -> StopFlag {
    let stop = StopFlag::new();
    let raised = stop.clone();
    let watch = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        if let Err(error) = runtime.and_then(|runtime| runtime.block_on(watch_signals(&raised))) {
            tracing::warn!(%error, "signals are not watched: stopping will not be clean");
        }
    };
    let started = std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(watch);
    if let Err(error) = started {
        tracing::warn!(%error, "signals are not watched: stopping will not be clean");
    }
    stop
}

async fn watch_signals(stop: &StopFlag) -> io::Result<()> {
    let mut signals = Signals::new()?;
    signals.next().await;
    tracing::info!("stopping after the current step; once more to stop at once");
    stop.stop();
    signals.next().await;
    std::process::exit(Code::Interrupted as i32)
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

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(windows)]
struct Signals {
    interrupt: tokio::signal::windows::CtrlC,
    terminate: tokio::signal::windows::CtrlBreak,
}

#[cfg(windows)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::windows::{ctrl_break, ctrl_c};
        Ok(Self {
            interrupt: ctrl_c()?,
            terminate: ctrl_break()?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_is_told_from_waiting() {
        let second = Duration::from_secs;
        let mut watch = SleepWatch::new(second(5));
        assert_eq!(watch.look(second(100), second(7000)), None);
        assert_eq!(watch.look(second(105), second(7005)), None);
        // The machine slept: only the clock on the wall went on.
        assert_eq!(watch.look(second(110), second(7070)), Some(second(60)));
        // The process was halted: both went on, but it looks much too late.
        assert_eq!(watch.look(second(175), second(7135)), Some(second(60)));
        // Somebody set the clock back.
        assert_eq!(watch.look(second(180), second(100)), None);
        assert_eq!(watch.look(second(190), second(110)), None);
    }

    #[test]
    fn clones_share_the_flag() {
        let flag = StopFlag::new();
        let other = flag.clone();
        assert!(!other.is_stopped());
        flag.stop();
        assert!(other.is_stopped());
    }

    #[tokio::test]
    async fn waiting_ends_when_the_flag_is_raised_or_was() {
        let flag = StopFlag::new();
        let other = flag.clone();
        let waiter = tokio::spawn(async move { other.stopped().await });
        tokio::task::yield_now().await;
        flag.stop();
        waiter.await.unwrap();
        flag.stopped().await;
    }
}
