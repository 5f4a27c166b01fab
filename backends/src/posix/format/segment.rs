//! Segment files: the header page, and the footer with the index of a sealed segment.

use kvstored_core::envelope::header_checksum;
use kvstored_core::{BlockHash, Namespace, PAGE_BYTES, Result};

use super::journal::hash_at;
use super::{
    NamespaceShape, PAGE, VERSION, WriterId, array_at, check_header, corrupt, put, u16_at, u32_at, u64_at,
};

const HEADER_MAGIC: [u8; 8] = *b"KVSSEGMT";
const TRAILER_MAGIC: [u8; 8] = *b"KVSSEGFT";
const NAMESPACE_BYTES: usize = 64;
const ENTRY_BYTES: usize = 48;
const CHECKSUM_OFFSET: usize = 60;
const TRAILER_CHECKSUM_OFFSET: usize = 64;

/// The first page of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Whose segment it is.
    pub writer: WriterId,
    /// Its number.
    pub segment: u32,
    /// Epoch of the owner that created it.
    pub epoch: u64,
    /// When it was created, in microseconds since the Unix epoch.
    pub created_unix_us: u64,
    /// Its size in pages as preallocated.
    pub pages: u32,
}

impl SegmentHeader {
    /// The page's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_BYTES];
        put(&mut bytes, 0, &HEADER_MAGIC);
        put(&mut bytes, 8, &VERSION.to_le_bytes());
        put(&mut bytes, 12, &self.segment.to_le_bytes());
        put(&mut bytes, 16, &self.writer.0);
        put(&mut bytes, 32, &self.epoch.to_le_bytes());
        put(&mut bytes, 40, &self.created_unix_us.to_le_bytes());
        put(&mut bytes, 48, &self.pages.to_le_bytes());
        let checksum = header_checksum(&[&bytes[..CHECKSUM_OFFSET]]);
        put(&mut bytes, CHECKSUM_OFFSET, &checksum.to_le_bytes());
        bytes
    }

    /// Parses the page. Fails with `Unsupported` for a newer version, else with `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        check_header(bytes, PAGE_BYTES, HEADER_MAGIC, CHECKSUM_OFFSET, "segment")?;
        Ok(Self {
            writer: WriterId(array_at(bytes, 16)),
            segment: u32_at(bytes, 12),
            epoch: u64_at(bytes, 32),
            created_unix_us: u64_at(bytes, 40),
            pages: u32_at(bytes, 48),
        })
    }
}

/// The last page of a sealed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Whose segment it is.
    pub writer: WriterId,
    /// Its number.
    pub segment: u32,
    /// Epoch of the owner that sealed it.
    pub epoch: u64,
    /// When it was sealed, in microseconds since the Unix epoch.
    pub sealed_unix_us: u64,
    /// Page where the tables start.
    pub footer_page: u32,
    /// Rows of the namespace table.
    pub namespaces: u32,
    /// Rows of the entry table.
    pub entries: u32,
    /// CRC32C of the tables.
    pub tables_checksum: u32,
}

impl Trailer {
    /// The page's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_BYTES];
        put(&mut bytes, 0, &TRAILER_MAGIC);
        put(&mut bytes, 8, &VERSION.to_le_bytes());
        put(&mut bytes, 12, &self.segment.to_le_bytes());
        put(&mut bytes, 16, &self.writer.0);
        put(&mut bytes, 32, &self.epoch.to_le_bytes());
        put(&mut bytes, 40, &self.sealed_unix_us.to_le_bytes());
        put(&mut bytes, 48, &self.footer_page.to_le_bytes());
        put(&mut bytes, 52, &self.namespaces.to_le_bytes());
        put(&mut bytes, 56, &self.entries.to_le_bytes());
        put(&mut bytes, 60, &self.tables_checksum.to_le_bytes());
        let checksum = header_checksum(&[&bytes[..TRAILER_CHECKSUM_OFFSET]]);
        put(&mut bytes, TRAILER_CHECKSUM_OFFSET, &checksum.to_le_bytes());
        bytes
    }

    /// Parses the page. Fails with `Unsupported` for a newer version, else with `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        check_header(
            bytes,
            PAGE_BYTES,
            TRAILER_MAGIC,
            TRAILER_CHECKSUM_OFFSET,
            "segment footer",
        )?;
        Ok(Self {
            writer: WriterId(array_at(bytes, 16)),
            segment: u32_at(bytes, 12),
            epoch: u64_at(bytes, 32),
            sealed_unix_us: u64_at(bytes, 40),
            footer_page: u32_at(bytes, 48),
            namespaces: u32_at(bytes, 52),
            entries: u32_at(bytes, 56),
            tables_checksum: u32_at(bytes, 60),
        })
    }

    /// Bytes of both tables, without padding.
    pub fn tables_bytes(&self) -> u64 {
        u64::from(self.namespaces) * NAMESPACE_BYTES as u64 + u64::from(self.entries) * ENTRY_BYTES as u64
    }

    /// Whether a file of that many bytes ends with this footer: bounds what a reader allocates.
    pub fn fits(&self, file_bytes: u64) -> bool {
        let tables_pages = self.tables_bytes().div_ceil(PAGE);
        self.footer_page > 0 && (u64::from(self.footer_page) + tables_pages + 1) * PAGE == file_bytes
    }
}

