//! Both legs at once: a decode instance pulls a prompt's KV while the prefill instance still computes it.
//!
//! Only where the prefill instance's own answers say that it can. The decode instance learns the place from what the instance
//! said before; if that turns out to be another one by now, or either leg fails, the legs go one after the other as usual. A
//! leg that is let go closes its connection, and the instances give up their parts.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::time::Instant;

use super::abandon::Claim;
use super::decode::{Started, Way};
use super::exchange::{Trouble, Whole, exchange};
use super::prefill::Prefilled;
use super::{Job, judge};
use crate::choice::Tried;
use crate::instance::{Active, Instance};
use crate::request::CompletionRequest;

type Leg = Pin<Box<dyn Future<Output = Result<Whole, Trouble>> + Send>>;

/// A prefill under way that is followed.
pub struct Followed {
    instance: Arc<Instance>,
    name: String,
    leg: Leg,
    sent: Instant,
    /// Whether a decode instance may have seen its part.
    pub begun: Arc<AtomicBool>,
}

impl fmt::Debug for Followed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Followed")
            .field("instance", &self.instance.name)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// What both legs came to.
pub enum Both {
    /// The answer has begun.
    Started(Started),
    /// The prompt is computed, and kept elsewhere than was thought: the decode leg has to go there.
    Elsewhere(Prefilled),
    /// The prefill leg failed.
    NoPrefill(Trouble),
    /// The decode leg failed.
    NoDecode(Trouble),
}

impl Job {
    /// Begins a prefill that is followed. None where the instance isn't known to allow it.
    pub(super) fn follow(
        &mut self,
        request: &CompletionRequest,
        instance: &Arc<Instance>,
    ) -> Option<Prefilled> {
        let name = self.proxy.new_id();
        let transfer = instance.place.transfer(&name)?;
        self.prefills += 1;
        let active = Active::new(Arc::clone(instance), request.tokens);
        let upstream = self.upstream(request, request.prefill_body(Some(&name)));
        let sent = Instant::now();
        self.access.queue_time = sent - self.access.received;
        let limit = self.proxy.settings.prefill_timeout;
        let there = Arc::clone(instance);
        let leg = Box::pin(async move {
            let whole = exchange(&there, &upstream, limit).await;
            drop(active);
            whole
        });
        let mut prefilled = Prefilled::default();
        prefilled.transfer = Some(transfer);
        prefilled.followed = Some(Followed {
            instance: Arc::clone(instance),
            name,
            leg,
            sent,
            begun: Arc::default(),
        });
        Some(prefilled)
    }

    /// Has a decode instance begin to answer, beside the prefill where that is followed.
    pub(super) async fn both(
        &mut self,
        request: &CompletionRequest,
        prefilled: &mut Prefilled,
        decoders: &mut Tried,
        prefillers: &mut Tried,
    ) -> Both {
        let Some(mut followed) = prefilled.followed.take() else {
            let way = Way {
                transfer: prefilled.transfer.clone(),
                begun: prefilled.claim.as_ref().map(Claim::begun),
                ..Way::default()
            };
            return match self.decode(request, way, decoders).await {
                Ok(started) => Both::Started(started),
                Err(trouble) => Both::NoDecode(trouble),
            };
        };
        let instance = Arc::clone(&followed.instance);
        let way = Way {
            transfer: prefilled.transfer.clone(),
            begun: Some(Arc::clone(&followed.begun)),
            computed_within: self.proxy.settings.prefill_timeout,
        };
        let mut prefill: Option<(Result<Whole, Trouble>, Duration)> = None;
        let decoded = {
            let decode = self.decode(request, way, decoders);
            tokio::pin!(decode);
            loop {
                tokio::select! {
                    biased;
                    whole = &mut followed.leg, if prefill.is_none() => {
                        let goes_on = whole.as_ref().is_ok_and(|whole| followed.is_answered_by(whole));
                        prefill = Some((whole, followed.sent.elapsed()));
                        if !goes_on {
                            break None;
                        }
                    }
                    decoded = &mut decode => break Some(decoded),
                }
            }
        };
        let kept = match prefill {
            None => None,
            Some((whole, took)) => {
                match whole.and_then(|whole| self.prefilled(request, &instance, whole, took)) {
                    Ok(kept) => Some(kept),
                    Err(trouble) => {
                        instance.place.forget();
                        judge(&instance, Some(&trouble));
                        prefillers.note(&instance);
                        return Both::NoPrefill(trouble);
                    }
                }
            }
        };
        match (decoded, kept) {
            (None, Some(kept)) => Both::Elsewhere(kept),
            // there is no way to this
            (None, None) => Both::NoDecode(Trouble::nobody(Self::nobody("prefill"))),
            (Some(Ok(started)), kept) => {
                let prefill_time = kept.as_ref().map_or(Duration::ZERO, |_| self.access.prefill_time);
                self.access.transfer_time = self.access.transfer_time.saturating_sub(prefill_time);
                if let Some(claim) = kept.and_then(|kept| kept.claim) {
                    // it was pulled, or given up by the instance that answers
                    drop(claim.followed(followed.begun));
                }
                Both::Started(started)
            }
            (Some(Err(trouble)), Some(mut kept)) => {
                kept.claim = kept.claim.map(|claim| claim.followed(followed.begun));
                *prefilled = kept;
                Both::NoDecode(trouble)
            }
            (Some(Err(trouble)), None) => {
                // nobody follows it any more; it's computed for nobody
                Both::NoDecode(Trouble {
                    seen: true,
                    ..trouble
                })
            }
        }
    }
}

impl Followed {
    /// Whether the prompt is kept where it was followed.
    fn is_answered_by(&self, whole: &Whole) -> bool {
        use crate::request::{Document, Name};
        let document = Document::scan(whole.body.clone());
        let transfer = document
            .ok()
            .and_then(|document| document.value_bytes(Name::KvTransferParams));
        match transfer.filter(|raw| raw.starts_with(b"{")) {
            Some(transfer) => self.instance.place.is_kept_as(&transfer, &self.name),
            // it keeps nothing, and the decode instance computes the prompt itself
            None => true,
        }
    }
}
