//! Taking in a request: its headers and its body, within bounds of size, memory and time.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{StatusCode, http::request};
use tokio::sync::{OwnedSemaphorePermit, TryAcquireError};
use tokio::time::timeout;

use crate::proxy::Proxy;

/// The header with a request's id.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest id of a client's own that is taken over.
const MAX_ID_BYTES: usize = 128;
/// Headers of the client that instances get too. No other gets through: some would choose an instance's rank or peer.
const PASSED_ON: [HeaderName; 3] = [
    header::AUTHORIZATION,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];
/// Headers that must not come twice, because it would be open which of them counts.
const ONCE: [HeaderName; 5] = [
    header::AUTHORIZATION,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::HOST,
    REQUEST_ID,
];

/// Why a request isn't taken in.
#[derive(Debug)]
pub struct Refusal {
    /// The status.
    pub status: StatusCode,
    /// A sentence for the client.
    pub message: String,
}

impl Refusal {
    /// With that status and sentence.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }
}

/// A body, and its place in the memory that bodies may take.
#[derive(Debug)]
pub struct TakenBody {
    /// The bytes.
    pub bytes: Bytes,
    /// To be kept as long as the bytes.
    pub permit: OwnedSemaphorePermit,
}

/// Refuses headers that contradict each other.
pub fn check_headers(head: &request::Parts) -> Result<(), Refusal> {
    for name in &ONCE {
        if head.headers.get_all(name).iter().nth(1).is_some() {
            return Err(Refusal::new(
                StatusCode::BAD_REQUEST,
                format!("the header {name} must not come twice"),
            ));
        }
    }
    Ok(())
}

/// The headers that go to the instances.
pub fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let mut passed = HeaderMap::with_capacity(PASSED_ON.len() + 3);
    passed.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for name in PASSED_ON {
        if let Some(value) = headers.get(&name) {
            passed.insert(name, value.clone());
        }
    }
    passed
}

/// The client's own id of its request, if it has one that can be written into headers and logs.
pub fn client_id(headers: &HeaderMap) -> Option<&str> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (!id.is_empty() && id.len() <= MAX_ID_BYTES && id.bytes().all(plain)).then_some(id)
}

/// Reads a body of at most `max_bytes`.
pub async fn read_body(proxy: &Proxy, body: Incoming, max_bytes: usize) -> Result<TakenBody, Refusal> {
    let too_large = || {
        Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is larger than {max_bytes} bytes"),
        )
    };
    if body.size_hint().lower() > max_bytes as u64 {
        return Err(too_large());
    }
    timeout(proxy.settings.client_timeout, collect(proxy, body, max_bytes))
        .await
        .map_err(|_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body took too long to come"))?
        .and_then(|body| body.ok_or_else(too_large))
}

/// None stands for a body that is too large.
async fn collect(proxy: &Proxy, mut body: Incoming, max_bytes: usize) -> Result<Option<TakenBody>, Refusal> {
    let mut permit = reserve(proxy, 0)?;
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, format!("the body is broken: {error}")))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        length += data.len();
        if length > max_bytes {
            return Ok(None);
        }
        permit.merge(reserve(proxy, data.len())?);
        if first.is_empty() && all.is_empty() {
            first = data;
            continue;
        }
        if all.is_empty() {
            all.reserve(length.max(body.size_hint().lower() as usize + length));
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&data);
    }
    let bytes = if all.is_empty() { first } else { all.freeze() };
    Ok(Some(TakenBody { bytes, permit }))
}

fn reserve(proxy: &Proxy, bytes: usize) -> Result<OwnedSemaphorePermit, Refusal> {
    let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
    Arc::clone(&proxy.body_budget)
        .try_acquire_many_owned(permits)
        .map_err(|error| match error {
            TryAcquireError::NoPermits | TryAcquireError::Closed => Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "too much is under way at this moment",
            ),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .fold(HeaderMap::new(), |mut map, (name, value)| {
                map.append(name, value);
                map
            })
    }

    #[test]
    fn only_credentials_and_traces_are_passed_on() {
        let passed = passed_on(&headers(&[
            ("authorization", "Bearer x"),
            ("traceparent", "00-1"),
            ("host", "evil"),
            ("x-data-parallel-rank", "3"),
            ("x-forwarded-host", "evil"),
            ("cookie", "c"),
            ("content-length", "5"),
        ]));
        let mut names: Vec<&str> = passed.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["authorization", "content-type", "traceparent"]);
    }

    #[test]
    fn a_header_that_comes_twice_is_refused() {
        let (mut head, ()) = hyper::Request::new(()).into_parts();
        head.headers = headers(&[("authorization", "a"), ("accept", "x"), ("accept", "y")]);
        assert!(check_headers(&head).is_ok());
        head.headers
            .append(header::AUTHORIZATION, HeaderValue::from_static("b"));
        let refusal = check_headers(&head).unwrap_err();
        assert!(refusal.message.contains("authorization"));
        assert_eq!(refusal.status, StatusCode::BAD_REQUEST);
    }

    #[test]
    fn a_client_s_id_is_taken_if_it_is_harmless() {
        let id = |value| client_id(&headers(&[("x-request-id", value)])).map(str::to_owned);
        assert_eq!(id("abc-1_2.3").as_deref(), Some("abc-1_2.3"));
        assert_eq!(id("a b"), None);
        assert_eq!(id("a\tid=1"), None);
        assert_eq!(id(""), None);
        assert_eq!(client_id(&HeaderMap::new()), None);
    }
}
