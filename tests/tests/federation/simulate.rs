//! Simulated federations by the command line, with a tiny model.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fedllm_models::{BlockFormat, PeftAdapter};
use fedllm_tests::federation::{Programs, rows, text};
use fedllm_tests::process::{Ended, Process};
use fedllm_tests::tiny;
use serde_json::{Value, json};

use super::programs;

/// Rows of three kinds, 12 of each.
fn data(programs: &Programs) -> PathBuf {
    let kinds = ["red", "green", "blue"];
    let row = |kind: &str, row: Value| {
        let mut row = row;
        row["kind"] = kind.into();
        format!("{row}\n")
    };
    let lines = kinds
        .iter()
        .flat_map(|kind| rows(kind, 12).into_iter().map(move |r| row(kind, r)));
    programs.write("rows.jsonl", lines.collect::<String>())
}

/// Pairs: one answer is always preferred.
fn pairs(programs: &Programs) -> PathBuf {
    let pair = |i: usize| {
        let row = json!({
            "prompt": format!("What of thing {i}?"),
            "chosen": format!("Thing {i} is kept with care."),
            "rejected": format!("No idea about {i}."),
        });
        format!("{row}\n")
    };
    programs.write("pairs.jsonl", (0..24).map(pair).collect::<String>())
}

/// An experiment on the tiny model, with these sections added.
fn experiment(programs: &Programs, name: &str, data: &Path, more: &str) -> PathBuf {
    let model = programs.path("model.gguf");
    if !model.exists() {
        tiny::write_gguf(&model, "llama", BlockFormat::F32);
    }
    let experiment = format!(
        "[experiment]\nname = \"{name}\"\n[model]\npath = {:?}\n[data]\npath = [{:?}]\n\
         held_out = 6\nmax_tokens = 96\n{more}",
        text(&model),
        text(data),
    );
    programs.write(&format!("{name}.toml"), experiment)
}

const SMALL: &str = "[rounds]\ncount = 3\ncohort = 3\n[local]\nsteps = 3\nbatch = 2\nlr = 1e-2\n\
                     [split]\nclients = 5\nkind = \"dirichlet\"\nby = \"kind\"\nalpha = 0.5\n";

fn simulate(programs: &Programs, experiment: &Path, out: &str, more: &[&str]) -> Ended {
    let out = programs.path(out);
    let mut args = vec!["simulate", text(experiment), "--out", text(&out)];
    args.extend(["--device", "cpu", "--threads", "1", "--json"]);
    args.extend(more);
    programs.server(&args)
}

/// Kills a simulation as soon as it has finished a round.
pub(super) fn kill_after_a_round(process: Process, out: &Path) {
    let until = Instant::now() + Duration::from_secs(120);
    while !out.join("checkpoint.bin").exists() {
        assert!(Instant::now() < until, "no round was finished");
        std::thread::sleep(Duration::from_millis(5));
    }
    process.signal("KILL");
    process.end();
}

