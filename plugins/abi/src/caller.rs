//! The one thread that calls a plugin.
#![allow(unsafe_code)]

use std::collections::HashSet;
use std::ffi::c_void;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use kvstored_core::{Action, Arena, Durability, Error, ErrorKind, Namespace, NamespaceInfo, Result};
use kvstored_plugin::abi;

use crate::callbacks::leak_table;
use crate::describe::describe;
use crate::flow::Job;
use crate::library::Functions;
use crate::shared::{Mode, Shared, to_abi};

/// An open tier of a plugin.
pub(crate) struct Plugin {
    functions: Functions,
    tier: *mut c_void,
    /// Namespaces that it was told of.
    told: HashSet<Namespace>,
    /// The one of them that operations came for last.
    last_told: Option<Namespace>,
    /// What is lent for a call, empty between calls.
    batch: Vec<abi::Operation>,
    shared: Arc<Shared>,
}

impl Plugin {
    /// A plugin whose tier is not open yet.
    pub fn new(functions: Functions, shared: Arc<Shared>) -> Self {
        Self {
            functions,
            tier: std::ptr::null_mut(),
            told: HashSet::new(),
            last_told: None,
            batch: Vec::new(),
            shared,
        }
    }

    /// Opens the tier.
    pub fn open(&mut self) -> Result<()> {
        let settings: Vec<abi::Setting> = self
            .shared
            .settings
            .settings
            .iter()
            .map(|(key, value)| abi::Setting {
                key: abi::Text::lend(key),
                value: abi::Text::lend(value),
            })
            .collect();
        let host = leak_table(&self.shared);
        let mut tier = std::ptr::null_mut();
        // SAFETY: the table lives for ever; the settings are lent for the call.
        let status =
            unsafe { (self.functions.open)(host, settings.as_ptr(), settings.len() as u64, &raw mut tier) };
        let complaint = self.shared.last_complaint.lock().clone();
        self.shared.outcome(status, "open", &complaint)?;
        if tier.is_null() {
            return Err(Error::invalid("the plugin opened no tier").with("tier", &self.shared.name));
        }
        self.tier = tier;
        Ok(())
    }

    /// Tells of a namespace, once.
    pub fn open_namespace(&mut self, info: &NamespaceInfo) -> Result<()> {
        if self.told.contains(&info.namespace) {
            return Ok(());
        }
        let description = describe(info)?;
        let described = abi::Namespace {
            struct_size: size_of::<abi::Namespace>() as u32,
            shards: info.layout.shards().len() as u32,
            digest: info.namespace.0,
            image_bytes: info.layout.image_bytes() as u64,
            payload_bytes: info.layout.payload_bytes() as u64,
            tenant: abi::Text::lend(&info.identity.tenant),
            model: abi::Text::lend(&info.identity.model),
            description: abi::Text::lend(&description),
        };
        // SAFETY: the tier is open; the description is lent for the call.
        let status = unsafe { (self.functions.open_namespace)(self.tier, &raw const described) };
        let complaint = self.shared.last_complaint.lock().clone();
        self.shared.outcome(status, "open_namespace", &complaint)?;
        self.told.insert(info.namespace);
        Ok(())
    }

    pub fn remove(&mut self, keys: &[abi::Key]) -> Result<()> {
        // SAFETY: the tier is open; the keys are lent for the call.
        let status = unsafe { (self.functions.remove)(self.tier, keys.as_ptr(), keys.len() as u64) };
        self.shared.outcome(status, "remove", "")
    }

    pub fn purge(&mut self, namespace: &Namespace) -> Result<()> {
        // SAFETY: the tier is open; the digest is lent for the call.
        let status = unsafe { (self.functions.purge)(self.tier, namespace.0.as_ptr()) };
        let complaint = self.shared.last_complaint.lock().clone();
        self.shared.outcome(status, "purge", &complaint)
    }

    pub fn statistics(&mut self) -> Result<abi::Statistics> {
        let mut statistics = abi::Statistics {
            struct_size: size_of::<abi::Statistics>() as u32,
            ..abi::Statistics::default()
        };
        // SAFETY: the tier is open; the struct is lent for the call and says its size.
        let status = unsafe { (self.functions.statistics)(self.tier, &raw mut statistics) };
        self.shared.outcome(status, "statistics", "")?;
        Ok(statistics)
    }

