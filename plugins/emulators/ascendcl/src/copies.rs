//! Copies, one and many.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::faults::{
    BANDWIDTH_MIB, BATCH_CALLS, COPIES, FAIL_EVERY, MOST_BATCH, NO_BATCH, SINGLE_CALLS, STALL_MS, STRICT,
};
use crate::memory::{Kind, Lookup};
use crate::runtime::current;
use crate::statuses::{OK, PARAMETER, Status, TASK_FAILED, UNSUPPORTED, status};
use crate::stream::{Task, stream};

/// A copy by the addresses at which its bytes can be reached.
pub(crate) struct Piece {
    destination: usize,
    source: usize,
    bytes: usize,
}

/// Copy tasks of all streams.
static TASKS: AtomicU64 = AtomicU64::new(0);

#[allow(clippy::disallowed_methods)] // a stand-in for hardware has the time that hardware has
fn now() -> Instant {
    Instant::now()
}

/// What a stream's thread does for one task.
pub(crate) fn perform(pieces: &[Piece]) -> Status {
    let begin = now();
    let number = TASKS.fetch_add(1, Ordering::Relaxed) + 1;
    let every = FAIL_EVERY.get();
    if every > 0 && number.is_multiple_of(every) {
        return TASK_FAILED;
    }
    let mut bytes = 0;
    for piece in pieces {
        // SAFETY: device memory was looked up when the copy was given; whoever gave it vouches for the host's, and that
        // neither goes before the copy is done.
        unsafe {
            std::ptr::copy(
                piece.source as *const u8,
                piece.destination as *mut u8,
                piece.bytes,
            );
        }
        bytes += piece.bytes as u64;
    }
    let mut least = Duration::from_millis(STALL_MS.get());
    if BANDWIDTH_MIB.get() > 0 {
        least = least.max(Duration::from_secs_f64(
            bytes as f64 / (BANDWIDTH_MIB.get() << 20) as f64,
        ));
    }
    loop {
        let left = least.saturating_sub(now().duration_since(begin));
        if left.is_zero() {
            return OK;
        }
        std::thread::park_timeout(left);
    }
}

/// On which sides of a copy the device is, by the number of its kind; 4 goes by the addresses.
fn sides(kind: c_int) -> Result<Option<(bool, bool)>, Status> {
    match kind {
        0 => Ok(Some((false, false))),
        1 => Ok(Some((true, false))),
        2 => Ok(Some((false, true))),
        3 => Ok(Some((true, true))),
        4 => Ok(None),
        _ => Err(PARAMETER),
    }
}

/// Looks a copy's addresses up. Says whether both are known, so that it can run by itself.
fn resolve(
    lookup: &Lookup,
    (destination, source, bytes): (usize, usize, usize),
    kind: c_int,
) -> Result<(Piece, bool), Status> {
    if destination == 0 || source == 0 {
        return Err(PARAMETER);
    }
    let (to, to_kind) = lookup.find(destination, bytes)?;
    let (from, from_kind) = lookup.find(source, bytes)?;
    let on_device = |kind| matches!(kind, Some(Kind::Device | Kind::Imported));
    if let Some(expected) = sides(kind)?
        && expected != (on_device(to_kind), on_device(from_kind))
    {
        return Err(PARAMETER);
    }
    let piece = Piece {
        destination: to,
        source: from,
        bytes,
    };
    Ok((piece, to_kind.is_some() && from_kind.is_some()))
}

/// Gives copies to a stream, or runs them at once where the host's memory isn't known.
///
/// # Safety
/// The stream must be alive and the host's ranges valid.
unsafe fn hand_over(handle: *mut c_void, pieces: Vec<Piece>, known: bool) -> Result<(), Status> {
    // SAFETY: the caller vouches for the handle.
    let stream = unsafe { stream(handle) }?;
    if known {
        stream.give(Task::Copies(pieces));
        return Ok(());
    }
    if STRICT.get() > 0 {
        return Err(PARAMETER);
    }
    let before = stream.synchronize(Duration::from_hours(1));
    match if before == OK { perform(&pieces) } else { before } {
        OK => Ok(()),
        failed => Err(failed),
    }
}

/// Copies at once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtMemcpy(
    destination: *mut c_void,
    most: usize,
    source: *const c_void,
    bytes: usize,
    kind: c_int,
) -> Status {
    let copy = (destination as usize, source as usize, bytes);
    let outcome = current().and_then(|_| {
        if bytes > most {
            return Err(PARAMETER);
        }
        resolve(&Lookup::new(), copy, kind)
    });
    match outcome {
        Ok((piece, _)) => perform(&[piece]),
        Err(status) => status,
    }
}

