//! Layers as Python describes them.

use kvstored_core::Result;
use kvstored_handoff::{Layer, Piece};

/// A piece: address, length, block stride and block size in bytes, rows, heads.
pub type GivenPiece = (u64, u64, u64, u64, u32, u32);
/// A layer: its name and pieces.
pub type GivenLayer = (String, Vec<GivenPiece>);

/// The layers. Fails with `InvalidInput`, naming the layer, where a piece makes no sense.
pub fn layers(given: Vec<GivenLayer>) -> Result<Vec<Layer<Piece>>> {
    given.into_iter().map(layer).collect()
}

fn layer((name, pieces): GivenLayer) -> Result<Layer<Piece>> {
    let piece = |(address, length, stride, block, rows, heads): GivenPiece| {
        Piece::new(address as usize, length, stride, block, rows, heads)
            .map_err(|error| error.with("layer", &name))
    };
    let pieces = pieces.into_iter().map(piece).collect::<Result<_>>()?;
    Ok(Layer { name, pieces })
}
