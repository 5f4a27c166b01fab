//! The settings of `serve`, complete and checked.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use kvstored_core::eviction::PolicyKind;
use kvstored_core::size::format_bytes;
use kvstored_core::{Pipeline, TierKind};
use kvstored_object::S3Settings;
use serde_json::Value;

use super::environment::Environment;
use super::file::{FileReport, Problem, Severity};
use super::hbm::HbmOptions;
use super::options::ServeOptions;
use super::plugins::{DS3FS, PluginOptions};
use super::pool::PoolSettings;
use super::s3;
use super::sizes::Quota;
use super::validate::{Check, MOST_DRAIN_MS};
use super::values::{IoEngine, LogFormat, LogLevel, Meaning, Word};

/// Where a setting comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody gave it.
    Default,
    /// The configuration file.
    File,
    /// The environment.
    Environment,
    /// The command line.
    Flag,
}

impl Origin {
    /// For logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::File => "file",
            Self::Environment => "environment",
            Self::Flag => "flag",
        }
    }
}

/// Everything that `serve` needs to know. Plain data.
#[derive(Clone, Debug, PartialEq)]
pub struct ServeSettings {
    /// Tiers from fast to durable.
    pub pipeline: Pipeline,
    /// Directories of the Posix tier, or of Ds3fs where there's no Posix.
    pub storage_directories: Vec<PathBuf>,
    /// Bound of the cache buffer.
    pub cache_capacity_bytes: u64,
    /// Bound of the storage; 0 takes most of what is free, plus what is there.
    pub posix_capacity_bytes: u64,
    /// The clients' socket.
    pub socket: PathBuf,
    /// Address of the HTTP endpoints; `None` for none.
    pub http: Option<SocketAddr>,
    /// Which block leaves the cache buffer first.
    pub eviction_policy: PolicyKind,
    /// Whether to ask for huge pages.
    pub huge_pages: bool,
    /// One in how many blocks the shadow caches follow; 0 for none.
    pub shadow_sample_one_in: u32,
    /// How the Posix tier reads and writes.
    pub posix_io_engine: IoEngine,
    /// Whether to go past the page cache.
    pub io_direct: bool,
    /// How often other writers' journals are read.
    pub posix_tail_interval_ms: u64,
    /// Size of a segment file; `None` derives it from the capacity.
    pub posix_segment_bytes: Option<u64>,
    /// The one identifier to write under.
    pub posix_writer_id: Option<String>,
    /// Whether to distrust the client caches of a network file system.
    pub posix_force_sync: bool,
    /// Used part at which eviction from storage starts.
    pub posix_high_watermark: f64,
    /// Used part at which eviction from storage stops.
    pub posix_low_watermark: f64,
    /// What each tenant may occupy in each tier; `*` stands for the others.
    pub tenant_quotas: BTreeMap<String, u64>,
    /// What each namespace may occupy in each tier, by its hexadecimal digits.
    pub namespace_quotas: BTreeMap<String, u64>,
    /// Device memory, where the pipeline has a tier of it.
    pub hbm: Option<HbmOptions>,
    /// The pool that this process takes part in, where the pipeline has one.
    pub pool: Option<PoolSettings>,
    /// The bucket, where the pipeline has one.
    pub s3: Option<S3Settings>,
    /// Where plugins come from, where the pipeline has one.
    pub plugins: Option<PluginOptions>,
    /// How long a drain may take.
    pub drain_timeout_ms: u64,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_level: String,
    /// Things the log should say once.
    pub notes: Vec<String>,
    origins: BTreeMap<String, Origin>,
}

