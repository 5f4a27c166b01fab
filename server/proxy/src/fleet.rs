//! The instances that may be contacted: those of the flags and those an administrator added. There are no others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use kvstored_core::{Error, ErrorKind, Result};
use parking_lot::RwLock;

use crate::address::Address;
use crate::events::EventSource;
use crate::instance::{Instance, Phase, Role};
use crate::metrics::Metrics;

/// Instances of one role at most: every choice looks at all of them.
const MAX_INSTANCES: usize = 4096;

/// The instances of one role, as they were at one moment.
pub type Instances = Arc<[Arc<Instance>]>;

/// See the module's page.
#[derive(Debug)]
pub struct Fleet {
    prefill: RwLock<Instances>,
    decode: RwLock<Instances>,
    last_cache_id: AtomicU32,
    prefill_turn: AtomicUsize,
    decode_turn: AtomicUsize,
    connect_timeout: Duration,
    metrics: Metrics,
}

impl Fleet {
    /// Of nobody yet.
    pub fn new(metrics: Metrics, connect_timeout: Duration) -> Self {
        Self {
            prefill: RwLock::new(Arc::from([])),
            decode: RwLock::new(Arc::from([])),
            last_cache_id: AtomicU32::new(0),
            prefill_turn: AtomicUsize::new(0),
            decode_turn: AtomicUsize::new(0),
            connect_timeout,
            metrics,
        }
    }

    /// The instances of a role, in the order they were added.
    pub fn instances(&self, role: Role) -> Instances {
        Arc::clone(&self.list(role).read())
    }

    /// The next turn among equals of a role.
    pub fn next_turn(&self, role: Role) -> usize {
        let turn = match role {
            Role::Prefill => &self.prefill_turn,
            Role::Decode => &self.decode_turn,
        };
        turn.fetch_add(1, Ordering::Relaxed)
    }

    /// A name for a prefix cache's content that no other has.
    pub fn next_cache_id(&self) -> u32 {
        // 0 means nobody; after a wrap the first ids are long forgotten
        self.last_cache_id
            .fetch_add(1, Ordering::Relaxed)
            .wrapping_add(1)
            .max(1)
    }

    /// Adds an instance. One that is there already is the error `AlreadyExists`, unless it's drained or leaving: then it
    /// takes requests again.
    pub fn add(&self, role: Role, address: &Address, phase: Phase) -> Result<Arc<Instance>> {
        self.add_with_events(role, address, phase, None)
    }

    /// The same with a place where the instance tells what it stores and removes; one that is there already keeps its own.
    pub fn add_with_events(
        &self,
        role: Role,
        address: &Address,
        phase: Phase,
        events: Option<EventSource>,
    ) -> Result<Arc<Instance>> {
        let mut list = self.list(role).write();
        if let Some(known) = list.iter().find(|known| known.address == *address) {
            return match known.condition.phase() {
                Phase::Draining | Phase::Leaving => {
                    known.condition.set_phase(Phase::Active);
                    Ok(Arc::clone(known))
                }
                Phase::Waiting | Phase::Active => Err(Error::new(
                    ErrorKind::AlreadyExists,
                    format!("{} instance {address} is there already", role.name()),
                )),
            };
        }
        if list.len() >= MAX_INSTANCES {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("{MAX_INSTANCES} {} instances are the most", role.name()),
            ));
        }
        let times = self.metrics.times(role, &address.to_string());
        let instance = Instance::new(
            role,
            address.clone(),
            phase,
            self.next_cache_id(),
            self.connect_timeout,
            times,
        );
        let instance = Arc::new(instance.with_events(events));
        *list = list
            .iter()
            .cloned()
            .chain(std::iter::once(Arc::clone(&instance)))
            .collect();
        Ok(instance)
    }

    /// The instance with that address.
    pub fn find(&self, role: Role, address: &Address) -> Result<Arc<Instance>> {
        self.instances(role)
            .iter()
            .find(|known| known.address == *address)
            .cloned()
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::NotFound,
                    format!("there is no {} instance {address}", role.name()),
                )
            })
    }

    /// Takes an instance out. Requests under way at it go on.
    pub fn remove(&self, instance: &Arc<Instance>) {
        let mut list = self.list(instance.role).write();
        *list = list
            .iter()
            .filter(|known| !Arc::ptr_eq(known, instance))
            .cloned()
            .collect();
        drop(list);
        self.metrics.forget(instance.role, &instance.name);
    }

    /// Whether the instance is still one of these.
    pub fn contains(&self, instance: &Arc<Instance>) -> bool {
        self.instances(instance.role)
            .iter()
            .any(|known| Arc::ptr_eq(known, instance))
    }

    fn list(&self, role: Role) -> &RwLock<Instances> {
        match role {
            Role::Prefill => &self.prefill,
            Role::Decode => &self.decode,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_come_once_for_each_role_and_go() {
        let fleet = Fleet::new(Metrics::new(), Duration::from_secs(1));
        let address = Address::new("h", 1).unwrap();
        let first = fleet.add(Role::Prefill, &address, Phase::Active).unwrap();
        let error = fleet.add(Role::Prefill, &address, Phase::Active).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert!(error.to_string().contains("h:1"));
        fleet.add(Role::Decode, &address, Phase::Active).unwrap();

        let seen = fleet.instances(Role::Prefill);
        first.condition.set_phase(Phase::Leaving);
        let again = fleet.add(Role::Prefill, &address, Phase::Waiting).unwrap();
        assert!(Arc::ptr_eq(&first, &again), "it stays what it was");
        assert_eq!(again.condition.phase(), Phase::Active);

        fleet.remove(&first);
        assert!(!fleet.contains(&first));
        assert_eq!(seen.len(), 1, "a snapshot doesn't change");
        assert_eq!(
            fleet.find(Role::Prefill, &address).unwrap_err().kind(),
            ErrorKind::NotFound
        );
        assert_eq!(fleet.instances(Role::Decode).len(), 1);
    }

    #[test]
    fn cache_ids_are_never_nobody() {
        let fleet = Fleet::new(Metrics::new(), Duration::from_secs(1));
        fleet.last_cache_id.store(u32::MAX - 1, Ordering::Relaxed);
        let ids = [
            fleet.next_cache_id(),
            fleet.next_cache_id(),
            fleet.next_cache_id(),
        ];
        assert_eq!(ids, [u32::MAX, 1, 1]);
    }
}
