//! The shared adapter is measured while a federation runs: on rows that clients hold out, and on
//! the operator's.

use fedllm_client::{Base, PrepareOptions, Vocabulary, prepare_in_memory, score_rows};
use fedllm_models::{CausalLm, Lora, PeftAdapter, lora};
use fedllm_tests::federation::{Federation, MAX_TOKENS, Programs, rows, text};
use serde_json::{Value, json};

use super::programs;

const SETTINGS: [&str; 7] = [
    "rounds.count=3",
    "rounds.cohort=2",
    "rounds.min_clients=2",
    "rounds.quorum=2",
    "local.steps=8",
    "local.lr=0.01",
    "evaluation.every=2",
];

/// Rows of the operator.
fn central(programs: &Programs) -> String {
    let lines = rows("alice", 8).into_iter().map(|row| format!("{row}\n"));
    let path = programs.write("central.jsonl", lines.collect::<String>());
    text(&path).to_owned()
}

#[test]
fn versions_are_measured_by_clients_and_by_the_server() {
    let programs = programs();
    let central = central(&programs);
    let held_out = format!("evaluation.held_out=[{central:?}]");
    let settings = [&SETTINGS[..], &[held_out.as_str()]].concat();
    let mut federation = Federation::new(&programs, &settings);
    federation.serve(&["--keep-serving"]);
    let alice = federation.owner("alice", &rows("alice", 24));
    let bob = federation.owner("bob", &rows("bob", 12));
    let other = federation.owner("other", &rows("bob", 5));
    let clients = [
        federation.run(&alice, &["--held-out", "25%"]),
        federation.run(&bob, &["--held-out", text(&other.shard)]),
    ];
    for client in clients {
        client.end().ok();
    }
    let last = federation.wait_for("evaluated", json!({"version": 3}));
    let metrics = federation.metrics();
    let table = programs.server(&["status", text(&federation.folder)]).ok();
    federation.stop();

    // Each client says once a round how good the adapter is that it was sent.
    let status = federation.status();
    let scores = status["scores"].as_array().unwrap();
    let by = |whose: &str| -> Vec<(u64, &Value)> {
        let known = scores.iter().filter(|score| score[whose].is_object());
        known
            .map(|score| (score["version"].as_u64().unwrap(), &score[whose]))
            .collect()
    };
    let clients = by("clients");
    let versions: Vec<u64> = clients.iter().map(|(version, _)| *version).collect();
    assert_eq!(versions, [0, 1, 2], "{scores:#?}");
    for (_, score) in &clients {
        assert_eq!((&score["clients"], &score["rows"]), (&json!(2), &json!(11)));
    }
    let loss = |score: &Value| score["loss"].as_f64().unwrap();
    assert!(loss(clients[2].1) < 0.9 * loss(clients[0].1), "{scores:#?}");

    // The server measures every second version and the last.
    let server = by("server");
    let versions: Vec<u64> = server.iter().map(|(version, _)| *version).collect();
    assert_eq!(versions, [2, 3], "{scores:#?}");
    assert!((loss(server[1].1) - loss(&last)).abs() < 1e-9);
    assert_eq!(server[1].1["rows"], 8);
    let alone = loss_of(&federation, &central);
    let measured = loss(server[1].1);
    assert!((measured - alone).abs() < 1e-4, "{measured} {alone}");

    for whose in ["of 2 clients", "of the server"] {
        assert!(table.stdout.contains(whose), "{table}");
    }
    let gauge = |name: &str, by: &str| -> f64 {
        let name = format!("fedllm_evaluation_{name}{{by=\"{by}\"}} ");
        let mut lines = metrics.lines();
        let value = lines.find_map(|line| line.strip_prefix(&name));
        let value = value.unwrap_or_else(|| panic!("{name} is not in:\n{metrics}"));
        value.parse().unwrap()
    };
    let clients = (gauge("version", "clients"), gauge("rows", "clients"));
    assert_eq!(clients, (2.0, 11.0));
    assert_eq!(gauge("version", "server"), 3.0);
    assert!((gauge("loss", "server") - measured).abs() < 1e-9);

    // The owner sees what was sent.
    let args = ["status", "--state", text(&alice.state), "--json"];
    let account = programs.client(&args).ok().json();
    let sent = account[0]["sent"].as_array().unwrap();
    let kind = sent.iter().find(|sent| sent["kind"] == "evaluation");
    assert_eq!(kind.unwrap()["count"], 3, "{account:#}");
    let rows = account[0]["rounds"][0]["rows"].as_u64();
    assert_eq!(rows, Some(18), "what is held out is not trained on");
}

/// The mean loss of the last adapter on the operator's rows, without a server.
fn loss_of(federation: &Federation, rows: &str) -> f64 {
    let base = Base::open(&federation.model).unwrap();
    let options = PrepareOptions {
        template: Some("chat".parse().unwrap()),
        max_tokens: MAX_TOKENS.parse().unwrap(),
        ..PrepareOptions::new(vec![rows.into()])
    };
    let vocabulary = Vocabulary {
        tokenizer: base.tokenizer(),
        chat: base.chat(),
    };
    let (shard, _) = prepare_in_memory(vocabulary, &options, &mut |_, _| ()).unwrap();
    let device = burn::tensor::Device::flex();
    let model = CausalLm::load(base.checkpoint(), Default::default(), &device).unwrap();
    let peft = PeftAdapter::read(&federation.export("last")).unwrap();
    let (spec, adapter) = lora::from_peft(model.config(), &peft).unwrap();
    let lora = Lora::new(model.config(), &spec, &adapter, &device).unwrap();
    let scores = score_rows(&model, Some(&lora), &shard);
    scores.iter().map(|score| score.loss).sum::<f64>() / scores.len() as f64
}

#[test]
fn rows_that_cannot_be_held_out_are_named_before_anything_is_sent() {
    let programs = programs();
    let mut federation = Federation::new(&programs, &[]);
    federation.serve(&[]);
    let owner = federation.owner("alice", &rows("alice", 12));
    for (held_out, says) in [
        ("5%", "5% of 12 rows is too little"),
        ("90%", "at most 50%"),
        ("nowhere.shard", "nowhere.shard"),
    ] {
        let ended = federation.run(&owner, &["--held-out", held_out]).end();
        let code = if held_out == "90%" { 2 } else { 7 };
        ended.failed_with(code).says(&[says]);
    }
    federation.stop();

    let settings = ["evaluation.held_out=[\"nowhere.jsonl\"]"];
    let federation = Federation::new(&self::programs(), &settings);
    let args = ["serve", text(&federation.folder)];
    let ended = federation.programs.server(&args);
    ended
        .failed_with(3)
        .says(&["evaluation.held_out", "nowhere.jsonl", "hint:"]);
}
