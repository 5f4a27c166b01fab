//! Block hashes as Python gives them.

use kvstored_core::{BlockHash, Error};
use numpy::{PyReadonlyArray2, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};

use crate::failure::{Failure, Outcome};

/// Block hashes: a sequence of `bytes`, or a two-dimensional array of `uint8` with one hash per row.
///
/// Fails with `InvalidInput` for a width that is not accepted, naming the block, and with `TypeError` for anything else.
pub struct Hashes(pub Vec<BlockHash>);

impl FromPyObject<'_, '_> for Hashes {
    type Error = Failure;

    fn extract(given: Borrowed<'_, '_, PyAny>) -> Outcome<Self> {
        if let Ok(list) = given.cast::<PyList>() {
            return collect(list.len(), list.iter().map(Ok));
        }
        if let Ok(tuple) = given.cast::<PyTuple>() {
            return collect(tuple.len(), tuple.iter().map(Ok));
        }
        if given.cast::<PyUntypedArray>().is_ok() {
            return rows(&given);
        }
        if given.cast::<PyBytes>().is_ok() {
            return Err(Failure::Python(PyTypeError::new_err(
                "hashes must be a sequence of bytes, one per block, not bytes",
            )));
        }
        collect(0, given.try_iter()?)
    }
}

fn collect<'py>(count: usize, items: impl Iterator<Item = PyResult<Bound<'py, PyAny>>>) -> Outcome<Hashes> {
    let mut hashes = Vec::with_capacity(count);
    for (index, item) in items.enumerate() {
        let item = item?;
        let Ok(bytes) = item.cast::<PyBytes>() else {
            return Err(Failure::Python(PyTypeError::new_err(format!(
                "hash {index} is not bytes but {}",
                item.get_type().name()?
            ))));
        };
        hashes.push(hash(index, bytes.as_bytes())?);
    }
    Ok(Hashes(hashes))
}

fn rows(given: &Bound<'_, PyAny>) -> Outcome<Hashes> {
    let array = given.extract::<PyReadonlyArray2<'_, u8>>().map_err(|_| {
        Failure::Python(PyTypeError::new_err(
            "an array of hashes must be of uint8 and have two dimensions, blocks and bytes of a hash",
        ))
    })?;
    let width = array.shape().get(1).copied().unwrap_or_default();
    let bytes = array
        .as_slice()
        .map_err(|_| Error::invalid("an array of hashes must be C-contiguous"))?;
    if width == 0 {
        // a hash without bytes is refused, an array without hashes is not
        let blocks = array.shape().first().copied().unwrap_or_default();
        return if blocks == 0 {
            Ok(Hashes(Vec::new()))
        } else {
            hash(0, &[]).map(|hash| Hashes(vec![hash]))
        };
    }
    let hashes = bytes.chunks_exact(width).enumerate();
    Ok(Hashes(
        hashes
            .map(|(index, bytes)| hash(index, bytes))
            .collect::<Outcome<_>>()?,
    ))
}

fn hash(index: usize, bytes: &[u8]) -> Outcome<BlockHash> {
    Ok(BlockHash::new(bytes).map_err(|error| error.with("block", index))?)
}
