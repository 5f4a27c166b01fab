//! What can be set. Plain data.

use std::time::Duration;

/// How a node lends memory.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// Bytes that it lends (`global_segment_size`).
    pub segment_bytes: u64,
    /// Its name for people.
    pub name: String,
    /// How others reach the engine, where that differs from where it listens.
    pub advertise: Option<String>,
    /// How often it shows the master that it's alive, and asks for orders.
    pub heartbeat: Duration,
    /// How long one question to the master may take.
    pub master_timeout: Duration,
    /// How long a peer's grant is good.
    pub grant: Duration,
}

impl Default for NodeSettings {
    fn default() -> Self {
        Self {
            segment_bytes: 0,
            name: String::new(),
            advertise: None,
            heartbeat: Duration::from_secs(1),
            master_timeout: Duration::from_secs(3),
            grant: Duration::from_mins(1),
        }
    }
}

/// How a client uses the pool.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// How long one replica may take before the next is tried.
    pub replica_timeout: Duration,
    /// How long a master may take to say where objects are, or whether they are.
    pub master_timeout: Duration,
    /// How long a node that failed is passed over, and how long what was known last is used at once after a master didn't
    /// answer.
    pub shun: Duration,
    /// The longest that a positive answer about an existing object is believed without asking again.
    pub most_lease: Duration,
    /// Objects whose locations are remembered.
    pub known_objects: usize,
    /// Copies of each object.
    pub replicas: u32,
    /// How long a put waits for room that is being made, unless it says otherwise.
    pub room: Duration,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            replica_timeout: Duration::from_millis(400),
            master_timeout: Duration::from_millis(400),
            shun: Duration::from_secs(2),
            most_lease: Duration::from_secs(2),
            known_objects: 1 << 20,
            replicas: 1,
            room: Duration::from_secs(1),
        }
    }
}