    pub fn drain(&mut self, timeout: Duration) -> Result<()> {
        // SAFETY: the tier is open.
        let status = unsafe { (self.functions.drain)(self.tier, timeout.as_millis() as u64) };
        let complaint = self.shared.last_complaint.lock().clone();
        self.shared.outcome(status, "drain", &complaint)
    }

    fn close(&mut self) {
        if !self.tier.is_null() {
            // SAFETY: the tier is open, and nothing is called afterwards: the thread ends.
            unsafe { (self.functions.close)(self.tier) }
            self.tier = std::ptr::null_mut();
        }
    }

    /// Does what isn't about operations. A plugin that broke the contract is asked nothing.
    fn answer(&mut self, job: Job) {
        if self.shared.is_broken() {
            return;
        }
        match job {
            Job::Remove(keys) => {
                if let Err(error) = self.remove(&keys) {
                    tracing::warn!(%error, "blocks are not removed from the plugin");
                }
            }
            Job::Call(_, call) => call(self),
            Job::Submit(_) | Job::Close(_) => {}
        }
    }

    /// Hands operations over that still wait.
    fn submit(&mut self, shared: &Shared, numbers: &[u64]) {
        if shared.is_broken() {
            shared.withdraw(numbers, &shared.refusal());
            return;
        }
        let mut memories: Vec<Box<abi::Memory>> = Vec::new();
        // a namespace that the plugin refuses is asked about once
        let mut refused: Option<(Namespace, Error)> = None;
        for number in numbers {
            let Some(Lent::Unknown(info)) = self.lend(shared, *number, &mut memories) else {
                continue;
            };
            let opened = match &refused {
                Some((namespace, error)) if *namespace == info.namespace => Err(error.clone()),
                _ => self.open_namespace(&info),
            };
            match opened {
                Ok(()) => drop(self.lend(shared, *number, &mut memories)),
                Err(error) => {
                    shared.withdraw(&[*number], &error);
                    refused = Some((info.namespace, error));
                }
            }
        }
        if !self.batch.is_empty() {
            // SAFETY: the tier is open; the batch and the memories it points to are lent for the call, the buffers until
            // each operation ends, which their tickets' guards see to.
            unsafe { (self.functions.submit)(self.tier, self.batch.as_ptr(), self.batch.len() as u64) }
            self.batch.clear();
        }
    }

    /// Puts an operation into the batch. `None` for one that took too long in the queue.
    #[allow(clippy::vec_box)]
    fn lend(&mut self, shared: &Shared, number: u64, memories: &mut Vec<Box<abi::Memory>>) -> Option<Lent> {
        let (told, last_told, batch) = (&self.told, &mut self.last_told, &mut self.batch);
        shared.tickets.with(number, |ticket| {
            let digest = ticket.namespace.namespace;
            if *last_told != Some(digest) {
                if !told.contains(&digest) {
                    return Lent::Unknown(ticket.namespace.clone());
                }
                *last_told = Some(digest);
            }
            ticket.lent = true;
            let (action, durability) = match ticket.action {
                Action::Write(Durability::Memory) => (abi::WRITE, abi::MEMORY),
                Action::Write(Durability::Tier) => (abi::WRITE, abi::TIER),
                Action::Write(Durability::Durable) => (abi::WRITE, abi::DURABLE),
                Action::Read | Action::Verify => (abi::READ, 0),
            };
            batch.push(abi::Operation {
                struct_size: size_of::<abi::Operation>() as u32,
                action,
                ticket: number,
                key: to_abi(&ticket.key()),
                data: ticket.buffer.address().cast(),
                length: ticket.namespace.layout.image_bytes() as u64,
                durability,
                reserved: 0,
                memory: memory_of(ticket.buffer.arena(), memories),
            });
            Lent::Now
        })
    }
}

/// What became of an operation that was to be lent.
enum Lent {
    /// It's in the batch.
    Now,
    /// The plugin wasn't told of its namespace.
    Unknown(Arc<NamespaceInfo>),
}

