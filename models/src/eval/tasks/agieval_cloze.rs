//! The questions of AGIEval (Zhong et al. 2023, arXiv 2304.06364) that are answered in writing:
//! mathematics, mostly with formulas as answers.

use std::sync::Arc;

use fedllm_shared::Files::AnyOf;
use fedllm_shared::{last_boxed, maths_equal};

use crate::eval::choose::{self, split};
use crate::eval::{Ask, Gold, Grade, Grader, Item, ItemError, Metric, Prompts, Reply, Row, Source};
use crate::eval::{Task, Writing};

pub(super) static TASK: Task = Task {
    about: "1,000 problems of mathematics competitions and 118 of the Gaokao, answered by formulas",
    prompt: "AGIEval's zero-shot prompt, as lm-evaluation-harness 0.4 agieval_math has it; the \
             boxed answer, or the only one between dollars, or the first line; equal as in MATH",
    suites: &["general"],
    source: Source {
        hub: &["hails/agieval-math", "hails/agieval-gaokao-mathcloze"],
        folders: &["agieval"],
        test: split(
            "test",
            AnyOf(&[
                "**/agieval/math.jsonl",
                "**/v1/math.jsonl",
                "math.jsonl",
                "**/gaokao-mathcloze.jsonl",
                "data/test-*.parquet",
            ]),
        ),
        licence: "MIT",
        ..choose::SOURCE
    },
    grader: Grader::Direct(grade),
    metrics: &[ACCURACY],
    ..choose::task("agieval-cloze", items)
};

const ACCURACY: Metric = Metric::mean("acc");

/// A row as the authors have it, or with the prompt as `query`, as the hub has it.
fn items(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let is_gaokao = row.path.to_string_lossy().contains("gaokao-mathcloze");
    let exam = if is_gaokao {
        "gaokao-mathcloze"
    } else {
        "math"
    };
    let prompt = match (row.has("query"), is_gaokao) {
        (true, _) => row.text("query")?,
        (false, false) => format!("Q: {}\nA: The answer is", row.text("question")?),
        (false, true) => format!("问题：{}\n答案：", row.text("question")?),
    };
    let answer = row.text("answer")?;
    Ok(vec![Item {
        id: format!("{exam}/{}", row.index),
        cluster: Some(Arc::from(exam)),
        prompt,
        answer: format!(" {answer}"),
        ask: Ask::Write(Writing::greedy(32, &["Q:", "问题："])),
        gold: Gold::Text(answer),
    }])
}

fn grade(item: &Item, reply: &Reply, _: Prompts) -> Grade {
    let (Reply::Texts(texts), Gold::Text(gold)) = (reply, &item.gold) else {
        return Grade::default();
    };
    let answer = answer(texts.first().map_or("", String::as_str));
    let right = maths_equal(answer, bare(gold));
    Grade::of(ACCURACY.name, f64::from(u8::from(right))).answering(answer)
}

/// What a text gives as its answer.
fn answer(text: &str) -> &str {
    if let Some(boxed) = last_boxed(text) {
        return boxed;
    }
    let line = text.trim().lines().next().unwrap_or_default();
    let mut between = line.split('$').skip(1).step_by(2);
    match line.matches('$').count() {
        // An answer of several parts is one line.
        2 => between.next().unwrap_or_default(),
        _ => bare(line),
    }
}

/// Without the dollars around it and the dot after it.
fn bare(answer: &str) -> &str {
    let answer = answer.trim().trim_end_matches(['.', '。']).trim_end();
    let inner = answer
        .strip_prefix('$')
        .and_then(|inner| inner.strip_suffix('$'));
    inner.filter(|inner| !inner.contains('$')).unwrap_or(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::tasks::tests::{one, refused};
    use serde_json::json;

    #[test]
    fn both_examinations_are_asked_in_their_language() {
        let mut row = json!({
            "passage": null, "question": "1+1?", "options": null, "label": null, "answer": "2",
        });
        let item = one(&TASK, "agieval/math.jsonl", &row);
        assert_eq!(item.prompt, "Q: 1+1?\nA: The answer is");
        assert_eq!(item.id, "math/0");
        let item = one(&TASK, "gaokao-mathcloze.jsonl", &row);
        assert_eq!(item.prompt, "问题：1+1?\n答案：");
        row["query"] = json!("Q: 1+1?\nA: The answer is");
        let item = one(&TASK, "agieval-math/data/test-0.parquet", &row);
        assert_eq!(item.prompt, "Q: 1+1?\nA: The answer is");
        row["answer"] = json!(null);
        assert_eq!(refused(&TASK, &row), "field `answer` is not a text");
    }

    #[test]
    fn answers_are_compared_as_formulas() {
        for (gold, written, right) in [
            ("30", " 30.", true),
            ("(3,4]", " $(3,4]$.", true),
            (r"$-\frac{1}{2}$", r" \boxed{-\frac12} as we know", true),
            ("$5$;$10$", " $5$;$10$", true),
            (r"$90^{\circ}$", " 90\n\nAnother", true),
            ("2", " The result is $2$, because", true),
            ("4", " (3,4]", false),
            ("2", "", false),
        ] {
            let row = json!({"question": "?", "answer": gold});
            let item = one(&TASK, "math.jsonl", &row);
            let reply = Reply::Texts(vec![written.to_owned()]);
            let grade = grade(&item, &reply, Prompts::Sound);
            assert_eq!(
                grade.value("acc"),
                Some(f64::from(u8::from(right))),
                "{written}"
            );
        }
    }
}
