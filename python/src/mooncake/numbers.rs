//! Lists of addresses and lengths as Python gives them.

use kvstored_core::{Error, Result};
use numpy::{PyArrayMethods, PyReadonlyArray1};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use crate::failure::{Failure, Outcome};

/// Numbers from a list, a tuple or an array of uint64.
pub struct Numbers(pub Vec<u64>);

impl FromPyObject<'_, '_> for Numbers {
    type Error = Failure;

    fn extract(given: Borrowed<'_, '_, PyAny>) -> Outcome<Self> {
        if let Ok(array) = given.extract::<PyReadonlyArray1<'_, u64>>() {
            return Ok(Self(
                array.to_vec().map_err(|error| Failure::Python(error.into()))?,
            ));
        }
        given.extract::<Vec<u64>>().map(Self).map_err(|_| {
            Failure::Python(PyTypeError::new_err(
                "addresses and lengths are sequences of integers from 0 to 2^64 - 1",
            ))
        })
    }
}

/// Entries of a batch: where each lies here, where at the peer, and its bytes. Fails with `InvalidInput` when the lists
/// have different lengths.
pub fn entries(local: &[u64], remote: &[u64], lengths: &[u64]) -> Result<Vec<Entry>> {
    if local.len() != remote.len() || local.len() != lengths.len() {
        return Err(Error::invalid(format!(
            "{} addresses here, {} at the peer and {} lengths",
            local.len(),
            remote.len(),
            lengths.len()
        )));
    }
    let all = local.iter().zip(remote).zip(lengths);
    Ok(all
        .map(|((local, remote), length)| Entry {
            local: *local,
            remote: *remote,
            length: *length,
        })
        .collect())
}

/// One run of bytes to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its address in this process.
    pub local: u64,
    /// Its address in the peer's.
    pub remote: u64,
    /// Its bytes.
    pub length: u64,
}
