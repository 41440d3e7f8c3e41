//! Multiple choice: how choices are shown and graded.

use super::Ask;
use super::{ContinuationScore, Gold, Grade, Item, Metric, Prompts, Reply};

/// The letters of choices.
pub(super) const LETTERS: [&str; 10] = ["A", "B", "C", "D", "E", "F", "G", "H", "I", "J"];

/// Accuracy by the most probable continuation.
pub(super) const ACCURACY: Metric = Metric::mean("acc");
/// Accuracy by the continuation that is most probable for its length in characters.
pub(super) const ACCURACY_NORM: Metric = Metric::mean("acc_norm");

/// Grades a choice among continuations: `acc`, and `acc_norm` with each sum divided by the
/// characters of its continuation (without the white space before it), as EleutherAI's harness has
/// them. Of equals the first is taken.
pub(super) fn grade(item: &Item, reply: &Reply, _: Prompts) -> Grade {
    let (Reply::Scores(scores), Gold::Choice(gold)) = (reply, &item.gold) else {
        return Grade::default();
    };
    let length = |choice: usize| match &item.ask {
        Ask::Choose(choices) => choices[choice].trim_start().chars().count().max(1),
        _ => 1,
    };
    let chosen = best(scores, |_, score| score.log_prob);
    let by_length = best(scores, |i, score| score.log_prob / length(i) as f64);
    let right = |choice: usize| f64::from(u8::from(choice == *gold));
    Grade {
        class: Some((*gold, chosen)),
        ..Grade::of(ACCURACY.name, right(chosen)).and(ACCURACY_NORM.name, right(by_length))
    }
}

/// The number of the score that is largest by some measure; of equals the first.
pub(super) fn best(
    scores: &[ContinuationScore],
    measure: impl Fn(usize, &ContinuationScore) -> f64,
) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (i, score) in scores.iter().enumerate() {
        let value = measure(i, score);
        if value > best.1 {
            best = (i, value);
        }
    }
    best.0
}
