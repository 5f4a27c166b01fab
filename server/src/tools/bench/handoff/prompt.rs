//! A rank's KV memory: that of two prompts, of which one is handed over.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use kvstored_handoff::{Description, Handoff, HandoffSettings, Layer, Piece, Rank};
use kvstored_transfer::{Region, TransferEngine};

use super::super::geometry::Geometry;
use super::super::transfer::asking::engine_settings;
use super::super::transfer::cases::Transport;
use crate::tools::buffer::Buffer;

/// How long the end of what is under way is waited for.
const CLOSE: Duration = Duration::from_secs(10);

/// What is handed over.
#[derive(Clone, Copy, Debug)]
pub struct Prompt {
    /// Shape of the blocks.
    pub geometry: Geometry,
    /// How many.
    pub blocks: u32,
    /// Tokens of each.
    pub block_tokens: u32,
    /// Whether the memory is the process's own.
    pub registered: bool,
}

/// Where a prompt's blocks lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// One behind the other.
    Together,
    /// With a block of somebody else's between each two.
    Apart,
}

impl Spread {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Together, Self::Apart];

    /// Its word in names of figures.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Together => "together",
            Self::Apart => "apart",
        }
    }

    /// In words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Together => "one behind the other on both sides",
            Self::Apart => "no two of them side by side on either side",
        }
    }
}

impl Prompt {
    /// Bytes of all its blocks.
    pub fn bytes(&self) -> usize {
        self.geometry.block_bytes() * self.blocks as usize
    }

    /// Runs of bytes in a rank's memory, each of which is its own on both sides: offset and length.
    pub fn runs(&self, spread: Spread) -> Vec<(usize, usize)> {
        let block = self.geometry.tensor_bytes as usize;
        let pieces = self.geometry.layers * self.geometry.tensors;
        let starts = (0..pieces).map(|piece| piece * block * self.room() as usize);
        match spread {
            Spread::Together => starts
                .map(|start| (start, block * self.blocks as usize))
                .collect(),
            Spread::Apart => starts
                .flat_map(|start| {
                    self.ids(spread)
                        .into_iter()
                        .map(move |id| (start + id as usize * block, block))
                })
                .collect(),
        }
    }

    /// Numbers of its blocks.
    pub fn ids(&self, spread: Spread) -> Vec<u32> {
        let step = match spread {
            Spread::Together => 1,
            Spread::Apart => 2,
        };
        (0..self.blocks).map(|block| block * step).collect()
    }

    /// Blocks that a rank has room for.
    fn room(&self) -> u32 {
        self.blocks * 2
    }

    /// Bytes of a rank's memory.
    pub fn memory_bytes(&self) -> usize {
        self.geometry.block_bytes() * self.room() as usize
    }

    fn description(&self, engine_id: &str, address: usize) -> Result<Description> {
        let block = u64::from(self.geometry.tensor_bytes);
        let length = block * u64::from(self.room());
        let piece =
            |number: usize| Piece::new(address + number * length as usize, length, block, block, 1, 1);
        let layer = |number: usize| {
            let first = number * self.geometry.tensors;
            Ok(Layer {
                name: format!("layers.{number}"),
                pieces: (first..first + self.geometry.tensors)
                    .map(piece)
                    .collect::<Result<_>>()?,
            })
        };
        Ok(Description {
            engine_id: engine_id.to_owned(),
            fingerprint: b"bench".to_vec(),
            block_tokens: self.block_tokens,
            rank: Rank {
                total_heads: 1,
                first_head: 0,
                heads: 1,
                tp_rank: 0,
                tp_size: 1,
                pp_rank: 0,
                pp_size: 1,
            },
            layers: (0..self.geometry.layers).map(layer).collect::<Result<_>>()?,
        })
    }
}

/// Memory that transfers read and write.
enum Memory {
    /// An engine's own.
    Own(Region),
    /// The process's, registered with an engine.
    Registered(Buffer, Option<Region>),
}

impl Memory {
    fn address(&mut self) -> usize {
        match self {
            Self::Own(region) => region.address() as usize,
            Self::Registered(buffer, _) => buffer.as_mut_slice().as_mut_ptr().expose_provenance(),
        }
    }

    /// Writes to it, while nothing moves.
    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Own(region) => region.write(offset as u64, bytes),
            Self::Registered(buffer, _) => {
                let target = buffer.as_mut_slice().get_mut(offset..offset + bytes.len());
                target.ok_or_else(outside)?.copy_from_slice(bytes);
                Ok(())
            }
        }
    }

    /// Reads it, while nothing moves.
    fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        match self {
            Self::Own(region) => region.read(offset as u64, bytes),
            Self::Registered(buffer, _) => {
                let source = buffer.as_slice().get(offset..offset + bytes.len());
                bytes.copy_from_slice(source.ok_or_else(outside)?);
                Ok(())
            }
        }
    }
}

