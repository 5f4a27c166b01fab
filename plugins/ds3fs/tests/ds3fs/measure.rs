//! Reads of 1 MiB blocks through the tier, beside a loop over the library's own functions in the same run.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use kvstored_backends::cache::map_linkable;
use kvstored_backends::io::files::open_direct;
use kvstored_core::{Action, Arena, Durability, Identity, Layout, NamespaceInfo, Operation, Runtime, Tier};
use kvstored_ds3fs::usrbio::{Library3fs, Memory, Mount, Ring};

use crate::same_format::{hash, image, one};
use crate::support::{Mounted, PATIENCE, Plugins, library, settings, slot_in};

/// Bytes of a block's image: descriptor page and payload.
const BLOCK: usize = 1 << 20;
const BLOCKS: u64 = 128;
/// Blocks under way at once.
const DEPTH: usize = 16;
const ROUNDS: usize = 15;
const READS: u64 = 1024;

fn block_namespace() -> Arc<NamespaceInfo> {
    let identity = Identity {
        model: "measure".into(),
        ..Identity::default()
    };
    Arc::new(NamespaceInfo::new(identity, Layout::uniform(1, 1, (BLOCK - 4096) as u32).unwrap()).unwrap())
}

/// Reads through the tier: each block that comes begins the next read, on the tier's own thread, as it may.
struct Reading {
    tier: Arc<dyn Tier>,
    namespace: Arc<NamespaceInfo>,
    arena: Arc<Arena>,
    begun: AtomicU64,
    ended: SyncSender<()>,
}

impl Reading {
    fn next(self: &Arc<Self>, place: usize) -> Option<Operation> {
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        if number >= READS {
            return None;
        }
        let reading = Arc::clone(self);
        Some(Operation {
            namespace: Arc::clone(&self.namespace),
            hash: hash(number % BLOCKS),
            action: Action::Read,
            buffer: slot_in(&self.arena, place * BLOCK, BLOCK),
            completion: Box::new(move |buffer, outcome| {
                outcome.unwrap();
                drop(buffer);
                match reading.next(place) {
                    Some(operation) => reading.tier.submit(vec![operation]),
                    None => reading.ended.send(()).unwrap(),
                }
            }),
        })
    }
}

/// Reads blocks through the tier, `DEPTH` at once.
fn through_the_tier(tier: &Arc<dyn Tier>, namespace: &Arc<NamespaceInfo>, arena: &Arc<Arena>) -> Duration {
    let clock = Runtime::system().clock;
    let begin = clock.now();
    let (ended, wait) = sync_channel(DEPTH);
    let reading = Arc::new(Reading {
        tier: Arc::clone(tier),
        namespace: Arc::clone(namespace),
        arena: Arc::clone(arena),
        begun: AtomicU64::new(0),
        ended,
    });
    tier.submit((0..DEPTH).filter_map(|place| reading.next(place)).collect());
    for _ in 0..DEPTH {
        wait.recv_timeout(PATIENCE).unwrap();
    }
    clock.now() - begin
}

/// Reads as much of the same files with the library's functions alone, as many at once.
#[allow(unsafe_code)]
fn through_the_library(ring: &Ring, memory: &Memory, pieces: &[(i32, u64)]) -> Duration {
    let clock = Runtime::system().clock;
    let begin: Instant = clock.now();
    let prepare = |number: u64, place: usize| {
        let (descriptor, offset) = pieces[(number % BLOCKS) as usize];
        let address = memory.base().wrapping_add(place * BLOCK);
        // SAFETY: each place has a part of the memory, which nobody else uses; one thread does all this.
        unsafe { ring.prepare(memory, address, BLOCK, descriptor, offset, place) }.unwrap();
    };
    for place in 0..DEPTH {
        prepare(place as u64, place);
    }
    ring.submit().unwrap();
    let (mut begun, mut done) = (DEPTH as u64, 0);
    while done < READS {
        // SAFETY: one thread does all this.
        let ended = unsafe { ring.wait(DEPTH, 1, PATIENCE) }.unwrap();
        for completion in &ended {
            assert_eq!(completion.result, BLOCK as i64);
            if begun < READS {
                prepare(begun, completion.userdata);
                begun += 1;
            }
        }
        done += ended.len() as u64;
        ring.submit().unwrap();
    }
    clock.now() - begin
}

