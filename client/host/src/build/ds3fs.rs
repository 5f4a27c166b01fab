//! The tier `Ds3fs`: the plugin of that name, with the settings that it shares with the Posix tier.

use std::sync::Arc;

use kvstored_core::{Pipeline, Result, Runtime, TierKind};
use kvstored_plugin_host::{PluginSettings, PluginTier};

use crate::config::{DS3FS, IoEngine, ServeSettings};

/// Whether a pipeline has it, by either name.
pub(super) fn is_in(pipeline: &Pipeline) -> bool {
    pipeline.contains(&TierKind::Ds3fs) || pipeline.contains(&TierKind::Plugin(DS3FS.into()))
}

/// Loads the plugin and opens its tier. Fails as every plugin does.
pub(super) fn open_ds3fs(settings: &ServeSettings, runtime: &Runtime) -> Result<Arc<PluginTier>> {
    let given = PluginSettings {
        settings: shared_settings(settings),
        tier_name: Some(TierKind::Ds3fs.to_string()),
        ..PluginSettings::default()
    };
    super::plugin::open_plugin(DS3FS, settings, given, runtime)
}

/// The Posix tier's settings as the plugin takes them.
fn shared_settings(settings: &ServeSettings) -> Vec<(String, String)> {
    let engine = match settings.posix_io_engine {
        IoEngine::Auto | IoEngine::Aio => "auto",
        IoEngine::Uring => "uring",
        IoEngine::Psync => "psync",
    };
    let mut shared = vec![
        ("capacity_bytes", settings.posix_capacity_bytes.to_string()),
        ("direct", settings.io_direct.to_string()),
        ("high_watermark", settings.posix_high_watermark.to_string()),
        ("io_engine", engine.to_owned()),
        ("low_watermark", settings.posix_low_watermark.to_string()),
        ("tail_interval_ms", settings.posix_tail_interval_ms.to_string()),
    ];
    // with Posix in the pipeline the directories are that tier's
    if !settings.pipeline.contains(&TierKind::Posix) {
        let directories: Vec<String> = settings
            .storage_directories
            .iter()
            .map(|directory| directory.display().to_string())
            .collect();
        shared.push(("directories", directories.join(":")));
    }
    if let Some(bytes) = settings.posix_segment_bytes {
        shared.push(("segment_bytes", bytes.to_string()));
    }
    if let Some(id) = &settings.posix_writer_id {
        shared.push(("writer_id", id.clone()));
    }
    shared
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}
