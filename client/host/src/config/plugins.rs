//! The settings of plugged-in tiers.

use std::path::PathBuf;
use std::time::Duration;

use kvstored_core::{Error, Pipeline, Result, TierKind};

use super::environment::Environment;
use super::hbm::HbmDevice;
use super::options::ServeOptions;
use super::sizes::PluginSetting;
use super::validate::Check;

/// The plugin behind the tier `Ds3fs`.
pub const DS3FS: &str = "ds3fs";

/// How long a plugin may take where nothing is said.
const TIMEOUT_MS: u64 = 5000;
/// The longest that a plugin may be told to take.
const MOST_TIMEOUT_MS: u64 = 600_000;

/// Where plugins come from and how they are used. Plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginOptions {
    /// The directory.
    pub directory: PathBuf,
    /// What plugins are told, each its own.
    pub settings: Vec<PluginSetting>,
    /// How long an operation, and every other call, may take.
    pub timeout: Duration,
    /// The program that tries plugins: called with `plugin-probe`, the directory and the name.
    pub probe: Option<PathBuf>,
}

impl PluginOptions {
    /// Our settings, where the pipeline has a plugin.
    pub(super) fn resolve(
        options: &ServeOptions,
        pipeline: &Pipeline,
        environment: &Environment,
        check: &mut Check<'_>,
        notes: &mut Vec<String>,
    ) -> Option<Self> {
        let device = options.hbm_device.as_ref().map(|word| &word.0);
        let named: Vec<&str> = pipeline
            .tiers()
            .iter()
            .filter_map(|kind| match (kind, device) {
                (TierKind::Plugin(name), _) => Some(&**name),
                (TierKind::Hbm, Some(HbmDevice::Plugin(name))) => Some(name.as_str()),
                (TierKind::Ds3fs, _) => Some(DS3FS),
                (TierKind::Pool, _) => options.pool_ascend.as_ref().map(|word| word.0.0.as_str()),
                _ => None,
            })
            .collect();
        for setting in &options.plugin_setting {
            if !named.contains(&setting.plugin.as_str()) {
                notes.push(format!(
                    "plugin_setting {}.{} has no effect: neither pipeline {pipeline} nor its hbm_device or pool_ascend has a Plugin({})",
                    setting.plugin, setting.key, setting.plugin
                ));
            }
        }
        if named.is_empty() {
            if options.plugin_directory.is_some() {
                notes.push(format!(
                    "plugin_directory has no effect: pipeline {pipeline} has no plugin"
                ));
            }
            return None;
        }
        let timeout_ms = options.plugin_timeout_ms.unwrap_or(TIMEOUT_MS);
        check.range("plugin_timeout_ms", timeout_ms, 1, MOST_TIMEOUT_MS);
        // what is built in by name may lie beside the program
        let only_ours = !pipeline
            .tiers()
            .iter()
            .any(|kind| matches!(kind, TierKind::Plugin(_)));
        let own = || beside(environment).filter(|_| only_ours);
        let Some(directory) = options.plugin_directory.clone().or_else(own) else {
            let what = "a pipeline with a plugin needs the directory that it lies in";
            check.wrong("plugin_directory", "", what);
            return None;
        };
        Some(Self {
            directory,
            settings: options.plugin_setting.clone(),
            timeout: Duration::from_millis(timeout_ms),
            probe: environment.plugin_probe.clone(),
        })
    }

    /// Those of a plugged-in transport or device in a program that has no pipeline; without a directory, plugins lie beside the
    /// program that tries them. Fails with `InvalidInput`, naming the setting.
    pub fn without_pipeline(
        directory: Option<PathBuf>,
        settings: Vec<PluginSetting>,
        timeout_ms: Option<u64>,
        environment: &Environment,
    ) -> Result<Self> {
        let timeout_ms = timeout_ms.unwrap_or(TIMEOUT_MS);
        if !(1..=MOST_TIMEOUT_MS).contains(&timeout_ms) {
            return Err(Error::invalid(format!(
                "plugin_timeout_ms is {timeout_ms}, not 1 to {MOST_TIMEOUT_MS}"
            )));
        }
        let directory = directory.or_else(|| beside(environment));
        let missing = || Error::invalid("plugin_directory is missing: where the plugin lies");
        Ok(Self {
            directory: directory.ok_or_else(missing)?,
            settings,
            timeout: Duration::from_millis(timeout_ms),
            probe: environment.plugin_probe.clone(),
        })
    }

