//! The tier `Plugin(name)`, a plugged-in device and a plugged-in transport from their settings.

use std::sync::Arc;

use kvstored_core::{Device, Error, ErrorKind, Result, Runtime, TransportFactory};
use kvstored_plugin_host::{PluginDirectory, PluginSettings, PluginTier, Probe};

use super::ledger;
use crate::config::{PluginOptions, ServeSettings};

/// Loads a plugin and opens its tier, within the quotas of `settings`; what the operator tells it comes after
/// `plugin_settings` and replaces them by key. Fails with `Unsupported` in a program that can't try plugins before it loads
/// them.
pub(super) fn open_plugin(
    name: &str,
    settings: &ServeSettings,
    plugin_settings: PluginSettings,
    runtime: &Runtime,
) -> Result<Arc<PluginTier>> {
    let missing = || Error::internal("a pipeline with a plugin and no settings for it");
    let options = settings.plugins.as_ref().ok_or_else(missing)?;
    let told = told(name, options, plugin_settings);
    directory(name, options)?.open(name, told, ledger(settings)?, runtime)
}

/// Loads a plugin and opens its device: for a tier, or beside an engine in this process that uses the same device.
///
/// Fails with `Unsupported` in a program that can't try plugins before it loads them, `PermissionDenied` and `Mismatch` for
/// a plugin that isn't trusted, and as the plugin's own `open` does.
pub fn open_device(name: &str, options: &PluginOptions, runtime: &Runtime) -> Result<Arc<dyn Device>> {
    let settings = told(name, options, PluginSettings::default());
    Ok(directory(name, options)?.open_device(name, &settings, runtime)?)
}

/// What opens a plugin's transport when it's first needed, for a program that has no pipeline.
///
/// Fails with `Unsupported` in a program that can't try plugins before it loads them.
pub fn plugged_transport(name: &str, options: &PluginOptions, runtime: &Runtime) -> Result<TransportFactory> {
    directory(name, options)?;
    Ok(transport_factory(name, options, runtime))
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
                "plugin {name}: plugins are tried by the kvstored program first, and there is none: put it on the PATH or name \
                 it in KVSTORED_PROGRAM"
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
