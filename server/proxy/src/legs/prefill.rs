//! The prefill leg.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use tokio::time::Instant;

use super::abandon::Claim;
use super::exchange::{Trouble, Whole, exchange};
use super::follow::Followed;
use super::{Failure, Job, judge};
use crate::choice::{Tried, choose, prefill_cost};
use crate::events::PromptBlocks;
use crate::instance::{Active, Held, Instance, Role};
use crate::request::{CompletionRequest, Document, Name};
use crate::usage::cached_tokens;

/// A prompt whose KV lies at a prefill instance.
#[derive(Debug, Default)]
pub struct Prefilled {
    /// Where, in the instance's words. None if it keeps nothing: the decode instance then computes the prompt itself.
    pub transfer: Option<Bytes>,
    /// The right to pull it.
    pub claim: Option<Claim>,
    /// The prefill's leg, where its computation is followed.
    pub followed: Option<Followed>,
    /// The KV in the instance's load, until a decode instance has it.
    _held: Option<Held>,
}

impl Prefilled {
    /// A decode instance failed to pull it, as far as is known.
    pub fn not_pulled(&self) {
        if let Some(claim) = &self.claim {
            claim.failed();
        }
    }
}

impl Job {
    /// Has a prefill instance compute the prompt. Where the instance allows it and `may_follow`, its leg is only begun.
    pub(super) async fn prefill(
        &mut self,
        request: &CompletionRequest,
        tried: &mut Tried,
        may_follow: bool,
    ) -> Result<Prefilled, Failure> {
        let matches = self.proxy.affinity.matches(&request.chain);
        let mut ids = None;
        let mut tries = 1;
        loop {
            let proxy = &self.proxy;
            let instances = proxy.fleet.instances(Role::Prefill);
            if ids.is_none() && instances.iter().any(|instance| instance.events.is_some()) {
                ids = request.token_ids().map(PromptBlocks::new);
            }
            if let Some(ids) = &mut ids {
                let sizes = instances
                    .iter()
                    .filter_map(|instance| instance.blocks.block_tokens());
                sizes.for_each(|size| ids.cut(size));
            }
            // what an instance says itself is better than what was sent there
            let cached = |instance: &Instance| {
                ids.as_ref()
                    .and_then(|ids| instance.blocks.cached_tokens(ids))
                    .unwrap_or_else(|| matches.tokens(instance.cache_id()))
            };
            let instance = choose(
                &instances,
                tried,
                proxy.fleet.next_turn(Role::Prefill),
                |instance| prefill_cost(instance, request.tokens, cached(instance)),
            )
            .ok_or_else(|| Self::nobody("prefill"))?;
            self.access.cached_tokens = cached(&instance).min(request.tokens);
            self.access.prefill = Some(Arc::clone(&instance));
            if may_follow && let Some(prefilled) = self.follow(request, &instance) {
                return Ok(prefilled);
            }
            match self.prefill_at(request, &instance).await {
                Ok(prefilled) => return Ok(prefilled),
                Err(trouble) => {
                    judge(&instance, Some(&trouble));
                    tried.note(&instance);
                    if !trouble.retry || tries >= self.proxy.settings.tries {
                        return Err(trouble.failure);
                    }
                    self.before_retry("prefill", &trouble, tries).await;
                    tries += 1;
                }
            }
        }
    }

    async fn prefill_at(
        &mut self,
        request: &CompletionRequest,
        instance: &Arc<Instance>,
    ) -> Result<Prefilled, Trouble> {
        self.prefills += 1;
        let active = Active::new(Arc::clone(instance), request.tokens);
        let upstream = self.upstream(request, request.prefill_body(None));
        let sent = Instant::now();
        self.access.queue_time = sent - self.access.received;
        let whole = exchange(instance, &upstream, self.proxy.settings.prefill_timeout).await?;
        drop(active);
        self.prefilled(request, instance, whole, sent.elapsed())
    }

    /// What an instance's answer to a prefill that took so long comes to.
    pub(super) fn prefilled(
        &mut self,
        request: &CompletionRequest,
        instance: &Arc<Instance>,
        whole: Whole,
        took: Duration,
    ) -> Result<Prefilled, Trouble> {
        self.access.prefill_time = took;
        instance
            .times
            .before
            .observe(self.access.queue_time.as_secs_f64());
        instance.times.during.observe(took.as_secs_f64());
        let document = Document::scan(whole.body).map_err(|error| {
            Trouble::at(
                instance,
                StatusCode::BAD_GATEWAY,
                "answer",
                "gave an answer that is no JSON",
                error,
            )
        })?;
        if self.prefill_cached.is_none() {
            self.prefill_cached = cached_tokens(&document);
        }
        let transfer = document
            .value_bytes(Name::KvTransferParams)
            .filter(|raw| raw.starts_with(b"{"));
        if transfer.is_none() {
            tracing::debug!(id = self.access.id(), instance = %instance.name, "prefill keeps no KV");
        }
        instance.place.learn(transfer.as_deref().unwrap_or_default());
        judge(instance, None);
        let metrics = &self.proxy.metrics;
        metrics.prompt_tokens.inc_by(request.tokens);
        metrics.affinity_tokens.inc_by(self.access.cached_tokens);
        self.proxy.affinity.computed(&request.chain, instance.cache_id());
        Ok(Prefilled {
            followed: None,
            claim: transfer
                .as_ref()
                .and_then(|transfer| Claim::new(&self.proxy, &self.headers, request, transfer)),
            _held: transfer
                .is_some()
                .then(|| Held::new(Arc::clone(instance), request.tokens)),
            transfer,
        })
    }
}