impl ServeSettings {
    /// Puts flags over the file over the defaults, and checks the whole. Returns every problem, not only the first.
    pub fn resolve(
        flags: ServeOptions,
        file: &FileReport,
        environment: &Environment,
    ) -> Result<Self, Vec<Problem>> {
        let origins = origins(&flags, &file.options, environment);
        let options = flags.over(file.options.clone());
        let mut check = Check::new(file);
        let mut notes = Vec::new();

        let pipeline = match options.pipeline.clone() {
            Some(pipeline) => pipeline.0,
            None => Pipeline::read("Cache|Posix").map_err(|message| {
                vec![Problem {
                    severity: Severity::Wrong,
                    key: "pipeline".into(),
                    line: 0,
                    value: String::new(),
                    message,
                }]
            })?,
        };
        let keeps_blocks = pipeline.contains(&TierKind::Cache);
        let has_posix = pipeline.contains(&TierKind::Posix);
        let has_storage = has_posix || pipeline.contains(&TierKind::Ds3fs);
        let storage_directories = match (&options.storage_backends, has_storage) {
            (Some(directories), true) => directories.0.clone(),
            (None, true) if has_posix => vec![environment.default_storage()],
            (Some(_), false) => {
                notes.push(format!(
                    "storage_backends has no effect: pipeline {pipeline} has no Posix tier"
                ));
                Vec::new()
            }
            // where 3FS is mounted nobody can guess
            (None, _) => Vec::new(),
        };
        let cache_capacity_bytes = check.cache_capacity(&options, environment, keeps_blocks, &mut notes);
        let posix_capacity_bytes = check.posix_capacity(&options, storage_directories.len() as u64);
        let http = check.http(&options);
        let (posix_high_watermark, posix_low_watermark) = check.watermarks(&options);
        if options
            .posix_io_engine
            .as_ref()
            .is_some_and(|engine| engine.0 == IoEngine::Aio)
        {
            notes.push(
                "posix_io_engine aio: io_uring takes its place, psync where the system refuses io_uring"
                    .into(),
            );
        }
        let posix_tail_interval_ms = options.posix_tail_interval_ms.unwrap_or(50);
        check.range("posix_tail_interval_ms", posix_tail_interval_ms, 1, 60_000);
        let drain_timeout_ms = options.drain_timeout_ms.unwrap_or(30_000);
        check.range("drain_timeout_ms", drain_timeout_ms, 0, MOST_DRAIN_MS);
        check.writer_id(options.posix_writer_id.as_deref());
        check.namespace_quotas(&options);
        let hbm = if pipeline.contains(&TierKind::Hbm) {
            Some(HbmOptions::resolve(&options, &mut check))
        } else {
            HbmOptions::note_without_tier(&options, &pipeline, &mut notes);
            None
        };
        let pool = if pipeline.contains(&TierKind::Pool) {
            PoolSettings::resolve(&options, environment, &mut check, &mut notes)
        } else {
            PoolSettings::note_without_pool(&options, &pipeline, &mut notes);
            None
        };
        let plugins = PluginOptions::resolve(&options, &pipeline, environment, &mut check, &mut notes);
        if pipeline.contains(&TierKind::Ds3fs) {
            let own = plugins
                .as_ref()
                .is_some_and(|plugins| plugins.tells(DS3FS, "directories"));
            if has_posix && !own {
                let what = "Posix has storage_backends; Ds3fs needs ds3fs.directories beside it";
                check.wrong("plugin_setting", "", what);
            } else if storage_directories.is_empty() && !own {
                let what = "a pipeline with Ds3fs needs a directory on a mount of 3FS";
                check.wrong("storage_backends", "", what);
            }
        }
        let s3 = if pipeline.contains(&TierKind::S3) {
            Some(s3::resolve(&options, &mut check))
        } else {
            s3::note_without_bucket(&options, &pipeline, &mut notes);
            None
        };
        let log_level = check.log_level(&options, environment, &origins);

        if !check.problems.is_empty() {
            return Err(check.problems);
        }
        Ok(Self {
            pipeline,
            storage_directories,
            cache_capacity_bytes,
            posix_capacity_bytes,
            socket: options
                .listen
                .map_or_else(|| environment.default_socket(), |listen| listen.0.socket),
            http,
            eviction_policy: options
                .eviction_policy
                .map_or_else(PolicyKind::default, |policy| policy.0.0),
            huge_pages: options.huge_pages.unwrap_or(true),
            shadow_sample_one_in: options.shadow_sample_one_in.unwrap_or(64),
            posix_io_engine: options
                .posix_io_engine
                .map_or_else(IoEngine::default, |engine| engine.0),
            io_direct: options.io_direct.unwrap_or(true),
            posix_tail_interval_ms,
            posix_segment_bytes: options.posix_segment_bytes.map(|bytes| bytes.0),
            posix_writer_id: options.posix_writer_id,
            posix_force_sync: options.posix_force_sync.unwrap_or(false),
            posix_high_watermark,
            posix_low_watermark,
            tenant_quotas: by_name(options.tenant_quota),
            namespace_quotas: by_name(options.namespace_quota),
            hbm,
            pool,
            s3,
            plugins,
            drain_timeout_ms,
            log_format: options
                .log_format
                .map_or_else(LogFormat::default, |format| format.0),
            log_level,
            notes,
            origins,
        })
    }

