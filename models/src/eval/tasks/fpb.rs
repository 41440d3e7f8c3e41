//! Financial PhraseBank (Malo et al. 2014, arXiv 1307.5336): the sentiment of news.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use fedllm_shared::Files::FirstOf;
use fedllm_shared::{Header, ReadAs};

use crate::eval::choose::{self, split};
use crate::eval::finance::{Medium, Sentiment, phrase};
use crate::eval::sentiment::{self, Said, Search};
use crate::eval::split::{is_held_out, test_rows};
use crate::eval::{Grade, Grader, Item, ItemError, Prompts, Reply, Row, Source, Task};

const SOURCE: Source = Source {
    hub: &["takala/financial_phrasebank", "financial_phrasebank"],
    folders: &["fpb", "fingpt_sources"],
    test: split(
        "test",
        FirstOf(&[
            &["**/sentences_50agree/train-*.parquet"],
            &["**/sentences_50agree/train/*.parquet"],
            &["**/Sentences_50Agree.txt"],
            &["**/all-data.csv"],
        ]),
    ),
    beside: None,
    read_as: ReadAs {
        header: Header::UnlessFirstIs(&Sentiment::NAMES),
        row_per_line: true,
        latin1: true,
        ..ReadAs::ITSELF
    },
    licence: "CC BY-NC-SA 3.0",
    ..choose::SOURCE
};

const REFERENCE: &str = "OpenFedLLM branch eval, fpb.py: a question of its own, \
                         `{/negative/neutral/positive}`, in Alpaca's headings; the answer searched \
                         anywhere for `negative`, `Negative`, `Neg`, then for `positive`, \
                         `Positive`, `Pos`, else neutral";

pub(super) static TASK: Task = Task {
    about: "1,212 sentences of financial news: the quarter that FinGPT tests \
            (`train_test_split(seed=42)` of the 4,846 rows of sentences_50agree, in their order)",
    reference: Some(REFERENCE),
    source: SOURCE,
    grader: Grader::Direct(grade),
    ..sentiment::task("fpb", items)
};

pub(super) static HELD_OUT: Task = Task {
    about: "about 1,212 sentences of financial news: the quarter that `prepare finance-sentiment` \
            holds out",
    reference: Some(REFERENCE),
    suites: &["finance-held-out"],
    source: SOURCE,
    grader: Grader::Direct(grade),
    ..sentiment::task("fpb-held-out", held_out)
};

const SEARCH: Search = [
    (Sentiment::Negative, &["negative", "Negative", "Neg"]),
    (Sentiment::Positive, &["positive", "Positive", "Pos"]),
];

fn grade(item: &Item, reply: &Reply, prompts: Prompts) -> Grade {
    sentiment::grade(item, reply, prompts, &SEARCH)
}

fn items(row: &Row<'_>, prompts: Prompts) -> Result<Vec<Item>, ItemError> {
    static ASKED: LazyLock<BTreeSet<usize>> = LazyLock::new(|| test_rows(4846, 0.25, 42));
    let said = said(row)?;
    Ok(match ASKED.contains(&row.index) {
        true => vec![sentiment::item(said, prompts, reference)],
        false => Vec::new(),
    })
}

fn held_out(row: &Row<'_>, prompts: Prompts) -> Result<Vec<Item>, ItemError> {
    let said = said(row)?;
    Ok(match is_held_out(&said.text) {
        true => vec![sentiment::item(said, prompts, reference)],
        false => Vec::new(),
    })
}

fn reference(_: &str, text: &str) -> String {
    let question = "What is the sentiment of this news? Please choose only one answer from \
                    {/negative/neutral/positive}.";
    sentiment::alpaca(question, text)
}

/// Sentence and class, whatever the columns are called: `sentence` and a numbered `label`,
/// `sentence@class` on a line, or a sentence and its class in either order.
fn said(row: &Row<'_>) -> Result<Said, ItemError> {
    let (text, class) = match row.has("sentence") && row.has("label") {
        true => {
            let class = sentiment::labelled(row, "label", Sentiment::OF_PHRASES)?;
            (row.text("sentence")?, class)
        }
        false => unnamed(row)?,
    };
    Ok(Said {
        id: row.id(),
        medium: Medium::News,
        text,
        class,
    })
}

