//! The shared adapter is measured while a federation runs, on rows that clients hold out.

use fedllm_tests::federation::{Federation, rows, text};
use serde_json::{Value, json};

use super::programs;

const SETTINGS: [&str; 6] = [
    "rounds.count=3",
    "rounds.cohort=2",
    "rounds.min_clients=2",
    "rounds.quorum=2",
    "local.steps=8",
    "local.lr=0.01",
];

#[test]
fn versions_are_measured_by_clients() {
    let programs = programs();
    let mut federation = Federation::new(&programs, &SETTINGS);
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
    let metrics = federation.metrics();
    let table = programs.server(&["status", text(&federation.folder)]).ok();
    federation.stop();

    // Each client says once a round how good the adapter is that it was sent.
    let status = federation.status();
    let scores = status["scores"].as_array().unwrap();
    let clients: Vec<(u64, &Value)> = scores
        .iter()
        .map(|score| (score["version"].as_u64().unwrap(), &score["clients"]))
        .collect();
    let versions: Vec<u64> = clients.iter().map(|(version, _)| *version).collect();
    assert_eq!(versions, [0, 1, 2], "{scores:#?}");
    for (_, score) in &clients {
        assert_eq!((&score["clients"], &score["rows"]), (&json!(2), &json!(11)));
    }
    let loss = |score: &Value| score["loss"].as_f64().unwrap();
    assert!(loss(clients[2].1) < 0.9 * loss(clients[0].1), "{scores:#?}");

    assert!(table.stdout.contains("of 2 clients"), "{table}");
    let gauge = |name: &str, by: &str| -> f64 {
        let name = format!("fedllm_evaluation_{name}{{by=\"{by}\"}} ");
        let mut lines = metrics.lines();
        let value = lines.find_map(|line| line.strip_prefix(&name));
        let value = value.unwrap_or_else(|| panic!("{name} is not in:\n{metrics}"));
        value.parse().unwrap()
    };
    let clients = (gauge("version", "clients"), gauge("rows", "clients"));
    assert_eq!(clients, (2.0, 11.0));

    // The owner sees what was sent.
    let args = ["status", "--state", text(&alice.state), "--json"];
    let account = programs.client(&args).ok().json();
    let sent = account[0]["sent"].as_array().unwrap();
    let kind = sent.iter().find(|sent| sent["kind"] == "evaluation");
    assert_eq!(kind.unwrap()["count"], 3, "{account:#}");
    let rows = account[0]["rounds"][0]["rows"].as_u64();
    assert_eq!(rows, Some(18), "what is held out is not trained on");
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
}
