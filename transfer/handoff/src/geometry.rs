//! What a rank's KV memory looks like.

use kvstored_core::{Error, Result};

use crate::limits::{MAX_COUNT, MAX_LAYERS, MAX_NAME_BYTES, MAX_PIECES, MAX_RANKS};

/// How blocks lie in a piece: block b begins `b * stride` bytes behind its beginning, and is `rows` × `heads` equal runs
/// of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Blocks that fit.
    pub blocks: u64,
    /// From the beginning of one block to that of the next, in bytes.
    pub stride: u64,
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Rows of a block; 1 where each head's bytes are in one run.
    pub rows: u32,
    /// Heads in each row.
    pub heads: u32,
}

impl Shape {
    /// Bytes of one head in one row.
    pub fn head_bytes(&self) -> u64 {
        let heads = u64::from(self.rows) * u64::from(self.heads);
        self.block_bytes.checked_div(heads).unwrap_or(0)
    }

    /// From the first byte of a block to behind the last of the `blocks`th. `None` past the end of numbers.
    pub fn span(&self, blocks: u64) -> Option<u64> {
        blocks
            .checked_sub(1)?
            .checked_mul(self.stride)?
            .checked_add(self.block_bytes)
    }

    /// Whether blocks follow each other without a gap.
    pub fn is_dense(&self) -> bool {
        self.stride == self.block_bytes
    }

    pub(crate) fn check(&self) -> Result<()> {
        let counts = [("rows", self.rows), ("heads", self.heads)];
        for (name, value) in counts {
            within(name, value, 1)?;
        }
        let heads = u64::from(self.rows) * u64::from(self.heads);
        if self.block_bytes == 0 || !self.block_bytes.is_multiple_of(heads) {
            return Err(Error::invalid(format!(
                "block_bytes is {}, which {} rows of {} heads don't divide",
                self.block_bytes, self.rows, self.heads
            )));
        }
        if self.stride < self.block_bytes || self.blocks == 0 || self.span(self.blocks).is_none() {
            return Err(Error::invalid(format!(
                "{} blocks of {} bytes with a stride of {}",
                self.blocks, self.block_bytes, self.stride
            )));
        }
        Ok(())
    }
}

/// Blocks in this process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Address of block 0.
    pub address: usize,
    /// How blocks lie behind it.
    pub shape: Shape,
}

impl Piece {
    /// A piece of `length` bytes at an address. Fails with `InvalidInput` where not one block fits.
    pub fn new(
        address: usize,
        length: u64,
        stride: u64,
        block_bytes: u64,
        rows: u32,
        heads: u32,
    ) -> Result<Self> {
        let blocks = match length.checked_sub(block_bytes) {
            Some(rest) if stride > 0 => rest / stride + 1,
            _ => 0,
        };
        let shape = Shape {
            blocks,
            stride,
            block_bytes,
            rows,
            heads,
        };
        shape.check()?;
        if address == 0 || (address as u64).checked_add(length).is_none() {
            return Err(Error::invalid(format!("{length} bytes at address {address:#x}")));
        }
        Ok(Self { address, shape })
    }
}

/// A layer and where its blocks lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer<P> {
    /// Its name, the same on both sides.
    pub name: String,
    /// Its pieces, in the same order on both sides.
    pub pieces: Vec<P>,
}

/// Which part of an engine's model a rank has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    /// KV heads of the whole model.
    pub total_heads: u32,
    /// The first head of this rank.
    pub first_head: u32,
    /// Heads of this rank.
    pub heads: u32,
    /// Its number among those that divide heads.
    pub tp_rank: u32,
    /// How many divide heads.
    pub tp_size: u32,
    /// Its number among those that divide layers.
    pub pp_rank: u32,
    /// How many divide layers.
    pub pp_size: u32,
}

impl Rank {
    /// Its place among all ranks of the engine.
    pub fn index(&self) -> u64 {
        u64::from(self.pp_rank) * u64::from(self.tp_size) + u64::from(self.tp_rank)
    }

    /// All ranks of the engine.
    pub fn ranks(&self) -> u64 {
        u64::from(self.pp_size) * u64::from(self.tp_size)
    }
}

/// What a rank has: [`Piece`]s of its own memory, or [`Shape`]s of another's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description<P = Piece> {
    /// The engine that the rank belongs to; another at each start.
    pub engine_id: String,
    /// What must be equal on both sides for bytes to mean the same.
    pub fingerprint: Vec<u8>,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// Which part it is.
    pub rank: Rank,
    /// Its layers.
    pub layers: Vec<Layer<P>>,
}

