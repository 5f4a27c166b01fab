//! An engine in this process, and the listener for other processes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kvstored_client::{Client, ClientSettings};
use kvstored_core::{Engine, Error, Result, Runtime};
use kvstored_host::BuiltEngine;
use kvstored_host::config::ServeSettings;
use kvstored_host::daemon::{Daemon, DaemonHandle, DaemonSettings, prepare_socket_directory};

/// An engine in this process, and who else it is served to.
pub struct Embedded {
    engine: Arc<Engine>,
    daemon: Option<DaemonHandle>,
}

impl Embedded {
    /// Builds the engine, and where `listen` names a socket, serves it there. The memory is shared only then.
    pub fn open(settings: &ServeSettings, listen: Option<&Path>, runtime: &Runtime) -> Result<Self> {
        let built = kvstored_host::build(settings, runtime.clone(), listen.is_some())?;
        let engine = built.engine.clone();
        let daemon = listen
            .map(|socket| start_daemon(&built, socket, runtime))
            .transpose();
        let daemon = daemon.inspect_err(|_| engine.shutdown())?;
        Ok(Self { engine, daemon })
    }

    /// A client of the engine.
    pub fn client(&self, settings: ClientSettings, runtime: &Runtime) -> Result<Client> {
        Client::embedded(self.engine.clone(), settings, runtime.clone())
    }

    /// Lets other processes go, writes what was accepted, and stops the engine, all within about `timeout`.
    pub fn close(&self, timeout: Duration, runtime: &Runtime) -> Result<()> {
        let deadline = runtime.deadline(timeout);
        if let Some(daemon) = &self.daemon {
            // what clients have under way may take half of the time, so that writing has the other half for sure
            daemon.shutdown(timeout / 2);
        }
        let drained = self.engine.drain(deadline);
        self.engine.shutdown();
        drained
    }
}

fn start_daemon(built: &BuiltEngine, socket: &Path, runtime: &Runtime) -> Result<DaemonHandle> {
    prepare_socket_directory(socket)?;
    let arena = built
        .cache
        .arena_fd()
        .ok_or_else(|| Error::internal("the cache buffer is not shared memory"))?;
    Daemon::start(
        DaemonSettings::new(socket.to_owned()),
        built.engine.clone(),
        arena,
        runtime.clone(),
    )
}
