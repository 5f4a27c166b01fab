//! A client of HIXL, connected with one server, and its tasks.

use std::collections::HashMap;
use std::ffi::{CString, c_int};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kvstored_plugin::{Completion, Failure, Kind, Move, MoveDirection};

use crate::failures::{checked, failure};
use crate::symbols::{COMPLETED, Functions, Handle, MEMORY_HOST, Memory, OneSided, WAITING};

/// Tasks under way on one client. HIXL has room for 4,096 that nobody has asked about, and begins one more before it says
/// that there is none.
const MOST_TASKS: usize = 2048;
/// The most ranges that a server is believed to expose.
const MOST_RANGES: u32 = 1 << 16;

struct Task {
    handle: Handle,
    completion: Completion,
}

/// A range of a server's memory.
struct Range {
    address: u64,
    bytes: u64,
}

struct State {
    /// `None` once it's destroyed.
    client: Option<Handle>,
    /// It failed, and was told to end. If it's still there, it couldn't.
    broken: bool,
    /// Our memory that it knows, by the host's number.
    registered: HashMap<u64, Handle>,
    ranges: Vec<Range>,
    tasks: Vec<Task>,
}

// SAFETY: HIXL's handles may be used from any thread, which is done under the lock only.
unsafe impl Send for State {}

/// A connection. Every call on its client is made under the lock, so that none is under way when it's destroyed.
pub(crate) struct Connection {
    functions: Functions,
    state: Mutex<State>,
}

/// What is to be said of tasks. It's said under the lock, so that whoever ends the connection finds all of it said; the
/// host calls nothing of ours meanwhile.
type Ended = Vec<(Completion, Result<(), Failure>)>;

fn say(ended: Ended) {
    for (completion, outcome) in ended {
        completion.finish(outcome);
    }
}

/// Makes memory known to a client.
fn register(functions: &Functions, client: Handle, address: u64, bytes: u64) -> Result<Handle, Failure> {
    let memory = Memory {
        kind: MEMORY_HOST,
        address: std::ptr::with_exposed_provenance_mut(address as usize),
        bytes,
    };
    let tag = CString::new(format!("kvstored-{address:x}")).unwrap_or_default();
    let mut handle = std::ptr::null_mut();
    // SAFETY: the client is there, the arguments are lent for the call; the host keeps the memory valid.
    let status =
        unsafe { (functions.client_register)(client, tag.as_ptr(), &raw const memory, &raw mut handle) };
    checked("HixlCSClientRegMem", status).map(|()| handle)
}

impl Connection {
    /// Takes a new client over, makes our memory known to it, connects it and learns what the server exposes.
    pub fn open(
        functions: &Functions,
        client: Handle,
        own: &[(u64, u64, u64)],
        timeout_ms: u32,
    ) -> Result<Self, Failure> {
        let opened = Self {
            functions: *functions,
            state: Mutex::new(State {
                client: Some(client),
                broken: false,
                registered: HashMap::new(),
                ranges: Vec::new(),
                tasks: Vec::new(),
            }),
        };
        opened.set_up(client, own, timeout_ms).inspect_err(|_| {
            // nothing was begun on it
            let _ = opened.close();
        })?;
        Ok(opened)
    }

