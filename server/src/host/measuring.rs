//! Measuring a new version on a thread of its own: rounds do not wait for it.

use fedllm_models::device::run_checked;
use fedllm_shared::{BlobRef, Event, EventRecord, ModelVersion, RoundId};
use tracing::{info, warn};

use super::{Host, HostError, Input};
use crate::central::{Central, CentralError, Measurement};

/// Whether a version is being measured.
#[derive(Default)]
pub(super) enum Measuring {
    /// Nothing is measured in this federation.
    #[default]
    Off,
    /// Nothing is being measured now.
    Idle(Box<Central>),
    /// One is, and another may wait for it.
    Busy { next: Option<Version> },
}

/// A version and its adapter.
type Version = (ModelVersion, BlobRef);

/// What became of measuring a version. If it crashed, nothing more is measured.
pub(crate) struct Measured {
    version: ModelVersion,
    result: Result<Measurement, CentralError>,
    central: Option<Box<Central>>,
}

impl std::fmt::Debug for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let result = &self.result;
        write!(f, "Measured({}, {result:?})", self.version)
    }
}

impl Measuring {
    pub(super) fn new(central: Option<Central>) -> Self {
        central.map_or(Self::Off, |central| Self::Idle(Box::new(central)))
    }

    pub(super) fn is_busy(&self) -> bool {
        matches!(self, Self::Busy { .. })
    }
}

impl Host {
    /// Measures the present version if it is time to and that was not done before.
    pub(super) fn measure_if_due(&mut self) -> Result<(), HostError> {
        let (version, models) = self.coordinator.model();
        let Some(round) = version.0.checked_sub(1).map(RoundId) else {
            return Ok(());
        };
        let rounds = self.coordinator.plan().rounds;
        let evaluation = &self.federation.evaluation;
        if !evaluation.is_due(round, rounds) || self.store.is_measured(version, evaluation)? {
            return Ok(());
        }
        self.measure((version, models.adapter))
    }

    fn measure(&mut self, version: Version) -> Result<(), HostError> {
        match std::mem::take(&mut self.measuring) {
            Measuring::Off => {}
            Measuring::Busy { next } => {
                if let Some((skipped, _)) = next {
                    let version = skipped.0;
                    warn!(
                        version,
                        "left out of measuring, which takes longer than rounds"
                    );
                }
                let next = Some(version);
                self.measuring = Measuring::Busy { next };
            }
            Measuring::Idle(central) => {
                self.measuring = Measuring::Busy { next: None };
                let ((version, adapter), blobs) = (version, self.blobs.clone());
                let (handle, device) = (self.handle.clone(), self.device.clone());
                self.compute("measuring", move || {
                    let mut central = central;
                    let work = move || {
                        let scored = blobs.load(&adapter).map_err(CentralError::from);
                        let result = scored.and_then(|bytes| central.score(&bytes));
                        (result, central)
                    };
                    // A panic in a tensor operation is an error, too.
                    let (result, central) = match run_checked(&device, work) {
                        Ok((result, central)) => (result, Some(central)),
                        Err(error) => (Err(CentralError::Crashed(error.to_string())), None),
                    };
                    handle.blocking_tell(Input::Measured(Box::new(Measured {
                        version,
                        result,
                        central,
                    })));
                })?;
            }
        }
        Ok(())
    }

    pub(super) fn measured(&mut self, measured: Measured) -> Result<(), HostError> {
        let version = measured.version;
        let events = match measured.result {
            Ok(Measurement { held_out, tasks }) => {
                let held_out =
                    held_out.map(|scored| scored.map(|score| Event::Evaluated { version, score }));
                let tasks = tasks
                    .map(|scored| scored.map(|scores| Event::TasksEvaluated { version, scores }));
                Vec::from_iter(held_out.into_iter().chain(tasks))
            }
            Err(error) => vec![Err(error)],
        };
        let at = self.clock.now();
        for event in events {
            match event {
                Ok(event) => self.journal.note(EventRecord { at, event }),
                Err(error) => warn!(version = version.0, %error, "a version cannot be measured"),
            }
        }
        let before = std::mem::take(&mut self.measuring);
        let Some(central) = measured.central else {
            info!("no further version is measured until the server starts again");
            return Ok(());
        };
        self.measuring = Measuring::Idle(central);
        match before {
            Measuring::Busy { next: Some(next) } => self.measure(next),
            _ => Ok(()),
        }
    }
}