/// Gives a copy to a stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtMemcpyAsync(
    destination: *mut c_void,
    most: usize,
    source: *const c_void,
    bytes: usize,
    kind: c_int,
    handle: *mut c_void,
) -> Status {
    let copy = (destination as usize, source as usize, bytes);
    status(current().and_then(|_| {
        if bytes > most {
            return Err(PARAMETER);
        }
        let (piece, known) = resolve(&Lookup::new(), copy, kind)?;
        SINGLE_CALLS.fetch_add(1, Ordering::Relaxed);
        COPIES.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller vouches for it.
        unsafe { hand_over(handle, vec![piece], known) }
    }))
}

/// A place of memory: the device's number, and 0 for the host or 1 for a device.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Location {
    id: u32,
    kind: c_int,
}

/// From where to where copies go.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BatchAttribute {
    destination: Location,
    source: Location,
    reserved: [u8; 16],
}

/// Gives many copies to a stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtMemcpyBatchAsync(
    destinations: *mut *mut c_void,
    most: *mut usize,
    sources: *mut *mut c_void,
    sizes: *mut usize,
    count: usize,
    attributes: *mut BatchAttribute,
    firsts: *mut usize,
    attribute_count: usize,
    failed: *mut usize,
    handle: *mut c_void,
) -> Status {
    // SAFETY: the caller passes arrays of those lengths, and a place for the index.
    let (arrays, attributes, firsts) = unsafe {
        if !failed.is_null() {
            *failed = usize::MAX;
        }
        if NO_BATCH.get() > 0 {
            return UNSUPPORTED;
        }
        if count == 0 || count as u64 > MOST_BATCH.get() || attribute_count == 0 || attribute_count > count {
            return PARAMETER;
        }
        let arrays = (
            std::slice::from_raw_parts(destinations, count),
            std::slice::from_raw_parts(most, count),
            std::slice::from_raw_parts(sources, count),
            std::slice::from_raw_parts(sizes, count),
        );
        (
            arrays,
            std::slice::from_raw_parts(attributes, attribute_count),
            std::slice::from_raw_parts(firsts, attribute_count),
        )
    };
    let copies = arrays
        .0
        .iter()
        .zip(arrays.1)
        .zip(arrays.2)
        .zip(arrays.3)
        .enumerate();
    let copies = copies.map(|(index, (((destination, most), source), bytes))| {
        // the attribute holds from its first copy to the next attribute's
        let begun = firsts
            .iter()
            .zip(attributes)
            .take_while(|(first, _)| **first <= index);
        let kind = match begun
            .last()
            .map(|(_, one)| (one.destination.kind, one.source.kind))
        {
            Some((1, 0)) if bytes <= most => 1,
            Some((0, 1)) if bytes <= most => 2,
            // neither within the host nor within the device
            _ => WRONG_KIND,
        };
        (*destination as usize, *source as usize, *bytes, kind)
    });
    // SAFETY: the caller vouches for it.
    match unsafe { give_batch(copies, handle) } {
        Ok(()) => OK,
        Err((status, index)) => {
            if !failed.is_null() {
                // SAFETY: the caller passes a place for the index.
                unsafe { *failed = index };
            }
            status
        }
    }
}

/// No kind of copy.
const WRONG_KIND: c_int = -1;

/// Gives copies to a stream as one task: destination, source, bytes and kind of each. Fails with the index of the one that
/// is wrong, if it's one.
///
/// # Safety
/// The stream must be alive and the host's ranges valid.
pub unsafe fn give_batch(
    copies: impl Iterator<Item = (usize, usize, usize, c_int)>,
    handle: *mut c_void,
) -> Result<(), (Status, usize)> {
    let (mut pieces, mut known) = (Vec::new(), true);
    current().map_err(|status| (status, usize::MAX))?;
    let lookup = Lookup::new();
    for (index, (destination, source, bytes, kind)) in copies.enumerate() {
        let (piece, here) =
            resolve(&lookup, (destination, source, bytes), kind).map_err(|status| (status, index))?;
        pieces.push(piece);
        known &= here;
    }
    drop(lookup);
    BATCH_CALLS.fetch_add(1, Ordering::Relaxed);
    COPIES.fetch_add(pieces.len() as u64, Ordering::Relaxed);
    // SAFETY: the caller vouches for it.
    unsafe { hand_over(handle, pieces, known) }.map_err(|status| (status, usize::MAX))
}
