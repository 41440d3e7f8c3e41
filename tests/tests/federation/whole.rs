//! A run by the command line, from beginning to end.

use std::fs;
use std::path::Path;

use fedllm_models::{Checkpoint, Gguf, PeftAdapter};
use fedllm_tests::federation::{Federation, files, rows, text};
use fedllm_tests::process::Ended;
use serde_json::{Value, json};

use super::programs;

/// Stands in the training texts, and must not stand anywhere else.
const CANARY: &str = "zebra-4711-quartz";

fn secret_rows(owner: &str) -> Vec<Value> {
    let mut rows = rows(owner, 6);
    rows.push(json!({
        "instruction": format!("What is the code of {owner}?"),
        "output": format!("It is {CANARY}."),
    }));
    rows
}

#[test]
fn a_run_by_the_command_line_learns_and_tells_nothing() {
    let programs = programs();
    let settings = ["rounds.count=3", "rounds.cohort=3", "rounds.min_clients=3"];
    let training = [
        "rounds.quorum=3",
        "local.steps=8",
        "local.batch=4",
        "local.lr=0.01",
    ];
    let settings = [&settings[..], &training].concat();
    let mut federation = Federation::new(&programs, &settings);
    federation.serve(&[]);
    let names = ["alice", "bob", "carol"];
    let owners = names.map(|name| federation.owner(name, &secret_rows(name)));

    let token = federation.invite("dave");
    federation.join(&token, &programs.path("dave.state")).ok();
    let again = federation.join(&token, &programs.path("thief.state"));
    again.failed_with(5).says(&["used before", "hint:"]);

    let waiting = federation.status();
    assert_eq!(waiting["state"], "waiting");
    assert_eq!(waiting["clients"].as_array().unwrap().len(), 4);

    let out = programs.path("alice.adapter");
    let clients = [
        federation.run(&owners[0], &["--out", text(&out)]),
        federation.run(&owners[1], &[]),
        federation.run(&owners[2], &[]),
    ];
    let ended = clients.map(|client| client.end().ok());
    for client in &ended {
        let last = client.json();
        assert_eq!(
            (&last["event"], &last["rounds"]),
            (&json!("ended"), &json!(3))
        );
    }
    let server = federation.take_server().end().ok();

    run_is_told(&federation, &owners[0].state);
    exports_hold_what_was_learned(&federation, &out);
    canary_stays(&federation, &names, &ended, &server);
}

/// The record without a running server, and a client's own account.
fn run_is_told(federation: &Federation, state: &Path) {
    let status = federation.status();
    assert_eq!(
        (&status["state"], &status["version"]),
        (&json!("finished"), &json!(3))
    );
    let history = status["history"].as_array().unwrap();
    assert_eq!(history.len(), 3);
    assert!(
        history.iter().all(|round| round["updates"] == 3),
        "{history:?}"
    );
    let loss = |round: usize| history[round]["loss"].as_f64().unwrap();
    assert!(
        loss(2) < 0.9 * loss(0),
        "the loss does not fall: {history:?}"
    );

    let args = ["status", "--state", text(state), "--json"];
    let client = federation.programs.client(&args).ok().json();
    assert_eq!(client[0]["name"], "alice");
    assert_eq!(client[0]["rounds_received"], 3);
    assert!(client[0]["sent_bytes"].as_u64().unwrap() > 1000);
}

fn exports_hold_what_was_learned(federation: &Federation, clients: &Path) {
    let ours = PeftAdapter::read(&federation.export("exported")).unwrap();
    // B is zero at first.
    let learned = ours
        .tensors
        .iter()
        .filter(|tensor| tensor.name.contains("lora_B"));
    for tensor in learned {
        assert!(
            tensor.values.iter().any(|value| *value != 0.0),
            "{}",
            tensor.name
        );
    }
    let theirs = PeftAdapter::read(clients).unwrap();
    assert_eq!(ours.tensors, theirs.tensors);

    let out = federation.programs.path("exported.gguf");
    let folder = text(&federation.folder);
    let args = [
        "export",
        folder,
        "--format",
        "gguf-lora",
        "--out",
        text(&out),
    ];
    federation.programs.server(&args).ok();
    let gguf = Gguf::open(&out).unwrap();
    assert_eq!(gguf.text("general.type").unwrap(), "adapter");
    assert_eq!(gguf.tensors().len(), ours.tensors.len());
}

/// Neither the text nor its tokens are anywhere but in the owners' files; of these, shards have
/// the tokens and no text.
fn canary_stays(federation: &Federation, names: &[&str], ended: &[Ended], server: &Ended) {
    let tokenizer = Checkpoint::open(&federation.model)
        .unwrap()
        .tokenizer()
        .unwrap();
    let ids = tokenizer.encode(CANARY, false).unwrap();
    let tokens: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let holds = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    let path = |name: &str, end: &str| federation.programs.path(&format!("{name}.{end}"));

    for name in names {
        assert!(holds(
            &fs::read(path(name, "jsonl")).unwrap(),
            CANARY.as_bytes()
        ));
        let shard = fs::read(path(name, "shard")).unwrap();
        assert!(
            !holds(&shard, CANARY.as_bytes()),
            "text in the shard of {name}"
        );
    }
    let mut seen: Vec<(String, Vec<u8>)> = Vec::new();
    for process in ended.iter().chain([server]) {
        assert!(!process.stderr.is_empty(), "no log of {}", process.about);
        seen.push((process.about.clone(), process.to_string().into_bytes()));
    }
    let states = names.iter().map(|name| path(name, "state"));
    for folder in states.chain([federation.folder.clone()]) {
        let named = |(path, bytes): (std::path::PathBuf, _)| (path.display().to_string(), bytes);
        seen.extend(files(&folder).into_iter().map(named));
    }
    for (what, bytes) in seen {
        assert!(!holds(&bytes, CANARY.as_bytes()), "text in {what}");
        assert!(!holds(&bytes, &tokens), "tokens in {what}");
    }
}
