//! Routes for administrators: adding, draining and removing instances, and emptying prefix caches.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::AUTHORIZATION;
use hyper::{Method, StatusCode, Uri, http::request};
use kvstored_core::{Error, ErrorKind, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::address::Address;
use crate::answer::{self, Answer};
use crate::events::{EventSource, follow};
use crate::health;
use crate::instance::{Instance, Phase, Role, Upstream};
use crate::intake::{self, Refusal};
use crate::legs::exchange;
use crate::proxy::Proxy;
use crate::request::Pieces;
use crate::routes::{closing, not_allowed, refuse};

/// The largest body of an admin request.
const MAX_BODY_BYTES: usize = 64 << 10;
/// How often a leaving instance is looked at besides being told that a request has ended.
const LEAVING_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Prefill,
    Decode,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Names {
    One(String),
    Several(Vec<String>),
}

#[derive(Debug, Deserialize)]
struct Change {
    r#type: Kind,
    instances: Names,
    /// Where the added prefill instances publish KV events, and where they send past ones again; one for each.
    kv_events: Option<Names>,
    kv_replays: Option<Names>,
}

impl Names {
    fn addresses(&self) -> Result<Vec<Address>> {
        let names = match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Several(names) => names.as_slice(),
        };
        names.iter().map(|name| Address::parse(name)).collect()
    }
}

impl Change {
    fn role(&self) -> Role {
        match self.r#type {
            Kind::Prefill => Role::Prefill,
            Kind::Decode => Role::Decode,
        }
    }

    /// Where the instances publish events; as many as there are instances.
    fn sources(&self, count: usize) -> Result<Vec<Option<EventSource>>> {
        let listed = |field: &str, names: Option<&Names>| -> Result<Vec<Option<Address>>> {
            let Some(names) = names else {
                return Ok(vec![None; count]);
            };
            let addresses = names.addresses()?;
            if addresses.len() == count && self.role() == Role::Prefill {
                Ok(addresses.into_iter().map(Some).collect())
            } else {
                Err(Error::invalid(format!(
                    "{field} has {} values: one for each prefill instance is needed, which are {count}",
                    addresses.len()
                )))
            }
        };
        let events = listed("kv_events", self.kv_events.as_ref())?;
        let replays = listed("kv_replays", self.kv_replays.as_ref())?;
        Ok(events
            .into_iter()
            .zip(replays)
            .map(|(events, replay)| events.map(|events| EventSource { events, replay }))
            .collect())
    }
}

/// Answers an admin request.
pub async fn handle(proxy: &Arc<Proxy>, head: &request::Parts, body: Incoming) -> Answer {
    if let Err(refusal) = authorize(proxy, head) {
        return closing(refuse(&refusal));
    }
    let path = head.uri.path();
    match (path, head.method.as_str()) {
        ("/instances", "GET") => answer::json(StatusCode::OK, &listing(proxy)),
        ("/instances", _) => not_allowed("GET"),
        (_, "POST") if path == "/reset_prefix_cache" => reset_prefix_cache(proxy, head).await,
        (_, "POST") => match intake::read_body(proxy, body, MAX_BODY_BYTES).await {
            Err(refusal) => closing(refuse(&refusal)),
            Ok(body) => change(proxy, path, &body.bytes).unwrap_or_else(|error| failed(&error)),
        },
        _ => not_allowed("POST"),
    }
}

/// Without a token the routes are for the same machine only, which listening on loopback ensures.
fn authorize(proxy: &Proxy, head: &request::Parts) -> std::result::Result<(), Refusal> {
    let Some(token) = &proxy.settings.admin_token else {
        return if proxy.settings.listen.ip().is_loopback() {
            Ok(())
        } else {
            Err(Refusal::new(
                StatusCode::FORBIDDEN,
                "admin routes need --admin-token-file where the proxy doesn't listen on loopback",
            ))
        };
    };
    let given = head
        .headers
        .get(AUTHORIZATION)
        .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    // comparing digests takes the same time wherever they differ
    match given {
        Some(given) if blake3::hash(given.trim_ascii()) == *token => Ok(()),
        _ => Err(Refusal::new(
            StatusCode::UNAUTHORIZED,
            "admin routes need the admin token as Authorization: Bearer",
        )),
    }
}

fn failed(error: &Error) -> Answer {
    let status = match error.kind() {
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::AlreadyExists => StatusCode::CONFLICT,
        ErrorKind::TooLarge => StatusCode::INSUFFICIENT_STORAGE,
        _ => StatusCode::BAD_REQUEST,
    };
    answer::error(status, error.message())
}

