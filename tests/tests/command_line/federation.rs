//! Tokens, settings and folders that are wrong.

use std::fs;
use std::time::Duration;

use fedllm_models::BlockFormat;
use fedllm_tests::federation::{Federation, rows, text};
use fedllm_tests::tiny;

use super::programs;

#[test]
fn only_a_good_token_lets_a_client_in() {
    let programs = programs();
    let mut federation = Federation::new(&programs, &[]);
    federation.serve(&[]);
    let folder = text(&federation.folder).to_owned();
    let invite = ["invite", &folder, "--name", "late", "--ttl", "1s"];
    let late = programs.server(&invite).ok().stdout.trim().to_owned();
    let token = federation.invite("alice");
    let state = programs.path("state");

    for malformed in ["fj2.aaaa", "fj1.aaaa", &token[..40]] {
        federation
            .join(malformed, &state)
            .failed_with(5)
            .says(&["token", "hint:"]);
    }
    let (head, tail) = token.split_at(30);
    let other = if head.ends_with('a') { "b" } else { "a" };
    let wrong_secret = format!("{}{other}{tail}", &head[..29]);
    federation
        .join(&wrong_secret, &state)
        .failed_with(5)
        .says(&["the token is not valid"]);

    let mut parts: Vec<&str> = token.splitn(4, '.').collect();
    let authority: String = parts[2].chars().rev().collect();
    parts[2] = &authority;
    let wrong_authority = federation.join(&parts.join("."), &state).failed_with(5);
    wrong_authority.says(&["not the server that the token is from"]);

    std::thread::sleep(Duration::from_millis(2100));
    federation
        .join(&late, &state)
        .failed_with(5)
        .says(&["the token has expired"]);
    // Nothing of that has spent the good one.
    federation.join(&token, &state).ok();
    federation
        .join(&token, &state)
        .failed_with(5)
        .says(&["used before"]);
    federation.stop();
}

#[test]
fn a_client_with_another_model_or_without_a_membership_is_told() {
    let programs = programs();
    let mut federation = Federation::new(&programs, &[]);
    federation.serve(&[]);
    let alice = federation.owner("alice", &rows("alice", 4));

    let other = programs.path("other.gguf");
    tiny::write_gguf(&other, "llama", BlockFormat::F16);
    let shard = text(&alice.shard);
    let mut args = vec![
        "run",
        "--shard",
        shard,
        "--model",
        text(&other),
        "--device",
        "cpu",
    ];
    let with_state = ["--state", text(&alice.state)];
    let run = programs.client(&[&args[..], &with_state].concat());
    run.failed_with(6).says(&["another base model", "hint:"]);

    let nowhere = programs.path("nowhere");
    args.extend(["--state", text(&nowhere)]);
    let run = programs.client(&args).failed_with(5);
    run.says(&["not enrolled", "fedllm-client join TOKEN"]);
    federation.stop();
}

#[test]
fn a_folder_that_is_wrong_is_told_with_its_line() {
    let programs = programs();
    let federation = Federation::new(&programs, &[]);
    let folder = text(&federation.folder);
    programs
        .server(&["init", folder])
        .failed_with(3)
        .says(&["has a federation already"]);
    let absent = programs.server(&["serve", "absent"]).failed_with(3);
    absent.says(&["absent", "fedllm-server init"]);
    let unknown = programs.server(&["init", "new", "--set", "rounds.cohrt=3"]);
    unknown.failed_with(3).says(&["rounds.cohrt"]);
    assert!(!programs.path("new").exists());

    let export = ["export", folder, "--format", "peft", "--out", "adapter"];
    programs
        .server(&export)
        .failed_with(1)
        .says(&["has not begun"]);

    let config = federation.folder.join("federation.toml");
    let settings = fs::read_to_string(&config).unwrap();
    let line = settings
        .lines()
        .position(|line| line.starts_with("quorum"))
        .unwrap()
        + 1;
    fs::write(&config, settings.replace("quorum = 2", "quorum = 0")).unwrap();
    let served = programs.server(&["serve", folder]).failed_with(3);
    let problem = format!("line {line}: rounds.quorum must be");
    let served = served.says(&["federation.toml", &problem]);
    assert_eq!(served.stderr.matches(&problem).count(), 1, "{served}");
    assert!(
        !served.stderr.contains("hint: make a federation"),
        "{served}"
    );
}
