//! One log line for each request, and its share of the metrics: written when the request's last piece is let go.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::instance::Instance;
use crate::metrics::{ByOutcome, Metrics};
use crate::request::Api;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With the answer asked for.
    Ok,
    /// With an error of the client's making.
    Refused,
    /// With an error before the client got anything else.
    Failed,
    /// With an error inside a stream.
    Broken,
    /// The client went away.
    ClientGone,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Broken => "broken",
            Self::ClientGone => "client_gone",
        }
    }
}

/// What is known of a request so far.
#[derive(Debug)]
pub struct Access {
    metrics: Arc<Metrics>,
    id: String,
    api: Api,
    client: SocketAddr,
    started: Instant,
    /// When its last byte was there.
    pub received: Instant,
    /// Whether a stream was asked for.
    pub stream: bool,
    /// Estimated prompt tokens.
    pub tokens: u64,
    /// Estimated prompt tokens that the prefill instance had.
    pub cached_tokens: u64,
    /// Who computed the prompt.
    pub prefill: Option<Arc<Instance>>,
    /// Who computes the answer.
    pub decode: Option<Arc<Instance>>,
    /// Time until the prefill was sent.
    pub queue_time: Duration,
    /// Time of the prefill.
    pub prefill_time: Duration,
    /// Time from sending the decode to its first event.
    pub transfer_time: Duration,
    /// Time of the rest.
    pub decode_time: Duration,
    /// Tries of both legs that failed.
    pub retries: u32,
    /// Bytes of the answer given out.
    pub sent_bytes: u64,
    /// The status sent.
    pub status: u16,
    outcome: Outcome,
    error: Option<String>,
}

impl Access {
    /// Of a request that has just come in.
    pub fn new(metrics: Arc<Metrics>, id: String, api: Api, client: SocketAddr) -> Self {
        metrics.in_flight.inc();
        let now = Instant::now();
        Self {
            metrics,
            id,
            api,
            client,
            started: now,
            received: now,
            stream: false,
            tokens: 0,
            cached_tokens: 0,
            prefill: None,
            decode: None,
            queue_time: Duration::ZERO,
            prefill_time: Duration::ZERO,
            transfer_time: Duration::ZERO,
            decode_time: Duration::ZERO,
            retries: 0,
            sent_bytes: 0,
            status: 0,
            // what it is if nobody says anything else
            outcome: Outcome::ClientGone,
            error: None,
        }
    }

    /// The request's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// It ended well.
    pub fn succeed(&mut self) {
        self.outcome = Outcome::Ok;
    }

    /// It ended with an error.
    pub fn fail(&mut self, outcome: Outcome, error: impl Into<String>) {
        self.outcome = outcome;
        self.error = Some(error.into());
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        self.metrics.in_flight.dec();
        self.metrics
            .requests
            .get_or_create(&ByOutcome {
                route: self.api.name(),
                outcome: self.outcome.name(),
                code: u32::from(self.status),
            })
            .inc();
        if !tracing::enabled!(target: "kvstored_proxy::access", tracing::Level::INFO) {
            return;
        }
        let name =
            |instance: &Option<Arc<Instance>>| instance.as_ref().map_or("-", |known| &known.name).to_owned();
        let ms = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        tracing::info!(
            target: "kvstored_proxy::access",
            id = %self.id,
            route = self.api.name(),
            client = %self.client,
            stream = self.stream,
            status = self.status,
            outcome = self.outcome.name(),
            prefill = %name(&self.prefill),
            decode = %name(&self.decode),
            prompt_tokens = self.tokens,
            cached_tokens = self.cached_tokens,
            queue_ms = ms(self.queue_time),
            prefill_ms = ms(self.prefill_time),
            transfer_ms = ms(self.transfer_time),
            decode_ms = ms(self.decode_time),
            total_ms = ms(self.started.elapsed()),
            retries = self.retries,
            sent_bytes = self.sent_bytes,
            error = self.error.as_deref(),
            "request"
        );
    }
}
