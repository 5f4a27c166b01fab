//! The indexes of all namespaces of a tier of slots.

use std::collections::HashMap;
use std::sync::Arc;

use kvstored_core::block::{BlockHash, BlockKey, Namespace};
use kvstored_core::tier::NamespaceInfo;
use parking_lot::RwLock;

use super::NamespaceIndex;

/// An index for each namespace that was opened. Clones are the same indexes.
#[derive(Clone, Default)]
pub(crate) struct Indexes(Arc<RwLock<HashMap<Namespace, NamespaceIndex>>>);

impl Indexes {
    /// Makes room for a namespace's blocks.
    pub(super) fn open(&self, namespace: &Namespace) {
        self.0.write().entry(*namespace).or_default();
    }

    pub(crate) fn get(&self, namespace: &Namespace) -> Option<NamespaceIndex> {
        self.0.read().get(namespace).cloned()
    }

    pub(crate) fn lookup(&self, namespace: &NamespaceInfo, hashes: &[BlockHash], present: &mut [bool]) {
        if let Some(index) = self.get(&namespace.namespace) {
            index.read().lookup(hashes, present);
        }
    }

    pub(crate) fn lookup_on_prefix(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> usize {
        self.get(&namespace.namespace)
            .map_or(0, |index| index.read().lookup_on_prefix(hashes))
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<(Namespace, NamespaceIndex)> {
        let indexes = self.0.read();
        let all = indexes.iter();
        all.map(|(namespace, index)| (*namespace, index.clone()))
            .collect()
    }

    /// Blocks of all namespaces.
    pub(crate) fn blocks(&self) -> u64 {
        let all = self.all();
        all.iter().map(|(_, index)| index.read().len() as u64).sum()
    }

    /// Up to `limit` keys behind `after`, in the order of namespaces and then of the index.
    pub(crate) fn list(
        &self,
        namespace: Option<&Namespace>,
        after: Option<&BlockKey>,
        limit: usize,
    ) -> Vec<BlockKey> {
        let mut wanted: Vec<Namespace> = match namespace {
            Some(namespace) => vec![*namespace],
            None => self.0.read().keys().copied().collect(),
        };
        wanted.sort_unstable();
        let mut keys = Vec::new();
        for namespace in wanted {
            let behind = match after {
                Some(after) if namespace < after.namespace => continue,
                Some(after) if namespace == after.namespace => Some(&after.hash),
                _ => None,
            };
            let Some(index) = self.get(&namespace) else {
                continue;
            };
            let hashes = index.read().list_after(behind, limit - keys.len());
            keys.extend(hashes.into_iter().map(|hash| BlockKey { namespace, hash }));
            if keys.len() >= limit {
                break;
            }
        }
        keys
    }

    /// Namespaces and how many blocks each has.
    pub(crate) fn namespaces(&self) -> Vec<(Namespace, u64)> {
        let indexes = self.0.read();
        indexes
            .iter()
            .map(|(namespace, index)| (*namespace, index.read().len() as u64))
            .collect()
    }
}
