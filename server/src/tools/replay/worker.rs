//! One stream of requests: look up, load and check, dump the rest.

use std::time::{Duration, Instant};

use kvstored_client::{BlockOutcome, Client, NamespaceHandle};
use kvstored_core::runtime::Clock;
use kvstored_core::{BlockHash, Error, ErrorKind, Result};

use super::results::Tally;
use super::runner::ReplaySettings;
use crate::tools::buffer::{Buffer, Piece, Transfer};
use crate::tools::content::{Content, block_hash};
use crate::tools::timeline::Interval;
use crate::tools::trace::TraceRequest;

/// Bytes of engine memory of one stream; at least one block.
const BUFFER_BYTES: usize = 64 << 20;
/// Most blocks in one load or dump.
const MAX_BATCH_BLOCKS: usize = 1024;

/// One stream of requests.
pub(super) struct Worker<'a> {
    client: &'a Client,
    namespace: &'a NamespaceHandle,
    settings: &'a ReplaySettings,
    clock: &'a dyn Clock,
    buffer: Buffer,
    batch_blocks: usize,
    pub(super) tally: Tally,
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        client: &'a Client,
        namespace: &'a NamespaceHandle,
        settings: &'a ReplaySettings,
        clock: &'a dyn Clock,
    ) -> Result<Self> {
        let block_bytes = settings.layout.payload_bytes();
        let batch_blocks = (BUFFER_BYTES / block_bytes).clamp(1, MAX_BATCH_BLOCKS);
        Ok(Self {
            client,
            namespace,
            settings,
            clock,
            buffer: Buffer::new(batch_blocks * block_bytes)?,
            batch_blocks,
            tally: Tally::new(client.tier_names())?,
        })
    }

    /// Replays one request. Fails only when a whole call failed; the error is counted already.
    pub(super) fn replay(&mut self, request: &TraceRequest) -> Result<Interval> {
        let ids = request.hash_ids.as_slice();
        let before = (self.tally.loaded_bytes, self.tally.dumped_bytes);
        self.tally.requests += 1;
        self.tally.prompt_blocks += ids.len() as u64;
        let (hits, result) = self.blocks(ids);
        if let Err(error) = &result {
            self.tally.error(error);
        }
        result.map(|()| Interval {
            prompt_blocks: ids.len() as u64,
            hit_blocks: hits,
            loaded_bytes: self.tally.loaded_bytes - before.0,
            dumped_bytes: self.tally.dumped_bytes - before.1,
        })
    }

    fn blocks(&mut self, ids: &[u64]) -> (u64, Result<()>) {
        let mut hits = 0;
        let result = ids
            .iter()
            .map(|id| block_hash(*id))
            .collect::<Result<Vec<_>>>()
            .and_then(|hashes| {
                let started = self.clock.now();
                let found = self
                    .client
                    .lookup_on_prefix(self.namespace, &hashes)?
                    .min(hashes.len());
                self.tally.lookup.record(self.since(started));
                let dump_from = self.load(ids, &hashes, found, &mut hits)?;
                self.dump(ids, &hashes, dump_from)
            });
        (hits, result)
    }

    /// Loads and checks the first `found` blocks; gives the index of the first one that wasn't there after all.
    fn load(&mut self, ids: &[u64], hashes: &[BlockHash], found: usize, hits: &mut u64) -> Result<usize> {
        let mut dump_from = found;
        let mut took = Duration::ZERO;
        let batches = ids
            .chunks(self.batch_blocks)
            .zip(hashes.chunks(self.batch_blocks));
        for (number, (ids, hashes)) in batches.enumerate() {
            let first = number * self.batch_blocks;
            let count = found.saturating_sub(first).min(ids.len());
            if count == 0 {
                break;
            }
            let transfer = self.transfer(hashes.iter().take(count).copied().collect());
            let started = self.clock.now();
            let report = self.buffer.load(self.client, self.namespace, transfer)?;
            took += self.since(started);
            if report.blocks.len() != count {
                return Err(Error::internal(format!(
                    "{} outcomes for {count} blocks",
                    report.blocks.len()
                )));
            }
            let block_bytes = self.settings.layout.payload_bytes();
            let loaded = self.buffer.as_slice().chunks_exact(block_bytes);
            for (index, ((outcome, id), bytes)) in report.blocks.iter().zip(ids).zip(loaded).enumerate() {
                match outcome {
                    BlockOutcome::Loaded { tier } if Content::of(*id).matches(bytes) => {
                        *hits += 1;
                        self.tally.loaded_bytes += block_bytes as u64;
                        if let Some(count) = self.tally.hits.get_mut(*tier) {
                            *count += 1;
                        }
                        continue;
                    }
                    BlockOutcome::Loaded { .. } => self.tally.corrupt_blocks += 1,
                    // evicted since the lookup, or no room to bring it up: a miss like any other
                    BlockOutcome::Missing => {}
                    BlockOutcome::Failed(error) if error.kind() == ErrorKind::Busy => {}
                    BlockOutcome::Failed(error) => self.tally.error(error),
                    other => self
                        .tally
                        .error(&Error::internal(format!("a load ended as {other:?}"))),
                }
                dump_from = dump_from.min(first + index);
            }
        }
        if found > 0 {
            self.tally.load.record(took);
            self.tally.load_time += took;
        }
        Ok(dump_from)
    }

    fn dump(&mut self, ids: &[u64], hashes: &[BlockHash], dump_from: usize) -> Result<()> {
        let block_bytes = self.settings.layout.payload_bytes();
        let mut parent = dump_from
            .checked_sub(1)
            .and_then(|index| hashes.get(index))
            .copied();
        let ids = ids.get(dump_from..).unwrap_or_default().chunks(self.batch_blocks);
        let hashes = hashes
            .get(dump_from..)
            .unwrap_or_default()
            .chunks(self.batch_blocks);
        for (ids, hashes) in ids.zip(hashes) {
            for (id, bytes) in ids
                .iter()
                .zip(self.buffer.as_mut_slice().chunks_exact_mut(block_bytes))
            {
                Content::of(*id).fill(bytes);
            }
            let transfer = self.transfer(hashes.to_vec());
            let started = self.clock.now();
            let durability = self.settings.durability;
            let report = self
                .buffer
                .dump(self.client, self.namespace, transfer, parent, durability)?;
            self.tally.dump_time += self.since(started);
            for outcome in &report.blocks {
                match outcome {
                    BlockOutcome::Dumped(_) => {
                        self.tally.dumped_blocks += 1;
                        self.tally.dumped_bytes += block_bytes as u64;
                    }
                    BlockOutcome::Present => {}
                    BlockOutcome::Failed(error) => self.tally.error(error),
                    other => self
                        .tally
                        .error(&Error::internal(format!("a dump ended as {other:?}"))),
                }
            }
            parent = hashes.last().copied();
        }
        Ok(())
    }

    fn transfer(&self, hashes: Vec<BlockHash>) -> Transfer {
        let block_bytes = self.settings.layout.payload_bytes();
        let piece = |index| Piece {
            offset: index * block_bytes,
            bytes: block_bytes as u32,
        };
        Transfer {
            pieces: (0..hashes.len()).map(piece).collect(),
            hashes,
            shards: 0..1,
            timeout: self.settings.timeout,
        }
    }

    fn since(&self, started: Instant) -> Duration {
        self.clock.now().saturating_duration_since(started)
    }
}
