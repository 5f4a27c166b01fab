//! What clients, nodes and masters tell one another, apart from how it is carried. Plain data.

use std::sync::Arc;
use std::time::Duration;

pub use crate::key::{MAX_KEY_BYTES, MAX_TENANT_BYTES, split_key, whole_key};

/// The identity of a node that lends memory: random, new at each of its starts.
pub type NodeId = [u8; 16];

/// A node's identity for people: 32 hexadecimal digits.
pub fn node_name(id: &NodeId) -> String {
    use std::fmt::Write;
    id.iter().fold(String::with_capacity(32), |mut text, byte| {
        // writing to a string can't fail
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The identity with that name.
pub fn parse_node(name: &str) -> Option<NodeId> {
    let digits = name.as_bytes();
    if digits.len() != 32 {
        return None;
    }
    let mut id = NodeId::default();
    for (byte, pair) in id.iter_mut().zip(digits.chunks(2)) {
        let pair = std::str::from_utf8(pair)
            .ok()
            .filter(|pair| !pair.starts_with('+'))?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(id)
}

/// Most items in one batch.
pub const MAX_ITEMS: usize = 4096;

/// One replica of an object, or the place for one: where it lies, and how to get there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    /// The node that holds it.
    pub node: NodeId,
    /// Where the node answers requests for grants, `host:port`.
    pub control: Arc<str>,
    /// Where the node's transfer engine listens, `host:port`.
    pub engine: Arc<str>,
    /// The put that wrote it, or is to: a copy that was made later has one of its own.
    pub put: u64,
    /// Where it begins in the node's segment.
    pub offset: u64,
    /// What the node wants to see before it grants the right to write; empty except in a [`Ticket`].
    pub token: Box<[u8]>,
}

/// An object as a master knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The put that wrote it. What its replicas are asked for by is each location's own.
    pub put: u64,
    /// Bytes.
    pub length: u64,
    /// CRC-64/NVME of the bytes.
    pub checksum: u64,
    /// How long it stays where it is, from the moment of asking. Zero for an answer from memory.
    pub lease: Duration,
    /// Its replicas; those of nodes that seem to be gone come last.
    pub locations: Vec<Location>,
    /// No master answered: this is what the last one said.
    pub stale: bool,
}

/// An object to be put.
#[derive(Clone, Copy, Debug)]
pub struct NewObject<'a> {
    /// Its whole key; see [`whole_key`].
    pub key: &'a [u8],
    /// Bytes.
    pub length: u64,
}

/// Wishes about a put.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// Copies on different nodes; 0 means 1. Fewer are given where fewer nodes have room.
    pub replicas: u32,
    /// Not evicted while pinned, unless nothing else is left and the master allows it.
    pub soft_pin: bool,
    /// A node to prefer.
    pub prefer: Option<NodeId>,
    /// Nodes that didn't answer lately.
    pub avoid: Vec<NodeId>,
    /// How long the call may wait for room that is being made.
    pub wait: Duration,
}

/// A put that may begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Its number.
    pub put: u64,
    /// Where to write, each with the token that its node wants to see.
    pub locations: Vec<Location>,
}

/// A put that its nodes hold.
#[derive(Clone, Debug)]
pub struct Finished<'a> {
    /// The object's whole key.
    pub key: &'a [u8],
    /// The put's number.
    pub put: u64,
    /// CRC-64/NVME of the bytes.
    pub checksum: u64,
    /// The nodes that hold it; those of the ticket that are missing here failed.
    pub nodes: &'a [NodeId],
    /// The smallest epoch of the masters that those nodes obeyed when they took the descriptor.
    pub master_epoch: u64,
}

/// A node that lends memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lender {
    /// Its identity.
    pub node: NodeId,
    /// Its name for people.
    pub name: String,
    /// Where it answers requests for grants, `host:port`.
    pub control: String,
    /// Where its transfer engine listens, `host:port`.
    pub engine: String,
    /// Bytes that it lends.
    pub segment_bytes: u64,
    /// The epoch of the master that it obeyed last; 0 for none.
    pub obeyed_epoch: u64,
    /// The highest number of a put that it ever heard of; 0 for none.
    pub highest_put: u64,
    /// How it's being emptied, as its last orders had it: `Some(true)` with all of its objects going, copies or not. A
    /// master that doesn't know the node takes its word; nodes outlive masters, and so does what operators want of them.
    pub draining: Option<bool>,
}

/// A master's answer to a node that lends memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// The master's fencing epoch, to be obeyed from now on.
    pub epoch: u64,
    /// What tokens of puts are checked with; those of an earlier mount are void.
    pub token_key: TokenKey,
    /// How long the node may be silent.
    pub ttl: Duration,
}

pub use crate::token::TokenKey;

/// How far a range has come on its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HoldingState {
    /// May be written.
    Open,
    /// Complete.
    Sealed,
    /// Released, with something still under way.
    Releasing,
}

/// What a node announces of one range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The object's whole key.
    pub key: Box<[u8]>,
    /// The put that wrote it.
    pub put: u64,
    /// Where it begins in the segment.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// CRC-64/NVME of the bytes; means nothing before it's complete.
    pub checksum: u64,
    /// How far it is.
    pub state: HoldingState,
}

