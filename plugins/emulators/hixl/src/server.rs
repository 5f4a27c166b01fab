//! Servers: what exposes memory.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::frames::{Card, GET, LIST, PIECE_BYTES, PUT, asked, socket};
use crate::layout::{Memory, ServerDescription};
use crate::statuses::{FAILED, OK, PARAMETER, Status};

struct Range {
    kind: i32,
    address: u64,
    bytes: u64,
}

impl Range {
    fn holds(&self, address: u64, bytes: u64) -> bool {
        let end = address.checked_add(bytes);
        address >= self.address && end.is_some_and(|end| end <= self.address + self.bytes)
    }
}

/// What the card knows. Moves hold the lock, so that none goes on once a range is gone.
#[derive(Default)]
struct Exposed {
    ranges: Mutex<BTreeMap<u64, Range>>,
    stopped: AtomicBool,
}

impl Exposed {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Range>> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Server {
    name: String,
    port: u32,
    cards: Vec<Card>,
    exposed: Arc<Exposed>,
}

static NEXT: AtomicU64 = AtomicU64::new(1);

/// # Safety
/// The handle must be null or one of a server that wasn't destroyed.
unsafe fn server<'a>(handle: *mut c_void) -> Option<&'a Server> {
    // SAFETY: the caller vouches for it.
    unsafe { handle.cast::<Server>().as_ref() }
}

/// A server with its cards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn HixlCSServerCreate(
    description: *const ServerDescription,
    configuration: *const c_void,
    handle: *mut *mut c_void,
) -> Status {
    if description.is_null() || configuration.is_null() || handle.is_null() {
        return PARAMETER;
    }
    // SAFETY: the caller passes a description.
    let description = unsafe { &*description };
    if description.ip.is_null() || description.endpoints.is_null() || description.endpoint_count == 0 {
        return PARAMETER;
    }
    // SAFETY: the caller passes a text and that many cards.
    let (ip, cards) = unsafe {
        (
            CStr::from_ptr(description.ip),
            std::slice::from_raw_parts(description.endpoints, description.endpoint_count as usize),
        )
    };
    let made = Server {
        name: ip.to_string_lossy().into_owned(),
        port: description.port,
        cards: cards.iter().map(|card| card.bytes).collect(),
        exposed: Arc::default(),
    };
    // SAFETY: the caller passes a place for the result.
    unsafe { *handle = Box::into_raw(Box::new(made)).cast() };
    OK
}

/// Exposes memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn HixlCSServerRegMem(
    handle: *mut c_void,
    _tag: *const c_char,
    memory: *const Memory,
    registered: *mut *mut c_void,
) -> Status {
    // SAFETY: the caller passes a server and a description.
    let (Some(server), Some(memory)) = (unsafe { server(handle) }, unsafe { memory.as_ref() }) else {
        return PARAMETER;
    };
    let address = memory.address.expose_provenance() as u64;
    let mut ranges = server.exposed.lock();
    let overlaps = |range: &Range| {
        address < range.address + range.bytes && range.address < address.saturating_add(memory.bytes)
    };
    if memory.bytes == 0 || ranges.values().any(overlaps) {
        return PARAMETER;
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let range = Range {
        kind: memory.kind,
        address,
        bytes: memory.bytes,
    };
    ranges.insert(number, range);
    // SAFETY: the caller passes a place for the result.
    unsafe { *registered = std::ptr::without_provenance_mut(number as usize) };
    OK
}

/// Takes that back: no client touches it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn HixlCSServerUnregMem(handle: *mut c_void, registered: *mut c_void) -> Status {
    // SAFETY: the caller passes a server.
    let Some(server) = (unsafe { server(handle) }) else {
        return PARAMETER;
    };
    match server.exposed.lock().remove(&(registered.addr() as u64)) {
        Some(_) => OK,
        None => PARAMETER,
    }
}

/// Lets clients connect.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn HixlCSServerListen(handle: *mut c_void, _backlog: u32) -> Status {
    // SAFETY: the caller passes a server.
    let Some(server) = (unsafe { server(handle) }) else {
        return PARAMETER;
    };
    let listener = socket(&server.name, server.port).and_then(|at| UnixListener::bind_addr(&at));
    let Ok(listener) = listener else { return FAILED };
    let (exposed, cards) = (server.exposed.clone(), server.cards.clone());
    let listening = std::thread::Builder::new().spawn(move || {
        for stream in listener.incoming() {
            if exposed.stopped.load(Ordering::Acquire) {
                return;
            }
            let Ok(stream) = stream else { return };
            let (exposed, cards) = (exposed.clone(), cards.clone());
            // it ends when its client goes
            let served = std::thread::Builder::new().spawn(move || serve(stream, &exposed, &cards));
            if served.is_err() {
                return;
            }
        }
    });
    if listening.is_ok() { OK } else { FAILED }
}

/// The card at work for one client.
fn serve(mut stream: UnixStream, exposed: &Exposed, cards: &[Card]) -> Option<()> {
    let mut wanted: Card = [0; crate::layout::ENDPOINT_BYTES];
    stream.read_exact(&mut wanted).ok()?;
    // a client that means another card is turned away
    stream.write_all(&[u8::from(cards.contains(&wanted))]).ok()?;
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let (kind, address, bytes) = asked(&mut stream).ok()?;
        if kind == LIST {
            let mut list = Vec::new();
            let ranges = exposed.lock();
            list.extend((ranges.len() as u64).to_le_bytes());
            for range in ranges.values() {
                list.extend((range.kind as u64).to_le_bytes());
                list.extend(range.address.to_le_bytes());
                list.extend(range.bytes.to_le_bytes());
            }
            drop(ranges);
            stream.write_all(&list).ok()?;
            continue;
        }
        let piece = buffer.get_mut(..bytes as usize)?;
        if kind == PUT {
            stream.read_exact(piece).ok()?;
        }
        let done = {
            let ranges = exposed.lock();
            let known = !exposed.stopped.load(Ordering::Acquire)
                && ranges.values().any(|range| range.holds(address, bytes));
            let memory = std::ptr::with_exposed_provenance_mut::<u8>(address as usize);
            // SAFETY: the range is registered, and stays so under the lock; the process vouches for its memory.
            unsafe {
                match kind {
                    PUT if known => std::ptr::copy(piece.as_ptr(), memory, piece.len()),
                    GET if known => std::ptr::copy(memory, piece.as_mut_ptr(), piece.len()),
                    _ => {}
                }
            }
            known
        };
        stream.write_all(&[u8::from(done)]).ok()?;
        if kind == GET && done {
            stream.write_all(piece).ok()?;
        }
    }
}

/// Ends a server.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn HixlCSServerDestroy(handle: *mut c_void) -> Status {
    if handle.is_null() {
        return PARAMETER;
    }
    // SAFETY: the caller passes a server, and doesn't use it afterwards.
    let server = unsafe { Box::from_raw(handle.cast::<Server>()) };
    server.exposed.lock().clear();
    server.exposed.stopped.store(true, Ordering::Release);
    // the listener looks up
    if let Ok(at) = socket(&server.name, server.port) {
        let _ = UnixStream::connect_addr(&at);
    }
    OK
}
