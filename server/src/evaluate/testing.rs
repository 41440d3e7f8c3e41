//! Tasks and questions of our own, for tests.

use fedllm_models::eval::{
    Ask, Checks, Gold, Grade, Grader, Item, Language, Measure, Metric, Program, Reply, Scale,
    Shots, Source, Task, Writing,
};
use fedllm_shared::{Average, Bleu, Files, ReadAs, Split};

/// A task that is graded by running what is written.
pub(super) static CODE: Task = Task {
    name: "code",
    about: "programs",
    prompt: "our own",
    reference: None,
    suites: &[],
    source: Source {
        hub: &[],
        folders: &[],
        test: Split {
            name: "test",
            files: Files::AnyOf(&["*.jsonl"]),
        },
        examples: None,
        beside: None,
        read_as: ReadAs::ITSELF,
        licence: "ours",
    },
    shots: Shots::NONE,
    items: |_, _| Ok(Vec::new()),
    grader: Grader::Program(|item, text| Program {
        language: match &item.gold {
            Gold::Checks(checks) => checks.language,
            _ => Language::Python,
        },
        source: text.to_owned(),
        needs: &[],
    }),
    metrics: &[Metric::mean("pass")],
    group: None,
};

/// A task with every measure, whose grades are made by hand.
pub(super) static MEASURES: Task = Task {
    name: "measures",
    metrics: &[
        Metric::mean("acc"),
        Metric::f1("f1", Average::Macro, 2),
        Metric {
            name: "bleu",
            measure: Measure::Bleu(Bleu::Codexglue),
            scale: Scale::Share,
        },
    ],
    grader: Grader::Relative(|item, reply, base| {
        let length = |reply: &Reply| match reply {
            Reply::Texts(texts) => texts.concat().len(),
            Reply::Scores(_) => 0,
        };
        let gained = base.map_or(0.0, |base| length(reply) as f64 - length(base) as f64);
        Grade::of("acc", gained).answering(item.id.clone())
    }),
    ..CODE
};

/// A question that is answered in writing.
pub(super) fn question(id: &str, cluster: Option<&str>, gold: Gold) -> Item {
    Item {
        id: id.to_owned(),
        cluster: cluster.map(Into::into),
        prompt: format!("{id}?"),
        answer: String::new(),
        ask: Ask::Write(Writing::greedy(8, &["\n"])),
        gold,
    }
}

/// A question that a program in this language answers.
pub(super) fn program(id: &str, language: Language) -> Item {
    let checks = Checks {
        language,
        before: String::new(),
        after: String::new(),
    };
    question(id, None, Gold::Checks(checks))
}

/// A reply in writing.
pub(super) fn said(text: &str) -> Reply {
    Reply::Texts(vec![text.to_owned()])
}
