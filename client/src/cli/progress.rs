//! Progress bars and log lines on standard error, without one tearing the other.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::{Global, LogFormat};

impl Global {
    /// A bar that counts to `len` things; hidden when quiet or when nobody looks.
    pub(crate) fn bar(&self, len: u64, message: impl Into<String>) -> ProgressBar {
        self.styled(
            ProgressBar::new(len),
            "{msg:24} [{bar:30}] {pos}/{len} {eta:>6} left",
            message.into(),
        )
    }

    /// A bar that counts to `len` bytes.
    pub(crate) fn bytes_bar(&self, len: u64, message: impl Into<String>) -> ProgressBar {
        self.styled(
            ProgressBar::new(len),
            "{msg:24} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec:>12} {eta:>6} left",
            message.into(),
        )
    }

    /// A turning sign for work whose length nobody knows.
    pub(crate) fn spinner(&self, message: impl Into<String>) -> ProgressBar {
        let bar = self.styled(
            ProgressBar::new_spinner(),
            "{spinner} {msg}",
            message.into(),
        );
        bar.enable_steady_tick(Duration::from_millis(120));
        bar
    }

    fn styled(&self, bar: ProgressBar, template: &str, message: String) -> ProgressBar {
        let bar = if self.quiet { bar } else { self.bars.add(bar) };
        if self.quiet {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(message);
        bar
    }
}

/// Sends log lines to standard error, above the bars. A program that has its own log keeps it.
pub(super) fn start_logging(bars: &MultiProgress, format: LogFormat, filter: EnvFilter) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(has_colors())
        .with_writer(AboveBars(bars.clone()));
    let started = match format {
        LogFormat::Text => builder.compact().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
}

/// Colors are for terminals, unless the user wants none (no-color.org).
fn has_colors() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stderr().is_terminal() && !unwanted
}

struct AboveBars(MultiProgress);

impl<'a> MakeWriter<'a> for AboveBars {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Write for &AboveBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
