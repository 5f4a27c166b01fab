//! The journal: a header and fixed 64-byte records.

use kvstored_core::envelope::header_checksum;
use kvstored_core::{BlockHash, Namespace, Result};

use super::{NamespaceShape, VERSION, WriterId, array_at, check_header, put, u16_at, u32_at, u64_at};

/// Bytes of a journal's header.
pub const HEADER_BYTES: usize = 128;
/// Bytes of a record.
pub const RECORD_BYTES: usize = 64;
const MAGIC: [u8; 8] = *b"KVSJRNL\0";
const HEADER_CHECKSUM_OFFSET: usize = 124;

/// A decoded journal header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalHeader {
    /// Whose journal it is.
    pub writer: WriterId,
    /// Epoch of the owner that started it.
    pub epoch: u64,
    /// Its place among the writer's journals.
    pub sequence: u64,
    /// Boot id of the owner's host.
    pub boot_id: [u8; 16],
    /// When it was started, in microseconds since the Unix epoch.
    pub created_unix_us: u64,
}

impl JournalHeader {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        put(&mut bytes, 0, &MAGIC);
        put(&mut bytes, 8, &VERSION.to_le_bytes());
        put(&mut bytes, 16, &self.writer.0);
        put(&mut bytes, 32, &self.epoch.to_le_bytes());
        put(&mut bytes, 40, &self.sequence.to_le_bytes());
        put(&mut bytes, 48, &self.boot_id);
        put(&mut bytes, 64, &self.created_unix_us.to_le_bytes());
        let checksum = header_checksum(&[&bytes[..HEADER_CHECKSUM_OFFSET]]);
        put(&mut bytes, HEADER_CHECKSUM_OFFSET, &checksum.to_le_bytes());
        bytes
    }

    /// Parses a header. Fails with `Unsupported` for a newer version, else with `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        check_header(bytes, HEADER_BYTES, MAGIC, HEADER_CHECKSUM_OFFSET, "journal")?;
        Ok(Self {
            writer: WriterId(array_at(bytes, 16)),
            epoch: u64_at(bytes, 32),
            sequence: u64_at(bytes, 40),
            boot_id: array_at(bytes, 48),
            created_unix_us: u64_at(bytes, 64),
        })
    }
}

/// Where a block lies in its writer's log, and under which name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRecord {
    /// Ordinal of the namespace.
    pub ordinal: u16,
    /// The block's hash.
    pub hash: BlockHash,
    /// The segment's number.
    pub segment: u32,
    /// First page of the image.
    pub page: u32,
    /// Commit order.
    pub generation: u64,
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// What an ordinal means from here on.
    Namespace {
        /// The ordinal.
        ordinal: u16,
        /// What it means.
        shape: NamespaceShape,
    },
    /// A segment was preallocated and is being filled.
    SegmentOpened {
        /// Its number.
        segment: u32,
        /// Its size in pages.
        pages: u32,
    },
    /// A block became visible.
    BlockStored(BlockRecord),
    /// The block at that location is gone.
    BlockRemoved(BlockRecord),
    /// A segment has its footer.
    SegmentSealed {
        /// Its number.
        segment: u32,
        /// Page where the footer's tables start.
        footer_page: u32,
    },
    /// A segment and all of its blocks are gone.
    SegmentRemoved {
        /// Its number.
        segment: u32,
    },
    /// All blocks of a namespace up to a generation are gone, whoever wrote them.
    NamespacePurged {
        /// The namespace.
        namespace: Namespace,
        /// The last generation that is gone.
        bound: u64,
    },
    /// The journal goes on in another file.
    Rotated {
        /// That file's sequence.
        next_sequence: u64,
    },
    /// The state at the start of the journal is complete.
    PrologueEnd,
}

/// What lies at a place of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A record.
    Record(Record),
    /// A whole record of a kind, or with a field, that this build doesn't know: to be skipped.
    Unknown,
    /// A wrong checksum or too few bytes: the journal ends here.
    End,
}

impl Record {
    /// The record's bytes.
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        let kind: u8 = match self {
            Self::Namespace { ordinal, shape } => {
                put(&mut bytes, 6, &ordinal.to_le_bytes());
                put(&mut bytes, 8, &shape.image_pages.to_le_bytes());
                put(&mut bytes, 16, &shape.namespace.0);
                put(&mut bytes, 48, &shape.layout_digest);
                1
            }
            Self::SegmentOpened { segment, pages } => {
                put(&mut bytes, 8, &pages.to_le_bytes());
                put(&mut bytes, 12, &segment.to_le_bytes());
                2
            }
            Self::BlockStored(block) => {
                block.encode(&mut bytes);
                3
            }
            Self::BlockRemoved(block) => {
                block.encode(&mut bytes);
                4
            }
            Self::SegmentSealed { segment, footer_page } => {
                put(&mut bytes, 8, &footer_page.to_le_bytes());
                put(&mut bytes, 12, &segment.to_le_bytes());
                5
            }
            Self::SegmentRemoved { segment } => {
                put(&mut bytes, 12, &segment.to_le_bytes());
                6
            }
            Self::NamespacePurged { namespace, bound } => {
                put(&mut bytes, 16, &namespace.0);
                put(&mut bytes, 48, &bound.to_le_bytes());
                7
            }
            Self::Rotated { next_sequence } => {
                put(&mut bytes, 16, &next_sequence.to_le_bytes());
                8
            }
            Self::PrologueEnd => 9,
        };
        put(&mut bytes, 4, &[kind]);
        let checksum = header_checksum(&[&bytes[4..]]);
        put(&mut bytes, 0, &checksum.to_le_bytes());
        bytes
    }

    /// Parses the record at the start of `bytes`.
    pub fn parse(bytes: &[u8]) -> Parsed {
        let Some(bytes) = bytes.get(..RECORD_BYTES) else {
            return Parsed::End;
        };
        if header_checksum(&[&bytes[4..]]) != u32_at(bytes, 0) {
            return Parsed::End;
        }
        let segment = u32_at(bytes, 12);
        let record = match bytes[4] {
            1 => Self::Namespace {
                ordinal: u16_at(bytes, 6),
                shape: NamespaceShape {
                    namespace: Namespace(array_at(bytes, 16)),
                    layout_digest: array_at(bytes, 48),
                    image_pages: u32_at(bytes, 8),
                },
            },
            2 => Self::SegmentOpened {
                segment,
                pages: u32_at(bytes, 8),
            },
            kind @ (3 | 4) => match BlockRecord::decode(bytes) {
                Some(block) if kind == 3 => Self::BlockStored(block),
                Some(block) => Self::BlockRemoved(block),
                None => return Parsed::Unknown,
            },
            5 => Self::SegmentSealed {
                segment,
                footer_page: u32_at(bytes, 8),
            },
            6 => Self::SegmentRemoved { segment },
            7 => Self::NamespacePurged {
                namespace: Namespace(array_at(bytes, 16)),
                bound: u64_at(bytes, 48),
            },
            8 => Self::Rotated {
                next_sequence: u64_at(bytes, 16),
            },
            9 => Self::PrologueEnd,
            _ => return Parsed::Unknown,
        };
        Parsed::Record(record)
    }
}