    /// Whether a plugin is told that.
    pub(crate) fn tells(&self, plugin: &str, key: &str) -> bool {
        let mut all = self.settings.iter();
        all.any(|setting| setting.plugin == plugin && setting.key == key)
    }

    /// Every setting as name and value, for the log. Values of plugins' settings are not shown: they may be secrets.
    pub(super) fn rows(&self) -> Vec<(&'static str, String)> {
        let names: Vec<String> = self
            .settings
            .iter()
            .map(|setting| format!("{}.{}", setting.plugin, setting.key))
            .collect();
        vec![
            ("plugin_directory", self.directory.display().to_string()),
            ("plugin_setting", names.join(" ")),
            ("plugin_timeout_ms", self.timeout.as_millis().to_string()),
        ]
    }
}

/// Where plugins lie that come with the program.
fn beside(environment: &Environment) -> Option<PathBuf> {
    let program = environment.plugin_probe.as_ref()?;
    Some(program.parent()?.join("plugins"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;
    use crate::config::tests::resolve_with;

    #[test]
    fn a_plugin_needs_a_directory_and_gets_its_settings() {
        let environment = Environment::default();
        let plugin = ["--pipeline", "Cache|Plugin(memory)|Posix"];
        let problems = resolve_with(&plugin, "", &environment).unwrap_err();
        assert!(
            problems.iter().any(|problem| problem.key == "plugin_directory"),
            "{problems:?}"
        );
        let mut flags = plugin.to_vec();
        flags.extend(["--plugin-directory", "/opt/plugins"]);
        flags.extend(["--plugin-setting", "memory.capacity_bytes=4096"]);
        flags.extend(["--plugin-setting", "other.key=a=b"]);
        let file = "plugin_setting: {\"memory.capacity_bytes\": \"1\", \"memory.more\": \"2\"}\n";
        let settings = resolve_with(&flags, file, &environment).unwrap();
        let plugins = settings.plugins.clone().unwrap();
        let value = |key: &str| {
            let found = plugins
                .settings
                .iter()
                .find(|setting| setting.plugin == "memory" && setting.key == key);
            found.map(|setting| setting.value.as_str())
        };
        assert_eq!(
            (value("capacity_bytes"), value("more")),
            (Some("4096"), Some("2"))
        );
        assert!(
            settings.notes.iter().any(|note| note.contains("other.key")),
            "{:?}",
            settings.notes
        );
        assert!(
            settings
                .rows()
                .iter()
                .all(|(_, value, _)| !value.contains("4096"))
        );
    }

    #[test]
    fn a_transport_by_itself_has_its_plugin_beside_the_program_or_where_it_is_told() {
        let nowhere = Environment::default();
        let error = PluginOptions::without_pipeline(None, Vec::new(), None, &nowhere).unwrap_err();
        assert!(error.message().contains("plugin_directory"), "{error}");
        let installed = Environment {
            plugin_probe: Some("/opt/kvstored/kvstored".into()),
            ..Environment::default()
        };
        let options = PluginOptions::without_pipeline(None, Vec::new(), None, &installed).unwrap();
        assert_eq!(options.directory, PathBuf::from("/opt/kvstored/plugins"));
        assert_eq!(options.timeout, Duration::from_secs(5));
        let given = Some("/opt/plugins".into());
        let options = PluginOptions::without_pipeline(given, Vec::new(), Some(100), &installed).unwrap();
        assert_eq!(options.directory, PathBuf::from("/opt/plugins"));
        let error = PluginOptions::without_pipeline(None, Vec::new(), Some(0), &installed).unwrap_err();
        assert!(error.message().contains("plugin_timeout_ms"), "{error}");
    }

    #[test]
    fn without_a_plugin_its_settings_are_noted() {
        let flags = ["--plugin-directory", "/opt/plugins"];
        let settings = resolve_with(&flags, "", &Environment::default()).unwrap();
        assert!(settings.plugins.is_none());
        assert!(
            settings
                .notes
                .iter()
                .any(|note| note.contains("plugin_directory")),
            "{:?}",
            settings.notes
        );
    }
}
