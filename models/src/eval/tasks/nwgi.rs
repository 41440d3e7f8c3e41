//! News with GPT instructions: news that ChatGPT labelled, seven labels folded to three.

use fedllm_shared::Files::FirstOf;

use crate::eval::choose::{self, split};
use crate::eval::finance::{Medium, Sentiment};
use crate::eval::sentiment::{self, Said};
use crate::eval::{Item, ItemError, Prompts, Row, Source, Task};

pub(super) static TASK: Task = Task {
    about: "4,047 news of companies, labelled by ChatGPT; mild sentiment is neutral",
    reference: Some(
        "OpenFedLLM branch eval, nwgi.py: Alpaca's headings; the answer searched anywhere for \
         `positive`, `Positive`, then for `negative`, `Negative`, else neutral",
    ),
    suites: &["paper", "finance", "finance-held-out"],
    source: Source {
        hub: &["oliverwang15/news_with_gpt_instructions"],
        folders: &["fingpt_sources"],
        test: split(
            "test",
            FirstOf(&[
                &["**/*nwgi*test*.json*"],
                &["**/*news_with_gpt_instructions*test*.json*"],
                &["data/test-*.parquet"],
                &["**/nwgi/test-*.parquet"],
            ]),
        ),
        licence: "none is stated",
        ..choose::SOURCE
    },
    ..sentiment::task("nwgi", items)
};

fn items(row: &Row<'_>, prompts: Prompts) -> Result<Vec<Item>, ItemError> {
    let label = row.text("label")?;
    let class = Sentiment::of_mood(&label).ok_or_else(|| sentiment::unknown("label", &label))?;
    let said = Said {
        id: row.id(),
        medium: Medium::News,
        text: row.text("news")?,
        class,
    };
    Ok(vec![sentiment::item(said, prompts, sentiment::alpaca)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Gold;
    use crate::eval::tasks::tests::{at, one, refused};
    use serde_json::json;

    #[test]
    fn seven_labels_are_three_classes() {
        for (label, class) in [
            ("strong negative", Sentiment::Negative),
            ("mildly negative", Sentiment::Neutral),
            ("mildly positive", Sentiment::Neutral),
            ("moderately positive", Sentiment::Positive),
        ] {
            let row = json!({"news": "A grows.", "label": label, "prompt": "x", "out": "y"});
            let item = one(&TASK, "nwgi_test.jsonl", &row);
            assert_eq!(item.gold, Gold::Class(class as usize));
            assert!(
                item.prompt
                    .contains("sentiment of this news? Please choose an answer from")
            );
            assert!(item.prompt.ends_with(" A grows. \n\n### Response:"));
            let theirs = at(&TASK, &row, 0, Prompts::Reference).unwrap().remove(0);
            assert!(
                theirs
                    .prompt
                    .ends_with("\n\n### Input:\n A grows.\n\n### Response: ")
            );
        }
        let expected = "field `label` is \"good\", expected a class: negative, neutral or positive";
        assert_eq!(
            refused(&TASK, &json!({"news": "a", "label": "good"})),
            expected
        );
    }
}
