//! Whether a model prefers the better of two answers.

use super::choose;
use super::{Ask, Gold, Grade, Grader, Item, ItemError, Metric, Prompts, Reply, Row, Task};
use crate::template::Message;

/// Accuracy by the implicit reward: how much more probable an answer is than under the base.
const REWARD: Metric = Metric::mean("reward_acc");
/// Accuracy by the probability of the answers alone.
const PROBABILITY: Metric = Metric::mean("log_prob_acc");

/// A task of pairs. Its file says the rest.
pub(super) const fn task(
    name: &'static str,
    items: fn(&Row<'_>, Prompts) -> Result<Vec<Item>, ItemError>,
) -> Task {
    Task {
        prompt: "FastChat vicuna_v1.1, as OpenFedLLM trains preferences; reward as DPO defines it, \
                 without its factor; of the base itself only its probabilities",
        suites: &["preference"],
        grader: Grader::Relative(grade),
        metrics: &[REWARD, PROBABILITY],
        ..choose::task(name, items)
    }
}

const SYSTEM: &str = "A chat between a curious user and an artificial intelligence assistant. \
                      The assistant gives helpful, detailed, and polite answers to the user's \
                      questions. ";

/// The question which answer, the better or the worse one, follows some turns; none if there is
/// nothing to compare. White space before the answers is theirs.
pub(super) fn items(id: String, turns: &[Message], answers: [String; 2]) -> Vec<Item> {
    let is_empty = |answer: &String| answer.trim().is_empty();
    if answers.iter().any(is_empty) || answers[0] == answers[1] {
        return Vec::new();
    }
    let mut prompt = SYSTEM.to_owned();
    for turn in turns {
        let (speaker, end) = match turn.role.as_str() {
            "assistant" => ("ASSISTANT", "</s>"),
            _ => ("USER", " "),
        };
        match turn.content.is_empty() {
            true => prompt.push_str(&format!("{speaker}:")),
            false => prompt.push_str(&format!("{speaker}: {}{end}", turn.content)),
        }
    }
    prompt.push_str("ASSISTANT:");
    vec![Item {
        id,
        cluster: None,
        prompt,
        answer: answers[0].clone(),
        ask: Ask::Choose(answers.to_vec()),
        gold: Gold::Choice(0),
    }]
}

fn grade(_: &Item, reply: &Reply, base: Option<&Reply>) -> Grade {
    let Reply::Scores(scores) = reply else {
        return Grade::default();
    };
    // Of equal answers neither is preferred.
    let prefers = |rewards: [f64; 2]| f64::from(u8::from(rewards[0] > rewards[1]));
    let [chosen, rejected] = scores[..] else {
        return Grade::default();
    };
    let probability = prefers([chosen.log_prob, rejected.log_prob]);
    let grade = Grade::of(PROBABILITY.name, probability);
    match base {
        Some(Reply::Scores(base)) if base.len() == 2 => {
            let reward = prefers([
                chosen.log_prob - base[0].log_prob,
                rejected.log_prob - base[1].log_prob,
            ]);
            grade.and(REWARD.name, reward)
        }
        _ => grade,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::ContinuationScore;

    fn scores(log_probs: [f64; 2]) -> Reply {
        let score = |log_prob| ContinuationScore {
            log_prob,
            tokens: 1,
            greedy: false,
        };
        Reply::Scores(log_probs.map(score).to_vec())
    }

    #[test]
    fn the_reward_is_relative_to_the_base() {
        let turns = [Message::new("user", "Why?")];
        let answers = [" So.", " No."].map(str::to_owned);
        let item = items("0".to_owned(), &turns, answers).remove(0);
        // Less probable, but more so than under the base.
        let base = scores([-9.0, -4.0]);
        let grade = |own: [f64; 2]| grade(&item, &scores(own), Some(&base));
        assert_eq!(grade([-7.0, -5.0]).value("reward_acc"), Some(1.0));
        assert_eq!(grade([-7.0, -5.0]).value("log_prob_acc"), Some(0.0));
        assert_eq!(grade([-9.0, -4.0]).value("reward_acc"), Some(0.0));
        let of_base = super::grade(&item, &scores([-1.0, -2.0]), None);
        assert_eq!(of_base.value("log_prob_acc"), Some(1.0));
        assert_eq!(of_base.value("reward_acc"), None);
    }
}
