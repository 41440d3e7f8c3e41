//! Multiple choice: how choices are shown and graded.

pub(super) use super::blank::{SOURCE, split};

use super::blank;
use super::layout::Question;
use super::{Ask, ContinuationScore, Gold, Grade, Grader, Item, ItemError, Metric, Prompts, Reply};
use super::{Row, Task};

/// The letters of choices.
pub(super) const LETTERS: [&str; 10] = ["A", "B", "C", "D", "E", "F", "G", "H", "I", "J"];

/// Accuracy by the most probable continuation.
pub(super) const ACCURACY: Metric = Metric::mean("acc");
/// Accuracy by the continuation that is most probable for its length in characters.
pub(super) const ACCURACY_NORM: Metric = Metric::mean("acc_norm");

/// A task of choices, without examples unless the user asks for them. Its file says the rest.
pub(super) const fn task(
    name: &'static str,
    items: fn(&Row<'_>, Prompts) -> Result<Vec<Item>, ItemError>,
) -> Task {
    blank::task(
        name,
        items,
        Grader::Direct(grade),
        &[ACCURACY, ACCURACY_NORM],
    )
}

/// An item whose continuations are the choices themselves.
pub(super) fn item(id: String, prompt: String, question: &Question) -> Item {
    let spaced = |choice: &String| format!(" {choice}");
    Item {
        id,
        cluster: None,
        prompt,
        answer: spaced(&question.choices[question.right]),
        ask: Ask::Choose(question.choices.iter().map(spaced).collect()),
        gold: Gold::Choice(question.right),
    }
}

/// An item whose continuations are the letters of the choices, which the prompt shows.
pub(super) fn lettered(id: String, prompt: String, question: &Question) -> Item {
    let letters = LETTERS.iter().take(question.choices.len());
    let question = Question {
        text: String::new(),
        choices: letters.map(|letter| (*letter).to_owned()).collect(),
        right: question.right,
    };
    item(id, prompt, &question)
}

/// The choices with their letters, one a line.
pub(super) fn listed(choices: &[String]) -> String {
    let lines = choices.iter().zip(LETTERS);
    lines
        .map(|(choice, letter)| format!("{letter}. {choice}\n"))
        .collect()
}

/// Grades a choice among continuations: `acc`, and `acc_norm` with each sum divided by the
/// characters of its continuation (without the space that goes before each), as EleutherAI's
/// harness has them. Of equals the first is taken.
pub(super) fn grade(item: &Item, reply: &Reply, _: Prompts) -> Grade {
    let Reply::Scores(scores) = reply else {
        return Grade::default();
    };
    let length = |choice: usize| match &item.ask {
        Ask::Choose(choices) => characters(&choices[choice]),
        _ => 1.0,
    };
    let chosen = best(scores, |_, score| score.log_prob);
    let by_length = best(scores, |i, score| score.log_prob / length(i));
    let right = |choice: usize| {
        let right = match &item.gold {
            Gold::Choice(gold) => choice == *gold,
            Gold::Choices(right) => right.get(choice) == Some(&true),
            _ => false,
        };
        f64::from(u8::from(right))
    };
    let grade = Grade::of(ACCURACY.name, right(chosen)).and(ACCURACY_NORM.name, right(by_length));
    match item.gold {
        Gold::Choice(gold) => Grade {
            class: Some((gold, chosen)),
            ..grade
        },
        _ => grade,
    }
}

fn characters(continuation: &str) -> f64 {
    let choice = continuation.strip_prefix(' ').unwrap_or(continuation);
    choice.chars().count().max(1) as f64
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

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(log_probs: &[f64]) -> Reply {
        let score = |&log_prob| ContinuationScore {
            log_prob,
            tokens: 1,
            greedy: false,
        };
        Reply::Scores(log_probs.iter().map(score).collect())
    }

    fn question(choices: &[&str], right: usize) -> Item {
        let question = Question {
            text: String::new(),
            choices: choices.iter().map(|&choice| choice.to_owned()).collect(),
            right,
        };
        item("0".to_owned(), "Q".to_owned(), &question)
    }

    #[test]
    fn the_norm_is_by_characters_of_the_choice() {
        // -2 / 1 and -3 / 2 with characters, -3 / 3 would be the same with bytes.
        let item = question(&["a", "é "], 1);
        let grade = grade(&item, &scores(&[-2.0, -3.0]), Prompts::Sound);
        assert_eq!(grade.value("acc"), Some(0.0));
        assert_eq!(grade.value("acc_norm"), Some(1.0));
        assert_eq!(grade.class, Some((1, 0)));
        // White space of the choice itself counts.
        let item = question(&["ab", " b"], 0);
        let grade = super::grade(&item, &scores(&[-1.0, -1.0]), Prompts::Sound);
        assert_eq!(grade.value("acc_norm"), Some(1.0));
    }

    #[test]
    fn one_of_several_right_choices_is_right() {
        let item = Item {
            gold: Gold::Choices(vec![true, false, true]),
            ..question(&["a", "b", "c"], 0)
        };
        for (log_probs, right) in [([-3.0, -2.0, -1.0], 1.0), ([-3.0, -1.0, -2.0], 0.0)] {
            let grade = grade(&item, &scores(&log_probs), Prompts::Sound);
            assert_eq!(grade.value("acc"), Some(right));
            assert_eq!(grade.class, None);
        }
    }
}
