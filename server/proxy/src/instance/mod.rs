//! One prefill or decode instance: where it is, how it fares, what it has to do, and the connections to it.

mod condition;
mod load;
mod place;
mod pool;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::address::Address;
use crate::events::{BlockIndex, EventSource};
use crate::metrics::InstanceTimes;

pub use condition::{Condition, Fitness, Phase};
pub use load::{Active, Held, Load};
pub use place::Place;
pub use pool::{Lease, Pool, Received, SendError, Upstream};

/// What an instance computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Prompts.
    Prefill,
    /// Answers.
    Decode,
}

impl Role {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Prefill, Self::Decode];

    /// The role's name in routes, metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// See the module's page.
#[derive(Debug)]
pub struct Instance {
    /// What it computes.
    pub role: Role,
    /// Where it listens.
    pub address: Address,
    /// The address as text.
    pub name: String,
    /// Whether it may be given work.
    pub condition: Condition,
    /// What it has to do.
    pub load: Load,
    /// Connections to it.
    pub pool: Pool,
    /// Its histograms.
    pub times: InstanceTimes,
    /// Woken whenever a piece of its work has ended.
    pub idle: Notify,
    /// Woken when a request met trouble that a health check should look at.
    pub troubled: Notify,
    /// Where it tells what it stores and removes.
    pub events: Option<EventSource>,
    /// What it has, by its own account.
    pub blocks: BlockIndex,
    /// Where its prompts can be followed while it computes them.
    pub place: Place,
    cache_id: AtomicU32,
}

impl Instance {
    /// An instance in that phase. `cache_id` names what it has in its prefix cache.
    pub fn new(
        role: Role,
        address: Address,
        phase: Phase,
        cache_id: u32,
        connect_timeout: Duration,
        times: InstanceTimes,
    ) -> Self {
        let name = address.to_string();
        Self {
            role,
            pool: Pool::new(&address, connect_timeout),
            address,
            name,
            condition: Condition::new(phase),
            load: Load::default(),
            times,
            idle: Notify::new(),
            troubled: Notify::new(),
            events: None,
            blocks: BlockIndex::default(),
            place: Place::default(),
            cache_id: AtomicU32::new(cache_id),
        }
    }

    /// The same with a place where it tells what it stores and removes.
    pub fn with_events(mut self, events: Option<EventSource>) -> Self {
        self.events = events;
        self
    }

    /// The name of its prefix cache's present content; another one after a restart.
    pub fn cache_id(&self) -> u32 {
        self.cache_id.load(Ordering::Relaxed)
    }

    /// Forgets what its prefix cache held.
    pub fn set_cache_id(&self, cache_id: u32) {
        self.cache_id.store(cache_id, Ordering::Relaxed);
    }

    /// Whether nothing of a request depends on it.
    pub fn is_idle(&self) -> bool {
        self.load.requests() == 0 && self.load.held_tokens() == 0
    }
}
