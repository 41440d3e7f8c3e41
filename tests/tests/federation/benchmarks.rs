//! Benchmarks between rounds: a server and a simulation measure what `evaluate` measures.

use std::fs;
use std::path::{Path, PathBuf};

use fedllm_models::BlockFormat;
use fedllm_tests::federation::{Federation, Programs, rows, text};
use fedllm_tests::process::Ended;
use fedllm_tests::tiny;
use serde_json::{Value, json};

use super::programs;
use super::simulate::kill_after_a_round;

/// Questions of two subjects, and texts.
fn bench(programs: &Programs) -> PathBuf {
    let bench = programs.path("bench");
    let question = |i: usize| format!("\"What is {i}, plus one?\",{i},{},7,9,B\n", i + 1);
    let table = |range: std::ops::Range<usize>| range.map(question).collect::<String>();
    for (name, file) in [
        ("mmlu/test/astronomy_test.csv", table(0..6)),
        ("mmlu/test/jurisprudence_test.csv", table(0..6)),
        ("mmlu/dev/astronomy_dev.csv", table(20..25)),
        ("mmlu/dev/jurisprudence_dev.csv", table(20..25)),
        (
            "perplexity/tale.txt",
            "A fox was red.\n\nIt slept.\n\nIt woke and ran.\n\nAway.\n\nNever read.\n".to_owned(),
        ),
    ] {
        let path = bench.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, file).unwrap();
    }
    bench
}

/// What `evaluate` says of the base and of an adapter: the main metric of each task, its error and
/// the number of rows.
fn evaluated(programs: &Programs, bench: &Path, adapter: &Path) -> Vec<[Value; 2]> {
    let (model, adapter) = (programs.path("model.gguf"), format!("a={}", text(adapter)));
    let out = programs.path("evaluation");
    let mut args = vec!["evaluate", "--model", text(&model), "--adapter", &adapter];
    args.extend(["--task", "mmlu,perplexity", "--data", text(bench)]);
    args.extend(["--limit", "4", "--shots", "2", "--out", text(&out)]);
    args.extend(["--device", "cpu", "--threads", "1", "--json"]);
    let report = programs.server(&args).ok().json();
    let tasks = report["tasks"].as_array().unwrap().iter();
    let of = |task: &Value, system: usize| {
        let metric = &task["metrics"][0];
        let value = &metric["values"][system];
        json!({"task": task["name"], "metric": metric["name"], "value": value["mean"],
               "standard_error": value["standard_error"], "rows": task["rows"]})
    };
    tasks.map(|task| [of(task, 0), of(task, 1)]).collect()
}

/// Whether a score is what `evaluate` says.
fn agrees(score: &Value, evaluated: &Value) -> bool {
    let near = |key: &str| {
        let (got, expected) = (score[key].as_f64(), evaluated[key].as_f64());
        let far = |(a, b): (f64, f64)| (a - b).abs() > 1e-6 * a.abs().max(b.abs());
        got.is_some() == expected.is_some() && !got.zip(expected).is_some_and(far)
    };
    let same = ["task", "metric", "rows"];
    same.iter().all(|key| score[key] == evaluated[key]) && near("value") && near("standard_error")
}

const SETTINGS: [&str; 10] = [
    "rounds.count=3",
    "rounds.cohort=1",
    "rounds.min_clients=1",
    "rounds.quorum=1",
    "local.steps=4",
    "local.lr=0.01",
    "evaluation.every=2",
    "evaluation.limit=4",
    "evaluation.shots=2",
    "evaluation.tasks=[\"mmlu\", \"perplexity\"]",
];

