//! BIG-Bench Hard (Suzgun et al. 2022, arXiv 2210.09261): 27 tasks, with and without a chain of
//! thought.
//!
//! The examples of both come from the prompts that its authors publish, `cot-prompts/*.txt`: three of
//! each task, between empty lines.

use std::sync::Arc;

use fedllm_shared::{Files, JsonObject, ReadAs};
use serde_json::Value;

use crate::eval::written::{after, exact, first_line, split, task, text};
use crate::eval::{Ask, Gold, Grade, Grader, Item, ItemError, Prompts, Reply, Row, Shots, Source};
use crate::eval::{Task, Writing};

pub(super) static DIRECT: Task = Task {
    about: "27 tasks that models found hard, answered at once",
    prompt: "suzgunmirac/BIG-Bench-Hard cot-prompts without the reasoning, as lm-evaluation-harness \
             bbh_fewshot: 3 examples of the task",
    suites: &["paper", "general"],
    source: SOURCE,
    shots: SHOTS,
    ..task(
        "bbh",
        |row, _| items(row, &direct),
        Grader::Direct(grade_direct),
    )
};

pub(super) static COT: Task = Task {
    about: "27 tasks that models found hard, with a chain of thought",
    prompt: "suzgunmirac/BIG-Bench-Hard cot-prompts, as lm-evaluation-harness bbh_cot_fewshot: 3 \
             examples of the task",
    suites: &["general"],
    source: SOURCE,
    shots: SHOTS,
    ..task(
        "bbh-cot",
        |row, _| items(row, &reasoned),
        Grader::Direct(grade_cot),
    )
};

const SOURCE: Source = Source {
    hub: &["SaylorTwift/bbh", "lukaemon/bbh", "Joschka/big_bench_hard"],
    folders: &["BIG-Bench-Hard"],
    test: split(
        "test",
        Files::FirstOf(&[&["**/bbh/*.json"], &["*.json"], &["*/test-*.parquet"]]),
    ),
    examples: Some(split(
        "cot-prompts",
        Files::FirstOf(&[
            &["**/cot-prompts/*.txt"],
            &["few_shot_prompts/few_shot_prompts-*.parquet"],
        ]),
    )),
    beside: None,
    read_as: ReadAs {
        object: JsonObject::LongRow,
        ..ReadAs::ITSELF
    },
    licence: "MIT",
};

const SHOTS: Shots = Shots {
    of_cluster: true,
    description: Some(description),
    ..Shots::of(3)
};

const STOP: &[&str] = &["\n\n", "\nQ:", "</s>", "<|im_end|>"];

fn description(task: Option<&str>, _: usize) -> String {
    let mut tasks = DESCRIPTIONS.iter();
    let found = tasks.find(|(name, _)| Some(*name) == task);
    found.map_or(String::new(), |(_, says)| format!("{says}\n\n"))
}

/// A question, what is thought about it (nothing in the data itself), and its answer.
struct Example<'a> {
    question: &'a str,
    reasoning: Option<&'a str>,
    answer: &'a str,
}

/// What a question becomes, without its name.
type Asked = dyn Fn(&Example<'_>) -> Item;

fn items(row: &Row<'_>, asked: &Asked) -> Result<Vec<Item>, ItemError> {
    let named = |task: &str, name: String, example: &Example<'_>| Item {
        id: format!("{task}/{name}"),
        cluster: Some(Arc::from(task)),
        ..asked(example)
    };
    if let Some(field) = ["text", "chain_of_thought_prompt"]
        .into_iter()
        .find(|f| row.has(f))
    {
        // A block of a prompt file, or the hub's copy of the whole file.
        let task = row.text("dataset_name");
        let task = task.unwrap_or_else(|_| row.stem().to_owned());
        let prompt = row.text(field)?;
        let examples = prompt.split("\n\n").filter_map(example).enumerate();
        let name = |i: usize| format!("example/{}/{i}", row.index);
        return Ok(examples
            .map(|(i, example)| named(&task, name(i), &example))
            .collect());
    }
    let one = |row: &Row<'_>, task: &str, number: usize| {
        let (question, answer) = (row.text("input")?, row.text("target")?);
        let example = Example {
            question: &question,
            reasoning: None,
            answer: &answer,
        };
        Ok(named(task, number.to_string(), &example))
    };
    if !row.has("examples") {
        return Ok(vec![one(row, row.folder(), row.index)?]);
    }
    let wrong = || ItemError::Kind {
        field: "examples",
        expected: "a list of `input` and `target`",
    };
    let examples = row.field("examples")?.as_array().ok_or_else(wrong)?;
    let of = |(number, example): (usize, &Value)| {
        let fields = example.as_object().ok_or_else(wrong)?;
        one(&Row { fields, ..*row }, row.stem(), number)
    };
    examples.iter().enumerate().map(of).collect()
}

