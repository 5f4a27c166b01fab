//! The state behind a plugged-in tier: what is under way, what the plugin is to do next, and what its answers mean.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use kvstored_core::quota::QuotaLedger;
use kvstored_core::{
    Action, BlockHash, BlockKey, Error, ErrorKind, Namespace, NamespaceInfo, Result, Runtime, TierStatistics,
};
use kvstored_plugin::abi;
use parking_lot::{Condvar, Mutex, RwLock};

use crate::directory::PluginSettings;
use crate::flow::{Flow, Job};
use crate::index::Index;
use crate::quota::Quotas;
use crate::tickets::{Ended, Ticket, Tickets};
use crate::untold::{Telling, Untold, told};

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

pub(crate) struct Shared {
    /// As pipelines write it.
    pub name: String,
    pub settings: PluginSettings,
    pub runtime: Runtime,
    pub index: Index,
    pub quotas: Arc<Quotas>,
    /// Namespaces that the plugin told of.
    pub described: RwLock<HashMap<Namespace, Arc<NamespaceInfo>>>,
    pub tickets: Tickets,
    pub flow: Mutex<Flow>,
    /// Wakes the watchdog.
    pub watch: Condvar,
    /// Nobody waits for an operation any more.
    pub idle: Condvar,
    /// Wakes the plugin's thread.
    pub job_came: Condvar,
    /// Operations whose callers don't know the outcome yet.
    untold: AtomicUsize,
    pub quarantined: AtomicU64,
    pub faults: AtomicU64,
    /// Writes that a quota refused.
    pub over_quota: AtomicU64,
    /// The latest that the plugin said of itself.
    pub statistics: Mutex<TierStatistics>,
    pub reason: Mutex<String>,
    pub last_complaint: Mutex<String>,
    mode: AtomicU8,
    /// The contract was broken: the plugin isn't even closed.
    broken: AtomicBool,
    /// That the index is full was said.
    full_said: AtomicBool,
}

impl Shared {
    pub fn new(
        plugin: &str,
        settings: PluginSettings,
        ledger: Option<Arc<QuotaLedger>>,
        runtime: Runtime,
    ) -> Arc<Self> {
        let quotas = Quotas::new(ledger);
        Arc::new(Self {
            name: settings
                .tier_name
                .clone()
                .unwrap_or_else(|| format!("Plugin({plugin})")),
            tickets: Tickets::new(settings.queue_depth),
            settings,
            runtime,
            index: Index::new(quotas.clone()),
            quotas,
            described: RwLock::default(),
            flow: Mutex::default(),
            watch: Condvar::new(),
            idle: Condvar::new(),
            job_came: Condvar::new(),
            untold: AtomicUsize::new(0),
            quarantined: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            over_quota: AtomicU64::new(0),
            statistics: Mutex::default(),
            reason: Mutex::default(),
            last_complaint: Mutex::default(),
            mode: AtomicU8::new(Mode::Serving as u8),
            broken: AtomicBool::new(false),
            full_said: AtomicBool::new(false),
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
        self.broken.store(true, Ordering::Release);
        if self.enter(Mode::Out, what) {
            tracing::error!(tier = %self.name, what, "the plugin broke the contract and is left out from now on");
            self.index.clear(None);
        } else {
            tracing::warn!(tier = %self.name, what, "the plugin broke the contract again");
        }
    }

    /// Whether the plugin broke the contract.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Has the watchdog look at that time, or earlier.
    pub fn watch_until(&self, flow: &mut Flow, deadline: Instant) {
        if flow.next_look.is_none_or(|look| look > deadline) {
            flow.next_look = Some(deadline);
            self.watch.notify_all();
        }
    }

    /// Operations whose callers don't know the outcome yet.
    pub fn untold(&self) -> usize {
        self.untold.load(Ordering::Acquire)
    }

    /// So many operations are about to enter.
    pub fn entering(&self, count: usize) {
        self.untold.fetch_add(count, Ordering::AcqRel);
    }

    /// So many of them didn't.
    pub fn left_out(&self, count: usize) {
        told(self, count);
    }

    /// Takes operations back that the plugin hasn't got, and ends them.
    pub fn withdraw(&self, numbers: &[u64], error: &Error) {
        let withdrawn = numbers.iter().filter_map(|number| self.tickets.withdraw(*number));
        for (buffer, completion) in withdrawn {
            let _telling = Telling(self);
            completion(buffer, Err(error.clone()));
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
        let known = u8::try_from(i64::from(status) - 1)
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

    /// The plugin says that an operation has ended.
    pub fn completed(&self, number: u64, status: i32, transferred: u64, message: &str) {
        match self.tickets.end(number) {
            Ended::Never => self.breach("it ended an operation that it doesn't have, or ended it twice"),
            Ended::Late => {
                tracing::info!(tier = %self.name, "the plugin gave a buffer back that it had kept for too long");
                // the watchdog counts what is held with the lock held, and sleeps by now
                drop(self.flow.lock());
                self.watch.notify_all();
            }
            Ended::Now(mut ticket) => {
                let _telling = Telling(self);
                let outcome = self.judge(&ticket, status, transferred, message);
                drop(ticket.charge.take());
                if let Some(completion) = ticket.completion.take() {
                    completion(ticket.buffer, outcome);
                }
            }
        }
    }

    /// What the caller of an operation is told.
    fn judge(&self, ticket: &Ticket, status: i32, transferred: u64, message: &str) -> Result<()> {
        if self.is_broken() {
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
                    Ok(())
                } else if self.index.insert(&key) {
                    Ok(())
                } else {
                    self.forget(&[key]);
                    Err(Error::new(
                        ErrorKind::Busy,
                        "the index of the plugin's blocks is full",
                    ))
                }
            }
            (Action::Read, Ok(())) => {
                let checked = ticket.namespace.check_descriptor(ticket.hash, &ticket.buffer);
                checked.map(drop)
            }
            (Action::Verify, Ok(())) => ticket.namespace.verify_image(ticket.hash, &ticket.buffer),
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
        if self.queue(Job::Remove(keys)).is_err() {
            tracing::warn!(tier = %self.name, "blocks are not removed from the plugin: its queue is full");
        }
    }

    /// Puts a job into the queue; gives it back where there's no room.
    pub fn queue(&self, job: Job) -> std::result::Result<(), Job> {
        self.flow.lock().queue(job, self.settings.queue_depth.max(1))?;
        self.job_came.notify_one();
        Ok(())
    }

    /// The plugin says what a namespace is.
    pub fn described(&self, info: NamespaceInfo) {
        let mut described = self.described.write();
        let room = described.len() < Index::MOST_NAMESPACES;
        if room && let Entry::Vacant(place) = described.entry(info.namespace) {
            self.quotas.belongs(&info);
            place.insert(Arc::new(info));
        }
    }

    /// The plugin says that blocks are here, or have left.
    pub fn told(&self, keys: &[abi::Key], here: bool) {
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
            } else if !self.index.insert(&key) && !self.full_said.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    tier = %self.name,
                    blocks = Index::MOST_BLOCKS,
                    namespaces = Index::MOST_NAMESPACES,
                    "the plugin has more blocks than are kept track of; the others are misses"
                );
            }
        }
    }
}

impl Untold for Shared {
    fn take(&self, count: usize) -> usize {
        self.untold.fetch_sub(count, Ordering::AcqRel)
    }

    fn pass_lock(&self) {
        drop(self.flow.lock());
    }

    fn wake(&self) {
        self.idle.notify_all();
    }
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
