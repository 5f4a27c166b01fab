//! The tier `Pool` on two nodes.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use kvstored_core::memory::SlotOwner;
use kvstored_core::{
    Action, Arena, BlockHash, Durability, Envelope, ErrorKind, Identity, Layout, NamespaceInfo, Operation,
    Result, Runtime, SlotGuard, Tier,
};

use super::{FakeMaster, Member, eventually, pattern, soon};
use crate::{PoolTier, PutOptions, TierSettings};

struct Nobody;

impl SlotOwner for Nobody {
    fn release(&self, _: u32) {}
}

/// A member with a tier, and slots for blocks.
struct Level {
    member: Member,
    tier: Arc<PoolTier>,
    arena: Arc<Arena>,
    info: Arc<NamespaceInfo>,
}

const SLOTS: usize = 32;

impl Level {
    fn new(master: &Arc<FakeMaster>, lends: u64) -> Self {
        let member = Member::new(master, lends);
        let settings = TierSettings {
            feed_interval: Duration::from_millis(10),
            ..TierSettings::default()
        };
        let tier = PoolTier::start(&settings, member.client.clone(), &Runtime::system()).unwrap();
        let layout = Layout::uniform(2, 2, 3000).unwrap();
        let identity = Identity {
            model: "m".into(),
            ..Identity::default()
        };
        let info = Arc::new(NamespaceInfo::new(identity, layout).unwrap());
        tier.open_namespace(&info).unwrap();
        Self {
            member,
            tier,
            arena: Arc::new(Arena::heap(SLOTS * info.layout.image_bytes()).unwrap()),
            info,
        }
    }

    fn slot(&self, number: usize) -> SlotGuard {
        let bytes = self.info.layout.image_bytes();
        let slot = number % SLOTS;
        SlotGuard::new(
            self.arena.clone(),
            Arc::new(Nobody),
            slot as u32,
            slot * bytes,
            bytes,
        )
    }

    fn image(&self, number: usize) -> SlotGuard {
        let slot = self.slot(number);
        let layout = &self.info.layout;
        let mut checksums = Vec::new();
        for shard in 0..layout.shards().len() {
            let bytes = pattern(number as u64 * 10 + shard as u64, 6000);
            let offset = slot.offset() + layout.shard_offset(shard).unwrap();
            self.arena.write(offset, &bytes).unwrap();
            checksums.push(kvstored_core::checksum::checksum(&bytes));
        }
        let envelope = Envelope::new(self.info.key(hash(number)), layout, 1, 1, checksums);
        slot.write_descriptor(&envelope.encode().unwrap()).unwrap();
        slot
    }

    fn run(&self, actions: Vec<(usize, Action, SlotGuard)>) -> Vec<Result<()>> {
        let (sender, receiver) = mpsc::channel();
        let count = actions.len();
        let batch = actions
            .into_iter()
            .enumerate()
            .map(|(at, (number, action, buffer))| {
                let sender = sender.clone();
                Operation {
                    namespace: self.info.clone(),
                    hash: hash(number),
                    action,
                    buffer,
                    completion: Box::new(move |_, result| sender.send((at, result)).unwrap()),
                }
            });
        self.tier.submit(batch.collect());
        let mut outcomes: Vec<(usize, Result<()>)> = (0..count)
            .map(|_| receiver.recv_timeout(Duration::from_secs(20)).unwrap())
            .collect();
        outcomes.sort_by_key(|(at, _)| *at);
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }

    fn dump(&self, numbers: std::ops::Range<usize>) {
        let write = |number| (number, Action::Write(Durability::Tier), self.image(number));
        for outcome in self.run(numbers.map(write).collect()) {
            outcome.unwrap();
        }
    }

    fn load(&self, number: usize) -> Result<()> {
        let slot = self.slot(number);
        let layout = &self.info.layout;
        self.arena
            .write(slot.offset(), &vec![0; layout.image_bytes()])
            .unwrap();
        self.run(vec![(number, Action::Read, slot.clone())]).remove(0)?;
        for shard in 0..layout.shards().len() {
            let mut found = vec![0; 6000];
            let offset = slot.offset() + layout.shard_offset(shard).unwrap();
            self.arena.read(offset, &mut found).unwrap();
            assert!(
                found == pattern(number as u64 * 10 + shard as u64, 6000),
                "block {number}"
            );
        }
        Ok(())
    }

