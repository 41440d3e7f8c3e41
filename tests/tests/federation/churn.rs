//! Clients and the server are killed or sleep in the middle of a round: the run completes, and
//! each update counts once.

use fedllm_models::PeftAdapter;
use fedllm_tests::federation::{Federation, Owner, rows};
use fedllm_tests::process::Process;
use serde_json::json;

use super::programs;

/// Long enough that a round is not over before a signal arrives.
const LONG_STEPS: &str = "local.steps=100";

fn three(settings: &[&str]) -> (Federation, [Owner; 3]) {
    let size = ["rounds.cohort=3", "rounds.min_clients=3", "local.batch=2"];
    let mut federation = Federation::new(&programs(), &[&size[..], settings].concat());
    federation.serve(&["--keep-serving"]);
    let owners = ["alice", "bob", "carol"].map(|name| federation.owner(name, &rows(name, 6)));
    (federation, owners)
}

/// Every owner in each of these rounds, once.
fn each_once(owners: &[Owner], rounds: u64) -> Vec<(u64, String)> {
    let ids = |round| owners.iter().map(move |owner| (round, owner.id.clone()));
    let mut pairs: Vec<_> = (0..rounds).flat_map(ids).collect();
    pairs.sort();
    pairs
}

fn run_all(federation: &Federation, owners: &[Owner]) -> Vec<Process> {
    let run = |owner| federation.run(owner, &[]);
    owners.iter().map(run).collect()
}

#[test]
fn a_client_that_is_killed_in_a_round_comes_back_and_counts_once() {
    let (federation, owners) = three(&["rounds.count=2", "rounds.quorum=3", LONG_STEPS]);
    let mut clients = run_all(&federation, &owners);
    let victim = clients.remove(0);
    victim.event("step");
    victim.kill();
    let given = (0, owners[0].id.clone());
    assert!(
        !federation.accepted().contains(&given),
        "it was killed after the round"
    );

    clients.push(federation.run(&owners[0], &[]));
    for client in clients {
        client.end().ok();
    }
    assert_eq!(federation.accepted(), each_once(&owners, 2));
    assert_eq!(federation.status()["state"], "finished");
}

#[test]
fn a_client_that_sleeps_over_a_deadline_misses_that_round_only() {
    let round = ["rounds.deadline_seconds=5", "local.steps=60"];
    let (federation, owners) =
        three(&[&["rounds.count=4", "rounds.quorum=2"], &round[..]].concat());
    let clients = run_all(&federation, &owners);
    clients[0].event("training_started");
    clients[0].signal("STOP");
    federation.wait_for("round_closed", json!({ "round": 0 }));
    clients[0].signal("CONT");

    for client in clients {
        client.end().ok();
    }
    let accepted = federation.accepted();
    let mut once = accepted.clone();
    once.dedup();
    assert_eq!(accepted, once);
    for round in 0..4 {
        let updates = accepted.iter().filter(|update| update.0 == round);
        assert!(
            updates.count() >= 2,
            "quorum of round {round}: {accepted:?}"
        );
    }
    let back = accepted.iter().filter(|update| update.1 == owners[0].id);
    let rounds: Vec<u64> = back.map(|update| update.0).collect();
    assert!(!rounds.is_empty() && !rounds.contains(&0), "{rounds:?}");
    assert_eq!(federation.status()["state"], "finished");
}

#[test]
fn a_server_that_is_killed_goes_on_with_the_round_and_ends_where_it_would_have() {
    let settings = [
        "rounds.count=2",
        "rounds.quorum=3",
        LONG_STEPS,
        "wire.codec=f32",
    ];
    let (mut federation, owners) = three(&settings);
    federation.stop();
    let (mut undisturbed, same) = federation.copy(&owners, "undisturbed");

    federation.serve(&["--keep-serving"]);
    let clients = run_all(&federation, &owners);
    clients[2].event("training_started");
    clients[2].signal("STOP");
    // The round waits for the client that sleeps.
    for owner in &owners[..2] {
        federation.wait_for("update_accepted", json!({ "client": owner.id }));
    }
    federation.take_server().kill();
    clients[2].signal("CONT");
    federation.serve(&["--keep-serving"]);
    assert_eq!(federation.accepted().len(), 2);
    for client in clients {
        client.end().ok();
    }
    federation.wait_for("run_resumed", json!({ "round": 0 }));
    assert_eq!(federation.accepted(), each_once(&owners, 2));
    let disturbed = PeftAdapter::read(&federation.export("disturbed.adapter")).unwrap();
    federation.stop();

    undisturbed.serve(&["--keep-serving"]);
    for client in run_all(&undisturbed, &same) {
        client.end().ok();
    }
    assert_eq!(undisturbed.accepted(), each_once(&same, 2));
    let expected = PeftAdapter::read(&undisturbed.export("undisturbed.adapter")).unwrap();
    assert_eq!(disturbed.tensors, expected.tensors);
}
