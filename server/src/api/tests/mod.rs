//! The endpoints over a real socket.

mod company;
mod refusals;
mod scoring;
mod writing;

use fedllm_models::generate::{Generator, Sampling};
use fedllm_models::{Batch, Lora};
use serde_json::Value;

use super::testing::{self, Served, limits};

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
