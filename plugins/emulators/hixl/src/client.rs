//! Clients: what moves bytes.

use std::ffi::{CStr, c_char, c_void};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::card::{Run, Shared, Task};
use crate::faults;
use crate::frames::{Card, GET, LIST, PUT, ask, number, socket};
use crate::layout::{ClientDescription, Memory, OneSided};
use crate::statuses::{EXHAUSTED, FAILED, NOT_CONNECTED, OK, PARAMETER, Status, WAITING};

/// Tasks that nobody asked about.
const MOST_TASKS: usize = 4096;
/// How often a client that is destroyed looks whether its thread has ended.
const PATIENCE: u32 = 400;

struct Client {
    name: String,
    port: u32,
    card: Card,
    shared: Arc<Shared>,
    /// Another handle to the worker's socket.
    stream: Option<UnixStream>,
    worker: Option<JoinHandle<()>>,
    /// What was listed last.
    listed: Vec<Memory>,
    tags: Vec<*mut c_char>,
}

static NEXT: AtomicU64 = AtomicU64::new(1);

/// # Safety
/// The handle must be null or one of a client that wasn't destroyed, and be used by one thread at a time.
unsafe fn client<'a>(handle: *mut c_void) -> Option<&'a mut Client> {
    // SAFETY: the caller vouches for it.
    unsafe { handle.cast::<Client>().as_mut() }
}

/// A client of a server.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn HixlCSClientCreate(
    description: *const ClientDescription,
    configuration: *const c_void,
    handle: *mut *mut c_void,
) -> Status {
    // SAFETY: the caller passes a description.
    let Some(description) = (unsafe { description.as_ref() }) else {
        return PARAMETER;
    };
    let missing = description.local.is_null() || description.remote.is_null() || description.ip.is_null();
    if missing || configuration.is_null() || !(1..=65_535).contains(&description.port) {
        return PARAMETER;
    }
    // SAFETY: the caller passes a text and a card.
    let (ip, card) = unsafe { (CStr::from_ptr(description.ip), (*description.remote).bytes) };
    let made = Client {
        name: ip.to_string_lossy().into_owned(),
        port: description.port,
        card,
        shared: Arc::default(),
        stream: None,
        worker: None,
        listed: Vec::new(),
        tags: Vec::new(),
    };
    // SAFETY: the caller passes a place for the result.
    unsafe { *handle = Box::into_raw(Box::new(made)).cast() };
    OK
}

/// Makes memory known to a client, before it connects.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn HixlCSClientRegMem(
    handle: *mut c_void,
    _tag: *const c_char,
    memory: *const Memory,
    registered: *mut *mut c_void,
) -> Status {
    // SAFETY: the caller passes a client and a description.
    let (Some(client), Some(memory)) = (unsafe { client(handle) }, unsafe { memory.as_ref() }) else {
        return PARAMETER;
    };
    let (address, bytes) = (memory.address.expose_provenance() as u64, memory.bytes);
    let mut state = client.shared.lock();
    let overlaps =
        |range: &(u64, u64)| address < range.0 + range.1 && range.0 < address.saturating_add(bytes);
    // after the connection is too late
    if bytes == 0 || client.worker.is_some() || state.local.values().any(overlaps) {
        return PARAMETER;
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    state.local.insert(number, (address, bytes));
    // SAFETY: the caller passes a place for the result.
    unsafe { *registered = std::ptr::without_provenance_mut(number as usize) };
    OK
}

/// Takes that back.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn HixlCSClientUnregMem(handle: *mut c_void, registered: *mut c_void) -> Status {
    // SAFETY: the caller passes a client.
    let Some(client) = (unsafe { client(handle) }) else {
        return PARAMETER;
    };
    match client.shared.lock().local.remove(&(registered.addr() as u64)) {
        Some(_) => OK,
        None => PARAMETER,
    }
}

fn connect(client: &mut Client, timeout_ms: u32) -> std::io::Result<bool> {
    let mut stream = UnixStream::connect_addr(&socket(&client.name, client.port)?)?;
    stream.set_read_timeout(Some(Duration::from_millis(u64::from(timeout_ms.max(1)))))?;
    stream.write_all(&client.card)?;
    let mut same = [0];
    stream.read_exact(&mut same)?;
    if same[0] == 0 {
        return Ok(false);
    }
    list(client, &mut stream)?;
    stream.set_read_timeout(None)?;
    client.stream = Some(stream.try_clone()?);
    let shared = client.shared.clone();
    client.worker = Some(std::thread::Builder::new().spawn(move || shared.run(stream))?);
    Ok(true)
}

fn list(client: &mut Client, stream: &mut UnixStream) -> std::io::Result<()> {
    ask(stream, LIST, 0, 0)?;
    client.listed.clear();
    for _ in 0..number(stream)? {
        client.listed.push(Memory {
            kind: number(stream)? as i32,
            address: std::ptr::without_provenance_mut(number(stream)? as usize),
            bytes: number(stream)?,
        });
    }
    let listed = client.listed.iter();
    client.shared.lock().remote = listed
        .map(|memory| (memory.address.addr() as u64, memory.bytes))
        .collect();
    Ok(())
}

