//! Answers that a judge rates.

use fedllm_models::eval::Judgement;

use super::grades::{Fault, Judge};
use crate::judge::Judge as Endpoint;

impl Judge for Endpoint {
    fn name(&self) -> String {
        self.model().to_owned()
    }

    fn figures(
        &self,
        judgements: &[Judgement],
        done: &dyn Fn(usize),
    ) -> Result<Vec<Option<f64>>, Fault> {
        tracing::info!(judge = self.model(), "{}", self.estimate(judgements));
        let judged = self.ask(judgements, done)?;
        if judged.unrated + judged.refused > 0 {
            tracing::warn!(
                judge = self.model(),
                "{} answers of the judge hold no rating, {} questions were refused; they do not count",
                judged.unrated,
                judged.refused
            );
        }
        for (name, count) in judged
            .answered_by
            .iter()
            .filter(|(name, _)| *name != self.model())
        {
            tracing::info!(judge = self.model(), "{count} answers came from {name}");
        }
        let dollars = self.dollars(&judged.usage);
        let dollars = dollars.map_or_else(String::new, |dollars| format!(": ${dollars:.2}"));
        tracing::info!(judge = self.model(), "{}{dollars}", judged.usage);
        Ok(judged.ratings)
    }
}
