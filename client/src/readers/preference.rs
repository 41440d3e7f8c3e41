//! Rows of two rival answers, as the world stores them.
//!
//! `prompt`, `chosen` and `rejected` are texts, or lists of turns whose last one is the answer.
//! HH-RLHF (Bai et al. 2022, arXiv 2204.05862) has two whole dialogues instead: the turns that
//! they share are the prompt, the assistant's next turns are the answers.

use fedllm_models::eval;
use fedllm_models::template::Message;
use fedllm_shared::Compat;
use serde_json::{Map, Value};

use super::record::{self, Prompt, Record, RowProblem};

const HUMAN: &str = "\n\nHuman:";
const ASSISTANT: &str = "\n\nAssistant:";

/// A row of `prompt` (which lists of turns may leave out), `chosen` and `rejected`.
pub(super) fn pair(fields: &Map<String, Value>, compat: Compat) -> Result<Record, RowProblem> {
    let (chosen, rejected) = (fields.get("chosen"), fields.get("rejected"));
    let (Some(Value::Array(chosen)), Some(Value::Array(rejected))) = (chosen, rejected) else {
        let prompt = match fields.get("prompt") {
            Some(Value::Array(turns)) => Prompt::Messages(record::messages(turns, "prompt")?),
            _ => Prompt::Text(record::text(fields, "prompt")?),
        };
        let [chosen, rejected] = [
            record::text(fields, "chosen")?,
            record::text(fields, "rejected")?,
        ];
        return match compat {
            Compat::Paper => preference(prompt, chosen, rejected),
            Compat::OpenFedLlm => Ok(as_written(prompt, chosen, rejected)),
        };
    };
    if compat == Compat::OpenFedLlm {
        let prompt = Prompt::Text(record::text(fields, "prompt")?);
        let [chosen, rejected] = [second(chosen, "chosen")?, second(rejected, "rejected")?];
        return Ok(as_written(prompt, chosen, rejected));
    }
    let before = match fields.get("prompt") {
        Some(Value::Array(turns)) => record::messages(turns, "prompt")?,
        _ => Vec::new(),
    };
    let whole = |turns: &[Value], field| {
        let turns = record::messages(turns, field)?;
        Ok(match starts_with(&turns, &before) {
            true => turns,
            false => [before.clone(), turns].concat(),
        })
    };
    let (prompt, chosen, rejected) = part(whole(chosen, "chosen")?, whole(rejected, "rejected")?)?;
    let prompt = match prompt.is_empty() {
        true => Prompt::Text(record::text(fields, "prompt")?),
        false => Prompt::Messages(prompt),
    };
    preference(prompt, chosen, rejected)
}

/// A row of two whole dialogues, as HH-RLHF has them.
pub(super) fn dialogues(fields: &Map<String, Value>, compat: Compat) -> Result<Record, RowProblem> {
    let [chosen, rejected] = [
        record::text(fields, "chosen")?,
        record::text(fields, "rejected")?,
    ];
    if compat == Compat::OpenFedLlm {
        let (prompt, chosen, rejected) = eval::part_at_character(&chosen, &rejected);
        return Ok(Record::Preference {
            prompt: Prompt::Messages(prompt),
            chosen,
            rejected,
            verbatim: true,
        });
    }
    let turns = |text, field| eval::dialogue(text).ok_or(RowProblem::NotADialogue { field });
    let (prompt, chosen, rejected) =
        part(turns(&chosen, "chosen")?, turns(&rejected, "rejected")?)?;
    preference(Prompt::Messages(prompt), chosen, rejected)
}

/// Whether a text begins as a dialogue of HH-RLHF does.
pub(super) fn is_dialogue(value: Option<&Value>) -> bool {
    value
        .and_then(Value::as_str)
        .is_some_and(|text| text.starts_with(HUMAN) || text.starts_with(ASSISTANT))
}

