//! The Posix tier behind the plugin's interface.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kvstored_backends::io::{IoEngine, open_io_engine};
use kvstored_backends::posix::PosixTier;
use kvstored_core::tier::Tier as _;
use kvstored_core::{
    BlockHash, BlockKey, Error, EventKind, EventSink, Identity, Layout, Namespace, Runtime, Shard,
};
use kvstored_plugin::{
    Action, Durability, Failure, Host, Key, Kind, NamespaceInfo, Operation, Settings, Statistics, Tier, abi,
};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use crate::engine::{Regions, RingSettings, UsrbioEngine};
use crate::lend::Lending;
use crate::log;
use crate::settings::Ds3fsSettings;
use crate::usrbio::{Library3fs, Mount};

/// Keys that are told in one call.
const KEYS_AT_ONCE: usize = 4096;

/// The tier.
pub(crate) struct Ds3fs {
    posix: Arc<PosixTier>,
    runtime: Runtime,
    lending: Lending,
    namespaces: RwLock<HashMap<[u8; 32], Arc<kvstored_core::NamespaceInfo>>>,
}

/// What a namespace's digest stands for, as the host describes it.
#[derive(Deserialize, Serialize)]
struct Description {
    identity: Identity,
    layout: Vec<Vec<u32>>,
}

impl Tier for Ds3fs {
    const KEEPS: Durability = Durability::Durable;

    fn open(host: Host, settings: Settings) -> Result<Self, Failure> {
        log::forward_to(host);
        let settings = Ds3fsSettings::read(&settings)?;
        let runtime = Runtime::system();
        for directory in &settings.posix.directories {
            std::fs::create_dir_all(directory).map_err(|error| {
                let failure = Failure::from(error);
                Failure::new(
                    failure.kind(),
                    format!("{}: {}", directory.display(), failure.message()),
                )
            })?;
        }
        let (engine, mount) = engine(&settings, &runtime).map_err(failure)?;
        let posix =
            PosixTier::open_with_engine(settings.posix, runtime.clone(), None, engine).map_err(failure)?;
        posix.observe(EventSink::hook(move |kind, namespace, hash| {
            let key = [to_abi(namespace, hash)];
            match kind {
                EventKind::Stored => host.stored(&key),
                EventKind::Removed => host.removed(&key),
            }
        }));
        tell_all(&posix, host);
        Ok(Self {
            posix,
            lending: Lending::new(
                mount
                    .filter(|_| settings.zero_copy)
                    .map(|mount| Regions::new(mount, runtime.clone())),
            ),
            runtime,
            namespaces: RwLock::default(),
        })
    }

    fn open_namespace(&self, info: &NamespaceInfo) -> Result<(), Failure> {
        let described = describe(info)?;
        self.posix.open_namespace(&described).map_err(failure)?;
        self.namespaces.write().insert(info.digest, described);
        Ok(())
    }

    fn submit(&self, operation: Operation) {
        self.submit_batch(vec![operation]);
    }

    fn submit_batch(&self, operations: Vec<Operation>) {
        let mut last = None;
        let batch = operations
            .into_iter()
            .filter_map(|operation| self.take_over(operation, &mut last))
            .collect();
        self.posix.submit(batch);
    }

    fn remove(&self, keys: &[Key]) -> Result<(), Failure> {
        let mut by_namespace: HashMap<[u8; 32], Vec<BlockHash>> = HashMap::new();
        for key in keys {
            if let Some(hash) = hash_of(key) {
                by_namespace.entry(key.namespace_digest).or_default().push(hash);
            }
        }
        for (digest, hashes) in by_namespace {
            if let Some(info) = self.namespace(&digest) {
                self.posix.remove(&info, &hashes);
            }
        }
        Ok(())
    }

    fn purge(&self, namespace: &[u8; 32]) -> Result<(), Failure> {
        self.posix.purge(&Namespace(*namespace)).map_err(failure)?;
        Ok(())
    }

