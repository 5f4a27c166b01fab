//! Settings of the Posix tier.

use std::path::PathBuf;

use kvstored_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::format::WriterId;
use crate::io::IoSettings;

/// Settings of the Posix tier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PosixSettings {
    /// The directories; blocks are striped over them.
    pub directories: Vec<PathBuf>,
    /// Bound of the physical bytes in all directories together, other processes' included. 0 takes 80 % of
    /// what is free at the start, plus what is there.
    pub capacity_bytes: u64,
    /// Size of a segment; by default a thirty-second of a directory's capacity, at most 1 GiB.
    pub segment_bytes: Option<u64>,
    /// The I/O engine.
    pub io: IoSettings,
    /// Direct I/O past the page cache, where the file system has it.
    pub direct: bool,
    /// How often other writers' journals are read, in milliseconds. Up to four times as seldom when idle.
    pub tail_interval_ms: u64,
    /// For network file systems: ask the server for sizes and read journals past the page cache.
    pub force_sync: bool,
    /// Writes under that identifier (32 hexadecimal digits) and no other.
    pub writer_id: Option<String>,
    /// Used part of the capacity at which eviction starts, 0 to 1.
    pub high_watermark: f64,
    /// Used part of the capacity at which eviction stops, 0 to 1.
    pub low_watermark: f64,
    /// Bound of the copies of corrupt blocks that are kept, in bytes per directory.
    pub quarantine_capacity_bytes: u64,
    /// Only read: take no locks, write nothing.
    pub read_only: bool,
    /// Writes that may wait per directory; more are refused as busy.
    pub queue_depth: usize,
}

impl Default for PosixSettings {
    fn default() -> Self {
        Self {
            directories: Vec::new(),
            capacity_bytes: 0,
            segment_bytes: None,
            io: IoSettings::default(),
            direct: true,
            tail_interval_ms: 50,
            force_sync: false,
            writer_id: None,
            high_watermark: 0.9,
            low_watermark: 0.88,
            quarantine_capacity_bytes: 256 << 20,
            read_only: false,
            queue_depth: 1024,
        }
    }
}

impl PosixSettings {
    /// The smallest and the largest segment.
    pub const SEGMENT_BYTES_RANGE: (u64, u64) = (64 << 10, 64 << 30);

    /// Fails with `InvalidInput`, naming the setting and its value.
    pub fn validate(&self) -> Result<()> {
        if self.directories.is_empty() {
            return Err(Error::invalid(
                "directories is empty; the Posix tier needs at least one",
            ));
        }
        for (index, path) in self.directories.iter().enumerate() {
            if self
                .directories
                .get(..index)
                .is_some_and(|before| before.contains(path))
            {
                return Err(Error::invalid(format!(
                    "directories names {} twice",
                    path.display()
                )));
            }
        }
        let (least, most) = Self::SEGMENT_BYTES_RANGE;
        if let Some(bytes) = self.segment_bytes
            && !(least..=most).contains(&bytes)
        {
            return Err(Error::invalid(format!(
                "segment_bytes is {bytes}, must be {least} to {most}"
            )));
        }
        if !(1..=60_000).contains(&self.tail_interval_ms) {
            return Err(Error::invalid(format!(
                "tail_interval_ms is {}, must be 1 to 60000",
                self.tail_interval_ms
            )));
        }
        let (low, high) = (self.low_watermark, self.high_watermark);
        if !(low > 0.0 && low <= high && high <= 1.0) {
            return Err(Error::invalid(format!(
                "low_watermark is {low} and high_watermark {high}, must be 0 < low <= high <= 1"
            )));
        }
        if !(1..=1 << 20).contains(&self.queue_depth) {
            return Err(Error::invalid(format!(
                "queue_depth is {}, must be 1 to 1048576",
                self.queue_depth
            )));
        }
        if let Some(id) = &self.writer_id {
            WriterId::from_hex(id)?;
        }
        Ok(())
    }
}