    fn has(&self, number: usize) -> bool {
        let mut present = [false];
        self.tier.lookup(&self.info, &[hash(number)], &mut present);
        present[0]
    }
}

fn hash(number: usize) -> BlockHash {
    let mut bytes = [7; 20];
    bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
    BlockHash::new(&bytes).unwrap()
}

fn pool() -> (Arc<FakeMaster>, Level, Level) {
    let master = Arc::new(FakeMaster::new(Duration::from_secs(2)));
    let (one, two) = (Level::new(&master, 4 << 20), Level::new(&master, 4 << 20));
    (master, one, two)
}

#[test]
fn a_block_that_one_node_dumps_another_one_loads() {
    let (_master, one, two) = pool();
    one.dump(0..20);
    assert!((0..20).all(|number| one.has(number)), "its own are known at once");
    eventually("the index", || (0..20).all(|number| two.has(number)));
    let hashes: Vec<BlockHash> = (0..25).map(hash).collect();
    assert_eq!(two.tier.lookup_on_prefix(&two.info, &hashes), 20);
    for number in 0..20 {
        two.load(number).unwrap();
        one.load(number).unwrap();
    }
    // again: stored once
    one.dump(0..20);
    assert_eq!(one.tier.statistics().blocks, 20);
    assert_eq!(one.tier.namespaces(), [(one.info.namespace, 20)]);
    let listed = one.tier.list(None, None, 100).len() + two.tier.list(None, None, 100).len();
    assert_eq!(listed, 20);
    assert_eq!(two.load(24).unwrap_err().kind(), ErrorKind::NotFound);
    one.tier.drain(soon()).unwrap();
}

#[test]
fn removed_blocks_leave_every_index() {
    let (_master, one, two) = pool();
    one.dump(0..10);
    eventually("the index", || (0..10).all(|number| two.has(number)));
    assert_eq!(two.tier.remove(&two.info, &[hash(0), hash(1), hash(99)]), 2);
    eventually("the removal", || !one.has(0) && !one.has(1) && one.has(2));
    assert_eq!(one.tier.purge(&one.info.namespace).unwrap(), 8);
    eventually("the purge", || (0..10).all(|number| !two.has(number)));
    eventually("the room", || {
        one.member.node.as_ref().unwrap().statistics().ranges == 0
    });
}

#[test]
fn a_block_that_rots_is_a_miss_and_is_forgotten() {
    let (master, one, two) = pool();
    one.dump(0..2);
    eventually("the index", || two.has(0) && two.has(1));
    let key = crate::tier::object_key(&one.info, &hash(0));
    let location = master.locations(&key).remove(0);
    let holder = [&one, &two]
        .into_iter()
        .find(|level| level.member.node.as_ref().unwrap().id() == location.node)
        .unwrap();
    holder
        .member
        .node
        .as_ref()
        .unwrap()
        .segment()
        .corrupt(location.offset + 5000);
    assert_eq!(two.load(0).unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(!two.has(0));
    assert_eq!(two.tier.statistics().quarantined_blocks, 1);
    eventually("the other index", || !one.has(0));
    two.load(1).unwrap();
}

#[test]
fn an_object_that_is_no_such_block_is_refused() {
    let (_master, one, two) = pool();
    // somebody puts other bytes, well checksummed, under a block's name
    let key = crate::tier::object_key(&one.info, &hash(5));
    for length in [100, one.info.layout.image_bytes()] {
        let piece = one.member.fill(0, &pattern(1, length));
        one.member
            .client
            .put(&key, &[piece], &PutOptions::default(), soon())
            .unwrap();
        assert_eq!(two.load(5).unwrap_err().kind(), ErrorKind::Corrupt);
        one.member.client.remove(&[&key], true, soon()).unwrap();
    }
}

#[test]
fn a_node_that_leaves_takes_its_blocks_out_of_the_index() {
    let (_master, one, two) = pool();
    one.dump(0..3);
    eventually("the index", || (0..3).all(|number| two.has(number)));
    one.tier.shutdown();
    eventually("its blocks to go", || (0..3).all(|number| !two.has(number)));
    let write = vec![(9, Action::Write(Durability::Tier), one.image(9))];
    assert_eq!(one.run(write).remove(0).unwrap_err().kind(), ErrorKind::Cancelled);
}
