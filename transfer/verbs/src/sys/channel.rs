//! A queue pair together with what its posted requests need until they complete.

use std::ffi::c_int;
use std::fmt;
use std::ptr::null_mut;
use std::sync::Arc;

use kvstored_core::{Error, ErrorKind, Result};

use super::check;
use super::completions::{BATCH, Completions, Taken};
use super::layout::{OP_BIND, OP_INVALIDATE, OP_READ, OP_SEND, OP_WRITE, Piece, ReceiveRequest, SendRequest};
use super::memory::{Domain, Slice};
use super::queue_pair::{QueuePair, Route};
use super::window::{Exposure, Window};

/// A peer's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Address of the first byte, in the peer's process.
    pub address: u64,
    /// The key that the peer gave for it.
    pub key: u32,
}

/// Something for the device to do.
#[derive(Clone, Debug)]
pub enum Work {
    /// Send bytes to the peer's next receive.
    Send {
        /// The bytes.
        from: Slice,
    },
    /// Write the peer's memory.
    Write {
        /// The bytes.
        from: Slice,
        /// Where they go.
        to: Remote,
    },
    /// Read the peer's memory.
    Read {
        /// Where the bytes go.
        into: Slice,
        /// Where they are.
        from: Remote,
    },
    /// Make a key of our own worthless.
    Invalidate {
        /// The window's key.
        key: u32,
    },
}

/// A request that wasn't posted, with what was to be kept for it.
#[derive(Debug)]
pub struct Refused<T> {
    /// Why: `Busy` when the queue is full.
    pub error: Error,
    /// What the caller gave.
    pub token: T,
}

/// A request that completed.
#[derive(Debug)]
pub struct Finished<T> {
    /// What the caller gave.
    pub token: T,
    /// What it came to. After an error the queue pair is useless.
    pub outcome: Result<Success>,
}

/// What a successful completion tells.
#[derive(Clone, Copy, Debug, Default)]
pub struct Success {
    /// Bytes received (of a receive).
    pub bytes: u32,
}

struct Posted<T> {
    token: T,
    is_send: bool,
    /// Keeps the memory registered while the device may touch it.
    _memory: Option<Slice>,
}

/// A queue pair that keeps, for each posted request, the memory it touches and a token of the caller's.
pub struct Channel<T> {
    // destroyed before what is posted goes
    pair: QueuePair,
    posted: Vec<Option<Posted<T>>>,
    vacant: Vec<u32>,
    sends_left: u32,
    receives_left: u32,
    taken: Vec<Taken>,
}

impl<T> Channel<T> {
    /// A channel whose queue pair is prepared for that port: receives can be posted.
    pub fn new(domain: &Arc<Domain>, port: u8, sends: u32, receives: u32) -> Result<Self> {
        let pair = QueuePair::new(domain, sends, receives)?;
        pair.prepare(port)?;
        let all = sends.saturating_add(receives);
        Ok(Self {
            pair,
            posted: (0..all).map(|_| None).collect(),
            vacant: (0..all).rev().collect(),
            sends_left: sends,
            receives_left: receives,
            taken: Vec::with_capacity(BATCH),
        })
    }

    /// The queue pair's number.
    pub fn number(&self) -> u32 {
        self.pair.number()
    }

    /// Its completion queue, to wait for.
    pub fn completions(&self) -> &Completions {
        self.pair.completions()
    }

    /// The domain it's in.
    pub fn domain(&self) -> &Arc<Domain> {
        self.pair.domain()
    }

    /// Connects it.
    pub fn connect(&self, route: &Route) -> Result<()> {
        self.pair.connect(route)
    }

    /// Ends its work, see [`QueuePair::fail`].
    pub fn fail(&self) -> Result<()> {
        self.pair.fail()
    }

    /// How many more sends can be posted.
    pub fn sends_left(&self) -> u32 {
        self.sends_left
    }

    /// Posts a request; its memory is kept until it completes.
    pub fn post(&mut self, work: Work, token: T) -> Result<(), Refused<T>> {
        let (operation, memory, remote, invalidated) = match work {
            Work::Send { from } => (OP_SEND, Some(from), None, 0),
            Work::Write { from, to } => (OP_WRITE, Some(from), Some(to), 0),
            Work::Read { into, from } => (OP_READ, Some(into), Some(from), 0),
            Work::Invalidate { key } => (OP_INVALIDATE, None, None, key),
        };
        self.post_send(token, memory, operation, |request| {
            request.invalidated = invalidated;
            if let Some(remote) = remote {
                request.remote_address = remote.address;
                request.remote_key = remote.key;
            }
        })
    }

    /// Binds a window that isn't bound to a range: with the key returned, the peer may touch it once the binding is done,
    /// which is before any request posted later.
    pub fn bind(
        &mut self,
        window: &mut Window,
        slice: &Slice,
        exposure: Exposure,
        token: T,
    ) -> Result<u32, Refused<T>> {
        if window.is_bound() || slice.length() == 0 {
            let error = Error::internal("a memory window is bound twice, or to nothing");
            return Err(Refused { error, token });
        }
        let key = window.next_key();
        let raw = window.raw().as_ptr();
        self.post_send(token, None, OP_BIND, |request| {
            request.window = raw;
            request.window_key = key;
            request.region = slice.registration().raw().as_ptr();
            request.window_address = slice.address();
            request.window_length = slice.length();
            request.window_access = exposure.bits();
        })?;
        window.bound(key, slice.clone());
        Ok(key)
    }

