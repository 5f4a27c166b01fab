//! What administrators see of the daemon.

use kvstored_core::block::Namespace;
use kvstored_core::identity::Identity;
use kvstored_core::layout::{Layout, Shard};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A namespace that has blocks somewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceRow {
    /// Its digest; 64 hexadecimal digits in JSON.
    #[serde(serialize_with = "write_hex", deserialize_with = "read_hex")]
    pub namespace: Namespace,
    /// What it stands for, where that's known.
    pub identity: Option<Identity>,
    /// Bytes of each tensor of each shard, where that's known and not too long to be told.
    #[serde(default)]
    pub tensor_bytes: Option<Vec<Vec<u32>>>,
    /// Blocks in each tier, fast to durable.
    pub blocks_by_tier: Vec<u64>,
}

/// Tensors of a layout that is told whole.
const MAX_TOLD_TENSORS: usize = 4096;

impl NamespaceRow {
    /// A layout as a row tells it.
    pub(crate) fn told(layout: &Layout) -> Option<Vec<Vec<u32>>> {
        let tensors: usize = layout.shards().iter().map(|shard| shard.tensor_bytes.len()).sum();
        let shards = layout.shards().iter().map(|shard| shard.tensor_bytes.clone());
        (tensors <= MAX_TOLD_TENSORS).then(|| shards.collect())
    }

    /// Shards and tensors of the namespace's blocks, where that's known.
    pub fn layout(&self) -> Option<Layout> {
        let shards = self.tensor_bytes.as_ref()?.iter().map(|tensor_bytes| Shard {
            tensor_bytes: tensor_bytes.clone(),
        });
        Layout::new(shards.collect()).ok()
    }
}

fn write_hex<S: Serializer>(namespace: &Namespace, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(namespace)
}

fn read_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Namespace, D::Error> {
    let text = String::deserialize(deserializer)?;
    Namespace::from_hex(&text).map_err(serde::de::Error::custom)
}
