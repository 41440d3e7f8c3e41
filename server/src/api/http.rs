//! The routes, who may use them, and what they share.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::body::{Bytes, to_bytes};
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::header;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use data_encoding::HEXLOWER;
use fedllm_models::{ChatTemplate, Tokenizer};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedReceiver;

use super::connections::{Activity, Connections, Open};
use super::error::ApiError;
use super::fields::Fields;
use super::key::Key;
use super::limits::Limits;
use super::stream::stream;
use super::text::Pieces;
use super::worker::{Event, Worker};
use super::{chat, completions, tokens};
use crate::admin::is_loopback;

/// What the routes can reach.
pub(crate) struct Api {
    /// The base model's name, then the adapters' in the worker's order.
    names: Vec<String>,
    worker: Worker,
    pub(super) tokenizer: Tokenizer,
    pub(super) pieces: Pieces,
    pub(super) chat: Option<ChatTemplate>,
    /// Tokens that the model takes.
    pub(super) context: usize,
    pub(super) vocabulary: usize,
    pub(super) limits: Limits,
    key: Option<Key>,
    /// Seconds since 1970 when the models became available.
    since: u64,
}

/// What every answer begins with.
#[derive(Clone)]
pub(super) struct Head {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
}

/// A request's JSON, not yet read.
pub(super) struct Body(Bytes);

/// Serves until `stopped`, then lets what has begun end.
pub(crate) async fn serve(
    api: Arc<Api>,
    listener: TcpListener,
    stopped: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let connections = Connections::new(
        listener,
        api.limits.max_connections,
        api.limits.idle_timeout,
    );
    let router = Router::new()
        .route("/v1/models", get(list_models))
        .route("/v1/models/{name}", get(show_model))
        .route("/v1/completions", post(complete))
        .route("/v1/chat/completions", post(answer_chat))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/tokenizer_info", get(tokens::tokenizer_info))
        .fallback(no_route)
        .method_not_allowed_fallback(other_method)
        .layer(from_fn_with_state(api.clone(), only_clients))
        // Whoever watches the server needs no key.
        .route("/health", get(async || Json(json!({ "status": "ok" }))))
        .layer(from_fn_with_state(api.clone(), only_loopback))
        .layer(axum::middleware::from_fn(observe))
        .with_state(api);
    let service = router.into_make_service_with_connect_info::<Activity>();
    axum::serve(connections, service)
        .with_graceful_shutdown(stopped)
        .await
}

async fn list_models(State(api): State<Arc<Api>>) -> Response {
    let models: Vec<Value> = (0..api.names.len())
        .map(|index| api.describe(index))
        .collect();
    Json(json!({ "object": "list", "data": models })).into_response()
}

async fn show_model(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let adapter = api.model(Some(&name))?;
    Ok(Json(api.describe(adapter.map_or(0, |index| index + 1))).into_response())
}

async fn complete(State(api): State<Arc<Api>>, request: Request) -> Result<Response, ApiError> {
    let open = request.extensions().get::<Arc<Open>>().cloned();
    let fields: Fields = Body::read(&api, request).await?.json()?;
    let (shared, in_parts) = (api.clone(), fields.stream == Some(true));
    let (question, writer) = blocking(move || completions::prepare(shared, fields)).await?;
    let count = question.prompts.len();
    let answer = api.worker().ask(question)?;
    if in_parts {
        return Ok(stream(writer, answer, count, open));
    }
    let events = all_events(answer, count).await?;
    Ok(Json(blocking(move || writer.whole(events)).await?).into_response())
}

async fn answer_chat(State(api): State<Arc<Api>>, request: Request) -> Result<Response, ApiError> {
    let open = request.extensions().get::<Arc<Open>>().cloned();
    let fields: Fields = Body::read(&api, request).await?.json()?;
    let (shared, in_parts) = (api.clone(), fields.stream == Some(true));
    let (question, writer) = blocking(move || chat::prepare(shared, fields)).await?;
    let answer = api.worker().ask(question)?;
    if in_parts {
        return Ok(stream(writer, answer, 1, open));
    }
    let events = all_events(answer, 1).await?;
    Ok(Json(writer.whole(events)?).into_response())
}

async fn no_route(request: Request) -> ApiError {
    ApiError::NoRoute(request.uri().path().to_owned())
}

async fn other_method(request: Request) -> ApiError {
    ApiError::Method(request.method().to_string())
}

/// Everything that the model says to `prompts` prompts.
async fn all_events(
    mut answer: UnboundedReceiver<Event>,
    prompts: usize,
) -> Result<Vec<Event>, ApiError> {
    let (mut events, mut done) = (Vec::new(), 0);
    while let Some(event) = answer.recv().await {
        done += usize::from(matches!(event, Event::Done { .. }));
        let failed = matches!(event, Event::Failed(_));
        events.push(event);
        if done == prompts || failed {
            return Ok(events);
        }
    }
    Err(ApiError::Gone)
}

/// Does work that takes a while without holding up other requests.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(ApiError::Internal("the request failed".to_owned())))
}

