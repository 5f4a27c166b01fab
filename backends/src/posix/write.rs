//! The write path: the log's thread cuts extents, submits image writes, and commits what was written.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use kvstored_core::tier::Completion;
use kvstored_core::{BlockKey, Durability, Envelope, Error, ErrorKind, Result, SlotGuard};

use super::format::PAGE;
use super::index::Location;
use super::log::{Finished, Log, WriteTask};
use super::shared::count;
use crate::io::files::sync_data;
use crate::io::{Direction, IoRequest};

/// Images in flight at once.
const IN_FLIGHT: usize = 64;

/// How long a refusal for want of capacity holds, unless an eviction ends it.
const NO_ROOM_INTERVAL: Duration = Duration::from_millis(20);

/// An image that is being written.
pub(super) struct Pending {
    pub(super) task: Unwritten,
    pub(super) incarnation: u64,
    pub(super) segment: u32,
    pub(super) page: u32,
    pub(super) ordinal: u16,
    pub(super) generation: u64,
    pub(super) file: Arc<File>,
    /// The same block, asked for again meanwhile.
    pub(super) followers: Vec<WriteTask>,
}

/// A task whose buffer is at the I/O engine.
pub(super) struct Unwritten {
    pub(super) index: Arc<super::index::NamespaceIndex>,
    pub(super) key: BlockKey,
    pub(super) durability: Durability,
    pub(super) reinserted: Option<(Location, u64)>,
    pub(super) completion: Completion,
}

/// Completions to be called without any lock.
pub(super) type Done = Vec<(Completion, SlotGuard, Result<()>)>;

/// State of the log's thread.
#[derive(Default)]
pub(super) struct Writer {
    pub(super) next_ticket: u64,
    pub(super) pending: HashMap<u64, Pending>,
    pub(super) tickets: HashMap<BlockKey, u64>,
}

/// Where a task goes.
struct Extent {
    segment: u32,
    page: u32,
    ordinal: u16,
    incarnation: u64,
    generation: u64,
    file: Arc<File>,
}

/// Runs the log's thread until the log is stopped.
pub fn run(log: &Arc<Log>) {
    let mut writer = Writer::default();
    loop {
        let room = IN_FLIGHT.saturating_sub(writer.pending.len());
        let (tasks, finished, stopped) = log.next_work(room);
        let mut done = Done::new();
        if !finished.is_empty() {
            writer.commit(log, finished, &mut done);
        }
        if stopped {
            let cancelled = Error::new(ErrorKind::Cancelled, "the tier is shut down");
            done.extend(
                tasks
                    .into_iter()
                    .map(|task| (task.completion, task.buffer, Err(cancelled.clone()))),
            );
        } else if !tasks.is_empty() {
            writer.accept(log, tasks, &mut done);
        }
        for (completion, buffer, result) in done {
            completion(buffer, result);
        }
        if stopped && writer.pending.is_empty() && log.waiting() == 0 {
            return;
        }
    }
}

impl Writer {
    fn accept(&mut self, log: &Arc<Log>, tasks: Vec<WriteTask>, done: &mut Done) {
        let mut requests = Vec::with_capacity(tasks.len());
        let mut to_sync: Vec<(Arc<File>, WriteTask)> = Vec::new();
        for task in tasks {
            let key = BlockKey {
                namespace: task.info.namespace,
                hash: task.hash,
            };
            if let Err(error) = check_image(&task, &key) {
                done.push((task.completion, task.buffer, Err(error)));
                continue;
            }
            if let Some(pending) = self
                .tickets
                .get(&key)
                .and_then(|ticket| self.pending.get_mut(ticket))
            {
                pending.followers.push(task);
                continue;
            }
            match is_stored(log, &task) {
                Stored::No => {}
                Stored::Yes => {
                    done.push((task.completion, task.buffer, Ok(())));
                    continue;
                }
                Stored::NotFlushed(file) => {
                    to_sync.push((file, task));
                    continue;
                }
                Stored::Moved => {
                    let error = Error::new(ErrorKind::NotFound, "the block has moved");
                    done.push((task.completion, task.buffer, Err(error)));
                    continue;
                }
            }
            match place(log, &task) {
                Ok(extent) => {
                    let ticket = self.next_ticket;
                    self.next_ticket += 1;
                    let WriteTask {
                        index,
                        durability,
                        reinserted,
                        buffer,
                        completion,
                        ..
                    } = task;
                    let owner = Arc::clone(log);
                    requests.push(IoRequest {
                        file: Arc::clone(&extent.file),
                        direction: Direction::Write,
                        file_offset: u64::from(extent.page) * PAGE,
                        length: index.image_bytes(),
                        buffer,
                        buffer_offset: 0,
                        completion: Box::new(move |buffer, result| {
                            owner.finish(Finished {
                                ticket,
                                buffer,
                                result,
                            });
                        }),
                    });
                    self.tickets.insert(key, ticket);
                    let Extent {
                        segment,
                        page,
                        ordinal,
                        incarnation,
                        generation,
                        file,
                    } = extent;
                    let task = Unwritten {
                        index,
                        key,
                        durability,
                        reinserted,
                        completion,
                    };
                    let followers = Vec::new();
                    self.pending.insert(
                        ticket,
                        Pending {
                            task,
                            incarnation,
                            segment,
                            page,
                            ordinal,
                            generation,
                            file,
                            followers,
                        },
                    );
                }
                Err(error) => {
                    count(&log.shared.counters.refused_writes, 1);
                    done.push((task.completion, task.buffer, Err(error)));
                }
            }
        }
        if !requests.is_empty() {
            log.engine.submit(requests);
        }
        sync_present(log, to_sync, done);
    }
}

