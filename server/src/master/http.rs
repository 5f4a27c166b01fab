//! Health, metrics and administration over HTTP.
//!
//! `/healthz` answers as long as the process lives, `/readyz` says whether a leader is known. What is below `/pool` needs
//! the token in an `authorization: Bearer` header where the master has one, and changes nothing where it has none, so that
//! no page in a browser can.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use kvstored_core::{Error, ErrorKind};
use kvstored_master::server::MasterServer;
use kvstored_master::{NodeId, ObjectStatus, split_key};
use serde::{Deserialize, Serialize};

use super::metrics;
use crate::http::limits;

/// Most objects of a page.
const MAX_PAGE: usize = 4096;

/// What the endpoints report of.
pub(super) struct AdminState {
    pub server: Arc<MasterServer>,
    /// Whether there is a token.
    pub authenticated: bool,
    /// Whether administration is served at all: not where others could read the token on its way.
    pub admin: bool,
    pub start_unix_ms: u64,
}

type Shared = State<Arc<AdminState>>;

/// All endpoints.
pub(super) fn router(state: Arc<AdminState>) -> Router {
    let pool = Router::new()
        .route("/stat", get(stat))
        .route("/segments", get(segments))
        .route("/segments/{node}/drain", post(drain))
        .route("/objects", get(objects))
        .route("/remove_all", post(remove_all))
        .layer(middleware::from_fn_with_state(state.clone(), authenticate));
    Router::new()
        .route(
            "/",
            get(|| async {
                "kvstored master\n/healthz\n/readyz\n/metrics\n/pool/stat\n/pool/segments\n/pool/objects\n"
            }),
        )
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape))
        .nest("/pool", pool)
        .layer(middleware::from_fn(limits))
        .with_state(state)
}

async fn authenticate(State(state): Shared, request: Request, next: Next) -> Response {
    if !state.admin {
        return (
            StatusCode::FORBIDDEN,
            "administration is served on loopback addresses only\n",
        )
            .into_response();
    }
    let changes = request.method() != axum::http::Method::GET;
    if changes && !state.authenticated {
        return (StatusCode::FORBIDDEN, "changes need a master with a token\n").into_response();
    }
    let shown = request
        .headers()
        .get(header::AUTHORIZATION)
        .map(HeaderValue::as_bytes);
    if !state.server.admits(shown) {
        return (
            StatusCode::UNAUTHORIZED,
            "the request doesn't carry this pool's token\n",
        )
            .into_response();
    }
    next.run(request).await
}

async fn ready(State(state): Shared) -> (StatusCode, String) {
    let status = state.server.status();
    if status.leader {
        let word = if status.recovering {
            "recovering"
        } else {
            "leading"
        };
        return (StatusCode::OK, format!("{word}\n"));
    }
    if status.leader_address.is_empty() {
        return (StatusCode::SERVICE_UNAVAILABLE, "no leader\n".to_owned());
    }
    (StatusCode::OK, format!("following {}\n", status.leader_address))
}

async fn scrape(State(state): Shared) -> Response {
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

async fn stat(State(state): Shared) -> Response {
    axum::Json(state.server.status()).into_response()
}

async fn segments(State(state): Shared) -> Response {
    state
        .server
        .nodes()
        .map_or_else(|error| refused(&error), |nodes| axum::Json(nodes).into_response())
}

#[derive(Deserialize)]
struct PageQuery {
    #[serde(default)]
    after: u64,
    limit: Option<usize>,
    tenant: Option<String>,
}

/// An object as JSON.
#[derive(Serialize)]
pub(crate) struct ObjectRow {
    pub tenant: String,
    /// As text, other bytes than visible ASCII ones escaped.
    pub key: String,
    pub put: u64,
    pub length: u64,
    pub complete: bool,
    pub lease_ms: u64,
    pub pin_ms: u64,
    pub nodes: Vec<String>,
}

impl From<&ObjectStatus> for ObjectRow {
    fn from(object: &ObjectStatus) -> Self {
        let (tenant, key) = split_key(&object.key).unwrap_or(("", &object.key));
        Self {
            tenant: tenant.to_owned(),
            key: key.escape_ascii().to_string(),
            put: object.put,
            length: object.length,
            complete: object.complete,
            lease_ms: object.lease.as_millis() as u64,
            pin_ms: object.pin.as_millis() as u64,
            nodes: object.nodes.iter().map(kvstored_master::node_name).collect(),
        }
    }
}

#[derive(Serialize)]
struct Page {
    objects: Vec<ObjectRow>,
    next: u64,
}

async fn objects(State(state): Shared, Query(query): Query<PageQuery>) -> Response {
    let limit = query.limit.unwrap_or(1000).clamp(1, MAX_PAGE);
    match state.server.objects(query.after, limit, query.tenant.as_deref()) {
        Ok(page) => axum::Json(Page {
            objects: page.objects.iter().map(ObjectRow::from).collect(),
            next: page.next,
        })
        .into_response(),
        Err(error) => refused(&error),
    }
}

#[derive(Deserialize)]
struct DrainQuery {
    #[serde(default)]
    evict: bool,
    #[serde(default)]
    undo: bool,
}

async fn drain(State(state): Shared, Path(node): Path<String>, Query(query): Query<DrainQuery>) -> Response {
    let drained = parse_node(&node).and_then(|node| state.server.drain(&node, query.evict, query.undo));
    drained.map_or_else(
        |error| refused(&error),
        |drained| axum::Json(drained).into_response(),
    )
}

#[derive(Deserialize)]
struct RemoveQuery {
    tenant: Option<String>,
    #[serde(default)]
    force: bool,
}

async fn remove_all(State(state): Shared, Query(query): Query<RemoveQuery>) -> Response {
    let removed = state.server.remove_all(query.tenant.as_deref(), query.force);
    removed.map_or_else(
        |error| refused(&error),
        |removed| axum::Json(serde_json::json!({ "removed": removed })).into_response(),
    )
}

/// A node's identity from 32 hexadecimal digits. Fails with `InvalidInput`.
fn parse_node(text: &str) -> kvstored_core::Result<NodeId> {
    kvstored_master::parse_node(text)
        .ok_or_else(|| Error::invalid(format!("\"{text}\" is not 32 hexadecimal digits")))
}

fn refused(error: &Error) -> Response {
    let status = match error.kind() {
        ErrorKind::InvalidInput => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, format!("{error}\n")).into_response()
}