/// Refuses whoever has not got the key, if there is one.
async fn only_clients(
    State(api): State<Arc<Api>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if let Some(key) = &api.key {
        let given = request.headers().get(header::AUTHORIZATION);
        let given = given.and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.strip_prefix("Bearer "));
        if !key.is(given.unwrap_or_default()) {
            return Err(ApiError::Unauthorized);
        }
    }
    Ok(next.run(request).await)
}

/// Without a key, a web page must not reach the server by a name of its own.
async fn only_loopback(
    State(api): State<Arc<Api>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let host = request.headers().get(header::HOST);
    let host = host.and_then(|host| host.to_str().ok());
    match api.key.is_some() || host.is_some_and(is_loopback) {
        true => Ok(next.run(request).await),
        false => Err(ApiError::ForeignHost),
    }
}

/// Tells the connection that it is in use, and the log what was asked: never its text.
async fn observe(
    ConnectInfo(activity): ConnectInfo<Activity>,
    mut request: Request,
    next: Next,
) -> Response {
    let open = Arc::new(activity.open());
    request.extensions_mut().insert(open.clone());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let started = Instant::now();
    let response = next.run(request).await;
    let status = response.status().as_u16();
    let milliseconds = started.elapsed().as_millis() as u64;
    tracing::info!(%method, path, status, milliseconds, "request");
    response
}

impl Body {
    /// Reads a body that says that it is JSON. Browsers ask first before they send that from a
    /// foreign page, and are refused.
    pub(super) async fn read(api: &Api, request: Request) -> Result<Self, ApiError> {
        let kind = request.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("application/json") {
            return Err(ApiError::NotJson);
        }
        let most = api.limits.max_body_bytes;
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        if length.is_some_and(|length: u64| length > most as u64) {
            return Err(ApiError::TooLarge(most));
        }
        let body = to_bytes(request.into_body(), most);
        match tokio::time::timeout(api.limits.idle_timeout, body).await {
            Ok(Ok(bytes)) => Ok(Self(bytes)),
            // It is either too large or the client has gone, who will not read this.
            Ok(Err(_)) => Err(ApiError::TooLarge(most)),
            Err(_) => Err(ApiError::TooSlow),
        }
    }

    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        let read = serde_json::from_slice(&self.0);
        read.map_err(|error| ApiError::Invalid(format!("the body cannot be read: {error}")))
    }
}

impl Api {
    /// An API over a model that `worker` has, under these names: the base's, then the adapters'.
    pub(crate) fn new(
        names: Vec<String>,
        worker: Worker,
        tokenizer: Tokenizer,
        chat: Option<ChatTemplate>,
        config: &fedllm_models::ModelConfig,
        limits: Limits,
        key: Option<Key>,
    ) -> Self {
        Self {
            names,
            worker,
            pieces: Pieces::new(tokenizer.clone()),
            tokenizer,
            chat,
            context: config.max_positions,
            vocabulary: config.vocab,
            limits,
            key,
            since: now(),
        }
    }

    /// Who answers.
    pub(super) fn worker(&self) -> &Worker {
        &self.worker
    }

    /// The base model's name, then the adapters'.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// Waits for a failure of the model.
    pub(crate) async fn failed(&self) {
        self.worker.failed().await;
    }

    /// The adapter that a request names; none is the base, also where nothing is named.
    pub(super) fn model(&self, name: Option<&str>) -> Result<Option<usize>, ApiError> {
        let Some(name) = name else { return Ok(None) };
        let names = || self.names.iter().map(String::as_str);
        match names().position(|known| known == name) {
            Some(index) => Ok(index.checked_sub(1)),
            None => Err(ApiError::UnknownModel {
                name: name.to_owned(),
                nearest: fedllm_shared::nearest(name, names()).to_owned(),
                known: self.names.join(", "),
            }),
        }
    }

    fn describe(&self, index: usize) -> Value {
        json!({
            "id": self.names[index],
            "object": "model",
            "created": self.since,
            "owned_by": "fedllm",
            "parent": (index > 0).then(|| &self.names[0]),
            "max_model_len": self.context,
        })
    }

    /// What an answer begins with.
    pub(super) fn head(
        &self,
        prefix: &str,
        object: &'static str,
        adapter: Option<usize>,
    ) -> Result<Head, ApiError> {
        let mut id = [0; 12];
        getrandom::fill(&mut id).map_err(|error| ApiError::Internal(error.to_string()))?;
        Ok(Head {
            id: format!("{prefix}-{}", HEXLOWER.encode(&id)),
            object,
            created: now(),
            model: self.names[adapter.map_or(0, |index| index + 1)].clone(),
        })
    }

    /// The ids of a text; what has none continues the beginning of a text.
    pub(super) fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, ApiError> {
        let mut ids = self.tokenizer.encode(text, add_special)?;
        if ids.is_empty() {
            ids.extend(self.tokenizer.bos().or(self.tokenizer.eos()));
        }
        Ok(ids)
    }
}

impl Head {
    /// An answer with these choices.
    pub(super) fn json(&self, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }

    /// How many tokens were read and written.
    pub(super) fn usage(read: usize, written: usize) -> Value {
        json!({
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        })
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or(Duration::ZERO).as_secs()
}