fn change(proxy: &Arc<Proxy>, path: &str, body: &[u8]) -> Result<Answer> {
    let change: Change = serde_json::from_slice(body).map_err(|error| {
        Error::invalid(format!(
            "{{\"type\": \"prefill\" or \"decode\", \"instances\": \"HOST:PORT\" or a list of them}} is needed: {error}"
        ))
    })?;
    let role = change.role();
    let addresses = change.instances.addresses()?;
    let names: Vec<String> = addresses.iter().map(Address::to_string).collect();
    let message = match path {
        "/instances/add" => {
            let sources = change.sources(addresses.len())?;
            for (address, events) in addresses.iter().zip(sources) {
                add(proxy, role, address, events)?;
            }
            format!("Instances {names:?} are waiting to be added.")
        }
        "/instances/drain" => {
            // all are looked up before any is changed
            let instances = find(proxy, role, &addresses)?;
            for instance in instances {
                instance.condition.set_phase(Phase::Draining);
            }
            format!("Instances {names:?} take no further requests.")
        }
        _ => {
            for instance in find(proxy, role, &addresses)? {
                remove(proxy, instance);
            }
            format!("Instances {names:?} are isolated and waiting to be removed.")
        }
    };
    tracing::info!(path, role = role.name(), instances = ?names, "instances changed");
    let mut value = listing(proxy);
    if let Some(fields) = value.as_object_mut() {
        fields.insert("message".to_owned(), Value::from(message));
    }
    Ok(answer::json(StatusCode::OK, &value))
}

fn find(proxy: &Proxy, role: Role, addresses: &[Address]) -> Result<Vec<Arc<Instance>>> {
    addresses
        .iter()
        .map(|address| proxy.fleet.find(role, address))
        .collect()
}

fn add(proxy: &Arc<Proxy>, role: Role, address: &Address, events: Option<EventSource>) -> Result<()> {
    let instance = proxy
        .fleet
        .add_with_events(role, address, Phase::Waiting, events)?;
    if instance.condition.phase() == Phase::Waiting {
        health::watch(proxy, &instance);
        follow(proxy, &instance);
    }
    Ok(())
}

/// The instance goes once no request depends on it, or when none can any more.
fn remove(proxy: &Arc<Proxy>, instance: Arc<Instance>) {
    if instance.is_idle() {
        instance.condition.set_phase(Phase::Leaving);
        proxy.fleet.remove(&instance);
        return;
    }
    instance.condition.set_phase(Phase::Leaving);
    let proxy = Arc::downgrade(proxy);
    tokio::spawn(async move {
        loop {
            // asked for before looking, so that nothing that ends in between is missed
            let ended = instance.idle.notified();
            let Some(proxy) = proxy.upgrade() else { return };
            if instance.condition.phase() != Phase::Leaving {
                return;
            }
            if instance.is_idle() {
                proxy.fleet.remove(&instance);
                tracing::info!(role = instance.role.name(), instance = %instance.name, "instance removed");
                return;
            }
            drop(proxy);
            let _ = timeout(LEAVING_INTERVAL, ended).await;
        }
    });
}

fn listing(proxy: &Proxy) -> Value {
    let [prefill, decode] = Role::ALL.map(|role| proxy.fleet.instances(role));
    let names = |instances: &[Arc<Instance>]| -> Vec<String> {
        instances
            .iter()
            .filter(|instance| instance.condition.phase() != Phase::Waiting)
            .map(|instance| instance.name.clone())
            .collect()
    };
    let states: Vec<Value> = prefill
        .iter()
        .chain(decode.iter())
        .map(|instance| {
            json!({
                "type": instance.role.name(),
                "instance": instance.name,
                "phase": instance.condition.phase().name(),
                "reachable": instance.condition.reachable(),
                "requests": instance.load.requests(),
                "active_tokens": instance.load.active_tokens(),
                "held_tokens": instance.load.held_tokens(),
            })
        })
        .collect();
    json!({
        "current_prefill_instances": names(&prefill),
        "current_decode_instances": names(&decode),
        "instances": states,
    })
}

/// Empties the prefix caches of all instances, and what is known of them here.
async fn reset_prefix_cache(proxy: &Proxy, head: &request::Parts) -> Answer {
    proxy.affinity.clear();
    let query = head
        .uri
        .query()
        .map(|query| format!("?{query}"))
        .unwrap_or_default();
    let Ok(target) = Uri::try_from(format!("/reset_prefix_cache{query}")) else {
        return answer::error(StatusCode::BAD_REQUEST, "the query is no query");
    };
    let mut headers = intake::passed_on(&head.headers);
    if proxy.settings.admin_token.is_some() {
        // it is ours, and nobody else's business
        headers.remove(AUTHORIZATION);
    }
    let upstream = Upstream {
        method: Method::POST,
        target,
        headers,
        body: Pieces::from(Bytes::new()),
        begun: None,
    };
    let mut failed = Vec::new();
    for role in Role::ALL {
        for instance in proxy.fleet.instances(role).iter() {
            if let Err(trouble) = exchange(instance, &upstream, proxy.settings.health_timeout).await {
                tracing::warn!(instance = %instance.name, detail = %trouble.detail, "prefix cache not emptied");
                failed.push(format!("http://{}", instance.name));
            }
        }
    }
    if failed.is_empty() {
        answer::json(StatusCode::OK, &json!({"message": "prefix caches are empty"}))
    } else {
        answer::json(StatusCode::INTERNAL_SERVER_ERROR, &json!({"failed": failed}))
    }
}
