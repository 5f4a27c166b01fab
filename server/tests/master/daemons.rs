//! Daemons with a pool in their pipelines: several masters whose leader is killed or stopped under load, and a daemon
//! that hands over what it lends before it ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kvstored_core::{Durability, Layout};
use kvstored_tests::blocks::{Blocks, Loaded};
use kvstored_tests::daemon::Daemon;
use rustix::process::Signal;

use super::etcd::Etcd;
use super::failover::{epoch, leader, master};
use super::process::Master;
use super::{client, pause, soon, until};

/// Blocks that are there before anything happens; more than a cache holds.
const BLOCKS: u64 = 400;
/// Blocks loaded or dumped at once.
const AT_ONCE: usize = 16;

/// A daemon whose blocks soon leave its memory.
pub const SMALL_SITE: [&str; 8] = [
    "--pipeline",
    "Cache|Pool|Posix",
    "--cache-buffer-capacity",
    "1600KiB",
    "--posix-capacity",
    "2GiB",
    "--global-segment-size",
    "96MiB",
];

/// A daemon with a storage directory of its own, so that it has others' blocks from the pool or not at all.
struct Site {
    daemon: Daemon,
    _folder: tempfile::TempDir,
}

impl Site {
    fn start(masters: &[&str], more: &[&str]) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let masters = masters.join(",");
        let mut arguments = SMALL_SITE.to_vec();
        arguments.extend(["--pool-master-address", &masters, "--pool-transports", "tcp"]);
        arguments.extend(more);
        let daemon = Daemon::start(folder.path(), &folder.path().join("storage"), &arguments).unwrap();
        Self {
            daemon,
            _folder: folder,
        }
    }
}

fn layout() -> Layout {
    Layout::uniform(3, 2, 2048).unwrap()
}

fn numbers(range: std::ops::Range<u64>) -> Vec<Vec<u64>> {
    let all: Vec<u64> = range.collect();
    all.chunks(AT_ONCE).map(<[u64]>::to_vec).collect()
}

/// What loads gave.
#[derive(Debug, Default)]
struct Tally {
    right: usize,
    missing: usize,
    failed: usize,
    wrong: usize,
}

impl Tally {
    fn add(&mut self, outcomes: &[Loaded]) {
        for outcome in outcomes {
            *match outcome {
                Loaded::Right => &mut self.right,
                Loaded::Missing => &mut self.missing,
                Loaded::Failed => &mut self.failed,
                Loaded::Wrong => &mut self.wrong,
            } += 1;
        }
    }
}

