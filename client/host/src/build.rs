//! From settings to objects: tiers, quotas and the engine over them.

mod ds3fs;
mod hbm;
mod plugin;
mod pool;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use kvstored_backends::cache::{CacheSettings, CacheTier};
use kvstored_backends::io::{IoPreference, IoSettings};
use kvstored_backends::null::NullTier;
use kvstored_backends::posix::{PosixSettings, PosixTier};
use kvstored_core::quota::{QuotaLedger, QuotaSettings};
use kvstored_core::tier::MemoryTier as _;
use kvstored_core::tier::Tier;
use kvstored_core::{Engine, EngineSettings, Error, Result, Runtime, TierKind};
use kvstored_object::S3Tier;
use kvstored_plugin_host::PluginSettings;
use kvstored_transfer::reserve_descriptors;
use rustix::fs::{Access, access};

use crate::config::{IoEngine, ServeSettings};

pub use plugin::{open_device, plugged_transport};

/// The quota that stands for every tenant without one of its own.
const EVERY_TENANT: &str = "*";

/// An engine and those of its tiers that somebody asks for more than the contract says.
pub struct BuiltEngine {
    /// The engine.
    pub engine: Arc<Engine>,
    /// Its memory: a cache, or the staging area of a pipeline without one.
    pub cache: Arc<CacheTier>,
    /// Its Posix tier, if the pipeline has one.
    pub posix: Option<Arc<PosixTier>>,
}

/// An engine for use inside this process alone.
pub fn build_engine(settings: &ServeSettings, runtime: Runtime) -> Result<Arc<Engine>> {
    Ok(build(settings, runtime, false)?.engine)
}

/// Builds the pipeline. `shared` makes memory that other processes can map.
///
/// Fails as the tiers do, and with `PermissionDenied` or `Io`, naming the path, for a storage directory that can't be
/// written.
pub fn build(settings: &ServeSettings, runtime: Runtime, shared: bool) -> Result<BuiltEngine> {
    let keeps_blocks = settings.pipeline.contains(&TierKind::Cache);
    reserve_descriptors(&runtime);
    let cache = open_cache(settings, keeps_blocks, shared)?;
    let mut lower: Vec<Arc<dyn Tier>> = Vec::new();
    let mut posix = None;
    for kind in settings.pipeline.tiers() {
        match kind {
            TierKind::Cache => {}
            TierKind::Hbm => {
                let tier = hbm::open_hbm(settings, &runtime)?;
                // its copies go from and to the slots of the cache
                tier.register(cache.arena());
                lower.push(tier);
            }
            TierKind::Posix => {
                let tier = open_posix(settings, &runtime)?;
                lower.push(tier.clone());
                posix = Some(tier);
            }
            other => lower.push(build_tier(settings, other, &runtime)?),
        }
    }
    let engine = Engine::new(
        EngineSettings::default(),
        runtime,
        cache.clone(),
        keeps_blocks,
        lower,
    );
    Ok(BuiltEngine { engine, cache, posix })
}

/// One tier of a pipeline, by itself and for this process alone. Fails as [`build`] does.
pub fn build_tier(settings: &ServeSettings, kind: &TierKind, runtime: &Runtime) -> Result<Arc<dyn Tier>> {
    let missing = |what: &str| Error::internal(format!("a pipeline with a {what} and no settings for it"));
    Ok(match kind {
        TierKind::Hbm => hbm::open_hbm(settings, runtime)?,
        TierKind::Cache => open_cache(settings, true, false)?,
        TierKind::Empty => Arc::new(NullTier::empty()),
        TierKind::Fake => Arc::new(NullTier::fake()),
        TierKind::Pool => {
            let pool = settings.pool.as_ref().ok_or_else(|| missing("pool"))?;
            pool::open_pool(pool, settings.plugins.as_ref(), runtime)?
        }
        TierKind::Plugin(name) => plugin::open_plugin(name, settings, PluginSettings::default(), runtime)?,
        TierKind::Ds3fs => ds3fs::open_ds3fs(settings, runtime)?,
        TierKind::S3 => {
            let bucket = settings.s3.clone().ok_or_else(|| missing("bucket"))?;
            S3Tier::open(bucket, runtime.clone(), ledger(settings)?)?
        }
        TierKind::Posix => open_posix(settings, runtime)?,
    })
}

