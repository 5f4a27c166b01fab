//! The one thread that calls a plugin, and the one that watches how long that takes.
#![allow(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::ffi::c_void;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use kvstored_core::{Action, Arena, Durability, Error, ErrorKind, Namespace, NamespaceInfo, Result};
use kvstored_plugin::abi;

use crate::callbacks::leak_table;
use crate::library::Functions;
use crate::shared::{Mode, Shared, Telling, to_abi};

/// Something to do with the plugin.
pub(crate) enum Job {
    /// Hand operations over, by their tickets.
    Submit(Vec<u64>),
    /// Forget blocks.
    Remove(Vec<abi::Key>),
    /// Whatever somebody waits for, and how long it may take.
    Call(Duration, Box<dyn FnOnce(&mut Plugin) + Send>),
    /// Close the tier and end the thread.
    Close(SyncSender<()>),
}

/// An open tier of a plugin.
pub(crate) struct Plugin {
    functions: Functions,
    tier: *mut c_void,
    /// Namespaces that it was told of.
    told: HashSet<Namespace>,
    shared: Arc<Shared>,
}

impl Plugin {
    /// A plugin whose tier is not open yet.
    pub fn new(functions: Functions, shared: Arc<Shared>) -> Self {
        Self {
            functions,
            tier: std::ptr::null_mut(),
            told: HashSet::new(),
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

    /// Tells of the namespaces of operations. Returns those that the plugin refused, and why.
    fn introduce(&mut self, numbers: &[u64]) -> HashMap<Namespace, Error> {
        let mut new: Vec<Arc<NamespaceInfo>> = Vec::new();
        {
            let mut flow = self.shared.flow.lock();
            for number in numbers {
                let Some(ticket) = flow.tickets.get(*number) else {
                    continue;
                };
                let namespace = &ticket.namespace;
                if !self.told.contains(&namespace.namespace)
                    && !new.iter().any(|other| other.namespace == namespace.namespace)
                {
                    new.push(namespace.clone());
                }
            }
        }
        let refused = |info: Arc<NamespaceInfo>| {
            let error = self.open_namespace(&info).err()?;
            Some((info.namespace, error))
        };
        new.into_iter().filter_map(refused).collect()
    }

    /// Hands operations over that still wait.
    fn submit(&mut self, numbers: &[u64]) {
        let shared = self.shared.clone();
        if shared.is_broken() {
            shared.withdraw(numbers, &shared.refusal());
            return;
        }
        let refused = self.introduce(numbers);
        for (namespace, error) in &refused {
            let mut flow = shared.flow.lock();
            let tickets = &mut flow.tickets;
            let of_it = |number: &&u64| {
                let ticket = tickets.get(**number);
                ticket.is_some_and(|ticket| ticket.namespace.namespace == *namespace)
            };
            let of_it: Vec<u64> = numbers.iter().filter(of_it).copied().collect();
            drop(flow);
            shared.withdraw(&of_it, error);
        }
        let mut batch = Vec::with_capacity(numbers.len());
        let mut memories: Vec<Box<abi::Memory>> = Vec::new();
        {
            let mut flow = shared.flow.lock();
            for number in numbers {
                // those that took too long in the queue are gone
                let Some(ticket) = flow.tickets.get(*number) else {
                    continue;
                };
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
                    ticket: *number,
                    key: to_abi(&ticket.key()),
                    data: ticket.buffer.address().cast(),
                    length: ticket.namespace.layout.image_bytes() as u64,
                    durability,
                    reserved: 0,
                    memory: memory_of(ticket.buffer.arena(), &mut memories),
                });
            }
        }
        if !batch.is_empty() {
            // SAFETY: the tier is open; the batch and the memories it points to are lent for the call, the buffers until
            // each operation ends, which their tickets' guards see to.
            unsafe { (self.functions.submit)(self.tier, batch.as_ptr(), batch.len() as u64) }
        }
    }
}

