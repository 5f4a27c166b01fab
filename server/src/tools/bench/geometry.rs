//! Shapes of blocks: those of real models, per rank, in blocks of 128 tokens.

use kvstored_core::{Error, Layout, Result};

/// The shape of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Name on the command line.
    pub name: &'static str,
    /// Layers of the model.
    pub layers: usize,
    /// Tensors of a layer: K and V, or one where they are one.
    pub tensors: usize,
    /// Bytes of a tensor.
    pub tensor_bytes: u32,
}

impl Geometry {
    /// Every known shape.
    pub const ALL: [Geometry; 5] = [
        Self {
            name: "qwq-32b-tp4",
            layers: 64,
            tensors: 2,
            tensor_bytes: 65_536,
        },
        Self {
            name: "qwen3-235b-tp4",
            layers: 94,
            tensors: 2,
            tensor_bytes: 32_768,
        },
        Self {
            name: "deepseek-mla",
            layers: 61,
            tensors: 1,
            tensor_bytes: 147_456,
        },
        Self {
            name: "tiny",
            layers: 4,
            tensors: 2,
            tensor_bytes: 4_096,
        },
        Self {
            name: "blocks-1mib",
            layers: 1,
            tensors: 1,
            tensor_bytes: 1 << 20,
        },
    ];

    /// The shape with that name. Fails with `InvalidInput`, naming the known ones.
    pub fn named(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|geometry| geometry.name == name)
            .ok_or_else(|| {
                let known: Vec<&str> = Self::ALL.iter().map(|geometry| geometry.name).collect();
                Error::invalid(format!(
                    "geometry \"{name}\" is unknown; known are {}",
                    known.join(", ")
                ))
            })
    }

    /// All tensors of a block as one shard.
    pub fn whole_block(&self) -> Result<Layout> {
        Layout::uniform(1, self.layers * self.tensors, self.tensor_bytes)
    }

    /// A shard per layer.
    pub fn layerwise(&self) -> Result<Layout> {
        Layout::uniform(self.layers, self.tensors, self.tensor_bytes)
    }

    /// Bytes of KV in a block.
    pub fn block_bytes(&self) -> usize {
        self.layers * self.tensors * self.tensor_bytes as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_hold_the_same_bytes() {
        for geometry in Geometry::ALL {
            let (whole, layers) = (geometry.whole_block().unwrap(), geometry.layerwise().unwrap());
            assert_eq!(whole.payload_bytes(), geometry.block_bytes());
            assert_eq!(layers.payload_bytes(), geometry.block_bytes());
            assert_eq!(layers.shards().len(), geometry.layers);
        }
        assert_eq!(Geometry::named("qwq-32b-tp4").unwrap().block_bytes(), 8 << 20);
    }

    #[test]
    fn an_unknown_shape_is_an_error_that_names_the_known() {
        assert!(
            Geometry::named("gpt")
                .unwrap_err()
                .to_string()
                .contains("deepseek-mla")
        );
    }
}
