//! Whole histories, made at random, against the model in [`super::world`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kvstored_core::ErrorKind;
use proptest::prelude::*;

use super::id;
use super::world::{NODES, Owed, Pending, SEGMENT, TENANTS, Told, World};
use crate::types::*;

#[derive(Clone, Debug)]
enum Step {
    Put {
        object: u8,
        length: u64,
        replicas: u32,
        soft_pin: bool,
    },
    End {
        which: prop::sample::Index,
        nodes: Vec<bool>,
    },
    Revoke {
        which: prop::sample::Index,
    },
    Get {
        object: u8,
    },
    Exist {
        object: u8,
        lease: bool,
    },
    Remove {
        object: u8,
        force: bool,
    },
    Heartbeat {
        node: usize,
        confirm: bool,
    },
    Advance {
        ms: u64,
    },
    Kill {
        node: usize,
    },
    Mount {
        node: usize,
    },
    Drain {
        node: usize,
        undo: bool,
    },
    StartCopies {
        node: usize,
    },
    EndCopy {
        which: prop::sample::Index,
        good: bool,
    },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let object = 0_u8..24;
    let node = 0..NODES;
    prop_oneof![
        10 => (object.clone(), 1_u64..1500, 0_u32..4, any::<bool>())
            .prop_map(|(object, length, replicas, soft_pin)| Step::Put { object, length, replicas, soft_pin }),
        10 => (any::<prop::sample::Index>(), prop::collection::vec(prop::bool::weighted(0.8), 3))
            .prop_map(|(which, nodes)| Step::End { which, nodes }),
        1 => any::<prop::sample::Index>().prop_map(|which| Step::Revoke { which }),
        4 => object.clone().prop_map(|object| Step::Get { object }),
        3 => (object.clone(), any::<bool>()).prop_map(|(object, lease)| Step::Exist { object, lease }),
        2 => (object, any::<bool>()).prop_map(|(object, force)| Step::Remove { object, force }),
        8 => (node.clone(), prop::bool::weighted(0.7)).prop_map(|(node, confirm)| Step::Heartbeat { node, confirm }),
        4 => (1_u64..9000).prop_map(|ms| Step::Advance { ms }),
        1 => node.clone().prop_map(|node| Step::Kill { node }),
        1 => node.clone().prop_map(|node| Step::Mount { node }),
        2 => (node.clone(), prop::bool::weighted(0.3)).prop_map(|(node, undo)| Step::Drain { node, undo }),
        4 => node.prop_map(|node| Step::StartCopies { node }),
        6 => (any::<prop::sample::Index>(), prop::bool::weighted(0.8))
            .prop_map(|(which, good)| Step::EndCopy { which, good }),
        1 => Just(Step::Restart),
    ]
}

fn key_of(object: u8) -> (usize, Box<[u8]>) {
    let tenant = usize::from(object.is_multiple_of(3));
    (tenant, whole_key(TENANTS[tenant], &[object]).unwrap())
}

impl World {
    fn take(&mut self, step: Step) {
        match step {
            Step::Put {
                object,
                length,
                replicas,
                soft_pin,
            } => self.put(object, length, replicas, soft_pin),
            Step::End { which, nodes } if !self.pending.is_empty() => {
                self.end(which.index(self.pending.len()), &nodes);
            }
            Step::Revoke { which } if !self.pending.is_empty() => {
                let pending = self.pending.swap_remove(which.index(self.pending.len()));
                self.state.revoke_put(&pending.key, pending.ticket.put);
            }
            Step::Get { object } => self.get(object),
            Step::Exist { object, lease } => {
                let (_, key) = key_of(object);
                let there = self.state.exist(&key, lease, self.now);
                assert_eq!(there.is_some(), self.owed.contains_key(&key));
                if lease {
                    self.use_it(&key);
                }
            }
            Step::Remove { object, force } => self.remove(object, force),
            Step::Heartbeat { node, confirm } => self.heartbeat(node, confirm),
            Step::Advance { ms } => self.advance(Duration::from_millis(ms)),
            Step::Kill { node } => self.kill(node),
            Step::Mount { node } => self.mount(node),
            Step::Drain { node, undo } if self.nodes[node].alive => {
                self.draining[node] = !undo;
                self.had_to_go[node] |= !undo;
                self.state.drain(&id(node as u8), false, undo, self.now).unwrap();
            }
            Step::StartCopies { node } => self.start_copies(node),
            Step::EndCopy { which, good } if !self.copies.is_empty() => {
                self.end_copy(which.index(self.copies.len()), good);
            }
            Step::Restart => self.restart(),
            Step::End { .. } | Step::Revoke { .. } | Step::Drain { .. } | Step::EndCopy { .. } => {}
        }
    }

