//! Several clients at once.

use std::time::{Duration, Instant};

use fedllm_models::generate::Sampling;
use serde_json::json;
use tokio::io::AsyncReadExt;

use super::super::Limits;
use super::super::testing::{Served, limits};
use super::super::worker::{Event, Question};
use super::{COMPLETIONS, served};
use crate::testing::PATIENCE;

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
    let running = served.api.worker().ask(long(8, 2000)).unwrap();
    let asked = json!({"prompt": "a", "max_tokens": 1});
    let (answer, ()) = tokio::join!(served.post(COMPLETIONS, &asked), async {
        tokio::time::sleep(Duration::from_millis(900)).await;
        drop(running);
    });
    assert_eq!(answer.status, 200, "{answer:?}");
}
