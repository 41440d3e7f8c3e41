//! `fedllm-server aggregate` against six rounds of the reference's own aggregation.
//!
//! `tests/golden/aggregate` was made by OpenFedLLM's `global_aggregate` (commit 14c6af2) on fixed
//! client adapters: five clients of 37, 120, 8, 64 and 251 rows, twelve small tensors,
//! tau = eta = 1e-3, beta1 = 0.9, beta2 = 0.99, all clients or three of them a round.
//! `roundR.global.`, `.proxy.` (momentum), `.opt_proxy.` (second moment) and `.c.` (the server's
//! control variate) are its state after each round. FedProx averages as FedAvg does.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use fedllm_tests::federation::{Programs, text};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::programs;

/// Tensors by name.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden/aggregate")
        .join(name)
}

fn read(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8]| {
        let words = data.chunks_exact(4);
        words
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    };
    file.iter()
        .map(|(name, tensor)| {
            let shape = tensor.shape().to_vec();
            (name.to_owned(), (shape, values(tensor.data())))
        })
        .collect()
}

/// The tensors whose names begin like this, without that beginning.
fn part(tensors: &Tensors, prefix: &str) -> Tensors {
    let named = tensors.iter().filter_map(|(name, tensor)| {
        let name = name.strip_prefix(prefix)?;
        Some((name.to_owned(), tensor.clone()))
    });
    named.collect()
}

