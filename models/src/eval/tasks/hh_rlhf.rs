//! HH-RLHF (Bai et al. 2022, arXiv 2204.05862): whether a model prefers what people preferred.

use fedllm_shared::Files::FirstOf;

use crate::eval::choose::{self, split};
use crate::eval::preference;
use crate::eval::{Item, ItemError, Prompts, Row, Source, Task, dialogue, part, part_at_character};

pub(super) static TASK: Task = Task {
    about: "8,552 pairs of answers that people compared for harm or help",
    reference: Some(
        "OpenFedLLM utils/process_dataset.py split_hh: the dialogues part at the first character \
         that differs, so that answers begin in mid-sentence",
    ),
    source: Source {
        hub: &["Anthropic/hh-rlhf"],
        folders: &["hh_rlhf"],
        test: split(
            "test",
            FirstOf(&[
                &[
                    "**/harmless-base/test.jsonl.gz",
                    "**/helpful-base/test.jsonl.gz",
                    "**/helpful-online/test.jsonl.gz",
                    "**/helpful-rejection-sampled/test.jsonl.gz",
                ],
                &["**/harmless-base/test.jsonl.gz"],
            ]),
        ),
        licence: "MIT",
        ..choose::SOURCE
    },
    ..preference::task("hh-rlhf", items)
};

fn items(row: &Row<'_>, prompts: Prompts) -> Result<Vec<Item>, ItemError> {
    let (chosen, rejected) = (row.text("chosen")?, row.text("rejected")?);
    let id = format!("{}/{}", row.folder(), row.index);
    if prompts == Prompts::Reference {
        let (turns, chosen, rejected) = part_at_character(&chosen, &rejected);
        return Ok(preference::items(id, &turns, [chosen, rejected]));
    }
    let turns = |text: &str, field| {
        dialogue(text).ok_or_else(|| ItemError::Value {
            field,
            got: text.chars().take(40).collect(),
            expected: "a dialogue that begins with `\\n\\nHuman:`",
        })
    };
    let parted = part(turns(&chosen, "chosen")?, turns(&rejected, "rejected")?);
    Ok(match parted {
        Some((turns, chosen, rejected)) => {
            let answers = [chosen, rejected].map(|answer| format!(" {answer}"));
            preference::items(id, &turns, answers)
        }
        None => Vec::new(), // They part where a person speaks: no answers to compare.
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::tasks::tests::{asked, refused};
    use serde_json::json;

    const SYSTEM: &str = "A chat between a curious user and an artificial intelligence assistant. \
                          The assistant gives helpful, detailed, and polite answers to the user's \
                          questions. ";

    #[test]
    fn dialogues_part_at_the_answer_or_as_the_reference_does() {
        let before = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Help?\n\nAssistant: ";
        let row =
            json!({"chosen": format!("{before}Yes, do."), "rejected": format!("{before}Yes, no.")});
        let ask = |prompts| asked(&TASK, "harmless-base/test.jsonl.gz", &row, 2, prompts).unwrap();
        let item = ask(Prompts::Sound).remove(0);
        let expected = format!("{SYSTEM}USER: Hi ASSISTANT: Hello</s>USER: Help? ASSISTANT:");
        assert_eq!(item.prompt, expected);
        let choices = [" Yes, do.", " Yes, no."].map(str::to_owned).to_vec();
        assert_eq!(item.ask, crate::eval::Ask::Choose(choices));
        assert_eq!(item.id, "harmless-base/2");
        let theirs = ask(Prompts::Reference).remove(0);
        assert_eq!(theirs.prompt, expected);
        let choices = [" do.", " no."].map(str::to_owned).to_vec();
        assert_eq!(theirs.ask, crate::eval::Ask::Choose(choices));
    }

    #[test]
    fn rows_without_two_answers_ask_nothing() {
        let turn = |text| format!("\n\nHuman: {text}\n\nAssistant: ok");
        let row = json!({"chosen": turn("a"), "rejected": turn("b")});
        assert!(
            asked(&TASK, "x/test.jsonl", &row, 0, Prompts::Sound)
                .unwrap()
                .is_empty()
        );
        let row = json!({"chosen": turn("a"), "rejected": turn("a")});
        assert!(
            asked(&TASK, "x/test.jsonl", &row, 0, Prompts::Sound)
                .unwrap()
                .is_empty()
        );
        let row = json!({"chosen": turn("a"), "rejected": "b"});
        assert!(refused(&TASK, &row).starts_with("field `rejected` is \"b\", expected a dialogue"));
    }
}
