//! The state behind a plugged-in tier, and what the plugin may call.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Instant;

use kvstored_core::{
    Action, BlockHash, BlockKey, Envelope, Error, ErrorKind, Namespace, Result, Runtime, TierStatistics,
};
use kvstored_plugin::abi;
use parking_lot::{Condvar, Mutex};

use crate::caller::Job;
use crate::directory::PluginSettings;
use crate::index::Index;
use crate::tickets::{Ended, Ticket, Tickets};

/// The longest message of a plugin that is kept.
const MOST_MESSAGE_BYTES: u64 = 1024;
/// Most keys in one call of a plugin.
const MOST_KEYS: u64 = 1 << 20;

/// Whether the plugin is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mode {
    /// It is.
    Serving,
    /// It hasn't answered in time; once it has, it is asked again.
    Stalled,
    /// It broke the contract and is never asked again.
    Out,
    /// The tier was shut down.
    Stopped,
}

/// What is under way.
#[derive(Default)]
pub(crate) struct Flow {
    pub tickets: Tickets,
    /// When the call that the plugin is in will have taken too long.
    pub call_deadline: Option<Instant>,
    /// The watchdog sleeps until it's woken.
    pub watchdog_idle: bool,
    pub ending: bool,
}

#[derive(Default)]
pub(crate) struct Jobs {
    pub queue: VecDeque<Job>,
    pub ended: bool,
}

pub(crate) struct Shared {
    /// As pipelines write it.
    pub name: String,
    pub settings: PluginSettings,
    pub runtime: Runtime,
    pub index: Index,
    pub flow: Mutex<Flow>,
    /// Something ended, or began when nothing was under way.
    pub changed: Condvar,
    pub jobs: Mutex<Jobs>,
    pub job_came: Condvar,
    pub quarantined: AtomicU64,
    pub faults: AtomicU64,
    /// The latest that the plugin said of itself.
    pub statistics: Mutex<TierStatistics>,
    pub reason: Mutex<String>,
    pub last_complaint: Mutex<String>,
    mode: AtomicU8,
}

impl Shared {
    pub fn new(plugin: &str, settings: PluginSettings, runtime: Runtime) -> Arc<Self> {
        Arc::new(Self {
            name: format!("Plugin({plugin})"),
            settings,
            runtime,
            index: Index::default(),
            flow: Mutex::default(),
            changed: Condvar::new(),
            jobs: Mutex::default(),
            job_came: Condvar::new(),
            quarantined: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            statistics: Mutex::default(),
            reason: Mutex::default(),
            last_complaint: Mutex::default(),
            mode: AtomicU8::new(Mode::Serving as u8),
        })
    }

    pub fn mode(&self) -> Mode {
        match self.mode.load(Ordering::Acquire) {
            0 => Mode::Serving,
            1 => Mode::Stalled,
            2 => Mode::Out,
            _ => Mode::Stopped,
        }
    }

    /// Moves on. What is out or stopped stays so.
    pub fn enter(&self, mode: Mode, reason: &str) -> bool {
        let mut kept = self.reason.lock();
        let now = self.mode();
        if now == mode || now == Mode::Stopped || (now == Mode::Out && mode != Mode::Stopped) {
            return false;
        }
        reason.clone_into(&mut kept);
        self.mode.store(mode as u8, Ordering::Release);
        true
    }

    /// The plugin broke the contract: it's taken out of the pipeline, for good.
    pub fn breach(&self, what: &str) {
        self.faults.fetch_add(1, Ordering::Relaxed);
        if self.enter(Mode::Out, what) {
            tracing::error!(tier = %self.name, what, "the plugin broke the contract and is left out from now on");
            self.index.clear(None);
        } else {
            tracing::warn!(tier = %self.name, what, "the plugin broke the contract again");
        }
    }

    /// Why nothing is asked of the plugin now.
    pub fn refusal(&self) -> Error {
        let kind = if self.mode() == Mode::Stopped {
            ErrorKind::Cancelled
        } else {
            ErrorKind::Unavailable
        };
        let reason = self.reason.lock().clone();
        Error::new(kind, format!("the plugin is not asked: {reason}")).with("tier", &self.name)
    }

    /// A status of the plugin as a result.
    pub fn outcome(&self, status: i32, what: &str, message: &str) -> Result<()> {
        if status == abi::OK {
            return Ok(());
        }
        let known = u8::try_from(status - 1)
            .ok()
            .filter(|code| usize::from(*code) < ErrorKind::ALL.len());
        let Some(code) = known else {
            self.breach(&format!("{what} gave status {status}, which is none"));
            return Err(Error::internal(format!("status {status}")).with("tier", &self.name));
        };
        let message = if message.is_empty() {
            format!("{what} failed")
        } else {
            format!("{what} failed: {message}")
        };
        Err(Error::new(ErrorKind::from_code(code), message).with("tier", &self.name))
    }

