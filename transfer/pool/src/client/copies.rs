//! Copies of objects that lie in registered memory already, to places that a master has chosen.

use std::time::Instant;

use kvstored_core::{Error, Result};
use kvstored_master::Ticket;

use super::put::Job;
use super::{PoolClient, PutRequest};
use crate::memory::Piece;

/// A copy to make.
pub(crate) struct CopyRequest<'a> {
    /// The object's whole key.
    pub key: &'a [u8],
    /// Its bytes, in registered memory that nobody writes meanwhile.
    pub pieces: &'a [Piece],
    /// Bytes.
    pub length: u64,
    /// CRC-64/NVME that the bytes must have.
    pub checksum: u64,
    /// Where it goes.
    pub ticket: Ticket,
}

impl PoolClient {
    /// Writes copies, and ends their puts: one outcome each. Those that fail are revoked, so far as the master can be
    /// reached.
    ///
    /// Per copy as for puts, and `Corrupt` where the bytes fail their checksum.
    pub(crate) fn put_copies(&self, copies: Vec<CopyRequest<'_>>, deadline: Instant) -> Vec<Result<()>> {
        let without = || Err(Error::internal("a copy without an outcome"));
        let mut outcomes: Vec<Result<()>> = copies.iter().map(|_| without()).collect();
        let mut jobs: Vec<Job<'_>> = copies.into_iter().enumerate().map(job).collect();
        self.write_all(&mut jobs, deadline);
        self.finish(jobs, &mut outcomes, deadline);
        outcomes
    }
}

fn job((index, copy): (usize, CopyRequest<'_>)) -> Job<'_> {
    Job {
        index,
        request: PutRequest {
            key: copy.key,
            pieces: copy.pieces,
        },
        length: copy.length,
        ticket: copy.ticket,
        checksum: None,
        expected: Some(copy.checksum),
        holders: Vec::new(),
        master_epoch: 0,
        failure: None,
    }
}
