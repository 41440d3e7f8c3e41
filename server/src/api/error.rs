//! Refusals, as OpenAI's clients expect them.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use fedllm_models::TokenizerError;
use serde_json::{Value, json};
use thiserror::Error;

/// Seconds after which a client that found the queue full should try again.
const RETRY_SECONDS: u64 = 5;

/// Why a request is not answered. The text is for the client and may quote it; it is never logged.
#[derive(Debug, Error)]
pub(super) enum ApiError {
    /// Something in the request is wrong.
    #[error("{0}")]
    Invalid(String),
    /// A field asks for what this server does not do.
    #[error("`{field}` is not supported: {reason}")]
    Unsupported {
        field: &'static str,
        reason: &'static str,
    },
    /// A prompt has more tokens than the model takes.
    #[error(
        "prompt {index} has {tokens} tokens, but this model's context has {context}; shorten it, \
         nothing is left out in silence"
    )]
    TooLong {
        index: usize,
        tokens: usize,
        context: usize,
    },
    /// There is no such model.
    #[error("no model is called `{name}`; is `{nearest}` meant? There are: {known}")]
    UnknownModel {
        name: String,
        nearest: String,
        known: String,
    },
    /// There is no such route.
    #[error(
        "there is no {0}; GET /v1/models, POST /v1/completions and /v1/chat/completions are there"
    )]
    NoRoute(String),
    /// The route takes another method.
    #[error("{0} is not how this is asked for")]
    Method(String),
    /// The key is absent or wrong.
    #[error("this server needs its API key, as `Authorization: Bearer KEY`")]
    Unauthorized,
    /// The request was sent to another host.
    #[error("without a key only requests to a loopback address are answered")]
    ForeignHost,
    /// The body is no JSON by its own account.
    #[error("the body must be JSON, with `Content-Type: application/json`")]
    NotJson,
    /// The body is too large.
    #[error("the request has more than {0} bytes")]
    TooLarge(usize),
    /// The body did not come.
    #[error("the request did not come in time")]
    TooSlow,
    /// Too many wait already.
    #[error("too many requests wait for the model; try again in {RETRY_SECONDS} seconds")]
    QueueFull,
    /// The model's thread has ended.
    #[error("the model has failed and the server is stopping")]
    Gone,
    /// A text cannot become tokens, or tokens no text.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Something of ours failed.
    #[error("{0}")]
    Internal(String),
}

impl ApiError {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Invalid(_)
            | Self::Unsupported { .. }
            | Self::TooLong { .. }
            | Self::Tokenizer(_) => StatusCode::BAD_REQUEST,
            Self::UnknownModel { .. } | Self::NoRoute(_) => StatusCode::NOT_FOUND,
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::ForeignHost => StatusCode::FORBIDDEN,
            Self::NotJson => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::QueueFull => StatusCode::TOO_MANY_REQUESTS,
            Self::Gone => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) | Self::Tokenizer(_) => "invalid_value",
            Self::Unsupported { .. } => "unsupported_parameter",
            Self::TooLong { .. } => "context_length_exceeded",
            Self::UnknownModel { .. } => "model_not_found",
            Self::NoRoute(_) => "not_found",
            Self::Method(_) => "method_not_allowed",
            Self::Unauthorized => "invalid_api_key",
            Self::ForeignHost => "forbidden_host",
            Self::NotJson => "unsupported_media_type",
            Self::TooLarge(_) => "request_too_large",
            Self::TooSlow => "request_timeout",
            Self::QueueFull => "queue_full",
            Self::Gone | Self::Internal(_) => "internal_error",
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Unauthorized => "authentication_error",
            Self::QueueFull => "rate_limit_error",
            Self::Gone | Self::Internal(_) => "server_error",
            _ => "invalid_request_error",
        }
    }

    pub(super) fn body(&self) -> Value {
        json!({ "error": {
            "message": self.to_string(),
            "type": self.kind(),
            "param": null,
            "code": self.code(),
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), Json(self.body())).into_response();
        let headers = response.headers_mut();
        match self {
            Self::QueueFull => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_SECONDS));
            }
            Self::Unauthorized => {
                let scheme = HeaderValue::from_static("Bearer");
                headers.insert(header::WWW_AUTHENTICATE, scheme);
            }
            _ => {}
        }
        response
    }
}
