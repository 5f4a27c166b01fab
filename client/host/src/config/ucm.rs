//! The configuration file of UCM (unified cache manager), taken as it is.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use kvstored_core::Pipeline;

use super::options::ServeOptions;
use super::sizes::{Directories, Gibibytes};
use super::values::{IoEngine, Word};

/// The connector whose configuration is understood.
pub const CONNECTOR_NAME: &str = "UcmPipelineStore";

/// The top level of UCM's file.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct UcmTopLevel {
    /// The store's connectors; the first one counts.
    pub ucm_connectors: Vec<UcmConnector>,
    /// No effect here.
    pub enable_event_sync: Option<bool>,
    /// No effect here.
    pub use_layerwise: Option<bool>,
    /// No effect here.
    pub load_only_first_rank: Option<bool>,
    /// No effect here.
    pub metrics_config_path: Option<String>,
}

/// One connector of UCM's file.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct UcmConnector {
    /// `UcmPipelineStore`.
    pub ucm_connector_name: Option<String>,
    /// The store's settings.
    pub ucm_connector_config: UcmConnectorConfig,
    /// No effect here.
    pub ucm_connector_module_path: Option<String>,
}

/// A number or a text.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a number or a string")]
pub enum Identifier {
    /// A number.
    Number(i64),
    /// A text.
    Text(String),
}

/// Processor cores, as a list or a text such as `0-3,8`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a list of core numbers or a string")]
pub enum Cores {
    /// A list.
    List(Vec<u32>),
    /// A text.
    Text(String),
}

/// One size or one per tensor.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a size in bytes or a list of sizes")]
pub enum TensorSizes {
    /// The same for all.
    One(u64),
    /// One each.
    Each(Vec<u64>),
}

/// Settings of UCM's pipeline store: every key that it knows.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[allow(missing_docs)] // the names are UCM's; what they mean here is in `adopt` and `NO_EFFECT`
pub struct UcmConnectorConfig {
    pub store_pipeline: Option<Word<Pipeline>>,
    pub storage_backends: Option<Directories>,
    pub cache_buffer_capacity_gb: Option<Gibibytes>,
    pub io_direct: Option<bool>,
    pub posix_io_engine: Option<Word<IoEngine>>,
    pub posix_capacity_gb: Option<Gibibytes>,
    pub posix_gc_enable: Option<bool>,
    pub posix_gc_trigger_threshold_ratio: Option<f64>,
    pub posix_gc_recycle_percent: Option<f64>,
    pub block_size: Option<u64>,
    pub shard_size: Option<u64>,
    pub tensor_size: Option<TensorSizes>,
    pub tensor_size_list: Option<Vec<u64>>,
    pub unique_id: Option<Identifier>,
    pub device_id: Option<i64>,
    pub share_buffer_enable: Option<bool>,
    pub waiting_queue_depth: Option<u64>,
    pub running_queue_depth: Option<u64>,
    pub timeout_ms: Option<u64>,
    pub cache_stream_number: Option<u64>,
    pub cpu_affinity_cores: Option<Cores>,
    pub posix_data_trans_concurrency: Option<u64>,
    pub posix_lookup_concurrency: Option<u64>,
    pub posix_open_concurrency: Option<u64>,
    pub posix_commit_concurrency: Option<u64>,
    pub data_dir_shard_bytes: Option<u64>,
    pub posix_gc_check_interval_sec: Option<f64>,
    pub posix_gc_concurrency: Option<u64>,
    pub posix_gc_max_recycle_count_per_shard: Option<u64>,
    pub posix_gc_shard_sample_ratio: Option<f64>,
    pub stream_number: Option<u64>,
    pub buffer_size: Option<u64>,
}