    fn post_send(
        &mut self,
        token: T,
        memory: Option<Slice>,
        operation: c_int,
        set: impl FnOnce(&mut SendRequest),
    ) -> Result<(), Refused<T>> {
        let Some(left) = self.sends_left.checked_sub(1) else {
            return Err(full(token));
        };
        // SAFETY: zeros are a value of it: numbers and null pointers.
        let mut request: SendRequest = unsafe { std::mem::zeroed() };
        request.operation = operation;
        set(&mut request);
        let raw = self.pair.raw().as_ptr();
        let operations = self.pair.domain().device().context();
        self.put(token, memory, true, |id, piece, count| {
            request.id = id;
            request.pieces = piece;
            request.count = count;
            let mut bad = null_mut();
            // SAFETY: the context is open.
            match unsafe { (*operations.as_ptr()).operations.post_send } {
                // SAFETY: the pair is alive; the request and its piece live through the call; the memory it names stays
                // registered until the completion is taken or the pair is destroyed.
                Some(post) => check(
                    unsafe { post(raw, &raw mut request, &raw mut bad) },
                    "can't post an RDMA request",
                ),
                None => Err(Error::new(
                    ErrorKind::Unsupported,
                    "this RDMA provider can't send",
                )),
            }
        })?;
        self.sends_left = left;
        Ok(())
    }

    /// Posts a receive of at most the slice's length.
    pub fn post_receive(&mut self, into: Slice, token: T) -> Result<(), Refused<T>> {
        let Some(left) = self.receives_left.checked_sub(1) else {
            return Err(full(token));
        };
        let raw = self.pair.raw().as_ptr();
        let operations = self.pair.domain().device().context();
        self.put(token, Some(into), false, |id, piece, count| {
            let mut request = ReceiveRequest {
                id,
                next: null_mut(),
                pieces: piece,
                count,
            };
            let mut bad = null_mut();
            // SAFETY: the context is open.
            match unsafe { (*operations.as_ptr()).operations.post_receive } {
                // SAFETY: as for sends.
                Some(post) => check(
                    unsafe { post(raw, &raw mut request, &raw mut bad) },
                    "can't post an RDMA receive",
                ),
                None => Err(Error::new(
                    ErrorKind::Unsupported,
                    "this RDMA provider can't receive",
                )),
            }
        })?;
        self.receives_left = left;
        Ok(())
    }

    /// Keeps the token and the memory in a vacant place, whose number becomes the request's, and posts it.
    fn put(
        &mut self,
        token: T,
        memory: Option<Slice>,
        is_send: bool,
        post: impl FnOnce(u64, *mut Piece, c_int) -> Result<()>,
    ) -> Result<(), Refused<T>> {
        let mut piece = None;
        if let Some(slice) = &memory {
            let Ok(length) = u32::try_from(slice.length()) else {
                let error = Error::new(ErrorKind::TooLarge, "an RDMA request of 4 GiB or more");
                return Err(Refused { error, token });
            };
            if !Arc::ptr_eq(slice.registration().domain(), self.pair.domain()) {
                let error = Error::internal("the memory is registered in another domain");
                return Err(Refused { error, token });
            }
            piece = Some(Piece {
                address: slice.address(),
                length,
                key: slice.registration().local_key(),
            });
        }
        let Some(place) = self.vacant.pop() else {
            return Err(full(token));
        };
        let (pieces, count) = piece
            .as_mut()
            .map_or((null_mut(), 0), |piece| (std::ptr::from_mut(piece), 1));
        match (
            post(u64::from(place), pieces, count),
            self.posted.get_mut(place as usize),
        ) {
            (Ok(()), Some(entry)) => {
                *entry = Some(Posted {
                    token,
                    is_send,
                    _memory: memory,
                });
                Ok(())
            }
            (Err(error), _) => {
                self.vacant.push(place);
                Err(Refused { error, token })
            }
            (Ok(()), None) => Err(Refused {
                error: Error::internal("a place that isn't there"),
                token,
            }),
        }
    }

    /// Takes a batch of completed requests. False when there was none.
    pub fn poll(&mut self, finished: &mut Vec<Finished<T>>) -> Result<bool> {
        self.pair.completions().poll(&mut self.taken)?;
        let any = !self.taken.is_empty();
        for taken in self.taken.drain(..) {
            let entry = usize::try_from(taken.id)
                .ok()
                .and_then(|place| self.posted.get_mut(place));
            let Some(posted) = entry.and_then(Option::take) else {
                return Err(Error::internal("an RDMA completion of no request").with("id", taken.id));
            };
            self.vacant.push(taken.id as u32);
            if posted.is_send {
                self.sends_left += 1;
            } else {
                self.receives_left += 1;
            }
            finished.push(Finished {
                token: posted.token,
                outcome: taken.outcome.map(|bytes| Success { bytes }),
            });
        }
        Ok(any)
    }
}

fn full<T>(token: T) -> Refused<T> {
    Refused {
        error: Error::new(ErrorKind::Busy, "the queue pair is full"),
        token,
    }
}

impl<T> fmt::Debug for Channel<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Channel")
            .field("pair", &self.pair)
            .finish_non_exhaustive()
    }
}
