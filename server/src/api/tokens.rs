//! `/tokenize`, `/detokenize` and `/tokenizer_info`: evaluation harnesses then need no tokenizer of
//! their own.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Json, Response};
use serde::Deserialize;
use serde_json::json;

use super::error::ApiError;
use super::http::{Api, Body, blocking};

#[derive(Deserialize)]
struct Text {
    prompt: String,
    add_special_tokens: Option<bool>,
}

#[derive(Deserialize)]
struct Ids {
    tokens: Vec<u32>,
}

pub(super) async fn tokenize(
    State(api): State<Arc<Api>>,
    request: Request,
) -> Result<Response, ApiError> {
    let text: Text = Body::read(&api, request).await?.json()?;
    let context = api.context;
    let special = text.add_special_tokens.unwrap_or(true);
    let ids = blocking(move || Ok(api.tokenizer.encode(&text.prompt, special)?)).await?;
    let answer = json!({ "count": ids.len(), "max_model_len": context, "tokens": ids });
    Ok(Json(answer).into_response())
}

pub(super) async fn detokenize(
    State(api): State<Arc<Api>>,
    request: Request,
) -> Result<Response, ApiError> {
    let ids: Ids = Body::read(&api, request).await?.json()?;
    api.check_ids("`tokens`", &ids.tokens)?;
    let text = blocking(move || Ok(api.tokenizer.decode(&ids.tokens, false)?)).await?;
    Ok(Json(json!({ "prompt": text })).into_response())
}

pub(super) async fn tokenizer_info(State(api): State<Arc<Api>>) -> Response {
    let special = api.tokenizer.special();
    let spelling = |id: Option<u32>| id.and_then(|id| api.tokenizer.token(id));
    let info = json!({
        "bos_token": spelling(special.bos),
        "eos_token": spelling(special.eos),
        "pad_token": spelling(special.pad.or(special.eos)),
        "chat_template": api.chat.as_ref().map(|chat| chat.source()),
        "vocab_size": api.tokenizer.vocab_size(),
        "max_model_len": api.context,
    });
    Json(info).into_response()
}
