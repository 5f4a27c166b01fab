mod clients;
mod faults;
#[path = "../../../../src/tests/map_tier.rs"]
mod map_tier;
mod raw;
#[path = "../../../../src/tests/rig.rs"]
mod rig;
mod shutdown;

use std::path::PathBuf;
use std::sync::Arc;

use kvstored_client::{
    BlockOutcome, Client, ClientSettings, DumpRequest, LoadOrder, LoadRequest, NamespaceHandle, TaskReport,
    TensorAddress,
};

use super::{Daemon, DaemonHandle, DaemonSettings};
use rig::Rig;

/// A daemon on a socket in a directory of its own.
struct Served {
    rig: Rig,
    handle: DaemonHandle,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Served {
    fn new(cache_blocks: usize) -> Self {
        Self::with(cache_blocks, |_| {})
    }

    fn with(cache_blocks: usize, change: impl FnOnce(&mut DaemonSettings)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kvstored.sock");
        let rig = Rig::new(cache_blocks);
        let mut settings = DaemonSettings::new(path.clone());
        change(&mut settings);
        let handle = serve(&rig, settings).unwrap();
        Self {
            rig,
            handle,
            path,
            _directory: directory,
        }
    }

    fn client(&self) -> Arc<Client> {
        Arc::new(Client::connect(&self.path, rig::settings(), self.rig.runtime.clone()).unwrap())
    }
}

fn serve(rig: &Rig, settings: DaemonSettings) -> kvstored_core::Result<DaemonHandle> {
    Daemon::start(
        settings,
        rig.engine.clone(),
        rig.cache.arena_fd().unwrap(),
        rig.runtime.clone(),
    )
}
