//! `fedllm-server evaluate` on a tiny model and a few rows of our own.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use fedllm_models::{BlockFormat, PeftAdapter};
use fedllm_tests::federation::{Programs, rows, text};
use fedllm_tests::process::Ended;
use fedllm_tests::tiny;
use serde_json::Value;

use super::programs;

/// Questions of two subjects and examples of both, in the layout of the authors' archive.
pub(super) struct Lab {
    pub(super) programs: Programs,
    model: PathBuf,
}

impl Lab {
    pub(super) fn new() -> Self {
        let programs = programs();
        let model = programs.path("model.gguf");
        tiny::write_gguf(&model, "llama", BlockFormat::F32);
        let lab = Self { programs, model };
        for (subject, questions) in [("astronomy", 6), ("jurisprudence", 4)] {
            lab.write(
                &format!("mmlu/test/{subject}_test.csv"),
                table(0..questions),
            );
            lab.write(&format!("mmlu/dev/{subject}_dev.csv"), table(20..25));
        }
        lab
    }

    pub(super) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.programs.path("data").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// An adapter of one step.
    pub(super) fn adapter(&self) -> PathBuf {
        let lines: String = rows("alice", 4)
            .iter()
            .map(|row| format!("{row}\n"))
            .collect();
        let data = self.programs.write("rows.jsonl", lines);
        let out = self.programs.path("adapter");
        let mut args = vec!["train", "--model", text(&self.model), "--data", text(&data)];
        args.extend(["--out", text(&out), "--steps", "1", "--batch", "1"]);
        args.extend(["--rank", "2", "--device", "cpu", "--threads", "1"]);
        self.programs.client(&args).ok();
        out
    }

    /// Runs `evaluate --data data --out out`.
    pub(super) fn evaluate(&self, more: &[&str]) -> Ended {
        let (data, out) = (self.programs.path("data"), self.out(""));
        let mut args = vec!["evaluate", "--model", text(&self.model)];
        args.extend(["--device", "cpu", "--threads", "1"]);
        args.extend(["--data", text(&data), "--out", text(&out)]);
        args.extend(more);
        self.programs.server(&args)
    }

    pub(super) fn out(&self, name: &str) -> PathBuf {
        self.programs.path("out").join(name)
    }

    pub(super) fn report(&self) -> Value {
        serde_json::from_slice(&fs::read(self.out("report.json")).unwrap()).unwrap()
    }