fn check_image(task: &WriteTask, key: &BlockKey) -> Result<()> {
    let needed = task.index.image_bytes();
    if task.buffer.length() < needed {
        return Err(Error::invalid(format!(
            "a buffer of {} bytes for an image of {needed}",
            task.buffer.length()
        )));
    }
    let page = task.buffer.descriptor()?;
    Envelope::decode(&page[..])
        .and_then(|envelope| envelope.expect(key, &task.info.layout))
        .map_err(|error| Error::invalid(format!("the buffer holds no such block: {error}")))
}

enum Stored {
    No,
    Yes,
    /// Present, but its segment isn't flushed.
    NotFlushed(Arc<File>),
    /// A reinserted block isn't where it was.
    Moved,
}

fn is_stored(log: &Log, task: &WriteTask) -> Stored {
    let present = task.index.get(&task.hash);
    if let Some((from, _)) = &task.reinserted {
        return match present {
            Some(location) if location.is_at(from.segment, from.page) => Stored::No,
            _ => Stored::Moved,
        };
    }
    let Some(location) = present else {
        return Stored::No;
    };
    let Some(segment) = log.shared.segments.get(location.segment) else {
        return Stored::No;
    };
    if task.durability < Durability::Durable {
        return Stored::Yes;
    }
    if segment.log != log.number {
        return Stored::No;
    }
    let mut own = log.own.lock();
    match own.writer_mut(segment.writer) {
        // sealed segments and the prologue that names them are flushed
        Some(writer) => match writer.open_segment(segment.number) {
            Some(open) => Stored::NotFlushed(Arc::clone(&open.file)),
            None => Stored::Yes,
        },
        // another process decides when its log is flushed
        None => Stored::No,
    }
}

fn sync_present(log: &Log, to_sync: Vec<(Arc<File>, WriteTask)>, done: &mut Done) {
    if to_sync.is_empty() {
        return;
    }
    let mut files: Vec<Arc<File>> = Vec::new();
    for (file, _) in &to_sync {
        if !files.iter().any(|known| Arc::ptr_eq(known, file)) {
            files.push(Arc::clone(file));
        }
    }
    files.extend(log.own.lock().active.as_ref().map(|active| active.journal.file()));
    let result = files.iter().try_for_each(|file| sync_data(file));
    for (_, task) in to_sync {
        done.push((task.completion, task.buffer, result.clone()));
    }
}

/// Finds room for a task's image.
fn place(log: &Arc<Log>, task: &WriteTask) -> Result<Extent> {
    if let Some(refusal) = log.refusal() {
        return Err(refusal);
    }
    if task.reinserted.is_some() {
        // the block only moves: what it was charged moves with it
        return place_unreserved(log, task);
    }
    let bytes = task.index.image_bytes() as u64;
    log.shared.quotas.reserve(&task.index, bytes)?;
    let placed = place_unreserved(log, task);
    if placed.is_err() {
        log.shared.quotas.release(&task.index, bytes);
    }
    placed
}

fn place_unreserved(log: &Arc<Log>, task: &WriteTask) -> Result<Extent> {
    let shape = &task.index.shape;
    ensure_manifest(log, task)?;
    // The second attempt finds a segment that was made for this image.
    for _ in 0..2 {
        {
            let mut own = log.own.lock();
            let generation = match task.reinserted {
                Some((_, generation)) => generation,
                None => own.next_generation(log.shared.unix_us(), task.index.purged()),
            };
            let incarnation = own.incarnation;
            let active = own
                .active
                .as_mut()
                .ok_or_else(|| Error::new(ErrorKind::Unavailable, "the storage directory has no writer"))?;
            let ordinal = active.ordinal(shape)?;
            loop {
                if let Some(open) = active.open.last_mut().filter(|open| !open.full) {
                    if let Some(page) = open.place(shape.image_pages, ordinal) {
                        return Ok(Extent {
                            segment: open.header.segment,
                            page,
                            ordinal,
                            incarnation,
                            generation,
                            file: Arc::clone(&open.file),
                        });
                    }
                    open.full = true;
                }
                match active.prepared.take() {
                    Some(prepared) => active.open.push(prepared),
                    None => break,
                }
            }
        }
        make_room(log, shape.image_pages)?;
    }
    Err(Error::new(
        ErrorKind::NoSpace,
        "no segment has room for the block",
    ))
}

/// Has a segment prepared. After a refusal the next ones come without adding up the directory again.
fn make_room(log: &Log, image_pages: u32) -> Result<()> {
    let now = log.shared.runtime.clock.now();
    if log.no_room_until.lock().is_some_and(|until| now < until) {
        return Err(Error::new(
            ErrorKind::NoSpace,
            "the directory's capacity is used up",
        ));
    }
    log.want_chores();
    let prepared = super::allocate::prepare(log, image_pages);
    if prepared
        .as_ref()
        .is_err_and(|error| error.kind() == ErrorKind::NoSpace)
    {
        *log.no_room_until.lock() = Some(log.shared.runtime.deadline(NO_ROOM_INTERVAL));
        log.want_chores();
    }
    prepared
}

/// A block whose namespace has no manifest couldn't be recovered after a crash.
fn ensure_manifest(log: &Log, task: &WriteTask) -> Result<()> {
    let known = log
        .own
        .lock()
        .active
        .as_ref()
        .is_some_and(|active| active.ordinals.contains_key(&task.info.namespace));
    if known {
        Ok(())
    } else {
        super::store_manifest(&log.shared, &log.directory, &task.info).map(drop)
    }
}
