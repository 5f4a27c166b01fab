//! A request's two legs, and trying them elsewhere.
//!
//! The prefill leg leaves the prompt's KV at a prefill instance; the decode leg names that place to a decode instance,
//! which pulls it and answers. A leg that fails is tried at another instance. A decode instance that may have begun to pull
//! makes the KV's place worthless: its keeper frees it once it was pulled. So the prompt is prefilled again then, which the
//! prefix cache makes cheap, instead of risking another request's KV.
//!
//! Where a prefill instance allows it, the first try sends both legs at once.

mod abandon;
mod decode;
mod exchange;
mod follow;
mod prefill;

use std::sync::Arc;
use std::time::Duration;

use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Method, StatusCode, Uri};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep, timeout_at};

use self::follow::Both;
use self::prefill::Prefilled;
use crate::access::Access;
use crate::choice::Tried;
use crate::instance::{Instance, Upstream};
use crate::intake::REQUEST_ID;
use crate::metrics::ByReason;
use crate::proxy::Proxy;
use crate::request::{CompletionRequest, Pieces};

pub use decode::{Next, Started, Stream};
pub use exchange::{Trouble, Verdict, Whole, exchange};

/// The longest pause between two tries.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Why a request has no answer.
#[derive(Debug)]
pub enum Failure {
    /// An instance refused it, with an answer that the client should see.
    Refused(Box<Whole>),
    /// No instance could do it.
    Unable {
        /// The status for the client.
        status: StatusCode,
        /// A sentence for the client.
        message: String,
    },
}

impl Failure {
    /// No instance could do it.
    pub fn unable(status: StatusCode, message: impl Into<String>) -> Self {
        Self::Unable {
            status,
            message: message.into(),
        }
    }

    /// The status for the client.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Refused(whole) => whole.status,
            Self::Unable { status, .. } => *status,
        }
    }

    /// A sentence for the log, or for a client that has the answer's beginning already.
    pub fn message(&self) -> String {
        match self {
            Self::Refused(whole) => format!("an instance refused the request with status {}", whole.status),
            Self::Unable { message, .. } => message.clone(),
        }
    }
}

/// A request on its way.
pub struct Job {
    proxy: Arc<Proxy>,
    /// The request as the client sent it.
    pub request: CompletionRequest,
    /// What the log will say.
    pub access: Access,
    headers: Arc<HeaderMap>,
    upstream_id: String,
    prefills: u32,
    /// How many of the prompt's tokens the first prefill found cached, if its instance tells.
    pub prefill_cached: Option<u64>,
    deadline: Instant,
    _body: OwnedSemaphorePermit,
}

impl Job {
    /// Of a request that has been read. `headers` go to the instances; `upstream_id` has to be unique among all requests.
    pub fn new(
        proxy: Arc<Proxy>,
        request: CompletionRequest,
        access: Access,
        headers: HeaderMap,
        upstream_id: String,
        body: OwnedSemaphorePermit,
    ) -> Self {
        let deadline = access.received + proxy.settings.request_timeout;
        Self {
            proxy,
            request,
            access,
            headers: Arc::new(headers),
            upstream_id,
            prefills: 0,
            prefill_cached: None,
            deadline,
            _body: body,
        }
    }

    /// What all requests share.
    pub fn proxy(&self) -> &Arc<Proxy> {
        &self.proxy
    }

    /// Goes through both legs until the answer has begun.
    pub async fn run(&mut self, request: &CompletionRequest) -> Result<Started, Failure> {
        let deadline = self.deadline;
        timeout_at(deadline, self.run_legs(request))
            .await
            .unwrap_or_else(|_| {
                Err(Failure::unable(
                    StatusCode::GATEWAY_TIMEOUT,
                    "the request took too long",
                ))
            })
    }

    async fn run_legs(&mut self, request: &CompletionRequest) -> Result<Started, Failure> {
        let (mut prefillers, mut decoders) = (Tried::default(), Tried::default());
        let is_split = !request.is_indivisible();
        let mut prefilled = if is_split {
            self.prefill(request, &mut prefillers, true).await?
        } else {
            Prefilled::default()
        };
        let mut tries = 1;
        loop {
            let both = self.both(request, &mut prefilled, &mut decoders, &mut prefillers);
            let (leg, trouble) = match both.await {
                Both::Started(started) => return Ok(started),
                Both::Elsewhere(kept) => {
                    prefilled = kept;
                    continue;
                }
                Both::NoDecode(trouble) => ("decode", trouble),
                Both::NoPrefill(trouble) => (
                    "prefill",
                    Trouble {
                        seen: true,
                        ..trouble
                    },
                ),
            };
            prefilled.not_pulled();
            if !trouble.retry || tries >= self.proxy.settings.tries {
                return Err(trouble.failure);
            }
            self.before_retry(leg, &trouble, tries).await;
            tries += 1;
            if trouble.seen && is_split {
                // let the old KV go before new is made
                drop(prefilled);
                prefilled = self.prefill(request, &mut prefillers, false).await?;
            }
        }
    }

    /// Notes a failed try, and pauses a little longer than before the one before.
    async fn before_retry(&mut self, leg: &'static str, trouble: &Trouble, tries: u32) {
        self.access.retries += 1;
        self.proxy
            .metrics
            .retries
            .get_or_create(&ByReason {
                leg,
                reason: trouble.reason,
            })
            .inc();
        tracing::warn!(
            id = self.access.id(),
            leg,
            instance = trouble.instance.as_deref(),
            reason = trouble.reason,
            error = %trouble.failure.message(),
            detail = %trouble.detail,
            "trying again"
        );
        let pause = self
            .proxy
            .settings
            .retry_delay
            .saturating_mul(2_u32.saturating_pow(tries - 1));
        sleep(pause.min(MAX_PAUSE)).await;
    }

    /// A request to an instance. Both legs have the same id; a prefill that is done again makes another.
    fn upstream(&self, request: &CompletionRequest, body: Pieces) -> Upstream {
        let mut headers = HeaderMap::clone(&self.headers);
        let id = if self.prefills <= 1 {
            HeaderValue::from_str(&self.upstream_id)
        } else {
            HeaderValue::from_str(&format!("{}-{}", self.upstream_id, self.prefills))
        };
        if let Ok(id) = id {
            headers.insert(REQUEST_ID, id);
        }
        Upstream {
            method: Method::POST,
            target: Uri::from_static(request.api.path()),
            headers,
            body,
            begun: None,
        }
    }

    /// Nobody is there to take a leg.
    fn nobody(role: &'static str) -> Failure {
        Failure::unable(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("no {role} instance can take requests now"),
        )
    }
}

/// Notes in an instance's condition how it did.
fn judge(instance: &Arc<Instance>, trouble: Option<&Trouble>) {
    let condition = &instance.condition;
    match trouble.map(|trouble| (trouble.verdict, trouble)) {
        None => condition.succeeded(),
        Some((Verdict::Unreachable, trouble)) => {
            if condition.set_reachable(false) {
                tracing::warn!(
                    role = instance.role.name(),
                    instance = %instance.name,
                    detail = %trouble.detail,
                    "instance can't be reached"
                );
            }
            instance.troubled.notify_one();
        }
        Some((Verdict::Failed, _)) => {
            condition.failed();
            instance.troubled.notify_one();
        }
        Some((Verdict::None, _)) => {}
    }
}
