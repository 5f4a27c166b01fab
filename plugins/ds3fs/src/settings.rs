//! The plugin's settings: `--plugin-setting ds3fs.KEY=VALUE`.

use std::path::PathBuf;
use std::time::Duration;

use kvstored_backends::io::{IoPreference, IoSettings};
use kvstored_backends::posix::PosixSettings;
use kvstored_plugin::{Failure, Kind, Settings};

use crate::engine::RingSettings;
use crate::usrbio::LIBRARY;

/// Every key.
const KNOWN: [&str; 18] = [
    "bounce_bytes",
    "capacity_bytes",
    "direct",
    "directories",
    "force_sync",
    "high_watermark",
    "io_engine",
    "io_timeout_ms",
    "library",
    "low_watermark",
    "queue_depth",
    "read_rings",
    "ring_entries",
    "segment_bytes",
    "tail_interval_ms",
    "write_rings",
    "writer_id",
    "zero_copy",
];

/// Everything that the tier needs to know. Plain data.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ds3fsSettings {
    /// The library's name or path.
    pub library: String,
    /// Whether the host's memory is made known to 3FS.
    pub zero_copy: bool,
    /// The log.
    pub posix: PosixSettings,
    /// The rings.
    pub rings: RingSettings,
}

impl Ds3fsSettings {
    /// Reads them. Fails with `InvalidInput`, naming key and value.
    pub fn read(given: &Settings) -> Result<Self, Failure> {
        given.expect(&KNOWN)?;
        let directories: Vec<PathBuf> = given
            .get("directories")
            .map(|list| std::env::split_paths(list).collect())
            .unwrap_or_default();
        let defaults = PosixSettings::default();
        let rings = RingSettings::default();
        let timeout_ms = given.parse("io_timeout_ms", rings.io_timeout.as_millis() as u64)?;
        let preference = match given.get("io_engine").unwrap_or("auto") {
            "auto" => IoPreference::Auto,
            "uring" => IoPreference::Uring,
            "psync" => IoPreference::Psync,
            other => {
                let message = format!("setting io_engine = \"{other}\"; known are auto, uring and psync");
                return Err(Failure::new(Kind::InvalidInput, message));
            }
        };
        let settings = Self {
            library: given.get("library").unwrap_or(LIBRARY).to_owned(),
            zero_copy: given.parse("zero_copy", true)?,
            posix: PosixSettings {
                directories,
                capacity_bytes: given.parse("capacity_bytes", 0)?,
                segment_bytes: match given.parse("segment_bytes", 0)? {
                    0 => None,
                    bytes => Some(bytes),
                },
                io: IoSettings {
                    preference,
                    ..IoSettings::default()
                },
                direct: given.parse("direct", defaults.direct)?,
                tail_interval_ms: given.parse("tail_interval_ms", defaults.tail_interval_ms)?,
                // clients of 3FS keep attributes for half a minute
                force_sync: given.parse("force_sync", true)?,
                writer_id: given.get("writer_id").map(str::to_owned),
                high_watermark: given.parse("high_watermark", defaults.high_watermark)?,
                low_watermark: given.parse("low_watermark", defaults.low_watermark)?,
                queue_depth: given.parse("queue_depth", defaults.queue_depth)?,
                ..defaults
            },
            rings: RingSettings {
                read_rings: given.parse("read_rings", rings.read_rings)?,
                write_rings: given.parse("write_rings", rings.write_rings)?,
                ring_entries: given.parse("ring_entries", rings.ring_entries)?,
                bounce_bytes: given.parse("bounce_bytes", rings.bounce_bytes)?,
                io_timeout: Duration::from_millis(timeout_ms),
                ..rings
            },
        };
        let invalid = |error: kvstored_core::Error| Failure::new(Kind::InvalidInput, error.message());
        settings.posix.validate().map_err(invalid)?;
        settings.rings.validate().map_err(invalid)?;
        Ok(settings)
    }
}