    /// The table for the plugin. It lives for ever, and so does this: a plugin may call at any time.
    pub fn leak_table(self: &Arc<Self>) -> *const abi::Host {
        Box::leak(Box::new(abi::Host {
            struct_size: size_of::<abi::Host>() as u32,
            abi_version: abi::ABI_VERSION,
            context: Arc::into_raw(self.clone()).cast_mut().cast(),
            log: Some(log),
            complete: Some(complete),
            stored: Some(stored),
            removed: Some(removed),
        }))
    }

    /// The plugin says that an operation has ended.
    fn completed(&self, ticket: u64, status: i32, transferred: u64, message: &str) {
        let mut flow = self.flow.lock();
        let ended = flow.tickets.end(ticket);
        self.changed.notify_all();
        drop(flow);
        match ended {
            Ended::Never => self.breach("it ended an operation that it doesn't have, or ended it twice"),
            Ended::Late => {
                tracing::info!(tier = %self.name, "the plugin gave a buffer back that it had kept for too long");
            }
            Ended::Now(mut ticket) => {
                let outcome = self.judge(&ticket, status, transferred, message);
                if let Some(completion) = ticket.completion.take() {
                    completion(ticket.buffer, outcome);
                }
            }
        }
    }

    /// What the caller of an operation is told.
    fn judge(&self, ticket: &Ticket, status: i32, transferred: u64, message: &str) -> Result<()> {
        if self.mode() == Mode::Out {
            return Err(self.refusal());
        }
        let (key, length) = (ticket.key(), ticket.namespace.layout.image_bytes() as u64);
        let what = if matches!(ticket.action, Action::Write(_)) {
            "write"
        } else {
            "read"
        };
        let moved = self.outcome(status, what, message).and_then(|()| {
            if transferred > length {
                self.breach(&format!("it moved {transferred} bytes of a block of {length}"));
                return Err(Error::internal("more bytes than a block has"));
            }
            if transferred < length {
                let message = format!("short {what}: {transferred} of {length} bytes");
                return Err(Error::new(ErrorKind::Io, message));
            }
            Ok(())
        });
        let outcome = match (ticket.action, moved) {
            (Action::Write(_), Ok(())) => {
                if ticket.revoked {
                    self.forget(&[key]);
                } else if !self.index.insert(&key) {
                    self.forget(&[key]);
                    return Err(Error::new(ErrorKind::Busy, "too many namespaces").with("tier", &self.name));
                }
                Ok(())
            }
            (Action::Read, Ok(())) => check_envelope(ticket).map(|_| ()),
            (Action::Verify, Ok(())) => {
                check_envelope(ticket).and_then(|envelope| check_shards(ticket, &envelope))
            }
            (_, Err(error)) => Err(error),
        };
        match outcome.as_ref().map_err(Error::kind) {
            Err(ErrorKind::Corrupt) => {
                // the plugin keeps no place for bad blocks; what is gone is never served again
                self.quarantined.fetch_add(1, Ordering::Relaxed);
                self.index.remove(&key.namespace, &key.hash);
                self.forget(&[key]);
            }
            Err(ErrorKind::NotFound) => {
                self.index.remove(&key.namespace, &key.hash);
            }
            _ => {}
        }
        outcome.map_err(|error| error.with("key", key).with("tier", &self.name))
    }

    /// Has the plugin forget blocks, some time.
    pub fn forget(&self, keys: &[BlockKey]) {
        let keys: Vec<abi::Key> = keys.iter().map(to_abi).collect();
        if !self.queue(Job::Remove(keys)) {
            tracing::warn!(tier = %self.name, "blocks are not removed from the plugin: its queue is full");
        }
    }

    /// Puts a job into the queue. Returns whether there was room.
    pub fn queue(&self, job: Job) -> bool {
        let mut jobs = self.jobs.lock();
        if jobs.ended || jobs.queue.len() >= self.settings.queue_depth.max(1) {
            return false;
        }
        jobs.queue.push_back(job);
        drop(jobs);
        self.job_came.notify_one();
        true
    }

    fn told(&self, keys: &[abi::Key], here: bool) {
        if matches!(self.mode(), Mode::Out | Mode::Stopped) {
            return;
        }
        for key in keys {
            let Some(key) = from_abi(key) else {
                self.breach("it named a block whose hash can't be");
                return;
            };
            if !here {
                self.index.remove(&key.namespace, &key.hash);
            } else if !self.index.insert(&key) {
                self.breach(&format!(
                    "it named more than {} namespaces",
                    Index::MOST_NAMESPACES
                ));
                return;
            }
        }
    }
}

