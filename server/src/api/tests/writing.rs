//! Texts and chats that are continued, whole and in parts.

use serde_json::{Value, json};

use super::{CHATS, COMPLETIONS, numbers, served, written};

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
