//! The rounds of a session: what jobs and uploads report, and what becomes of an update.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fedllm_shared::{
    FailReason, HeldOutScore, ParticipantInput, RefuseReason, RoundId, UpdateOffer,
};
use std::sync::Arc;
use tokio::time::Instant;

use super::{Session, SessionError};
use crate::job::{Event, Job, Report};
use crate::ledger::{Outcome, RoundRecord};
use crate::net::{self, Dial, NetError, Transport};
use crate::notice::Notice;
use crate::train::{StepReport, TrainError};
use crate::work::{Update, WorkError, WorkReport};

/// The server hears of the training at most this often.
const PROGRESS: Duration = Duration::from_secs(1);
/// After so many rounds in a row that failed here, something is wrong here.
const FAILURES: u32 = 3;

impl<D: Dial> Session<D> {
    pub(super) fn event(&mut self, event: Event) {
        match event {
            Event::Uploaded { round, result } => self.uploaded(round, result),
            Event::Job { id, report } => {
                if let Some(job) = self.job.take_if(|job| job.id() == id) {
                    self.job = self.job_went_on(job, report);
                }
            }
        }
    }

    pub(super) fn job_went_on(&mut self, mut job: Job, report: Report) -> Option<Job> {
        match report {
            Report::Fits(layout) => {
                self.kind = Some((job.task().lora.clone(), Arc::clone(&layout)));
                job.fits(layout);
                job.fetch(self.link.as_ref(), &self.meter);
                Some(job)
            }
            Report::Fetched { received, result } => match job.fetched(received, result) {
                Ok(training) => {
                    if training {
                        let (round, steps) = (job.task().round.0, job.task().local.steps);
                        (self.notices)(Notice::TrainingStarted { round, steps });
                    }
                    Some(job)
                }
                Err(error) => {
                    self.failed(&job, error);
                    None
                }
            },
            Report::Work(WorkReport::Scored(score)) => {
                self.scored(job.task().round, score);
                Some(job)
            }
            Report::Work(WorkReport::Step(step)) => {
                self.step(job.task().round, step);
                Some(job)
            }
            Report::Done(Ok(update)) => {
                self.trained(update);
                None
            }
            Report::Done(Err(error)) => {
                self.failed(&job, error);
                None
            }
        }
    }

    pub(super) fn step(&mut self, round: RoundId, report: StepReport) {
        let StepReport {
            step,
            steps,
            loss,
            tokens,
            seconds,
            ..
        } = report;
        (self.notices)(Notice::Step {
            round: round.0,
            step,
            steps,
            loss,
            tokens,
            seconds,
        });
        let now = Instant::now();
        let due = self.last_progress.is_none_or(|last| now >= last + PROGRESS);
        if due || step == steps {
            self.last_progress = Some(now);
            self.input(ParticipantInput::Progress {
                round,
                step,
                steps,
                loss,
            });
        }
    }

    pub(super) fn scored(&mut self, round: RoundId, score: HeldOutScore) {
        (self.notices)(Notice::Scored {
            round: round.0,
            loss: score.loss,
            accuracy: score.accuracy,
            rows: score.rows,
        });
        self.input(ParticipantInput::Scored { round, score });
    }

    pub(super) fn trained(&mut self, update: Update) {
        self.failures = 0;
        if let Some(variate) = &update.variate {
            let (round, run) = (update.offer.round, self.participant.state().run);
            let (run, since) = (run.unwrap_or_default(), variate.since);
            let kept = self.store.save_variate(run, round, since, &variate.bytes);
            self.note_state(kept);
        }
        // On a full disk the update is sent from memory all the same; see `note_state`.
        let saved = self
            .store
            .save_delta(update.offer.blob.digest, &update.blob);
        self.note_state(saved);
        let offer = update.offer.clone();
        self.update = Some(update);
        self.offer = Some(offer.clone());
        self.input(ParticipantInput::Trained(offer));
    }

    /// The work of a round came to nothing.
    pub(super) fn failed(&mut self, job: &Job, error: WorkError) {
        let round = job.task().round;
        if matches!(error, WorkError::Train(TrainError::Stopped { .. })) {
            self.input(ParticipantInput::TrainFailed {
                round,
                reason: FailReason::Stopped,
            });
            return;
        }
        if let Some(reason) = error.decline_reason() {
            tracing::error!(round = round.0, %error, "this task cannot be done here");
            self.input(ParticipantInput::Unfit { round, reason });
            return;
        }
        tracing::warn!(round = round.0, error = %describe(&error), "this round's work failed");
        (self.notices)(Notice::Failed {
            round: round.0,
            reason: describe(&error),
        });
        self.meter.record(failure(round, describe(&error)));
        self.input(ParticipantInput::TrainFailed {
            round,
            reason: error.fail_reason(),
        });
        self.failures += 1;
        if self.failures >= FAILURES {
            self.give_up(SessionError::Training {
                failures: self.failures,
                source: error,
            });
        }
    }