fn outside() -> Error {
    Error::internal("bytes outside the memory")
}

/// What lies in a run of bytes at that offset.
fn content(offset: usize, length: usize) -> Vec<u8> {
    let words = (0..length as u64)
        .step_by(8)
        .map(|at| (offset as u64 + at).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    words.flat_map(u64::to_le_bytes).take(length).collect()
}

/// A rank, and beside it an engine for plain reads of memory that is the same size.
pub struct Side {
    /// The rank's hand-off.
    pub handoff: Handoff,
    /// The engine beside it.
    pub plain: Arc<TransferEngine>,
    memory: Memory,
    plain_memory: Memory,
    prompt: Prompt,
    runtime: Runtime,
}

impl Side {
    /// Starts both. Every page of the memory was touched.
    pub fn start(
        prompt: &Prompt,
        transport: Transport,
        engine_id: &str,
        verify: bool,
        runtime: &Runtime,
    ) -> Result<Self> {
        let settings = HandoffSettings {
            engine: engine_settings(transport),
            verify,
            ..HandoffSettings::default()
        };
        let handoff = Handoff::start(settings, runtime.clone())?;
        let plain = TransferEngine::start(engine_settings(transport), runtime.clone())?;
        let bytes = prompt.memory_bytes();
        let (mut memory, plain_memory) = if prompt.registered {
            let mut buffer = Buffer::new(bytes)?;
            let address = buffer.as_mut_slice().as_mut_ptr();
            // SAFETY: the buffer outlives the engine (see `drop`), and is touched only while nothing moves.
            let region = unsafe { plain.register(address, bytes) }?;
            (
                Memory::Registered(Buffer::new(bytes)?, None),
                Memory::Registered(buffer, Some(region)),
            )
        } else {
            (
                Memory::Own(handoff.allocate(bytes)?),
                Memory::Own(plain.allocate(bytes)?),
            )
        };
        let description = prompt.description(engine_id, memory.address())?;
        // SAFETY: the memory outlives the hand-off (see `drop`), and is touched only while nothing is held or pulled.
        unsafe { handoff.describe(&description) }?;
        let mut side = Self {
            handoff,
            plain,
            memory,
            plain_memory,
            prompt: *prompt,
            runtime: runtime.clone(),
        };
        side.fill(|_, length| vec![0; length])?;
        Ok(side)
    }

    /// Writes a prompt's content everywhere.
    pub fn fill_with_content(&mut self) -> Result<()> {
        self.fill(content)
    }

    fn fill(&mut self, bytes: impl Fn(usize, usize) -> Vec<u8>) -> Result<()> {
        let piece = 1 << 20;
        for offset in (0..self.prompt.memory_bytes()).step_by(piece) {
            let bytes = bytes(offset, piece.min(self.prompt.memory_bytes() - offset));
            self.memory.write(offset, &bytes)?;
            self.plain_memory.write(offset, &bytes)?;
        }
        Ok(())
    }

    /// Makes the blocks of a spread worthless, and fails with `Corrupt` unless `again` brings them back.
    pub fn expect(&mut self, spread: Spread, again: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let runs = self.prompt.runs(spread);
        for (offset, length) in &runs {
            self.memory.write(*offset, &vec![0; *length])?;
            self.plain_memory.write(*offset, &vec![0; *length])?;
        }
        again(self)?;
        for (offset, length) in runs {
            let (wanted, mut found) = (content(offset, length), vec![0; length]);
            for memory in [&self.memory, &self.plain_memory] {
                memory.read(offset, &mut found)?;
                if found != wanted {
                    return Err(Error::new(ErrorKind::Corrupt, "what came is not what was there"));
                }
            }
        }
        Ok(())
    }

    /// The region for plain reads.
    pub fn plain_region(&self) -> Result<&Region> {
        match &self.plain_memory {
            Memory::Own(region) | Memory::Registered(_, Some(region)) => Ok(region),
            Memory::Registered(_, None) => Err(Error::internal("memory that isn't registered")),
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        let closed = self.handoff.close(self.runtime.deadline(CLOSE));
        self.plain.shutdown();
        if let (Err(error), Memory::Registered(..)) = (closed, &self.memory) {
            // the process ends soon; until then the memory may be touched
            tracing::error!(%error, "a hand-off's memory is still in use");
            let empty = Memory::Registered(
                match Buffer::new(1) {
                    Ok(empty) => empty,
                    Err(_) => std::process::abort(),
                },
                None,
            );
            std::mem::forget(std::mem::replace(&mut self.memory, empty));
        }
    }
}
