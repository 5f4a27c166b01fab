//! `kvstored master`: which node of the memory pool holds which object.

mod arguments;
mod http;
mod metrics;
#[cfg(test)]
mod tests;

use std::process::ExitCode;
use std::sync::Arc;

use kvstored_core::{Result, Runtime};
use kvstored_host::config::Environment;
use kvstored_master::server::MasterServer;
use kvstored_transfer::reserve_descriptors;

use crate::http::HttpServer;
use crate::serve::{notify_supervisor, signals, start_logging};

pub use arguments::MasterArguments;
pub(crate) use arguments::read_token;
pub(crate) use http::ObjectRow;

/// Serves until told to stop.
pub fn run(arguments: MasterArguments, environment: &Environment) -> Result<ExitCode> {
    let settings = arguments.settings()?;
    let level = settings
        .log_level
        .clone()
        .or_else(|| environment.log_level.clone());
    start_logging(settings.log_format, level.as_deref().unwrap_or("info"));
    raise_descriptor_limit();
    let runtime = Runtime::system();
    reserve_descriptors(&runtime);
    let told = signals::watch(&runtime)?;
    let authenticated = settings.server.token.is_some();
    let ha = settings.server.ha.is_some();
    let master = settings.master.clone();
    let server = Arc::new(MasterServer::start(
        settings.server,
        settings.master,
        runtime.clone(),
    )?);
    let http = settings
        .metrics
        .map(|address| {
            let admin = address.ip().to_canonical().is_loopback();
            let state = http::AdminState {
                server: server.clone(),
                authenticated,
                admin,
                start_unix_ms: runtime.clock.unix_ms(),
            };
            HttpServer::start_router(address, http::router(Arc::new(state)), &runtime)
        })
        .transpose()?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        listen = %server.address(),
        http = http.as_ref().map_or_else(|| "off".to_owned(), |http| http.address().to_string()),
        token = authenticated,
        ha,
        eviction_high_watermark_ratio = master.eviction_high_watermark_ratio,
        eviction_ratio = master.eviction_ratio,
        default_kv_lease_ttl_ms = master.lease.as_millis() as u64,
        client_ttl_ms = master.client_ttl.as_millis() as u64,
        "kvstored master starts"
    );
    if !authenticated {
        tracing::warn!(
            "there is no token: whoever reaches this address may remove all objects and empty nodes; set one with --token-file"
        );
    }
    for flag in settings.without_effect {
        tracing::warn!(flag, "this flag has no effect here");
    }
    notify_supervisor("READY=1");
    let signal = told.recv().unwrap_or("no signal handler");
    tracing::info!(signal, "stopping");
    notify_supervisor("STOPPING=1");
    if let Some(http) = http {
        http.stop();
    }
    drop(server);
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Takes as many descriptors as the system allows: each client and node has a connection.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of descriptors stays as it is");
    }
}
