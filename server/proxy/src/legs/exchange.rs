//! One request to one instance, with an answer that is read whole.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{StatusCode, http::response};
use tokio::time::timeout;

use super::Failure;
use crate::instance::{Instance, Lease, Received, SendError, Upstream};

/// The largest answer that is read whole.
pub const MAX_ANSWER_BYTES: usize = 64 << 20;

/// An answer that was read whole.
#[derive(Debug)]
pub struct Whole {
    /// The status.
    pub status: StatusCode,
    /// The type of the body.
    pub content_type: HeaderValue,
    /// The body.
    pub body: Bytes,
}

/// What went wrong with a try, and what follows from it.
#[derive(Debug)]
pub struct Trouble {
    /// What the client is told if this was the last try.
    pub failure: Failure,
    /// Why, in a word for the metrics.
    pub reason: &'static str,
    /// Why, in full, for the log.
    pub detail: String,
    /// Whose trouble.
    pub instance: Option<String>,
    /// Whether another try may help.
    pub retry: bool,
    /// Whether the instance may have begun.
    pub seen: bool,
    /// What it says of the instance.
    pub verdict: Verdict,
}

/// What trouble says of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: it's busy, or the request is to blame.
    None,
    /// It failed.
    Failed,
    /// It can't be reached.
    Unreachable,
}

impl Trouble {
    /// Trouble with an instance that another may not have.
    pub fn at(
        instance: &Arc<Instance>,
        status: StatusCode,
        reason: &'static str,
        message: &str,
        detail: impl Display,
    ) -> Self {
        Self {
            failure: Failure::unable(status, format!("the {} instance {message}", instance.role.name())),
            reason,
            detail: detail.to_string(),
            instance: Some(instance.name.clone()),
            retry: true,
            seen: true,
            verdict: Verdict::Failed,
        }
    }

    /// There is nobody to try.
    pub fn nobody(failure: Failure) -> Self {
        Self {
            failure,
            reason: "nobody",
            detail: String::new(),
            instance: None,
            retry: false,
            seen: false,
            verdict: Verdict::None,
        }
    }

    /// The instance didn't answer in time.
    pub fn late(instance: &Arc<Instance>, limit: Duration) -> Self {
        Self::at(
            instance,
            StatusCode::GATEWAY_TIMEOUT,
            "timeout",
            "did not answer in time",
            format_args!("limit {} ms", limit.as_millis()),
        )
    }

    /// The connection failed.
    pub fn connection(instance: &Arc<Instance>, error: SendError) -> Self {
        let (reason, message, verdict) = if error.unreachable {
            ("connect", "can't be reached", Verdict::Unreachable)
        } else {
            ("broken", "broke the connection", Verdict::Failed)
        };
        Self {
            seen: error.seen,
            verdict,
            ..Self::at(instance, StatusCode::BAD_GATEWAY, reason, message, error)
        }
    }

    /// The instance answered with a status that isn't success.
    pub fn status(instance: &Arc<Instance>, whole: Whole) -> Self {
        let status = whole.status;
        let detail = String::from_utf8_lossy(whole.body.get(..200).unwrap_or(&whole.body)).into_owned();
        let is_busy = matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        );
        if is_busy {
            return Self {
                verdict: Verdict::None,
                ..Self::at(instance, status, "busy", "is busy", detail)
            };
        }
        if status.is_client_error() && status != StatusCode::REQUEST_TIMEOUT {
            return Self {
                failure: Failure::Refused(Box::new(whole)),
                retry: false,
                verdict: Verdict::None,
                ..Self::at(instance, status, "refused", "refused the request", detail)
            };
        }
        Self::at(
            instance,
            StatusCode::BAD_GATEWAY,
            "status",
            "failed",
            format_args!("status {status}: {detail}"),
        )
    }
}

/// Sends a request and reads the whole answer, all within `limit`. A status that isn't success is trouble.
pub async fn exchange(
    instance: &Arc<Instance>,
    upstream: &Upstream,
    limit: Duration,
) -> Result<Whole, Trouble> {
    let whole = timeout(limit, async {
        let Received { head, body, lease } = instance
            .pool
            .send(upstream)
            .await
            .map_err(|error| Trouble::connection(instance, error))?;
        read_whole(instance, &head, body, lease).await
    })
    .await
    .map_err(|_| Trouble::late(instance, limit))??;
    if whole.status.is_success() {
        Ok(whole)
    } else {
        Err(Trouble::status(instance, whole))
    }
}

/// Reads an answer to its end and gives the connection back.
pub async fn read_whole(
    instance: &Arc<Instance>,
    head: &response::Parts,
    mut body: Incoming,
    lease: Lease,
) -> Result<Whole, Trouble> {
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Trouble::at(
                instance,
                StatusCode::BAD_GATEWAY,
                "broken",
                "broke its answer off",
                error,
            )
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if first.is_empty() && all.is_empty() {
            first = data;
            continue;
        }
        if all.is_empty() {
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        if all.len() + data.len() > MAX_ANSWER_BYTES {
            return Err(Trouble {
                retry: false,
                ..Trouble::at(
                    instance,
                    StatusCode::BAD_GATEWAY,
                    "too_large",
                    "gave too large an answer",
                    format_args!("more than {MAX_ANSWER_BYTES} bytes"),
                )
            });
        }
        all.extend_from_slice(&data);
    }
    lease.give_back();
    Ok(Whole {
        status: head.status,
        content_type: content_type(head),
        body: if all.is_empty() { first } else { all.freeze() },
    })
}

/// The type of an answer's body.
pub fn content_type(head: &response::Parts) -> HeaderValue {
    head.headers
        .get(header::CONTENT_TYPE)
        .cloned()
        .unwrap_or_else(|| HeaderValue::from_static("application/json"))
}
