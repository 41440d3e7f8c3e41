//! Every task of `evaluate`, end to end on rows of our own.

mod data;
mod judge;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use fedllm_tests::federation::text;
use serde_json::Value;

use super::evaluate::Lab;
use judge::{RATING, judge};

/// The names of all tasks, and what each needs besides its data.
fn tasks(lab: &Lab) -> BTreeMap<String, String> {
    let listed = lab.programs.server(&["evaluate", "--list", "--json"]);
    let listed = listed.ok().json();
    let needs = |task: &Value| task["needs"][0].as_str().unwrap_or_default().to_owned();
    let tasks = listed.as_array().unwrap().iter();
    tasks
        .map(|task| (task["name"].as_str().unwrap().to_owned(), needs(task)))
        .collect()
}

#[test]
fn every_task_runs_and_what_was_replied_is_kept() {
    let lab = Lab::new();
    for (name, rows) in data::files() {
        match name.ends_with(".gz") {
            true => lab.write(name, data::gzip(&rows)),
            false => lab.write(name, rows),
        }
    }
    let tasks = tasks(&lab);
    let names: Vec<&str> = tasks.keys().map(String::as_str).collect();
    let names = names.join(",");
    let adapter = format!("one={}", text(&lab.adapter()));
    let args = ["--task", &names, "--adapter", &adapter, "--context", "160"];
    let args = [&args[..], &["--limit", "2", "--json"]].concat();

    let (endpoint, asked) = judge();
    let grading = ["--allow-code-execution", "--judge-endpoint", &endpoint];
    let grading = [&grading[..], &["--judge-model", "ours"]].concat();
    // Not every machine can run programs in every language.
    let more = [&args[..], &grading[..], &["--allow-missing"]].concat();
    let report = lab.evaluate(&more).ok().json();
    let reports = report["tasks"].as_array().unwrap();
    assert_eq!(reports.len(), tasks.len());
    for task in reports {
        let name = task["name"].as_str().unwrap();
        match task["outcome"]["state"].as_str().unwrap() {
            "done" => check_figures(task, &tasks[name]),
            "needs_code_execution" => check_refusal(name, &task["outcome"]["reason"]),
            _ => panic!("{name}: {}", task["outcome"]),
        }
    }
    let page = fs::read_to_string(lab.out("report.html")).unwrap();
    let markdown = fs::read_to_string(lab.out("report.md")).unwrap();
    let csv = fs::read_to_string(lab.out("report.csv")).unwrap();
    for task in reports {
        let name = task["name"].as_str().unwrap();
        assert!(page.contains(name) && markdown.contains(name), "{name}");
        let is_done = task["outcome"]["state"] == "done";
        assert_eq!(csv.contains(&format!("\n{name},")), is_done, "{name}");
    }
    assert_eq!(lab.report(), report);

    let (kept, judged) = (tree(&lab.out("replies")), asked());
    assert!(kept.len() > tasks.len() && judged > 0);
    let ended = lab.evaluate(&args).failed_with(7);
    let report = ended.json();
    for task in report["tasks"].as_array().unwrap() {
        let expected = match tasks[task["name"].as_str().unwrap()].as_str() {
            "" => "done",
            "judge" => "needs_judge",
            _ => "needs_code_execution",
        };
        assert_eq!(task["outcome"]["state"], expected, "{}", task["name"]);
    }
    let refused = tasks.values().filter(|needs| !needs.is_empty()).count();
    ended.says(&[&format!("{refused} of {} tasks not done", tasks.len())]);
    lab.evaluate(&more).ok();
    assert!(
        tree(&lab.out("replies")) == kept,
        "something was asked again"
    );
    assert_eq!(asked(), judged, "the judge was asked again");
}

/// A task that was done has rows, and each metric a figure of each system; but a reward is relative
/// to the base, which has none.
fn check_figures(task: &Value, needs: &str) {
    let name = &task["name"];
    assert!(task["rows"].as_u64().unwrap() > 0, "{name} asks nothing");
    let metrics = task["metrics"].as_array().unwrap();
    assert!(!metrics.is_empty(), "{name}");
    for metric in metrics {
        for (system, value) in metric["values"].as_array().unwrap().iter().enumerate() {
            let is_known = system > 0 || metric["name"] != "reward_acc";
            let mean = value["mean"].as_f64();
            assert_eq!(mean.is_some(), is_known, "{name}: {metric}");
            if needs == "judge" {
                assert_eq!(mean, Some(RATING), "{name}: {metric}");
            }
        }
    }
}

/// Programs are refused only where there are no walls to run them in, or no compiler or library of
/// what they are written in; Python is there wherever the walls are.
fn check_refusal(task: &str, reason: &Value) {
    let reason = reason.as_str().unwrap();
    let no_walls = ["no walls hold around them", "run on Linux only"];
    let no_walls = no_walls.iter().any(|lack| reason.contains(lack));
    let lacks = |what: &str| reason.starts_with(what);
    let is_lacking = match task.rsplit('-').next().unwrap_or_default() {
        "javascript" => lacks("JavaScript programs cannot be run"),
        "java" => lacks("Java programs cannot be run"),
        "go" => lacks("Go programs cannot be run"),
        "cpp" => lacks("C++ programs cannot be run"),
        "rust" => lacks("Rust programs cannot be run"),
        "ds1000" => ["numpy", "pandas"]
            .iter()
            .any(|module| lacks(&format!("Python has no module {module} "))),
        _ => false,
    };
    assert!(no_walls || is_lacking, "{task} is refused: {reason}");
}

/// All files below a folder.
fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(tree(&path)),
            false => drop(files.insert(text(&path).to_owned(), fs::read(&path).unwrap())),
        }
    }
    files
}
