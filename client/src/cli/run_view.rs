//! What `run` shows while it takes part: a bar and log lines, or a JSON line for each event.

use std::io::Write;

use indicatif::ProgressBar;

use super::Global;
use crate::notice::{Notice, Notices};

/// Shows notices.
pub(super) struct View {
    json: bool,
    output: indicatif::MultiProgress,
    bar: ProgressBar,
    training: ProgressBar,
}

impl View {
    pub(super) fn new(global: &Global) -> Self {
        Self {
            json: global.json,
            output: global.bars.clone(),
            bar: global.spinner("connecting"),
            training: global.bar(0, ""),
        }
    }

    pub(super) fn into_notices(mut self) -> Notices {
        Box::new(move |notice| {
            if self.json {
                self.print(&notice);
            }
            self.show(&notice);
        })
    }

    fn print(&self, notice: &Notice) {
        // Plain numbers and texts always have a JSON form.
        if let Ok(line) = serde_json::to_string(notice) {
            // Whoever reads may have seen enough.
            let _ = self
                .output
                .suspend(|| writeln!(std::io::stdout(), "{line}"));
        }
    }

    fn show(&mut self, notice: &Notice) {
        match notice {
            Notice::Connected {
                federation,
                round,
                rounds,
            } => {
                tracing::info!("connected to {federation}: round {round} of {rounds}");
                self.bar.set_message("waiting for the server");
            }
            Notice::Disconnected {
                reason,
                retry_seconds,
            } => {
                tracing::warn!("{reason}; trying again in {retry_seconds:.0} s");
                self.bar.set_message("not connected");
            }
            Notice::Waiting { reason } => self.bar.set_message(reason.clone()),
            Notice::TrainingStarted { round, steps } => {
                tracing::info!("round {round}: training {steps} steps");
                self.bar.set_message(format!("round {round}"));
                self.training.reset();
                self.training.set_length(u64::from(*steps));
            }
            Notice::Scored {
                round,
                loss,
                accuracy,
                rows,
            } => tracing::info!(
                "round {round}: loss {loss:.4} and {:.1}% right on {rows} held-out rows",
                100.0 * accuracy
            ),
            Notice::Step { step, loss, .. } => {
                self.training.set_message(format!("loss {loss:.4}"));
                self.training.set_position(u64::from(*step));
            }
            Notice::Uploading { round, bytes } => {
                let bytes = indicatif::HumanBytes(*bytes);
                self.bar
                    .set_message(format!("round {round}: sending {bytes}"));
            }
            Notice::Received {
                round,
                loss_first,
                loss_last,
                ..
            } => {
                let loss = |loss: &Option<f32>| {
                    loss.map_or_else(|| "-".to_owned(), |loss| format!("{loss:.4}"))
                };
                let (first, last) = (loss(loss_first), loss(loss_last));
                tracing::info!("round {round}: received by the server, loss {first} -> {last}");
                self.bar.set_message("waiting for the server");
            }
            Notice::Refused { round, reason } => tracing::warn!("round {round}: refused, {reason}"),
            Notice::Failed { round, reason } => tracing::warn!("round {round}: {reason}"),
            Notice::RoundClosed {
                round,
                version,
                updates,
                loss,
            } => tracing::info!(
                "round {round} is over: version {version} from {updates} updates, mean loss {loss:.4}"
            ),
            Notice::Finished { version } => {
                tracing::info!("the run is over, at version {version}");
                self.bar.finish_and_clear();
                self.training.finish_and_clear();
            }
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        self.training.finish_and_clear();
    }
}