fn write(path: &Path, tensors: &Tensors) {
    let bytes: BTreeMap<_, Vec<u8>> = tensors
        .iter()
        .map(|(name, (_, values))| (name, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views = tensors.iter().map(|(name, (shape, _))| {
        let view = TensorView::new(Dtype::F32, shape.clone(), &bytes[name]).unwrap();
        (name.as_str(), view)
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// The relative distance (L2) over all tensors, which must have the same names and shapes.
fn distance(got: &Tensors, expected: &Tensors) -> f64 {
    let shapes = |tensors: &Tensors| -> Vec<(String, Vec<usize>)> {
        let named = tensors.iter();
        named
            .map(|(name, (shape, _))| (name.clone(), shape.clone()))
            .collect()
    };
    assert_eq!(shapes(got), shapes(expected));
    let (mut apart, mut length) = (0.0, 0.0);
    for (name, (_, expected)) in expected {
        for (got, expected) in got[name].1.iter().zip(expected) {
            apart += f64::from(got - expected).powi(2);
            length += f64::from(*expected).powi(2);
        }
    }
    (apart / length).sqrt()
}

/// One algorithm, six rounds, with the reference's formulas.
struct Case {
    programs: Programs,
    strategy: &'static str,
    /// The file with what the reference came to.
    golden: Tensors,
    inputs: Tensors,
    variates: Option<Tensors>,
    rows: Vec<u64>,
    cohorts: Vec<Vec<usize>>,
}

impl Case {
    fn new(strategy: &'static str, case: &str) -> Self {
        let clients: Value =
            serde_json::from_slice(&fs::read(golden("clients.json")).unwrap()).unwrap();
        let file = match strategy {
            "fedprox" => "fedavg",
            other => other,
        };
        let deltas = golden("scaffold_deltas.safetensors");
        Self {
            programs: programs(),
            strategy,
            golden: read(&golden(&format!("{file}_{case}.safetensors"))),
            inputs: read(&golden("inputs.safetensors")),
            variates: (strategy == "scaffold").then(|| read(&deltas)),
            rows: serde_json::from_value(clients["num_samples"].clone()).unwrap(),
            cohorts: serde_json::from_value(clients[case].clone()).unwrap(),
        }
    }

    fn path(&self, name: &str) -> String {
        text(&self.programs.path(name)).to_owned()
    }

    /// The command line of a round; `turn` rotates the order of its updates.
    fn command(&self, round: usize, turn: usize) -> Vec<String> {
        let mut args: Vec<String> = ["aggregate", "--strategy", self.strategy, "--compat"]
            .map(str::to_owned)
            .into();
        args.push("openfedllm".to_owned());
        args.extend(["--state".to_owned(), self.path("state")]);
        args.extend([
            "--global".to_owned(),
            self.path(&format!("global{round}.st")),
        ]);
        args.extend([
            "--out".to_owned(),
            self.path(&format!("global{}.st", round + 1)),
        ]);
        args.push("--json".to_owned());
        let mut cohort = self.cohorts[round].clone();
        cohort.rotate_left(turn);
        for client in cohort {
            let prefix = format!("round{round}.client{client}.");
            let update = self.path(&format!("{prefix}update"));
            write(Path::new(&update), &part(&self.inputs, &prefix));
            args.extend([
                "--update".to_owned(),
                format!("{update}:{}", self.rows[client]),
            ]);
            if let Some(variates) = &self.variates {
                let delta = self.path(&format!("{prefix}variate"));
                write(Path::new(&delta), &part(variates, &prefix));
                args.extend(["--variate-delta".to_owned(), delta]);
            }
        }
        if self.variates.is_some() {
            args.extend(["--population".to_owned(), self.rows.len().to_string()]);
        }
        args
    }

    /// Runs all rounds and compares adapter and state after each.
    fn run(&self) {
        write(
            &self.programs.path("global0.st"),
            &part(&self.inputs, "global0."),
        );
        for round in 0..self.cohorts.len() {
            let ended = self.programs.server(&self.command(round, round % 2)).ok();
            assert_eq!(ended.json()["round"], round);
            self.compare(round, "global", &format!("global{}.st", round + 1));
            for (theirs, ours) in [
                ("proxy", "momentum"),
                ("opt_proxy", "second_moment"),
                ("c", "variate"),
            ] {
                let file = format!("state/{ours}-{}.safetensors", round + 1);
                self.compare(round, theirs, &file);
            }
        }
    }

    fn compare(&self, round: usize, theirs: &str, file: &str) {
        let expected = part(&self.golden, &format!("round{round}.{theirs}."));
        let path = self.programs.path(file);
        assert_eq!(path.exists(), !expected.is_empty(), "{file} and {theirs}");
        if !expected.is_empty() {
            let apart = distance(&read(&path), &expected);
            assert!(
                apart <= 1e-6,
                "{} round {round}, {theirs}: {apart:e}",
                self.strategy
            );
        }
    }
}

#[test]
fn fedavg_is_the_reference() {
    Case::new("fedavg", "full").run();
    Case::new("fedavg", "sampled3").run();
}

#[test]
fn fedprox_is_the_reference() {
    Case::new("fedprox", "full").run();
    Case::new("fedprox", "sampled3").run();
}

#[test]
fn scaffold_is_the_reference() {
    Case::new("scaffold", "full").run();
    Case::new("scaffold", "sampled3").run();
}

#[test]
fn fedavgm_is_the_reference() {
    Case::new("fedavgm", "full").run();
    Case::new("fedavgm", "sampled3").run();
}

#[test]
fn fedadagrad_is_the_reference() {
    Case::new("fedadagrad", "full").run();
    Case::new("fedadagrad", "sampled3").run();
}

#[test]
fn fedyogi_is_the_reference() {
    Case::new("fedyogi", "full").run();
    Case::new("fedyogi", "sampled3").run();
}

#[test]
fn fedadam_is_the_reference() {
    Case::new("fedadam", "full").run();
    Case::new("fedadam", "sampled3").run();
}

/// The papers' formulas give other numbers from the second round on, and a state belongs to one of
/// both.
#[test]
fn a_state_is_gone_on_with_as_it_was_begun() {
    let case = Case::new("fedavgm", "full");
    write(
        &case.programs.path("global0.st"),
        &part(&case.inputs, "global0."),
    );
    case.programs.server(&case.command(0, 0)).ok();
    let mut paper = case.command(1, 0);
    let at = paper.iter().position(|arg| arg == "openfedllm").unwrap();
    paper[at] = "paper".to_owned();
    let refused = case.programs.server(&paper);
    refused
        .failed_with(7)
        .says(&["was begun with strategy", "nothing was changed"]);
    // The order of the updates changes no byte.
    case.programs.server(&case.command(1, 0)).ok();
    let first = fs::read(case.programs.path("global2.st")).unwrap();
    let again = Case::new("fedavgm", "full");
    write(
        &again.programs.path("global0.st"),
        &part(&again.inputs, "global0."),
    );
    again.programs.server(&again.command(0, 3)).ok();
    again.programs.server(&again.command(1, 2)).ok();
    assert_eq!(fs::read(again.programs.path("global2.st")).unwrap(), first);
}

#[test]
fn what_cannot_be_averaged_is_named() {
    let case = Case::new("fedadam", "full");
    write(
        &case.programs.path("global0.st"),
        &part(&case.inputs, "global0."),
    );
    let good = case.command(0, 0);
    let with = |from: &str, to: &[&str]| {
        let mut args = good.clone();
        let at = args.iter().position(|arg| arg == from).unwrap();
        args.splice(at..at + 2, to.iter().map(|arg| (*arg).to_owned()));
        case.programs.server(&args)
    };
    with("--strategy", &["--strategy", "fedadm"])
        .failed_with(2)
        .says(&["did you mean \"fedadam\""]);
    with("--compat", &["--param", "mu=1"])
        .failed_with(3)
        .says(&["fedadam has no parameter \"mu\""]);
    with("--compat", &["--param", "tau=-1"])
        .failed_with(3)
        .says(&["tau must be"]);
    with("--compat", &["--reduce", "exact"])
        .failed_with(3)
        .says(&["momentum"]);
    let mut other = part(&case.inputs, "global0.");
    other.pop_first();
    write(&case.programs.path("other.st"), &other);
    let path = case.path("other.st");
    with("--update", &["--update", &path])
        .failed_with(7)
        .says(&["other.st has no tensor", "down_proj"]);
    with("--compat", &["--variate-delta", &path])
        .failed_with(7)
        .says(&["takes 0 --variate-delta"]);
    assert!(!case.programs.path("state").exists());
}