fn preference(prompt: Prompt, chosen: String, rejected: String) -> Result<Record, RowProblem> {
    for (field, answer) in [("chosen", &chosen), ("rejected", &rejected)] {
        if answer.trim().is_empty() {
            return Err(RowProblem::Empty { field });
        }
    }
    if chosen == rejected {
        return Err(RowProblem::SameAnswers);
    }
    Ok(Record::Preference {
        prompt,
        chosen,
        rejected,
        verbatim: false,
    })
}

/// As OpenFedLLM's `split_ultrafeedback` does it: a space goes before each answer.
fn as_written(prompt: Prompt, chosen: String, rejected: String) -> Record {
    Record::Preference {
        prompt,
        chosen: format!(" {chosen}"),
        rejected: format!(" {rejected}"),
        verbatim: true,
    }
}

/// What the second turn says, whoever speaks: OpenFedLLM's idea of the answer.
fn second(turns: &[Value], field: &'static str) -> Result<String, RowProblem> {
    match record::messages(turns, field)?.into_iter().nth(1) {
        Some(turn) => Ok(turn.content),
        None => Err(RowProblem::NoAnswer),
    }
}

/// The turns that two conversations share, and what the assistant says next in each.
///
/// # Errors
///
/// [`RowProblem::NoSharedPrompt`] if the next turn of either is no answer.
fn part(
    chosen: Vec<Message>,
    rejected: Vec<Message>,
) -> Result<(Vec<Message>, String, String), RowProblem> {
    eval::part(chosen, rejected).ok_or(RowProblem::NoSharedPrompt)
}