/// Blocks that one daemon dumped and another one loads, while the masters' leader goes.
fn the_leader_goes(signal: Signal) {
    let Some(etcd) = Etcd::start() else { return };
    let mut masters = vec![master(&etcd), master(&etcd), master(&etcd)];
    let first = leader(&masters.iter().collect::<Vec<_>>());
    let addresses: Vec<String> = masters.iter().map(|master| master.address.clone()).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let (writer, reader) = (Site::start(&addresses, &[]), Site::start(&addresses, &[]));
    let (to_writer, to_reader) = (writer.daemon.connect().unwrap(), reader.daemon.connect().unwrap());
    let writing = Blocks::open(&to_writer, "masters", &layout()).unwrap();
    let reading = Blocks::open(&to_reader, "masters", &layout()).unwrap();
    let all = client(&addresses);
    let ready = |at_least: usize| {
        let nodes = all.nodes(soon());
        nodes.is_ok_and(|nodes| nodes.iter().filter(|node| node.state == "ready").count() >= at_least)
    };
    until("both nodes", || ready(2));
    for some in numbers(0..BLOCKS) {
        writing.dump(&some, Durability::Tier).unwrap();
    }
    let everything: Vec<u64> = (0..BLOCKS).collect();
    until("the blocks", || {
        reading.lookup(&everything).unwrap().iter().all(|there| *there)
    });
    // where half of them are the reader knows
    for some in numbers(0..BLOCKS / 2) {
        assert_eq!(reading.load(&some).unwrap(), vec![Loaded::Right; some.len()]);
    }
    let before = epoch(&client(&[addresses[first]]));

    let (gone, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let (mut known, mut unknown) = (Tally::default(), Tally::default());
    std::thread::scope(|scope| {
        let dumps = scope.spawn(|| {
            let mut next = 10_000;
            while !stop.load(Ordering::Acquire) {
                let some: Vec<u64> = (next..next + AT_ONCE as u64).collect();
                next += AT_ONCE as u64;
                // acknowledged by the writer's own disk, whatever becomes of the pool
                let outcomes = writing.dump(&some, Durability::Tier).unwrap();
                let is_dumped = |outcome: &kvstored_client::BlockOutcome| {
                    matches!(outcome, kvstored_client::BlockOutcome::Dumped(_))
                };
                assert!(outcomes.iter().all(is_dumped), "{outcomes:?}");
                pause(Duration::from_millis(50));
            }
            10_000..next
        });
        let loads = scope.spawn(|| {
            let (mut known, mut unknown) = (Tally::default(), Tally::default());
            let mut round = 0;
            while !stop.load(Ordering::Acquire) {
                round += 1;
                for some in numbers(0..BLOCKS / 2) {
                    known.add(&reading.load(&some).unwrap());
                }
                // where the others are only a master can say: until there is one they are missed
                if gone.load(Ordering::Acquire) {
                    let rest = numbers(BLOCKS / 2..BLOCKS);
                    unknown.add(&reading.load(&rest[round % rest.len()]).unwrap());
                }
            }
            (known, unknown)
        });
        pause(Duration::from_millis(500));
        let old = masters.remove(first);
        old.signal(signal);
        gone.store(true, Ordering::Release);
        let second = leader(&masters.iter().collect::<Vec<_>>());
        assert!(epoch(&client(&[&masters[second].address])) > before);
        until("both nodes again", || ready(2));
        pause(Duration::from_millis(500));
        if signal == Signal::STOP {
            old.signal(Signal::CONT);
            until("the old leader to follow", || {
                let status = client(&[&old.address]).status(soon());
                status.is_ok_and(|status| !status.leader && !status.leader_address.is_empty())
            });
            pause(Duration::from_millis(500));
        }
        stop.store(true, Ordering::Release);
        (known, unknown) = loads.join().unwrap();
        let dumped = dumps.join().unwrap();
        assert!(dumped.end > dumped.start);
        // nothing that the pool held is gone, and what it took since is found and right
        let status = all.status(soon()).unwrap();
        assert!(status.leader && status.objects >= BLOCKS, "{status:?}");
        for some in numbers(0..BLOCKS).into_iter().chain(numbers(dumped)) {
            let there = reading.lookup(&some).unwrap();
            let loaded = reading.load(&some).unwrap();
            for ((number, there), loaded) in some.iter().zip(there).zip(loaded) {
                assert!(there || *number >= BLOCKS, "block {number} is gone");
                assert!(loaded == Loaded::Right || !there, "{number}: {loaded:?}");
            }
        }
    });
    eprintln!("known blocks: {known:?}, others: {unknown:?}");
    assert_eq!((known.wrong, unknown.wrong), (0, 0));
    // the first load after the leader went may wait for a master as long as it's given
    assert!(known.missing + known.failed <= 2 * AT_ONCE, "{known:?}");
    assert!(known.right > BLOCKS as usize);
    assert!(unknown.right > 0);
}

#[test]
fn daemons_go_on_while_their_masters_leader_is_killed() {
    the_leader_goes(Signal::KILL);
}

#[test]
fn daemons_go_on_while_their_masters_leader_is_stopped_and_wakes_up() {
    the_leader_goes(Signal::STOP);
}

#[test]
fn a_daemon_hands_over_what_it_lends_before_it_ends() {
    let master = Master::start(&["--client_ttl", "3"]);
    let leaving = Site::start(&[&master.address], &["--pool-drain-timeout-ms", "20000"]);
    let staying = Site::start(&[&master.address], &[]);
    let (to_leaving, to_staying) = (
        leaving.daemon.connect().unwrap(),
        staying.daemon.connect().unwrap(),
    );
    let writing = Blocks::open(&to_leaving, "handed over", &layout()).unwrap();
    let reading = Blocks::open(&to_staying, "handed over", &layout()).unwrap();
    let status = client(&[&master.address]);
    until("both nodes", || status.nodes(soon()).unwrap().len() == 2);
    for some in numbers(0..BLOCKS) {
        writing.dump(&some, Durability::Tier).unwrap();
    }
    until("the pool to have them", || {
        status.status(soon()).unwrap().objects == BLOCKS
    });
    drop(to_leaving);
    assert!(leaving.daemon.terminate());
    until("one node", || status.nodes(soon()).unwrap().len() == 1);
    assert_eq!(status.status(soon()).unwrap().objects, BLOCKS);
    for some in numbers(0..BLOCKS) {
        until("the blocks", || {
            reading.lookup(&some).unwrap().iter().all(|there| *there)
        });
        assert_eq!(reading.load(&some).unwrap(), vec![Loaded::Right; some.len()]);
    }
}