/// Keys that are accepted and change nothing, and why.
pub const NO_EFFECT: [(&str, &str); 27] = [
    (
        "enable_event_sync",
        "it concerns the engine's connector, not the daemon",
    ),
    (
        "use_layerwise",
        "clients choose whole blocks or layers with each request",
    ),
    (
        "load_only_first_rank",
        "it concerns the engine's connector, not the daemon",
    ),
    (
        "metrics_config_path",
        "metrics are always served at /metrics of the HTTP address",
    ),
    (
        "ucm_connector_module_path",
        "it concerns the engine's connector, not the daemon",
    ),
    ("shard_size", "clients declare the layout of their blocks"),
    ("tensor_size", "clients declare the layout of their blocks"),
    ("tensor_size_list", "clients declare the layout of their blocks"),
    (
        "unique_id",
        "blocks are told apart by the digest of their whole identity",
    ),
    ("device_id", "the daemon touches no device"),
    (
        "share_buffer_enable",
        "the buffer is one for all processes of the node",
    ),
    (
        "waiting_queue_depth",
        "queues are bounded by the engine's own limits and answer busy when full",
    ),
    (
        "running_queue_depth",
        "queues are bounded by the engine's own limits and answer busy when full",
    ),
    ("timeout_ms", "clients choose a deadline with each request"),
    ("cache_stream_number", "clients choose their copy threads"),
    (
        "cpu_affinity_cores",
        "threads are few and placed by the system; pin the process where that matters",
    ),
    (
        "posix_data_trans_concurrency",
        "requests in flight are bounded by the I/O engine's depth",
    ),
    ("posix_lookup_concurrency", "lookups touch no disk"),
    ("posix_open_concurrency", "segments stay open"),
    ("posix_commit_concurrency", "commits are appended to one journal"),
    (
        "data_dir_shard_bytes",
        "blocks lie in segments, not in one file each",
    ),
    (
        "posix_gc_check_interval_sec",
        "eviction starts when the watermark is passed, without polling",
    ),
    ("posix_gc_concurrency", "eviction goes by segment"),
    ("posix_gc_max_recycle_count_per_shard", "eviction goes by segment"),
    ("posix_gc_shard_sample_ratio", "eviction goes by segment"),
    (
        "stream_number",
        "requests in flight are bounded by the rings' places (ds3fs.read_rings, ds3fs.ring_entries)",
    ),
    ("buffer_size", "cache_buffer_capacity_gb says the buffer's size"),
];

