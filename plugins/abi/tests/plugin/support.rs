//! Plugin directories with plugins built for the test.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use kvstored_core::checksum::Checksum;
use kvstored_core::quota::QuotaLedger;
use kvstored_core::{
    Acquired, BlockHash, Durability, Engine, NamespaceInfo, Reserved, Result, Runtime, SlotGuard,
};
use kvstored_plugin_host::{
    PluginDevice, PluginDirectory, PluginSettings, PluginTier, PluginTransport, Probe,
};

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Where the plugins' sources are.
pub fn plugins() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A library that cargo has built beside this test.
pub fn beside(file: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    tests.parent().unwrap().join(file)
}

/// A directory that may be loaded from.
pub struct Directory {
    pub root: tempfile::TempDir,
}

impl Directory {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o700)).unwrap();
        Self { root }
    }

    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// Compiles a C plugin into the directory.
    pub fn compile(&self, source: &Path, name: &str, flags: &[&str]) {
        let output = self.path().join(format!("{name}.so"));
        let done = Command::new("cc")
            .args([
                "-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-pthread",
            ])
            .args(flags)
            .arg("-I")
            .arg(plugins().join("abi/include"))
            .arg(source)
            .arg("-o")
            .arg(&output)
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        fs::set_permissions(&output, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Puts the example in Rust there.
    pub fn copy_memory(&self) {
        self.copy_built("libkvstored_plugin_memory.so", "memory");
    }

    /// Puts a plugin there that cargo has built beside this test.
    pub fn copy_built(&self, file: &str, name: &str) {
        let built = beside(file);
        let copy = self.path().join(format!("{name}.so"));
        fs::copy(&built, &copy).unwrap_or_else(|error| panic!("{}: {error}", built.display()));
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Lists what is there, as an operator would.
    pub fn list(&self) {
        let done = Command::new("sh")
            .args(["-c", "sha256sum *.so > SHA256SUMS && chmod 644 SHA256SUMS"])
            .current_dir(self.path())
            .status()
            .unwrap();
        assert!(done.success());
    }

    pub fn open(&self, name: &str, timeout: Duration, settings: &[(&str, &str)]) -> Result<Arc<PluginTier>> {
        self.open_with(name, timeout, settings, None)
    }

    pub fn open_within(
        &self,
        name: &str,
        settings: &[(&str, &str)],
        quotas: &Arc<QuotaLedger>,
    ) -> Result<Arc<PluginTier>> {
        self.open_with(name, PATIENCE, settings, Some(quotas))
    }

    pub fn open_with(
        &self,
        name: &str,
        timeout: Duration,
        settings: &[(&str, &str)],
        quotas: Option<&Arc<QuotaLedger>>,
    ) -> Result<Arc<PluginTier>> {
        let (plugins, settings) = self.plugins(timeout, settings);
        plugins.open(name, settings, quotas.cloned(), &Runtime::system())
    }

    pub fn open_device(&self, name: &str, settings: &[(&str, &str)]) -> Result<Arc<PluginDevice>> {
        let (plugins, settings) = self.plugins(PATIENCE, settings);
        plugins.open_device(name, &settings, &Runtime::system())
    }

    pub fn open_transport(&self, name: &str, settings: &[(&str, &str)]) -> Result<Arc<PluginTransport>> {
        let (plugins, settings) = self.plugins(PATIENCE, settings);
        plugins.open_transport(name, &settings, &Runtime::system())
    }

    fn plugins(&self, timeout: Duration, settings: &[(&str, &str)]) -> (PluginDirectory, PluginSettings) {
        let probe = Probe {
            timeout: Duration::from_secs(10),
            ..Probe::new(env!("CARGO_BIN_EXE_kvstored-plugin-probe").into(), &[])
        };
        let settings = PluginSettings {
            settings: settings
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            timeout,
            ..PluginSettings::default()
        };
        (PluginDirectory::new(self.path().to_owned(), probe), settings)
    }
}

fn payload(namespace: &NamespaceInfo, shard: usize) -> Vec<u8> {
    let bytes = namespace.layout.shard(shard).unwrap().payload_bytes();
    vec![shard as u8 + 1; bytes]
}

/// Dumps a block, its last shard first, and waits until it's in memory.
pub fn dump(engine: &Engine, namespace: &Arc<NamespaceInfo>, hash: BlockHash) {
    let (sender, reserved) = channel();
    let done = Box::new(move |outcomes| sender.send(outcomes).unwrap());
    let deadline = engine.runtime().deadline(PATIENCE);
    engine.reserve(namespace, None, &[hash], deadline, done);
    let mut outcomes: Vec<Reserved> = reserved.recv_timeout(PATIENCE).unwrap();
    let Some(Reserved::Slot(reservation)) = outcomes.pop() else {
        panic!("no slot")
    };
    for shard in (0..namespace.layout.shards().len()).rev() {
        let bytes = payload(namespace, shard);
        let mut checksum = Checksum::new();
        checksum.update(&bytes);
        let slot = reservation.slot();
        let offset = slot.offset() + namespace.layout.shard_offset(shard).unwrap();
        slot.arena().write(offset, &bytes).unwrap();
        reservation.put_shard(shard, checksum.value()).unwrap();
    }
    let (sender, committed) = channel();
    let done = Box::new(move |outcome| sender.send(outcome).unwrap());
    engine.commit(*reservation, Durability::Memory, done);
    committed.recv_timeout(PATIENCE).unwrap().unwrap();
}

/// Loads a block that has to be somewhere.
pub fn acquire(engine: &Engine, namespace: &Arc<NamespaceInfo>, hash: BlockHash) -> Acquired {
    let (sender, acquired) = channel();
    let done = Box::new(move |outcomes| sender.send(outcomes).unwrap());
    engine.acquire(namespace, &[hash], done);
    let mut outcomes: Vec<Result<Acquired>> = acquired.recv_timeout(PATIENCE).unwrap();
    outcomes.pop().unwrap().unwrap()
}

/// Checks that a slot has what [`dump`] wrote.
pub fn expect_payload(namespace: &NamespaceInfo, slot: &SlotGuard) {
    for shard in 0..namespace.layout.shards().len() {
        let expected = payload(namespace, shard);
        let mut bytes = vec![0; expected.len()];
        let offset = slot.offset() + namespace.layout.shard_offset(shard).unwrap();
        slot.arena().read(offset, &mut bytes).unwrap();
        assert_eq!(bytes, expected, "shard {shard}");
    }
}
