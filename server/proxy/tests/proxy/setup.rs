//! A proxy with scripted instances.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;
use kvstored_core::Runtime;
use kvstored_proxy::{Address, ProxyArguments, ProxyServer, Settings, StopHandle};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::client::{self, HANG, Reply};
use crate::mock::Mock;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    arguments: ProxyArguments,
}

pub struct Setup {
    pub prefill: Vec<Mock>,
    pub decode: Vec<Mock>,
    pub proxy: SocketAddr,
    pub stop: StopHandle,
    pub served: JoinHandle<bool>,
}

/// The settings for these instances, with flags as a user would write them.
pub fn settings(prefill: &[Mock], decode: &[Mock], flags: &str) -> Settings {
    let mut words = vec!["proxy".to_owned(), "--port".to_owned(), "0".to_owned()];
    words.extend(flags.split_whitespace().map(str::to_owned));
    for (role, mocks) in [("prefiller", prefill), ("decoder", decode)] {
        words.push(format!("--{role}-hosts"));
        words.extend(mocks.iter().map(|mock| mock.address.ip().to_string()));
        words.push(format!("--{role}-ports"));
        words.extend(mocks.iter().map(|mock| mock.address.port().to_string()));
    }
    Settings::new(&Cli::try_parse_from(words).unwrap().arguments).unwrap()
}

pub fn serve(settings: Settings) -> (SocketAddr, StopHandle, JoinHandle<bool>) {
    let server = ProxyServer::bind(settings, Runtime::system()).unwrap();
    let (address, stop) = (server.address(), server.stop_handle());
    (address, stop, tokio::spawn(server.serve()))
}

impl Setup {
    pub async fn new(prefill: usize, decode: usize) -> Self {
        Self::with_flags(prefill, decode, "").await
    }

    pub async fn with_flags(prefill: usize, decode: usize, flags: &str) -> Self {
        let mut mocks = Vec::new();
        for index in 0..prefill + decode {
            let name = if index < prefill {
                format!("p{index}")
            } else {
                format!("d{}", index - prefill)
            };
            mocks.push(Mock::start(&name).await);
        }
        let decode = mocks.split_off(prefill);
        let (proxy, stop, served) = serve(settings(&mocks, &decode, flags));
        Self {
            prefill: mocks,
            decode,
            proxy,
            stop,
            served,
        }
    }

    /// A streamed completion.
    pub async fn stream(&self) -> Reply {
        self.complete(&json!({"prompt": "p", "stream": true, "max_tokens": 16}))
            .await
    }

    /// A completion in one piece.
    pub async fn whole(&self) -> Reply {
        self.complete(&json!({"prompt": "p"})).await
    }

    pub async fn complete(&self, body: &Value) -> Reply {
        client::post(self.proxy, "/v1/completions", body).await
    }

    pub async fn admin(&self, route: &str, role: &str, instances: Value) -> Reply {
        let body = json!({"type": role, "instances": instances});
        client::post(self.proxy, &format!("/instances/{route}"), &body).await
    }

    pub async fn instances(&self) -> Value {
        client::get(self.proxy, "/instances").await.json()
    }

    pub async fn metric(&self, line: &str) -> f64 {
        let text = client::get(self.proxy, "/metrics").await.text;
        text.lines()
            .find_map(|other| other.strip_prefix(line))
            .map_or(0.0, |value| value.trim().parse().unwrap())
    }

    /// No instance has anything to do any more, and no request is under way.
    pub async fn is_clean(&self) {
        eventually("all loads return to zero", async || {
            let loads_are_zero = self.instances().await["instances"]
                .as_array()
                .unwrap()
                .iter()
                .all(|instance| {
                    ["requests", "active_tokens", "held_tokens"]
                        .iter()
                        .all(|field| instance[field] == 0)
                });
            loads_are_zero
                && self.metric("kvstored_proxy_in_flight").await == 0.0
                && self.metric("kvstored_proxy_held_bytes").await == 0.0
        })
        .await;
    }
}

/// Waits for something that has to happen.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waited = timeout(HANG, async {
        while !holds().await {
            sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what}");
}

/// The address of an instance that isn't there.
pub async fn nobody() -> Address {
    let mut mock = Mock::start("nobody").await;
    mock.kill().await;
    Address::new("127.0.0.1", mock.address.port()).unwrap()
}
