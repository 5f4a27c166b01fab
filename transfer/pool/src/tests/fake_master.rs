//! A master of this process alone, without time: enough to drive nodes and clients, and to misbehave on request.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use kvstored_master::{
    Drained, Finished, Found, Holding, HoldingState, Lender, Location, Mounted, Moves, NewObject, NodeId,
    ObjectPage, ObjectStatus, Orders, PutOptions, Ticket,
};
use parking_lot::{Condvar, Mutex};

use super::fake_state::{Lent, Object, State, token, token_key};
use crate::directory::Directory;

/// See the module's page.
pub struct FakeMaster {
    state: Mutex<State>,
    orders: Condvar,
    away: AtomicBool,
    pub lease: Duration,
}

impl FakeMaster {
    pub fn new(lease: Duration) -> Self {
        Self {
            state: Mutex::new(State {
                epoch: 1,
                next_put: 1,
                objects: HashMap::new(),
                nodes: HashMap::new(),
            }),
            orders: Condvar::new(),
            away: AtomicBool::new(false),
            lease,
        }
    }

    /// Whether it answers.
    pub fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::Release);
    }

    /// Forgets everything, as after a crash, and leads again under a later epoch.
    pub fn restart(&self) {
        let mut state = self.state.lock();
        state.epoch += 1;
        state.next_put = state.epoch << 32;
        state.objects.clear();
        state.nodes.clear();
        self.orders.notify_all();
    }

    /// Where an object is.
    pub fn locations(&self, key: &[u8]) -> Vec<Location> {
        let state = self.state.lock();
        state
            .objects
            .get(key)
            .map(|object| object.locations.clone())
            .unwrap_or_default()
    }

    fn state(&self) -> Result<parking_lot::MutexGuard<'_, State>> {
        if self.away.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Unavailable, "the master is away"));
        }
        Ok(self.state.lock())
    }
}

impl Directory for FakeMaster {
    fn start_puts(
        &self,
        puts: &[NewObject<'_>],
        options: &PutOptions,
        _: Instant,
    ) -> Result<Vec<Result<Ticket>>> {
        let mut state = self.state()?;
        let state = &mut *state;
        let mut one = |object: &NewObject<'_>| {
            if state.objects.contains_key(object.key) {
                return Err(Error::new(ErrorKind::AlreadyExists, "the object is there"));
            }
            let put = state.next_put;
            state.next_put += 1;
            let mut order: Vec<NodeId> = state.nodes.keys().copied().collect();
            order.sort_by_key(|node| (options.avoid.contains(node), options.prefer != Some(*node), *node));
            let mut locations = Vec::new();
            for node in order {
                let Some(lent) = state.nodes.get_mut(&node).filter(|lent| lent.announced) else {
                    continue;
                };
                if locations.len() < options.replicas.max(1) as usize
                    && let Some(offset) = lent.allocate(put, object.length)
                {
                    locations.push(Location {
                        node,
                        control: lent.lender.control.as_str().into(),
                        engine: lent.lender.engine.as_str().into(),
                        put,
                        offset,
                        token: token(state.epoch, &node, put, offset, object),
                    });
                }
            }
            if locations.is_empty() {
                return Err(Error::new(ErrorKind::NoSpace, "no node has room"));
            }
            state.objects.insert(
                object.key.to_vec(),
                Object {
                    put,
                    length: object.length,
                    checksum: 0,
                    locations: locations.clone(),
                    complete: false,
                },
            );
            Ok(Ticket { put, locations })
        };
        Ok(puts.iter().map(&mut one).collect())
    }

