//! Pipelines: tiers from fast to durable, written `Cache|Posix`.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// One word of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TierKind {
    /// Spare memory of a device.
    Hbm,
    /// Shared host DRAM.
    Cache,
    /// The pooled DRAM of all nodes.
    Pool,
    /// The segment log on POSIX or NFS directories.
    Posix,
    /// Objects in a bucket of an S3 service.
    S3,
    /// The segment log on 3FS, through its own interface: the plugin `ds3fs`.
    Ds3fs,
    /// A plugged-in tier, by the plugin's name.
    Plugin(Box<str>),
    /// Keeps nothing and answers every lookup with a miss (UCM's `Empty`).
    Empty,
    /// Accepts every dump and forgets it at once (UCM's `Fake`); for measuring everything above it.
    Fake,
}

impl TierKind {
    /// The word in pipelines, metrics and logs; for a plugin the word before its name.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hbm => "Hbm",
            Self::Cache => "Cache",
            Self::Pool => "Pool",
            Self::Posix => "Posix",
            Self::S3 => "S3",
            Self::Ds3fs => "Ds3fs",
            Self::Plugin(_) => "Plugin",
            Self::Empty => "Empty",
            Self::Fake => "Fake",
        }
    }
}

impl fmt::Display for TierKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plugin(name) => write!(formatter, "Plugin({name})"),
            _ => formatter.write_str(self.name()),
        }
    }
}

/// Whether a plugin may be called that: it's part of a file's name.
pub fn is_plugin_name(name: &str) -> bool {
    const MOST_BYTES: usize = 64;
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    (1..=MOST_BYTES).contains(&name.len()) && name.bytes().all(allowed)
}

/// The name in `Plugin(name)`.
fn plugin_name(word: &str) -> Option<&str> {
    word.strip_prefix("Plugin(")?.strip_suffix(')')
}

/// A parsed pipeline: at least one tier, none twice, `Hbm` only in front and `Cache` only in front of all but `Hbm`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pipeline {
    tiers: Vec<TierKind>,
}

impl Pipeline {
    /// The most tiers a pipeline may have.
    pub const MAX_TIERS: usize = 8;

    /// The tiers from fast to durable.
    pub fn tiers(&self) -> &[TierKind] {
        &self.tiers
    }

    /// Whether the tier occurs.
    pub fn contains(&self, kind: &TierKind) -> bool {
        self.tiers.contains(kind)
    }
}

impl FromStr for Pipeline {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = |what: String| Error::invalid(format!("pipeline \"{text}\": {what}"));
        let mut tiers = Vec::new();
        for word in text.split('|').map(str::trim) {
            let kind = match word {
                "Hbm" => TierKind::Hbm,
                "Cache" => TierKind::Cache,
                "Pool" => TierKind::Pool,
                "Posix" => TierKind::Posix,
                "S3" => TierKind::S3,
                "Ds3fs" => TierKind::Ds3fs,
                "Empty" => TierKind::Empty,
                "Fake" => TierKind::Fake,
                "" => return Err(invalid("a tier's name is missing".into())),
                _ if plugin_name(word).is_some_and(is_plugin_name) => {
                    TierKind::Plugin(plugin_name(word).unwrap_or_default().into())
                }
                _ if word == "Plugin" || word.starts_with("Plugin(") => {
                    return Err(invalid(format!(
                        "tier \"{word}\": a plugin is written Plugin(name), with 1 to 64 of a-z, 0-9, - and _"
                    )));
                }
                _ => {
                    return Err(invalid(format!(
                        "tier \"{word}\" is unknown; known are Hbm, Cache, Pool, Posix, S3, Ds3fs, Empty and Fake"
                    )));
                }
            };
            if tiers.contains(&kind) {
                return Err(invalid(format!("tier \"{word}\" occurs twice")));
            }
            if kind == TierKind::Hbm && !tiers.is_empty() {
                return Err(invalid("Hbm must be the first tier".into()));
            }
            if kind == TierKind::Cache && tiers.iter().any(|tier| *tier != TierKind::Hbm) {
                return Err(invalid(
                    "Cache must be the first tier, or the second behind Hbm".into(),
                ));
            }
            if tiers.len() == Self::MAX_TIERS {
                return Err(invalid(format!("more than {} tiers", Self::MAX_TIERS)));
            }
            tiers.push(kind);
        }
        Ok(Self { tiers })
    }
}

impl fmt::Display for Pipeline {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, tier) in self.tiers.iter().enumerate() {
            if index > 0 {
                formatter.write_str("|")?;
            }
            write!(formatter, "{tier}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_pipelines_round_trip() {
        for text in [
            "Cache|Posix",
            "Cache|Pool|Posix",
            "Hbm|Cache|Posix",
            "Hbm|Posix",
            "Posix",
            "Cache|Posix|S3",
            "Cache|Ds3fs",
            "Cache|Plugin(my-tier_2)|Posix",
            "Cache|Empty",
            "Empty",
            "Fake",
            "Cache",
        ] {
            assert_eq!(text.parse::<Pipeline>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn errors_name_the_word() {
        for (text, word) in [
            ("", "missing"),
            ("Cache|", "missing"),
            ("Cash|Posix", "\"Cash\" is unknown"),
            ("Cache|Cache", "twice"),
            ("Posix|Cache", "first"),
            ("Hbm|Posix|Cache", "behind Hbm"),
            ("Cache|Hbm", "Hbm must be the first"),
            ("Hbm|Hbm", "twice"),
            ("Plugin", "written Plugin(name)"),
            ("Cache|Plugin(../up)", "\"Plugin(../up)\": a plugin is written"),
            ("Plugin(a)|Plugin(a)", "twice"),
        ] {
            let error = text.parse::<Pipeline>().unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
