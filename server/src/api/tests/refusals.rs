//! What is answered without the model: what there is, and why a request is refused.

use serde_json::{Value, json};

use super::super::testing::{self, KEY, Served, limits};
use super::{CHATS, COMPLETIONS, served};

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
