//! Nodes and clients together, over real sockets and real memory.

mod contract;
mod drains;
mod fake_master;
mod fake_state;
mod faults;
mod measure;
mod others;
mod pipeline;
mod processes;
mod store;
mod tier;

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::Runtime;
use kvstored_transfer::{EngineSettings, TransferEngine};

use crate::directory::Directory;
use crate::{ClientSettings, NodeSettings, Piece, PoolClient, StorageNode, whole_key};
use fake_master::FakeMaster;

/// An end of tests that hang.
fn soon() -> Instant {
    Runtime::system().deadline(Duration::from_secs(20))
}

/// One participant: an engine, perhaps memory that it lends, and a client.
struct Member {
    engine: Arc<TransferEngine>,
    node: Option<Arc<StorageNode>>,
    client: Arc<PoolClient>,
    buffer: Piece,
}

const BUFFER_BYTES: usize = 4 << 20;

impl Member {
    fn new(master: &Arc<FakeMaster>, lends: u64) -> Self {
        Self::with(master, lends, ClientSettings::default())
    }

    fn with(master: &Arc<FakeMaster>, lends: u64, settings: ClientSettings) -> Self {
        let runtime = Runtime::system();
        let engine = TransferEngine::start(
            EngineSettings {
                listen: Some("127.0.0.1:0".parse().unwrap()),
                ..EngineSettings::default()
            },
            runtime.clone(),
        )
        .unwrap();
        let directory: Arc<dyn Directory> = master.clone();
        let node = (lends > 0).then(|| {
            let settings = NodeSettings {
                segment_bytes: lends,
                heartbeat: Duration::from_millis(20),
                ..NodeSettings::default()
            };
            StorageNode::start(settings, engine.clone(), directory.clone(), runtime.clone()).unwrap()
        });
        if let Some(node) = &node {
            node.wait_mounted(soon()).unwrap();
        }
        let client = PoolClient::new(settings, engine.clone(), directory, node.clone(), runtime);
        let buffer = client.allocate(BUFFER_BYTES).unwrap();
        Self {
            engine,
            node,
            client,
            buffer,
        }
    }

    /// A piece of the member's own memory.
    fn piece(&self, offset: usize, length: usize) -> Piece {
        assert!(offset + length <= BUFFER_BYTES);
        Piece {
            address: self.buffer.address + offset,
            length,
        }
    }

    fn fill(&self, offset: usize, bytes: &[u8]) -> Piece {
        let piece = self.piece(offset, bytes.len());
        memory::copy_in(piece, bytes);
        piece
    }
}

use memory::copy_out as bytes_of;

/// The default tenant's key.
fn k(name: impl AsRef<[u8]>) -> Box<[u8]> {
    whole_key("", name.as_ref()).unwrap()
}

/// Bytes that differ by their seed.
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Waits until something holds, with an end.
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let until = soon();
    let runtime = Runtime::system();
    while !condition() {
        assert!(runtime.clock.now() < until, "{what} never came");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Raw copies between a test's slices and registered memory.
mod memory {
    #![allow(unsafe_code)]

    use crate::Piece;

    pub fn copy_in(piece: Piece, bytes: &[u8]) {
        assert_eq!(piece.length, bytes.len());
        // SAFETY: the piece is memory that the test's own client allocated.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), piece.address as *mut u8, bytes.len()) };
    }

    pub fn copy_out(piece: Piece) -> Vec<u8> {
        let mut bytes = vec![0; piece.length];
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(piece.address as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        bytes
    }
}
