//! Daemons whose pool goes over a plugged-in transport: the plugin `hixl` as an operator installs it, on an emulator of
//! its library.

use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use kvstored_core::{Durability, Layout, TransportStatistics};
use kvstored_tests::blocks::{Blocks, Loaded};
use kvstored_tests::daemon::Daemon;
use kvstored_tests::plugins::{beside, directory_with};

use super::daemons::SMALL_SITE;
use super::process::Master;
use super::{client, soon, until};

/// More than a cache holds.
const BLOCKS: u64 = 400;
/// Blocks loaded or dumped at once.
const AT_ONCE: usize = 16;

/// A daemon with a storage directory of its own, so that it has others' blocks from the pool or not at all.
struct Site {
    daemon: Daemon,
    /// Its port belongs to nobody else while this lives; the emulator listens elsewhere under the same number.
    _port: TcpListener,
    _plugins: tempfile::TempDir,
    _folder: tempfile::TempDir,
}

impl Site {
    fn start(master: &str, more: &[&str]) -> Self {
        Self::start_on(&beside("libkvstored_emulated_hixl.so").unwrap(), master, more)
    }

    /// One with that library of HIXL.
    fn start_on(library: &Path, master: &str, more: &[&str]) -> Self {
        let (folder, plugins) = (
            tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(),
            directory_with("hixl").unwrap(),
        );
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        let directory = plugins.path().display().to_string();
        let told = [
            "hixl.address=127.0.0.1".to_owned(),
            format!("hixl.listen={}", port.local_addr().unwrap()),
            format!("hixl.library={}", library.display()),
        ];
        let mut arguments = SMALL_SITE.to_vec();
        arguments.extend([
            "--pool-master-address",
            master,
            "--pool-transports",
            "ascend,tcp",
            "--pool-ascend",
            "Plugin(hixl)",
            "--plugin-directory",
            &directory,
        ]);
        arguments.extend(
            told.iter()
                .flat_map(|setting| ["--plugin-setting", setting.as_str()]),
        );
        arguments.extend(more);
        let daemon = Daemon::start(folder.path(), &folder.path().join("storage"), &arguments).unwrap();
        Self {
            daemon,
            _port: port,
            _plugins: plugins,
            _folder: folder,
        }
    }

    /// What its pool moved over a transport, as the one that asked or the one that served.
    fn moved(&self, transport: &str, served: bool) -> TransportStatistics {
        let tiers = self.daemon.connect().unwrap().statistics().unwrap().tiers;
        let pool = tiers.into_iter().find(|tier| tier.name == "Pool").unwrap();
        let mut rows = pool.statistics.transports.into_iter();
        rows.find(|row| row.transport == transport && row.served == served)
            .unwrap_or_default()
    }
}

fn layout() -> Layout {
    Layout::uniform(3, 2, 2048).unwrap()
}

fn in_groups(range: std::ops::Range<u64>) -> Vec<Vec<u64>> {
    let all: Vec<u64> = range.collect();
    all.chunks(AT_ONCE).map(<[u64]>::to_vec).collect()
}

fn dump(blocks: &Blocks<'_>, range: std::ops::Range<u64>) {
    for some in in_groups(range) {
        blocks.dump(&some, Durability::Tier).unwrap();
    }
}

/// Waits until a daemon has heard of blocks, and loads them: all are right.
fn load(blocks: &Blocks<'_>, range: std::ops::Range<u64>) {
    let all: Vec<u64> = range.clone().collect();
    until("the blocks", || {
        blocks.lookup(&all).unwrap().iter().all(|there| *there)
    });
    for some in in_groups(range) {
        assert_eq!(blocks.load(&some).unwrap(), vec![Loaded::Right; some.len()]);
    }
}

fn nodes_are_ready(master: &Master, count: usize) {
    let master = client(&[&master.address]);
    until("the nodes", || {
        let nodes = master.nodes(soon()).unwrap();
        nodes.iter().filter(|node| node.state == "ready").count() == count
    });
}

