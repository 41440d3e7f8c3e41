//! Questions of one turn that a judge rates: Vicuna-Bench, and the GPT4-refer sets of FedLLM-Bench (Ye
//! et al. 2024, arXiv 2406.04845).

use std::sync::Arc;

use fedllm_shared::{Files, JsonObject, ReadAs};

use crate::eval::judge_prompts::{FED_AYA, FED_CHAT, JudgePrompt, SINGLE};
use crate::eval::judging::{item, rating, reference, turn};
use crate::eval::written::{split, task};
use crate::eval::{Grader, Item, ItemError, Judgement, Metric, Prompts, Row, Source, Task};

const RATING: Metric = rating("rating");

pub(super) static VICUNA: Task = Task {
    about: "open questions in nine categories, rated by a judge",
    prompt: "OpenFedLLM: temperature 0.7, FastChat's judge prompt single-v1 at temperature 0.2",
    suites: &["paper", "judged"],
    source: Source {
        folders: &["vicuna", "vicuna_bench"],
        test: split(
            "test",
            Files::FirstOf(&[
                &["**/vicuna/question.jsonl"],
                &["**/vicuna_bench/question.jsonl"],
                &["question.jsonl"],
            ]),
        ),
        licence: "Apache-2.0",
        ..VICUNA_BASE.source
    },
    metrics: &[RATING],
    ..VICUNA_BASE
};

pub(super) static FED_CHATBOT: Task = fed(
    "fed-chatbotit",
    "requests to chatbots, rated by a judge",
    Files::FirstOf(&[
        &["**/chatbot/testset.json"],
        &["**/fed_chatbotit_testset.json"],
    ]),
    "CC BY-NC 4.0",
);

pub(super) static FED_WILDCHAT: Task = fed(
    "fed-wildchat",
    "requests of users around the world, rated by a judge",
    Files::FirstOf(&[
        &["**/wildchat/testset.json"],
        &["**/fed_wildchat_testset.json"],
    ]),
    "ODC-By",
);

pub(super) static FED_AYA_SET: Task = fed(
    "fed-aya",
    "questions in eight languages, rated by a judge beside a human's answer",
    Files::FirstOf(&[
        &["**/aya_evaluation/test_datasets.json"],
        &["**/fed_aya_test_datasets.json"],
    ]),
    "Apache-2.0",
);

const VICUNA_BASE: Task = task("vicuna-bench", vicuna, Grader::Judge(judge_vicuna));

const fn fed(name: &'static str, about: &'static str, files: Files, licence: &'static str) -> Task {
    let base = task(name, fed_items, Grader::Judge(judge_fed));
    Task {
        about,
        prompt: "FedLLM-Bench GPT4-refer: temperature 0.7, its judge prompt at temperature 0.2",
        suites: &["judged"],
        source: Source {
            folders: &["fedllm_bench"],
            test: split("test", files),
            read_as: ReadAs {
                object: JsonObject::OfRows,
                ..ReadAs::ITSELF
            },
            licence,
            ..base.source
        },
        metrics: &[RATING],
        ..base
    }
}

fn vicuna(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let question = match row.has("turns") {
        true => row.texts("turns")?.into_iter().next().unwrap_or_default(),
        false => row.text_of(&["text", "instruction"])?,
    };
    Ok(vec![Item {
        cluster: row.text("category").ok().map(Arc::from),
        ..item(
            row.text("question_id")?,
            vec![question],
            Vec::new(),
            (0.7, 2048),
        )
    }])
}

fn fed_items(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let group = row.key.map(str::to_owned);
    let group = group.or_else(|| row.text("language").ok());
    let prefix = row.key.map(|key| format!("{key}/")).unwrap_or_default();
    let references = vec![row.text("reference").ok()];
    let turns = vec![row.text("instruction")?];
    Ok(vec![Item {
        cluster: group.map(Arc::from),
        ..item(
            format!("{prefix}{}", row.index),
            turns,
            references,
            (0.7, 1024),
        )
    }])
}

fn judge_vicuna(item: &Item, replies: &[String]) -> Vec<Judgement> {
    /// OpenFedLLM tells the judge something else first.
    static PROMPT: JudgePrompt = JudgePrompt {
        system: "You are a helpful assistant, that ranks models by the quality of their answers.",
        template: SINGLE.template,
    };
    judge(&PROMPT, item, replies)
}

fn judge_fed(item: &Item, replies: &[String]) -> Vec<Judgement> {
    match reference(item, 0) {
        Some(_) => judge(&FED_AYA, item, replies),
        None => judge(&FED_CHAT, item, replies),
    }
}

fn judge(prompt: &JudgePrompt, item: &Item, replies: &[String]) -> Vec<Judgement> {
    let (question, answer) = turn(item, replies, 0);
    let reference = reference(item, 0).unwrap_or_default();
    let values = [
        ("question", question),
        ("answer", answer),
        ("reference", reference),
    ];
    vec![prompt.judgement(RATING, 0.2, &values)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::testing::{asked_as, one};
    use serde_json::json;

    #[test]
    fn single_answers_are_rated() {
        let row = json!({"question_id": 1, "category": "generic", "turns": ["How?"]});
        let item = one("vicuna-bench", "vicuna/question.jsonl", &row);
        assert_eq!((item.id.as_str(), item.prompt.as_str()), ("1", "How?"));
        assert_eq!(item.cluster.as_deref(), Some("generic"));
        let judgement = judge_vicuna(&item, &["So.".to_owned()]).remove(0);
        assert_eq!(judgement.temperature, 0.2);
        assert!(judgement.system.contains("ranks models"));
        assert!(
            judgement
                .prompt
                .contains("[Question]\nHow?\n\n[The Start of Assistant's Answer]\nSo.\n")
        );
    }

    #[test]
    fn a_human_answer_stands_beside() {
        let row = json!({"instruction": "Qui ?", "reference": "Lui."});
        let path = "fed_aya_test_datasets.json";
        let aya = |key| {
            asked_as("fed-aya", Prompts::Sound, path, key, &row)
                .unwrap()
                .remove(0)
        };
        let item = aya(Some("French"));
        assert_eq!(
            (item.id.as_str(), item.cluster.as_deref()),
            ("French/7", Some("French"))
        );
        let judgement = judge_fed(&item, &["Elle.".to_owned()]).remove(0);
        assert!(
            judgement
                .prompt
                .ends_with("Elle.\n[The End of Assistant's Answer]\n\n[Reference]\nLui.")
        );
        let row = json!({"instruction": "Who?", "language": "English"});
        let item = one("fed-wildchat", "wildchat/testset.json", &row);
        assert_eq!(
            (item.id.as_str(), item.cluster.as_deref()),
            ("7", Some("English"))
        );
        let judgement = judge_fed(&item, &[]).remove(0);
        assert!(
            judgement.prompt.contains("[Question]\nWho?\n\n")
                && !judgement.prompt.contains("Reference")
        );
    }
}
