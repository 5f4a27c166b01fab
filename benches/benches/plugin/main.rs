//! A plugged-in tier beside the same tier built in: the example in Rust, loaded as the daemon loads it, and its twin
//! behind the contract of tiers. Both work on a thread of their own. They take turns; medians count, with the lower and the
//! upper quartile. Single operations are measured with the caller and the tiers' threads on one CPU and on two, since where
//! the scheduler puts threads that wake each other costs more than all else.
//!
//! `cargo bench --bench plugin`; `ROUNDS` sets the rounds, `ONLY` a part of the names of what is measured.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // inputs are made here
#![allow(clippy::print_stdout)] // what a bench is for

mod loads;
mod placement;
mod twin;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use kvstored_core::checksum::Checksum;
use kvstored_core::memory::SlotOwner;
use kvstored_core::{
    Action, Arena, BlockHash, Durability, Envelope, Identity, Layout, NamespaceInfo, Operation, Result,
    Runtime, SlotGuard, Tier,
};
use kvstored_plugin_host::{PluginDirectory, PluginSettings, Probe, run_probe};

use loads::{LOADS, Load};
use placement::Threads;
use twin::Twin;

/// What this program does when it's started to try the plugin first.
const PROBE: &str = "plugin-probe";
const CAPACITY_BYTES: u64 = 512 << 20;
const PATIENCE: Duration = Duration::from_mins(1);

struct Nobody;

impl SlotOwner for Nobody {
    fn release(&self, _slot: u32) {}
}

/// Blocks in memory, ready to be written, and buffers to read into.
struct Fixture {
    runtime: Runtime,
    info: Arc<NamespaceInfo>,
    images: Arc<Arena>,
    buffers: Arc<Arena>,
    blocks: usize,
}

fn hash(number: usize) -> BlockHash {
    let words =
        [1u64, 2, 3, 4].map(|lane| (number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15 ^ (lane << 32)));
    BlockHash::new(&words.map(u64::to_le_bytes).concat()).unwrap()
}

impl Fixture {
    fn new(load: &Load) -> Self {
        let runtime = Runtime::system();
        let layout = Layout::uniform(1, 1, load.payload_bytes).unwrap();
        let identity = Identity {
            model: load.name.into(),
            ..Identity::default()
        };
        let info = Arc::new(NamespaceInfo::new(identity, layout).unwrap());
        let bytes = info.layout.image_bytes();
        let images = Arc::new(Arena::heap(bytes * load.blocks).unwrap());
        let buffers = Arc::new(Arena::heap(bytes * load.batch).unwrap());
        let fixture = Self {
            runtime,
            info,
            images,
            buffers,
            blocks: load.blocks,
        };
        let payload: Vec<u8> = (0..load.payload_bytes).map(|at| (at % 251) as u8).collect();
        let mut checksum = Checksum::new();
        checksum.update(&payload);
        for number in 0..load.blocks {
            let slot = fixture.slot(&fixture.images, number);
            let offset = slot.offset() + fixture.info.layout.shard_offset(0).unwrap();
            slot.arena().write(offset, &payload).unwrap();
            let key = fixture.info.key(hash(number));
            let envelope = Envelope::new(key, &fixture.info.layout, 1, 1, vec![checksum.value()]);
            slot.write_descriptor(&envelope.encode().unwrap()).unwrap();
        }
        fixture
    }

    fn slot(&self, arena: &Arc<Arena>, number: usize) -> SlotGuard {
        let bytes = self.info.layout.image_bytes();
        SlotGuard::new(
            arena.clone(),
            Arc::new(Nobody),
            number as u32,
            number * bytes,
            bytes,
        )
    }

    /// Does something with every block, a batch after the other. Returns microseconds per operation.
    fn pass(&self, tier: &dyn Tier, batch: usize, action: Action) -> f64 {
        let started = self.runtime.clock.now();
        let (sender, ended): (_, Receiver<Result<()>>) = channel();
        let numbers: Vec<usize> = (0..self.blocks).collect();
        for numbers in numbers.chunks(batch) {
            let operations = numbers.iter().enumerate().map(|(place, number)| {
                let sender = sender.clone();
                Operation {
                    namespace: self.info.clone(),
                    hash: hash(*number),
                    action,
                    buffer: match action {
                        Action::Write(_) => self.slot(&self.images, *number),
                        _ => self.slot(&self.buffers, place),
                    },
                    completion: Box::new(move |_, outcome| drop(sender.send(outcome))),
                }
            });
            tier.submit(operations.collect());
            for _ in numbers {
                ended.recv_timeout(PATIENCE).expect("an end").expect("success");
            }
        }
        let elapsed = self.runtime.clock.now().saturating_duration_since(started);
        elapsed.as_secs_f64() * 1e6 / self.blocks as f64
    }

