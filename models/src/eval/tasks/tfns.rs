//! Twitter financial news sentiment: the sentiment of tweets about shares.

use fedllm_shared::Files::FirstOf;

use crate::eval::choose::{self, split};
use crate::eval::finance::{Medium, Sentiment};
use crate::eval::sentiment::{self, Said, Search};
use crate::eval::{Grade, Grader, Item, ItemError, Prompts, Reply, Row, Source, Task};

pub(super) static TASK: Task = Task {
    about: "2,388 tweets about shares and companies",
    reference: Some(
        "OpenFedLLM branch eval, tfns.py: a template of its own, `###Instruction: `, `Input: `, \
         `###Response: `; the answer searched anywhere for `positive`, `Positive`, `Pos`, then for \
         `negative`, `Negative`, `Neg`, else neutral",
    ),
    suites: &["paper", "finance", "finance-held-out"],
    source: Source {
        hub: &["zeroshot/twitter-financial-news-sentiment"],
        folders: &["fingpt_sources"],
        test: split(
            "validation",
            FirstOf(&[&["**/sent_valid.csv"], &["data/validation-*.parquet"]]),
        ),
        licence: "MIT",
        ..choose::SOURCE
    },
    grader: Grader::Direct(grade),
    ..sentiment::task("tfns", items)
};

const SEARCH: Search = [
    (Sentiment::Positive, &["positive", "Positive", "Pos"]),
    (Sentiment::Negative, &["negative", "Negative", "Neg"]),
];

fn grade(item: &Item, reply: &Reply, prompts: Prompts) -> Grade {
    sentiment::grade(item, reply, prompts, &SEARCH)
}

fn items(row: &Row<'_>, prompts: Prompts) -> Result<Vec<Item>, ItemError> {
    let said = Said {
        id: row.id(),
        medium: Medium::Tweet,
        text: row.text("text")?,
        class: sentiment::labelled(row, "label", Sentiment::OF_TWEETS)?,
    };
    Ok(vec![sentiment::item(said, prompts, sentiment::tight)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Gold;
    use crate::eval::tasks::tests::{at, one, refused};
    use serde_json::json;

    #[test]
    fn tweets_have_a_template_of_their_own_in_the_reference() {
        for label in [json!(1), json!("1")] {
            let row = json!({"text": "$A up", "label": label});
            let item = one(&TASK, "sent_valid.csv", &row);
            assert_eq!(item.gold, Gold::Class(Sentiment::Positive as usize));
            assert!(item.prompt.ends_with(
                "### Instruction:\nWhat is the sentiment of this tweet? Please choose an answer \
                 from {negative/neutral/positive}. $A up \n\n### Response:"
            ));
            let theirs = at(&TASK, &row, 0, Prompts::Reference).unwrap().remove(0);
            assert_eq!(
                theirs.prompt,
                "Below is an instruction that describes a task. Write a response that \
                 appropriately completes the request.\n###Instruction: What is the sentiment of \
                 this tweet? Please choose an answer from {negative/neutral/positive}.\nInput: $A \
                 up\n###Response: "
            );
            let reply = Reply::Texts(vec!["Neg, Pos".to_owned()]);
            let class = grade(&theirs, &reply, Prompts::Reference).class;
            assert_eq!(
                class,
                Some((Sentiment::Positive as usize, Sentiment::Positive as usize))
            );
        }
        let expected = "field `label` is \"3\", expected a class: negative, neutral or positive";
        assert_eq!(refused(&TASK, &json!({"text": "a", "label": 3})), expected);
    }
}
