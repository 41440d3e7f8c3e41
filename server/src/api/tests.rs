//! The endpoints over a real socket.

use std::time::{Duration, Instant};

use fedllm_models::generate::{Generator, Sampling};
use fedllm_models::{Batch, Lora};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use super::testing::{self, KEY, Served, limits};
use super::worker::{Event, Question};
use crate::testing::PATIENCE;

const COMPLETIONS: &str = "/v1/completions";
const CHATS: &str = "/v1/chat/completions";

async fn served() -> Served {
    Served::start(limits(), None).await
}

fn numbers(list: &Value) -> Vec<f64> {
    list.as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_f64().unwrap())
        .collect()
}

/// What the model itself says of the tokens from the second on, without a server.
fn scores(ids: &[u32], with_adapter: bool) -> Vec<f64> {
    let model = testing::model();
    let lora: Option<Lora> = with_adapter.then(|| testing::adapter(&model));
    let mut batch = Batch::default();
    batch.push(ids, |_| true);
    let scores = model.score(&batch, lora.as_ref()).into_iter();
    scores.map(|score| f64::from(score.log_prob)).collect()
}

fn is_near(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_echoed_prompt_carries_what_the_model_says_of_it() {
    let served = served().await;
    let prompts = [vec![70u32, 71, 72, 5, 90], vec![8, 9], vec![42]];
    // As EleutherAI's harness asks.
    let mut asked = json!({
        "model": "tiny", "prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1,
        "seed": 1234, "echo": true
    });
    let base = served.post(COMPLETIONS, &asked).await;
    assert_eq!(base.status, 200, "{base:?}");
    let base = base.json();
    assert_eq!(base["object"], "text_completion");
    assert_eq!(base["model"], "tiny");
    assert_eq!(
        base["usage"],
        json!({"prompt_tokens": 8, "completion_tokens": 3, "total_tokens": 11})
    );
    asked["model"] = json!("tuned");
    let tuned = served.post(COMPLETIONS, &asked).await.json();
    for (answer, with_adapter) in [(&base, false), (&tuned, true)] {
        for (index, prompt) in prompts.iter().enumerate() {
            let choice = &answer["choices"][index];
            assert_eq!(choice["index"], index);
            assert_eq!(choice["finish_reason"], "length");
            let log_probs = &choice["logprobs"];
            let lists = ["tokens", "token_logprobs", "top_logprobs", "text_offset"];
            for list in lists {
                assert_eq!(log_probs[list].as_array().unwrap().len(), prompt.len() + 1);
            }
            let said = log_probs["token_logprobs"].as_array().unwrap();
            assert!(said[0].is_null() && log_probs["top_logprobs"][0].is_null());
            let said = numbers(&json!(said[1..]));
            let expected = scores(prompt, with_adapter);
            assert!(
                is_near(&said[..prompt.len() - 1], &expected),
                "{said:?} {expected:?}"
            );
            for (place, own) in said.iter().enumerate() {
                let top = log_probs["top_logprobs"][place + 1].as_object().unwrap();
                let best = top
                    .values()
                    .map(|v| v.as_f64().unwrap())
                    .fold(f64::MIN, f64::max);
                // The token itself is in the list with the very same number.
                assert!(top.values().any(|v| v.as_f64() == Some(*own)));
                assert!(best >= *own);
                // The last one was chosen because it is the best.
                assert!(place + 1 < prompt.len() || best == *own);
            }
        }
    }
    let sums = |answer: &Value| {
        numbers(&json!(
            &answer["choices"][0]["logprobs"]["token_logprobs"]
                .as_array()
                .unwrap()[1..]
        ))
    };
    assert!(!is_near(&sums(&base), &sums(&tuned)), "the adapter is used");
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_are_scored_without_writing_anything() {
    let served = served().await;
    let asked = json!({"prompt": "<s>ab c", "max_tokens": 0, "logprobs": 3, "echo": true});
    let answer = served.post(COMPLETIONS, &asked).await.json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], "<s>ab c");
    assert_eq!(choice["finish_reason"], "length");
    let log_probs = &choice["logprobs"];
    assert_eq!(log_probs["tokens"], json!(["<s>", "a", "b", " ", "c"]));
    assert_eq!(log_probs["text_offset"], json!([0, 3, 4, 5, 6]));
    let ids = testing::tokenizer().encode("<s>ab c", true).unwrap();
    let said = log_probs["token_logprobs"].as_array().unwrap();
    assert!(is_near(&numbers(&json!(said[1..])), &scores(&ids, false)));
    let counts = log_probs["top_logprobs"].as_array().unwrap()[1..].iter();
    let counts: Vec<usize> = counts.map(|top| top.as_object().unwrap().len()).collect();
    assert!(
        counts.iter().all(|count| (3..=4).contains(count)),
        "{counts:?}"
    );
    assert_eq!(answer["usage"]["completion_tokens"], 0);
}