    pub(super) fn upload(&mut self, offer: &UpdateOffer) {
        if let Some(old) = self.upload.take() {
            old.abort();
        }
        let loaded = match self
            .update
            .take_if(|update| update.offer.blob == offer.blob)
        {
            Some(update) => Some(update),
            None => self
                .reload(offer.clone())
                .ok()
                .and_then(|()| self.update.take()),
        };
        let (Some(update), Some(link)) = (loaded, &self.link) else {
            return;
        };
        let (round, bytes) = (offer.round, update.blob.clone());
        self.update = Some(update);
        (self.notices)(Notice::Uploading {
            round: round.0,
            bytes: bytes.len() as u64,
        });
        let (streams, meter, sender) = (link.streams(), self.meter.clone(), self.sender.clone());
        self.upload = Some(tokio::spawn(async move {
            let result = net::put(&streams, round, &bytes, &meter).await;
            // The session may have ended meanwhile.
            let _ = sender.send(Event::Uploaded { round, result });
        }));
    }

    pub(super) fn uploaded(&mut self, round: RoundId, result: Result<(), NetError>) {
        let Err(error) = result else { return };
        tracing::warn!(round = round.0, %error, "the upload broke off");
        if self.link.is_some() {
            self.input(ParticipantInput::UploadFailed { round });
        }
    }

    pub(super) fn counted(&mut self, round: RoundId) {
        self.rounds_done += 1;
        let offer = self.offer.take_if(|offer| offer.round == round);
        let record = record(round, Outcome::Received, None, offer.as_ref());
        (self.notices)(Notice::Received {
            round: round.0,
            loss_first: record.loss_first,
            loss_last: record.loss_last,
            bytes: record.delta_bytes,
        });
        self.meter.record(record);
        self.save_ledger();
        if self.max_rounds.is_some_and(|max| self.rounds_done >= max) {
            self.leave();
        }
    }

    pub(super) fn refused(&mut self, round: RoundId, reason: RefuseReason) {
        let reason = reason.to_string();
        let offer = self.offer.take_if(|offer| offer.round == round);
        let record = record(
            round,
            Outcome::Refused,
            Some(reason.clone()),
            offer.as_ref(),
        );
        self.meter.record(record);
        (self.notices)(Notice::Refused {
            round: round.0,
            reason,
        });
        if self.doomed.is_some() {
            self.leave();
        }
    }

    pub(super) fn reload(&mut self, offer: UpdateOffer) -> Result<(), SessionError> {
        match self.store.load_delta(offer.blob)? {
            Some(blob) => {
                let variate = None;
                self.update = Some(Update {
                    offer,
                    blob,
                    variate,
                });
            }
            None => {
                tracing::warn!(round = offer.round.0, "the update that was kept is gone");
                self.input(ParticipantInput::HeldLost);
            }
        }
        Ok(())
    }

    pub(super) fn end_job(&mut self) {
        if let Some(job) = self.job.take() {
            self.ending.retain(|ending| !ending.is_finished());
            self.ending.push(tokio::spawn(job.end()));
        }
    }
}

fn failure(round: RoundId, reason: String) -> RoundRecord {
    record(round, Outcome::Failed, Some(reason), None)
}

fn record(
    round: RoundId,
    outcome: Outcome,
    reason: Option<String>,
    offer: Option<&UpdateOffer>,
) -> RoundRecord {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    RoundRecord {
        round: round.0,
        outcome,
        reason,
        loss_first: offer.map(|offer| offer.metrics.loss_first),
        loss_last: offer.map(|offer| offer.metrics.loss_last),
        rows: offer.map_or(0, |offer| offer.rows),
        loss_tokens: offer.map_or(0, |offer| offer.loss_tokens),
        delta_bytes: offer.map_or(0, |offer| offer.blob.len),
        seconds: offer.map_or(0.0, |offer| offer.metrics.seconds),
        ended: now.as_secs(),
    }
}

/// An error with its causes, in one line.
fn describe(error: &WorkError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