/// Identity and layout as JSON, as in a manifest of the Posix tier.
fn describe(info: &NamespaceInfo) -> Result<String> {
    let shards = info.layout.shards().iter();
    let layout: Vec<&[u32]> = shards.map(|shard| shard.tensor_bytes.as_slice()).collect();
    serde_json::to_string(&serde_json::json!({"identity": info.identity, "layout": layout}))
        .map_err(|error| Error::internal(format!("a namespace's description: {error}")))
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
    loop {
        let job = {
            let mut jobs = shared.jobs.lock();
            loop {
                match jobs.queue.pop_front() {
                    Some(job) => break job,
                    None if jobs.ended => return,
                    None => shared.job_came.wait(&mut jobs),
                }
            }
        };
        let limit = match &job {
            Job::Call(limit, _) => *limit,
            _ => shared.settings.timeout,
        };
        {
            let deadline = shared.runtime.deadline(limit);
            let mut flow = shared.flow.lock();
            flow.call_deadline = Some(deadline);
            shared.watch_until(&mut flow, deadline);
        }
        let mut closing = None;
        match job {
            Job::Submit(numbers) => plugin.submit(&numbers),
            Job::Close(done) => {
                if !shared.is_broken() {
                    plugin.close();
                }
                // whoever waits for what comes behind hears that it never will
                let behind = {
                    let mut jobs = shared.jobs.lock();
                    jobs.ended = true;
                    std::mem::take(&mut jobs.queue)
                };
                drop(behind);
                closing = Some(done);
            }
            // a plugin that broke the contract is asked nothing
            _ if shared.is_broken() => {}
            Job::Remove(keys) => {
                if let Err(error) = plugin.remove(&keys) {
                    tracing::warn!(%error, "blocks are not removed from the plugin");
                }
            }
            Job::Call(_, call) => call(&mut plugin),
        }
        shared.flow.lock().call_deadline = None;
        if shared.mode() == Mode::Stalled {
            shared.watch.notify_all();
        }
        if let Some(done) = closing {
            let _ = done.send(());
            return;
        }
    }
}

/// The thread that watches: ends what takes too long, and has the plugin asked again once nothing does.
pub(crate) fn watch(shared: &Shared) {
    let mut flow = shared.flow.lock();
    while !flow.ending {
        let now = shared.runtime.clock.now();
        let expired = flow.tickets.expire(Some(now));
        let overdue = flow.call_deadline.is_some_and(|deadline| deadline <= now);
        let (held, held_bytes) = flow.tickets.held();
        if !expired.is_empty() || overdue || held > 0 {
            let reason = format!(
                "it took longer than {} ms and keeps {held} buffers ({held_bytes} bytes)",
                shared.settings.timeout.as_millis()
            );
            if shared.enter(Mode::Stalled, &reason) {
                shared.faults.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                tracing::error!(tier = %shared.name, reason, "the plugin is left out until it answers");
            }
        } else if shared.mode() == Mode::Stalled && shared.enter(Mode::Serving, "") {
            tracing::info!(tier = %shared.name, "the plugin answers again");
        }
        if !expired.is_empty() {
            flow.telling += expired.len();
            drop(flow);
            for (buffer, completion, _) in expired {
                let _telling = Telling(shared);
                let error = Error::new(
                    ErrorKind::TimedOut,
                    format!("no answer in {} ms", shared.settings.timeout.as_millis()),
                );
                completion(buffer, Err(error.with("tier", &shared.name)));
            }
            flow = shared.flow.lock();
            continue;
        }
        // an overdue call ends with a notification, not at a time
        let call = flow.call_deadline.filter(|_| !overdue);
        let next = [flow.tickets.next_deadline(), call].into_iter().flatten().min();
        flow.next_look = next;
        match next {
            Some(deadline) => {
                let pause = deadline.saturating_duration_since(shared.runtime.clock.now());
                shared
                    .watch
                    .wait_for(&mut flow, pause.max(Duration::from_millis(1)));
            }
            None => shared.watch.wait(&mut flow),
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