/// `Q: ...`, `A: Let's think step by step.`, and so on to `the answer is ...`.
fn example(block: &str) -> Option<Example<'_>> {
    let (question, reasoning) = block.trim().strip_prefix("Q: ")?.split_once("\nA:")?;
    let reasoning = reasoning.trim_start();
    let reasoning = reasoning.strip_prefix(THINK).unwrap_or(reasoning).trim();
    let (_, answer) = reasoning.rsplit_once("the answer is ")?;
    Some(Example {
        question,
        reasoning: Some(reasoning),
        answer: answer.strip_suffix('.').unwrap_or(answer),
    })
}

/// How each chain of thought begins.
const THINK: &str = "Let's think step by step.";

fn direct(example: &Example<'_>) -> Item {
    Item {
        id: String::new(),
        cluster: None,
        prompt: format!("Q: {}\nA:", example.question),
        answer: format!(" {}", example.answer),
        ask: Ask::Write(Writing::greedy(256, STOP)),
        gold: Gold::Text(example.answer.to_owned()),
    }
}

fn reasoned(example: &Example<'_>) -> Item {
    let answer = || format!("So the answer is {}.", example.answer);
    Item {
        prompt: format!("Q: {}\nA: {THINK}\n", example.question),
        answer: example.reasoning.map_or_else(answer, str::to_owned),
        ask: Ask::Write(Writing::greedy(1024, STOP)),
        ..direct(example)
    }
}

/// The first line is the answer.
fn grade_direct(item: &Item, reply: &Reply, _: Prompts) -> Grade {
    graded(item, first_line(text(reply)))
}

/// The answer is what follows the last `the answer is`, without a dot at its end.
fn grade_cot(item: &Item, reply: &Reply, _: Prompts) -> Grade {
    let answer = after(text(reply), "the answer is ").unwrap_or_default();
    graded(item, answer.strip_suffix('.').unwrap_or(answer))
}

fn graded(item: &Item, answer: &str) -> Grade {
    exact(
        answer,
        matches!(&item.gold, Gold::Text(gold) if gold.trim() == answer),
    )
}

/// What each prompt file says first.
const DESCRIPTIONS: [(&str, &str); 27] = [
    (
        "boolean_expressions",
        "Evaluate the result of a random Boolean expression.",
    ),
    (
        "causal_judgement",
        "Answer questions about causal attribution.",
    ),
    ("date_understanding", "Infer the date from context."),
    (
        "disambiguation_qa",
        "Clarify the meaning of sentences with ambiguous pronouns.",
    ),
    ("dyck_languages", "Correctly close a Dyck-n word."),
    (
        "formal_fallacies",
        "Distinguish deductively valid arguments from formal fallacies.",
    ),
    (
        "geometric_shapes",
        "Name geometric shapes from their SVG paths.",
    ),
    (
        "hyperbaton",
        "Order adjectives correctly in English sentences.",
    ),
    (
        "logical_deduction_five_objects",
        "A logical deduction task which requires deducing the order of a sequence of objects.",
    ),
    (
        "logical_deduction_seven_objects",
        "A logical deduction task which requires deducing the order of a sequence of objects.",
    ),
    (
        "logical_deduction_three_objects",
        "A logical deduction task which requires deducing the order of a sequence of objects.",
    ),
    (
        "movie_recommendation",
        "Recommend movies similar to the given list of movies.",
    ),
    (
        "multistep_arithmetic_two",
        "Solve multi-step arithmetic problems.",
    ),
    (
        "navigate",
        "Given a series of navigation instructions, determine whether one would end up back \
         at the starting point.",
    ),
    (
        "object_counting",
        "Questions that involve enumerating objects and asking the model to count them.",
    ),
    (
        "penguins_in_a_table",
        "Answer questions about a table of penguins and their attributes.",
    ),
    (
        "reasoning_about_colored_objects",
        "Answer extremely simple questions about the colors of objects on a surface.",
    ),
    (
        "ruin_names",
        "Select the humorous edit that 'ruins' the input movie or musical artist name.",
    ),
    (
        "salient_translation_error_detection",
        "Detect the type of error in an English translation of a German source sentence.",
    ),
    (
        "snarks",
        "Determine which of two sentences is sarcastic.\n\nAccording to Cambridge University \
         Dictionary, sarcasm is \"the use of remarks that clearly mean the opposite of what \
         they say, made in order to hurt someone's feelings or to criticize something in a \
         humorous way.\" Sarcastic sentences often contain satirical or ironic utterances, \
         hyperboles, ambivalent or witty remarks.",
    ),
    (
        "sports_understanding",
        "Determine whether an artificially constructed sentence relating to sports is \
         plausible or not.",
    ),
    (
        "temporal_sequences",
        "Task description: Answer questions about which times certain events could have \
         occurred.",
    ),
    (
        "tracking_shuffled_objects_five_objects",
        "A task requiring determining the final positions of a set of objects given their \
         initial positions and a description of a sequence of swaps.",
    ),
    (
        "tracking_shuffled_objects_seven_objects",
        "A task requiring determining the final positions of a set of objects given their \
         initial positions and a description of a sequence of swaps.",
    ),
    (
        "tracking_shuffled_objects_three_objects",
        "A task requiring determining the final positions of a set of objects given their \
         initial positions and a description of a sequence of swaps.",
    ),
    (
        "web_of_lies",
        "Evaluate a random boolean function expressed as a word problem.",
    ),
    ("word_sorting", "Sort a list of words."),
];