    fn put(&mut self, object: u8, length: u64, replicas: u32, soft_pin: bool) {
        let (tenant, key) = key_of(object);
        let options = PutOptions {
            replicas,
            soft_pin,
            ..PutOptions::default()
        };
        let new = NewObject { key: &key, length };
        let before = self.owed.clone();
        let started = self.state.start_put(&new, u64::from(object), &options, self.now);
        self.evictions_were_right(&before);
        match started {
            Ok(ticket) => {
                if let Some(known) = self.pending.iter().position(|pending| pending.key == key) {
                    let before = &self.pending[known].ticket;
                    if before.put == ticket.put {
                        return;
                    }
                    assert!(before.locations.is_empty(), "the same attempt is another put");
                    self.pending.swap_remove(known);
                }
                assert!(!before.contains_key(&key), "an object is put over");
                assert!(ticket.put > self.last_put, "numbers of puts don't grow");
                self.last_put = ticket.put;
                assert!(!ticket.locations.is_empty() && ticket.locations.len() <= replicas.max(1) as usize);
                self.open(&ticket, &key, length);
                self.pending.push(Pending {
                    key,
                    tenant,
                    pinned_until: soft_pin.then_some(self.now + self.settings.soft_pin),
                    ticket,
                    until: self.now + self.settings.put_discard,
                });
            }
            Err(error) => {
                let expected = match error.kind() {
                    ErrorKind::AlreadyExists | ErrorKind::NoSpace => true,
                    ErrorKind::QuotaExceeded => tenant == 1,
                    ErrorKind::Unavailable => self.nodes.iter().all(|node| !node.alive),
                    _ => false,
                };
                assert!(expected, "{error}");
            }
        }
    }

    fn get(&mut self, object: u8) {
        let (_, key) = key_of(object);
        match (self.state.get(&key, self.now), self.owed.get(&key)) {
            (Ok(found), Some(owed)) => {
                assert_eq!(found.checksum, owed.checksum);
                assert!(!found.locations.is_empty());
                for location in &found.locations {
                    let node = location.node[0] as usize;
                    assert!(owed.nodes.contains(&node));
                    let range = &self.nodes[node].ranges[&location.put];
                    assert!(range.sealed && !range.ordered && range.offset == location.offset);
                    self.told.push(Told {
                        key: key.clone(),
                        node,
                        put: location.put,
                        until: self.now + found.lease,
                    });
                }
            }
            (Err(_), None) => {}
            (found, owed) => panic!("{found:?} for {owed:?}"),
        }
        self.use_it(&key);
    }

    fn use_it(&mut self, key: &[u8]) {
        self.uses += 1;
        if let Some(owed) = self.owed.get_mut(key) {
            owed.last_use = self.uses;
            owed.leased_until = owed.leased_until.max(self.now + self.settings.lease);
            if let Some(until) = &mut owed.pinned_until {
                *until = self.now + self.settings.soft_pin;
            }
        }
    }

    fn remove(&mut self, object: u8, force: bool) {
        let (_, key) = key_of(object);
        let outcome = self
            .state
            .remove(&key, force, self.now)
            .map(drop)
            .map_err(|error| error.kind());
        let known = self.owed.get(&key);
        match known {
            Some(owed) if !force && owed.leased_until > self.now => assert_eq!(outcome, Err(ErrorKind::Busy)),
            Some(_) => assert_eq!(outcome, Ok(())),
            // an object being put is busy, and goes if forced
            None => {}
        }
        if outcome.is_ok() {
            self.told.retain(|told| told.key != key);
            self.owed.remove(&key);
            self.pending.retain(|pending| pending.key != key);
        }
    }