impl BlockRecord {
    fn encode(&self, bytes: &mut [u8]) {
        put(bytes, 5, &[self.hash.len() as u8]);
        put(bytes, 6, &self.ordinal.to_le_bytes());
        put(bytes, 8, &self.page.to_le_bytes());
        put(bytes, 12, &self.segment.to_le_bytes());
        put(bytes, 16, self.hash.padded());
        put(bytes, 48, &self.generation.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let length = usize::from(*bytes.get(5)?);
        Some(Self {
            ordinal: u16_at(bytes, 6),
            hash: hash_at(bytes, 16, length)?,
            segment: u32_at(bytes, 12),
            page: u32_at(bytes, 8),
            generation: u64_at(bytes, 48),
        })
    }
}

/// The hash of `length` bytes in the 32-byte field at `offset`.
pub(super) fn hash_at(bytes: &[u8], offset: usize, length: usize) -> Option<BlockHash> {
    BlockHash::new(bytes.get(offset..offset + BlockHash::MAX_BYTES)?.get(..length)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn samples() -> Vec<Record> {
        let block = BlockRecord {
            ordinal: 3,
            hash: BlockHash::new(&[5; 20]).unwrap(),
            segment: 77,
            page: 1234,
            generation: u64::MAX - 5,
        };
        let shape = NamespaceShape {
            namespace: Namespace([8; 32]),
            layout_digest: [4; 16],
            image_pages: 17,
        };
        vec![
            Record::Namespace {
                ordinal: 65535,
                shape,
            },
            Record::SegmentOpened {
                segment: 1,
                pages: 262_144,
            },
            Record::BlockStored(block),
            Record::BlockRemoved(BlockRecord {
                hash: BlockHash::new(&[1; 32]).unwrap(),
                ..block
            }),
            Record::SegmentSealed {
                segment: 9,
                footer_page: 100,
            },
            Record::SegmentRemoved { segment: u32::MAX },
            Record::NamespacePurged {
                namespace: Namespace([1; 32]),
                bound: 5,
            },
            Record::Rotated { next_sequence: 2 },
            Record::PrologueEnd,
        ]
    }

    #[test]
    fn records_round_trip_and_cut_ones_end_the_journal() {
        for record in samples() {
            let bytes = record.encode();
            assert_eq!(Record::parse(&bytes), Parsed::Record(record));
            assert_eq!(Record::parse(&bytes[..63]), Parsed::End);
        }
        assert_eq!(Record::parse(&[0; RECORD_BYTES]), Parsed::End);
    }

    #[test]
    fn an_unknown_kind_with_a_right_checksum_is_skipped() {
        let mut bytes = Record::PrologueEnd.encode();
        bytes[4] = 99;
        let checksum = header_checksum(&[&bytes[4..]]).to_le_bytes();
        bytes[..4].copy_from_slice(&checksum);
        assert_eq!(Record::parse(&bytes), Parsed::Unknown);
    }

    #[test]
    fn headers_round_trip_and_newer_versions_are_named() {
        let header = JournalHeader {
            writer: WriterId([1; 16]),
            epoch: 2,
            sequence: 3,
            boot_id: [4; 16],
            created_unix_us: 5,
        };
        let mut bytes = header.encode();
        assert_eq!(JournalHeader::decode(&bytes).unwrap(), header);
        bytes[8] = 2;
        assert_eq!(
            JournalHeader::decode(&bytes).unwrap_err().kind(),
            kvstored_core::ErrorKind::Corrupt
        );
        let checksum = header_checksum(&[&bytes[..124]]).to_le_bytes();
        bytes[124..].copy_from_slice(&checksum);
        let error = JournalHeader::decode(&bytes).unwrap_err();
        assert_eq!(error.kind(), kvstored_core::ErrorKind::Unsupported);
    }

    proptest! {
        #[test]
        fn any_flipped_bit_ends_the_journal(index in 0usize..9, bit in 0..RECORD_BYTES * 8) {
            let mut bytes = samples()[index].encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Record::parse(&bytes), Parsed::End);
        }

        #[test]
        fn rubbish_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Record::parse(&bytes);
            let _ = JournalHeader::decode(&bytes);
        }
    }
}