    fn statistics(&self, statistics: &mut Statistics) {
        let now = self.posix.statistics();
        statistics.degraded = u32::from(now.degraded);
        statistics.allocated_bytes = now.allocated_bytes;
        statistics.capacity_bytes = now.capacity_bytes;
        statistics.read_bytes = now.read_bytes;
        statistics.written_bytes = now.written_bytes;
        statistics.evicted_blocks = now.evicted_blocks;
        statistics.refused_writes = now.refused_writes;
    }

    fn drain(&self, timeout_ms: u64) -> Result<(), Failure> {
        let deadline = self.runtime.deadline(Duration::from_millis(timeout_ms));
        self.posix.drain(deadline).map_err(failure)
    }
}

impl Ds3fs {
    /// A namespace that the host has opened, or that lies here from an earlier run.
    fn namespace(&self, digest: &[u8; 32]) -> Option<Arc<kvstored_core::NamespaceInfo>> {
        let known = self.namespaces.read().get(digest).cloned();
        known.or_else(|| self.posix.stored_namespace(&Namespace(*digest)))
    }

    /// An operation as the Posix tier takes it; ends one that it can't take. `last` is the namespace of the one before.
    fn take_over(
        &self,
        operation: Operation,
        last: &mut Option<Arc<kvstored_core::NamespaceInfo>>,
    ) -> Option<kvstored_core::Operation> {
        let digest = &operation.key().namespace_digest;
        if last.as_ref().is_none_or(|last| last.namespace.0 != *digest) {
            *last = self.namespaces.read().get(digest).cloned();
        }
        let (Some(namespace), Some(hash)) = (last.clone(), hash_of(operation.key())) else {
            operation.fail(Failure::new(Kind::NotFound, "the namespace isn't open"));
            return None;
        };
        // SAFETY: the completion below drops the buffer before it ends the operation; the Posix tier gives its only
        // guard to the completion.
        let Some(buffer) = (unsafe { self.lending.lend(&operation) }) else {
            operation.fail(Failure::new(Kind::InvalidInput, "an operation without a buffer"));
            return None;
        };
        let action = match operation.action() {
            Action::Read => kvstored_core::Action::Read,
            Action::Write(Durability::Memory) => {
                kvstored_core::Action::Write(kvstored_core::Durability::Memory)
            }
            Action::Write(Durability::Tier) => kvstored_core::Action::Write(kvstored_core::Durability::Tier),
            Action::Write(Durability::Durable) => {
                kvstored_core::Action::Write(kvstored_core::Durability::Durable)
            }
        };
        Some(kvstored_core::Operation {
            namespace,
            hash,
            action,
            buffer,
            completion: Box::new(move |buffer, result| {
                drop(buffer);
                operation.end(result.map_err(failure));
            }),
        })
    }
}

/// The engine for blocks: USRBIO where it can be had, and then its mount too; ordinary I/O on the mount otherwise.
fn engine(
    settings: &Ds3fsSettings,
    runtime: &Runtime,
) -> kvstored_core::Result<(Arc<dyn IoEngine>, Option<Mount>)> {
    let posix = open_io_engine(&settings.posix.io, runtime, "ds3fs-posix")?;
    let rings = || -> kvstored_core::Result<(UsrbioEngine, Mount)> {
        let library = Library3fs::load(&settings.library)?;
        let first = settings.posix.directories.first();
        let directory = first.ok_or_else(|| Error::invalid("directories is empty"))?;
        let mount = Mount::around(&library, directory)?;
        let engine = UsrbioEngine::open(&settings.rings, &mount, runtime, Arc::clone(&posix))?;
        Ok((engine, mount))
    };
    match rings() {
        Ok((engine, mount)) => {
            let RingSettings {
                read_rings,
                write_rings,
                ring_entries,
                ..
            } = settings.rings;
            tracing::info!(mount = %mount.path().display(), read_rings, write_rings, ring_entries,
                "blocks go through USRBIO");
            Ok((Arc::new(engine), Some(mount)))
        }
        Err(error) => {
            tracing::warn!(%error, library = settings.library, engine = posix.name(),
                "USRBIO can't be used; blocks are read and written on the mount");
            Ok((posix, None))
        }
    }
}