    /// Writes and reads all blocks and removes them. Returns microseconds per write and per read.
    fn round(&self, tier: &dyn Tier, load: &Load) -> [f64; 2] {
        tier.open_namespace(&self.info).unwrap();
        let write = self.pass(tier, load.batch, Action::Write(Durability::Memory));
        let reads = (0..load.reads).map(|_| self.pass(tier, load.batch, Action::Read));
        let read = reads.sum::<f64>() / load.reads as f64;
        let gone = tier.purge(&self.info.namespace).unwrap();
        assert_eq!(gone, self.blocks as u64);
        [write, read]
    }
}

/// Sorts and gives the lower quartile, the median and the upper quartile.
fn quartiles(values: &mut [f64]) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| {
        let at = (values.len() * quarter / 4).min(values.len().saturating_sub(1));
        values.get(at).copied().unwrap_or_default()
    })
}

/// The example, loaded from a directory of its own.
fn plugged(directory: &Path, runtime: &Runtime) -> Arc<dyn Tier> {
    use std::os::unix::fs::PermissionsExt;
    let program = std::env::current_exe().unwrap();
    let built = program.parent().unwrap().join("libkvstored_plugin_memory.so");
    let file = directory.join("memory.so");
    std::fs::copy(&built, &file).unwrap_or_else(|error| panic!("{}: {error}", built.display()));
    let listed = std::process::Command::new("sha256sum")
        .arg("memory.so")
        .current_dir(directory)
        .output();
    let sums = directory.join("SHA256SUMS");
    std::fs::write(&sums, listed.unwrap().stdout).unwrap();
    for (path, mode) in [(directory, 0o700), (&file, 0o755), (&sums, 0o644)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let settings = PluginSettings {
        settings: vec![("capacity_bytes".into(), CAPACITY_BYTES.to_string())],
        ..PluginSettings::default()
    };
    let plugins = PluginDirectory::new(directory.to_owned(), Probe::new(program, &[PROBE]));
    plugins.open("memory", settings, None, runtime).unwrap()
}

/// Runs this program with an allocator that gives nothing back to the kernel: otherwise it's chance whether the memory of
/// blocks that are written has to be faulted in again, on either side.
fn keeping_memory(arguments: &[String]) -> ExitCode {
    let kept = [
        ("MALLOC_ARENA_MAX", "1"),
        ("MALLOC_TRIM_THRESHOLD_", "8000000000"),
        ("MALLOC_MMAP_THRESHOLD_", "33554432"),
    ];
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(arguments)
        .envs(kept)
        .status();
    if status.unwrap().success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, directory, name] = arguments.as_slice()
        && first == PROBE
    {
        return match run_probe(Path::new(directory), name) {
            Ok(_) => ExitCode::SUCCESS,
            Err(error) => panic!("{error}"),
        };
    }
    if std::env::var_os("MALLOC_ARENA_MAX").is_none() {
        return keeping_memory(&arguments);
    }
    // `cargo test --benches` only wants to know whether it works
    let measures = arguments.iter().any(|argument| argument == "--bench");
    let rounds = std::env::var("ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok());
    let rounds: usize = rounds.unwrap_or(if measures { 15 } else { 1 });
    let threads = Threads::new();
    let runtime = threads.runtime();
    let directory = tempfile::tempdir().unwrap();
    let tiers = [
        plugged(directory.path(), &runtime),
        Twin::start(CAPACITY_BYTES, &runtime),
    ];
    println!("microseconds per operation, medians of {rounds} rounds in turns");
    println!(
        "{:<28} {:<6} {:>24} {:>24} {:>8} {:>22}",
        "", "", "plugged in", "built in", "more", "ratio"
    );
    let only = std::env::var("ONLY").unwrap_or_default();
    for load in LOADS.iter().filter(|load| load.name.contains(&only)) {
        threads.place(load.placement);
        let fixture = Fixture::new(load);
        // by tier and action
        let mut samples: [[Vec<f64>; 2]; 2] = Default::default();
        // the first round of each doesn't count
        for round in 0..=rounds {
            for turn in 0..2 {
                let side = (round + turn) % 2;
                let values = fixture.round(&*tiers[side], load);
                if round > 0 || rounds == 1 {
                    for (kept, value) in samples[side].iter_mut().zip(values) {
                        kept.push(value);
                    }
                }
            }
        }
        for (action, name) in ["write", "read"].into_iter().enumerate() {
            let mut ratios: Vec<f64> = samples[0][action]
                .iter()
                .zip(&samples[1][action])
                .map(|(ours, twin)| twin / ours)
                .collect();
            let [ours, twin] = [0, 1].map(|side: usize| quartiles(&mut samples[side][action]));
            let ratio = quartiles(&mut ratios);
            let [ours_text, twin_text] =
                [ours, twin].map(|[low, median, high]| format!("{median:.2} ({low:.2}-{high:.2})"));
            let ratio = format!("{:.3} ({:.3}-{:.3})", ratio[1], ratio[0], ratio[2]);
            println!(
                "{:<28} {name:<6} {ours_text:>24} {twin_text:>24} {:>8.2} {ratio:>22}",
                load.name,
                ours[1] - twin[1]
            );
        }
    }
    for tier in tiers {
        tier.shutdown();
    }
    ExitCode::SUCCESS
}