/// Pages that a footer takes, trailer included.
pub fn footer_pages(namespaces: usize, entries: usize) -> u32 {
    ((namespaces * NAMESPACE_BYTES + entries * ENTRY_BYTES).div_ceil(PAGE_BYTES) + 1) as u32
}

/// A block in a footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The block's hash.
    pub hash: BlockHash,
    /// Commit order.
    pub generation: u64,
    /// First page of the image.
    pub page: u32,
    /// Ordinal of the namespace.
    pub ordinal: u16,
}

/// The index of a sealed segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footer {
    /// Namespaces by ordinal.
    pub namespaces: Vec<(u16, NamespaceShape)>,
    /// Blocks.
    pub entries: Vec<Entry>,
}

impl Footer {
    /// The bytes from `footer_page` to the end of the file: tables, padding and trailer.
    pub fn encode(
        &self,
        header: &SegmentHeader,
        epoch: u64,
        sealed_unix_us: u64,
        footer_page: u32,
    ) -> Vec<u8> {
        let tables = self.namespaces.len() * NAMESPACE_BYTES + self.entries.len() * ENTRY_BYTES;
        let mut bytes = vec![0; tables];
        let (shapes, entries) = bytes.split_at_mut(self.namespaces.len() * NAMESPACE_BYTES);
        for ((ordinal, shape), row) in self
            .namespaces
            .iter()
            .zip(shapes.chunks_exact_mut(NAMESPACE_BYTES))
        {
            put(row, 0, &shape.namespace.0);
            put(row, 32, &shape.layout_digest);
            put(row, 48, &shape.image_pages.to_le_bytes());
            put(row, 52, &ordinal.to_le_bytes());
        }
        for (entry, row) in self.entries.iter().zip(entries.chunks_exact_mut(ENTRY_BYTES)) {
            put(row, 0, entry.hash.padded());
            put(row, 32, &entry.generation.to_le_bytes());
            put(row, 40, &entry.page.to_le_bytes());
            put(row, 44, &entry.ordinal.to_le_bytes());
            put(row, 46, &[entry.hash.len() as u8]);
        }
        let trailer = Trailer {
            writer: header.writer,
            segment: header.segment,
            epoch,
            sealed_unix_us,
            footer_page,
            namespaces: self.namespaces.len() as u32,
            entries: self.entries.len() as u32,
            tables_checksum: header_checksum(&[&bytes]),
        };
        bytes.resize(tables.next_multiple_of(PAGE_BYTES), 0);
        bytes.extend_from_slice(&trailer.encode());
        bytes
    }

