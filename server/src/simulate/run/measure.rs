//! What a run measures between its rounds: models on held-out rows and on benchmarks.

use fedllm_client::{Rewards, ScoreError, Shard, score_units};
use fedllm_models::lora::Lora;
use fedllm_shared::{
    Adapter, CentralScore, Digest, Estimate, ObjectiveConfig, ReferenceConfig, TaskScore,
};

use super::{Run, RunError};
use crate::evaluate::{AdapterSystem, Loaded, Tasks, TasksError, central_score};
use crate::simulate::metrics::{Evaluation, RoundMetrics, TaskEvaluation};

/// What there is to measure on, and what is known of the base.
pub(super) struct Measures {
    pub(super) held_out: Option<Shard>,
    pub(super) tasks: Option<Tasks>,
    /// Names the base as it is loaded.
    pub(super) digest: Digest,
    /// The base on held-out rows.
    pub(super) base: Option<Evaluation>,
    /// The base on benchmarks.
    pub(super) base_tasks: Option<Vec<TaskEvaluation>>,
}

impl Run {
    pub(super) fn is_measured(&self, round: u64) -> bool {
        let (every, rounds) = (
            self.experiment.evaluation.every,
            self.experiment.federation.rounds.count,
        );
        let measures = self.measures.held_out.is_some() || self.measures.tasks.is_some();
        let last = round + 1 == rounds;
        measures && (last || (every > 0 && (round + 1).is_multiple_of(every)))
    }

    /// Measures the adapters, and the base model once.
    pub(super) fn measure(&mut self, round: &mut RoundMetrics) -> Result<(), RunError> {
        if self.experiment.evaluation.base {
            round.evaluations.extend(self.base_on_rows()?);
            round.tasks.extend(self.base_on_tasks()?);
        }
        let adapters: Vec<_> = match self.is_local() {
            true => {
                let own = self.simulation.own_adapters();
                own.map(|(name, blob)| (name.to_owned(), blob)).collect()
            }
            false => vec![("global".to_owned(), self.simulation.models().adapter)],
        };
        let (mut on_rows, mut on_tasks) = (Vec::new(), Vec::new());
        for (arm, blob) in adapters {
            let adapter = self.load(&blob)?;
            on_rows.extend(self.on_rows(&arm, Some(&adapter))?);
            on_tasks.push(self.on_tasks(&arm, Some(adapter))?);
        }
        if self.is_local() {
            round.evaluations.extend(mean_on_rows(&on_rows));
            round.tasks.extend(mean_on_tasks(&on_tasks));
        }
        round.evaluations.extend(on_rows);
        round.tasks.extend(on_tasks.into_iter().flatten());
        if let Some(tasks) = &mut self.measures.tasks {
            tasks.forget_earlier();
        }
        Ok(())
    }

    fn base_on_rows(&mut self) -> Result<Option<Evaluation>, RunError> {
        if let Some(known) = &self.measures.base {
            return Ok(Some(known.clone()));
        }
        let base = self.on_rows("base", None)?;
        self.measures.base = base.as_ref().map(as_read);
        Ok(base)
    }

    fn base_on_tasks(&mut self) -> Result<Vec<TaskEvaluation>, RunError> {
        if let Some(known) = &self.measures.base_tasks {
            return Ok(known.clone());
        }
        let base = self.on_tasks("base", None)?;
        self.measures.base_tasks = Some(base.clone());
        Ok(base)
    }

    /// How a model does on the held-out rows.
    fn on_rows(
        &self,
        arm: &str,
        adapter: Option<&Adapter>,
    ) -> Result<Option<Evaluation>, RunError> {
        let Some(held_out) = &self.measures.held_out else {
            return Ok(None);
        };
        let spec = &self.experiment.federation.lora;
        let (model, device) = (&*self.model, self.model.device());
        let on_device = |adapter: &Adapter| Lora::new(model.config(), spec, adapter, device);
        let lora = adapter.map(on_device).transpose()?;
        let (beta, reference) = match self.experiment.federation.objective {
            ObjectiveConfig::Sft => (0.0, None),
            ObjectiveConfig::Dpo {
                beta, reference, ..
            } => {
                let reference = match reference {
                    ReferenceConfig::Base => None,
                    ReferenceConfig::Initial => Some(self.load(self.simulation.first())?),
                };
                let reference = reference.as_ref().map(on_device).transpose()?;
                (beta, reference)
            }
        };
        let rewards = Rewards {
            beta,
            reference: reference.as_ref(),
        };
        let scores = score_units(model, lora.as_ref(), rewards, held_out, &self.stop);
        let scores = scores.map_err(|error| match error {
            ScoreError::Stopped => self.simulation.stopped().into(),
            other => RunError::Score(other),
        })?;
        let CentralScore {
            loss,
            loss_se,
            accuracy,
            accuracy_se,
            rows,
        } = central_score(&scores);
        let margin = mean_and_error(scores.margins.iter().copied());
        Ok(Some(Evaluation {
            arm: arm.to_owned(),
            rows,
            loss,
            loss_se,
            accuracy: Some(accuracy),
            accuracy_se: Some(accuracy_se),
            margin: margin.map(|(mean, _)| mean),
            margin_se: margin.map(|(_, error)| error),
        }))
    }