/// The files that blocks lie in.
fn segments(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(segments(&path));
        } else if path.metadata().unwrap().len() > 4 * BLOCK as u64 {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
#[ignore = "a measurement"]
fn measure_reads_beside_the_library() {
    for (name, direct, linked) in [
        ("page cache, no copy", false, true),
        ("page cache, one copy", false, false),
        ("direct I/O, no copy", true, true),
    ] {
        let mount = Mounted::new();
        let plugins = Plugins::new();
        let blocks = mount.path().join("blocks");
        let mut settings = settings(&blocks);
        settings.retain(|(key, _)| *key != "capacity_bytes" && *key != "segment_bytes");
        settings.push(("capacity_bytes", (1u64 << 30).to_string()));
        settings.push(("direct", direct.to_string()));
        settings.push(("zero_copy", linked.to_string()));
        // one ring, as the other loop has
        settings.push(("read_rings", "1".to_owned()));
        let tier: Arc<dyn Tier> = plugins.open(&settings).unwrap();
        let namespace = block_namespace();
        tier.open_namespace(&namespace).unwrap();
        let arena = map_linkable(DEPTH * BLOCK, false).unwrap().arena;
        for number in 0..BLOCKS {
            let buffer = slot_in(&arena, 0, BLOCK);
            image(&namespace, number, &buffer);
            one(
                &*tier,
                &namespace,
                number,
                Action::Write(Durability::Tier),
                buffer,
            )
            .1
            .unwrap();
        }
        if linked {
            while !mount.links().iter().any(|link| link.contains('-')) {
                std::thread::park_timeout(Duration::from_millis(10));
            }
        }
        // the other loop reads the same segments, opened in the same way
        let files: Vec<File> = segments(&blocks)
            .iter()
            .map(|path| {
                if direct {
                    open_direct(path, false).unwrap().0
                } else {
                    File::open(path).unwrap()
                }
            })
            .collect();
        let found = Mount::around(&Library3fs::load(&library()).unwrap(), &mount.path()).unwrap();
        let mut pieces = Vec::new();
        for file in &files {
            found.register(file.as_raw_fd()).unwrap();
            let whole = (file.metadata().unwrap().len() - 4096) / BLOCK as u64;
            pieces.extend((0..whole).map(|piece| (file.as_raw_fd(), 4096 + piece * BLOCK as u64)));
        }
        assert!(pieces.len() >= BLOCKS as usize);
        let ring = Ring::create(&found, DEPTH, true, 0).unwrap();
        let memory = Memory::create(&found, DEPTH * BLOCK, 0).unwrap();
        through_the_library(&ring, &memory, &pieces);
        through_the_tier(&tier, &namespace, &arena);
        let (mut ratios, mut ours, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let (tier_time, library_time) = if round % 2 == 0 {
                let tier_time = through_the_tier(&tier, &namespace, &arena);
                (tier_time, through_the_library(&ring, &memory, &pieces))
            } else {
                let library_time = through_the_library(&ring, &memory, &pieces);
                (through_the_tier(&tier, &namespace, &arena), library_time)
            };
            let speed = |time: Duration| READS as f64 * BLOCK as f64 / time.as_secs_f64() / 1e9;
            ours.push(speed(tier_time));
            theirs.push(speed(library_time));
            ratios.push(library_time.as_secs_f64() / tier_time.as_secs_f64());
        }
        println!(
            "{name}: tier {:.2} GB/s, library {:.2} GB/s, ratio {:.3} (medians of {ROUNDS} rounds of {READS} reads)",
            median(ours),
            median(theirs),
            median(ratios)
        );
        for file in &files {
            found.deregister(file.as_raw_fd());
        }
        tier.shutdown();
    }
}
