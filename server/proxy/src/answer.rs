//! Answers to clients: whole ones, streams, and errors in the form that the API's clients expect.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use crate::relay::Relay;

/// An answer.
pub type Answer = Response<AnswerBody>;

/// Its body.
#[derive(Debug)]
pub enum AnswerBody {
    /// Known from the start.
    Whole(Bytes),
    /// Passed on as it comes.
    Stream(Box<Relay>),
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(std::mem::take(bytes))),
            Self::Stream(relay) => relay.poll_next(context),
        };
        next.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// An answer of that type.
pub fn whole(status: StatusCode, content_type: HeaderValue, body: Bytes) -> Answer {
    let mut answer = Response::new(AnswerBody::Whole(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, content_type);
    answer
}

/// A JSON answer.
pub fn json(status: StatusCode, value: &Value) -> Answer {
    whole(
        status,
        HeaderValue::from_static("application/json"),
        Bytes::from(value.to_string()),
    )
}

/// A text answer.
pub fn text(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    whole(status, HeaderValue::from_static(content_type), Bytes::from(body))
}

/// An error.
pub fn error(status: StatusCode, message: &str) -> Answer {
    json(status, &error_value(status, message))
}

/// What an error says, in an answer of its own or as an event of a stream.
pub fn error_value(status: StatusCode, message: &str) -> Value {
    let kind = if status.is_client_error() {
        "invalid_request_error"
    } else {
        "upstream_error"
    };
    json!({"error": {"message": message, "type": kind, "param": null, "code": status.as_u16()}})
}
