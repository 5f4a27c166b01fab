//! Blocks whose contents are a function of their number, moved through the real client.
#![allow(unsafe_code)]

use std::time::Duration;

use kvstored_client::{
    BlockOutcome, Client, DumpRequest, LoadOrder, LoadRequest, NamespaceHandle, TaskReport, TensorAddress,
};
use kvstored_core::{BlockHash, Durability, Identity, Layout, Result};

const TIMEOUT: Duration = Duration::from_mins(1);

/// Numbered blocks of one namespace.
pub struct Blocks<'a> {
    client: &'a Client,
    namespace: NamespaceHandle,
}

/// What a load gave, by the bytes themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// Every byte is right.
    Right,
    /// It wasn't there.
    Missing,
    /// Bytes were returned that are not the block's. Must never happen.
    Wrong,
    /// It couldn't be loaded for another reason.
    Failed,
}

/// The hash of block `number`: 16, 20 or 32 bytes long, by the number.
pub fn hash(number: u64) -> BlockHash {
    let mut bytes = [0u8; 32];
    for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&mix(number ^ (index as u64) << 56).to_le_bytes());
    }
    let length = [32, 16, 20].get((number % 3) as usize).copied().unwrap_or(32);
    BlockHash::new(&bytes[..length]).unwrap_or_else(|error| unreachable!("{error}"))
}

fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The payload of block `number`.
pub fn contents(number: u64, bytes: usize) -> Vec<u8> {
    let mut payload = Vec::with_capacity(bytes + 8);
    let mut word = mix(number);
    while payload.len() < bytes {
        payload.extend_from_slice(&word.to_le_bytes());
        word = word.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(number | 1);
    }
    payload.truncate(bytes);
    payload
}

impl<'a> Blocks<'a> {
    /// Blocks of that layout in a namespace named by `model`.
    pub fn open(client: &'a Client, model: &str, layout: &Layout) -> Result<Self> {
        let identity = Identity {
            model: model.to_owned(),
            ..Identity::default()
        };
        Ok(Self {
            client,
            namespace: client.open_namespace(&identity, layout)?,
        })
    }

    /// The namespace.
    pub fn namespace(&self) -> &NamespaceHandle {
        &self.namespace
    }

    fn layout(&self) -> &Layout {
        &self.namespace.info().layout
    }

    fn addresses(&self, payloads: &mut [Vec<u8>]) -> Vec<TensorAddress> {
        let mut tensors = Vec::new();
        for payload in payloads {
            let mut offset = 0;
            for shard in self.layout().shards() {
                for bytes in &shard.tensor_bytes {
                    tensors.push(TensorAddress {
                        address: payload.as_mut_ptr() as usize + offset,
                        bytes: *bytes,
                    });
                    offset += *bytes as usize;
                }
            }
        }
        tensors
    }

    /// Dumps blocks and waits for the acknowledgement of each.
    pub fn dump(&self, numbers: &[u64], durability: Durability) -> Result<Vec<BlockOutcome>> {
        let bytes = self.layout().payload_bytes();
        let mut payloads: Vec<Vec<u8>> = numbers.iter().map(|number| contents(*number, bytes)).collect();
        let request = DumpRequest {
            hashes: numbers.iter().map(|number| hash(*number)).collect(),
            parent: None,
            tensors: self.addresses(&mut payloads),
            durability,
            timeout: Some(TIMEOUT),
        };
        // SAFETY: the payloads live until the task has ended.
        let task = unsafe { self.client.dump(&self.namespace, request) }?;
        let report = finish(&task)?;
        drop(payloads);
        Ok(report.blocks)
    }

    /// Loads blocks and compares every byte.
    pub fn load(&self, numbers: &[u64]) -> Result<Vec<Loaded>> {
        let bytes = self.layout().payload_bytes();
        let mut payloads: Vec<Vec<u8>> = numbers.iter().map(|_| vec![0xEE; bytes]).collect();
        let request = LoadRequest {
            hashes: numbers.iter().map(|number| hash(*number)).collect(),
            shards: 0..self.layout().shards().len(),
            tensors: self.addresses(&mut payloads),
            order: LoadOrder::BlockMajor,
            timeout: Some(TIMEOUT),
        };
        // SAFETY: the payloads live until the task has ended.
        let task = unsafe { self.client.load(&self.namespace, request) }?;
        let report = finish(&task)?;
        let outcomes = report.blocks.iter().zip(numbers).zip(&payloads);
        Ok(outcomes
            .map(|((outcome, number), payload)| match outcome {
                BlockOutcome::Loaded { .. } if *payload == contents(*number, bytes) => Loaded::Right,
                BlockOutcome::Loaded { .. } => Loaded::Wrong,
                BlockOutcome::Missing => Loaded::Missing,
                _ => Loaded::Failed,
            })
            .collect())
    }

    /// Which blocks a lookup finds.
    pub fn lookup(&self, numbers: &[u64]) -> Result<Vec<bool>> {
        let hashes: Vec<BlockHash> = numbers.iter().map(|number| hash(*number)).collect();
        self.client.lookup(&self.namespace, &hashes)
    }
}

/// Waits for a task; one that doesn't end is cancelled, and waited for until it lets its memory go.
fn finish(task: &kvstored_client::Task) -> Result<TaskReport> {
    task.wait(TIMEOUT).or_else(|_| {
        task.cancel();
        task.wait(TIMEOUT)
    })
}