/// The description of an arena, null for one that can't be registered. Boxes, because pointers to them are given away.
#[allow(clippy::vec_box)]
fn memory_of(arena: &Arena, known: &mut Vec<Box<abi::Memory>>) -> *const abi::Memory {
    let Some(file) = arena.file() else {
        return std::ptr::null();
    };
    let id = arena.id();
    if let Some(memory) = known.iter().find(|memory| memory.id == id) {
        return &raw const **memory;
    }
    let memory = Box::new(abi::Memory {
        struct_size: size_of::<abi::Memory>() as u32,
        file: file.as_raw_fd(),
        id,
        base: arena.base().cast(),
        length: arena.length() as u64,
    });
    let pointer = &raw const *memory;
    known.push(memory);
    pointer
}

/// A plugin on its way to its thread, which makes all its calls.
pub(crate) struct OnItsWay(pub Plugin);

// SAFETY: the tier's pointer is only handed back to the plugin, from the one thread that owns this.
unsafe impl Send for OnItsWay {}

/// The thread that calls.
pub(crate) fn run(plugin: OnItsWay) {
    let OnItsWay(mut plugin) = plugin;
    let shared = plugin.shared.clone();
    let mut numbers = Vec::new();
    let mut flow = shared.flow.lock();
    loop {
        let job = loop {
            match flow.next_job(&mut numbers) {
                Some(job) => break job,
                None if flow.has_ended() => return,
                None => shared.job_came.wait(&mut flow),
            }
        };
        let usual = || shared.runtime.deadline(shared.settings.timeout);
        let deadline = match &job {
            // operations have theirs, which saves asking the clock
            Job::Submit(_) => flow.operations_deadline().unwrap_or_else(usual),
            Job::Call(limit, _) => shared.runtime.deadline(*limit),
            _ => usual(),
        };
        flow.call_deadline = Some(deadline);
        shared.watch_until(&mut flow, deadline);
        let mut closing = None;
        match job {
            Job::Submit(_) => {
                drop(flow);
                plugin.submit(&shared, &numbers);
            }
            Job::Close(done) => {
                drop(flow);
                if !shared.is_broken() {
                    plugin.close();
                }
                // whoever waits for what comes behind hears that it never will
                let behind = shared.flow.lock().end();
                drop(behind);
                closing = Some(done);
            }
            other => {
                drop(flow);
                plugin.answer(other);
            }
        }
        flow = shared.flow.lock();
        flow.call_deadline = None;
        if shared.mode() == Mode::Stalled {
            shared.watch.notify_all();
        }
        if let Some(done) = closing {
            drop(flow);
            let _ = done.send(());
            return;
        }
    }
}

/// Has the plugin's thread do something and waits so long for it. Fails with `Busy`, `TimedOut`, or as it does.
pub(crate) fn call<R: Send + 'static>(
    shared: &Shared,
    what: &'static str,
    timeout: Duration,
    body: impl FnOnce(&mut Plugin) -> Result<R> + Send + 'static,
) -> Result<R> {
    let (answer, wait) = sync_channel(1);
    // what may take longer than other calls knows its time, and is late only some time after
    let usual = shared.settings.timeout;
    let limit = if timeout > usual { timeout + usual } else { usual };
    let answering = move |plugin: &mut Plugin| {
        let _ = answer.send(body(plugin));
    };
    let job = Job::Call(limit, Box::new(answering));
    let failed = |kind, message: String| Err(Error::new(kind, message).with("tier", &shared.name));
    if shared.queue(job).is_err() {
        return failed(ErrorKind::Busy, format!("{what}: the plugin's queue is full"));
    }
    match wait.recv_timeout(timeout) {
        Ok(outcome) => outcome,
        Err(RecvTimeoutError::Timeout) => failed(
            ErrorKind::TimedOut,
            format!("{what}: no answer in {} ms", timeout.as_millis()),
        ),
        Err(RecvTimeoutError::Disconnected) => failed(
            ErrorKind::Cancelled,
            format!("{what}: the plugin isn't asked any more"),
        ),
    }
}
