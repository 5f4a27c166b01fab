//! Settings of the daemon's socket. Plain data.

use std::path::PathBuf;
use std::time::Duration;

/// Settings of the daemon's socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonSettings {
    /// Path of the Unix socket.
    pub listen: PathBuf,
    /// Clients connected at a time; one more is turned away with `Busy`.
    pub max_connections: usize,
    /// Blocks that one client may hold (leases and reservations), those being asked for included.
    pub max_held_blocks_per_connection: usize,
    /// Requests of one client that wait for the engine.
    pub max_in_flight_per_connection: usize,
    /// Answers that a client doesn't read, in bytes, before its connection is closed.
    pub max_unread_bytes: usize,
    /// How long a frame may take from its first byte to its last, and a new client to say hello.
    pub frame_timeout: Duration,
    /// Administrative requests worked on at a time, over all clients.
    pub max_slow_requests: usize,
}

impl DaemonSettings {
    /// The defaults, listening at that path.
    pub fn new(listen: PathBuf) -> Self {
        Self {
            listen,
            max_connections: 1024,
            max_held_blocks_per_connection: 65_536,
            max_in_flight_per_connection: 256,
            max_unread_bytes: 16 << 20,
            frame_timeout: Duration::from_secs(10),
            max_slow_requests: 16,
        }
    }
}
