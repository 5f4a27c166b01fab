//! Which heads of which pieces come from which rank of the producer. Knows nothing of blocks.

use kvstored_core::{Error, ErrorKind, Result};

use crate::geometry::{Description, Layer, Rank, Shape};

/// Heads of one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    /// The piece here, counted through all layers.
    pub local_piece: u32,
    /// The first head in it.
    pub local_head: u32,
    pub local: Shape,
    /// The piece at the producer, counted through all layers of its rank.
    pub remote_piece: u32,
    /// The first head in it.
    pub remote_head: u32,
    pub remote: Shape,
    pub heads: u32,
}

impl Slice {
    /// Whether it's all of a block on both sides.
    pub fn is_whole(&self) -> bool {
        self.heads == self.local.heads && self.heads == self.remote.heads
    }
}

fn mismatch(message: String) -> Error {
    Error::new(ErrorKind::Mismatch, message)
}

/// Whether bytes of a rank mean the same here. Fails with `Mismatch`, saying what differs.
pub(crate) fn check_fit(
    own: &Description<Shape>,
    other: &Description<Shape>,
    index: usize,
    ranks: usize,
) -> Result<()> {
    if own.fingerprint != other.fingerprint {
        return Err(mismatch(
            "the producer's model, data type or format is another (its fingerprint differs)".to_owned(),
        ));
    }
    let numbers = [
        ("tokens of a block", own.block_tokens, other.block_tokens),
        (
            "KV heads of the model",
            own.rank.total_heads,
            other.rank.total_heads,
        ),
    ];
    for (what, here, there) in numbers {
        if here != there {
            return Err(mismatch(format!("{what}: {here} here, {there} at the producer")));
        }
    }
    if other.rank.ranks() != ranks as u64 || other.rank.index() != index as u64 {
        return Err(mismatch(format!(
            "producer {index} of {ranks} says that it is tp {} of {}, pp {} of {}",
            other.rank.tp_rank, other.rank.tp_size, other.rank.pp_rank, other.rank.pp_size
        )));
    }
    Ok(())
}

/// For each rank of the producer, what is pulled from it.
///
/// Fails with `Mismatch` where the ranks together don't have all that this one needs, or have it in another shape.
pub(crate) fn plan(own: &Description<Shape>, others: &[&Description<Shape>]) -> Result<Vec<Vec<Slice>>> {
    let mut slices: Vec<Vec<Slice>> = others.iter().map(|_| Vec::new()).collect();
    let mut local_piece = 0;
    for layer in &own.layers {
        let sources = sources(&layer.name, others);
        if sources.is_empty() {
            return Err(mismatch(format!("no producer has layer {}", layer.name)));
        }
        for (index, shape) in layer.pieces.iter().enumerate() {
            let needed = Needed {
                layer,
                index,
                local_piece,
                shape: *shape,
                rank: &own.rank,
            };
            needed.place(&sources, &mut slices)?;
            local_piece += 1;
        }
    }
    Ok(slices)
}

/// A rank that has a layer.
struct Source<'a> {
    index: usize,
    rank: &'a Rank,
    layer: &'a Layer<Shape>,
    /// The layer's first piece, counted through all layers.
    first_piece: u32,
}

fn sources<'a>(name: &str, others: &[&'a Description<Shape>]) -> Vec<Source<'a>> {
    let mut found = Vec::new();
    for (index, other) in others.iter().enumerate() {
        let mut first_piece = 0;
        for layer in &other.layers {
            if layer.name == name {
                found.push(Source {
                    index,
                    rank: &other.rank,
                    layer,
                    first_piece,
                });
            }
            first_piece += layer.pieces.len() as u32;
        }
    }
    found
}

/// A piece of this rank.
struct Needed<'a> {
    layer: &'a Layer<Shape>,
    index: usize,
    local_piece: u32,
    shape: Shape,
    rank: &'a Rank,
}

impl Needed<'_> {
    /// Finds ranks for all heads of the piece.
    fn place(&self, sources: &[Source<'_>], slices: &mut [Vec<Slice>]) -> Result<()> {
        let candidates = sources
            .iter()
            .map(|source| Ok((source, self.fitting(source)?)))
            .collect::<Result<Vec<_>>>()?;
        // what isn't divided here or there is the same on all ranks
        let divided = self.shape.heads == self.rank.heads
            && candidates
                .iter()
                .all(|(source, shape)| shape.heads == source.rank.heads);
        let single = |shape: &Shape| shape.heads == 1;
        let undivided = single(&self.shape) && candidates.iter().all(|(_, shape)| single(shape));
        if !divided && !undivided {
            return Err(mismatch(format!(
                "layer {} is divided by heads on one side only",
                self.layer.name
            )));
        }
        let range = |first: u32, count: u32| if divided { (first, first + count) } else { (0, 1) };
        let (start, end) = range(self.rank.first_head, self.rank.heads);
        let mut at = start;
        while at < end {
            let having: Vec<_> = candidates
                .iter()
                .map(|(source, shape)| {
                    let (first, last) = range(source.rank.first_head, source.rank.heads);
                    (*source, *shape, first, last)
                })
                .filter(|(_, _, first, last)| (*first..*last).contains(&at))
                .collect();
            let furthest = having.iter().map(|(_, _, _, last)| *last).max();
            let replicas: Vec<_> = having
                .iter()
                .filter(|(_, _, _, last)| Some(*last) == furthest)
                .collect();
            // ranks here that need the same heads ask different replicas
            let turn = self.rank.tp_rank as usize % replicas.len().max(1);
            let Some((source, remote, first, last)) = replicas.get(turn) else {
                return Err(mismatch(format!(
                    "no producer has head {at} of layer {}",
                    self.layer.name
                )));
            };
            let stop = end.min(*last);
            if let Some(slices) = slices.get_mut(source.index) {
                slices.push(Slice {
                    local_piece: self.local_piece,
                    local_head: at - start,
                    local: self.shape,
                    remote_piece: source.first_piece + self.index as u32,
                    remote_head: at - first,
                    remote: *remote,
                    heads: stop - at,
                });
            }
            at = stop;
        }
        Ok(())
    }

    /// The same piece at a producer. Fails with `Mismatch` where it's shaped otherwise.
    fn fitting(&self, source: &Source<'_>) -> Result<Shape> {
        let pieces = &source.layer.pieces;
        let shape = pieces.get(self.index);
        let fits = pieces.len() == self.layer.pieces.len()
            && shape.is_some_and(|shape| {
                shape.rows == self.shape.rows && shape.head_bytes() == self.shape.head_bytes()
            });
        shape.filter(|_| fits).copied().ok_or_else(|| {
            mismatch(format!(
                "layer {} is laid out otherwise at the producer: here {:?}, there {:?}",
                self.layer.name, self.layer.pieces, pieces
            ))
        })
    }
}
