//! How a report came about.

use fedllm_models::eval::Prompts;

use super::super::report::{Report, System, TaskReport, UsedFor};
use super::{counted, words};
use crate::report::page::Fact;
use crate::simulate::text::grouped;

impl Report {
    /// What was asked, and of what.
    pub(super) fn provenance(&self) -> Vec<Fact> {
        let (model, settings) = (&self.model, &self.settings);
        let plain = |term, value: String| (term, value, String::new());
        let or = |value: Option<String>, otherwise: &str| value.unwrap_or_else(|| otherwise.into());
        let chosen = match (settings.sample, settings.limit) {
            (Some(count), _) => format!("{} of each task, at random", grouped(count as u64)),
            (None, Some(count)) => format!("the first {}", grouped(count as u64)),
            (None, None) => "all".into(),
        };
        let examples = match settings.shot_seed {
            Some(seed) => format!("chosen with seed {seed}"),
            None => "the first of their split".into(),
        };
        let prompts = match settings.prompts {
            Prompts::Sound => "sound",
            Prompts::Reference => "reference",
        };
        vec![
            (
                "Base model",
                model.digest.short(),
                format!(
                    "fingerprint of its weights; tokenizer {}",
                    model.tokenizer.short()
                ),
            ),
            (
                "Computed in",
                model.precision.clone(),
                format!("on {}", model.device),
            ),
            plain(
                "Context",
                format!("{} tokens", grouped(model.context as u64)),
            ),
            (
                "Prompts",
                prompts.into(),
                format!(
                    "template {}; conversations {}",
                    settings.template, settings.conversation
                ),
            ),
            (
                "Examples",
                or(settings.shots.map(|n| n.to_string()), "as each task says"),
                examples,
            ),
            plain("Rows", chosen),
            plain("Seed", settings.seed.to_string()),
            plain("Judge", or(settings.judge.clone(), "none")),
            plain("fedllm", self.version.clone()),
        ]
    }

    /// Systems with their fingerprints.
    pub(super) fn systems_table(&self) -> String {
        let row = |system: &System| match &system.adapter {
            Some(adapter) => vec![
                system.name.clone(),
                adapter.path.display().to_string(),
                adapter.digest.to_string(),
            ],
            None => vec![
                system.name.clone(),
                "no adapter".into(),
                self.model.digest.to_string(),
            ],
        };
        let rows = self.systems.iter().map(row).collect();
        words(
            "Systems and their fingerprints.",
            ["system", "adapter", "BLAKE3"],
            rows,
        )
    }

    /// The prompt that each task follows.
    pub(super) fn prompts_table(&self) -> String {
        let row = |(task, _): (&TaskReport, _)| {
            let mut prompt = task.prompt.clone();
            if let Some(reference) = &task.reference {
                prompt.push_str(&format!("; as the reference: {reference}"));
            }
            vec![
                task.name.clone(),
                task.about.clone(),
                format!("{} examples", task.shots),
                prompt,
            ]
        };
        let rows = self.done().map(row).collect();
        words(
            "What was asked, and how.",
            ["task", "about", "shots", "prompt"],
            rows,
        )
    }

    /// The files of each task with their hashes.
    pub(super) fn files_table(&self) -> String {
        let mut rows = Vec::new();
        for (task, _) in self.done() {
            for file in &task.files {
                let used_for = match file.used_for {
                    UsedFor::Questions => "questions",
                    UsedFor::Examples => "examples",
                    UsedFor::References => "reference answers",
                };
                rows.push(vec![
                    task.name.clone(),
                    file.path.display().to_string(),
                    format!("{} rows, {used_for}", grouped(file.rows as u64)),
                    file.digest.to_string(),
                ]);
            }
            if task.bad_rows > 0 {
                let left_out = format!("{} left out", counted(task.bad_rows, "row"));
                rows.push(vec![
                    task.name.clone(),
                    String::new(),
                    left_out,
                    String::new(),
                ]);
            }
        }
        words(
            "Files that rows came from.",
            ["task", "file", "use", "BLAKE3"],
            rows,
        )
    }
}
