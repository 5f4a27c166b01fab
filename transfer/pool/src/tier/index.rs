//! Which blocks the pool has, as far as this node knows: a lookup is a hash probe and asks nobody.
//!
//! Nodes tell what they take and release (see [`super::feed`]); what this node puts itself is known at once. Of every
//! block only a 64-bit fingerprint of its whole key is kept, so a hit is a strong hint and no more: it's confirmed when
//! the block is loaded, by the node that compares the whole key.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use kvstored_core::{BlockHash, BlockKey, Namespace, NamespaceInfo};
use kvstored_master::{NodeId, split_key, whole_key};
use parking_lot::RwLock;

/// First bytes of the keys of blocks, so that other objects of the pool are never taken for blocks.
const PREFIX: [u8; 4] = *b"kvB1";
/// What an entry takes in a node's set and in the count of all, with the tables' slack.
const ENTRY_BYTES: u64 = 32;

/// A block's key as an object of the pool, which counts against the namespace's tenant.
pub(crate) fn object_key(namespace: &NamespaceInfo, hash: &BlockHash) -> Box<[u8]> {
    let mut key = Vec::with_capacity(PREFIX.len() + 32 + BlockHash::MAX_BYTES);
    key.extend_from_slice(&PREFIX);
    key.extend_from_slice(&namespace.namespace.0);
    key.extend_from_slice(hash.as_bytes());
    let tenant = &namespace.identity.tenant;
    // names that are too long for the pool are told apart by their digest
    let short = |tenant: &str| whole_key(&blake3::hash(tenant.as_bytes()).to_hex(), &key);
    whole_key(tenant, &key)
        .or_else(|_| short(tenant))
        .unwrap_or_default()
}

/// The block that an object of the pool is, if it's one.
pub(crate) fn block_key(whole: &[u8]) -> Option<BlockKey> {
    let (_, key) = split_key(whole).ok()?;
    let rest = key.strip_prefix(&PREFIX)?;
    let (namespace, hash) = rest.split_first_chunk::<32>()?;
    Some(BlockKey {
        namespace: Namespace(*namespace),
        hash: BlockHash::new(hash).ok()?,
    })
}

/// Fingerprints are uniform already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

type ByFingerprint<V> = HashMap<u64, V, BuildHasherDefault<Identity>>;
type Fingerprints = HashSet<u64, BuildHasherDefault<Identity>>;

#[derive(Default)]
struct Blocks {
    /// How many nodes have each block.
    holders: ByFingerprint<u16>,
    by_node: HashMap<NodeId, Fingerprints>,
}

/// The blocks of one namespace or of all: a set of fingerprints for each node, and how often each occurs.
#[derive(Default)]
pub(crate) struct Index {
    namespaces: RwLock<HashMap<Namespace, Blocks>>,
}

impl Index {
    /// Sets `present[i]` for every block that some node has.
    pub fn lookup(&self, namespace: &Namespace, hashes: &[BlockHash], present: &mut [bool]) {
        let namespaces = self.namespaces.read();
        let Some(blocks) = namespaces.get(namespace) else {
            return;
        };
        for (hash, present) in hashes.iter().zip(present) {
            *present |= blocks.holders.contains_key(&hash.fingerprint());
        }
    }

    /// How many blocks at the start of `hashes` are there without a gap.
    pub fn lookup_on_prefix(&self, namespace: &Namespace, hashes: &[BlockHash]) -> usize {
        let namespaces = self.namespaces.read();
        let Some(blocks) = namespaces.get(namespace) else {
            return 0;
        };
        let there = |hash: &&BlockHash| blocks.holders.contains_key(&hash.fingerprint());
        hashes.iter().take_while(there).count()
    }

    /// A node has taken a block. Returns whether no node had it before.
    pub fn stored(&self, node: NodeId, key: &BlockKey) -> bool {
        let mut namespaces = self.namespaces.write();
        let blocks = namespaces.entry(key.namespace).or_default();
        let fingerprint = key.hash.fingerprint();
        if !blocks.by_node.entry(node).or_default().insert(fingerprint) {
            return false;
        }
        let holders = blocks.holders.entry(fingerprint).or_insert(0);
        *holders = holders.saturating_add(1);
        *holders == 1
    }

    /// A node has released a block. Returns whether no node has it any more.
    pub fn removed(&self, node: &NodeId, key: &BlockKey) -> bool {
        let mut namespaces = self.namespaces.write();
        let Some(blocks) = namespaces.get_mut(&key.namespace) else {
            return false;
        };
        let fingerprint = key.hash.fingerprint();
        let Some(of_node) = blocks.by_node.get_mut(node) else {
            return false;
        };
        if !of_node.remove(&fingerprint) {
            return false;
        }
        let gone = drop_holder(&mut blocks.holders, fingerprint);
        if blocks.holders.is_empty() {
            namespaces.remove(&key.namespace);
        }
        gone
    }

