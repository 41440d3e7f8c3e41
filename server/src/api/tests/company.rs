//! Several clients at once.

use std::time::{Duration, Instant};

use fedllm_models::generate::Sampling;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc::UnboundedReceiver;

use super::super::Limits;
use super::super::testing::{Served, limits};
use super::super::worker::{Event, Question};
use super::{COMPLETIONS, is_near, numbers, served};
use crate::testing::PATIENCE;

/// Whether every prompt is done by now.
fn is_done(answer: &mut UnboundedReceiver<Event>, prompts: usize) -> bool {
    let events = std::iter::from_fn(|| answer.try_recv().ok());
    let done = events.filter(|event| matches!(event, Event::Done { .. }));
    done.count() == prompts
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_request_does_not_wait_for_a_long_one() {
    let served = served().await;
    let mut long_one = served.api.worker().ask(long(4, 8000)).unwrap();
    assert!(matches!(long_one.recv().await, Some(Event::Token { .. })));
    let written = json!({"prompt": "Once", "max_tokens": 5, "temperature": 0});
    let scored = json!({"prompt": "Once", "max_tokens": 0, "logprobs": 1, "echo": true});
    for mut asked in [written, scored] {
        for model in ["tiny", "tuned"] {
            asked["model"] = json!(model);
            let answer = served.post(COMPLETIONS, &asked).await;
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    }
    assert!(!is_done(&mut long_one, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_many_prompts_leaves_others_their_turn() {
    let served = served().await;
    let mut many = served.api.worker().ask(long(40, 300)).unwrap();
    assert!(matches!(many.recv().await, Some(Event::Token { .. })));
    let mut one = served.api.worker().ask(long(1, 300)).unwrap();
    while !matches!(one.recv().await, Some(Event::Done { .. })) {}
    assert!(!is_done(&mut many, 40));
}

/// What a request is answered, without what differs each time.
async fn choices(served: &Served, asked: &Value) -> Value {
    let answer = served.post(COMPLETIONS, asked).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["choices"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_does_not_depend_on_other_requests() {
    let served = served().await;
    let beginning = "A tale that begins as others do, and goes on for a while. ";
    let kinds = [
        ("tiny", 30, 0.0, false),
        ("tuned", 1, 0.0, true),
        ("tiny", 8, 0.8, true),
        ("tuned", 0, 0.0, true),
    ];
    let asked = kinds.map(|(model, max_tokens, temperature, echo)| {
        json!({
            "model": model, "max_tokens": max_tokens, "temperature": temperature, "echo": echo,
            "prompt": [format!("{beginning}{max_tokens}"), "x", beginning], "seed": 3, "logprobs": 2
        })
    });
    let mut alone = Vec::new();
    for asked in &asked {
        alone.push(choices(&served, asked).await);
    }
    let mut others = served.api.worker().ask(long(3, 8000)).unwrap();
    assert!(matches!(others.recv().await, Some(Event::Token { .. })));
    let [a, b, c, d] = [0, 1, 2, 3].map(|number| choices(&served, &asked[number]));
    let (a, b, c, d) = tokio::join!(a, b, c, d);
    drop(others);
    for (together, alone) in [a, b, c, d].iter().zip(&alone) {
        for index in 0..3 {
            let (together, alone) = (&together[index], &alone[index]);
            assert_eq!(together["text"], alone["text"]);
            assert_eq!(together["finish_reason"], alone["finish_reason"]);
            let said = |choice: &Value| {
                let said = choice["logprobs"]["token_logprobs"].as_array().unwrap();
                let known = said.iter().filter(|said| !said.is_null());
                numbers(&known.cloned().collect())
            };
            assert!(is_near(&said(together), &said(alone)));
        }
    }
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
    let limits = Limits {
        max_queue: 1,
        ..limits()
    };
    let served = Served::start(limits, None).await;
    let mut running = served.api.worker().ask(long(8, 8000)).unwrap();
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
    // It has all the places of texts, and what is left of its 2000 passes takes four times as long as
    // these 500.
    let after = finish(long(1, 2)).await;
    assert!(
        after < one * 3,
        "{after:?} after a client that hung up, {one:?} for 500 tokens"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_bounded_and_idle_ones_closed() {
    let limits = Limits {
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
    let running = served.api.worker().ask(long(8, 8000)).unwrap();
    let asked = json!({"prompt": "a", "max_tokens": 1});
    let (answer, ()) = tokio::join!(served.post(COMPLETIONS, &asked), async {
        tokio::time::sleep(Duration::from_millis(900)).await;
        drop(running);
    });
    assert_eq!(answer.status, 200, "{answer:?}");
}