impl UcmConnectorConfig {
    /// Our options for these settings, and remarks on what is honoured in another way.
    pub fn adopt(&self) -> (ServeOptions, Vec<(&'static str, String)>) {
        let mut remarks = Vec::new();
        let mut options = ServeOptions {
            pipeline: self.store_pipeline.clone(),
            storage_backends: self.storage_backends.clone(),
            cache_buffer_capacity_gb: self.cache_buffer_capacity_gb,
            io_direct: self.io_direct,
            posix_capacity_gb: self.posix_capacity_gb,
            posix_io_engine: self.posix_io_engine.clone(),
            ..ServeOptions::default()
        };
        if self.posix_gc_enable == Some(false) {
            let why = "eviction can't be switched off: the capacity is a hard bound".to_owned();
            remarks.push(("posix_gc_enable", why));
        }
        // UCM recycles a part of what is stored once the threshold is passed
        if self.posix_gc_trigger_threshold_ratio.is_some() || self.posix_gc_recycle_percent.is_some() {
            let high = self.posix_gc_trigger_threshold_ratio.unwrap_or(0.7);
            let low = high * (1.0 - self.posix_gc_recycle_percent.unwrap_or(0.1));
            options.posix_high_watermark = Some(high);
            options.posix_low_watermark = Some(low);
        }
        (options, remarks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    use crate::config::file::{FileReport, known_keys};
    use crate::config::tests::resolve;

    #[test]
    fn keys_without_effect_are_known_keys() {
        let known: Vec<String> = [
            known_keys::<UcmTopLevel>(),
            known_keys::<UcmConnector>(),
            known_keys::<UcmConnectorConfig>(),
        ]
        .concat();
        for (key, why) in NO_EFFECT {
            assert!(known.iter().any(|name| name == key), "{key}");
            assert!(!why.is_empty());
        }
    }

    #[test]
    fn garbage_collection_becomes_watermarks() {
        let config = UcmConnectorConfig {
            posix_gc_trigger_threshold_ratio: Some(0.5),
            posix_gc_recycle_percent: Some(0.2),
            posix_gc_enable: Some(false),
            ..UcmConnectorConfig::default()
        };
        let (options, remarks) = config.adopt();
        assert_eq!(options.posix_high_watermark, Some(0.5));
        assert!((options.posix_low_watermark.unwrap() - 0.4).abs() < 1e-9);
        assert_eq!(remarks.len(), 1);
    }

    #[test]
    fn a_file_for_3fs_is_taken_as_it_is() {
        let text = r#"
ucm_connectors:
  - ucm_connector_name: "UcmPipelineStore"
    ucm_connector_config:
      store_pipeline: "Cache|Ds3fs"
      storage_backends: "/mount/3fs"
load_only_first_rank: false
"#;
        let environment = crate::config::Environment {
            plugin_probe: Some(PathBuf::from("/usr/bin/kvstored")),
            ..crate::config::Environment::default()
        };
        let settings = crate::config::tests::resolve_with(&[], text, &environment).unwrap();
        assert_eq!(settings.pipeline.to_string(), "Cache|Ds3fs");
        assert_eq!(settings.storage_directories, [PathBuf::from("/mount/3fs")]);
        let plugins = settings.plugins.unwrap();
        assert_eq!(plugins.directory, PathBuf::from("/usr/bin/plugins"));
    }

    #[test]
    fn every_key_of_ucm_is_accepted() {
        let text = r#"
ucm_connectors:
  - ucm_connector_name: UcmPipelineStore
    ucm_connector_module_path: somewhere.store
    ucm_connector_config:
      store_pipeline: "Cache|Posix"
      storage_backends: "/mnt/a:/mnt/b"
      unique_id: run-1
      device_id: -1
      tensor_size: 65536
      tensor_size_list: [65536, 65536]
      shard_size: 131072
      block_size: 8388608
      io_direct: false
      cache_buffer_capacity_gb: 32
      share_buffer_enable: true
      waiting_queue_depth: 8192
      running_queue_depth: 524288
      timeout_ms: 30000
      cache_stream_number: 4
      cpu_affinity_cores: [0, 1]
      posix_io_engine: aio
      posix_data_trans_concurrency: 128
      posix_lookup_concurrency: 8
      posix_open_concurrency: 8
      posix_commit_concurrency: 8
      data_dir_shard_bytes: 3
      posix_gc_enable: true
      posix_capacity_gb: 100
      posix_gc_trigger_threshold_ratio: 0.7
      posix_gc_recycle_percent: 0.1
      posix_gc_check_interval_sec: 30
      posix_gc_concurrency: 16
      posix_gc_max_recycle_count_per_shard: 1000
      posix_gc_shard_sample_ratio: 0.1
      stream_number: 32
      buffer_size: 64
enable_event_sync: true
use_layerwise: true
load_only_first_rank: false
metrics_config_path: /etc/metrics.yaml
"#;
        let settings = resolve(&[], text);
        assert_eq!(
            settings.storage_directories,
            [PathBuf::from("/mnt/a"), PathBuf::from("/mnt/b")]
        );
        assert_eq!(settings.posix_capacity_bytes, 100 << 30);
        assert_eq!(settings.posix_io_engine, IoEngine::Aio);
        assert!(!settings.io_direct);
        assert!((settings.posix_high_watermark - 0.7).abs() < 1e-9);
        assert!((settings.posix_low_watermark - 0.63).abs() < 1e-9);
        assert!(
            settings.notes.iter().any(|note| note.contains("aio")),
            "{:?}",
            settings.notes
        );
        let report = FileReport::parse(text).unwrap();
        assert_eq!(report.block_bytes, Some(8_388_608));
        assert_eq!(report.ucm_keys["use_layerwise"], true);
        assert_eq!(report.ucm_keys["timeout_ms"], 30_000);
        assert_eq!(
            report.remarks.len(),
            NO_EFFECT.len(),
            "each key without effect is said once"
        );
    }
}