    /// Parses the tables (without padding) that a trailer describes. Fails with `Corrupt`. Entries that can't be
    /// are left out: a hash length out of range, an image outside the data pages, an unknown ordinal.
    pub fn decode(trailer: &Trailer, tables: &[u8]) -> Result<Self> {
        if tables.len() as u64 != trailer.tables_bytes() {
            return Err(corrupt("segment footer", "tables of another length"));
        }
        if header_checksum(&[tables]) != trailer.tables_checksum {
            return Err(corrupt("segment footer", "wrong tables checksum"));
        }
        let (shapes, entries) = tables.split_at(trailer.namespaces as usize * NAMESPACE_BYTES);
        let namespaces: Vec<(u16, NamespaceShape)> = shapes
            .chunks_exact(NAMESPACE_BYTES)
            .map(|row| {
                let shape = NamespaceShape {
                    namespace: Namespace(array_at(row, 0)),
                    layout_digest: array_at(row, 32),
                    image_pages: u32_at(row, 48),
                };
                (u16_at(row, 52), shape)
            })
            .collect();
        let mut image_pages = std::collections::HashMap::with_capacity(namespaces.len());
        for (ordinal, shape) in &namespaces {
            image_pages.insert(*ordinal, shape.image_pages);
        }
        let entries = entries
            .chunks_exact(ENTRY_BYTES)
            .filter_map(|row| {
                let length = usize::from(*row.get(46)?);
                let entry = Entry {
                    hash: hash_at(row, 0, length)?,
                    generation: u64_at(row, 32),
                    page: u32_at(row, 40),
                    ordinal: u16_at(row, 44),
                };
                let end = u64::from(entry.page) + u64::from(*image_pages.get(&entry.ordinal)?);
                (entry.page > 0 && end <= u64::from(trailer.footer_page)).then_some(entry)
            })
            .collect();
        Ok(Self { namespaces, entries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> (SegmentHeader, Footer) {
        let header = SegmentHeader {
            writer: WriterId([2; 16]),
            segment: 4,
            epoch: 3,
            created_unix_us: 99,
            pages: 256,
        };
        let shape = NamespaceShape {
            namespace: Namespace([7; 32]),
            layout_digest: [6; 16],
            image_pages: 2,
        };
        let entries = (0u8..100)
            .map(|index| Entry {
                hash: BlockHash::new(&[index; 18]).unwrap(),
                generation: 1000 + u64::from(index),
                page: 1 + 2 * u32::from(index),
                ordinal: 5,
            })
            .collect();
        (
            header,
            Footer {
                namespaces: vec![(5, shape)],
                entries,
            },
        )
    }

    #[test]
    fn headers_and_footers_round_trip() {
        let (header, footer) = sample();
        assert_eq!(SegmentHeader::decode(&header.encode()).unwrap(), header);
        let bytes = footer.encode(&header, 3, 100, 201);
        assert_eq!(bytes.len(), footer_pages(1, 100) as usize * PAGE_BYTES);
        let trailer = Trailer::decode(&bytes[bytes.len() - PAGE_BYTES..]).unwrap();
        assert!(trailer.fits(201 * PAGE + bytes.len() as u64));
        assert!(!trailer.fits(202 * PAGE + bytes.len() as u64));
        let tables = &bytes[..trailer.tables_bytes() as usize];
        assert_eq!(Footer::decode(&trailer, tables).unwrap(), footer);
    }

    #[test]
    fn entries_outside_the_data_pages_are_left_out() {
        let (header, mut footer) = sample();
        footer.entries[3].page = 200;
        footer.entries[4].page = 0;
        footer.entries[5].ordinal = 6;
        let bytes = footer.encode(&header, 3, 100, 201);
        let trailer = Trailer::decode(&bytes[bytes.len() - PAGE_BYTES..]).unwrap();
        let decoded = Footer::decode(&trailer, &bytes[..trailer.tables_bytes() as usize]).unwrap();
        assert_eq!(decoded.entries.len(), 97);
    }

    proptest! {
        #[test]
        fn any_flipped_bit_of_the_tables_or_the_trailer_is_noticed(bit in 0usize..(64 + 4800 + 68) * 8) {
            let (header, footer) = sample();
            let mut bytes = footer.encode(&header, 3, 100, 201);
            let tables = 64 + 4800;
            let trailer_at = bytes.len() - PAGE_BYTES;
            let byte = if bit / 8 < tables { bit / 8 } else { trailer_at + bit / 8 - tables };
            bytes[byte] ^= 1 << (bit % 8);
            let outcome = Trailer::decode(&bytes[trailer_at..])
                .and_then(|trailer| Footer::decode(&trailer, &bytes[..tables]));
            prop_assert!(outcome.is_err());
        }

        #[test]
        fn rubbish_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let _ = SegmentHeader::decode(&bytes);
            if let Ok(trailer) = Trailer::decode(&bytes) {
                let _ = Footer::decode(&trailer, &bytes);
            }
        }
    }
}
