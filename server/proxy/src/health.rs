//! Looking after instances: a task for each, which ends when the instance or the proxy goes.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Body;
use hyper::{HeaderMap, Method, Uri};
use tokio::time::{sleep, timeout};

use crate::instance::{Instance, Phase, Upstream};
use crate::proxy::Proxy;
use crate::request::Pieces;

/// Failed checks in a row that make an instance unreachable; refused connections do so at once.
const FAILURES: u32 = 2;
/// An instance that was down is looked for this often at least.
const MAX_DOWN_INTERVAL: Duration = Duration::from_secs(1);
/// The pause before a check that trouble asked for, so that trouble in a row doesn't become checks in a row.
const TROUBLE_PAUSE: Duration = Duration::from_millis(200);

/// Looks after an instance from now on.
pub fn watch(proxy: &Arc<Proxy>, instance: &Arc<Instance>) {
    let proxy = Arc::downgrade(proxy);
    let instance = Arc::clone(instance);
    tokio::spawn(async move {
        if instance.condition.phase() == Phase::Waiting {
            await_first_sign(&proxy, &instance).await;
        }
        look_after(&proxy, &instance).await;
    });
}

/// Waits until an added instance answers, and gives it up if it doesn't.
async fn await_first_sign(proxy: &Weak<Proxy>, instance: &Arc<Instance>) {
    let Some(settings) = proxy.upgrade().map(|proxy| proxy.settings.clone()) else {
        return;
    };
    for attempt in 1..=settings.waiting_tries {
        if instance.condition.phase() != Phase::Waiting {
            return;
        }
        if check(instance, settings.health_timeout).await == Health::Alive {
            instance.condition.set_phase(Phase::Active);
            tracing::info!(role = instance.role.name(), instance = %instance.name, "instance added");
            return;
        }
        if attempt < settings.waiting_tries {
            sleep(settings.waiting_interval).await;
        }
    }
    if let Some(proxy) = proxy.upgrade() {
        proxy.fleet.remove(instance);
    }
    tracing::warn!(
        role = instance.role.name(),
        instance = %instance.name,
        tries = settings.waiting_tries,
        "instance given up: it doesn't answer"
    );
}

async fn look_after(proxy: &Weak<Proxy>, instance: &Arc<Instance>) {
    let mut failures = 0;
    loop {
        let (interval, limit) = {
            let Some(proxy) = proxy.upgrade() else { return };
            if !proxy.fleet.contains(instance) {
                return;
            }
            let settings = &proxy.settings;
            let interval = if instance.condition.reachable() {
                settings.health_interval
            } else {
                settings.health_interval.min(MAX_DOWN_INTERVAL)
            };
            (interval, settings.health_timeout)
        };
        match check(instance, limit).await {
            Health::Alive => {
                failures = 0;
                if instance.condition.set_reachable(true) {
                    // it was restarted, most likely, with an empty cache
                    if let Some(proxy) = proxy.upgrade() {
                        instance.set_cache_id(proxy.fleet.next_cache_id());
                    }
                    instance.condition.succeeded();
                    tracing::info!(role = instance.role.name(), instance = %instance.name, "instance is back");
                }
            }
            Health::Ill(reason) => {
                failures += 1;
                if failures >= FAILURES {
                    went_down(instance, &reason);
                }
            }
            Health::Dead(reason) => went_down(instance, &reason),
        }
        instance.pool.trim();
        if timeout(interval, instance.troubled.notified()).await.is_ok() {
            sleep(TROUBLE_PAUSE).await;
        }
    }
}

fn went_down(instance: &Instance, reason: &str) {
    if instance.condition.set_reachable(false) {
        tracing::warn!(role = instance.role.name(), instance = %instance.name, reason, "instance is down");
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Health {
    Alive,
    /// Something answers, but not well.
    Ill(String),
    /// Nobody answers.
    Dead(String),
}

/// Asks once. An instance that doesn't know the route is alive all the same.
async fn check(instance: &Instance, limit: Duration) -> Health {
    let upstream = Upstream {
        method: Method::GET,
        target: Uri::from_static("/health"),
        headers: HeaderMap::new(),
        body: Pieces::from(Bytes::new()),
        begun: None,
    };
    match timeout(limit, instance.pool.send(&upstream)).await {
        Err(_) => Health::Ill(format!("no answer in {} ms", limit.as_millis())),
        Ok(Err(error)) if error.unreachable => Health::Dead(error.to_string()),
        Ok(Err(error)) => Health::Ill(error.to_string()),
        Ok(Ok(received)) => {
            if received.body.is_end_stream() {
                received.lease.give_back();
            }
            if received.head.status.is_server_error() {
                Health::Ill(format!("status {}", received.head.status))
            } else {
                Health::Alive
            }
        }
    }
}
