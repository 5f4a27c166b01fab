//! Addresses of engine memory: from Python's arrays to the client.
#![allow(unsafe_code)]
//!
//! This is the one place that trusts a raw address. Whoever calls the Python functions that take addresses promises that
//! each names as much memory as the layout says, that it stays valid until the task has ended, and that meanwhile nobody
//! writes memory that is dumped or uses memory that is loaded. Functions that take tensors keep that promise themselves:
//! they check sizes and keep the tensors alive.

use kvstored_client::{Client, DumpRequest, DumpSession, LoadRequest, NamespaceHandle, Task, TensorAddress};
use kvstored_core::{Error, Layout, Result};
use numpy::PyReadonlyArrayDyn;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use crate::device::Place;
use crate::failure::{Failure, Outcome};

/// Addresses in the order of the request: for each block, each shard, each tensor, each of its pieces.
pub struct Addresses(Vec<u64>);

impl FromPyObject<'_, '_> for Addresses {
    type Error = Failure;

    fn extract(given: Borrowed<'_, '_, PyAny>) -> Outcome<Self> {
        let array = given
            .extract::<PyReadonlyArrayDyn<'_, u64>>()
            .map_err(|_| Failure::Python(PyTypeError::new_err("addresses must be an array of uint64")))?;
        let addresses = array
            .as_slice()
            .map_err(|_| Error::invalid("the array of addresses must be C-contiguous"))?;
        Ok(Self(addresses.to_vec()))
    }
}

impl Addresses {
    /// The memory of some blocks' shards, in pieces of those bytes, or a piece for each tensor of the layout. Fails with
    /// `InvalidInput`, naming block and tensor, for a wrong number of addresses and for one where no memory can be.
    pub fn tensors(
        self,
        layout: &Layout,
        blocks: usize,
        shards: std::ops::Range<usize>,
        pieces: Option<Vec<u32>>,
    ) -> Result<Vec<TensorAddress>> {
        let sizes = pieces.unwrap_or_else(|| {
            let chosen = layout.shards().get(shards.clone()).unwrap_or_default();
            let tensors = chosen.iter().flat_map(|shard| shard.tensor_bytes.iter());
            tensors.copied().collect()
        });
        let wanted = blocks.saturating_mul(sizes.len());
        if self.0.len() != wanted {
            return Err(Error::invalid(format!(
                "{} addresses were given; {blocks} blocks of {} tensors in {} shards take {wanted}",
                self.0.len(),
                sizes.len(),
                shards.len()
            )));
        }
        let places = self.0.into_iter().zip(sizes.iter().cycle()).enumerate();
        places
            .map(|(index, (address, bytes))| {
                let end = address.checked_add(u64::from(*bytes));
                match (usize::try_from(address), end) {
                    (Ok(address), Some(_)) if address > 0 => Ok(TensorAddress {
                        address,
                        bytes: *bytes,
                    }),
                    _ => Err(Error::invalid(format!(
                        "tensor {} of block {} has {bytes} bytes at address {address:#x}",
                        index % sizes.len(),
                        index / sizes.len()
                    ))),
                }
            })
            .collect()
    }
}

/// Begins a load, into memory of this process or on a device.
pub fn load(
    client: &Client,
    namespace: &NamespaceHandle,
    request: LoadRequest,
    place: Option<&Place>,
) -> Result<Task> {
    // SAFETY: the caller in Python vouches for memory and event until the task's end; a task dropped before waits for that.
    unsafe {
        match place {
            None => client.load(namespace, request),
            Some(place) => client.load_to_device(namespace, request, &place.device, place.after),
        }
    }
}

/// Begins a dump, from memory of this process or on a device.
pub fn dump(
    client: &Client,
    namespace: &NamespaceHandle,
    request: DumpRequest,
    place: Option<&Place>,
) -> Result<Task> {
    // SAFETY: the caller in Python vouches for memory and event until the task's end; a task dropped before waits for that.
    unsafe {
        match place {
            None => client.dump(namespace, request),
            Some(place) => client.dump_from_device(namespace, request, &place.device, place.after),
        }
    }
}

/// Begins to copy one shard of a layerwise dump, from memory of this process or on a device.
pub fn put_shard(
    session: &DumpSession,
    shard: usize,
    tensors: Vec<TensorAddress>,
    place: Option<&Place>,
) -> Result<Task> {
    // SAFETY: the caller in Python vouches for memory and event until the task's end; a task dropped before waits for that.
    unsafe {
        match place {
            None => session.put_shard(shard, tensors),
            Some(place) => session.put_shard_from_device(shard, tensors, &place.device, place.after),
        }
    }
}