    /// The settings that nobody touched, on that machine.
    pub fn defaults(environment: &Environment) -> Result<Self, Vec<Problem>> {
        Self::resolve(ServeOptions::default(), &FileReport::default(), environment)
    }

    /// Every setting as name, value and origin, for the log.
    pub fn rows(&self) -> Vec<(&'static str, String, &'static str)> {
        let directories: Vec<String> = self
            .storage_directories
            .iter()
            .map(|directory| directory.display().to_string())
            .collect();
        let quotas = |quotas: &BTreeMap<String, u64>| -> String {
            let all: Vec<String> = quotas
                .iter()
                .map(|(name, bytes)| format!("{name}={}", format_bytes(*bytes)))
                .collect();
            all.join(" ")
        };
        let posix_capacity = match self.posix_capacity_bytes {
            0 => "most of what is free".to_owned(),
            bytes => format_bytes(bytes),
        };
        let rows = vec![
            ("pipeline", self.pipeline.to_string()),
            ("storage_backends", directories.join(":")),
            ("cache_buffer_capacity", format_bytes(self.cache_capacity_bytes)),
            ("posix_capacity", posix_capacity),
            ("listen", format!("unix:{}", self.socket.display())),
            (
                "http",
                self.http
                    .map_or_else(|| "off".to_owned(), |address| address.to_string()),
            ),
            ("eviction_policy", self.eviction_policy.name().to_owned()),
            ("huge_pages", self.huge_pages.to_string()),
            ("shadow_sample_one_in", self.shadow_sample_one_in.to_string()),
            ("posix_io_engine", self.posix_io_engine.to_string()),
            ("io_direct", self.io_direct.to_string()),
            ("posix_tail_interval_ms", self.posix_tail_interval_ms.to_string()),
            (
                "posix_segment_bytes",
                self.posix_segment_bytes
                    .map_or_else(|| "by capacity".to_owned(), format_bytes),
            ),
            (
                "posix_writer_id",
                self.posix_writer_id.clone().unwrap_or_else(|| "any".to_owned()),
            ),
            ("posix_force_sync", self.posix_force_sync.to_string()),
            ("posix_high_watermark", self.posix_high_watermark.to_string()),
            ("posix_low_watermark", self.posix_low_watermark.to_string()),
            ("tenant_quota", quotas(&self.tenant_quotas)),
            ("namespace_quota", quotas(&self.namespace_quotas)),
            ("drain_timeout_ms", self.drain_timeout_ms.to_string()),
            ("log_format", self.log_format.to_string()),
            ("log_level", self.log_level.clone()),
        ];
        let hbm = self.hbm.iter().flat_map(HbmOptions::rows);
        let pool = self.pool.iter().flat_map(PoolSettings::rows);
        let s3 = self.s3.iter().flat_map(s3::rows);
        let plugins = self.plugins.iter().flat_map(PluginOptions::rows);
        rows.into_iter()
            .chain(hbm)
            .chain(pool)
            .chain(s3)
            .chain(plugins)
            .map(|(name, value)| (name, value, self.origin(name).name()))
            .collect()
    }

    /// Where a setting comes from; capacities by the name without `_gb`.
    pub fn origin(&self, name: &str) -> Origin {
        let with_unit = format!("{name}_gb");
        [name, with_unit.as_str()]
            .iter()
            .find_map(|key| self.origins.get(*key))
            .copied()
            .unwrap_or(Origin::Default)
    }
}

fn by_name(quotas: Vec<Quota>) -> BTreeMap<String, u64> {
    quotas
        .into_iter()
        .map(|quota| (quota.name, quota.capacity.0))
        .collect()
}

fn origins(flags: &ServeOptions, file: &ServeOptions, environment: &Environment) -> BTreeMap<String, Origin> {
    let mut origins = BTreeMap::new();
    let mut note = |options: &ServeOptions, origin: Origin| {
        let Ok(Value::Object(fields)) = serde_json::to_value(options) else {
            return;
        };
        for (key, value) in fields {
            if !value.is_null() && value != serde_json::json!({}) {
                // the two forms of a capacity are one setting
                origins.insert(key.strip_suffix("_gb").unwrap_or(&key).to_owned(), origin);
            }
        }
    };
    note(file, Origin::File);
    if environment.log_level.is_some() {
        let level = Some(Word(LogLevel(String::new())));
        note(
            &ServeOptions {
                log_level: level,
                ..ServeOptions::default()
            },
            Origin::Environment,
        );
    }
    note(flags, Origin::Flag);
    origins
}
