//! Engines of several ranks in this process, with memory whose every byte tells where it belongs.

use std::time::{Duration, Instant};

use kvstored_core::Runtime;
use kvstored_transfer::{EngineSettings, Region, TransportKind};

use crate::{Description, Handoff, HandoffSettings, Layer, Piece, Pulled, Rank, RemoteRequest};

/// Far more than anything here takes.
pub const PATIENCE: Duration = Duration::from_mins(1);
pub const BLOCKS: u32 = 24;
const TOKENS: u32 = 4;

pub fn now() -> Instant {
    Runtime::system().clock.now()
}

/// Waits until something is there.
pub fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let until = Runtime::system().deadline(PATIENCE);
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(now() < until, "never: {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// How a model's blocks are laid out.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    pub layers: usize,
    pub heads: u32,
    pub pieces: usize,
    /// Rows of a block: tokens where heads come last, 1 where they come first.
    pub rows: u32,
    /// Bytes of one head in one row.
    pub head_bytes: u64,
}

/// Heads behind tokens.
pub const NHD: Model = Model {
    layers: 4,
    heads: 4,
    pieces: 2,
    rows: TOKENS,
    head_bytes: 32,
};
/// Heads before tokens.
pub const HND: Model = Model {
    rows: 1,
    head_bytes: 128,
    ..NHD
};
/// One latent head for all ranks.
pub const MLA: Model = Model {
    heads: 1,
    pieces: 1,
    rows: 1,
    head_bytes: 1000,
    ..NHD
};

impl Model {
    fn rank(&self, tp: (u32, u32), pp: (u32, u32)) -> Rank {
        let (heads, first_head) = if tp.1 <= self.heads {
            (self.heads / tp.1, tp.0 * (self.heads / tp.1))
        } else {
            (1, tp.0 / (tp.1 / self.heads))
        };
        Rank {
            total_heads: self.heads,
            first_head,
            heads,
            tp_rank: tp.0,
            tp_size: tp.1,
            pp_rank: pp.0,
            pp_size: pp.1,
        }
    }

    fn block_bytes(&self, rank: &Rank) -> u64 {
        u64::from(self.rows) * u64::from(rank.heads) * self.head_bytes
    }
}

pub fn settings(transport: TransportKind) -> HandoffSettings {
    HandoffSettings {
        engine: EngineSettings {
            listen: Some("127.0.0.1:0".parse().unwrap()),
            transports: vec![transport],
            peer_timeout: Duration::from_secs(2),
            ..EngineSettings::default()
        },
        ..HandoffSettings::default()
    }
}

/// One rank of an engine.
pub struct Worker {
    pub handoff: Handoff,
    model: Model,
    rank: Rank,
    layers: std::ops::Range<usize>,
    memory: Region,
    blocks: u32,
}

impl Worker {
    pub fn start(
        settings: HandoffSettings,
        model: Model,
        blocks: u32,
        rank: Rank,
        engine_id: &str,
        fingerprint: &[u8],
    ) -> Self {
        let handoff = Handoff::start(settings, Runtime::system()).unwrap();
        let per = model.layers / rank.pp_size as usize;
        let layers = rank.pp_rank as usize * per..(rank.pp_rank as usize + 1) * per;
        let piece_bytes = model.block_bytes(&rank) * u64::from(blocks);
        let length = piece_bytes as usize * layers.len() * model.pieces;
        let memory = handoff.allocate(length).unwrap();
        let mut next = memory.address() as usize;
        let description = Description {
            engine_id: engine_id.to_owned(),
            fingerprint: fingerprint.to_vec(),
            block_tokens: TOKENS,
            rank,
            layers: layers
                .clone()
                .map(|layer| Layer {
                    name: format!("layers.{layer}"),
                    pieces: (0..model.pieces)
                        .map(|_| {
                            let block = model.block_bytes(&rank);
                            let piece =
                                Piece::new(next, piece_bytes, block, block, model.rows, rank.heads).unwrap();
                            next += piece_bytes as usize;
                            piece
                        })
                        .collect(),
                })
                .collect(),
        };
        // SAFETY: the memory lives until the hand-off is gone, and tests write to blocks by raw copies only.
        #[allow(unsafe_code)]
        unsafe { handoff.describe(&description) }.unwrap();
        Self {
            handoff,
            model,
            rank,
            layers,
            memory,
            blocks,
        }
    }

    /// A block's bytes of one piece if it holds that content.
    fn bytes(&self, layer: usize, piece: usize, content: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        for row in 0..self.model.rows {
            for head in self.rank.first_head..self.rank.first_head + self.rank.heads {
                let place = [
                    layer as u64,
                    piece as u64,
                    u64::from(row),
                    u64::from(head),
                    content,
                ];
                let seed = place.iter().fold(7u64, |seed, number| {
                    (seed ^ number)
                        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
                        .rotate_left(23)
                });
                let byte = |index: u64| (seed.wrapping_mul(2 * index + 1) >> 37) as u8;
                bytes.extend((0..self.model.head_bytes).map(byte));
            }
        }
        bytes
    }