    /// How a model does on the benchmarks.
    fn on_tasks(
        &mut self,
        arm: &str,
        adapter: Option<Adapter>,
    ) -> Result<Vec<TaskEvaluation>, RunError> {
        let Some(tasks) = &mut self.measures.tasks else {
            return Ok(Vec::new());
        };
        let loaded = Loaded {
            base: &self.base,
            model: &self.model,
            digest: self.measures.digest,
        };
        let spec = &self.experiment.federation.lora;
        let system = adapter.map(|adapter| AdapterSystem::unnamed(spec.clone(), adapter));
        let scores = tasks.score(loaded, system, &self.stop);
        let scores = scores.map_err(|error| match error {
            TasksError::Stopped(_) => self.simulation.stopped().into(),
            other => RunError::Tasks(other),
        })?;
        let scores = scores.into_iter().map(|score| TaskEvaluation {
            arm: arm.to_owned(),
            score,
        });
        Ok(scores.collect())
    }
}

/// As it is read from the run's metrics after a restart: reading may move the last bit of a number.
fn as_read(evaluation: &Evaluation) -> Evaluation {
    let json = serde_json::to_vec(evaluation);
    let read = json.and_then(|json| serde_json::from_slice(&json));
    read.unwrap_or_else(|_| evaluation.clone())
}

/// The name of the mean over owners.
const LOCAL_MEAN: &str = "local mean";

/// The mean over owners, each figure's standard error that over owners.
fn mean_on_rows(owners: &[Evaluation]) -> Option<Evaluation> {
    let first = owners.first()?;
    let over = |of: fn(&Evaluation) -> Option<f64>| mean_and_error(owners.iter().filter_map(of));
    let (loss, loss_se) = over(|owner| Some(owner.loss)).unwrap_or_default();
    let (accuracy, margin) = (over(|owner| owner.accuracy), over(|owner| owner.margin));
    Some(Evaluation {
        arm: LOCAL_MEAN.to_owned(),
        rows: first.rows,
        loss,
        loss_se,
        accuracy: accuracy.map(|(mean, _)| mean),
        accuracy_se: accuracy.map(|(_, error)| error),
        margin: margin.map(|(mean, _)| mean),
        margin_se: margin.map(|(_, error)| error),
    })
}

/// The same of each benchmark.
fn mean_on_tasks(owners: &[Vec<TaskEvaluation>]) -> Vec<TaskEvaluation> {
    let first = owners.first().into_iter().flatten();
    let mean = |(index, first): (usize, &TaskEvaluation)| {
        let values = owners.iter().filter_map(|own| own.get(index)?.score.value);
        let Estimate {
            mean: value,
            standard_error,
            ..
        } = Estimate::of(values);
        TaskEvaluation {
            arm: LOCAL_MEAN.to_owned(),
            score: TaskScore {
                value,
                standard_error,
                ..first.score.clone()
            },
        }
    };
    first.enumerate().map(mean).collect()
}

/// The mean of figures and its standard error, 0 of a single one; nothing of nothing.
fn mean_and_error(figures: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let estimate = Estimate::of(figures);
    Some((estimate.mean?, estimate.standard_error.unwrap_or(0.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::metrics::tests::round;

    #[test]
    fn owners_have_a_mean_of_each_figure() {
        let owner = |value: Option<f64>| {
            let of = |task: &str| TaskEvaluation {
                arm: "owner".to_owned(),
                score: TaskScore {
                    task: task.to_owned(),
                    metric: "acc".to_owned(),
                    value,
                    standard_error: Some(0.1),
                    rows: 10,
                    base: None,
                },
            };
            vec![of("mmlu"), of("fpb")]
        };
        let mean = mean_on_tasks(&[owner(Some(0.25)), owner(Some(0.75)), owner(None)]);
        assert_eq!((mean.len(), mean[1].arm.as_str()), (2, "local mean"));
        assert_eq!(
            (mean[1].score.task.as_str(), mean[1].score.value),
            ("fpb", Some(0.5))
        );
        // Two figures, each 0.25 from their mean.
        assert_eq!(mean[1].score.standard_error, Some(0.25));
        assert!(mean_on_tasks(&[]).is_empty() && mean_on_rows(&[]).is_none());

        let [low, high] = [1.0, 2.0].map(|loss| Evaluation {
            loss,
            ..round(0).evaluations.remove(0)
        });
        let mean = mean_on_rows(&[low, high]).unwrap();
        assert_eq!((mean.loss, mean.loss_se, mean.margin), (1.5, 0.5, None));
    }
}