/// What a master wants of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// The master's fencing epoch. A node that obeys a higher one ignores the rest.
    pub master_epoch: u64,
    /// The master doesn't know this node: it must mount and announce all it holds.
    pub announce: bool,
    /// Puts whose ranges are to be released.
    pub release: Vec<u64>,
    /// How the node is being emptied, for it to say at its next mount.
    pub draining: Option<bool>,
}

/// A replica for its node to copy to another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// The object's whole key.
    pub key: Box<[u8]>,
    /// The put that wrote the replica.
    pub from_put: u64,
    /// Bytes.
    pub length: u64,
    /// CRC-64/NVME of the bytes.
    pub checksum: u64,
    /// The put that writes the copy: it's ended or revoked as any other is.
    pub ticket: Ticket,
}

/// What a node that is being emptied is to copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// The copies to make.
    pub moves: Vec<Move>,
    /// When to ask again, from when they are done.
    pub wait: Duration,
}

/// How far the emptying of a node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct DrainProgress {
    /// Objects copied to other nodes since it began, as far as this master knows.
    pub moved_objects: u64,
    /// Bytes of them.
    pub moved_bytes: u64,
    /// Objects being copied.
    pub moving_objects: u64,
    /// Replicas here that have a copy elsewhere, and go when their leases are over.
    pub leaving_replicas: u64,
    /// Objects that fitted on no other node when they were looked at last.
    pub unplaced_objects: u64,
    /// Bytes of them.
    pub unplaced_bytes: u64,
    /// How often all objects here have been looked at.
    pub passes: u64,
}

/// A node as operators see it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct NodeStatus {
    /// Its identity, as 32 hexadecimal digits.
    pub node: String,
    /// Its name for people.
    pub name: String,
    /// Where it answers requests for grants.
    pub control: String,
    /// Where its transfer engine listens.
    pub engine: String,
    /// `announcing`, `ready`, `suspect`, `draining` or `drained`.
    pub state: String,
    /// Bytes that it lends.
    pub segment_bytes: u64,
    /// Bytes of objects and of puts under way.
    pub used_bytes: u64,
    /// Bytes that were released and that the node hasn't confirmed yet.
    pub quarantined_bytes: u64,
    /// Replicas of objects.
    pub replicas: u64,
    /// How long it has been silent, in milliseconds.
    pub silent_ms: u64,
    /// How far its emptying is; `None` while it's in use.
    pub drain: Option<DrainProgress>,
}

/// An object as operators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectStatus {
    /// Its whole key.
    pub key: Box<[u8]>,
    /// The put that writes or wrote it.
    pub put: u64,
    /// Bytes.
    pub length: u64,
    /// Whether it can be read.
    pub complete: bool,
    /// What is left of its lease.
    pub lease: Duration,
    /// What is left of its soft pin.
    pub pin: Duration,
    /// Where its replicas are.
    pub nodes: Vec<NodeId>,
}

/// A page of objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectPage {
    /// The objects.
    pub objects: Vec<ObjectStatus>,
    /// Where the next page begins; 0 where nothing follows.
    pub next: u64,
}

/// What one tenant uses.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TenantStatus {
    /// Its name; empty for the default one.
    pub name: String,
    /// Bytes of its replicas, those that wait for their nodes' confirmation included.
    pub used_bytes: u64,
    /// Its objects.
    pub objects: u64,
    /// Its limit; 0 for none.
    pub quota_bytes: u64,
}

/// A master's numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Status {
    /// Whether this master leads.
    pub leader: bool,
    /// Where the leader is, if known.
    pub leader_address: String,
    /// Its fencing epoch.
    pub epoch: u64,
    /// It started lately, and nodes may be missing whose announcement hasn't come yet.
    pub recovering: bool,
    /// Nodes that lend memory.
    pub nodes: u64,
    /// Complete objects.
    pub objects: u64,
    /// Puts under way.
    pub pending_puts: u64,
    /// Bytes that nodes lend.
    pub capacity_bytes: u64,
    /// Bytes of objects and of puts under way.
    pub used_bytes: u64,
    /// Bytes that were released and whose nodes haven't confirmed yet.
    pub quarantined_bytes: u64,
    /// What each tenant uses.
    pub tenants: Vec<TenantStatus>,
    /// Events since the start, by name.
    pub counters: Vec<(String, u64)>,
}

/// What is left on a node that is being emptied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Drained {
    /// Replicas.
    pub replicas: u64,
    /// Bytes, those that the node hasn't confirmed as released included.
    pub used_bytes: u64,
    /// How far it is.
    pub progress: DrainProgress,
}

impl Drained {
    /// Whether nothing more will be copied: all that is left has a copy elsewhere, or fitted nowhere when it was looked at
    /// since that earlier answer.
    pub fn is_settled(&self, since: &Self) -> bool {
        let progress = &self.progress;
        let copied = progress.leaving_replicas;
        // the pass that was under way then may have begun before there was room
        let looked_at = progress.passes >= since.progress.passes + 2;
        progress.moving_objects == 0
            && (self.replicas <= copied || (looked_at && self.replicas <= copied + progress.unplaced_objects))
    }
}
