//! Settings of an I/O engine.

use kvstored_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// Which engine to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IoPreference {
    /// io_uring where the system allows it, psync elsewhere.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// A pool of threads with positioned system calls.
    Psync,
}

/// Settings of an I/O engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IoSettings {
    /// Which engine to use.
    pub preference: IoPreference,
    /// Requests in flight at once with io_uring, 1 to 4,096. psync has as many as it has threads.
    pub depth: usize,
    /// Requests that may wait beyond those in flight, 1 to 1,048,576.
    pub queue_limit: usize,
    /// Threads of the psync engine, 1 to 256.
    pub psync_threads: usize,
    /// Whether io_uring may register the arenas with the kernel. Registering pins their memory.
    pub registered_buffers: bool,
}

impl Default for IoSettings {
    fn default() -> Self {
        Self {
            preference: IoPreference::Auto,
            depth: 64,
            queue_limit: 8192,
            psync_threads: 8,
            registered_buffers: true,
        }
    }
}

impl IoSettings {
    /// Fails with `InvalidInput`, naming the setting, if a number is out of its range.
    pub fn validate(&self) -> Result<()> {
        let ranges = [
            ("depth", self.depth, 4096),
            ("queue_limit", self.queue_limit, 1 << 20),
            ("psync_threads", self.psync_threads, 256),
        ];
        for (name, value, most) in ranges {
            if value == 0 || value > most {
                return Err(Error::invalid(format!("{name} is {value}, must be 1 to {most}")));
            }
        }
        Ok(())
    }
}
