//! Everything that makes KV bytes meaningful; its digest is the namespace.

use serde::{Deserialize, Serialize};

use crate::block::Namespace;
use crate::error::{Error, Result};
use crate::layout::Layout;

/// Position of a worker in the engine's parallel layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ParallelShape {
    /// Tensor-parallel world size.
    pub tensor_parallel_size: u32,
    /// Tensor-parallel rank of this worker.
    pub tensor_parallel_rank: u32,
    /// Pipeline-parallel world size.
    pub pipeline_parallel_size: u32,
    /// Pipeline-parallel rank of this worker.
    pub pipeline_parallel_rank: u32,
}

impl Default for ParallelShape {
    fn default() -> Self {
        Self {
            tensor_parallel_size: 1,
            tensor_parallel_rank: 0,
            pipeline_parallel_size: 1,
            pipeline_parallel_rank: 0,
        }
    }
}

/// Everything that makes KV bytes meaningful. Two workers share blocks exactly when all of it is equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Identity {
    /// Tenant that owns the namespace and whose quota it counts against.
    pub tenant: String,
    /// Model name and revision, for people.
    pub model: String,
    /// Digest of the weights (and of quantisation settings).
    pub weights_digest: String,
    /// LoRA adapter name and digest; empty for none.
    pub lora: String,
    /// KV dtype, and where it matters the instruction set that fixes the byte order of a vendor layout.
    pub dtype: String,
    /// Version of the engine's memory layout of KV.
    pub layout_version: u32,
    /// Tokens per block.
    pub block_tokens: u32,
    /// Parallel shape and rank.
    pub parallel: ParallelShape,
    /// Salt that keeps one tenant's prompts apart from another's.
    pub cache_salt: String,
}

impl Identity {
    /// The longest accepted text field.
    pub const MAX_FIELD_BYTES: usize = 1024;

    /// Checks lengths and ranks. Fails with `InvalidInput`, naming the field.
    pub fn validate(&self) -> Result<()> {
        for (name, value) in self.text_fields() {
            if value.len() > Self::MAX_FIELD_BYTES {
                return Err(Error::invalid(format!(
                    "identity field {name} has {} bytes; at most {} are accepted",
                    value.len(),
                    Self::MAX_FIELD_BYTES
                )));
            }
        }
        let parallel = self.parallel;
        for (name, rank, size) in [
            (
                "tensor_parallel",
                parallel.tensor_parallel_rank,
                parallel.tensor_parallel_size,
            ),
            (
                "pipeline_parallel",
                parallel.pipeline_parallel_rank,
                parallel.pipeline_parallel_size,
            ),
        ] {
            if rank >= size {
                return Err(Error::invalid(format!(
                    "{name}_rank {rank} is not below {name}_size {size}"
                )));
            }
        }
        Ok(())
    }

    /// The namespace: BLAKE3 in key-derivation mode over every field, each with its length in front, and the
    /// layout's digest.
    pub fn namespace(&self, layout: &Layout) -> Namespace {
        let mut hasher = blake3::Hasher::new_derive_key("kvstored identity v1");
        for (_, value) in self.text_fields() {
            hasher.update(&(value.len() as u64).to_le_bytes());
            hasher.update(value.as_bytes());
        }
        for number in [
            self.layout_version,
            self.block_tokens,
            self.parallel.tensor_parallel_size,
            self.parallel.tensor_parallel_rank,
            self.parallel.pipeline_parallel_size,
            self.parallel.pipeline_parallel_rank,
        ] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(layout.digest());
        Namespace(*hasher.finalize().as_bytes())
    }

    fn text_fields(&self) -> [(&'static str, &str); 6] {
        [
            ("tenant", &self.tenant),
            ("model", &self.model),
            ("weights_digest", &self.weights_digest),
            ("lora", &self.lora),
            ("dtype", &self.dtype),
            ("cache_salt", &self.cache_salt),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_changes_the_namespace() {
        let layout = Layout::uniform(1, 2, 4096).unwrap();
        let base = Identity {
            model: "m".into(),
            ..Identity::default()
        };
        let mut variants = vec![base.clone()];
        let change: [fn(&mut Identity); 13] = [
            |i| i.tenant = "x".into(),
            |i| i.model = "x".into(),
            |i| i.weights_digest = "x".into(),
            |i| i.lora = "x".into(),
            |i| i.dtype = "x".into(),
            |i| i.cache_salt = "x".into(),
            |i| i.layout_version = 9,
            |i| i.block_tokens = 9,
            |i| i.parallel.tensor_parallel_size = 9,
            |i| i.parallel.tensor_parallel_rank = 9,
            |i| i.parallel.pipeline_parallel_size = 9,
            |i| i.parallel.pipeline_parallel_rank = 9,
            |i| {
                // moving bytes between neighbours must not collide
                i.tenant = "m".into();
                i.model = String::new();
            },
        ];
        for apply in change {
            let mut changed = base.clone();
            apply(&mut changed);
            variants.push(changed);
        }
        let mut digests: Vec<_> = variants
            .iter()
            .map(|identity| identity.namespace(&layout))
            .collect();
        digests.push(base.namespace(&Layout::uniform(2, 1, 4096).unwrap()));
        let count = digests.len();
        digests.sort();
        digests.dedup();
        assert_eq!(digests.len(), count);
    }

    #[test]
    fn validation_names_the_field() {
        let long = Identity {
            lora: "x".repeat(2000),
            ..Identity::default()
        };
        assert!(long.validate().unwrap_err().to_string().contains("lora"));
        let mut rank = Identity::default();
        rank.parallel.tensor_parallel_rank = 4;
        assert!(
            rank.validate()
                .unwrap_err()
                .to_string()
                .contains("tensor_parallel_rank 4")
        );
    }
}