/// What greedy decoding writes, without a server.
fn written(prompt: &str, tokens: usize) -> String {
    let (model, tokenizer) = (testing::model(), testing::tokenizer());
    let prompt = tokenizer.encode(prompt, true).unwrap();
    let mut decoder = tokenizer.stream(true);
    let mut text = String::new();
    for token in Generator::new(&model, None, &prompt, Sampling::Greedy).take(tokens) {
        text.push_str(&decoder.push(token).unwrap());
    }
    text + &decoder.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_are_continued_up_to_a_stop() {
    let served = served().await;
    let whole = written("Once", 24);
    let asked = json!({"prompt": ["Once", "x"], "max_tokens": 24, "temperature": 0});
    let answer = served.post(COMPLETIONS, &asked).await.json();
    assert_eq!(answer["choices"][0]["text"], json!(whole));
    assert_eq!(answer["choices"][0]["logprobs"], Value::Null);
    assert_eq!(answer["choices"][1]["text"], json!(written("x", 24)));
    // Two characters from the middle.
    let (from, _) = whole.char_indices().nth(whole.chars().count() / 2).unwrap();
    let stop: String = whole[from..].chars().take(2).collect();
    let asked = json!({
        "prompt": "Once", "max_tokens": 24, "temperature": 0, "stop": ["never", stop],
        "logprobs": 0
    });
    let stopped = served.post(COMPLETIONS, &asked).await.json();
    let choice = &stopped["choices"][0];
    assert_eq!(choice["text"], json!(whole[..whole.find(&stop).unwrap()]));
    assert_eq!(choice["finish_reason"], "stop");
    let said = numbers(&choice["logprobs"]["token_logprobs"]);
    assert_eq!(json!(said.len()), stopped["usage"]["completion_tokens"]);
    // At random, but the same for the same seed.
    let asked = |seed: i64| json!({"prompt": "x", "max_tokens": 12, "top_p": 0.9, "seed": seed});
    let text = async |seed| {
        served.post(COMPLETIONS, &asked(seed)).await.json()["choices"][0]["text"].clone()
    };
    assert_eq!(text(5).await, text(5).await);
    assert_ne!(text(5).await, text(6).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_is_put_into_the_models_template() {
    let served = served().await;
    let messages = json!([
        {"role": "system", "content": "be"},
        {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}
    ]);
    let asked = json!({
        "model": "tiny", "messages": messages, "max_completion_tokens": 6, "temperature": 0,
        "logprobs": true, "top_logprobs": 2
    });
    let answer = served.post(CHATS, &asked).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    assert_eq!(answer["object"], "chat.completion");
    let choice = &answer["choices"][0];
    let expected = written("system: be\nuser: hi\na:", 6);
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["message"]["content"], json!(expected));
    assert_eq!(choice["finish_reason"], "length");
    let tokens = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(tokens.len(), 6);
    for token in tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 2);
        assert_eq!(top[0]["logprob"], token["logprob"]);
        assert_eq!(top[0]["token"], token["token"]);
    }
    let image = json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]});
    let refused = served.post(CHATS, &image).await;
    assert_eq!(refused.status, 400);
    assert!(refused.body.contains("image_url"), "{refused:?}");
}

