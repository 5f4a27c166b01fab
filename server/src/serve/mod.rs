//! `kvstored serve`: builds the engine, serves clients and HTTP, and stops in order when told to.

mod logging;
pub(crate) mod signals;
mod supervisor;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use kvstored_core::size::format_bytes;
use kvstored_core::{Error, Result, Runtime};

use crate::http::{AdminState, HttpServer, Parts, Phase};
use kvstored_host::config::{Environment, Loaded, ServeArguments, ServeSettings, load};
use kvstored_host::daemon::{Daemon, DaemonHandle, DaemonSettings, prepare_socket_directory};
use kvstored_host::{BuiltEngine, build};

pub(crate) use logging::start as start_logging;
pub use logging::start_for_tool;
pub(crate) use supervisor::notify as notify_supervisor;

/// Serves until told to stop. The exit code is 1 when what was accepted couldn't all be written in time.
pub fn run(arguments: ServeArguments, environment: &Environment) -> Result<ExitCode> {
    let loaded = load(arguments, environment)?;
    let settings = &loaded.settings;
    logging::start(settings.log_format, &settings.log_level);
    let runtime = Runtime::system();
    let told = signals::watch(&runtime)?;
    let state = AdminState::new(runtime.clock.unix_ms());
    let http = settings
        .http
        .map(|address| HttpServer::start(address, Arc::clone(&state), &runtime))
        .transpose()?;
    announce(&loaded, http.as_ref());

    let built = build(settings, runtime.clone(), true)?;
    let daemon = listen(settings, &built, &runtime)?;
    state.set_parts(parts(&built));
    state.set_phase(Phase::Ready);
    tracing::info!(
        listen = %format!("unix:{}", settings.socket.display()),
        blocks = built.engine.statistics().tiers.iter().map(|tier| tier.statistics.blocks).sum::<u64>(),
        "serving"
    );
    supervisor::notify("READY=1");

    let signal = told.recv().unwrap_or("no signal handler");
    state.set_phase(Phase::Draining);
    supervisor::notify("STOPPING=1");
    let timeout = Duration::from_millis(settings.drain_timeout_ms);
    tracing::info!(signal, timeout_ms = settings.drain_timeout_ms, "stopping");
    let drained = stop(&built, &daemon, timeout, &runtime);
    if let Some(http) = http {
        http.stop();
    }
    match drained {
        Ok(()) => {
            tracing::info!("stopped");
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            tracing::error!(%error, "stopped before everything was written");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The first log line, the settings once each, and what the file had to be told of.
fn announce(loaded: &Loaded, http: Option<&HttpServer>) {
    let settings = &loaded.settings;
    let storage: Vec<String> = settings
        .storage_directories
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        pipeline = %settings.pipeline,
        storage = if storage.is_empty() { "none".to_owned() } else { storage.join(":") },
        socket = %settings.socket.display(),
        http = http.map_or_else(|| "off".to_owned(), |server| server.address().to_string()),
        cache_buffer_capacity = format_bytes(settings.cache_capacity_bytes),
        "kvstored starts"
    );
    for (name, value, origin) in settings.rows() {
        tracing::info!(name, value, origin, "setting");
    }
    let file = loaded
        .file
        .as_ref()
        .map(|path| path.display().to_string())
        .unwrap_or_default();
    for problem in &loaded.unknown {
        tracing::warn!(
            file,
            line = problem.line,
            key = problem.key,
            value = problem.value,
            "{}",
            problem.message
        );
    }
    for remark in &loaded.remarks {
        tracing::info!(file, line = remark.line, key = remark.key, "{}", remark.message);
    }
    for note in &settings.notes {
        tracing::warn!("{note}");
    }
}

fn listen(settings: &ServeSettings, built: &BuiltEngine, runtime: &Runtime) -> Result<DaemonHandle> {
    prepare_socket_directory(&settings.socket)?;
    let arena = built
        .cache
        .arena_fd()
        .ok_or_else(|| Error::internal("the cache buffer is not shared memory"))?;
    Daemon::start(
        DaemonSettings::new(settings.socket.clone()),
        built.engine.clone(),
        arena,
        runtime.clone(),
    )
}

fn parts(built: &BuiltEngine) -> Parts {
    let (engine, cache) = (built.engine.clone(), built.cache.clone());
    Parts {
        statistics: Box::new(move || engine.statistics()),
        shadows: Box::new(move || cache.shadow_results()),
    }
}

/// Lets clients go, writes what was accepted, and stops the tiers, all within `timeout`.
fn stop(built: &BuiltEngine, daemon: &DaemonHandle, timeout: Duration, runtime: &Runtime) -> Result<()> {
    let deadline = runtime.deadline(timeout);
    // what clients have under way may take half of the time, so that writing has the other half for sure
    daemon.shutdown(timeout / 2);
    let drained = built.engine.drain(deadline);
    built.engine.shutdown();
    drained
}
