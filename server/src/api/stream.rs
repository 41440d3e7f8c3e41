//! Answers in parts, as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;

use super::connections::Open;
use super::error::ApiError;
use super::worker::Event;

/// Makes the parts of one answer.
pub(super) trait Parts: Send + Unpin + 'static {
    /// What comes before the first event.
    fn first(&mut self) -> Option<Value>;

    /// What an event adds; nothing if it adds nothing.
    fn next(&mut self, event: Event) -> Result<Option<Value>, ApiError>;

    /// What comes after the last one.
    fn last(&mut self) -> Option<Value>;
}

/// The answer to `prompts` prompts, part by part as the model says it. The connection is in use
/// until it ends.
pub(super) fn stream(
    mut parts: impl Parts,
    events: UnboundedReceiver<Event>,
    prompts: usize,
    open: Option<Arc<Open>>,
) -> Response {
    let lines = parts.first().iter().map(line).collect();
    let lines = Lines {
        parts,
        events,
        left: prompts,
        lines,
        _open: open,
    };
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, Body::from_stream(lines)).into_response()
}

struct Lines<P> {
    parts: P,
    events: UnboundedReceiver<Event>,
    /// Prompts that are not done.
    left: usize,
    /// What is to be sent.
    lines: VecDeque<String>,
    _open: Option<Arc<Open>>,
}

impl<P: Parts> Lines<P> {
    fn take(&mut self, event: Option<Event>) {
        let done = matches!(event, Some(Event::Done { .. }));
        let part = match event {
            Some(event) => self.parts.next(event),
            None => Err(ApiError::Gone),
        };
        match part {
            Ok(part) => self.lines.extend(part.iter().map(line)),
            Err(error) => {
                self.lines.push_back(line(&error.body()));
                self.left = 0;
                return;
            }
        }
        self.left -= usize::from(done);
        if self.left == 0 {
            self.lines.extend(self.parts.last().iter().map(line));
            self.lines.push_back("data: [DONE]\n\n".to_owned());
        }
    }
}

impl<P: Parts> Stream for Lines<P> {
    type Item = Result<String, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Poll::Ready(Some(Ok(line)));
            }
            if self.left == 0 {
                return Poll::Ready(None);
            }
            let event = ready!(self.events.poll_recv(context));
            self.take(event);
        }
    }
}

/// An event; JSON has no line end of its own.
fn line(part: &Value) -> String {
    format!("data: {part}\n\n")
}
