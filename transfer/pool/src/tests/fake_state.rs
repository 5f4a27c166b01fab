//! What the fake master knows.

use std::collections::HashMap;

use kvstored_master::{Lender, Location, NewObject, NodeId, TokenKey, TokenRange};

pub struct Object {
    pub put: u64,
    pub length: u64,
    pub checksum: u64,
    pub locations: Vec<Location>,
    pub complete: bool,
}

pub struct Lent {
    pub lender: Lender,
    pub announced: bool,
    pub ranges: HashMap<u64, (u64, u64)>,
    pub release: Vec<u64>,
}

impl Lent {
    pub fn allocate(&mut self, put: u64, length: u64) -> Option<u64> {
        let mut taken: Vec<(u64, u64)> = self.ranges.values().copied().collect();
        taken.sort_unstable();
        let mut offset = 0;
        for (begin, size) in taken {
            if begin - offset >= length {
                break;
            }
            offset = begin + size;
        }
        if offset + length > self.lender.segment_bytes {
            return None;
        }
        self.ranges.insert(put, (offset, length));
        Some(offset)
    }
}

pub struct State {
    pub epoch: u64,
    pub next_put: u64,
    pub objects: HashMap<Vec<u8>, Object>,
    pub nodes: HashMap<NodeId, Lent>,
}

impl State {
    pub fn drop_object(&mut self, key: &[u8]) -> bool {
        let Some(object) = self.objects.remove(key) else {
            return false;
        };
        for location in &object.locations {
            if let Some(node) = self.nodes.get_mut(&location.node) {
                node.release.push(object.put);
            }
        }
        true
    }
}

pub fn token_key() -> TokenKey {
    TokenKey::from_bytes([5; 32])
}

pub fn token(epoch: u64, node: &NodeId, put: u64, offset: u64, object: &NewObject<'_>) -> Box<[u8]> {
    let range = TokenRange {
        node,
        put,
        offset,
        length: object.length,
        key: object.key,
    };
    token_key().sign(epoch, &range).into()
}
