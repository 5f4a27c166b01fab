//! Two engines in this process, with memory on either side.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result, Runtime};

use crate::{
    EngineSettings, Grant, GrantRequest, Peer, Publication, Region, Rights, Transfer, TransferEngine,
    TransferEntry, TransferKind, TransportKind,
};

/// Far more than anything here takes.
pub const PATIENCE: Duration = Duration::from_mins(1);

pub fn soon() -> Instant {
    Runtime::system().deadline(PATIENCE)
}

pub fn shortly() -> Instant {
    Runtime::system().deadline(Duration::from_millis(1))
}

/// Lets other threads go on for a while.
pub fn pause(duration: Duration) {
    let until = Runtime::system().deadline(duration);
    loop {
        let left = until.saturating_duration_since(Runtime::system().clock.now());
        if left.is_zero() {
            return;
        }
        std::thread::park_timeout(left);
    }
}

/// Waits until something is so.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = soon();
    while !is_so() {
        assert!(Runtime::system().clock.now() < until, "never: {what}");
        pause(Duration::from_millis(2));
    }
}

/// Runs each of these tests over sockets, through shared memory, and over RDMA.
macro_rules! over_each_transport {
    ($($name:ident),+ $(,)?) => {
        mod over_tcp {
            $(#[test] fn $name() { super::$name(crate::TransportKind::Tcp); })+
        }
        mod over_shm {
            $(#[test] fn $name() { super::$name(crate::TransportKind::Shm); })+
        }
        mod over_rdma {
            $(
                #[test]
                #[ignore = "needs an RDMA device; `cargo xtask rdma` has one"]
                fn $name() { super::$name(crate::TransportKind::Rdma); }
            )+
        }
    };
}
pub(super) use over_each_transport;

/// The same within this process, also over a plugged-in transport that copies.
macro_rules! over_each_transport_here {
    ($($name:ident),+ $(,)?) => {
        super::rig::over_each_transport! { $($name),+ }
        mod over_ascend {
            $(#[test] fn $name() { super::$name(crate::TransportKind::Ascend); })+
        }
    };
}
pub(super) use over_each_transport_here;

/// Settings with that transport and no other.
pub fn over(kind: TransportKind, settings: EngineSettings) -> EngineSettings {
    EngineSettings {
        transports: vec![kind],
        ascend: Some(super::fabric::shared()),
        ..settings
    }
}

/// Settings of an engine that listens on a loopback address.
pub fn listening() -> EngineSettings {
    EngineSettings {
        listen: Some("127.0.0.1:0".parse().unwrap()),
        transports: vec![TransportKind::Tcp],
        // longer than any test: nothing that is stuck is rescued by a sign of life
        peer_timeout: PATIENCE * 10,
        ..EngineSettings::default()
    }
}

pub fn asking() -> EngineSettings {
    EngineSettings {
        listen: None,
        ..listening()
    }
}

pub fn start(settings: EngineSettings) -> Arc<TransferEngine> {
    TransferEngine::start(settings, Runtime::system()).unwrap()
}

/// Bytes that differ from place to place.
pub fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub fn contents(region: &Region, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    region.read(offset, &mut bytes).unwrap();
    bytes
}

/// A serving engine with published memory, and one that asks it.
pub struct Rig {
    pub server: Arc<TransferEngine>,
    pub client: Arc<TransferEngine>,
    pub peer: Peer,
    pub remote: Region,
    pub local: Region,
    pub publication: Publication,
    pub grant: Grant,
}

impl Rig {
    pub fn new(bytes: usize) -> Self {
        Self::with(bytes, listening(), asking())
    }

    pub fn over(kind: TransportKind, bytes: usize) -> Self {
        let rig = Self::with(bytes, over(kind, listening()), over(kind, asking()));
        assert_eq!(rig.peer.transport(), kind);
        rig
    }

    pub fn with(bytes: usize, serving: EngineSettings, asking: EngineSettings) -> Self {
        let server = start(serving);
        let client = start(asking);
        let peer = client
            .open_peer(&server.address().unwrap().to_string(), soon())
            .unwrap();
        assert_eq!(peer.id(), server.identity());
        let remote = server.allocate(bytes).unwrap();
        let local = client.allocate(bytes).unwrap();
        let publication = server.publish(remote.id(), 0, bytes as u64).unwrap();
        let grant = grant(&server, &client, &publication, Rights::ReadWrite);
        Self {
            server,
            client,
            peer,
            remote,
            local,
            publication,
            grant,
        }
    }

    pub fn entry(&self, local_offset: u64, remote_offset: u64, length: u64) -> TransferEntry {
        self.entry_with(self.grant, local_offset, remote_offset, length)
    }

    pub fn entry_with(
        &self,
        grant: Grant,
        local_offset: u64,
        remote_offset: u64,
        length: u64,
    ) -> TransferEntry {
        TransferEntry {
            local: self.local.id(),
            local_offset,
            grant,
            remote_offset,
            length,
        }
    }

    pub fn submit(&self, kind: TransferKind, entries: Vec<TransferEntry>) -> Result<Transfer> {
        self.client.submit(&self.peer, kind, entries, soon())
    }

    pub fn run(&self, kind: TransferKind, entries: Vec<TransferEntry>) -> Result<()> {
        self.submit(kind, entries)?.wait(soon())
    }

    /// One small read with that grant; what it fails with.
    pub fn refusal(&self, kind: TransferKind, grant: Grant) -> ErrorKind {
        self.run(kind, vec![self.entry_with(grant, 0, 0, 64)])
            .expect_err("it is refused")
            .kind()
    }

    /// The rig still works.
    pub fn check(&self) {
        self.run(TransferKind::Read, vec![self.entry(0, 0, 4096)])
            .unwrap();
        self.run(TransferKind::Write, vec![self.entry(0, 0, 4096)])
            .unwrap();
    }
}

pub fn grant(
    server: &TransferEngine,
    client: &TransferEngine,
    publication: &Publication,
    rights: Rights,
) -> Grant {
    server
        .grant(GrantRequest {
            peer: client.identity(),
            publication: publication.id(),
            offset: 0,
            length: publication.length(),
            rights,
            expires_in: Duration::from_hours(1),
        })
        .unwrap()
}

/// How many malformed frames go to a listening port: as many as `KVSTORED_MALFORMED_FRAMES` says, for a long run, or what
/// the ordinary run has time for.
pub fn malformed_frames(ordinary: u64) -> u64 {
    std::env::var("KVSTORED_MALFORMED_FRAMES").map_or(ordinary, |count| count.parse().unwrap())
}

/// Open descriptors of this process.
pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Resident bytes of this process.
pub fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Ends in one of the ways that a peer's death may.
pub fn is_loss(error: &Error) -> bool {
    error.kind() == ErrorKind::Unavailable
}
