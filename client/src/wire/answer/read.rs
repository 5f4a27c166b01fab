//! Reading answers.

use kvstored_core::block::{BlockHash, BlockKey, Namespace};
use kvstored_core::engine::VerifyReport;
use kvstored_core::error::{Error, ErrorKind, Result};
use kvstored_core::events::{Event, EventKind, Events};

use super::{Answer, Failure, Granted, Held, PRESENT, REMOVED, STORED};
use crate::wire::MAX_JSON_BYTES;
use crate::wire::buffer::Reader;
use crate::wire::namespace::durability_from_code;

pub(super) fn read(kind: u8, reader: &mut Reader<'_>) -> Result<Answer> {
    Ok(match kind {
        128 => {
            let (protocol, arena_bytes) = (reader.u16()?, reader.u64()?);
            let count = reader.count("tiers", 4)?;
            let tier_names = (0..count)
                .map(|_| reader.text("a tier's name"))
                .collect::<Result<_>>()?;
            Answer::Welcome {
                protocol,
                arena_bytes,
                tier_names,
            }
        }
        129 => Answer::Pong,
        130 => Answer::Opened {
            namespace: reader.u32()?,
        },
        131 => {
            let count = reader.count("blocks", 0)?;
            let bytes = reader.raw(count.div_ceil(8))?;
            let bits = bytes
                .iter()
                .flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1));
            Answer::Present(bits.take(count).collect())
        }
        132 => Answer::Count(reader.u64()?),
        133 => Answer::Acquired(blocks(reader, |reader, status| {
            Ok(match status {
                0 => Ok(Held {
                    lease: reader.u64()?,
                    offset: reader.u64()?,
                    tier: reader.u8()?,
                }),
                code => Err(read_failure(reader, code)?),
            })
        })?),
        134 => Answer::Reserved(blocks(reader, |reader, status| {
            Ok(match status {
                0 => Granted::Slot {
                    reservation: reader.u64()?,
                    offset: reader.u64()?,
                },
                PRESENT => Granted::Present,
                code => Granted::Refused(read_failure(reader, code)?),
            })
        })?),
        135 => Answer::Committed(blocks(reader, |reader, status| {
            Ok(match status {
                0 => Ok(durability_from_code(reader.u8()?)?),
                code => Err(read_failure(reader, code)?),
            })
        })?),
        136 => Answer::Json(reader.blob("a report", MAX_JSON_BYTES)?.to_vec()),
        137 => {
            let count = reader.count("keys", 49)?;
            let mut keys = Vec::with_capacity(count);
            for _ in 0..count {
                keys.push(
                    reader
                        .optional_key()?
                        .ok_or_else(|| Error::invalid("a key is missing"))?,
                );
            }
            Answer::Keys(keys)
        }
        138 => Answer::Verified {
            report: VerifyReport {
                checked_blocks: reader.u64()?,
                corrupt_blocks: reader.u64()?,
                vanished_blocks: reader.u64()?,
                unread_blocks: reader.u64()?,
            },
            after: reader.optional_key()?,
        },
        139 => Answer::Done,
        140 => {
            let code = reader.u8()?;
            Answer::Error(read_failure(reader, code)?)
        }
        141 => {
            let count = reader.count("blocks", 1)?;
            Answer::Located(reader.raw(count)?.to_vec())
        }
        142 => {
            let (first, next, lost) = (reader.u64()?, reader.u64()?, reader.flag()?);
            let count = reader.count("events", 2 + 32 + 1 + BlockHash::MIN_BYTES)?;
            let mut events = Vec::with_capacity(count);
            for _ in 0..count {
                events.push(event(reader)?);
            }
            Answer::Events(Events {
                first,
                next,
                lost,
                events,
            })
        }
        other => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("answer kind {other} is unknown to this build"),
            ));
        }
    })
}

fn blocks<T>(
    reader: &mut Reader<'_>,
    mut one: impl FnMut(&mut Reader<'_>, u8) -> Result<T>,
) -> Result<Vec<T>> {
    let count = reader.count("blocks", 1)?;
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        let status = reader.u8()?;
        all.push(one(reader, status)?);
    }
    Ok(all)
}

fn event(reader: &mut Reader<'_>) -> Result<Event> {
    let kind = match reader.u8()? {
        STORED => EventKind::Stored,
        REMOVED => EventKind::Removed,
        other => return Err(Error::invalid(format!("event kind {other} is unknown"))),
    };
    let (tier, namespace) = (reader.u8()?, Namespace(reader.array()?));
    let hash = reader
        .optional_hash()?
        .ok_or_else(|| Error::invalid("an event without a hash"))?;
    let key = BlockKey { namespace, hash };
    Ok(Event { kind, tier, key })
}

fn read_failure(reader: &mut Reader<'_>, status: u8) -> Result<Failure> {
    let code = status
        .checked_sub(1)
        .ok_or_else(|| Error::invalid("an error without a kind"))?;
    Ok(Failure {
        kind: ErrorKind::from_code(code),
        message: reader.text("a message")?,
    })
}
