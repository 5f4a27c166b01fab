//! Settings that are sizes, directories and quotas, as people write them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use kvstored_core::size::parse_bytes;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A size: `512MiB`, `1GB`, or a number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_bytes(text)
            .map(Self)
            .map_err(|error| error.message().to_owned())
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = ByteSize;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a size such as 512MiB or a number of bytes")
            }

            fn visit_u64<E>(self, value: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(value))
            }

            fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<ByteSize, E> {
                u64::try_from(value)
                    .map(ByteSize)
                    .map_err(|_| E::custom(format!("size {value} is negative")))
            }

            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<ByteSize, E> {
                value.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

impl JsonSchema for ByteSize {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}]})
    }
}

/// A number of GiB (2^30 bytes), fractions allowed; the unit behind every key that ends in `_gb`.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Gibibytes(pub f64);

impl Gibibytes {
    fn checked(value: f64) -> Result<Self, String> {
        match value {
            value if value < 0.0 => Err(format!("size {value} is negative")),
            value if value.is_finite() && value < 8e9 => Ok(Self(value)),
            _ => Err(format!("size {value} is not a number of GiB that can be")),
        }
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        (self.0 * f64::from(1 << 30)) as u64
    }
}

impl FromStr for Gibibytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::checked(
            text.trim()
                .parse()
                .map_err(|_| format!("\"{text}\" is not a number of GiB"))?,
        )
    }
}

impl Serialize for Gibibytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.0)
    }
}

impl<'de> Deserialize<'de> for Gibibytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::checked(f64::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl JsonSchema for Gibibytes {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Gibibytes".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "number", "minimum": 0})
    }
}

/// Directories, written `DIR[:DIR]` or as a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directories(pub Vec<PathBuf>);

impl FromStr for Directories {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::checked(text.split(':').map(str::to_owned).collect())
    }
}

impl Directories {
    fn checked(names: Vec<String>) -> Result<Self, String> {
        let mut directories: Vec<PathBuf> = Vec::new();
        for name in &names {
            if name.is_empty() {
                return Err(format!("\"{}\" names an empty directory", names.join(":")));
            }
            let directory = PathBuf::from(name);
            if directories.contains(&directory) {
                return Err(format!("\"{}\" names {name} twice", names.join(":")));
            }
            directories.push(directory);
        }
        if directories.is_empty() {
            Err("the list of directories is empty".into())
        } else {
            Ok(Self(directories))
        }
    }
}

impl Serialize for Directories {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.0)
    }
}

impl<'de> Deserialize<'de> for Directories {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match OneOrMany::deserialize(deserializer)? {
            OneOrMany::One(text) => text.parse().map_err(D::Error::custom),
            OneOrMany::Many(names) => Self::checked(names).map_err(D::Error::custom),
        }
    }
}

impl JsonSchema for Directories {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Directories".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]})
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected DIR[:DIR] or a list of directories")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// A bound of what a tenant or a namespace may occupy: `NAME=SIZE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota {
    /// The tenant, as in the identity of its namespaces, or the namespace's 64 hexadecimal digits.
    pub name: String,
    /// Bytes it may occupy in each tier.
    pub capacity: ByteSize,
}

impl FromStr for Quota {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, size)) if !name.is_empty() => Ok(Self {
                name: name.to_owned(),
                capacity: size.parse()?,
            }),
            _ => Err(format!("quota \"{text}\" is not of the form NAME=SIZE")),
        }
    }
}

/// A setting of a plugin: `NAME.KEY=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginSetting {
    /// The plugin's name.
    pub plugin: String,
    /// The setting's name, which only the plugin knows.
    pub key: String,
    /// Its value.
    pub value: String,
}

impl FromStr for PluginSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=').and_then(|(name, value)| {
            let (plugin, key) = name.split_once('.')?;
            let whole = kvstored_core::pipeline::is_plugin_name(plugin) && !key.is_empty();
            whole.then(|| Self {
                plugin: plugin.to_owned(),
                key: key.to_owned(),
                value: value.to_owned(),
            })
        });
        parts.ok_or_else(|| format!("plugin setting \"{text}\" is not of the form NAME.KEY=VALUE"))
    }
}

/// Settings of plugins as a mapping from `NAME.KEY` to value.
pub mod plugin_setting_map {
    use super::{BTreeMap, Deserialize, Deserializer, PluginSetting, Serializer};
    use serde::de::Error as _;

    /// Writes the mapping.
    pub fn serialize<S: Serializer>(settings: &[PluginSetting], serializer: S) -> Result<S::Ok, S::Error> {
        let name = |setting: &PluginSetting| format!("{}.{}", setting.plugin, setting.key);
        serializer.collect_map(settings.iter().map(|setting| (name(setting), &setting.value)))
    }

    /// Reads the mapping.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PluginSetting>, D::Error> {
        let map = BTreeMap::<String, String>::deserialize(deserializer)?;
        map.into_iter()
            .map(|(name, value)| format!("{name}={value}").parse().map_err(D::Error::custom))
            .collect()
    }
}

/// Quotas as a mapping from name to size.
pub mod quota_map {
    use super::{BTreeMap, ByteSize, Deserialize, Deserializer, Quota, Serializer};

    /// Writes the mapping.
    pub fn serialize<S: Serializer>(quotas: &[Quota], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(quotas.iter().map(|quota| (&quota.name, &quota.capacity)))
    }

    /// Reads the mapping.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Quota>, D::Error> {
        let map = BTreeMap::<String, ByteSize>::deserialize(deserializer)?;
        Ok(map
            .into_iter()
            .map(|(name, capacity)| Quota { name, capacity })
            .collect())
    }
}