/// Tells the host of every block that is here, and what their namespaces are.
fn tell_all(posix: &PosixTier, host: Host) {
    for (namespace, _) in posix.namespaces() {
        let info = posix.stored_namespace(&namespace);
        match info.map(|info| to_host(&info)).transpose() {
            Ok(Some(info)) => host.describe(&info),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, %namespace, "a namespace can't be described"),
        }
    }
    let mut after: Option<BlockKey> = None;
    loop {
        let keys = posix.list(None, after.as_ref(), KEYS_AT_ONCE);
        let Some(last) = keys.last() else { return };
        after = Some(*last);
        let told: Vec<Key> = keys.iter().map(|key| to_abi(&key.namespace, &key.hash)).collect();
        host.stored(&told);
    }
}

/// A namespace as the host describes one.
fn to_host(info: &kvstored_core::NamespaceInfo) -> serde_json::Result<NamespaceInfo> {
    let shards = info.layout.shards().iter();
    let layout = shards.map(|shard| shard.tensor_bytes.clone()).collect();
    let description = Description {
        identity: info.identity.clone(),
        layout,
    };
    Ok(NamespaceInfo {
        digest: info.namespace.0,
        image_bytes: info.layout.image_bytes() as u64,
        payload_bytes: info.layout.payload_bytes() as u64,
        tenant: info.identity.tenant.clone(),
        model: info.identity.model.clone(),
        description: serde_json::to_string(&description)?,
    })
}

/// A namespace from its description. Fails with `Unsupported` where there's none, and with `Mismatch` where it's another
/// namespace's.
fn describe(info: &NamespaceInfo) -> Result<Arc<kvstored_core::NamespaceInfo>, Failure> {
    if info.description.is_empty() {
        let message = "the host doesn't describe namespaces (version 1.1 of the interface is needed)";
        return Err(Failure::new(Kind::Unsupported, message));
    }
    let wrong = |what: String| Failure::new(Kind::InvalidInput, format!("a namespace's description: {what}"));
    let Description { identity, layout } =
        serde_json::from_str(&info.description).map_err(|error| wrong(error.to_string()))?;
    let shards = layout
        .into_iter()
        .map(|tensor_bytes| Shard { tensor_bytes })
        .collect();
    let described = Layout::new(shards)
        .and_then(|layout| kvstored_core::NamespaceInfo::new(identity, layout))
        .map_err(|error| wrong(error.to_string()))?;
    if described.namespace.0 != info.digest {
        return Err(Failure::new(
            Kind::Mismatch,
            "a namespace's description is another one's",
        ));
    }
    Ok(Arc::new(described))
}

fn hash_of(key: &Key) -> Option<BlockHash> {
    BlockHash::new(key.hash.bytes.get(..key.hash.length as usize)?).ok()
}

fn to_abi(namespace: &Namespace, hash: &BlockHash) -> Key {
    Key {
        namespace_digest: namespace.0,
        hash: abi::Hash {
            bytes: *hash.padded(),
            length: hash.len() as u32,
            reserved: 0,
        },
    }
}

/// An error for the host.
fn failure(error: Error) -> Failure {
    use kvstored_core::ErrorKind;
    let kind = match error.kind() {
        ErrorKind::InvalidInput => Kind::InvalidInput,
        ErrorKind::NotFound => Kind::NotFound,
        ErrorKind::AlreadyExists => Kind::AlreadyExists,
        ErrorKind::Mismatch => Kind::Mismatch,
        ErrorKind::Busy => Kind::Busy,
        ErrorKind::TooLarge => Kind::TooLarge,
        ErrorKind::NoSpace => Kind::NoSpace,
        ErrorKind::QuotaExceeded => Kind::QuotaExceeded,
        ErrorKind::Corrupt => Kind::Corrupt,
        ErrorKind::TimedOut => Kind::TimedOut,
        ErrorKind::Cancelled => Kind::Cancelled,
        ErrorKind::Unavailable => Kind::Unavailable,
        ErrorKind::Fenced => Kind::Fenced,
        ErrorKind::Unsupported => Kind::Unsupported,
        ErrorKind::PermissionDenied => Kind::PermissionDenied,
        ErrorKind::Io => Kind::Io,
        ErrorKind::Internal => Kind::Internal,
    };
    Failure::new(kind, error.to_string())
}
