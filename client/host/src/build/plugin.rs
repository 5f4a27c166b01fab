//! The tier `Plugin(name)` and a plugged-in device from their settings.

use std::sync::Arc;

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use kvstored_plugin_host::{PluginDevice, PluginDirectory, PluginSettings, PluginTier, Probe};

use crate::config::PluginOptions;

/// Loads a plugin and opens its tier. Fails with `Unsupported` in a program that can't try plugins before it loads them.
pub(super) fn open_plugin(name: &str, options: &PluginOptions, runtime: &Runtime) -> Result<Arc<PluginTier>> {
    directory(name, options)?.open(name, settings(name, options), runtime)
}

/// Loads a plugin and opens its device. Fails as [`open_plugin`] does.
pub(super) fn open_device(
    name: &str,
    options: &PluginOptions,
    runtime: &Runtime,
) -> Result<Arc<PluginDevice>> {
    directory(name, options)?.open_device(name, &settings(name, options), runtime)
}

fn directory(name: &str, options: &PluginOptions) -> Result<PluginDirectory> {
    let program = options.probe.clone().ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            format!(
                "plugin {name}: only the kvstored program loads plugins; serve this pipeline from a daemon"
            ),
        )
    })?;
    let probe = Probe::new(program, &["plugin-probe"]);
    Ok(PluginDirectory::new(options.directory.clone(), probe))
}

/// What that plugin is told.
fn settings(name: &str, options: &PluginOptions) -> PluginSettings {
    let own = options.settings.iter().filter(|setting| setting.plugin == name);
    PluginSettings {
        settings: own
            .map(|setting| (setting.key.clone(), setting.value.clone()))
            .collect(),
        timeout: options.timeout,
        ..PluginSettings::default()
    }
}
