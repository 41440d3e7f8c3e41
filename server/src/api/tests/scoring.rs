//! What the model says of prompts.

use serde_json::{Value, json};

use super::super::testing;
use super::{COMPLETIONS, is_near, numbers, scores, served};

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
