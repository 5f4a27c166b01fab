//! The Hbm tier's settings.

use std::fmt;

use kvstored_core::Pipeline;
use kvstored_core::pipeline::is_plugin_name;
use kvstored_core::size::format_bytes;

use super::options::ServeOptions;
use super::validate::Check;
use super::values::Meaning;

/// The smallest capacity: room for one tiny block.
const LEAST_BYTES: u64 = 64 << 10;

/// Whose memory the Hbm tier takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HbmDevice {
    /// The host's, which stands for a device.
    #[default]
    Host,
    /// A plugged-in device's, by the plugin's name.
    Plugin(String),
}

impl fmt::Display for HbmDevice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => formatter.write_str("host"),
            Self::Plugin(name) => write!(formatter, "Plugin({name})"),
        }
    }
}

impl Meaning for HbmDevice {
    fn read(text: &str) -> Result<Self, String> {
        if text == "host" {
            return Ok(Self::Host);
        }
        text.strip_prefix("Plugin(")
            .and_then(|rest| rest.strip_suffix(')'))
            .filter(|name| is_plugin_name(name))
            .map(|name| Self::Plugin(name.to_owned()))
            .ok_or_else(|| {
                format!("device \"{text}\" is unknown; it is host or Plugin(NAME), e.g. Plugin(ascend)")
            })
    }
}

/// The Hbm tier of a pipeline. Plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HbmOptions {
    /// Whose memory.
    pub device: HbmDevice,
    /// How much of it.
    pub capacity_bytes: u64,
}

impl HbmOptions {
    /// Our settings, where the pipeline has the tier.
    pub(super) fn resolve(options: &ServeOptions, check: &mut Check<'_>) -> Self {
        let capacity_bytes = if let Some(size) = options.hbm_capacity {
            check.range("hbm_capacity", size.0, LEAST_BYTES, u64::MAX);
            size.0
        } else {
            // how much the engine leaves is nothing that can be guessed
            let what = "a pipeline with Hbm needs to know how much of the device's memory it may take";
            check.wrong("hbm_capacity", "", what);
            0
        };
        Self {
            device: options
                .hbm_device
                .clone()
                .map_or_else(HbmDevice::default, |word| word.0),
            capacity_bytes,
        }
    }

    /// Says which settings have no effect because the pipeline has no such tier.
    pub(super) fn note_without_tier(options: &ServeOptions, pipeline: &Pipeline, notes: &mut Vec<String>) {
        let given = [
            ("hbm_device", options.hbm_device.is_some()),
            ("hbm_capacity", options.hbm_capacity.is_some()),
        ];
        for (key, _) in given.iter().filter(|(_, given)| *given) {
            notes.push(format!(
                "{key} has no effect: pipeline {pipeline} has no Hbm tier"
            ));
        }
    }

    /// Every setting as name and value, for the log.
    pub(super) fn rows(&self) -> Vec<(&'static str, String)> {
        vec![
            ("hbm_device", self.device.to_string()),
            ("hbm_capacity", format_bytes(self.capacity_bytes)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::HbmDevice;
    use crate::config::Environment;
    use crate::config::tests::resolve_with;

    #[test]
    fn a_device_and_its_capacity_are_taken() {
        let environment = Environment::default();
        let mut flags = vec!["--pipeline", "Hbm|Cache|Posix"];
        let problems = resolve_with(&flags, "", &environment).unwrap_err();
        let keys: Vec<_> = problems.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(keys, ["hbm_capacity"]);
        flags.extend(["--hbm-capacity", "2GiB"]);
        let hbm = resolve_with(&flags, "", &environment).unwrap().hbm.unwrap();
        assert_eq!((hbm.device, hbm.capacity_bytes), (HbmDevice::Host, 2 << 30));
        // a plugged-in device is a plugin like others
        flags.extend(["--hbm-device", "Plugin(ascend)"]);
        let problems = resolve_with(&flags, "", &environment).unwrap_err();
        let keys: Vec<_> = problems.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(keys, ["plugin_directory"]);
        flags.extend([
            "--plugin-directory",
            "/opt/plugins",
            "--plugin-setting",
            "ascend.device=1",
        ]);
        let settings = resolve_with(&flags, "", &environment).unwrap();
        assert_eq!(settings.hbm.unwrap().device, HbmDevice::Plugin("ascend".into()));
        assert_eq!(settings.notes, Vec::<String>::new());
        assert_eq!(settings.plugins.unwrap().settings.len(), 1);
    }

    #[test]
    fn without_the_tier_its_settings_are_noted() {
        let flags = ["--hbm-capacity", "1GiB", "--hbm-device", "Plugin(x)"];
        let settings = resolve_with(&flags, "", &Environment::default()).unwrap();
        assert!(settings.hbm.is_none() && settings.plugins.is_none());
        for key in ["hbm_capacity", "hbm_device"] {
            assert!(
                settings.notes.iter().any(|note| note.contains(key)),
                "{:?}",
                settings.notes
            );
        }
    }
}
