use std::sync::Arc;

use kvstored_core::{Action, Arena, Device, Durability, ErrorKind, Runtime, Tier};

use super::support::{PATIENCE, Rig, Switched, buffer, hash, image, namespace, wait};
use crate::hbm::{HbmSettings, HbmTier};

#[test]
fn blocks_go_to_the_device_and_come_back_whole() {
    let rig = Rig::small(16);
    assert!(!rig.present(1));
    assert_eq!(rig.read(1).unwrap_err().kind(), ErrorKind::NotFound);
    for number in 0..8 {
        rig.write(number).unwrap();
        assert!(rig.present(number));
    }
    for number in 0..8 {
        rig.expect(number);
    }
    // again: nothing to do
    rig.write(3).unwrap();
    // an operation's caller is told before it's out of the queue
    rig.tier.drain(Runtime::system().deadline(PATIENCE)).unwrap();
    let statistics = rig.tier.statistics();
    assert_eq!(
        (statistics.blocks, statistics.faults, statistics.queue_depth),
        (8, 0, 0)
    );
    let image = rig.namespace.layout.image_bytes() as u64;
    assert_eq!(
        (statistics.written_bytes, statistics.read_bytes),
        (8 * image, 8 * image)
    );
    assert_eq!(statistics.allocated_bytes, 8 * image);
    assert_eq!(rig.tier.keeps(), Durability::Memory);
}

#[test]
fn a_batch_of_operations_is_one_call_to_the_device() {
    let rig = Rig::small(128);
    let before = rig.tier.statistics();
    let writes = (0..94).map(|number| {
        let action = Action::Write(Durability::Tier);
        (hash(number), action, image(&rig.namespace, hash(number)))
    });
    for pending in rig.start(writes.collect()) {
        wait(pending).1.unwrap();
    }
    let reads = (0..94).map(|number| {
        let buffer = buffer(rig.namespace.layout.image_bytes());
        (hash(number), Action::Read, buffer)
    });
    for pending in rig.start(reads.collect()) {
        wait(pending).1.unwrap();
    }
    let after = rig.tier.statistics();
    assert_eq!(after.device_calls - before.device_calls, 2);
    assert_eq!(after.device_copies - before.device_copies, 2 * 94);
}

#[test]
fn a_batch_with_too_many_bytes_is_several_calls() {
    let image_bytes = namespace("model").layout.image_bytes() as u64;
    let rig = Rig::new(HbmSettings {
        capacity_bytes: 32 * image_bytes,
        call_bytes: 4 * image_bytes,
        ..HbmSettings::default()
    });
    let writes = (0..10).map(|number| {
        let action = Action::Write(Durability::Tier);
        (hash(number), action, image(&rig.namespace, hash(number)))
    });
    for pending in rig.start(writes.collect()) {
        wait(pending).1.unwrap();
    }
    assert_eq!(rig.tier.statistics().device_calls, 3);
    (0..10).for_each(|number| rig.expect(number));
}

#[test]
fn the_coldest_blocks_make_room() {
    let rig = Rig::small(4);
    for number in 0..4 {
        rig.write(number).unwrap();
    }
    rig.expect(0);
    for number in 4..7 {
        rig.write(number).unwrap();
    }
    assert!(
        rig.present(0),
        "a block that was used went before those that were not"
    );
    let statistics = rig.tier.statistics();
    assert_eq!((statistics.blocks, statistics.evicted_blocks), (4, 3));
    assert!(statistics.allocated_bytes <= statistics.capacity_bytes);
    for number in [0, 4, 5, 6] {
        rig.expect(number);
    }
}

#[test]
fn blocks_of_several_sizes_share_the_memory() {
    let rig = Rig::small(8);
    let other = namespace("other");
    rig.tier.open_namespace(&other).unwrap();
    for number in 0..40 {
        rig.write(number).unwrap();
    }
    assert_eq!(rig.tier.namespaces().len(), 2);
    assert_eq!(rig.tier.list(Some(&other.namespace), None, 10), []);
    assert_eq!(rig.tier.list(None, None, 100).len(), 8);
    assert_eq!(rig.tier.purge(&rig.namespace.namespace).unwrap(), 8);
    assert_eq!(rig.tier.statistics().allocated_bytes, 0);
}

#[test]
fn a_block_that_is_removed_on_its_way_does_not_come() {
    let rig = Rig::small(4);
    let hold = rig.device.hold();
    let action = Action::Write(Durability::Tier);
    let pending = rig.start(vec![(hash(1), action, image(&rig.namespace, hash(1)))]);
    assert_eq!(rig.tier.remove(&rig.namespace, &[hash(1)]), 0);
    hold.reach();
    for pending in pending {
        let _ = wait(pending);
    }
    assert!(!rig.present(1));
    assert_eq!(rig.tier.statistics().allocated_bytes, 0);
}

#[test]
fn what_the_device_has_not_got_is_refused_at_the_start() {
    let device: Arc<dyn Device> = Switched::new(1 << 20);
    let open = |capacity_bytes| {
        let settings = HbmSettings {
            capacity_bytes,
            ..HbmSettings::default()
        };
        HbmTier::open(settings, &device, &Runtime::system(), None)
    };
    assert_eq!(open(2 << 20).err().unwrap().kind(), ErrorKind::NoSpace);
    assert_eq!(open(100).err().unwrap().kind(), ErrorKind::InvalidInput);
    let tier = open(1 << 20).unwrap();
    assert_eq!(device.memory().unwrap().free_bytes, 0);
    tier.register(&Arc::new(Arena::heap(8192).unwrap()));
    drop(tier);
    assert_eq!(device.memory().unwrap().free_bytes, 1 << 20);
}

#[test]
fn a_stopped_tier_cancels_and_ends() {
    let rig = Rig::small(4);
    rig.write(1).unwrap();
    rig.tier.shutdown();
    rig.tier.shutdown();
    assert_eq!(rig.read(1).unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(rig.write(2).unwrap_err().kind(), ErrorKind::Cancelled);
}
