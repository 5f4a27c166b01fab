//! A directory of plugins.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kvstored_core::quota::QuotaLedger;
use kvstored_core::{Error, Result, Runtime};

use crate::device::PluginDevice;
use crate::library::{self, Loaded, PluginFacts};
use crate::probe::Probe;
use crate::tier::PluginTier;
use crate::transport::PluginTransport;
use crate::trust;

/// How a plugged-in tier is used. Plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginSettings {
    /// What the plugin is told at open.
    pub settings: Vec<(String, String)>,
    /// How long an operation, and every other call, may take.
    pub timeout: Duration,
    /// Operations that may wait or be under way; more are refused as busy.
    pub queue_depth: usize,
    /// The tier's name, where it isn't `Plugin(name)`.
    pub tier_name: Option<String>,
}

impl Default for PluginSettings {
    fn default() -> Self {
        Self {
            settings: Vec::new(),
            timeout: Duration::from_secs(5),
            queue_depth: 8192,
            tier_name: None,
        }
    }
}

/// Where plugins lie: `NAME.so` for each, and their sums in `SHA256SUMS`.
#[derive(Clone, Debug)]
pub struct PluginDirectory {
    path: PathBuf,
    probe: Probe,
}

impl PluginDirectory {
    /// A directory and the program that tries its plugins. Nothing is looked at yet.
    pub fn new(path: PathBuf, probe: Probe) -> Self {
        Self { path, probe }
    }

    /// Loads a plugin and opens its tier, within those quotas.
    ///
    /// Fails with `PermissionDenied` where others could have put something into its place, `Mismatch` where it isn't the
    /// one that is listed, `Unsupported` for another version of the interface, `InvalidInput` or `TimedOut` where it
    /// can't be loaded, and as the plugin's own `open` does.
    pub fn open(
        &self,
        name: &str,
        settings: PluginSettings,
        quotas: Option<Arc<QuotaLedger>>,
        runtime: &Runtime,
    ) -> Result<Arc<PluginTier>> {
        PluginTier::open(self.load(name, runtime)?, settings, quotas, runtime)
    }

    /// Loads a plugin and opens its device. Fails as [`PluginDirectory::open`] does.
    pub fn open_device(
        &self,
        name: &str,
        settings: &PluginSettings,
        runtime: &Runtime,
    ) -> Result<Arc<PluginDevice>> {
        PluginDevice::open(self.load(name, runtime)?, settings)
    }

    /// Loads a plugin and opens its transport. Fails as [`PluginDirectory::open`] does.
    pub fn open_transport(
        &self,
        name: &str,
        settings: &PluginSettings,
        runtime: &Runtime,
    ) -> Result<Arc<PluginTransport>> {
        PluginTransport::open(self.load(name, runtime)?, settings)
    }

    fn load(&self, name: &str, runtime: &Runtime) -> Result<Loaded> {
        Self::check(&self.path, name)?;
        self.probe.run(&self.path, name, runtime)?;
        let file = Self::check(&self.path, name)?;
        let loaded = library::load(file, name)?;
        let PluginFacts { version, .. } = &loaded.facts;
        tracing::info!(plugin = name, version, directory = %self.path.display(), "plugin loaded");
        Ok(loaded)
    }

    /// The plugin's file, checked.
    pub(crate) fn check(directory: &Path, name: &str) -> Result<File> {
        if !kvstored_core::pipeline::is_plugin_name(name) {
            return Err(Error::invalid(format!(
                "plugin name \"{name}\": 1 to 64 of a-z, 0-9, - and _ are accepted"
            )));
        }
        let file_name = format!("{name}.so");
        let mut file = trust::open_trusted(directory, OsStr::new(&file_name))?;
        trust::check_sum(directory, &file_name, &mut file)?;
        Ok(file)
    }
}
