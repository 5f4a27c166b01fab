//! Block numbers as Python gives them.

use kvstored_core::Error;
use numpy::{PyArrayMethods, PyReadonlyArray1};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use crate::failure::{Failure, Outcome};

/// Numbers of blocks from a sequence of integers, or an array of uint32, uint64 or int64.
pub struct Blocks(pub Vec<u32>);

impl FromPyObject<'_, '_> for Blocks {
    type Error = Failure;

    fn extract(given: Borrowed<'_, '_, PyAny>) -> Outcome<Self> {
        if let Ok(array) = given.extract::<PyReadonlyArray1<'_, u32>>() {
            let copied = array.to_vec();
            return Ok(Self(copied.map_err(|error| Failure::Python(error.into()))?));
        }
        if let Ok(array) = given.extract::<PyReadonlyArray1<'_, u64>>() {
            let copied = array.to_vec();
            return small(copied.map_err(|error| Failure::Python(error.into()))?);
        }
        let numbers = given.extract::<Vec<u64>>();
        small(numbers.map_err(|_| {
            Failure::Python(PyTypeError::new_err(
                "blocks are a sequence of integers from 0 to 2^32 - 1",
            ))
        })?)
    }
}

fn small(numbers: Vec<u64>) -> Outcome<Blocks> {
    let convert = |number: u64| {
        u32::try_from(number).map_err(|_| Error::invalid(format!("block {number} is above 2^32 - 1")))
    };
    let blocks = numbers.into_iter().map(convert).collect::<Result<_, _>>()?;
    Ok(Blocks(blocks))
}