    fn lines(&self, name: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.out(name)).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

fn table(questions: Range<usize>) -> String {
    let row = |i| format!("\"What is {i}, plus one?\",{i},{},7,9,B\n", i + 1);
    questions.map(row).collect()
}

#[test]
fn systems_are_compared_and_a_run_goes_on_where_it_was() {
    let lab = Lab::new();
    let adapter = format!("one={}", text(&lab.adapter()));
    let args = ["--task", "mmlu", "--adapter", &adapter, "--json", "--rows"];
    let printed = lab.evaluate(&args).ok().json();
    let report = lab.report();
    assert_eq!(printed, report);
    let names: Vec<&Value> = report["systems"].as_array().unwrap().iter().collect();
    assert_eq!(
        (&names[0]["name"], &names[1]["name"]),
        (&"base".into(), &"one".into())
    );
    let mmlu = &report["tasks"][0];
    assert_eq!(mmlu["outcome"]["state"], "done");
    assert_eq!((&mmlu["rows"], &mmlu["shots"]), (&10.into(), &5.into()));
    assert_eq!(mmlu["files"].as_array().unwrap().len(), 4);
    let acc = &mmlu["metrics"][0];
    assert_eq!(acc["values"][1]["count"], 10);
    assert_eq!(acc["clusters"][1]["name"], "jurisprudence");
    assert_eq!(acc["clusters"][1]["group"], "humanities");
    assert_eq!(acc["groups"][0]["values"][0]["count"], 6);
    assert_eq!(acc["comparisons"][0]["system"], 1);
    assert_eq!(report["ranks"].as_array().unwrap().len(), 2);

    let rows = lab.lines("rows.jsonl");
    assert_eq!(rows.len(), 20);
    let right = |system: &str| {
        let of_system = rows.iter().filter(|row| row["system"] == system);
        let sum: f64 = of_system
            .map(|row| row["values"][0][1].as_f64().unwrap())
            .sum();
        sum / 10.0
    };
    for (index, system) in ["base", "one"].into_iter().enumerate() {
        let mean = acc["values"][index]["mean"].as_f64().unwrap();
        assert!((mean - right(system)).abs() < 1e-12);
    }
    assert_eq!(rows[0]["asked"], rows[10]["asked"]);
    let scores = |row: &Value| row["reply"]["scores"].clone();
    assert_ne!(
        scores(&rows[0]),
        scores(&rows[10]),
        "the adapter does something"
    );
    let csv = fs::read_to_string(lab.out("report.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + 2 * (1 + 2 + 2), "{csv}");
    let page = fs::read_to_string(lab.out("report.html")).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    let markdown = fs::read_to_string(lab.out("report.md")).unwrap();
    assert!(
        markdown.contains("| jurisprudence | humanities | 4 |"),
        "{markdown}"
    );

    // As a crash leaves it: four replies, and half of the fifth.
    let replies = lab.out("replies/mmlu/one.jsonl");
    let whole = fs::read_to_string(&replies).unwrap();
    let ends: Vec<usize> = whole.match_indices('\n').map(|(at, _)| at + 1).collect();
    fs::write(&replies, &whole[..(ends[3] + ends[4]) / 2]).unwrap();
    let before = fs::read(lab.out("report.json")).unwrap();
    lab.evaluate(&args).ok();
    assert_eq!(fs::read(lab.out("report.json")).unwrap(), before);
    // What is asked is kept: each question once.
    assert_eq!(lab.lines("replies/mmlu/one.jsonl").len(), 10);
    assert_eq!(lab.lines("replies/mmlu/base.jsonl").len(), 10);

    // Other examples make another question of each row.
    let shown = lab.evaluate(&["--task", "mmlu", "--shots", "1"]).ok();
    assert!(shown.stdout.contains("mmlu"), "{shown}");
    assert_eq!(lab.report()["tasks"][0]["shots"], 1);
    assert_eq!(lab.lines("replies/mmlu/base.jsonl").len(), 20);
}

#[test]
fn rows_and_examples_are_chosen_by_number_and_seed() {
    let lab = Lab::new();
    let ids = |args: &[&str]| -> Vec<String> {
        let args = [&["--task", "mmlu", "--rows"], args].concat();
        lab.evaluate(&args).ok();
        let rows = lab.lines("rows.jsonl");
        rows.iter()
            .map(|row| format!("{} {}", row["id"], row["asked"]))
            .collect()
    };
    let first = ids(&["--limit", "2"]);
    assert_eq!(first.len(), 4, "two of each subject");
    assert!(first[2].contains("jurisprudence/0"));
    let drawn = ids(&["--sample", "3", "--seed", "1"]);
    assert_eq!(drawn.len(), 3);
    assert_eq!(drawn, ids(&["--sample", "3", "--seed", "1"]));
    assert_ne!(drawn, ids(&["--sample", "3", "--seed", "2"]));
    let shown = ids(&["--limit", "2", "--shots", "2", "--shot-seed", "1"]);
    let others = ids(&["--limit", "2", "--shots", "2", "--shot-seed", "2"]);
    assert_ne!(shown, others);
    assert_eq!(
        shown,
        ids(&["--limit", "2", "--shots", "2", "--shot-seed", "1"])
    );
}

#[test]
fn what_is_missing_is_reported() {
    let lab = Lab::new();
    let data = lab.programs.path("data/mmlu");
    fs::remove_dir_all(data.join("dev")).unwrap();
    let ended = lab.evaluate(&["--task", "mmlu"]).failed_with(7);
    let ended = ended.says(&["1 of 1 tasks not done: mmlu", "hint:", "--allow-missing"]);
    for part in [
        "**/*_dev.csv",
        "Hugging Face cache",
        "hf download",
        "cais/mmlu",
    ] {
        assert!(ended.stdout.contains(part), "{part}: {ended}");
    }
    assert_eq!(lab.report()["tasks"][0]["outcome"]["state"], "missing_data");
    lab.evaluate(&["--task", "mmlu", "--allow-missing"]).ok();
    lab.evaluate(&["--task", "mmlu", "--data", "nowhere"])
        .failed_with(7)
        .says(&["nowhere"]);
}

#[test]
fn a_bad_row_is_named_or_left_out() {
    let lab = Lab::new();
    let bad = table(0..1) + "\"What is it?\",1,2,3,4,Z\n" + &table(1..2);
    lab.write("mmlu/test/jurisprudence_test.csv", &bad);
    lab.evaluate(&["--task", "mmlu"]).failed_with(7).says(&[
        "jurisprudence_test.csv, line 2",
        "field `answer` is \"Z\"",
        "hint: `--skip-bad-rows`",
    ]);
    let short = table(0..1) + "\"What is it?\",1,2,3,4\n";
    lab.write("mmlu/test/jurisprudence_test.csv", &short);
    lab.evaluate(&["--task", "mmlu"])
        .failed_with(7)
        .says(&["jurisprudence_test.csv, line 2"]);
    lab.evaluate(&["--task", "mmlu", "--skip-bad-rows"]).ok();
    let mmlu = &lab.report()["tasks"][0];
    assert_eq!((&mmlu["rows"], &mmlu["bad_rows"]), (&7.into(), &1.into()));
}

#[test]
fn unknown_names_and_foreign_adapters_are_refused_before_anything_runs() {
    let lab = Lab::new();
    lab.evaluate(&["--task", "mlmu"]).failed_with(2).says(&[
        "no task is called \"mlmu\"",
        "\"mmlu\" meant",
        "--list",
    ]);
    lab.evaluate(&["--suite", "papers"])
        .failed_with(2)
        .says(&["no suite is called", "\"paper\" meant"]);
    lab.evaluate(&[])
        .failed_with(2)
        .says(&["--task", "--suite"]);
    let adapter = lab.adapter();
    let same = format!("base={}", text(&adapter));
    lab.evaluate(&["--task", "mmlu", "--adapter", &same])
        .failed_with(2)
        .says(&["two systems", "NAME=DIR"]);
    let other = foreign(&adapter, &lab.programs.path("other"));
    lab.evaluate(&["--task", "mmlu", "--adapter", text(&other)])
        .failed_with(6)
        .says(&["other", "compare `--model`"]);
    assert!(!lab.out("").exists());
}

/// The same adapter with inputs half as wide.
fn foreign(adapter: &Path, to: &Path) -> PathBuf {
    let mut adapter = PeftAdapter::read(adapter).unwrap();
    for tensor in &mut adapter.tensors {
        if tensor.name.contains("lora_A") {
            tensor.cols /= 2;
            tensor.values.truncate(tensor.rows * tensor.cols);
        }
    }
    adapter.write(to).unwrap();
    to.to_owned()
}

#[test]
fn tasks_are_listed() {
    let programs = programs();
    let tasks = programs
        .server(&["evaluate", "--list", "--json"])
        .ok()
        .json();
    let tasks = tasks.as_array().unwrap();
    let mmlu = tasks.iter().find(|task| task["name"] == "mmlu").unwrap();
    assert_eq!(mmlu["shots"], 5);
    assert_eq!(mmlu["source"]["hub"][0], "cais/mmlu");
    assert_eq!(mmlu["metrics"][0]["name"], "acc");
    let shown = programs
        .server(&["evaluate", "--list", "--suite", "paper"])
        .ok();
    assert!(shown.stdout.contains("mmlu"), "{shown}");
}