    /// Takes out of the model what was evicted, after checking that it might.
    fn evictions_were_right(&mut self, before: &std::collections::HashMap<Box<[u8]>, Owed>) {
        let now = self.now;
        let (mut gone, mut left): (Vec<&Owed>, Vec<&Owed>) = (Vec::new(), Vec::new());
        for (key, owed) in before {
            if self.state.exist(key, false, now).is_some() {
                left.push(owed);
            } else {
                gone.push(owed);
                self.owed.remove(key);
            }
        }
        let pinned = |owed: &Owed| owed.pinned_until.is_some_and(|until| until > now);
        for evicted in gone {
            assert!(evicted.leased_until <= now, "a leased object was evicted");
            assert!(
                !pinned(evicted) || self.settings.allow_evict_soft_pinned,
                "a pinned object was evicted"
            );
            let colder = left
                .iter()
                .filter(|owed| owed.tenant == evicted.tenant && owed.leased_until <= now)
                // those on nodes that are being emptied free no room
                .filter(|owed| owed.nodes.iter().any(|node| !self.draining[*node]));
            for other in colder {
                let right = match (pinned(evicted), pinned(other)) {
                    (false, true) => true,
                    (true, false) => false,
                    _ => other.last_use > evicted.last_use,
                };
                assert!(right, "{evicted:?} was evicted before {other:?}");
            }
        }
    }

    /// What must hold at every moment.
    fn check(&mut self) {
        let status = self.state.status(self.now);
        assert!(status.used_bytes + status.quarantined_bytes <= status.capacity_bytes);
        assert_eq!(status.objects, self.owed.len() as u64);
        let alive = self.nodes.iter().filter(|node| node.alive).count() as u64;
        assert_eq!(status.capacity_bytes, alive * SEGMENT);
        let of_tenants: u64 = status.tenants.iter().map(|tenant| tenant.used_bytes).sum();
        let of_tenants = of_tenants + self.uncharged_bytes();
        assert_eq!(of_tenants, status.used_bytes + status.quarantined_bytes);
        let of_nodes: u64 = self
            .state
            .node_statuses(self.now)
            .iter()
            .map(|(_, node)| node.used_bytes + node.quarantined_bytes)
            .sum();
        assert_eq!(of_nodes, of_tenants);
        let listed = self.state.list(0, usize::MAX, None, self.now);
        assert_eq!(listed.next, 0);
        for object in listed.objects.iter().filter(|object| object.complete) {
            let owed = self.owed.get_mut(&object.key).expect("an object that nobody put");
            let nodes: BTreeSet<usize> = object.nodes.iter().map(|node| node[0] as usize).collect();
            assert!(
                !nodes.is_empty() && nodes.is_subset(&owed.nodes),
                "{nodes:?} of {owed:?}"
            );
            let dropped = owed.nodes.difference(&nodes);
            assert!(
                dropped.into_iter().all(|node| self.had_to_go[*node]),
                "{nodes:?} of {owed:?}"
            );
            owed.nodes = nodes;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn nothing_owed_is_lost_and_nothing_overlaps(
        allow in any::<bool>(),
        steps in prop::collection::vec(step(), 1..160),
    ) {
        let mut world = World::new(allow);
        for step in steps {
            world.take(step);
            // what went with nodes is cleared away in between
            world.state.tick(world.now);
            world.check();
        }
    }
}

#[test]
fn quotas_hold_without_announcements() {
    // what nodes announce counts whatever the quota, so a history without restarts is looked at by itself
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 200,
        ..ProptestConfig::default()
    });
    let steps = prop::collection::vec(step(), 1..120);
    runner
        .run(&steps, |steps| {
            let mut world = World::new(true);
            for step in steps {
                if matches!(step, Step::Restart | Step::Mount { .. }) {
                    continue;
                }
                world.take(step);
                world.state.tick(world.now);
                world.check();
                let usage: BTreeMap<String, u64> = world
                    .state
                    .status(world.now)
                    .tenants
                    .into_iter()
                    .map(|tenant| (tenant.name, tenant.used_bytes))
                    .collect();
                prop_assert!(usage.get("t").copied().unwrap_or(0) <= 12 * 256);
            }
            Ok(())
        })
        .unwrap();
}
