//! `api` as a program: its numbers, its key, its end.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;

use fedllm_models::BlockFormat;
use fedllm_tests::federation::{Programs, rows, text};
use fedllm_tests::tiny;
use serde_json::{Value, json};

use super::programs;

fn model(programs: &Programs) -> PathBuf {
    let model = programs.path("model.gguf");
    tiny::write_gguf(&model, "llama", BlockFormat::F32);
    model
}

/// An adapter that has learned a little.
fn adapter(programs: &Programs) -> PathBuf {
    let lines: String = rows("alice", 4)
        .iter()
        .map(|row| format!("{row}\n"))
        .collect();
    let data = programs.write("rows.jsonl", lines);
    let out = programs.path("adapter");
    let mut args = vec!["train", "--model", "model.gguf", "--data", text(&data)];
    args.extend([
        "--out",
        text(&out),
        "--device",
        "cpu",
        "--steps",
        "4",
        "--batch",
        "2",
    ]);
    args.extend(["--rank", "2", "--threads", "1", "--lr", "0.01"]);
    programs.client(&args).ok();
    out
}

/// Asks for JSON and gets it.
fn post(address: &str, path: &str, headers: &str, body: &Value) -> (u16, Value) {
    let body = body.to_string();
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n{headers}\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap())
}

fn numbers(list: &Value) -> Vec<f64> {
    let list = list.as_array().unwrap().iter();
    list.map(|number| number.as_f64().unwrap()).collect()
}

#[test]
fn log_probabilities_are_those_of_score_for_base_and_adapter() {
    let programs = programs();
    model(&programs);
    adapter(&programs);
    let secret = "the unspeakable word";
    let ids = fedllm_models::Checkpoint::open(programs.path("model.gguf"))
        .and_then(|checkpoint| Ok(checkpoint.tokenizer()?.encode(secret, true)?))
        .unwrap();
    let row = programs.write("row.jsonl", json!({ "ids": ids, "from": 1 }).to_string());
    let score = |more: &[&str]| {
        let mut args = vec![
            "score",
            "--model",
            "model.gguf",
            "--data",
            text(&row),
            "--json",
        ];
        args.extend(["--device", "cpu"]);
        args.extend(more);
        numbers(&programs.client(&args).ok().json()["logprobs"])
    };
    let mut args = vec![
        "api",
        "--model",
        "model.gguf",
        "--adapter",
        "clinic=adapter",
    ];
    args.extend(["--listen", "127.0.0.1:0", "--device", "cpu", "--json"]);
    let server = programs.start_server(&args);
    let started = server.json(|line| line["listen"].is_string());
    assert_eq!(started["models"], json!(["model", "clinic"]));
    let address = started["listen"].as_str().unwrap();
    let ask = |model: &str, prompt: Value| {
        let asked = json!({
            "model": model, "prompt": prompt, "temperature": 0, "max_tokens": 1, "logprobs": 1,
            "echo": true
        });
        let (status, answer) = post(address, "/v1/completions", "", &asked);
        assert_eq!(status, 200, "{answer}");
        let said = answer["choices"][0]["logprobs"]["token_logprobs"].clone();
        let said = said.as_array().unwrap();
        assert!(said[0].is_null());
        assert_eq!(said.len(), ids.len() + 1);
        numbers(&json!(said[1..ids.len()]))
    };
    let (base, clinic) = (score(&[]), score(&["--adapter", "adapter"]));
    let distance = |a: &[f64], b: &[f64]| -> f64 {
        assert_eq!(a.len(), b.len());
        a.iter()
            .zip(b)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f64::max)
    };
    assert!(distance(&base, &clinic) > 1e-3, "{base:?} {clinic:?}");
    assert!(distance(&ask("model", json!(ids)), &base) < 1e-5);
    assert!(distance(&ask("clinic", json!([ids])), &clinic) < 1e-5);
    assert!(distance(&ask("clinic", json!(secret)), &clinic) < 1e-5);
    let (status, refused) = post(address, "/v1/completions", "", &json!({"model": "clinik"}));
    assert_eq!(
        (status, &refused["error"]["code"]),
        (404, &json!("model_not_found"))
    );
    assert!(
        refused["error"]["message"]
            .as_str()
            .unwrap()
            .contains("`clinic`")
    );
    server.signal("TERM");
    let ended = server.end().ok();
    assert!(ended.stderr.contains("/v1/completions"), "{ended}");
    assert!(!ended.stderr.contains("unspeakable"), "{ended}");
    assert!(!ended.stdout.contains("unspeakable"), "{ended}");
}

#[test]
fn other_addresses_need_a_key_and_the_key_is_never_shown() {
    let programs = programs();
    model(&programs);
    let serve = |more: &[&str]| {
        let mut args = vec!["api", "--model", "model.gguf", "--device", "cpu", "--json"];
        args.extend(more);
        programs.start_server(&args)
    };
    let open = serve(&["--listen", "0.0.0.0:0"]).end().failed_with(2);
    open.says(&["0.0.0.0:0", "a key is needed", "hint:", "--api-key-file"]);
    programs.write("short", "tooshort");
    let short = serve(&["--api-key-file", "short"]).end().failed_with(3);
    assert!(!short.stderr.contains("tooshort"), "{short}");
    short.says(&["short", "16", "hint:"]);
    serve(&["--api-key-file", "absent"])
        .end()
        .failed_with(3)
        .says(&["absent"]);

    let key = "b3c0ffee5eedb3c0ffee5eed";
    programs.write("key", format!("{key}\n"));
    let server = serve(&["--listen", "0.0.0.0:0", "--api-key-file", "key"]);
    let started = server.json(|line| line["listen"].is_string());
    let port = started["listen"]
        .as_str()
        .unwrap()
        .rsplit(':')
        .next()
        .unwrap()
        .to_owned();
    let address = format!("127.0.0.1:{port}");
    let asked = json!({"prompt": "a"});
    let tokenize = |headers: &str| post(&address, "/tokenize", headers, &asked).0;
    assert_eq!(tokenize(""), 401);
    assert_eq!(
        tokenize("Authorization: Bearer b3c0ffee5eedb3c0ffee5ee\r\n"),
        401
    );
    assert_eq!(tokenize(&format!("Authorization: Bearer {key}\r\n")), 200);
    server.signal("INT");
    let ended = server.end().ok();
    assert!(!ended.to_string().contains(key), "{ended}");
}

#[test]
fn what_cannot_be_served_is_said_at_the_start() {
    let programs = programs();
    model(&programs);
    let serve = |more: &[&str]| {
        let mut args = vec!["api", "--model", "model.gguf", "--device", "cpu"];
        args.extend(more);
        programs.server(&args)
    };
    let twice = ["--adapter", "a=x", "--adapter", "a=y"];
    serve(&twice)
        .failed_with(2)
        .says(&["two models are called a", "hint:"]);
    serve(&["--adapter", "x"])
        .failed_with(2)
        .says(&["NAME=DIR"]);
    serve(&["--max-queue", "0"])
        .failed_with(2)
        .says(&["at least 1"]);
    let free = ["--listen", "127.0.0.1:0"];
    let absent = [&free[..], &["--adapter", "a=absent"]].concat();
    serve(&absent)
        .failed_with(7)
        .says(&["--adapter a", "absent"]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    serve(&["--listen", &address])
        .failed_with(5)
        .says(&[&address, "hint:"]);
}
