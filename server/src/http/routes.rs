//! The endpoints.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::metrics;
use super::state::{AdminState, Phase};

/// The longest a request may take; the endpoints only read memory.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// The longest path with query that is looked at.
const MAX_URI_BYTES: usize = 1024;

/// All endpoints over that state.
pub fn router(state: Arc<AdminState>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape))
        .route("/stat", get(statistics))
        .layer(middleware::from_fn(limits))
        .with_state(state)
}

async fn index() -> &'static str {
    "kvstored\n/healthz\n/readyz\n/metrics\n/stat\n"
}

async fn ready(State(state): State<Arc<AdminState>>) -> (StatusCode, String) {
    let phase = state.phase();
    let Some(parts) = state.parts().filter(|_| phase == Phase::Ready) else {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", phase.name()));
    };
    let mut lines = vec![phase.name().to_owned()];
    for tier in (parts.statistics)().tiers {
        if tier.statistics.degraded {
            lines.push(format!(
                "degraded: {}: {}",
                tier.name, tier.statistics.degraded_reason
            ));
        }
    }
    (StatusCode::OK, lines.join("\n") + "\n")
}

async fn scrape(State(state): State<Arc<AdminState>>) -> Response {
    match metrics::render(&state) {
        Ok(text) => {
            let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "metrics can't be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn statistics(State(state): State<Arc<AdminState>>) -> Response {
    match state.parts() {
        Some(parts) => axum::Json((parts.statistics)()).into_response(),
        None => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{}\n", state.phase().name()),
        )
            .into_response(),
    }
}

/// No endpoint takes a body, a long address or long to answer.
pub(crate) async fn limits(request: Request, next: Next) -> Response {
    if request.uri().to_string().len() > MAX_URI_BYTES {
        return StatusCode::URI_TOO_LONG.into_response();
    }
    let headers = request.headers();
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .is_some_and(|length| length.as_bytes() != b"0");
    if announced || headers.contains_key(header::TRANSFER_ENCODING) {
        // the rest of the connection can't be told from the body
        return (
            [(header::CONNECTION, HeaderValue::from_static("close"))],
            StatusCode::PAYLOAD_TOO_LARGE,
        )
            .into_response();
    }
    let (parts, _) = request.into_parts();
    let answer = next.run(Request::from_parts(parts, Body::empty()));
    match tokio::time::timeout(REQUEST_LIMIT, answer).await {
        Ok(response) => response,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}