#[test]
fn a_server_measures_what_evaluate_measures() {
    let programs = programs();
    let bench = bench(&programs);
    let data = format!("evaluation.data=[{bench:?}]");
    let settings = [&SETTINGS[..], &[data.as_str()]].concat();
    let mut federation = Federation::new(&programs, &settings);
    federation.serve(&["--keep-serving"]);
    let owner = federation.owner("alice", &rows("alice", 12));
    federation.run(&owner, &[]).end().ok();
    let last = federation.wait_for("tasks_evaluated", json!({"version": 3}));
    let metrics = federation.metrics();
    federation.stop();

    let expected = evaluated(&programs, &bench, &federation.export("last"));
    let scores = last["scores"].as_array().unwrap();
    assert_eq!(scores.len(), 2);
    for (score, [base, adapter]) in scores.iter().zip(&expected) {
        assert!(agrees(score, adapter), "{score} {adapter}");
        let base = json!({"task": score["task"], "base": base["value"]});
        let near = score["base"].as_f64().unwrap() - base["base"].as_f64().unwrap();
        assert!(near.abs() < 1e-6, "{score} {base}");
    }
    let [mmlu, perplexity] = [&scores[0], &scores[1]];
    assert_eq!((&mmlu["metric"], &mmlu["rows"]), (&json!("acc"), &json!(8)));
    assert_eq!(perplexity["rows"], 4);
    assert_ne!(perplexity["value"], perplexity["base"], "it learned");

    let status = federation.status();
    let known = status["scores"].as_array().unwrap().iter();
    let known = known.filter(|score| score["tasks"].is_array());
    let versions: Vec<&Value> = known.map(|score| &score["version"]).collect();
    assert_eq!(versions, [2, 3], "{status:#}");
    let table = programs.server(&["status", text(&federation.folder)]).ok();
    assert!(table.stdout.contains("perplexity"), "{table}");
    assert!(!table.stdout.contains("held-out rows"), "{table}");
    let gauge = "fedllm_evaluation_task_version{task=\"mmlu\",metric=\"acc\"} 3";
    assert!(metrics.contains(gauge), "{metrics}");

    // The base was asked once, and of the adapters only the last one's replies are kept.
    let replies = federation.folder.join("state/evaluation/replies/mmlu");
    let lines = |path: PathBuf| fs::read_to_string(path).unwrap().lines().count();
    let files = fs::read_dir(&replies).unwrap();
    let files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    assert_eq!(files.len(), 2, "{files:?}");
    assert!(files.into_iter().all(|file| lines(file) == 8));

    // What is measured is not measured again.
    federation.serve(&["--keep-serving"]);
    let events = federation.events();
    federation.stop();
    let measured = events.iter().filter(|e| e["event"] == "tasks_evaluated");
    assert_eq!(measured.count(), 2);
}

#[test]
fn what_cannot_be_measured_is_said_at_the_start() {
    let programs = programs();
    let init = |name: &str, tasks: &str, data: &Path| {
        let folder = programs.path(name);
        let (tasks, data) = (
            format!("evaluation.tasks=[{tasks:?}]"),
            format!("evaluation.data=[{data:?}]"),
        );
        let model = programs.path("model.gguf");
        let mut args = vec!["init", text(&folder), "--model", text(&model)];
        args.extend(["--set", &tasks, "--set", &data]);
        programs.server(&args)
    };
    tiny::write_gguf(&programs.path("model.gguf"), "llama", BlockFormat::F32);
    let bench = bench(&programs);
    for (task, says) in [
        ("mlmu", "is \"mmlu\" meant?"),
        ("humaneval", "evaluate --task humaneval"),
        ("mt-bench", "evaluate --task mt-bench"),
    ] {
        let named = format!("evaluation.tasks names {task:?}");
        init("refused", task, &bench).failed_with(3).says(&[
            "federation.toml: line ",
            &named,
            says,
        ]);
        assert!(!programs.path("refused").exists());
    }

    init("missing", "svamp", &bench).ok();
    let served = programs.server(&["serve", text(&programs.path("missing"))]);
    served.failed_with(3).says(&[
        "evaluation.data: svamp: no files",
        "hint: name its folder in evaluation.data",
    ]);
    init("damaged", "mmlu", &bench).ok();
    fs::write(bench.join("mmlu/test/law_test.csv"), "1?,1,2,3,4,Z\n").unwrap();
    let served = programs.server(&["serve", text(&programs.path("damaged"))]);
    served
        .failed_with(3)
        .says(&["law_test.csv, line 1", "hint: "]);
}

#[test]
fn a_federation_goes_on_when_measuring_fails() {
    let programs = programs();
    let bench = bench(&programs);
    let row = rows("alice", 1).remove(0);
    let held_out = programs.write("central.jsonl", format!("{row}\n"));
    let data = format!("evaluation.data=[{bench:?}]");
    let held_out = format!("evaluation.held_out=[{held_out:?}]");
    let settings = [&SETTINGS[..], &[data.as_str(), held_out.as_str()]].concat();
    let mut federation = Federation::new(&programs, &settings);
    // No replies can be kept where there is a file.
    let state = federation.folder.join("state");
    fs::create_dir_all(&state).unwrap();
    fs::write(state.join("evaluation"), "mine").unwrap();
    federation.serve(&["--keep-serving"]);
    let owner = federation.owner("alice", &rows("alice", 12));
    federation.run(&owner, &[]).end().ok();
    federation.wait_for("evaluated", json!({"version": 3}));
    let ended = federation.stop();
    ended.says(&["a version cannot be measured", "evaluation.tasks"]);
    assert_eq!(federation.status()["version"], 3);
}

/// An experiment on the tiny model, with these sections added.
fn experiment(programs: &Programs, name: &str, more: &str) -> PathBuf {
    let model = programs.path("model.gguf");
    if !model.exists() {
        tiny::write_gguf(&model, "llama", BlockFormat::F32);
    }
    let lines = rows("alice", 30).into_iter().map(|row| format!("{row}\n"));
    let data = programs.write("rows.jsonl", lines.collect::<String>());
    let experiment = format!(
        "[experiment]\nname = \"{name}\"\n[model]\npath = {:?}\n[data]\npath = [{:?}]\n\
         max_tokens = 96\n{more}[rounds]\ncount = 3\n[split]\nclients = 2\n\
         [local]\nsteps = 3\nbatch = 2\nlr = 1e-2\n",
        text(&model),
        text(&data),
    );
    programs.write(&format!("{name}.toml"), experiment)
}

