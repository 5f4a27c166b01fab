//! What a client may ask.

mod read;

use std::borrow::Cow;

use kvstored_core::block::{BlockHash, BlockKey, Namespace};
use kvstored_core::error::Result;
use kvstored_core::identity::Identity;
use kvstored_core::layout::Layout;
use kvstored_core::tier::Durability;

use super::buffer::{Reader, Writer};
use super::namespace::{checked_shards, durability_code, write_identity, write_layout};
use read::read;

/// A request. Numbers of namespaces, leases and reservations hold within one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// The first message of a connection; answered by a welcome that carries the arena's file descriptor.
    Hello {
        /// The client's protocol version.
        protocol: u16,
        /// What the client calls itself, for logs.
        name: String,
        /// The client's process id, for logs.
        process: u32,
    },
    /// The smallest round trip.
    Ping,
    /// Opens a namespace; answered with its number.
    OpenNamespace {
        /// What makes the bytes meaningful.
        identity: Box<Identity>,
        /// Shards and tensors of a block.
        layout: Layout,
    },
    /// Which blocks some tier has.
    Lookup {
        /// Number of an open namespace.
        namespace: u32,
        /// The blocks.
        hashes: Cow<'a, [BlockHash]>,
    },
    /// How many blocks at the start are there without a gap.
    LookupOnPrefix {
        /// Number of an open namespace.
        namespace: u32,
        /// The blocks.
        hashes: Cow<'a, [BlockHash]>,
    },
    /// For the present blocks at the start, which is the fastest tier that has each.
    LocatePrefix {
        /// Number of an open namespace.
        namespace: u32,
        /// The blocks.
        hashes: Cow<'a, [BlockHash]>,
    },
    /// Pins blocks in the arena, from whichever tier; answered with a lease per block that was found.
    Acquire {
        /// Number of an open namespace.
        namespace: u32,
        /// A run of one prompt in prefix order.
        hashes: Cow<'a, [BlockHash]>,
    },
    /// Gives leases back. Never answered.
    Release {
        /// The leases; unknown ones are ignored.
        leases: Cow<'a, [u64]>,
    },
    /// Says that a leased block failed verification, and gives the lease back. Never answered.
    ReportCorrupt {
        /// The lease.
        lease: u64,
    },
    /// Asks for a slot for each block that no tier has yet.
    Reserve {
        /// Number of an open namespace.
        namespace: u32,
        /// The block before the run, if known.
        parent: Option<BlockHash>,
        /// A run of one prompt in prefix order.
        hashes: Cow<'a, [BlockHash]>,
        /// How long to wait in line for room, in milliseconds.
        wait_ms: u32,
    },
    /// Says that reserved slots are filled; answered when every block is as safe as asked.
    Commit {
        /// The reservations, each with the CRC-64/NVME of all shards.
        blocks: Cow<'a, [(u64, Vec<u64>)]>,
        /// When to answer.
        durability: Durability,
    },
    /// Gives reservations back; their blocks leave no trace. Never answered.
    Abort {
        /// The reservations; unknown ones are ignored.
        reservations: Cow<'a, [u64]>,
    },
    /// Brings blocks into the first tier ahead of use; answered at once.
    Prefetch {
        /// Number of an open namespace.
        namespace: u32,
        /// The blocks.
        hashes: Cow<'a, [BlockHash]>,
    },
    /// Drops blocks from one tier or all.
    Evict {
        /// Number of an open namespace.
        namespace: u32,
        /// The blocks.
        hashes: Cow<'a, [BlockHash]>,
        /// The tier's name; all without.
        tier: Option<String>,
    },
    /// Forgets a namespace in every tier.
    Purge {
        /// The namespace.
        namespace: Namespace,
    },
    /// The engine's numbers, as JSON.
    Statistics,
    /// Namespaces that have blocks, as JSON, in pages.
    Namespaces {
        /// Go on behind this one.
        after: Option<Namespace>,
    },
    /// Keys of blocks in a tier.
    List {
        /// Index in the pipeline.
        tier: u8,
        /// Only of this namespace.
        namespace: Option<Namespace>,
        /// Go on behind this one.
        after: Option<BlockKey>,
        /// Most keys in the answer.
        limit: u32,
    },
    /// Reads and checks blocks of a tier.
    Verify {
        /// Index in the pipeline.
        tier: u8,
        /// Only of this namespace.
        namespace: Option<Namespace>,
        /// Go on behind this one.
        after: Option<BlockKey>,
        /// Most blocks to check.
        limit: u32,
    },
    /// Which blocks became visible in a tier and which left it; answered at once.
    TakeEvents {
        /// Only events after the one with this number; 0 for all there are.
        after: u64,
        /// Most events in the answer.
        limit: u32,
    },
    /// Answered when every accepted dump is durable in every tier.
    Drain {
        /// How long to wait, in milliseconds.
        timeout_ms: u32,
    },
}