    fn set_up(&self, client: Handle, own: &[(u64, u64, u64)], timeout_ms: u32) -> Result<(), Failure> {
        let mut state = self.lock();
        for (memory, address, bytes) in own {
            let handle = register(&self.functions, client, *address, *bytes)?;
            state.registered.insert(*memory, handle);
        }
        // SAFETY: the client is there.
        let status = unsafe { (self.functions.client_connect)(client, timeout_ms) };
        checked("HixlCSClientConnect", status)?;
        let (mut memories, mut tags, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        // SAFETY: the client is there; the places are lent for the call.
        let status = unsafe {
            (self.functions.client_remote)(
                client,
                &raw mut memories,
                &raw mut tags,
                &raw mut count,
                timeout_ms,
            )
        };
        checked("HixlCSClientGetRemoteMem", status)?;
        if count > MOST_RANGES {
            let message = format!("a server that exposes {count} ranges");
            return Err(Failure::new(Kind::TooLarge, message));
        }
        if !memories.is_null() {
            // SAFETY: the library lists that many, which stay until it's asked again.
            let memories = unsafe { std::slice::from_raw_parts(memories, count as usize) };
            state.ranges.extend(memories.iter().map(|memory| Range {
                address: memory.address.addr() as u64,
                bytes: memory.bytes,
            }));
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to move a batch.
    pub fn submit(&self, direction: MoveDirection, moves: &[Move], completion: Completion) {
        let mut state = self.lock();
        let client = match Self::ready(&state, moves) {
            Ok(client) => client,
            Err(failure) => {
                drop(state);
                return completion.fail(&failure);
            }
        };
        let list: Vec<OneSided> = moves
            .iter()
            .map(|one| OneSided {
                remote: std::ptr::with_exposed_provenance_mut(one.remote as usize),
                local: std::ptr::with_exposed_provenance_mut(one.local as usize),
                bytes: one.bytes,
            })
            .collect();
        let (what, call) = match direction {
            MoveDirection::ToPeer => ("HixlCSClientBatchPutAsync", self.functions.client_put),
            MoveDirection::FromPeer => ("HixlCSClientBatchGetAsync", self.functions.client_get),
        };
        let mut handle = std::ptr::null_mut();
        // SAFETY: the client is there, the list is lent for the call; the host keeps the memory valid until the batch is
        // completed.
        let status = unsafe { call(client, list.len() as u32, list.as_ptr(), &raw mut handle) };
        let begun = checked(what, status).and_then(|()| {
            let none = || Failure::new(Kind::Internal, format!("{what} gave no handle"));
            (!handle.is_null()).then_some(handle).ok_or_else(none)
        });
        match begun {
            Ok(handle) => state.tasks.push(Task { handle, completion }),
            Err(failure) => {
                // a part of the list may be under way, and there is no handle to ask about: it ends with the client
                state.tasks.push(Task {
                    handle: std::ptr::null_mut(),
                    completion,
                });
                say(self.destroy(&mut state, &failure).unwrap_or_default());
            }
        }
    }

    fn ready(state: &State, moves: &[Move]) -> Result<Handle, Failure> {
        let over = || Failure::new(Kind::Unavailable, "the client has failed");
        let client = state.client.filter(|_| !state.broken).ok_or_else(over)?;
        if state.tasks.len() >= MOST_TASKS {
            return Err(Failure::new(Kind::Busy, "too many tasks are under way"));
        }
        for one in moves {
            let end = one.remote.checked_add(one.bytes);
            let known = |range: &Range| {
                one.remote >= range.address && end.is_some_and(|end| end - range.address <= range.bytes)
            };
            if !state.ranges.iter().any(known) {
                let message = format!("the server exposes no {} bytes at {:#x}", one.bytes, one.remote);
                return Err(Failure::new(Kind::InvalidInput, message));
            }
        }
        Ok(client)
    }

    /// Asks how far tasks are. Whether one was over, and how many are left that it's worth to ask about.
    pub fn look(&self) -> (bool, usize) {
        let mut state = self.lock();
        let Some(client) = state.client.filter(|_| !state.broken) else {
            return (false, 0);
        };
        let (mut ended, mut at, mut fatal) = (Ended::new(), 0, None);
        while let Some(handle) = state.tasks.get(at).map(|task| task.handle) {
            let mut status: c_int = WAITING;
            // SAFETY: the client is there and the handle one of its own, whose end nobody was told of.
            let asked = unsafe { (self.functions.client_query)(client, handle, &raw mut status) };
            match status {
                _ if asked != crate::symbols::OK => {
                    fatal = Some(failure("HixlCSClientQueryCompleteStatus", asked));
                    break;
                }
                WAITING => at += 1,
                COMPLETED => {
                    let task = state.tasks.swap_remove(at);
                    ended.push((task.completion, Ok(())));
                }
                other => {
                    let message = format!("a task ended with status {other}");
                    fatal = Some(Failure::new(Kind::Io, message));
                    break;
                }
            }
        }
        // what failed may be half-way: it's over for certain when the client is
        if let Some(failure) = fatal {
            ended.extend(self.destroy(&mut state, &failure).unwrap_or_default());
        }
        let left = if state.broken { 0 } else { state.tasks.len() };
        let some = !ended.is_empty();
        say(ended);
        (some, left)
    }

    /// Ends the client, and with it its tasks; they are told that failure.
    fn destroy(&self, state: &mut State, why: &Failure) -> Result<Ended, Failure> {
        state.broken = true;
        let Some(client) = state.client else {
            return Ok(Ended::new());
        };
        // SAFETY: the client is there, and not used afterwards unless this fails.
        let status = unsafe { (self.functions.client_destroy)(client) };
        // what it still has isn't said to be over if this failed
        checked("HixlCSClientDestroy", status)?;
        state.client = None;
        state.registered.clear();
        let tasks = state.tasks.drain(..);
        Ok(tasks.map(|task| (task.completion, Err(why.clone()))).collect())
    }

    /// Ends the connection and all of its tasks. Fails when that isn't certain; it may be tried again.
    pub fn close(&self) -> Result<(), Failure> {
        let why = Failure::new(Kind::Cancelled, "the connection was ended");
        let mut state = self.lock();
        say(self.destroy(&mut state, &why)?);
        Ok(())
    }

    /// Forgets memory of ours.
    pub fn unregister(&self, memory: u64) -> Result<(), Failure> {
        let mut state = self.lock();
        let (Some(client), Some(handle)) = (state.client, state.registered.get(&memory).copied()) else {
            return Ok(());
        };
        // SAFETY: client and handle are there.
        let status = unsafe { (self.functions.client_unregister)(client, handle) };
        checked("HixlCSClientUnregMem", status)?;
        state.registered.remove(&memory);
        Ok(())
    }
}
