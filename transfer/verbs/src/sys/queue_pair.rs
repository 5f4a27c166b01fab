//! Reliable connected queue pairs and their states.

use std::fmt;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use kvstored_core::{Error, Result};

use super::completions::Completions;
use super::layout::{
    ACCESS_REMOTE_READ, ACCESS_REMOTE_WRITE, PairAttributes, PairCapacity, PairSetup, RELIABLE_CONNECTION,
    RawPair, STATE_ERROR, STATE_INIT, STATE_READY_TO_RECEIVE, STATE_READY_TO_SEND, mask,
};
use super::memory::Domain;
use super::{check, last_error};

/// How long a receiver that isn't ready asks the sender to wait: code 12 is 0.64 ms.
const NOT_READY_TIMER: u8 = 12;
/// Not 7, which means for ever.
const NOT_READY_RETRIES: u8 = 6;
/// Not 7 either: soft-RoCE takes that for ever as well.
const RETRIES: u8 = 6;
const HOP_LIMIT: u8 = 64;

/// How the packets of a queue pair get to the peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Port of this device, counted from 1.
    pub port: u8,
    /// Index of the GID to send from; `None` for an InfiniBand fabric's local addresses.
    pub own_gid: Option<u8>,
    /// The peer's GID.
    pub gid: [u8; 16],
    /// The peer's address on an InfiniBand fabric.
    pub lid: u16,
    /// The peer's queue pair.
    pub number: u32,
    /// The first packet's number that we send.
    pub own_psn: u32,
    /// The first packet's number that the peer sends.
    pub psn: u32,
    /// Largest packet, as the ABI numbers them.
    pub mtu: u8,
    /// RDMA reads that the peer may have under way.
    pub reads_in: u8,
    /// RDMA reads that we may have under way.
    pub reads_out: u8,
    /// A packet isn't acknowledged in 4.096 µs × 2^this: it's sent again, 6 times.
    pub timeout: u8,
}

/// A reliable connected queue pair. Every posted request completes with an entry in its completion queue.
pub struct QueuePair {
    domain: Arc<Domain>,
    raw: NonNull<RawPair>,
    completions: Completions,
}

// SAFETY: the library's objects may be used from any thread, and several at once.
unsafe impl Send for QueuePair {}
// SAFETY: as above.
unsafe impl Sync for QueuePair {}

impl QueuePair {
    /// A new one, in its first state, with a completion queue of its own.
    pub fn new(domain: &Arc<Domain>, sends: u32, receives: u32) -> Result<Self> {
        let device = domain.device();
        let completions = Completions::new(device, sends.saturating_add(receives))?;
        let mut setup = PairSetup {
            owner: null_mut(),
            send_completions: completions.raw().as_ptr(),
            receive_completions: completions.raw().as_ptr(),
            shared_receives: null_mut(),
            capacity: PairCapacity {
                sends,
                receives,
                send_pieces: 1,
                receive_pieces: 1,
                inline_bytes: 0,
            },
            kind: RELIABLE_CONNECTION,
            signal_all: 1,
        };
        // SAFETY: domain and queue are alive, and the pair holds them.
        let raw = unsafe { (device.library().create_qp)(domain.raw().as_ptr(), &raw mut setup) };
        let raw = NonNull::new(raw).ok_or_else(|| last_error("can't make a queue pair"))?;
        Ok(Self {
            domain: domain.clone(),
            raw,
            completions,
        })
    }

    /// The number that the peer knows it by.
    pub fn number(&self) -> u32 {
        // SAFETY: the pair lives as long as this.
        unsafe { (*self.raw.as_ptr()).number }
    }

    /// Its completion queue.
    pub fn completions(&self) -> &Completions {
        &self.completions
    }

    /// The domain it's in.
    pub fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }

    pub(super) fn raw(&self) -> NonNull<RawPair> {
        self.raw
    }

    fn modify(&self, what: &str, mask: i32, set: impl FnOnce(&mut PairAttributes)) -> Result<()> {
        // SAFETY: zeros are a value of these plain numbers.
        let mut attributes: PairAttributes = unsafe { std::mem::zeroed() };
        set(&mut attributes);
        // SAFETY: the pair is alive and the structure is the library's.
        let code = unsafe {
            (self.domain.device().library().modify_qp)(self.raw.as_ptr(), &raw mut attributes, mask)
        };
        check(code, what).map_err(|error| error.with("pair", self.number()))
    }

    /// From its first state to the one in which receives can be posted.
    pub fn prepare(&self, port: u8) -> Result<()> {
        let mask = mask::STATE | mask::PKEY_INDEX | mask::PORT | mask::ACCESS;
        self.modify("a queue pair can't be prepared", mask, |attributes| {
            attributes.state = STATE_INIT;
            attributes.port = port;
            // what a window allows; without a window a peer can touch nothing
            attributes.access = ACCESS_REMOTE_READ | ACCESS_REMOTE_WRITE;
        })
    }

    /// Connects a prepared one with the peer's.
    pub fn connect(&self, route: &Route) -> Result<()> {
        if route.mtu == 0 || route.mtu > 5 {
            return Err(Error::invalid(format!(
                "no packet size has the number {}",
                route.mtu
            )));
        }
        let mask = mask::STATE
            | mask::ADDRESS
            | mask::PATH_MTU
            | mask::PEER_NUMBER
            | mask::RECEIVE_PSN
            | mask::READS_IN
            | mask::NOT_READY_TIMER;
        self.modify(
            "a queue pair can't be made ready to receive",
            mask,
            |attributes| {
                attributes.state = STATE_READY_TO_RECEIVE;
                attributes.path_mtu = i32::from(route.mtu);
                attributes.peer_number = route.number;
                attributes.receive_psn = route.psn;
                attributes.reads_in = route.reads_in;
                attributes.not_ready_timer = NOT_READY_TIMER;
                attributes.address.port = route.port;
                attributes.address.lid = route.lid;
                if let Some(index) = route.own_gid {
                    attributes.address.has_gid = 1;
                    attributes.address.gid = route.gid;
                    attributes.address.own_gid_index = index;
                    attributes.address.hop_limit = HOP_LIMIT;
                }
            },
        )?;
        let mask = mask::STATE
            | mask::TIMEOUT
            | mask::RETRIES
            | mask::NOT_READY_RETRIES
            | mask::SEND_PSN
            | mask::READS_OUT;
        self.modify("a queue pair can't be made ready to send", mask, |attributes| {
            attributes.state = STATE_READY_TO_SEND;
            attributes.timeout = route.timeout;
            attributes.retries = RETRIES;
            attributes.not_ready_retries = NOT_READY_RETRIES;
            attributes.send_psn = route.own_psn;
            attributes.reads_out = route.reads_out;
        })
    }

    /// Ends its work: what is posted completes as flushed, and the peer can reach nothing through it any more.
    pub fn fail(&self) -> Result<()> {
        self.modify("a queue pair can't be stopped", mask::STATE, |attributes| {
            attributes.state = STATE_ERROR;
        })
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // SAFETY: the pair is destroyed once; the device touches nothing for it afterwards.
        let code = unsafe { (self.domain.device().library().destroy_qp)(self.raw.as_ptr()) };
        if code != 0 {
            tracing::error!(code, "a queue pair can't be destroyed");
        }
    }
}

impl fmt::Debug for QueuePair {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("QueuePair")
            .field("number", &self.number())
            .finish_non_exhaustive()
    }
}