fn check_envelope(ticket: &Ticket) -> Result<Envelope> {
    let envelope = Envelope::decode(&ticket.buffer.descriptor()?[..])?;
    envelope.expect(&ticket.key(), &ticket.namespace.layout)?;
    Ok(envelope)
}

fn check_shards(ticket: &Ticket, envelope: &Envelope) -> Result<()> {
    let layout = &ticket.namespace.layout;
    for (index, (shard, expected)) in layout.shards().iter().zip(&envelope.shard_checksums).enumerate() {
        let begin = layout.shard_offset(index).unwrap_or(0);
        let offset = ticket.buffer.offset() + begin;
        if ticket.buffer.arena().checksum(offset, shard.payload_bytes())? != *expected {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("shard {index} has another checksum"),
            ));
        }
    }
    Ok(())
}

/// A key for the plugin.
pub(crate) fn to_abi(key: &BlockKey) -> abi::Key {
    abi::Key {
        namespace_digest: key.namespace.0,
        hash: abi::Hash {
            bytes: *key.hash.padded(),
            length: key.hash.len() as u32,
            reserved: 0,
        },
    }
}

fn from_abi(key: &abi::Key) -> Option<BlockKey> {
    let hash = key.hash.bytes.get(..key.hash.length as usize)?;
    Some(BlockKey {
        namespace: Namespace(key.namespace_digest),
        hash: BlockHash::new(hash).ok()?,
    })
}

/// Runs what a plugin called; no panic goes back to it.
///
/// # Safety
/// `context` must be the one of a leaked table.
unsafe fn called(context: *mut c_void, body: impl FnOnce(&Shared)) {
    if context.is_null() {
        return;
    }
    // SAFETY: the table's context is an Arc that is never dropped.
    let shared = unsafe { &*context.cast_const().cast::<Shared>() };
    if catch_unwind(AssertUnwindSafe(|| body(shared))).is_err() {
        tracing::error!(tier = %shared.name, "a panic in what a plugin called");
    }
}

/// # Safety
/// `text` must be valid for reads of its length.
unsafe fn owned(text: abi::Text) -> String {
    if text.data.is_null() || text.length == 0 {
        return String::new();
    }
    let length = text.length.min(MOST_MESSAGE_BYTES) as usize;
    // SAFETY: the caller vouches for it.
    let bytes = unsafe { std::slice::from_raw_parts(text.data.cast::<u8>(), length) };
    let clean = String::from_utf8_lossy(bytes);
    clean
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// # Safety
/// `first` must be valid for reads of `count` keys.
unsafe fn keys<'a>(first: *const abi::Key, count: u64) -> &'a [abi::Key] {
    if first.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: the caller vouches for it.
    unsafe { std::slice::from_raw_parts(first, count as usize) }
}

unsafe extern "C" fn log(context: *mut c_void, level: u32, message: abi::Text) {
    // SAFETY: the plugin passes the table's context and lends the message.
    unsafe {
        called(context, |shared| {
            let message = owned(message);
            let tier = shared.name.as_str();
            match level {
                1 => {
                    tracing::error!(tier, "{message}");
                    *shared.last_complaint.lock() = message;
                }
                2 => tracing::warn!(tier, "{message}"),
                3 => tracing::info!(tier, "{message}"),
                _ => tracing::debug!(tier, "{message}"),
            }
        });
    }
}

unsafe extern "C" fn complete(
    context: *mut c_void,
    ticket: u64,
    status: i32,
    transferred: u64,
    message: abi::Text,
) {
    // SAFETY: the plugin passes the table's context and lends the message.
    unsafe {
        called(context, |shared| {
            shared.completed(ticket, status, transferred, &owned(message));
        });
    }
}

unsafe extern "C" fn stored(context: *mut c_void, first: *const abi::Key, count: u64) {
    // SAFETY: the plugin passes the table's context and lends the keys.
    unsafe { named(context, first, count, true) }
}

unsafe extern "C" fn removed(context: *mut c_void, first: *const abi::Key, count: u64) {
    // SAFETY: the plugin passes the table's context and lends the keys.
    unsafe { named(context, first, count, false) }
}

/// # Safety
/// As the plugin's calls promise: the table's context, and that many keys.
unsafe fn named(context: *mut c_void, first: *const abi::Key, count: u64, here: bool) {
    // SAFETY: the caller vouches for it.
    unsafe {
        called(context, |shared| {
            if count > MOST_KEYS {
                shared.breach(&format!("it named {count} blocks in one call"));
            } else {
                shared.told(keys(first, count), here);
            }
        });
    }
}
