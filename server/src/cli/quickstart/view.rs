//! Live progress on standard error: bars where somebody looks, lines where nobody does.

use fedllm_client::StepReport;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::OWNERS;
use crate::{ClosedRound, Status};

/// Bars for the owners, and a line for everything that is done.
pub(super) struct View {
    bars: MultiProgress,
    owners: Vec<ProgressBar>,
    /// Rounds that were told of.
    told: usize,
}

impl View {
    /// A view of owners that each take `steps` steps at a time.
    pub(super) fn new(quiet: bool, steps: u32) -> Self {
        let bars = MultiProgress::new();
        if quiet {
            bars.set_draw_target(ProgressDrawTarget::hidden());
        }
        let owners = OWNERS.iter().map(|owner| {
            let bar = bars.add(ProgressBar::new(steps.into()));
            if let Ok(style) =
                ProgressStyle::with_template("  {prefix:10} [{bar:24}] {pos}/{len} {msg}")
            {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(owner.name);
            bar
        });
        let owners = owners.collect();
        Self {
            bars,
            owners,
            told: 0,
        }
    }

    /// Shows where the clients of a server are, and every round that was closed since.
    pub(super) fn show(&mut self, status: &Status) {
        for (owner, bar) in OWNERS.iter().zip(&self.owners) {
            let Some(client) = status
                .clients
                .iter()
                .find(|client| client.name == owner.name)
            else {
                continue;
            };
            if let Some((step, steps)) = client.progress {
                bar.set_length(steps.into());
                bar.set_position(step.into());
            }
            let loss = client
                .loss
                .map(|loss| format!("loss {loss:.3}, "))
                .unwrap_or_default();
            bar.set_message(format!("{loss}{}", client.state));
        }
        for round in status.history.iter().skip(self.told) {
            self.say(&round_line(round, status.rounds));
        }
        self.told = self.told.max(status.history.len());
    }

    /// Shows a step of an owner that trains alone.
    pub(super) fn step(&self, owner: usize, step: &StepReport) {
        self.owners[owner].set_length(step.steps.into());
        self.owners[owner].set_position(step.step.into());
        self.owners[owner].set_message(format!("loss {:.3}", step.loss));
    }

    /// One line that stays.
    pub(super) fn say(&self, line: &str) {
        self.bars.suspend(|| eprintln!("{line}"));
    }
}

impl Drop for View {
    fn drop(&mut self) {
        for bar in &self.owners {
            bar.finish_and_clear();
        }
    }
}

fn round_line(round: &ClosedRound, rounds: u64) -> String {
    format!(
        "  round {} of {rounds}: {} updates averaged, training loss {:.3}, {:.1} MB received, {:.0} s",
        round.round + 1,
        round.updates,
        round.loss,
        round.bytes as f64 / 1e6,
        round.seconds
    )
}
