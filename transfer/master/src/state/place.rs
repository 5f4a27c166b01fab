//! Choosing where a put's replicas go.

use super::State;
use super::object::Replica;
use crate::types::{NodeId, PutOptions};

/// Most replicas of one object.
pub(super) const MAX_REPLICAS: u32 = 16;

impl State {
    /// Takes ranges on as many different nodes as wished for, or on as many as have room; at least one, or none at all.
    ///
    /// The preferred node comes first, then those with the most room, and those to be avoided last.
    pub(super) fn place(&mut self, bytes: u64, options: &PutOptions) -> Vec<Replica> {
        let wanted = options.replicas.clamp(1, MAX_REPLICAS) as usize;
        let mut replicas: Vec<Replica> = Vec::with_capacity(wanted);
        if let Some(number) = options.prefer.and_then(|id| self.by_id.get(&id).copied()) {
            self.try_place(number, bytes, &mut replicas);
        }
        for avoided in [false, true] {
            let mut below = Some((u64::MAX, u32::MAX));
            while replicas.len() < wanted
                && let Some(bound) = below
            {
                let Some(&(room, number)) = self.by_room.range(..bound).next_back() else {
                    break;
                };
                if room < bytes {
                    break;
                }
                below = Some((room, number));
                let is_avoided = self
                    .node(number)
                    .is_some_and(|node| is_among(&node.id, &options.avoid));
                if is_avoided == avoided {
                    self.try_place(number, bytes, &mut replicas);
                }
            }
            if options.avoid.is_empty() {
                break;
            }
        }
        replicas
    }

    fn try_place(&mut self, number: u32, bytes: u64, replicas: &mut Vec<Replica>) {
        let free = |replica: &Replica| replica.node != number;
        if !self.node(number).is_some_and(super::node::Node::takes) || !replicas.iter().all(free) {
            return;
        }
        if let Some(Some(offset)) = self.with_room(number, |node| node.free.allocate(bytes)) {
            // the put's number is known when all places are
            replicas.push(Replica::new(number, offset, 0));
        }
    }

    /// Gives ranges back that nobody was told of.
    pub(super) fn unplace(&mut self, bytes: u64, replicas: &[Replica]) {
        for replica in replicas {
            self.with_room(replica.node, |node| node.free.release(replica.offset, bytes));
        }
    }
}

fn is_among(id: &NodeId, ids: &[NodeId]) -> bool {
    ids.iter().any(|other| other == id)
}