fn open_cache(settings: &ServeSettings, keep: bool, shared: bool) -> Result<Arc<CacheTier>> {
    let linkable = ds3fs::is_in(&settings.pipeline);
    let pinned = linkable || settings.pipeline.contains(&TierKind::Hbm);
    let cache_settings = CacheSettings {
        capacity_bytes: settings.cache_capacity_bytes,
        policy: settings.eviction_policy,
        keep,
        shared,
        huge_pages: settings.huge_pages,
        linkable,
        // tables can't take a part of it later
        table_bytes: pinned.then(|| CacheSettings::pinned_table_bytes(settings.cache_capacity_bytes)),
        shadow_sample_one_in: settings.shadow_sample_one_in,
    };
    CacheTier::open(cache_settings, if keep { ledger(settings)? } else { None })
}

fn open_posix(settings: &ServeSettings, runtime: &Runtime) -> Result<Arc<PosixTier>> {
    for directory in &settings.storage_directories {
        prepare_storage(directory)?;
    }
    PosixTier::open(posix_settings(settings), runtime.clone(), ledger(settings)?)
}

/// A tier's own count of what tenants and namespaces occupy in it, if anything is bounded.
fn ledger(settings: &ServeSettings) -> Result<Option<Arc<QuotaLedger>>> {
    if settings.tenant_quotas.is_empty() && settings.namespace_quotas.is_empty() {
        return Ok(None);
    }
    let named = settings
        .tenant_quotas
        .iter()
        .filter(|(tenant, _)| *tenant != EVERY_TENANT);
    let quotas = QuotaSettings {
        tenants: named
            .map(|(tenant, bytes)| (tenant.clone(), *bytes))
            .collect::<HashMap<_, _>>(),
        default_tenant_bytes: settings.tenant_quotas.get(EVERY_TENANT).copied(),
        namespaces: settings.namespace_quotas.clone().into_iter().collect(),
    };
    quotas.validate()?;
    Ok(Some(Arc::new(QuotaLedger::new(quotas))))
}

/// The Posix tier's settings.
fn posix_settings(settings: &ServeSettings) -> PosixSettings {
    PosixSettings {
        directories: settings.storage_directories.clone(),
        capacity_bytes: settings.posix_capacity_bytes,
        segment_bytes: settings.posix_segment_bytes,
        io: IoSettings {
            preference: match settings.posix_io_engine {
                IoEngine::Auto | IoEngine::Aio => IoPreference::Auto,
                IoEngine::Uring => IoPreference::Uring,
                IoEngine::Psync => IoPreference::Psync,
            },
            ..IoSettings::default()
        },
        direct: settings.io_direct,
        tail_interval_ms: settings.posix_tail_interval_ms,
        force_sync: settings.posix_force_sync,
        writer_id: settings.posix_writer_id.clone(),
        high_watermark: settings.posix_high_watermark,
        low_watermark: settings.posix_low_watermark,
        ..PosixSettings::default()
    }
}

/// Creates a storage directory where it's missing, and says clearly when it can't be used.
fn prepare_storage(directory: &Path) -> Result<()> {
    let failed = |error: std::io::Error, what: &str| {
        Error::from_io(error, format!("storage directory {what}"))
            .with("storage_backends", directory.display())
    };
    std::fs::create_dir_all(directory).map_err(|error| failed(error, "can't be created"))?;
    access(directory, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| failed(error.into(), "can't be written"))
}

#[cfg(test)]
mod tests;
