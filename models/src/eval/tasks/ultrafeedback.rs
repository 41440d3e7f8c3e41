//! UltraFeedback, binarized (Cui et al. 2023, arXiv 2310.01377): whether a model prefers what GPT-4
//! preferred.

use fedllm_shared::Files::FirstOf;
use serde_json::Value;

use crate::eval::choose::{self, split};
use crate::eval::preference;
use crate::eval::{Item, ItemError, Prompts, Row, Source, Task, part};
use crate::template::Message;

pub(super) static TASK: Task = Task {
    about: "2,000 pairs of answers that GPT-4 rated",
    source: Source {
        hub: &["HuggingFaceH4/ultrafeedback_binarized"],
        folders: &["derived"],
        test: split(
            "test_prefs",
            FirstOf(&[
                &["**/test_prefs-*.parquet"],
                &["**/eval_clean.jsonl"],
                &["**/train_clean.jsonl"],
                &["**/ultrafeedback_binarized*.jsonl"],
            ]),
        ),
        licence: "MIT",
        ..choose::SOURCE
    },
    ..preference::task("ultrafeedback", items)
};

fn items(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let parted = match row.field("chosen")? {
        Value::Array(_) => part(turns(row, "chosen")?, turns(row, "rejected")?),
        _ => Some((Vec::new(), row.text("chosen")?, row.text("rejected")?)),
    };
    let Some((mut prompt, chosen, rejected)) = parted else {
        return Ok(Vec::new());
    };
    if prompt.is_empty() {
        prompt.push(Message::new("user", row.text("prompt")?));
    }
    let answers = [chosen, rejected].map(|answer| format!(" {answer}"));
    Ok(preference::items(row.id(), &prompt, answers))
}

/// A list of `role` and `content`.
fn turns(row: &Row<'_>, field: &'static str) -> Result<Vec<Message>, ItemError> {
    let wrong = || ItemError::Kind {
        field,
        expected: "a list of turns",
    };
    let turns = row.field(field)?.as_array().ok_or_else(wrong)?;
    let turn = |turn: &Value| {
        let fields = turn.as_object().ok_or_else(wrong)?;
        let turn = Row { fields, ..*row };
        Ok(Message::new(turn.text("role")?, turn.text("content")?))
    };
    turns.iter().map(turn).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::tasks::tests::{asked, chosen, refused};
    use serde_json::json;

    #[test]
    fn every_layout_asks_the_same() {
        let side = |answer: &str| {
            let answer = json!({"content": answer, "role": "assistant"});
            json!([{"content": "Why?", "role": "user"}, answer])
        };
        let hub = json!({"prompt": "Why?", "chosen": side("So."), "rejected": side("No.")});
        let flat = json!({"prompt": "Why?", "chosen": "So.", "rejected": "No."});
        for row in [hub, flat] {
            let prompt = "A chat between a curious user and an artificial intelligence assistant. \
                          The assistant gives helpful, detailed, and polite answers to the user's \
                          questions. USER: Why? ASSISTANT:";
            chosen(
                &TASK,
                "test_prefs-0.parquet",
                &row,
                (prompt, &[" So.", " No."], 0),
            );
        }
        let empty = json!({"prompt": "Why?", "chosen": "So.", "rejected": " "});
        assert!(
            asked(&TASK, "a.jsonl", &empty, 0, Prompts::Sound)
                .unwrap()
                .is_empty()
        );
        let row = json!({"prompt": "a", "chosen": side("b"), "rejected": "c"});
        assert_eq!(
            refused(&TASK, &row),
            "field `rejected` is not a list of turns"
        );
    }
}
