//! The tier `Plugin(name)`, a plugged-in device and a plugged-in transport from their settings.

use std::sync::Arc;

use kvstored_core::{Error, ErrorKind, Result, Runtime, TransportFactory};
use kvstored_plugin_host::{PluginDevice, PluginDirectory, PluginSettings, PluginTier, Probe};

use crate::config::PluginOptions;

/// Loads a plugin and opens its tier, as `Plugin(name)`. Fails as [`load`] does.
pub(super) fn open_plugin(name: &str, options: &PluginOptions, runtime: &Runtime) -> Result<Arc<PluginTier>> {
    load(name, options, PluginSettings::default(), runtime)
}

/// Loads a plugin and opens its tier; what the operator tells it comes after `settings` and replaces them by key. Fails
/// with `Unsupported` in a program that can't try plugins before it loads them.
pub(super) fn load(
    name: &str,
    options: &PluginOptions,
    settings: PluginSettings,
    runtime: &Runtime,
) -> Result<Arc<PluginTier>> {
    directory(name, options)?.open(name, told(name, options, settings), runtime)
}

/// Loads a plugin and opens its device. Fails as [`load`] does.
pub(super) fn open_device(
    name: &str,
    options: &PluginOptions,
    runtime: &Runtime,
) -> Result<Arc<PluginDevice>> {
    let settings = told(name, options, PluginSettings::default());
    directory(name, options)?.open_device(name, &settings, runtime)
}

/// What opens a plugin's transport when it's first needed.
pub(super) fn transport_factory(name: &str, options: &PluginOptions, runtime: &Runtime) -> TransportFactory {
    let (name, options, runtime) = (name.to_owned(), options.clone(), runtime.clone());
    TransportFactory::new(move || {
        let settings = told(&name, &options, PluginSettings::default());
        let transport = directory(&name, &options)?.open_transport(&name, &settings, &runtime)?;
        Ok(transport)
    })
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

/// Settings with what the operator tells that plugin.
fn told(name: &str, options: &PluginOptions, mut settings: PluginSettings) -> PluginSettings {
    let own = options.settings.iter().filter(|setting| setting.plugin == name);
    for setting in own {
        settings.settings.retain(|(key, _)| *key != setting.key);
        settings
            .settings
            .push((setting.key.clone(), setting.value.clone()));
    }
    settings.timeout = options.timeout;
    settings
}