impl Request<'_> {
    /// The kind in the frame's header.
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Hello { .. } => 1,
            Self::Ping => 2,
            Self::OpenNamespace { .. } => 3,
            Self::Lookup { .. } => 4,
            Self::LookupOnPrefix { .. } => 5,
            Self::Acquire { .. } => 6,
            Self::Release { .. } => 7,
            Self::ReportCorrupt { .. } => 8,
            Self::Reserve { .. } => 9,
            Self::Commit { .. } => 10,
            Self::Abort { .. } => 11,
            Self::Prefetch { .. } => 12,
            Self::Evict { .. } => 13,
            Self::Purge { .. } => 14,
            Self::Statistics => 15,
            Self::Namespaces { .. } => 16,
            Self::List { .. } => 17,
            Self::Verify { .. } => 18,
            Self::Drain { .. } => 19,
            Self::LocatePrefix { .. } => 20,
            Self::TakeEvents { .. } => 21,
        }
    }

    /// Whether no answer ever comes.
    pub const fn is_one_way(&self) -> bool {
        matches!(
            self,
            Self::Release { .. } | Self::ReportCorrupt { .. } | Self::Abort { .. }
        )
    }

    /// Whether answering may take long or touch files, so that it must not hold up other connections.
    pub const fn is_slow(&self) -> bool {
        matches!(
            self,
            Self::OpenNamespace { .. }
                | Self::Evict { .. }
                | Self::Purge { .. }
                | Self::Statistics
                | Self::Namespaces { .. }
                | Self::List { .. }
                | Self::Verify { .. }
                | Self::Drain { .. }
        )
    }

    /// Reads a request's body.
    ///
    /// Fails with `Unsupported` for an unknown kind and `InvalidInput` for anything else that is wrong; the
    /// next frame can be read all the same.
    pub fn decode(kind: u8, body: &[u8]) -> Result<Request<'static>> {
        let mut reader = Reader::new(body);
        let request = read(kind, &mut reader)?;
        reader.finish()?;
        Ok(request)
    }

    pub(super) fn write(&self, writer: &mut Writer) -> Result<()> {
        match self {
            Self::Hello {
                protocol,
                name,
                process,
            } => {
                writer.u16(*protocol);
                writer.u32(*process);
                writer.text("the client's name", name)?;
            }
            Self::Ping | Self::Statistics => {}
            Self::OpenNamespace { identity, layout } => {
                write_identity(writer, identity)?;
                write_layout(writer, layout);
            }
            Self::Lookup { namespace, hashes }
            | Self::LookupOnPrefix { namespace, hashes }
            | Self::LocatePrefix { namespace, hashes }
            | Self::Acquire { namespace, hashes }
            | Self::Prefetch { namespace, hashes } => {
                writer.u32(*namespace);
                writer.hashes(hashes)?;
            }
            Self::Release { leases } => writer.numbers("leases", leases)?,
            Self::ReportCorrupt { lease } => writer.u64(*lease),
            Self::Reserve {
                namespace,
                parent,
                hashes,
                wait_ms,
            } => {
                writer.u32(*namespace);
                writer.u32(*wait_ms);
                writer.optional_hash(parent.as_ref());
                writer.hashes(hashes)?;
            }
            Self::Commit { blocks, durability } => {
                writer.u8(durability_code(*durability));
                writer.count("reservations", blocks.len())?;
                for (reservation, checksums) in blocks.iter() {
                    writer.u64(*reservation);
                    writer.u16(checked_shards(checksums.len())?);
                    for checksum in checksums {
                        writer.u64(*checksum);
                    }
                }
            }
            Self::Abort { reservations } => writer.numbers("reservations", reservations)?,
            Self::Evict {
                namespace,
                hashes,
                tier,
            } => {
                writer.u32(*namespace);
                writer.u8(u8::from(tier.is_some()));
                if let Some(tier) = tier {
                    writer.text("a tier's name", tier)?;
                }
                writer.hashes(hashes)?;
            }
            Self::Purge { namespace } => writer.raw(&namespace.0),
            Self::Namespaces { after } => writer.optional_namespace(after.as_ref()),
            Self::List {
                tier,
                namespace,
                after,
                limit,
            }
            | Self::Verify {
                tier,
                namespace,
                after,
                limit,
            } => {
                writer.u8(*tier);
                writer.u32(*limit);
                writer.optional_namespace(namespace.as_ref());
                writer.optional_key(after.as_ref());
            }
            Self::Drain { timeout_ms } => writer.u32(*timeout_ms),
            Self::TakeEvents { after, limit } => {
                writer.u64(*after);
                writer.u32(*limit);
            }
        }
        Ok(())
    }
}