#[cfg(test)]
mod tests {
    use crate::eval::testing::{asked, figures, one};
    use crate::eval::{Gold, Item, task};
    use serde_json::json;

    fn shown(item: &Item) -> [&str; 4] {
        let cluster = item.cluster.as_deref().unwrap();
        [&item.id, cluster, &item.prompt, &item.answer].map(|text| text)
    }

    #[test]
    fn all_layouts_ask_alike() {
        let file = json!({
            "canary": "never train on this",
            "examples": [{"input": "1 + 1?", "target": "2"}, {"input": "Yes?\nNo?", "target": "(A)"}],
        });
        let items = asked("bbh", "bbh/navigate.json", &file).unwrap();
        assert_eq!(
            shown(&items[0]),
            ["navigate/0", "navigate", "Q: 1 + 1?\nA:", " 2"]
        );
        assert_eq!(items[1].gold, Gold::Text("(A)".to_owned()));
        let row = json!({"input": "1 + 1?", "target": "2"});
        let item = one("bbh-cot", "navigate/test-0.parquet", &row);
        assert_eq!(
            shown(&item)[..3],
            [
                "navigate/7",
                "navigate",
                "Q: 1 + 1?\nA: Let's think step by step.\n"
            ]
        );
    }

    #[test]
    fn examples_are_taken_out_of_the_prompts() {
        let file = "bbh/cot-prompts/navigate.txt";
        let says = json!({"text": "never train on this\n-----\nSay where you end."});
        assert!(asked("bbh", file, &says).unwrap().is_empty());
        let block = "Q: Turn.\nOptions:\n- Yes\nA: Let's think step by step.\nWe turn. \
                     So the answer is No.";
        let item = one("bbh", file, &json!({"text": block}));
        let prompt = "Q: Turn.\nOptions:\n- Yes\nA:";
        assert_eq!(
            shown(&item),
            ["navigate/example/7/0", "navigate", prompt, " No"]
        );
        let item = one("bbh-cot", file, &json!({"text": format!("{block}\n")}));
        assert_eq!(item.answer, "We turn. So the answer is No.");
        let hub = json!({
            "dataset_name": "navigate",
            "chain_of_thought_prompt": format!("Say where you end.\n\n{block}\n\n{block}"),
        });
        let items = asked(
            "bbh-cot",
            "few_shot_prompts/few_shot_prompts-0.parquet",
            &hub,
        )
        .unwrap();
        assert_eq!(items.len(), 2);
        assert_eq!(items[1].prompt, item.prompt);
        let description = task("bbh").unwrap().shots.description.unwrap();
        assert!(description(Some("navigate"), 3).ends_with("starting point.\n\n"));
        assert_eq!(description(Some("unknown"), 3), "");
    }

    #[test]
    fn answers_are_found() {
        let row = json!({"input": "", "target": "(B)"});
        let item = one("bbh", "navigate/test-0.parquet", &row);
        for (reply, right) in [
            (" (B)\nQ: more", 1.0),
            ("(B).", 0.0),
            (" B", 0.0),
            ("", 0.0),
        ] {
            assert_eq!(figures("bbh", &item, reply), [right], "{reply}");
        }
        for (reply, right) in [
            ("We turn. So the answer is (B).", 1.0),
            ("The answer is (A)? No, the answer is (B)", 1.0),
            ("So the answer is (B) or (A).", 0.0),
            ("(B)", 0.0),
        ] {
            assert_eq!(figures("bbh-cot", &item, reply), [right], "{reply}");
        }
    }
}
