//! Pipelines: tiers from fast to durable, written `Cache|Posix`.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// One word of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TierKind {
    /// Shared host DRAM.
    Cache,
    /// The pooled DRAM of all nodes.
    Pool,
    /// The segment log on POSIX or NFS directories.
    Posix,
    /// Keeps nothing and answers every lookup with a miss (UCM's `Empty`).
    Empty,
    /// Accepts every dump and forgets it at once (UCM's `Fake`); for measuring everything above it.
    Fake,
}

impl TierKind {
    /// The word in pipelines, metrics and logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Cache => "Cache",
            Self::Pool => "Pool",
            Self::Posix => "Posix",
            Self::Empty => "Empty",
            Self::Fake => "Fake",
        }
    }
}

/// A parsed pipeline: at least one tier, none twice, `Cache` only in front.
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
                "Cache" => TierKind::Cache,
                "Pool" => TierKind::Pool,
                "Posix" => TierKind::Posix,
                "Empty" => TierKind::Empty,
                "Fake" => TierKind::Fake,
                "" => return Err(invalid("a tier's name is missing".into())),
                "Hbm" | "Ds3fs" | "S3" => {
                    return Err(invalid(format!(
                        "tier \"{word}\" is not in this build; it has Cache, Pool, Posix, Empty and Fake"
                    )));
                }
                _ => {
                    return Err(invalid(format!(
                        "tier \"{word}\" is unknown; known are Cache, Pool, Posix, Empty and Fake"
                    )));
                }
            };
            if tiers.contains(&kind) {
                return Err(invalid(format!("tier \"{word}\" occurs twice")));
            }
            if kind == TierKind::Cache && !tiers.is_empty() {
                return Err(invalid("Cache must be the first tier".into()));
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
            formatter.write_str(tier.name())?;
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
            "Posix",
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
            ("Cache|Ds3fs", "\"Ds3fs\" is not in this build"),
        ] {
            let error = text.parse::<Pipeline>().unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