    fn end_puts(&self, puts: &[Finished<'_>], _: Instant) -> Result<Vec<Result<()>>> {
        let mut state = self.state()?;
        let epoch = state.epoch;
        let mut one = |put: &Finished<'_>| {
            let object = state
                .objects
                .get_mut(put.key)
                .filter(|object| object.put == put.put);
            let Some(object) = object else {
                return Err(Error::new(ErrorKind::Fenced, "the put was revoked"));
            };
            if !object.complete && put.master_epoch != epoch {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "its nodes obey another master",
                ));
            }
            object.complete = true;
            object.checksum = put.checksum;
            object
                .locations
                .retain(|location| put.nodes.contains(&location.node));
            Ok(())
        };
        Ok(puts.iter().map(&mut one).collect())
    }

    fn revoke_puts(&self, puts: &[(&[u8], u64)], _: Instant) -> Result<()> {
        let mut state = self.state()?;
        for (key, put) in puts {
            if state.objects.get(*key).is_some_and(|object| object.put == *put) {
                state.drop_object(key);
            }
        }
        self.orders.notify_all();
        Ok(())
    }

    fn locate(&self, keys: &[&[u8]], _: Instant) -> Result<Vec<Result<Found>>> {
        let state = self.state()?;
        let one = |key: &&[u8]| {
            let object = state.objects.get(*key).filter(|object| object.complete);
            let object = object.ok_or_else(|| Error::new(ErrorKind::NotFound, "no such object"))?;
            Ok(Found {
                put: object.put,
                length: object.length,
                checksum: object.checksum,
                locations: object.locations.clone(),
                lease: self.lease,
                stale: false,
            })
        };
        Ok(keys.iter().map(one).collect())
    }

    fn exist(&self, keys: &[&[u8]], _: Instant) -> Result<Vec<Option<Duration>>> {
        let state = self.state()?;
        let there = |key: &&[u8]| state.objects.get(*key).is_some_and(|object| object.complete);
        Ok(keys.iter().map(|key| there(key).then_some(self.lease)).collect())
    }

    fn remove(&self, keys: &[&[u8]], _: bool, _: Instant) -> Result<Vec<Result<()>>> {
        let mut state = self.state()?;
        let mut one = |key: &&[u8]| {
            let gone = state.drop_object(key);
            gone.then_some(())
                .ok_or_else(|| Error::new(ErrorKind::NotFound, "no such object"))
        };
        let outcomes = keys.iter().map(&mut one).collect();
        self.orders.notify_all();
        Ok(outcomes)
    }

    fn list(&self, _: u64, _: u32, _: Instant) -> Result<ObjectPage> {
        let state = self.state()?;
        let one = |(key, object): (&Vec<u8>, &Object)| ObjectStatus {
            key: key.as_slice().into(),
            put: object.put,
            length: object.length,
            complete: object.complete,
            lease: self.lease,
            pin: Duration::ZERO,
            nodes: Vec::new(),
        };
        Ok(ObjectPage {
            objects: state.objects.iter().map(one).collect(),
            next: 0,
        })
    }

    fn remove_all(&self, _: Option<&str>, _: bool, _: Instant) -> Result<u64> {
        let mut state = self.state()?;
        let keys: Vec<Vec<u8>> = state.objects.keys().cloned().collect();
        for key in &keys {
            state.drop_object(key);
        }
        self.orders.notify_all();
        Ok(keys.len() as u64)
    }

    fn nodes(&self, _: Instant) -> Result<(Vec<Location>, bool)> {
        let state = self.state()?;
        let one = |(node, lent): (&NodeId, &Lent)| Location {
            node: *node,
            control: lent.lender.control.as_str().into(),
            engine: lent.lender.engine.as_str().into(),
            put: 0,
            offset: 0,
            token: Box::default(),
        };
        Ok((state.nodes.iter().map(one).collect(), true))
    }

    fn ping(&self, _: Instant) -> Result<()> {
        self.state().map(drop)
    }

    fn mount(&self, lender: &Lender, _: Instant) -> Result<Mounted> {
        let mut state = self.state()?;
        let lent = Lent {
            lender: lender.clone(),
            announced: false,
            ranges: HashMap::new(),
            release: Vec::new(),
        };
        state.nodes.insert(lender.node, lent);
        Ok(Mounted {
            epoch: state.epoch,
            token_key: token_key(),
            ttl: Duration::from_secs(10),
        })
    }

    fn announce(&self, node: &NodeId, epoch: u64, holdings: &[Holding], _: Instant) -> Result<()> {
        let mut state = self.state()?;
        let state = &mut *state;
        let unknown = || Error::new(ErrorKind::NotFound, "the node is not mounted");
        let lent = state.nodes.get_mut(node).ok_or_else(unknown)?;
        assert_eq!(
            epoch, state.epoch,
            "a node announces itself to the master that it obeys"
        );
        lent.announced = true;
        for holding in holdings {
            lent.ranges.insert(holding.put, (holding.offset, holding.length));
            if holding.state == HoldingState::Releasing {
                lent.release.push(holding.put);
                continue;
            }
            let location = Location {
                node: *node,
                control: lent.lender.control.as_str().into(),
                engine: lent.lender.engine.as_str().into(),
                put: holding.put,
                offset: holding.offset,
                token: Box::default(),
            };
            let object = state.objects.entry(holding.key.to_vec()).or_insert(Object {
                put: holding.put,
                length: holding.length,
                checksum: holding.checksum,
                locations: Vec::new(),
                complete: false,
            });
            object.complete |= holding.state == HoldingState::Sealed;
            object.locations.push(location);
        }
        Ok(())
    }

    fn heartbeat(
        &self,
        node: &NodeId,
        epoch: u64,
        released: &[u64],
        wait: Duration,
        deadline: Instant,
    ) -> Result<Orders> {
        let until = deadline.min(Runtime::system().deadline(wait));
        let mut state = self.state()?;
        let unknown = || Error::new(ErrorKind::NotFound, "the node is not mounted");
        let lent = state.nodes.get_mut(node).ok_or_else(unknown)?;
        for put in released {
            lent.ranges.remove(put);
            lent.release.retain(|waiting| waiting != put);
        }
        loop {
            let master_epoch = state.epoch;
            let lent = state.nodes.get_mut(node).ok_or_else(unknown)?;
            if !lent.release.is_empty() || !lent.announced || master_epoch != epoch {
                return Ok(Orders {
                    master_epoch,
                    announce: !lent.announced,
                    release: lent.release.clone(),
                    draining: None,
                });
            }
            if self.orders.wait_until(&mut state, until).timed_out() {
                return Ok(Orders {
                    master_epoch,
                    ..Orders::default()
                });
            }
        }
    }

    fn start_moves(&self, _: &NodeId, _: u64, _: &[NodeId], _: Instant) -> Result<Moves> {
        self.state().map(|_| Moves::default())
    }

    fn drain(&self, _: &NodeId, _: Instant) -> Result<Drained> {
        self.state().map(|_| Drained::default())
    }

    fn unmount(&self, node: &NodeId, _: Instant) -> Result<()> {
        let mut state = self.state()?;
        state.nodes.remove(node);
        for object in state.objects.values_mut() {
            object.locations.retain(|location| location.node != *node);
        }
        state.objects.retain(|_, object| !object.locations.is_empty());
        Ok(())
    }
}
