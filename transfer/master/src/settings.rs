//! How a master decides. Plain data.

use std::time::Duration;

use kvstored_core::quota::QuotaSettings;
use kvstored_core::{Error, Result};

/// What a master's decisions depend on. The defaults are those of `mooncake_master`.
#[derive(Clone, Debug)]
pub struct MasterSettings {
    /// Above this part of all lent bytes, objects are evicted.
    pub eviction_high_watermark_ratio: f64,
    /// How far below the watermark eviction goes, as a part of all lent bytes.
    pub eviction_ratio: f64,
    /// How long an object that somebody asked for stays where it is.
    pub lease: Duration,
    /// How long a soft-pinned object is spared after its last use.
    pub soft_pin: Duration,
    /// Whether soft-pinned objects may go when nothing else is left.
    pub allow_evict_soft_pinned: bool,
    /// How long a node may be silent before what it holds is given up.
    pub client_ttl: Duration,
    /// How long a node may be silent after its connection broke.
    pub broken_ttl: Duration,
    /// How long a put may take.
    pub put_discard: Duration,
    /// How long after its start a master takes what it doesn't know for not announced yet.
    pub recovery: Duration,
    /// Limits of tenants; those of namespaces have no meaning here.
    pub quotas: QuotaSettings,
    /// Most objects; each takes a few hundred bytes of memory.
    pub max_objects: usize,
    /// Most nodes.
    pub max_nodes: usize,
    /// Most tenants.
    pub max_tenants: usize,
}

impl Default for MasterSettings {
    fn default() -> Self {
        Self {
            eviction_high_watermark_ratio: 0.95,
            eviction_ratio: 0.05,
            lease: Duration::from_secs(5),
            soft_pin: Duration::from_mins(30),
            allow_evict_soft_pinned: true,
            client_ttl: Duration::from_secs(10),
            broken_ttl: Duration::from_secs(1),
            put_discard: Duration::from_secs(30),
            recovery: Duration::from_secs(3),
            quotas: QuotaSettings::default(),
            max_objects: 64 << 20,
            max_nodes: 4096,
            max_tenants: 1024,
        }
    }
}

/// The longest time that can be set.
const MAX_TIME: Duration = Duration::from_hours(24 * 365);

impl MasterSettings {
    /// Fails with `InvalidInput`, naming the first setting that makes no sense.
    pub fn check(&self) -> Result<()> {
        let ratios = [
            (
                "eviction_high_watermark_ratio",
                self.eviction_high_watermark_ratio,
            ),
            ("eviction_ratio", self.eviction_ratio),
        ];
        for (name, value) in ratios {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::invalid(format!("{name} is {value}, not 0 to 1")));
            }
        }
        if self.eviction_high_watermark_ratio == 0.0 {
            return Err(Error::invalid(
                "eviction_high_watermark_ratio is 0: nothing could be kept",
            ));
        }
        let times = [
            ("default_kv_lease_ttl", self.lease),
            ("default_kv_soft_pin_ttl", self.soft_pin),
            ("client_ttl", self.client_ttl),
            ("put_start_discard_timeout_sec", self.put_discard),
            ("recovery", self.recovery),
        ];
        for (name, value) in times {
            if value > MAX_TIME {
                return Err(Error::invalid(format!("{name} is longer than a year")));
            }
        }
        for (name, value) in [
            ("client_ttl", self.client_ttl),
            ("put_start_discard_timeout_sec", self.put_discard),
        ] {
            if value.is_zero() {
                return Err(Error::invalid(format!("{name} is 0")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_make_sense_and_nonsense_is_named() {
        MasterSettings::default().check().unwrap();
        let wrong = MasterSettings {
            eviction_ratio: f64::NAN,
            ..MasterSettings::default()
        };
        assert!(wrong.check().unwrap_err().to_string().contains("eviction_ratio"));
        let wrong = MasterSettings {
            client_ttl: Duration::ZERO,
            ..MasterSettings::default()
        };
        assert!(wrong.check().unwrap_err().to_string().contains("client_ttl"));
    }
}
