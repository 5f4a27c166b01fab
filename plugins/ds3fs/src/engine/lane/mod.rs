//! One ring, its thread that prepares, its thread that reaps, and what is in its places.
//!
//! Requests whose bytes go directly are prepared by the thread that submits them, where nobody else prepares at the moment;
//! all others, which take a copy or have to wait, by the lane's own.
//!
//! A place belongs to whoever prepares until its I/O is prepared, and to the reaping thread from then on. A request
//! whose I/O doesn't come back in time ends with a time-out if it was copied; its place, and the copy's memory, stay taken
//! until it does come back. One whose buffer 3FS has itself can't end: nothing else may use the buffer. While such I/O is
//! out, the ring is left alone, and what would have gone through it is read and written on the mount.
#![allow(unsafe_code)]

mod prepare;
mod reap;

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kvstored_backends::io::{Direction, IoEngine, IoRequest, Progress};
use kvstored_core::{Error, Runtime};
use parking_lot::{Condvar, Mutex};

use super::RingSettings;
use super::files::Files;
use super::queue::Queue;
use super::regions::Region;
use crate::usrbio::{Memory, Mount, Ring};

/// The longest wait for completions before deadlines are looked at.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// Between two attempts at a ring that says it's full and isn't, and at one whose completions can't be had.
const PAUSE: Duration = Duration::from_millis(1);
/// Attempts at a ring that says it's full, before the request goes another way.
const MOST_REFUSALS: u32 = 1000;
/// Requests that a ring left alone takes at once, to hand them on.
const HANDED_ON: usize = 64;

/// How the bytes of a request go.
#[derive(Clone)]
enum Way {
    /// From and to the request's buffer.
    Direct(Arc<Region>),
    /// Through the place's part of the ring's own memory.
    Copied,
}

/// A request in a place.
struct Running {
    /// None once it ended without its I/O.
    request: Option<IoRequest>,
    /// Kept open while 3FS may use it.
    _file: Arc<File>,
    descriptor: RawFd,
    progress: Progress,
    way: Way,
    /// Bytes of the I/O under way.
    piece: usize,
    refusals: u32,
    /// When the I/O under way will have taken too long.
    deadline: Option<Instant>,
}

struct Flight {
    places: Vec<Option<Running>>,
    free: Vec<usize>,
    /// Places whose next I/O is to be prepared.
    again: VecDeque<usize>,
    /// I/O prepared and not reaped.
    flying: usize,
    stuck: bool,
    closing: Option<Instant>,
    /// The preparing thread has ended.
    over: bool,
}

/// A ring and what belongs to it.
pub(super) struct Lane {
    ring: Ring,
    direction: Direction,
    entries: usize,
    bounce_bytes: usize,
    io_timeout: Duration,
    mount: Mount,
    queue: Arc<Queue>,
    files: Arc<Files>,
    posix: Arc<dyn IoEngine>,
    runtime: Runtime,
    bounce: OnceLock<Option<Memory>>,
    /// Whoever prepares I/O holds it: the ring bears one at a time.
    turn: Mutex<()>,
    flight: Mutex<Flight>,
    /// For the preparing thread: a place is free, or is to be prepared again.
    room: Condvar,
    /// For the reaping thread: something flies, or nothing ever will again.
    started: Condvar,
    told: AtomicBool,
    ways: [AtomicU64; 3],
}

impl Lane {
    #[allow(clippy::too_many_arguments)] // the parts of an engine
    pub fn new(
        ring: Ring,
        direction: Direction,
        settings: &RingSettings,
        mount: Mount,
        queue: Arc<Queue>,
        files: Arc<Files>,
        posix: Arc<dyn IoEngine>,
        runtime: Runtime,
    ) -> Self {
        let entries = settings.ring_entries;
        Self {
            ring,
            direction,
            entries,
            bounce_bytes: settings.bounce_bytes,
            io_timeout: settings.io_timeout,
            mount,
            queue,
            files,
            posix,
            runtime,
            bounce: OnceLock::new(),
            turn: Mutex::new(()),
            flight: Mutex::new(Flight {
                places: (0..entries).map(|_| None).collect(),
                free: (0..entries).rev().collect(),
                again: VecDeque::new(),
                flying: 0,
                stuck: false,
                closing: None,
                over: false,
            }),
            room: Condvar::new(),
            started: Condvar::new(),
            told: AtomicBool::new(false),
            ways: Default::default(),
        }
    }

    /// Whether I/O is out for too long.
    pub fn is_stuck(&self) -> bool {
        self.flight.lock().stuck
    }

    /// Requests that went directly, copied, and elsewhere.
    pub fn ways(&self) -> [u64; 3] {
        [0, 1, 2].map(|way| {
            self.ways
                .get(way)
                .map_or(0, |count| count.load(Ordering::Relaxed))
        })
    }

    fn count(&self, way: usize) {
        if let Some(count) = self.ways.get(way) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Has the threads end once nothing flies, or at that moment. The queue is closed already.
    pub fn close(&self, until: Instant) {
        self.flight.lock().closing.get_or_insert(until);
        self.room.notify_all();
        self.started.notify_all();
        self.queue.nudge();
    }

    /// Keeps the ring, and every buffer that 3FS may still write to, for ever if there is any.
    pub fn abandon_if_flying(self: &Arc<Self>) {
        let flying = self.flight.lock().flying;
        if flying > 0 {
            tracing::error!(flying, direction = ?self.direction, "3FS keeps I/O: its memory is given up");
            std::mem::forget(Arc::clone(self));
        }
    }

    /// Whether nothing is waited for any more.
    fn is_over(&self, flight: &Flight) -> bool {
        flight
            .closing
            .is_some_and(|until| self.runtime.clock.now() >= until)
    }

    /// Frees a place that is empty.
    fn vacate(&self, place: usize) {
        self.flight.lock().free.push(place);
        self.room.notify_all();
    }

    /// Has the other engine do a request, from its beginning.
    fn hand_on(&self, request: IoRequest) {
        self.count(2);
        self.queue.hand_on();
        self.posix.submit(vec![request]);
    }

    /// The ring's own memory, made when it's needed first; none if it can't be had.
    fn bounce(&self) -> Option<&Memory> {
        let made = self.bounce.get_or_init(|| {
            let outcome = Memory::create(&self.mount, self.entries * self.bounce_bytes, 0);
            if let Err(error) = &outcome {
                tracing::warn!(%error, "no memory for copies; the mount is used instead");
            }
            outcome.ok()
        });
        made.as_ref()
    }

    /// The part of the ring's own memory that belongs to a place.
    fn part(&self, memory: &Memory, place: usize) -> *mut u8 {
        // SAFETY: the memory has a part for each place.
        unsafe { memory.base().add(place * self.bounce_bytes) }
    }

    /// Logs what goes wrong with this ring, once.
    fn tell(&self, error: &Error, what: &str) {
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, direction = ?self.direction, "{what}");
        }
    }
}