/// Connects a client.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn HixlCSClientConnect(handle: *mut c_void, timeout_ms: u32) -> Status {
    // SAFETY: the caller passes a client.
    let Some(client) = (unsafe { client(handle) }) else {
        return PARAMETER;
    };
    if faults::REFUSE.is_on() || client.worker.is_some() {
        return FAILED;
    }
    match connect(client, timeout_ms) {
        Ok(true) => OK,
        Ok(false) | Err(_) => FAILED,
    }
}

/// What the server exposed when they connected: the worker has the socket by now.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn HixlCSClientGetRemoteMem(
    handle: *mut c_void,
    memories: *mut *mut Memory,
    tags: *mut *mut *mut c_char,
    count: *mut u32,
    _timeout_ms: u32,
) -> Status {
    // SAFETY: the caller passes a client.
    let Some(client) = (unsafe { client(handle) }) else {
        return PARAMETER;
    };
    if client.worker.is_none() {
        return NOT_CONNECTED;
    }
    client.tags = vec![std::ptr::null_mut(); client.listed.len()];
    // SAFETY: the caller passes places for the results, which stay with the client.
    unsafe {
        *memories = client.listed.as_mut_ptr();
        *tags = client.tags.as_mut_ptr();
        *count = client.listed.len() as u32;
    }
    OK
}

/// # Safety
/// As the two functions below.
unsafe fn batch(
    handle: *mut c_void,
    kind: u8,
    count: u32,
    runs: *const OneSided,
    complete: *mut *mut c_void,
) -> Status {
    // SAFETY: the caller passes a client.
    let Some(client) = (unsafe { client(handle) }) else {
        return PARAMETER;
    };
    if count == 0 || runs.is_null() || complete.is_null() {
        return PARAMETER;
    }
    if client.worker.is_none() {
        return NOT_CONNECTED;
    }
    // SAFETY: the caller passes that many.
    let runs = unsafe { std::slice::from_raw_parts(runs, count as usize) };
    let runs: Vec<Run> = runs
        .iter()
        .map(|run| Run {
            remote: run.remote.addr() as u64,
            local: run.local.addr() as u64,
            bytes: run.bytes,
        })
        .collect();
    let holds = |range: &(u64, u64), address: u64, bytes: u64| {
        address >= range.0 && address + bytes <= range.0 + range.1
    };
    let mut state = client.shared.lock();
    for run in &runs {
        let local = state
            .local
            .values()
            .any(|range| holds(range, run.local, run.bytes));
        let remote = state
            .remote
            .iter()
            .any(|range| holds(range, run.remote, run.bytes));
        if !local || !remote {
            return PARAMETER;
        }
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    state.queue.push_back(Task { number, kind, runs });
    client.shared.changed.notify_one();
    // as in the library, this is found out when the bytes are on their way
    if state.tasks.len() >= MOST_TASKS {
        return EXHAUSTED;
    }
    if faults::SUBMIT.is_on() {
        return FAILED;
    }
    state.tasks.insert(number, WAITING);
    // SAFETY: the caller passes a place for the result.
    unsafe { *complete = std::ptr::without_provenance_mut(number as usize) };
    OK
}

/// Begins to write to the server.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn HixlCSClientBatchPutAsync(
    handle: *mut c_void,
    count: u32,
    runs: *const OneSided,
    complete: *mut *mut c_void,
) -> Status {
    // SAFETY: the caller passes a client, that many runs and a place for the result.
    unsafe { batch(handle, PUT, count, runs, complete) }
}

/// Begins to read from the server.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn HixlCSClientBatchGetAsync(
    handle: *mut c_void,
    count: u32,
    runs: *const OneSided,
    complete: *mut *mut c_void,
) -> Status {
    // SAFETY: as above.
    unsafe { batch(handle, GET, count, runs, complete) }
}

/// How far a task is; one that has ended is forgotten.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn HixlCSClientQueryCompleteStatus(
    handle: *mut c_void,
    complete: *mut c_void,
    status: *mut i32,
) -> Status {
    // SAFETY: the caller passes a client.
    let Some(client) = (unsafe { client(handle) }) else {
        return PARAMETER;
    };
    if faults::QUERY.is_on() {
        return FAILED;
    }
    let number = complete.addr() as u64;
    let mut state = client.shared.lock();
    let Some(found) = state.tasks.get(&number).copied() else {
        return PARAMETER;
    };
    if found != WAITING {
        state.tasks.remove(&number);
    }
    // SAFETY: the caller passes a place for the result.
    unsafe { *status = found };
    OK
}

/// Ends a client, when what is on its way has arrived.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn HixlCSClientDestroy(handle: *mut c_void) -> Status {
    if handle.is_null() {
        return PARAMETER;
    }
    if faults::DESTROY.is_on() {
        return FAILED;
    }
    // SAFETY: the caller passes a client, and doesn't use it afterwards.
    let mut client = unsafe { Box::from_raw(handle.cast::<Client>()) };
    client.shared.lock().stopped = true;
    client.shared.changed.notify_all();
    if let Some(worker) = client.worker.take() {
        // what is on its way arrives, unless the other side is stuck
        for _ in 0..PATIENCE {
            if worker.is_finished() {
                break;
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        if let Some(stream) = &client.stream {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        let _ = worker.join();
    }
    OK
}
