//! A tiny model behind a real socket, for tests only, and a client that can also misbehave.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use burn::tensor::Device;
use fedllm_models::{BasePrecision, CausalLm, ChatTemplate, Lora, Tokenizer, lora, shape};
use fedllm_shared::{Adapter, Factors, LoraSpec, Targets};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{Api, Key, Limits, Model, Worker, serve};
use crate::testing::PATIENCE;

pub(super) const KEY: &str = "0123456789abcdef0123456789abcdef";

const TEMPLATE: &str = "{% for message in messages %}{{ message['role'] + ': ' \
    + message['content'] + '\\n' }}{% endfor %}{% if add_generation_prompt %}a:{% endif %}";

/// Spells bytes, but for two special tokens; no token ends a text, so that answers are long.
pub(super) fn tokenizer() -> Tokenizer {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokenizer.json");
    std::fs::write(&path, tokenizer_json()).unwrap();
    Tokenizer::from_file(&path, Some("<s>"), None).unwrap()
}

fn tokenizer_json() -> String {
    let special = ["<s>", "</s>"];
    let bytes = (0..=255u8).map(|byte| byte_char(byte).to_string());
    let all = special.into_iter().map(str::to_owned).chain(bytes);
    let vocabulary: serde_json::Map<String, Value> = all
        .zip(0u32..)
        .map(|(token, id)| (token, id.into()))
        .collect();
    let added = special.iter().zip(0u32..).map(|(token, id)| {
        json!({
            "id": id, "content": token, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true
        })
    });
    let level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null, "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocabulary, "merges": [],
        },
    })
    .to_string()
}

/// The character that stands for a byte in byte-level vocabularies.
fn byte_char(byte: u8) -> char {
    let visible = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if visible(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !visible(*b)).count() as u32;
    char::from_u32(0x100 + before).unwrap()
}

/// A model that is always the same.
pub(super) fn model() -> CausalLm {
    let config = shape("tiny").unwrap();
    CausalLm::random(&config, BasePrecision::F32, &Device::flex()).unwrap()
}

/// An adapter that changes what it says.
pub(super) fn adapter(model: &CausalLm) -> Lora {
    let spec = LoraSpec {
        rank: 2,
        alpha: 8.0,
        dropout: 0.0,
        rslora: false,
        targets: Targets::ALL,
        seed: 0,
        train: Factors::Both,
    };
    let layout = Arc::new(lora::layout(model.config(), &spec).unwrap());
    let values = (0..layout.len()).map(|i| ((i * 37 % 101) as f32 - 50.0) / 150.0);
    let adapter = Adapter::new(layout.clone(), values.collect()).unwrap();
    Lora::new(model.config(), &spec, &adapter, model.device()).unwrap()
}

pub(super) fn limits() -> Limits {
    Limits {
        max_tokens_per_request: 20_000,
        max_prompts: 8,
        max_body_bytes: 100_000,
        max_queue: 4,
        max_cache_mib: 64,
        max_connections: 16,
        idle_timeout: Duration::from_secs(20),
    }
}

/// A server with the base `tiny` and the adapter `tuned`.
pub(super) struct Served {
    pub(super) api: Arc<Api>,
    address: SocketAddr,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

impl Served {
    pub(super) async fn start(limits: Limits, key: Option<&str>) -> Self {
        let base = model();
        let config = base.config().clone();
        let model = Model {
            adapters: vec![adapter(&base)],
            base,
            tokenizer: tokenizer(),
        };
        let cache_bytes = limits.max_cache_mib << 20;
        let (worker, _) = Worker::start(model, limits.max_queue, cache_bytes).unwrap();
        let names = vec!["tiny".to_owned(), "tuned".to_owned()];
        let chat = ChatTemplate::new(TEMPLATE, "<s>", "</s>").unwrap();
        let key = key.map(|key| Key::new(key, "a test").ok().unwrap());
        let api = Api::new(names, worker, tokenizer(), Some(chat), &config, limits, key);
        let api = Arc::new(api);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(api.clone(), listener, std::future::pending()));
        Self { api, address }
    }

    pub(super) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n"), "")
            .await
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_text(path, "Host: localhost\r\n", &body.to_string())
            .await
    }

    pub(super) async fn post_text(&self, path: &str, headers: &str, body: &str) -> Answer {
        let kind = "Content-Type: application/json; charset=utf-8\r\n";
        self.send(&format!("POST {path} HTTP/1.1\r\n{headers}{kind}"), body)
            .await
    }

    /// Sends a request and reads until the server closes the connection.
    pub(super) async fn send(&self, head: &str, body: &str) -> Answer {
        let mut stream = self.connect().await;
        let length = body.len();
        let request = format!("{head}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}");
        // A refused body is not read to its end.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
        let _ = read.unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = match head
            .to_ascii_lowercase()
            .contains("transfer-encoding: chunked")
        {
            true => unchunked(body),
            false => body.to_owned(),
        };
        Answer {
            status,
            head: head.to_owned(),
            body,
        }
    }
}

fn unchunked(mut rest: &str) -> String {
    let mut text = String::new();
    while let Some((length, after)) = rest.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        text.push_str(&after[..length]);
        rest = after[length..].trim_start_matches("\r\n");
    }
    text
}
