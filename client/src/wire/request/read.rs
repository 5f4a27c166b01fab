//! Reading requests.

use kvstored_core::block::Namespace;
use kvstored_core::error::{Error, ErrorKind, Result};

use super::Request;
use crate::wire::buffer::Reader;
use crate::wire::namespace::{checked_shards, durability_from_code, read_identity, read_layout};

pub(super) fn read(kind: u8, reader: &mut Reader<'_>) -> Result<Request<'static>> {
    Ok(match kind {
        1 => Request::Hello {
            protocol: reader.u16()?,
            process: reader.u32()?,
            name: reader.text("the client's name")?,
        },
        2 => Request::Ping,
        3 => Request::OpenNamespace {
            identity: Box::new(read_identity(reader)?),
            layout: read_layout(reader)?,
        },
        4 => Request::Lookup {
            namespace: reader.u32()?,
            hashes: reader.hashes()?.into(),
        },
        5 => Request::LookupOnPrefix {
            namespace: reader.u32()?,
            hashes: reader.hashes()?.into(),
        },
        6 => Request::Acquire {
            namespace: reader.u32()?,
            hashes: reader.hashes()?.into(),
        },
        7 => Request::Release {
            leases: reader.numbers("leases")?.into(),
        },
        8 => Request::ReportCorrupt { lease: reader.u64()? },
        9 => Request::Reserve {
            namespace: reader.u32()?,
            wait_ms: reader.u32()?,
            parent: reader.optional_hash()?,
            hashes: reader.hashes()?.into(),
        },
        10 => {
            let durability = durability_from_code(reader.u8()?)?;
            let count = reader.count("reservations", 10)?;
            let mut blocks = Vec::with_capacity(count);
            for _ in 0..count {
                let reservation = reader.u64()?;
                let shards = usize::from(checked_shards(usize::from(reader.u16()?))?);
                reader.expect_room(shards, 8)?;
                let checksums = (0..shards).map(|_| reader.u64()).collect::<Result<Vec<u64>>>()?;
                blocks.push((reservation, checksums));
            }
            Request::Commit {
                blocks: blocks.into(),
                durability,
            }
        }
        11 => Request::Abort {
            reservations: reader.numbers("reservations")?.into(),
        },
        12 => Request::Prefetch {
            namespace: reader.u32()?,
            hashes: reader.hashes()?.into(),
        },
        13 => Request::Evict {
            namespace: reader.u32()?,
            tier: if reader.flag()? {
                Some(reader.text("a tier's name")?)
            } else {
                None
            },
            hashes: reader.hashes()?.into(),
        },
        14 => Request::Purge {
            namespace: Namespace(reader.array()?),
        },
        15 => Request::Statistics,
        16 => Request::Namespaces {
            after: reader.optional_namespace()?,
        },
        17 | 18 => {
            let (tier, limit) = (reader.u8()?, reader.limit()?);
            let (namespace, after) = (reader.optional_namespace()?, reader.optional_key()?);
            if kind == 17 {
                Request::List {
                    tier,
                    namespace,
                    after,
                    limit,
                }
            } else {
                Request::Verify {
                    tier,
                    namespace,
                    after,
                    limit,
                }
            }
        }
        19 => Request::Drain {
            timeout_ms: reader.u32()?,
        },
        20 => Request::LocatePrefix {
            namespace: reader.u32()?,
            hashes: reader.hashes()?.into(),
        },
        21 => Request::TakeEvents {
            after: reader.u64()?,
            limit: reader.limit()?,
        },
        other => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("request kind {other} is unknown to this build"),
            ));
        }
    })
}