    /// No node has that block after all. Returns whether any was thought to.
    pub fn forget(&self, key: &BlockKey) -> bool {
        let mut namespaces = self.namespaces.write();
        let Some(blocks) = namespaces.get_mut(&key.namespace) else {
            return false;
        };
        let fingerprint = key.hash.fingerprint();
        if blocks.holders.remove(&fingerprint).is_none() {
            return false;
        }
        for of_node in blocks.by_node.values_mut() {
            of_node.remove(&fingerprint);
        }
        if blocks.holders.is_empty() {
            namespaces.remove(&key.namespace);
        }
        true
    }

    /// Nothing is known of that node's blocks any more.
    pub fn forget_node(&self, node: &NodeId) {
        let mut namespaces = self.namespaces.write();
        namespaces.retain(|_, blocks| {
            if let Some(of_node) = blocks.by_node.remove(node) {
                for fingerprint in of_node {
                    drop_holder(&mut blocks.holders, fingerprint);
                }
            }
            !blocks.holders.is_empty()
        });
    }

    /// Nothing of that namespace is there any more. Returns how many blocks were thought to be.
    pub fn purge(&self, namespace: &Namespace) -> u64 {
        let gone = self.namespaces.write().remove(namespace);
        gone.map_or(0, |blocks| blocks.holders.len() as u64)
    }

    /// Namespaces, and how many blocks of each are there.
    pub fn namespaces(&self) -> Vec<(Namespace, u64)> {
        let namespaces = self.namespaces.read();
        let count = |(name, blocks): (&Namespace, &Blocks)| (*name, blocks.holders.len() as u64);
        namespaces.iter().map(count).collect()
    }

    /// Blocks that are known, and roughly the memory that takes.
    pub fn totals(&self) -> (u64, u64) {
        let blocks: u64 = self.namespaces().iter().map(|(_, blocks)| blocks).sum();
        (blocks, blocks * ENTRY_BYTES)
    }
}

fn drop_holder(holders: &mut ByFingerprint<u16>, fingerprint: u64) -> bool {
    match holders.get_mut(&fingerprint) {
        Some(count) if *count > 1 => {
            *count -= 1;
            false
        }
        Some(_) => {
            holders.remove(&fingerprint);
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvstored_core::{Identity, Layout};

    fn block(number: u8) -> BlockKey {
        BlockKey {
            namespace: Namespace([9; 32]),
            hash: BlockHash::new(&[number; 20]).unwrap(),
        }
    }

    fn has(index: &Index, number: u8) -> bool {
        let mut present = [false];
        index.lookup(&block(number).namespace, &[block(number).hash], &mut present);
        present[0]
    }

    #[test]
    fn a_block_is_there_while_any_node_has_it() {
        let index = Index::default();
        assert!(index.stored([1; 16], &block(1)));
        assert!(!index.stored([1; 16], &block(1)), "told twice");
        assert!(!index.stored([2; 16], &block(1)));
        assert!(!index.removed(&[1; 16], &block(1)));
        assert!(!index.removed(&[1; 16], &block(1)), "told twice");
        assert!(has(&index, 1));
        assert!(index.removed(&[2; 16], &block(1)));
        assert!(!has(&index, 1));
        assert_eq!(index.namespaces(), []);
    }

    #[test]
    fn a_node_that_goes_takes_its_blocks_along() {
        let index = Index::default();
        index.stored([1; 16], &block(1));
        index.stored([1; 16], &block(2));
        index.stored([2; 16], &block(2));
        index.forget_node(&[1; 16]);
        assert!(!has(&index, 1) && has(&index, 2));
        assert_eq!(
            index.lookup_on_prefix(&block(1).namespace, &[block(2).hash, block(1).hash]),
            1
        );
        assert!(index.forget(&block(2)));
        assert!(!index.forget(&block(2)));
        assert_eq!(index.totals(), (0, 0));
    }

    #[test]
    fn keys_of_blocks_are_told_from_others() {
        for tenant in ["", "somebody", &"x".repeat(500)] {
            let identity = Identity {
                tenant: tenant.to_owned(),
                ..Identity::default()
            };
            let info = NamespaceInfo::new(identity, Layout::uniform(1, 1, 4096).unwrap()).unwrap();
            let key = object_key(&info, &block(3).hash);
            let found = block_key(&key).unwrap();
            assert_eq!(found, info.key(block(3).hash));
            for cut in 0..key.len() - 4 {
                assert_eq!(block_key(&key[..cut]), None, "{cut}");
            }
        }
        let other = whole_key("", b"kvB1 and a name that somebody chose").unwrap();
        assert_eq!(block_key(&other), None);
    }
}
