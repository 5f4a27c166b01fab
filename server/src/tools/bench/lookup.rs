//! Lookups of a long prompt, all of it present.

use std::sync::Arc;

use kvstored_client::{Client, NamespaceHandle};
use kvstored_core::{BlockHash, Durability, Error, Layout, Result};

use super::daemon::{Daemon, Echo, median_us};
use super::figure::{Figure, Samples, Side};
use super::setup::Setup;
use crate::tools::buffer::{Buffer, Piece, Transfer};
use crate::tools::content::{block_hash, mix};

/// A million tokens in blocks of 128.
const BLOCKS: usize = 8192;
const BLOCK_BYTES: u32 = 4096;
/// Blocks dumped at a time.
const BATCH_BLOCKS: usize = 1024;
const LOOKUPS: usize = 200;
const CACHE_BYTES: u64 = 256 << 20;
const POSIX_BYTES: u64 = 1 << 30;
/// Bytes of a hash on the wire, its length included.
const WIRE_HASH_BYTES: usize = 33;

struct Prompt {
    client: Arc<Client>,
    namespace: NamespaceHandle,
    hashes: Vec<BlockHash>,
}

impl Prompt {
    fn dump(setup: &Setup, client: &Arc<Client>) -> Result<Self> {
        let layout = Layout::uniform(1, 1, BLOCK_BYTES)?;
        let namespace = client.open_namespace(&Setup::identity(), &layout)?;
        let first = setup.number() << 20;
        let hashes = (0..BLOCKS as u64)
            .map(|index| block_hash(first + index))
            .collect::<Result<Vec<_>>>()?;
        let mut buffer = Buffer::new(BATCH_BLOCKS * BLOCK_BYTES as usize)?;
        let mut parent = None;
        for batch in hashes.chunks(BATCH_BLOCKS) {
            let piece = |index| Piece {
                offset: index * BLOCK_BYTES as usize,
                bytes: BLOCK_BYTES,
            };
            let transfer = Transfer {
                hashes: batch.to_vec(),
                shards: 0..1,
                pieces: (0..batch.len()).map(piece).collect(),
                timeout: super::scattered::TIMEOUT,
            };
            buffer.dump(client, &namespace, transfer, parent, Durability::Tier)?;
            parent = batch.last().copied();
        }
        Ok(Self {
            client: client.clone(),
            namespace,
            hashes,
        })
    }

    fn leave_memory(&self) -> Result<()> {
        self.client.evict(
            &self.namespace,
            &self.hashes,
            self.client.tier_names().first().map(String::as_str),
        )?;
        Ok(())
    }

    fn lookup(&self) -> Result<()> {
        match self.client.lookup_on_prefix(&self.namespace, &self.hashes)? {
            BLOCKS => Ok(()),
            found => Err(Error::internal(format!("{found} of {BLOCKS} blocks found"))),
        }
    }
}

/// The hashes once more, at random places: any index has to compare each with its copy.
struct Copies {
    copies: Vec<BlockHash>,
    places: Vec<u32>,
}

impl Copies {
    fn new(hashes: &[BlockHash]) -> Self {
        let mut order: Vec<u32> = (0..hashes.len() as u32).collect();
        order.sort_by_key(|index| mix(u64::from(*index)));
        let mut places = vec![0; hashes.len()];
        for (place, index) in order.iter().enumerate() {
            if let Some(known) = places.get_mut(*index as usize) {
                *known = place as u32;
            }
        }
        let copies = order
            .iter()
            .filter_map(|index| hashes.get(*index as usize).copied())
            .collect();
        Self { copies, places }
    }

    fn compare(&self, hashes: &[BlockHash]) -> Result<()> {
        let equal = |(hash, place): (&BlockHash, &u32)| self.copies.get(*place as usize) == Some(hash);
        if hashes.iter().zip(&self.places).all(equal) {
            return Ok(());
        }
        Err(Error::internal("a hash differs from its copy"))
    }
}

/// An engine in this process.
pub fn embedded(setup: &Setup) -> Result<Vec<Figure>> {
    let directory = setup.directory()?;
    let store = directory.path().join("store");
    let embedded = setup.embedded("Cache|Posix", Some(&store), CACHE_BYTES, POSIX_BYTES, 1)?;
    let prompt = Prompt::dump(setup, &embedded.client)?;
    let copies = Copies::new(&prompt.hashes);
    let measure = || {
        Samples::take(setup.rounds, |side| {
            median_us(setup, LOOKUPS, || match side {
                Side::Ours => prompt.lookup(),
                Side::Limit => copies.compare(&prompt.hashes),
            })
        })
    };
    let in_memory = measure()?;
    prompt.leave_memory()?;
    let on_disk = measure()?;
    let limit = "limit: comparing each hash with its copy";
    Ok(vec![
        Figure::new(
            "lookup_on_prefix_8192",
            "us",
            &in_memory,
            format!("embedded, blocks in DRAM; {limit}"),
        ),
        Figure::new(
            "lookup_on_prefix_8192_disk",
            "us",
            &on_disk,
            format!("embedded, blocks on disk only; {limit}"),
        ),
    ])
}

/// A daemon.
pub fn through_daemon(setup: &Setup) -> Result<Vec<Figure>> {
    let daemon = Daemon::start(setup)?;
    let prompt = Prompt::dump(setup, &daemon.client)?;
    let mut echo = Echo::start(setup, BLOCKS * WIRE_HASH_BYTES, 16)?;
    let mut measure = || {
        Samples::take(setup.rounds, |side| {
            median_us(setup, LOOKUPS, || match side {
                Side::Ours => prompt.lookup(),
                Side::Limit => echo.round_trip(),
            })
        })
    };
    let in_memory = measure()?;
    prompt.leave_memory()?;
    let on_disk = measure()?;
    let limit = "limit: sending as many bytes to a process that only answers";
    Ok(vec![
        Figure::new(
            "lookup_on_prefix_8192_daemon",
            "us",
            &in_memory,
            format!("blocks in DRAM; {limit}"),
        ),
        Figure::new(
            "lookup_on_prefix_8192_daemon_disk",
            "us",
            &on_disk,
            format!("blocks on disk only; {limit}"),
        ),
    ])
}
