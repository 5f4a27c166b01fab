//! Opening the tier: directories, capacities, recovery, threads.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvstored_core::quota::QuotaLedger;
use kvstored_core::{Error, ErrorKind, Result, Runtime};
use parking_lot::Mutex;

use super::PosixTier;
use super::directory::Directory;
use super::format::WriterId;
use super::index::Index;
use super::log::Log;
use super::maintenance::{Bell, adopt, random_id, run_chores, run_tail};
use super::own::read_owner;
use super::quota::Quotas;
use super::segments::SegmentTable;
use super::settings::PosixSettings;
use super::shared::{Counters, Host, Outstanding, Shared};
use crate::io::{IoEngine, open_io_engine};

/// Part of the free space that is used when no capacity is given, in percent.
const FREE_SPACE_PERCENT: u64 = 80;

impl PosixTier {
    /// Opens the directories, recovers what dead writers left and starts the tier's threads.
    ///
    /// Fails with `Unsupported` for a directory of a newer format, with `AlreadyExists` if the forced writer id
    /// has a live owner, and with `PermissionDenied` or `Io`, naming the path, for one that can't be used.
    pub fn open(
        settings: PosixSettings,
        runtime: Runtime,
        quotas: Option<Arc<QuotaLedger>>,
    ) -> Result<Arc<PosixTier>> {
        settings.validate()?;
        let engine = open_io_engine(&settings.io, &runtime, "posix")?;
        Self::open_with_engine(settings, runtime, quotas, engine)
    }

    /// As [`PosixTier::open`], with an I/O engine of the caller's.
    pub fn open_with_engine(
        settings: PosixSettings,
        runtime: Runtime,
        quotas: Option<Arc<QuotaLedger>>,
        engine: Arc<dyn IoEngine>,
    ) -> Result<Arc<PosixTier>> {
        settings.validate()?;
        let directories = settings
            .directories
            .iter()
            .map(|path| Directory::open(path, settings.read_only))
            .collect::<Result<Vec<_>>>()?;
        let capacities = capacities(&settings, &directories)?;
        let shared = Arc::new(Shared {
            segments: SegmentTable::new(settings.direct),
            quotas: Quotas::new(quotas),
            index: Index::default(),
            counters: Counters::default(),
            host: Host::current(),
            outstanding: Outstanding::default(),
            runtime,
            settings,
        });
        let logs: Vec<Arc<Log>> = directories
            .into_iter()
            .zip(capacities)
            .enumerate()
            .map(|(number, (directory, capacity))| {
                Arc::new(Log::new(
                    Arc::clone(&shared),
                    number,
                    directory,
                    Arc::clone(&engine),
                    capacity,
                ))
            })
            .collect();
        for log in &logs {
            for (namespace, manifest) in log.directory.manifests() {
                if let Some(info) = &manifest.info {
                    shared.index.open(info);
                }
                if manifest.purged_generation > 0 {
                    shared.index.purge(&namespace, manifest.purged_generation, |_| {});
                }
            }
        }
        for log in &logs {
            if !shared.settings.read_only {
                take_writer(log)?;
            }
            log.tailer.lock().round(log)?;
            log.used_bytes
                .store(log.directory.usage()?.total_bytes, Ordering::Relaxed);
        }
        let bell = Arc::new(Bell::default());
        let threads = start(&shared, &logs, &bell)?;
        Ok(Arc::new(PosixTier {
            shared,
            engine,
            logs,
            bell,
            threads: Mutex::new(threads),
        }))
    }
}

/// The capacity of each directory.
fn capacities(settings: &PosixSettings, directories: &[Directory]) -> Result<Vec<u64>> {
    if settings.capacity_bytes > 0 {
        let each = settings.capacity_bytes / directories.len().max(1) as u64;
        return Ok(vec![each; directories.len()]);
    }
    let mut devices: HashMap<u64, u64> = HashMap::new();
    let mut free = Vec::new();
    for directory in directories {
        let (bytes, device) = directory.free_bytes()?;
        *devices.entry(device).or_default() += 1;
        free.push((bytes, device));
    }
    let mut capacities = Vec::new();
    for (directory, (bytes, device)) in directories.iter().zip(free) {
        let sharing = devices.get(&device).copied().unwrap_or(1).max(1);
        let held = directory.usage()?.total_bytes;
        capacities.push(bytes / 100 * FREE_SPACE_PERCENT / sharing + held);
    }
    Ok(capacities)
}

/// Adopts every dead writer; one of them, or a new one, becomes the process's own.
fn take_writer(log: &Log) -> Result<()> {
    let forced = log
        .shared
        .settings
        .writer_id
        .as_deref()
        .map(WriterId::from_hex)
        .transpose()?;
    if let Some(id) = forced {
        let writer = adopt(log, id)?.ok_or_else(|| taken(log, id))?;
        log.own.lock().active = Some(writer);
    }
    for id in log.directory.list_writers()? {
        match adopt(log, id) {
            Ok(Some(writer)) => {
                let mut own = log.own.lock();
                if own.active.is_none() {
                    own.active = Some(writer);
                } else {
                    own.adopted.push(writer);
                }
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, writer = %id, "a writer can't be adopted"),
        }
    }
    let missing = log.own.lock().active.is_none();
    if missing {
        // a taken id is one that another process chose at this moment
        for _ in 0..16 {
            if let Some(writer) = adopt(log, random_id(log))? {
                super::directory::sync_directory(&log.directory.writers())?;
                log.own.lock().active = Some(writer);
                return Ok(());
            }
        }
        return Err(Error::new(ErrorKind::Busy, "no writer id can be had"));
    }
    Ok(())
}

/// The error of a forced writer id that is in use, naming by whom.
fn taken(log: &Log, id: WriterId) -> Error {
    let owner = File::open(log.directory.writer(id).join("owner"))
        .map_err(|error| Error::from_io(error, "owner"))
        .and_then(|file| read_owner(&file));
    let by = owner.map_or_else(
        |_| "another process".to_owned(),
        |owner| format!("process {} on host {}", owner.process_id, owner.host),
    );
    Error::new(
        ErrorKind::AlreadyExists,
        format!("writer id {id} is in use by {by}"),
    )
    .with("path", log.directory.path().display())
}

fn start(
    shared: &Arc<Shared>,
    logs: &[Arc<Log>],
    bell: &Arc<Bell>,
) -> Result<Vec<kvstored_core::runtime::ThreadHandle>> {
    let spawner = &shared.runtime.spawner;
    let mut threads = Vec::new();
    for log in logs {
        if !shared.settings.read_only {
            let writing = Arc::clone(log);
            let name = format!("posix-log-{}", log.number);
            threads.push(spawner.spawn(&name, Box::new(move || super::write::run(&writing)))?);
        }
        let keeping = Arc::clone(log);
        let name = format!("posix-keep-{}", log.number);
        threads.push(spawner.spawn(&name, Box::new(move || run_chores(&keeping)))?);
    }
    let (followed, bell) = (logs.to_vec(), Arc::clone(bell));
    threads.push(spawner.spawn("posix-tail", Box::new(move || run_tail(&followed, &bell)))?);
    Ok(threads)
}