    fn offset(&self, layer: usize, piece: usize, block: u32) -> u64 {
        let piece = (layer - self.layers.start) * self.model.pieces + piece;
        let index = piece as u64 * u64::from(self.blocks) + u64::from(block);
        index * self.model.block_bytes(&self.rank)
    }

    /// Writes that content to a block.
    pub fn fill(&self, block: u32, content: u64) {
        for layer in 0..self.layers.len() {
            self.fill_layer(layer, block, content);
        }
    }

    /// The same in one of the rank's layers.
    pub fn fill_layer(&self, layer: usize, block: u32, content: u64) {
        let layer = self.layers.start + layer;
        for piece in 0..self.model.pieces {
            let bytes = self.bytes(layer, piece, content);
            self.memory
                .write(self.offset(layer, piece, block), &bytes)
                .unwrap();
        }
    }

    /// How many layers it has.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Whether a block holds that content.
    pub fn holds(&self, block: u32, content: u64) -> bool {
        self.layers.clone().all(|layer| {
            (0..self.model.pieces).all(|piece| {
                let wanted = self.bytes(layer, piece, content);
                let mut found = vec![0; wanted.len()];
                self.memory
                    .read(self.offset(layer, piece, block), &mut found)
                    .unwrap();
                found == wanted
            })
        })
    }

    pub fn address(&self) -> String {
        self.handoff.address().unwrap().to_string()
    }

    /// The end of its next pull.
    pub fn pulled(&self) -> Pulled {
        let mut all = eventually("the pull is over", || {
            Some(self.handoff.take_pulled()).filter(|all| !all.is_empty())
        });
        assert_eq!(all.len(), 1);
        all.remove(0)
    }

    /// Waits until a request is released, and returns why.
    pub fn released(&self, request: &str) -> &'static str {
        let mut all = eventually("the request is released", || {
            Some(self.handoff.take_released()).filter(|all| !all.is_empty())
        });
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].request, request);
        all.remove(0).reason.name()
    }

    /// Nothing is left of any hold or pull.
    pub fn is_clean(&self) -> bool {
        let statistics = self.handoff.statistics();
        let left = [
            statistics.held_requests,
            statistics.held_blocks,
            statistics.publications,
            statistics.pending_pulls,
        ];
        left == [0; 4]
    }
}

/// All ranks of an engine.
pub struct Engine {
    pub id: String,
    pub ranks: Vec<Worker>,
}

impl Engine {
    pub fn start(transport: TransportKind, model: Model, id: &str, tp: u32, pp: u32) -> Self {
        Self::with(&settings(transport), model, BLOCKS, id, tp, pp)
    }

    pub fn with(settings: &HandoffSettings, model: Model, blocks: u32, id: &str, tp: u32, pp: u32) -> Self {
        let rank = |index| {
            let rank = model.rank((index % tp, tp), (index / tp, pp));
            Worker::start(settings.clone(), model, blocks, rank, id, b"same")
        };
        Self {
            id: id.to_owned(),
            ranks: (0..tp * pp).map(rank).collect(),
        }
    }

    pub fn request(&self, request: &str) -> RemoteRequest {
        RemoteRequest {
            engine_id: self.id.clone(),
            request: request.to_owned(),
            producers: self.ranks.iter().map(Worker::address).collect(),
        }
    }

    /// Fills blocks with contents 100, 101, … and holds them.
    pub fn hold(&self, request: &str, blocks: &[u32]) {
        for rank in &self.ranks {
            for (content, block) in (100..).zip(blocks) {
                rank.fill(*block, content);
            }
            rank.handoff.hold(request, blocks, PATIENCE).unwrap();
        }
    }

    /// Follows on every rank.
    pub fn follow(&self, request: &str, from: &RemoteRequest, blocks: &[u32], first: u32) {
        for rank in &self.ranks {
            rank.handoff
                .follow(request, from.clone(), blocks.to_vec(), first, PATIENCE)
                .unwrap();
        }
    }

    /// Pulls on every rank.
    pub fn pull(&self, request: &str, from: RemoteRequest, blocks: &[u32], first: u32) {
        for rank in &self.ranks {
            rank.handoff
                .pull(request, from.clone(), blocks.to_vec(), first, PATIENCE)
                .unwrap();
        }
    }
}

/// One rank on either side.
pub fn pair(transport: TransportKind, model: Model) -> (Engine, Engine) {
    (
        Engine::start(transport, model, "prefill", 1, 1),
        Engine::start(transport, model, "decode", 1, 1),
    )
}
