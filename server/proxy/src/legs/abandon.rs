//! Giving up KV that a prefill instance keeps and nobody will pull.
//!
//! A prefill instance keeps a prompt's KV until a decode instance has pulled it, or until its own lease ends. The protocol
//! has no word for "nobody will come". Decode instances with kvstored's connector know one: a request whose transfer
//! parameters say `kvstored_abandon` tells the prefill instance, over the way that pulls take, to free the KV at once. Such
//! a request is sent in the background, to any decode instance; if it fails, the lease ends as before.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Method, Uri};
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::exchange::exchange;
use crate::choice::{Tried, choose, decode_cost};
use crate::instance::{Role, Upstream};
use crate::intake::REQUEST_ID;
use crate::metrics::ByResult;
use crate::proxy::Proxy;
use crate::request::{Api, CompletionRequest, Name, Pieces};

/// How long it may take decode instances to pass it on, in all.
const LIMIT: Duration = Duration::from_secs(10);

/// The right to a prompt's KV at a prefill instance. Let go of before a decode instance has begun to pull, the KV is
/// abandoned.
pub struct Claim {
    proxy: Arc<Proxy>,
    headers: Arc<HeaderMap>,
    model: Option<Bytes>,
    transfer: Bytes,
    begun: Arc<AtomicBool>,
}

impl fmt::Debug for Claim {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Claim")
            .field("begun", &self.begun)
            .finish_non_exhaustive()
    }
}

impl Claim {
    /// On the KV that those transfer parameters describe; none if nobody could be told to free it.
    pub fn new(
        proxy: &Arc<Proxy>,
        headers: &Arc<HeaderMap>,
        request: &CompletionRequest,
        transfer: &Bytes,
    ) -> Option<Self> {
        (proxy.settings.abandon && names_engine(transfer)).then(|| Self {
            proxy: Arc::clone(proxy),
            headers: Arc::clone(headers),
            model: request.document.value_bytes(Name::Model),
            transfer: transfer.clone(),
            begun: Arc::default(),
        })
    }

    /// To be set when a decode instance may have seen the request. Whoever gives the request up then tells it so by closing
    /// the connection, and the instance itself gives the KV up.
    pub fn begun(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.begun)
    }

    /// The same right where a decode instance may have seen the request already.
    pub fn followed(self, begun: Arc<AtomicBool>) -> Self {
        let mut this = self;
        this.begun = begun;
        this
    }

    /// The decode instance failed; nobody will pull what it hasn't pulled.
    pub fn failed(&self) {
        self.begun.store(false, Ordering::Relaxed);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.begun.load(Ordering::Relaxed) {
            return;
        }
        let count = |result| {
            self.proxy
                .metrics
                .abandoned
                .get_or_create(&ByResult { result })
                .inc()
        };
        // at the very end there is nobody left to send it
        let (Ok(executor), Ok(slot)) = (
            tokio::runtime::Handle::try_current(),
            Arc::clone(&self.proxy.abandons).try_acquire_owned(),
        ) else {
            count("skipped");
            return;
        };
        let proxy = Arc::clone(&self.proxy);
        let upstream = self.request();
        executor.spawn(async move {
            let sent = timeout(LIMIT, send(&proxy, &upstream)).await;
            let result = if sent.unwrap_or(false) { "ok" } else { "failed" };
            proxy.metrics.abandoned.get_or_create(&ByResult { result }).inc();
            drop(slot);
        });
    }
}

impl Claim {
    /// A request for one token that carries the word.
    fn request(&self) -> Upstream {
        let mut body = BytesMut::from(&br#"{"prompt":[1],"max_tokens":1,"stream":false,"#[..]);
        if let Some(model) = &self.model {
            body.extend_from_slice(b"\"model\":");
            body.extend_from_slice(model);
            body.extend_from_slice(b",");
        }
        body.extend_from_slice(br#""kv_transfer_params":{"kvstored_abandon":true,"#);
        // it has a field at least, so the comma is right
        body.extend_from_slice(self.transfer.get(1..).unwrap_or_default());
        body.extend_from_slice(b"}");
        let mut headers = HeaderMap::clone(&self.headers);
        if let Ok(id) = HeaderValue::from_str(&format!("{}-abandon", self.proxy.new_id())) {
            headers.insert(REQUEST_ID, id);
        }
        Upstream {
            method: Method::POST,
            target: Uri::from_static(Api::Completions.path()),
            headers,
            body: Pieces::from(body.freeze()),
            begun: None,
        }
    }
}

/// True if a decode instance took it.
async fn send(proxy: &Proxy, upstream: &Upstream) -> bool {
    let mut tried = Tried::default();
    for _ in 0..proxy.settings.tries {
        let instances = proxy.fleet.instances(Role::Decode);
        let turn = proxy.fleet.next_turn(Role::Decode);
        let Some(instance) = choose(&instances, &tried, turn, decode_cost) else {
            break;
        };
        match exchange(&instance, upstream, LIMIT).await {
            Ok(_) => return true,
            Err(trouble) => {
                tracing::debug!(instance = %instance.name, detail = %trouble.detail, "KV not abandoned");
                if !trouble.retry {
                    break;
                }
                tried.note(&instance);
            }
        }
    }
    false
}

/// Whether the parameters say which engine has the KV; without that, nobody could be told.
fn names_engine(transfer: &[u8]) -> bool {
    serde_json::from_slice::<HashMap<String, &RawValue>>(transfer).is_ok_and(|fields| {
        fields
            .get("remote_engine_id")
            .is_some_and(|id| id.get() != "null")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parameters_that_name_an_engine_can_be_abandoned() {
        for (transfer, named) in [
            (r#"{"remote_engine_id":"e"}"#, true),
            (r#"{"a":{"remote_engine_id":"e"}}"#, false),
            (r#"{"remote_engine_id":null}"#, false),
            ("{}", false),
            ("[]", false),
        ] {
            assert_eq!(names_engine(transfer.as_bytes()), named, "{transfer}");
        }
    }
}
