//! What a tier has to do.

use std::str::FromStr;

use crate::abi;
use crate::failure::{Failure, Kind};
use crate::host::Host;
use crate::operation::{Durability, Operation};

/// A tier of blocks. A block is one run of bytes of its namespace's size: absent or whole.
///
/// The host checks what it reads back, answers lookups from an index of its own, and calls from one thread, one call
/// after the other. All but [`Tier::submit`] may wait for I/O, within the host's timeout (5 s by default).
pub trait Tier: Send + Sync + Sized + 'static {
    /// How safe a block gets here.
    const KEEPS: Durability;

    /// Makes the tier. Blocks that are here already are told with [`Host::stored`], now or later.
    fn open(host: Host, settings: Settings) -> Result<Self, Failure>;

    /// Tells of a namespace before its first operation.
    fn open_namespace(&self, _info: &NamespaceInfo) -> Result<(), Failure> {
        Ok(())
    }

    /// Takes an operation over and returns at once; it may end on any thread.
    fn submit(&self, operation: Operation);

    /// Takes a batch over, as the host submits it. One by one where a tier doesn't gain from more.
    fn submit_batch(&self, operations: Vec<Operation>) {
        for operation in operations {
            self.submit(operation);
        }
    }

    /// Forgets blocks, those that are here.
    fn remove(&self, keys: &[abi::Key]) -> Result<(), Failure>;

    /// Forgets a namespace, also for later restarts.
    fn purge(&self, namespace: &[u8; 32]) -> Result<(), Failure>;

    /// Fills in the numbers that the tier has.
    fn statistics(&self, _statistics: &mut abi::Statistics) {}

    /// Makes what was written as safe as it gets.
    fn drain(&self, _timeout_ms: u64) -> Result<(), Failure> {
        Ok(())
    }
}

/// What a tier is told of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// The namespace's digest.
    pub digest: [u8; 32],
    /// Bytes that each operation moves; a multiple of 4096.
    pub image_bytes: u64,
    /// Bytes of KV in a block, without descriptor page and padding.
    pub payload_bytes: u64,
    /// Who owns it.
    pub tenant: String,
    /// Model name, for people.
    pub model: String,
    /// All that the digest stands for, as JSON: `{"identity": {…}, "layout": [[bytes of each tensor] for each shard]}`.
    /// Empty from hosts before 1.1.
    pub description: String,
}

/// The settings of the tier: `--plugin-setting NAME.KEY=VALUE`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pairs: Vec<(String, String)>,
}

impl Settings {
    pub(crate) fn new(pairs: Vec<(String, String)>) -> Self {
        Self { pairs }
    }

    /// A setting's value, if it was given.
    pub fn get(&self, key: &str) -> Option<&str> {
        let pair = self.pairs.iter().find(|(name, _)| name == key);
        pair.map(|(_, value)| value.as_str())
    }

    /// A setting's value as a number or another type. Fails with `InvalidInput`, naming key and value.
    pub fn parse<T: FromStr>(&self, key: &str, default: T) -> Result<T, Failure> {
        match self.get(key) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| {
                Failure::new(
                    Kind::InvalidInput,
                    format!("setting {key} = \"{text}\" can't be read"),
                )
            }),
        }
    }

    /// Fails with `InvalidInput`, naming a setting that isn't among the known ones.
    pub fn expect(&self, known: &[&str]) -> Result<(), Failure> {
        match self.pairs.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some((key, _)) => Err(Failure::new(
                Kind::InvalidInput,
                format!("setting {key} is unknown; known are: {}", known.join(", ")),
            )),
        }
    }
}