fn starts_with(turns: &[Message], start: &[Message]) -> bool {
    let is_same = |(a, b): (&Message, &Message)| a.role == b.role && a.content == b.content;
    turns.len() >= start.len() && turns.iter().zip(start).all(is_same)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::readers::Format;

    fn read(row: &Value) -> Result<(Format, Prompt, String, String), RowProblem> {
        read_as(row, Compat::Paper)
    }

    fn read_as(
        row: &Value,
        compat: Compat,
    ) -> Result<(Format, Prompt, String, String), RowProblem> {
        let fields = row.as_object().unwrap();
        let format = Format::detect(fields)?;
        match format.record_as(fields, compat)? {
            Record::Preference {
                prompt,
                chosen,
                rejected,
                verbatim,
            } => {
                assert_eq!(verbatim, compat == Compat::OpenFedLlm);
                Ok((format, prompt, chosen, rejected))
            }
            other => panic!("{other:?}"),
        }
    }

    fn turns(turns: &[(&str, &str)]) -> Prompt {
        Prompt::Messages(turns.iter().map(|(r, c)| Message::new(*r, *c)).collect())
    }

    fn hh(chosen: &str, rejected: &str) -> Value {
        json!({"chosen": chosen, "rejected": rejected})
    }

    #[test]
    fn texts_and_lists_of_turns_are_preferences() {
        let user = json!({"role": "user", "content": "q"});
        let assistant = |content: &str| json!({"role": "assistant", "content": content});
        let expected = |prompt| (Format::Preference, prompt, "a".to_owned(), "b".to_owned());
        let row = json!({"prompt": "q", "chosen": "a", "rejected": "b", "score": 1});
        assert_eq!(read(&row), Ok(expected(Prompt::Text("q".to_owned()))));
        for (prompt, before) in [
            (json!("q"), vec![user.clone()]),
            (json!([user]), vec![]),
            (json!([user]), vec![user.clone()]),
            (Value::Null, vec![user.clone()]),
        ] {
            let side = |answer| json!([&before[..], &[assistant(answer)]].concat());
            let row = json!({"prompt": prompt, "chosen": side("a"), "rejected": side("b")});
            assert_eq!(read(&row), Ok(expected(turns(&[("user", "q")]))), "{row}");
        }
        // Only the answers are lists.
        let row = json!({"prompt": "q", "chosen": [assistant("a")], "rejected": [assistant("b")]});
        assert_eq!(read(&row), Ok(expected(Prompt::Text("q".to_owned()))));
    }

    #[test]
    fn dialogues_part_at_a_turn() {
        let (_, prompt, chosen, rejected) = read(&hh(
            "\n\nHuman: One?\n\nAssistant: 1 \n\nHuman:  Two?\n\nAssistant: I say 2.",
            "\n\nHuman: One?\n\nAssistant: 1 \n\nHuman:  Two?\n\nAssistant: I say 3.",
        ))
        .unwrap();
        let shared = [("user", "One?"), ("assistant", "1"), ("user", "Two?")];
        assert_eq!(prompt, turns(&shared));
        assert_eq!((&chosen[..], &rejected[..]), ("I say 2.", "I say 3."));

        // They part before the last turn: the first answers that differ are the answers.
        let (_, prompt, chosen, rejected) = read(&hh(
            "\n\nHuman: One?\n\nAssistant: 1\n\nHuman: Two?\n\nAssistant: 2",
            "\n\nHuman: One?\n\nAssistant: I",
        ))
        .unwrap();
        assert_eq!(prompt, turns(&[("user", "One?")]));
        assert_eq!((&chosen[..], &rejected[..]), ("1", "I"));

        // Two turns of one speaker are one.
        let (_, prompt, chosen, _) = read(&hh(
            "\n\nHuman: One?\n\nHuman: Now!\n\nAssistant: 1\n\nAssistant: is it",
            "\n\nHuman: One?\n\nHuman: Now!\n\nAssistant: 2",
        ))
        .unwrap();
        assert_eq!(prompt, turns(&[("user", "One?\n\nNow!")]));
        assert_eq!(chosen, "1\n\nis it");
    }

    #[test]
    fn dialogues_without_two_answers_are_dropped() {
        let start = "\n\nHuman: One?\n\nAssistant:";
        for (chosen, rejected, reason) in [
            (" 1", " 1", "equal answers"),
            (" 1", " ", "empty answer"),
            ("", " 2", "empty answer"),
            (" 1\n\nHuman: a", " 1\n\nHuman: b", "no shared prompt"),
            (" 1\n\nHuman: a\n\nAssistant: 2", " 1", "equal answers"),
        ] {
            let row = hh(&format!("{start}{chosen}"), &format!("{start}{rejected}"));
            let problem = read(&row).unwrap_err();
            assert_eq!(problem.reason(), reason, "{row}");
            assert!(problem.is_harmless());
        }
    }

    #[test]
    fn compat_cuts_where_the_reference_cuts() {
        let compat = |chosen: &str, rejected: &str| {
            let fields = hh(chosen, rejected);
            Format::Hh.record_as(fields.as_object().unwrap(), Compat::OpenFedLlm)
        };
        let cut = |prompt: &[(&str, &str)], chosen: &str, rejected: &str| {
            Ok(Record::Preference {
                prompt: turns(prompt),
                chosen: chosen.to_owned(),
                rejected: rejected.to_owned(),
                verbatim: true,
            })
        };
        // Expected values: split_hh of OpenFedLLM's utils/process_dataset.py on the same texts.
        assert_eq!(
            compat(
                "\n\nHuman: a\n\nAssistant: been",
                "\n\nHuman: a\n\nAssistant: bean"
            ),
            cut(&[("user", "a")], "een", "ean")
        );
        assert_eq!(
            compat(
                "\n\nHuman: a b\n\nAssistant: c",
                "\n\nHuman: a d\n\nAssistant: c"
            ),
            cut(&[], " b\n\nAssistant: c", " d\n\nAssistant: c"),
            "a question that differs is lost from the prompt"
        );
        assert_eq!(
            compat(
                "\n\nHuman: é\n\nAssistant: x",
                "\n\nHuman: é\n\nAssistant: x"
            ),
            cut(&[("user", "é")], "x", "x"),
            "the same dialogues leave their last character"
        );
        assert_eq!(compat("ab", "cd"), cut(&[], "b", "d"));
        let row = json!({
            "prompt": "q",
            "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": ""}],
        });
        let (_, prompt, chosen, rejected) = read_as(&row, Compat::OpenFedLlm).unwrap();
        assert_eq!(prompt, Prompt::Text("q".to_owned()));
        assert_eq!((&chosen[..], &rejected[..]), (" a", " "));
        assert_eq!(read(&row).unwrap_err().reason(), "empty answer");
    }
}
