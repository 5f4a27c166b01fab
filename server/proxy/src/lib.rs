//! `kvstored proxy`: takes completion requests, has a prefill instance compute the prompt, and a decode instance the answer.
//!
//! One request runs in two legs ([`legs`]): the prefill leg asks for a single token and gets the place of the prompt's KV;
//! the decode leg carries that place, and its answer goes through to the client event by event ([`relay`]). Which instance
//! takes a leg is decided by load and by what was computed where ([`choice`], [`affinity`]). A leg that fails before the
//! client got a byte is tried elsewhere.
#![forbid(unsafe_code)]

mod access;
mod address;
mod admin;
mod affinity;
mod answer;
mod arguments;
mod choice;
mod client_stream;
mod events;
mod fleet;
mod health;
mod instance;
mod intake;
mod legs;
mod metrics;
mod proxy;
mod recompute;
mod relay;
mod request;
mod routes;
mod server;
mod settings;
mod sse;
mod usage;

use std::process::ExitCode;

use kvstored_core::{Error, Result, Runtime};

pub use address::Address;
pub use affinity::{History, PrefixChain, PrefixMatches, PrefixSource};
pub use arguments::ProxyArguments;
pub use events::EventSource;
pub use server::{ProxyServer, StopHandle};
pub use settings::Settings;
pub use sse::{EventSplitter, events};

/// Serves until SIGTERM or SIGINT, then lets requests under way end within the drain time.
pub fn run(settings: Settings, runtime: Runtime) -> Result<ExitCode> {
    let executor = executor(settings.workers)?;
    executor.block_on(async move {
        // before anybody can see that it runs, and tell it to stop
        let signals = server::Signals::catch()?;
        let server = ProxyServer::bind(settings, runtime)?;
        let _stopper = tokio::spawn(signals.stop(server.stop_handle()));
        let drained = server.serve().await;
        Ok(if drained {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    })
}

/// One worker serves in the calling thread: no request then ever crosses threads.
fn executor(workers: usize) -> Result<tokio::runtime::Runtime> {
    let mut builder = if workers == 1 {
        tokio::runtime::Builder::new_current_thread()
    } else {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(workers);
        builder
    };
    builder
        .thread_name("kvstored-proxy")
        .enable_io()
        .enable_time()
        .build()
        .map_err(|error| Error::from_io(error, "can't start the proxy's executor"))
}