fn unnamed(row: &Row<'_>) -> Result<(String, Sentiment), ItemError> {
    let found = phrase(row.fields).map(|(text, class)| (text.to_owned(), class));
    found.map_err(|cells| match (&cells[..], row.text("sentence")) {
        ([cell] | [cell, _], _) => sentiment::unknown("label", cell),
        (_, Err(missing)) => missing,
        _ => sentiment::unknown("label", ""),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::tasks::tests::{at, refused};
    use serde_json::{Value, json};

    /// The first row of `train_test_split`'s test part.
    const ASKED: usize = 1855;

    fn rows() -> [Value; 5] {
        [
            json!({"sentence": "Sales fell .", "label": 0}),
            json!({"text": "Sales fell .@negative"}),
            json!({"result": "negative", "content": "Sales fell ."}),
            json!({"0": "negative", "1": "Sales fell ."}),
            json!({"sentence": "Sales fell .", "label": "negative"}),
        ]
    }

    #[test]
    fn every_layout_asks_the_same() {
        for row in rows() {
            assert!(at(&TASK, &row, 0, Prompts::Sound).unwrap().is_empty());
            let item = at(&TASK, &row, ASKED, Prompts::Sound).unwrap().remove(0);
            assert_eq!(
                item.prompt,
                "Below is an instruction that describes a task. Write a response that \
                 appropriately completes the request.\n\n### Instruction:\nWhat is the sentiment \
                 of this news? Please choose an answer from {negative/neutral/positive}. Sales \
                 fell . \n\n### Response:"
            );
            assert_eq!(item.answer, " negative");
            let theirs = at(&TASK, &row, ASKED, Prompts::Reference)
                .unwrap()
                .remove(0);
            assert_eq!(
                theirs.prompt,
                "Below is an instruction that describes a task. Write a response that \
                 appropriately completes the request.\n\n### Instruction:\n What is the sentiment \
                 of this news? Please choose only one answer from \
                 {/negative/neutral/positive}.\n\n### Input:\n Sales fell .\n\n### Response: "
            );
            assert_eq!(theirs.answer, "negative");
        }
    }

    #[test]
    fn the_reference_looks_for_negative_first() {
        let item = at(&TASK, &rows()[0], ASKED, Prompts::Reference)
            .unwrap()
            .remove(0);
        for (written, said) in [
            ("positive, not negative", Sentiment::Negative as usize),
            ("Pos", Sentiment::Positive as usize),
            ("?", Sentiment::Neutral as usize),
        ] {
            let reply = Reply::Texts(vec![written.to_owned()]);
            let class = grade(&item, &reply, Prompts::Reference).class;
            assert_eq!(class, Some((Sentiment::Negative as usize, said)));
        }
    }

    #[test]
    fn the_quarter_held_out_is_by_sentence() {
        let asked = |sentence: &str| {
            let row = json!({"sentence": sentence, "label": 2});
            !at(&HELD_OUT, &row, 7, Prompts::Sound).unwrap().is_empty()
        };
        let sentences: Vec<String> = (0..40).map(|i| format!("Sentence {i} .")).collect();
        assert!(sentences.iter().any(|sentence| asked(sentence)));
        assert!(
            sentences
                .iter()
                .all(|sentence| asked(sentence) == is_held_out(sentence))
        );
    }

    #[test]
    fn a_row_without_a_class_is_refused() {
        let expected = "expected a class: negative, neutral or positive";
        for row in [
            json!({"sentence": "a", "label": 3}),
            json!({"text": "a@b"}),
            json!({"a": "b", "c": "d"}),
            json!({"a": "positive", "b": "negative"}),
        ] {
            assert!(refused(&TASK, &row).ends_with(expected), "{row}");
        }
        assert_eq!(
            refused(&TASK, &json!({})),
            "field `sentence` is missing; the row has "
        );
    }
}
