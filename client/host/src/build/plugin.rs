//! The tier `Plugin(name)` from its settings.

use std::sync::Arc;

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use kvstored_plugin_host::{PluginDirectory, PluginSettings, PluginTier, Probe};

use crate::config::PluginOptions;

/// Loads a plugin and opens its tier. Fails with `Unsupported` in a program that can't try plugins before it loads them.
pub(super) fn open_plugin(name: &str, options: &PluginOptions, runtime: &Runtime) -> Result<Arc<PluginTier>> {
    let program = options.probe.clone().ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            format!(
                "plugin {name}: only the kvstored program loads plugins; serve this pipeline from a daemon"
            ),
        )
    })?;
    let own = options.settings.iter().filter(|setting| setting.plugin == name);
    let settings = PluginSettings {
        settings: own
            .map(|setting| (setting.key.clone(), setting.value.clone()))
            .collect(),
        timeout: options.timeout,
        ..PluginSettings::default()
    };
    PluginDirectory::new(options.directory.clone(), Probe::new(program, &["plugin-probe"]))
        .open(name, settings, runtime)
}
