//! A rank's description, as many layers at a time as a message takes.

use kvstored_core::Result;
use kvstored_transfer::wire::fields::{Reader, Writer, malformed};

use super::{HEADER_BYTES, MAX_MESSAGE_BYTES};
use crate::geometry::{Description, Layer, Rank, Shape};
use crate::limits::{MAX_LAYERS, MAX_NAME_BYTES, MAX_PIECES};

/// Bytes of a piece.
const PIECE_BYTES: usize = 32;

/// Some layers of a description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescriptionPage {
    /// Everything but the layers that other pages have.
    pub description: Description<Shape>,
    /// Layers of the whole description.
    pub total: u32,
    /// How many of them come before this page's.
    pub from: u32,
}

impl DescriptionPage {
    /// The page that begins with a layer.
    pub fn of(whole: &Description<Shape>, from: u32) -> Self {
        let rest = whole.layers.get(from as usize..).unwrap_or_default();
        let mut bytes = HEADER_BYTES + 64 + whole.engine_id.len() + whole.fingerprint.len();
        let fitting = rest.iter().take_while(|layer| {
            bytes += 4 + layer.name.len() + PIECE_BYTES * layer.pieces.len();
            bytes <= MAX_MESSAGE_BYTES
        });
        Self {
            description: Description {
                engine_id: whole.engine_id.clone(),
                fingerprint: whole.fingerprint.clone(),
                block_tokens: whole.block_tokens,
                rank: whole.rank,
                layers: fitting.cloned().collect(),
            },
            total: whole.layers.len() as u32,
            from,
        }
    }

    pub(super) fn encode(&self, writer: &mut Writer) {
        let description = &self.description;
        let rank = &description.rank;
        writer.counted(description.engine_id.as_bytes());
        writer.counted(&description.fingerprint);
        for number in [
            description.block_tokens,
            rank.total_heads,
            rank.first_head,
            rank.heads,
            rank.tp_rank,
            rank.tp_size,
            rank.pp_rank,
            rank.pp_size,
            self.total,
            self.from,
            description.layers.len() as u32,
        ] {
            writer.u32(number);
        }
        for layer in &description.layers {
            writer.counted(layer.name.as_bytes());
            writer.u16(layer.pieces.len() as u16);
            for shape in &layer.pieces {
                writer.u64(shape.blocks);
                writer.u64(shape.stride);
                writer.u64(shape.block_bytes);
                writer.u32(shape.rows);
                writer.u32(shape.heads);
            }
        }
        debug_assert!(writer.length() <= MAX_MESSAGE_BYTES);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let engine_id = reader.text(MAX_NAME_BYTES)?;
        let fingerprint = reader.counted(MAX_NAME_BYTES)?.to_vec();
        let block_tokens = reader.u32()?;
        let rank = Rank {
            total_heads: reader.u32()?,
            first_head: reader.u32()?,
            heads: reader.u32()?,
            tp_rank: reader.u32()?,
            tp_size: reader.u32()?,
            pp_rank: reader.u32()?,
            pp_size: reader.u32()?,
        };
        let total = reader.count("layers", MAX_LAYERS)? as u32;
        let from = reader.u32()?;
        let count = reader.count("layers", MAX_LAYERS)?;
        let inside = u64::from(from) + count as u64 <= u64::from(total);
        if !inside {
            return Err(malformed(format!("layers {from}+{count} of {total}")));
        }
        let layers = (0..count).map(|_| layer(reader)).collect::<Result<_>>()?;
        Ok(Self {
            description: Description {
                engine_id,
                fingerprint,
                block_tokens,
                rank,
                layers,
            },
            total,
            from,
        })
    }
}

fn layer(reader: &mut Reader<'_>) -> Result<Layer<Shape>> {
    let name = reader.text(MAX_NAME_BYTES)?;
    let count = usize::from(reader.u16()?);
    if count > MAX_PIECES {
        return Err(malformed(format!("a layer of {count} pieces")));
    }
    let mut pieces = Vec::with_capacity(count);
    for _ in 0..count {
        pieces.push(Shape {
            blocks: reader.u64()?,
            stride: reader.u64()?,
            block_bytes: reader.u64()?,
            rows: reader.u32()?,
            heads: reader.u32()?,
        });
    }
    Ok(Layer { name, pieces })
}