fn metrics(programs: &Programs, out: &str) -> Vec<Value> {
    let lines = fs::read_to_string(programs.path(out).join("metrics.jsonl")).unwrap();
    lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_simulation_is_the_same_again_and_after_a_kill() {
    let programs = programs();
    let rows = data(&programs);
    let devices = "[devices]\ntokens_per_second = \"lognormal(500, 0.5)\"\ndrop_out = 0.2\n\
                   straggler = 0.3\n[evaluation]\nevery = 1\n";
    let more = format!("{SMALL}{devices}[strategy]\nname = \"scaffold\"\n");
    let file = experiment(&programs, "again", &rows, &more);
    let first = simulate(&programs, &file, "first", &[]).ok().json();
    let second = simulate(&programs, &file, "second", &[]).ok().json();
    assert_eq!(first["adapter_digest"], second["adapter_digest"]);

    let out = programs.path("killed");
    let mut args = vec!["simulate", text(&file), "--out", text(&out)];
    args.extend(["--device", "cpu", "--threads", "1", "--json"]);
    let process = programs.start_server(&args);
    kill_after_a_round(process, &out);
    let resumed = simulate(&programs, &file, "killed", &[]).ok().json();
    assert_eq!(resumed["adapter_digest"], first["adapter_digest"]);
    let figures = |out: &str| -> Vec<Value> {
        let rounds = metrics(&programs, out).into_iter();
        rounds
            .map(|mut round| {
                let clients = round["clients"].as_array().cloned().unwrap_or_default();
                let kept = [
                    "round",
                    "loss",
                    "drift",
                    "gap",
                    "virtual_seconds",
                    "updates",
                ];
                let round = round.as_object_mut().unwrap();
                round.retain(|key, _| kept.contains(&key.as_str()));
                round.insert("clients".into(), clients.len().into());
                Value::from(round.clone())
            })
            .collect()
    };
    assert_eq!(figures("killed"), figures("first"));
    assert_eq!(figures("first").len(), 3);
    for file in ["report.html", "config.toml", "split.json", "summary.json"] {
        assert!(out.join(file).is_file(), "{file}");
    }
    assert!(PeftAdapter::read(&out.join("adapter")).is_ok());

    // Another seed is another run, and does not overwrite this one.
    let other = simulate(&programs, &file, "first", &["--set", "seed=2"]);
    other
        .failed_with(3)
        .says(&["another configuration", "--fresh"]);
    let other = simulate(&programs, &file, "other", &["--set", "seed=2"])
        .ok()
        .json();
    assert_ne!(other["adapter_digest"], first["adapter_digest"]);
}

/// Until the checkpoint after a round is there, nothing is missed that the one before names.
#[test]
fn a_round_that_was_cut_off_before_its_checkpoint_is_done_again() {
    let programs = programs();
    let rows = data(&programs);
    for strategy in ["scaffold", "fedadam"] {
        let more =
            format!("{SMALL}[strategy]\nname = \"{strategy}\"\n[output]\nadapter_every = 2\n");
        let file = experiment(&programs, strategy, &rows, &more);
        let whole = format!("{strategy}-whole");
        let whole = simulate(&programs, &file, &whole, &[]).ok().json();
        // The second round's adapter cannot be written: a file has the name of its folder.
        fs::create_dir(programs.path(strategy)).unwrap();
        let in_the_way = programs.write(&format!("{strategy}/adapters"), "");
        simulate(&programs, &file, strategy, &[])
            .failed_with(1)
            .says(&["adapters/round-0001"]);
        fs::remove_file(in_the_way).unwrap();
        let resumed = simulate(&programs, &file, strategy, &[]).ok().json();
        assert_eq!(resumed["adapter_digest"], whole["adapter_digest"]);
        let rounds = metrics(&programs, strategy);
        assert_eq!(rounds.len(), 3, "{rounds:?}");
    }
}

#[test]
fn every_strategy_learns_with_either_objective() {
    let programs = programs();
    let (rows, pairs) = (data(&programs), pairs(&programs));
    let sft = experiment(&programs, "sft", &rows, SMALL);
    let iid = SMALL.replace("kind = \"dirichlet\"\nby = \"kind\"\nalpha = 0.5\n", "");
    let dpo = format!("{iid}[objective]\nkind = \"dpo\"\n");
    let dpo = dpo.replace("lr = 1e-2", "lr = 2e-3");
    let dpo = experiment(&programs, "dpo", &pairs, &dpo);
    for strategy in [
        "fedavg",
        "fedprox",
        "scaffold",
        "fedavgm",
        "fedadagrad",
        "fedyogi",
        "fedadam",
        "local",
        "central",
    ] {
        for (name, file) in [("sft", &sft), ("dpo", &dpo)] {
            let out = format!("{name}-{strategy}");
            // The adaptive ones move each value by about eta in a round.
            let adaptive = ["fedadagrad", "fedyogi", "fedadam"].contains(&strategy);
            let set = format!("strategy={strategy}");
            let mut more = vec!["--set", &set];
            if adaptive {
                more.extend(["--set", "strategy.eta=1e-2"]);
            }
            let summary = simulate(&programs, file, &out, &more).ok().json();
            let scores = summary["evaluations"].as_array().unwrap();
            let loss = |arm: &str| {
                let found = scores.iter().find(|score| score["arm"] == arm);
                found.unwrap_or_else(|| panic!("{out}: {scores:?}"))["loss"]
                    .as_f64()
                    .unwrap()
            };
            let arm = match strategy {
                "local" => "local mean",
                _ => "global",
            };
            assert!(loss(arm) < loss("base"), "{out}: {scores:?}");
            let rounds = metrics(&programs, &out);
            let gap = rounds[1]["gap"].as_f64();
            assert_eq!(
                gap.is_some_and(|gap| gap > 0.0),
                strategy != "local" && strategy != "central",
                "{out}: {gap:?}"
            );
            let pairs = &rounds[0]["clients"][0]["preference"]["margin"];
            assert_eq!(pairs.is_number(), name == "dpo", "{out}");
        }
    }
}

#[test]
fn virtual_clients_score_adapters_on_rows_of_their_own() {
    let programs = programs();
    let rows = data(&programs);
    // Of 15 rows each, 6 are held out.
    let more = "[rounds]\ncount = 3\n[local]\nsteps = 3\nbatch = 2\nlr = 1e-2\n\
                [split]\nclients = 2\n[evaluation]\nclients = 0.4\n";
    let file = experiment(&programs, "held-out", &rows, more);
    simulate(&programs, &file, "held-out", &[]).ok();
    let rounds = metrics(&programs, "held-out");
    for round in &rounds {
        let score = &round["held_out"];
        assert_eq!((&score["clients"], &score["rows"]), (&json!(2), &json!(12)));
        assert_eq!(round["clients"][0]["rows"], 9);
    }
    let loss = |round: usize| rounds[round]["held_out"]["loss"].as_f64().unwrap();
    assert!(loss(2) < loss(0), "{rounds:?}");

    // A twentieth of 15 rows is one row, and that is not reported.
    let file = experiment(&programs, "few", &rows, &more.replace("0.4", "0.05"));
    simulate(&programs, &file, "few", &[]).ok();
    let round = &metrics(&programs, "few")[0];
    assert!(round["held_out"].is_null());
    assert_eq!(round["clients"][0]["rows"], 15);
}

#[test]
fn clients_of_different_ranks_train_together() {
    let programs = programs();
    let rows = data(&programs);
    let more = format!(
        "{SMALL}[adapter]\nrank = 8\nranks = [2, 4]\n[devices]\nmax_ranks = [8, 4, 2]\n\
         [strategy]\nreduce = \"exact\"\n"
    );
    let file = experiment(&programs, "ranks", &rows, &more);
    let summary = simulate(&programs, &file, "ranks", &[]).ok().json();
    let scores = summary["evaluations"].as_array().unwrap();
    let losses: Vec<_> = scores.iter().map(|s| s["loss"].as_f64().unwrap()).collect();
    assert!(losses[1] < losses[0], "{scores:?}");
    for round in metrics(&programs, "ranks") {
        assert!(round["discarded"].as_f64().unwrap() < 0.9, "{round}");
    }
    let ffa = simulate(
        &programs,
        &experiment(&programs, "ffa", &rows, SMALL),
        "ffa",
        &["--set", "reduce=ffa"],
    );
    ffa.ok();
    for round in metrics(&programs, "ffa") {
        assert_eq!(round["gap"], 0.0);
    }
}

#[test]
fn a_sweep_prints_one_table() {
    let programs = programs();
    let rows = data(&programs);
    let file = experiment(&programs, "sweep", &rows, SMALL);
    let args = ["--sweep", "strategy=fedavg,local", "--sweep", "seed=1,2"];
    let table = simulate(&programs, &file, "sweep", &args).ok().json();
    let arms = table["arms"].as_array().unwrap();
    assert_eq!(arms.len(), 2, "{table}");
    for file in ["sweep.html", "sweep.csv", "sweep.md", "sweep.json"] {
        assert!(programs.path("sweep").join(file).is_file(), "{file}");
    }
    // What is there is not trained again.
    let again = simulate(&programs, &file, "sweep", &args).ok().json();
    assert_eq!(again, table);
}

#[test]
fn what_cannot_be_simulated_is_named() {
    let programs = programs();
    let (rows, pairs) = (data(&programs), pairs(&programs));
    let cases: [(&Path, &str, i32, &[&str]); 6] = [
        (
            &rows,
            "[strategy]\nname = \"fedadgrad\"\n",
            3,
            &["line 10", "fedadagrad"],
        ),
        (&rows, "[split]\nclients = 99\n", 7, &["split", "99"]),
        (
            &rows,
            "[objective]\nkind = \"dpo\"\n",
            7,
            &["preferences", "examples"],
        ),
        (&pairs, "", 7, &["examples", "preferences"]),
        (
            &rows,
            "[split]\nkind = \"dirichlet\"\nby = \"colour\"\n",
            7,
            &["colour"],
        ),
        (
            &rows,
            "[split]\nkind = \"dirichlet\"\nby = \"kind\"\nalpha = 0.01\nclients = 12\nmin_rows = 2\n",
            7,
            &["split", "alpha"],
        ),
    ];
    for (index, (data, more, code, says)) in cases.into_iter().enumerate() {
        let file = experiment(&programs, &format!("bad{index}"), data, more);
        simulate(&programs, &file, "bad", &["--dry-run"])
            .failed_with(code)
            .says(says);
    }
    let file = experiment(&programs, "good", &rows, SMALL);
    let table = simulate(&programs, &file, "good", &["--dry-run"])
        .ok()
        .json();
    assert_eq!(table["owners"].as_array().unwrap().len(), 5);
    assert!(!programs.path("good").exists());
}

/// The presets are what `simulate` reads; only their data and their models are not here.
#[test]
fn presets_are_experiments() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/experiments");
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let experiment = fedllm_shared::Experiment::parse(&text);
        let experiment = experiment.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let dataset = experiment.data.dataset.unwrap();
        fedllm_client::dataset(&dataset).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        names.push(experiment.name);
    }
    assert_eq!(names.len(), 16);
}