const EVALUATION: &str = "[evaluation]\nevery = 1\ntasks = [\"mmlu\", \"perplexity\"]\n\
                          data = [\"bench\"]\nlimit = 4\nshots = 2\n";

fn args<'a>(experiment: &'a Path, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["simulate", text(experiment), "--out", text(out)];
    args.extend(["--device", "cpu", "--threads", "1", "--json"]);
    args.extend(more);
    args
}

fn simulate(programs: &Programs, experiment: &Path, out: &str, more: &[&str]) -> Ended {
    programs.server(&args(experiment, &programs.path(out), more))
}

/// The metrics of a run, without what depends on the machine's pace.
fn metrics(programs: &Programs, out: &str) -> String {
    let lines = fs::read_to_string(programs.path(out).join("metrics.jsonl")).unwrap();
    let is_pace =
        |field: &&str| field.starts_with("\"seconds\":") || field.starts_with("\"train_seconds\":");
    let fields = lines.split(',').filter(|field| !is_pace(field));
    fields.collect::<Vec<_>>().join(",")
}

fn of_arm<'a>(tasks: &'a Value, arm: &str) -> Vec<&'a Value> {
    let tasks = tasks.as_array().unwrap().iter();
    tasks.filter(|score| score["arm"] == arm).collect()
}

#[test]
fn a_simulation_measures_what_evaluate_measures() {
    let programs = programs();
    let bench = bench(&programs);
    let file = experiment(&programs, "whole", &format!("held_out = 6\n{EVALUATION}"));
    let summary = simulate(&programs, &file, "whole", &[]).ok().json();
    let out = programs.path("whole");
    let expected = evaluated(&programs, &bench, &out.join("adapter"));
    for (system, arm) in [(0, "base"), (1, "global")] {
        let scores = of_arm(&summary["tasks"], arm);
        assert_eq!(scores.len(), 2, "{summary:#}");
        for (score, expected) in scores.iter().zip(&expected) {
            assert!(agrees(score, &expected[system]), "{score} {expected:?}");
        }
    }
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("Benchmarks") && page.contains("perplexity, perplexity"));
    let first = metrics(&programs, "whole");
    let rounds: Vec<Value> = fs::read_to_string(out.join("metrics.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let value = |round: usize| of_arm(&rounds[round]["tasks"], "global")[1]["value"].clone();
    assert!(value(0) != value(1) && value(1) != value(2), "{rounds:?}");

    // Killed after a round, it goes on to the same metrics, and asks the base nothing again.
    let out = programs.path("killed");
    let process = programs.start_server(&args(&file, &out, &[]));
    kill_after_a_round(process, &out);
    simulate(&programs, &file, "killed", &[]).ok();
    assert_eq!(metrics(&programs, "killed"), first);
    let replies = out.join("evaluation/replies/perplexity");
    let base = fs::read_to_string(replies.join("base.jsonl")).unwrap();
    assert_eq!(base.lines().count(), 4);
    assert_eq!(fs::read_dir(&replies).unwrap().count(), 2);
}

#[test]
fn owners_alone_are_measured_and_wrong_tasks_are_named() {
    let programs = programs();
    bench(&programs);
    // Tasks alone, and no base.
    let file = experiment(&programs, "alone", &format!("{EVALUATION}base = false\n"));
    let summary = simulate(&programs, &file, "alone", &["--set", "strategy=local"]);
    let summary = summary.ok().json();
    assert_eq!(summary["evaluations"], json!([]));
    let mean = of_arm(&summary["tasks"], "local mean");
    let all = summary["tasks"].as_array().unwrap();
    assert_eq!((mean.len(), all.len()), (2, 6), "{summary:#}");
    let owners: Vec<f64> = all[2..]
        .iter()
        .filter(|score| score["task"] == "perplexity")
        .map(|score| score["value"].as_f64().unwrap())
        .collect();
    let expected = owners.iter().sum::<f64>() / 2.0;
    assert!((mean[1]["value"].as_f64().unwrap() - expected).abs() < 1e-9);
    let replies = programs.path("alone/evaluation/replies/mmlu");
    assert!(!replies.join("base.jsonl").exists());

    for (tasks, code, says) in [
        ("mlmu", 3, "evaluation.tasks names \"mlmu\", and no task"),
        ("ds1000", 3, "evaluation.tasks names \"ds1000\", which runs"),
        ("svamp", 7, "evaluation.data: svamp: no files"),
    ] {
        let tasks = format!("evaluation.tasks=[\"{tasks}\"]");
        let ended = simulate(&programs, &file, "never", &["--set", &tasks, "--dry-run"]);
        ended.failed_with(code).says(&[says]);
    }
}
