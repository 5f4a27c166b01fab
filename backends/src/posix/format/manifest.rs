//! The manifest of a namespace: what its digest stands for, and up to where it was purged.

use std::sync::Arc;

use kvstored_core::layout::Shard;
use kvstored_core::{Error, Identity, Layout, Namespace, NamespaceInfo, Result};
use serde::{Deserialize, Serialize};

use super::{VERSION, corrupt};

/// The largest manifest that is read: a layout with every shard and tensor a block may have.
pub const MAX_MANIFEST_BYTES: u64 = 32 << 20;

#[derive(Serialize, Deserialize)]
struct Document {
    format: u16,
    #[serde(default)]
    identity: Option<Identity>,
    #[serde(default)]
    layout: Option<Vec<Vec<u32>>>,
    #[serde(default)]
    purged_generation: u64,
}

/// A decoded manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Identity and layout; `None` where they were lost.
    pub info: Option<Arc<NamespaceInfo>>,
    /// Blocks up to this generation don't exist.
    pub purged_generation: u64,
}

impl Manifest {
    /// The file's bytes.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let info = self.info.as_deref();
        let document = Document {
            format: VERSION,
            identity: info.map(|info| info.identity.clone()),
            layout: info.map(|info| {
                info.layout
                    .shards()
                    .iter()
                    .map(|shard| shard.tensor_bytes.clone())
                    .collect()
            }),
            purged_generation: self.purged_generation,
        };
        serde_json::to_vec(&document).map_err(|error| Error::internal(format!("manifest: {error}")))
    }

    /// Parses the manifest of `namespace`. Fails with `Unsupported` for a newer version, with `Corrupt` for what
    /// isn't a manifest. Identity and layout that don't give the namespace are left out.
    pub fn decode(namespace: &Namespace, bytes: &[u8]) -> Result<Self> {
        let document: Document =
            serde_json::from_slice(bytes).map_err(|error| corrupt("manifest", &error.to_string()))?;
        if document.format != VERSION {
            return Err(Error::new(
                kvstored_core::ErrorKind::Unsupported,
                format!(
                    "manifest has version {}, this build reads {VERSION}",
                    document.format
                ),
            ));
        }
        let info = document
            .identity
            .zip(document.layout)
            .and_then(|(identity, layout)| {
                let shards = layout
                    .into_iter()
                    .map(|tensor_bytes| Shard { tensor_bytes })
                    .collect();
                let info = NamespaceInfo::new(identity, Layout::new(shards).ok()?).ok()?;
                (info.namespace == *namespace).then(|| Arc::new(info))
            });
        Ok(Self {
            info,
            purged_generation: document.purged_generation,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn info() -> Arc<NamespaceInfo> {
        let identity = Identity {
            tenant: "t".into(),
            model: "m".into(),
            ..Identity::default()
        };
        Arc::new(NamespaceInfo::new(identity, Layout::uniform(3, 2, 5000).unwrap()).unwrap())
    }

    #[test]
    fn round_trips() {
        let manifest = Manifest {
            info: Some(info()),
            purged_generation: 12,
        };
        let bytes = manifest.encode().unwrap();
        assert_eq!(Manifest::decode(&info().namespace, &bytes).unwrap(), manifest);
        let bare = Manifest {
            info: None,
            purged_generation: 7,
        };
        assert_eq!(
            Manifest::decode(&info().namespace, &bare.encode().unwrap()).unwrap(),
            bare
        );
    }

    #[test]
    fn another_namespaces_manifest_keeps_only_its_bound() {
        let bytes = Manifest {
            info: Some(info()),
            purged_generation: 12,
        }
        .encode()
        .unwrap();
        let decoded = Manifest::decode(&Namespace([1; 32]), &bytes).unwrap();
        assert_eq!(
            decoded,
            Manifest {
                info: None,
                purged_generation: 12
            }
        );
    }

    #[test]
    fn a_newer_version_is_unsupported() {
        let error = Manifest::decode(&info().namespace, br#"{"format":2}"#).unwrap_err();
        assert_eq!(error.kind(), kvstored_core::ErrorKind::Unsupported);
    }

    proptest! {
        #[test]
        fn rubbish_never_panics(text in ".{0,200}") {
            let _ = Manifest::decode(&Namespace([0; 32]), text.as_bytes());
        }
    }
}