impl<P> Description<P> {
    /// Everything but the shapes of pieces. Fails with `InvalidInput`, naming the field.
    pub(crate) fn check_outline(&self) -> Result<()> {
        let names = [
            ("engine_id", self.engine_id.len()),
            ("fingerprint", self.fingerprint.len()),
        ];
        for (name, length) in names {
            name_length(name, length)?;
        }
        within("block_tokens", self.block_tokens, 1)?;
        let rank = &self.rank;
        within("total_heads", rank.total_heads, 1)?;
        within("heads", rank.heads, 1)?;
        if u64::from(rank.first_head) + u64::from(rank.heads) > u64::from(rank.total_heads) {
            return Err(Error::invalid(format!(
                "heads {}+{} are not within total_heads {}",
                rank.first_head, rank.heads, rank.total_heads
            )));
        }
        for (name, number, size) in [
            ("tp", rank.tp_rank, rank.tp_size),
            ("pp", rank.pp_rank, rank.pp_size),
        ] {
            if number >= size {
                return Err(Error::invalid(format!("{name}_rank is {number} of {size}")));
            }
        }
        if rank.ranks() > MAX_RANKS as u64 {
            return Err(Error::invalid(format!("{} ranks", rank.ranks())));
        }
        if self.layers.is_empty() || self.layers.len() > MAX_LAYERS {
            return Err(Error::invalid(format!("{} layers", self.layers.len())));
        }
        for layer in &self.layers {
            name_length("a layer's name", layer.name.len())?;
            if layer.pieces.is_empty() || layer.pieces.len() > MAX_PIECES {
                return Err(Error::invalid(format!(
                    "layer {} has {} pieces",
                    layer.name,
                    layer.pieces.len()
                )));
            }
        }
        let mut names: Vec<&str> = self.layers.iter().map(|layer| layer.name.as_str()).collect();
        names.sort_unstable();
        if let Some([one, _]) = names.array_windows::<2>().find(|[one, other]| one == other) {
            return Err(Error::invalid(format!("layer {one} is there twice")));
        }
        Ok(())
    }
}

impl Description<Shape> {
    /// Fails with `InvalidInput`, naming what makes no sense.
    pub fn check(&self) -> Result<()> {
        self.check_outline()?;
        self.layers.iter().try_for_each(|layer| {
            layer
                .pieces
                .iter()
                .try_for_each(|shape| check_piece(shape, &self.rank, &layer.name))
        })
    }
}

impl Description<Piece> {
    /// Fails with `InvalidInput`, naming what makes no sense.
    pub fn check(&self) -> Result<()> {
        self.check_outline()?;
        self.layers.iter().try_for_each(|layer| {
            layer
                .pieces
                .iter()
                .try_for_each(|piece| check_piece(&piece.shape, &self.rank, &layer.name))
        })
    }

    /// The same without addresses.
    pub fn shapes(&self) -> Description<Shape> {
        Description {
            engine_id: self.engine_id.clone(),
            fingerprint: self.fingerprint.clone(),
            block_tokens: self.block_tokens,
            rank: self.rank,
            layers: self
                .layers
                .iter()
                .map(|layer| Layer {
                    name: layer.name.clone(),
                    pieces: layer.pieces.iter().map(|piece| piece.shape).collect(),
                })
                .collect(),
        }
    }
}

/// A piece is divided as the rank is, or not at all.
fn check_piece(shape: &Shape, rank: &Rank, layer: &str) -> Result<()> {
    shape.check().map_err(|error| error.with("layer", layer))?;
    if shape.heads != rank.heads && shape.heads != 1 {
        return Err(Error::invalid(format!(
            "a piece of layer {layer} has {} heads, and the rank {}",
            shape.heads, rank.heads
        )));
    }
    Ok(())
}

fn within(name: &str, value: u32, least: u32) -> Result<()> {
    if (least..=MAX_COUNT).contains(&value) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{name} is {value}, not {least} to {MAX_COUNT}"
    )))
}

/// Fails with `InvalidInput` for a name that is empty or too long.
pub(crate) fn name_length(name: &str, length: usize) -> Result<()> {
    if (1..=MAX_NAME_BYTES).contains(&length) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{name} has {length} bytes, not 1 to {MAX_NAME_BYTES}"
    )))
}
