use std::time::Duration;

use kvstored_core::error::ErrorKind;
use kvstored_core::tier::Durability;

use super::rig::{Memory, PATIENCE, dump, dumped, hashes, load, loaded, open};
use super::*;

#[test]
#[allow(unsafe_code)]
fn a_shutdown_in_mid_load_ends_the_load() {
    let served = Served::new(16);
    let client = served.client();
    let namespace = open(&client);
    let blocks = hashes(0..9);
    dump(&client, &namespace, &blocks, Durability::Tier);
    client.evict(&namespace, &blocks, Some("Cache")).unwrap();
    served.rig.map.hold();
    let mut memory = Memory::empty(&blocks, 0..3);
    let request = LoadRequest {
        hashes: blocks.clone(),
        shards: 0..3,
        tensors: memory.tensors(),
        order: LoadOrder::BlockMajor,
        timeout: None,
    };
    // SAFETY: the memory outlives the task, which is waited for.
    let task = unsafe { client.load(&namespace, request) }.unwrap();
    assert!(served.rig.eventually(|| served.rig.map.held_operations() > 0));
    served.handle.shutdown(Duration::from_millis(50));
    let report = task.wait(PATIENCE).unwrap();
    for outcome in report.blocks {
        assert!(
            matches!(&outcome, BlockOutcome::Failed(error) if error.kind() == ErrorKind::Unavailable),
            "{outcome:?}"
        );
    }
    served.rig.map.go_on();
    assert!(served.rig.eventually(|| served.rig.is_wholly_evictable(16)));
}

#[test]
fn a_shutdown_lets_what_is_under_way_finish() {
    let served = Served::new(16);
    let client = served.client();
    let namespace = open(&client);
    served.rig.map.hold();
    let dumping = {
        let (client, namespace) = (client.clone(), namespace.clone());
        std::thread::Builder::new()
            .spawn(move || dump(&client, &namespace, &hashes(0..4), Durability::Tier))
            .unwrap()
    };
    assert!(served.rig.eventually(|| served.rig.map.held_operations() == 4));
    std::thread::scope(|scope| {
        scope.spawn(|| served.handle.shutdown(PATIENCE));
        assert!(served.rig.eventually(|| !served.path.exists()));
        served.rig.map.go_on();
    });
    assert_eq!(dumped(&dumping.join().unwrap()), 4);
    assert_eq!(
        loaded(&load(
            &client,
            &namespace,
            &hashes(0..4),
            0..3,
            LoadOrder::BlockMajor
        )),
        0
    );
}