#[test]
fn blocks_go_between_daemons_over_the_plugged_in_transport() {
    let master = Master::start(&[]);
    let (writer, reader) = (
        Site::start(&master.address, &["--pool-replicas", "2"]),
        Site::start(&master.address, &[]),
    );
    let (to_writer, to_reader) = (writer.daemon.connect().unwrap(), reader.daemon.connect().unwrap());
    let writing = Blocks::open(&to_writer, "plugged in", &layout()).unwrap();
    let reading = Blocks::open(&to_reader, "plugged in", &layout()).unwrap();
    nodes_are_ready(&master, 2);
    let bytes = BLOCKS * layout().image_bytes() as u64;
    // each block lies with both
    dump(&writing, 0..BLOCKS);
    until("the copies", || {
        writer.moved("ascend", false).written_bytes >= bytes
    });
    // and these with the reader alone
    dump(&reading, BLOCKS..2 * BLOCKS);
    load(&writing, BLOCKS..2 * BLOCKS);
    let asked = writer.moved("ascend", false);
    assert!(asked.read_bytes >= bytes, "{asked:?}");
    assert_eq!(asked.failures, 0, "{asked:?}\n{}", writer.daemon.log());
    let served = reader.moved("ascend", true);
    assert_eq!(
        (served.read_bytes, served.written_bytes),
        (asked.read_bytes, asked.written_bytes)
    );
    for site in [&writer, &reader] {
        let sockets = site.moved("tcp", false);
        assert_eq!((sockets.read_bytes, sockets.written_bytes), (0, 0), "{sockets:?}");
    }
    drop((to_writer, to_reader));
    assert!(writer.daemon.terminate() && reader.daemon.terminate());
}

#[test]
fn a_daemon_without_the_library_goes_over_sockets_and_says_so() {
    let master = Master::start(&[]);
    let writer = Site::start(&master.address, &[]);
    let reader = Site::start_on(Path::new("/nowhere/libcann_hixl.so"), &master.address, &[]);
    let (to_writer, to_reader) = (writer.daemon.connect().unwrap(), reader.daemon.connect().unwrap());
    let writing = Blocks::open(&to_writer, "no library", &layout()).unwrap();
    let reading = Blocks::open(&to_reader, "no library", &layout()).unwrap();
    nodes_are_ready(&master, 2);
    dump(&writing, 0..BLOCKS);
    load(&reading, 0..BLOCKS);
    assert_eq!(reader.moved("ascend", false), TransportStatistics::default());
    assert!(reader.moved("tcp", false).read_bytes >= BLOCKS * layout().image_bytes() as u64);
    let log = reader.daemon.log();
    assert!(
        log.contains("the plugged-in transport can't be had") && log.contains("/nowhere/libcann_hixl.so"),
        "{log}"
    );
}

#[test]
fn daemons_that_are_killed_cost_others_misses_and_never_bytes() {
    let master = Master::start(&["--client_ttl", "3"]);
    let start = || Site::start(&master.address, &[]);
    let (doomed, other, asker, reader) = (start(), start(), start(), start());
    let clients = [&doomed, &other, &asker, &reader].map(|site| site.daemon.connect().unwrap());
    let [in_doomed, in_other, in_asker, in_reader] = clients
        .each_ref()
        .map(|client| Blocks::open(client, "killed", &layout()).unwrap());
    nodes_are_ready(&master, 4);
    dump(&in_doomed, 0..BLOCKS);
    dump(&in_other, BLOCKS..2 * BLOCKS);
    for blocks in [&in_asker, &in_reader] {
        load(blocks, 0..2 * BLOCKS);
    }
    let stop = AtomicBool::new(false);
    let everything = |blocks: &Blocks<'_>, until_it_fails: bool| {
        let mut lost = 0;
        while !stop.load(Ordering::Acquire) {
            for some in in_groups(0..2 * BLOCKS) {
                let Ok(loaded) = blocks.load(&some) else {
                    assert!(until_it_fails, "a daemon that lives fails");
                    return lost;
                };
                assert!(!loaded.contains(&Loaded::Wrong), "{some:?}: {loaded:?}");
                let of_other = some.iter().zip(&loaded).filter(|(number, _)| **number >= BLOCKS);
                lost += of_other.filter(|(_, loaded)| **loaded != Loaded::Right).count();
            }
        }
        lost
    };
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| everything(&in_asker, true));
        let reading = scope.spawn(|| everything(&in_reader, false));
        let goes_on = |what: &str| {
            let before = reader.moved("ascend", false).read_bytes;
            until(what, || {
                reader.moved("ascend", false).read_bytes >= before + BLOCKS * layout().image_bytes() as u64
            });
        };
        goes_on("loads");
        // while it's asked for blocks
        doomed.daemon.kill();
        goes_on("loads without the one that served");
        // while others' cards write its memory
        asker.daemon.kill();
        goes_on("loads without the one that asked too");
        stop.store(true, Ordering::Release);
        asking.join().unwrap();
        assert_eq!(reading.join().unwrap(), 0, "blocks that nobody lost");
    });
    nodes_are_ready(&master, 2);
    // somebody new is a peer as any other
    let young = start();
    let to_young = young.daemon.connect().unwrap();
    let in_young = Blocks::open(&to_young, "killed", &layout()).unwrap();
    nodes_are_ready(&master, 3);
    dump(&in_young, 2 * BLOCKS..3 * BLOCKS);
    let before = reader.moved("ascend", false).read_bytes;
    load(&in_reader, 2 * BLOCKS..3 * BLOCKS);
    assert!(reader.moved("ascend", false).read_bytes > before);
}