/// The JSON of each event but the last, which says that there are no more.
fn parts(body: &str) -> Vec<Value> {
    let events = body.strip_suffix("data: [DONE]\n\n").unwrap();
    let events = events.split_terminator("\n\n");
    let json = events.map(|event| event.strip_prefix("data: ").unwrap());
    json.map(|json| serde_json::from_str(json).unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_come_in_parts_and_end_with_done() {
    let served = served().await;
    let mut asked = json!({
        "prompt": ["Once", "x"], "max_tokens": 9, "temperature": 0, "logprobs": 1, "echo": true
    });
    let whole = served.post(COMPLETIONS, &asked).await.json();
    asked["stream"] = json!(true);
    asked["stream_options"] = json!({"include_usage": true});
    let answer = served.post(COMPLETIONS, &asked).await;
    let head = answer.head.to_ascii_lowercase();
    assert!(head.contains("content-type: text/event-stream"), "{head}");
    let mut parts = parts(&answer.body);
    let usage = parts.pop().unwrap();
    assert_eq!(
        (&usage["usage"], &usage["choices"]),
        (&whole["usage"], &json!([]))
    );
    for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        let of_choice = parts.iter().map(|part| &part["choices"][0]);
        let of_choice: Vec<_> = of_choice.filter(|part| part["index"] == index).collect();
        assert!(of_choice.len() > 2);
        let text: String = of_choice
            .iter()
            .map(|part| part["text"].as_str().unwrap())
            .collect();
        assert_eq!(json!(text), choice["text"]);
        for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let lists = of_choice
                .iter()
                .filter_map(|part| part["logprobs"][list].as_array());
            let all: Vec<Value> = lists.flatten().cloned().collect();
            assert_eq!(json!(all), choice["logprobs"][list], "{list}");
        }
        assert_eq!(of_choice.last().unwrap()["finish_reason"], "length");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_comes_in_parts() {
    let served = served().await;
    let asked = json!({
        "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "temperature": 0,
        "stream": true
    });
    let parts = parts(&served.post(CHATS, &asked).await.body);
    assert!(
        parts
            .iter()
            .all(|part| part["object"] == "chat.completion.chunk")
    );
    let deltas: Vec<_> = parts
        .iter()
        .map(|part| &part["choices"][0]["delta"])
        .collect();
    assert_eq!(deltas[0]["role"], "assistant");
    let text: String = deltas
        .iter()
        .filter_map(|delta| delta["content"].as_str())
        .collect();
    assert_eq!(text, written("user: hi\na:", 8));
    let reasons = parts
        .iter()
        .map(|part| &part["choices"][0]["finish_reason"]);
    let reasons: Vec<_> = reasons.filter(|reason| !reason.is_null()).collect();
    assert_eq!(reasons, ["length"]);
    // A refusal is an ordinary answer, in parts or not.
    let refused = json!({"messages": [{"role": "user", "content": "hi"}], "n": 2, "stream": true});
    assert_eq!(served.post(CHATS, &refused).await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn harnesses_find_models_and_tokenizer() {
    let served = served().await;
    let models = served.get("/v1/models").await.json();
    assert_eq!(models["object"], "list");
    let names = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| &model["id"]);
    assert_eq!(names.collect::<Vec<_>>(), ["tiny", "tuned"]);
    let tuned = served.get("/v1/models/tuned").await.json();
    assert_eq!(tuned["parent"], "tiny");
    let info = served.get("/tokenizer_info").await.json();
    assert_eq!(info["bos_token"], "<s>");
    assert_eq!(info["eos_token"], Value::Null);
    assert!(info["chat_template"].as_str().unwrap().contains("messages"));
    let text = "na\u{ef}ve <s> b";
    let tokens = served
        .post(
            "/tokenize",
            &json!({"prompt": text, "add_special_tokens": false}),
        )
        .await
        .json();
    let ids = testing::tokenizer().encode(text, false).unwrap();
    assert_eq!(tokens["tokens"], json!(ids));
    assert_eq!(tokens["count"], ids.len());
    let back = served
        .post("/detokenize", &json!({"tokens": ids}))
        .await
        .json();
    assert_eq!(back["prompt"], text);
    assert_eq!(served.get("/health").await.json()["status"], "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_answered_is_refused_with_its_reason() {
    let served = served().await;
    let long = vec![5u32; 8193];
    for (path, body, status, code, says) in [
        (
            COMPLETIONS,
            json!({"prompt": long}),
            400,
            "context_length_exceeded",
            "8193 tokens",
        ),
        (
            COMPLETIONS,
            json!({"model": "tunde", "prompt": "a"}),
            404,
            "model_not_found",
            "`tuned`",
        ),
        (
            COMPLETIONS,
            json!({"prompt": "a", "n": 2}),
            400,
            "unsupported_parameter",
            "`n`",
        ),
        (
            CHATS,
            json!({"messages": [], "tools": [{}]}),
            400,
            "unsupported_parameter",
            "`tools`",
        ),
        (
            COMPLETIONS,
            json!({"prompt": [3, 384]}),
            400,
            "invalid_value",
            "384 at place 1",
        ),
        (
            COMPLETIONS,
            json!({"prompt": [[]]}),
            400,
            "invalid_value",
            "no token",
        ),
        (
            COMPLETIONS,
            json!({"prompt": []}),
            400,
            "invalid_value",
            "empty list",
        ),
        (
            COMPLETIONS,
            json!({"prompt": vec!["a"; 9]}),
            400,
            "invalid_value",
            "9 prompts",
        ),
        (
            COMPLETIONS,
            json!({"prompt": vec!["a"; 8], "max_tokens": 5000}),
            400,
            "invalid_value",
            "40008 tokens",
        ),
        (
            COMPLETIONS,
            json!({"messages": []}),
            400,
            "invalid_value",
            CHATS,
        ),
        (
            CHATS,
            json!({"prompt": "a"}),
            400,
            "invalid_value",
            COMPLETIONS,
        ),
        (
            CHATS,
            json!({"messages": []}),
            400,
            "invalid_value",
            "`messages` is required",
        ),
        (
            "/detokenize",
            json!({"tokens": [384]}),
            400,
            "invalid_value",
            "384",
        ),
        (
            "/v1/embeddings",
            json!({}),
            404,
            "not_found",
            "/v1/embeddings",
        ),
        ("/v1/models", json!({}), 405, "method_not_allowed", "POST"),
    ] {
        let refused = served.post(path, &body).await;
        let error = &refused.json()["error"];
        assert_eq!(
            (refused.status, &error["code"]),
            (status, &json!(code)),
            "{refused:?}"
        );
        assert!(
            error["message"].as_str().unwrap().contains(says),
            "{says}: {error}"
        );
        assert!(error["type"].is_string());
    }
    for (body, says) in [
        ("{\"prompt\": ", "EOF"),
        ("{\"prompt\": 7}", "a list of texts"),
        ("", "EOF"),
    ] {
        let refused = served
            .post_text(COMPLETIONS, "Host: localhost\r\n", body)
            .await;
        assert_eq!(refused.status, 400);
        assert!(refused.body.contains(says), "{refused:?}");
    }
    let large = served
        .post(COMPLETIONS, &json!({"prompt": "a".repeat(100_000)}))
        .await;
    assert_eq!(large.status, 413, "{large:?}");
    assert_eq!(large.json()["error"]["code"], "request_too_large");
    let form =
        format!("POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n");
    assert_eq!(served.send(&form, "{}").await.status, 415);
    let foreign = served
        .post_text(COMPLETIONS, "Host: evil.example\r\n", "{}")
        .await;
    assert_eq!(foreign.status, 403, "{foreign:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_asked_for_wherever_something_can_be_learned() {
    let served = Served::start(limits(), Some(KEY)).await;
    let ask = async |key: &str| {
        let headers = format!("Host: evil.example\r\n{key}");
        served
            .post_text(COMPLETIONS, &headers, r#"{"prompt": "a", "max_tokens": 1}"#)
            .await
    };
    assert_eq!(
        ask(&format!("Authorization: Bearer {KEY}\r\n"))
            .await
            .status,
        200
    );
    for wrong in [
        String::new(),
        "Authorization: Bearer \r\n".to_owned(),
        format!("Authorization: Bearer {}\r\n", &KEY[1..]),
        format!("Authorization: Basic {KEY}\r\n"),
    ] {
        let refused = ask(&wrong).await;
        assert_eq!(refused.status, 401, "{wrong}: {refused:?}");
        assert_eq!(refused.json()["error"]["code"], "invalid_api_key");
    }
    for path in ["/v1/models", "/tokenizer_info", "/nowhere"] {
        assert_eq!(served.get(path).await.status, 401, "{path}");
    }
    assert_eq!(served.get("/health").await.status, 200);
}

/// A question that takes a while: so many prompts with so many tokens to write.
fn long(prompts: usize, max_tokens: usize) -> Question {
    Question {
        adapter: None,
        prompts: vec![vec![7, 8]; prompts],
        score_prompts: false,
        top: None,
        max_tokens,
        sampling: Sampling::Greedy,
        stops: Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_says_when_to_come_again() {
    let limits = super::Limits {
        max_queue: 1,
        ..limits()
    };
    let served = Served::start(limits, None).await;
    let mut running = served.api.worker().ask(long(8, 2000)).unwrap();
    assert!(matches!(running.recv().await, Some(Event::Token { .. })));
    let waiting = served.api.worker().ask(long(1, 2)).unwrap();
    let refused = served.post(COMPLETIONS, &json!({"prompt": "a"})).await;
    assert_eq!(refused.status, 429, "{refused:?}");
    assert!(
        refused.head.to_ascii_lowercase().contains("retry-after: "),
        "{refused:?}"
    );
    assert_eq!(refused.json()["error"]["code"], "queue_full");
    drop((running, waiting));
    // Nobody wants these answers any more, so there is room soon.
    let started = Instant::now();
    while served
        .post(COMPLETIONS, &json!({"prompt": "a"}))
        .await
        .status
        != 200
    {
        assert!(started.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_stops_its_generation() {
    let served = served().await;
    let finish = async |question: Question| {
        let started = Instant::now();
        let mut answer = served.api.worker().ask(question).unwrap();
        while !matches!(answer.recv().await, Some(Event::Done { .. })) {}
        started.elapsed()
    };
    let one = finish(long(1, 500)).await;
    let head = format!(
        "POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    );
    let body = json!({"prompt": vec!["ab"; 8], "max_tokens": 2000, "temperature": 0}).to_string();
    let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    let mut stream = served.connect().await;
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes())
        .await
        .unwrap();
    // It is in the queue or out of it by then.
    tokio::time::sleep(one / 4).await;
    drop(stream);
    // What is left of 16000 tokens takes more than thirty times as long as these 500.
    let after = finish(long(1, 1)).await;
    assert!(
        after < one * 8,
        "{after:?} after a client that hung up, {one:?} for 500 tokens"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_bounded_and_idle_ones_closed() {
    let limits = super::Limits {
        max_connections: 1,
        idle_timeout: Duration::from_millis(300),
        ..limits()
    };
    let served = Served::start(limits, None).await;
    let started = Instant::now();
    let mut idle = served.connect().await;
    // Waits until the idle one is closed.
    let answer = served.get("/health").await;
    assert_eq!(answer.status, 200);
    assert!(
        started.elapsed() >= Duration::from_millis(250),
        "{:?}",
        started.elapsed()
    );
    let closed = tokio::time::timeout(PATIENCE, idle.read(&mut [0; 1]))
        .await
        .unwrap();
    assert!(matches!(closed, Ok(0) | Err(_)));
    // A request may wait for longer than a connection may be idle.
    let running = served.api.worker().ask(long(8, 2000)).unwrap();
    let asked = json!({"prompt": "a", "max_tokens": 1});
    let (answer, ()) = tokio::join!(served.post(COMPLETIONS, &asked), async {
        tokio::time::sleep(Duration::from_millis(900)).await;
        drop(running);
    });
    assert_eq!(answer.status, 200, "{answer:?}");
}
