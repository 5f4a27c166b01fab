//! One suite for both engines, and tests of the files and the faults.

/// Runs every test with each engine, io_uring also without registered buffers.
macro_rules! for_each_engine {
    ($($name:ident),+ $(,)?) => {
        mod psync {
            $(#[test] fn $name() { super::$name(&super::super::settings(super::IoPreference::Psync, true)); })+
        }
        mod uring {
            $(#[test] fn $name() { super::$name(&super::super::settings(super::IoPreference::Uring, true)); })+
        }
        mod uring_plain {
            $(#[test] fn $name() { super::$name(&super::super::settings(super::IoPreference::Uring, false)); })+
        }
    };
}

mod faulty;
mod file_tests;
mod lifecycle;
mod transfers;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kvstored_core::memory::SlotOwner;
use kvstored_core::runtime::{Random, SystemRandom};
use kvstored_core::{Arena, Result, Runtime, SlotGuard};
use tempfile::TempDir;

use super::{Direction, IoEngine, IoPreference, IoRequest, IoSettings, open_io_engine};

/// Long enough that only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Counts the releases of every slot.
#[derive(Default)]
pub(super) struct Releases {
    count: AtomicUsize,
}

impl Releases {
    fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

impl SlotOwner for Releases {
    fn release(&self, _slot: u32) {
        self.count.fetch_add(1, Ordering::SeqCst);
    }
}

/// A directory on the build directory's file system, which knows direct I/O where the temporary directory may
/// be memory.
fn directory() -> TempDir {
    let executable = std::env::current_exe().unwrap();
    tempfile::tempdir_in(executable.parent().unwrap()).unwrap()
}

fn path(directory: &TempDir) -> PathBuf {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    directory
        .path()
        .join(format!("file-{}", NUMBER.fetch_add(1, Ordering::Relaxed)))
}

/// A guard over an arena of its own.
fn slot(length: usize, releases: &Arc<Releases>) -> SlotGuard {
    let arena = Arc::new(Arena::heap(length).unwrap());
    SlotGuard::new(arena, Arc::clone(releases) as Arc<dyn SlotOwner>, 0, 0, length)
}

fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let random = SystemRandom::seeded(seed);
    let mut bytes: Vec<u8> = std::iter::repeat_with(|| random.next_u64().to_le_bytes())
        .take(length.div_ceil(8))
        .flatten()
        .collect();
    bytes.truncate(length);
    bytes
}

fn contents(guard: &SlotGuard, offset: usize, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    guard.arena().read(guard.offset() + offset, &mut bytes).unwrap();
    bytes
}

type Outcome = (SlotGuard, Result<()>);

fn request(
    direction: Direction,
    file: &Arc<File>,
    file_offset: u64,
    buffer: &SlotGuard,
    range: (usize, usize),
    outcomes: &Sender<Outcome>,
) -> IoRequest {
    let outcomes = outcomes.clone();
    IoRequest {
        file: Arc::clone(file),
        direction,
        file_offset,
        buffer: buffer.clone(),
        buffer_offset: range.0,
        length: range.1,
        completion: Box::new(move |guard, result| drop(outcomes.send((guard, result)))),
    }
}

/// Does one request and waits for it.
fn transfer(
    engine: &dyn IoEngine,
    direction: Direction,
    file: &Arc<File>,
    file_offset: u64,
    buffer: &SlotGuard,
    range: (usize, usize),
) -> Result<()> {
    let (sender, receiver) = channel();
    engine.submit(vec![request(
        direction,
        file,
        file_offset,
        buffer,
        range,
        &sender,
    )]);
    next(&receiver).1
}

fn next(outcomes: &Receiver<Outcome>) -> Outcome {
    outcomes.recv_timeout(PATIENCE).expect("a completion never came")
}

/// The engine, or `None` where the system refuses io_uring, which is said loudly.
fn engine(settings: &IoSettings) -> Option<Arc<dyn IoEngine>> {
    static TOLD: OnceLock<()> = OnceLock::new();
    match open_io_engine(settings, &Runtime::system(), "io-test") {
        Ok(engine) => Some(engine),
        Err(error) if settings.preference == IoPreference::Uring => {
            TOLD.get_or_init(|| {
                eprintln!("SKIPPED: this system refuses io_uring, nothing of it is tested: {error}");
            });
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn settings(preference: IoPreference, registered_buffers: bool) -> IoSettings {
    IoSettings {
        preference,
        registered_buffers,
        depth: 8,
        psync_threads: 4,
        ..IoSettings::default()
    }
}

/// A file whose reads the test can hold up: a pipe, which has no bytes until the test writes some. psync can't
/// use it, because pipes refuse positioned system calls.
struct Stalled {
    writer: std::io::PipeWriter,
    file: Arc<File>,
}

impl Stalled {
    fn new() -> Self {
        let (reader, writer) = std::io::pipe().unwrap();
        Self {
            writer,
            file: Arc::new(File::from(OwnedFd::from(reader))),
        }
    }
}
