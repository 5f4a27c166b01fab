//! Codecs of everything in a storage directory but block images: pure functions over bytes, as `docs/format.md`
//! fixes them. None of them panics or allocates by a length that the bytes claim.

pub mod journal;
pub mod manifest;
pub mod owner;
pub mod segment;

use std::fmt;

use kvstored_core::envelope::header_checksum;
use kvstored_core::{Error, ErrorKind, PAGE_BYTES, Result};

/// The format's version, of the directory and of every header.
pub const VERSION: u16 = 1;
/// A page in 64 bits, for file offsets.
pub const PAGE: u64 = PAGE_BYTES as u64;
/// Bytes of a layout's digest that journals and footers carry.
pub const LAYOUT_DIGEST_BYTES: usize = 16;

/// A writer's identifier; also the name of its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriterId(pub [u8; 16]);

impl WriterId {
    /// Parses 32 lower-case hexadecimal digits. Fails with `InvalidInput`.
    pub fn from_hex(text: &str) -> Result<Self> {
        let wrong = || {
            Error::invalid(format!(
                "writer id \"{text}\" is not 32 lower-case hexadecimal digits"
            ))
        };
        if text.len() != 32
            || !text
                .bytes()
                .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Err(wrong());
        }
        u128::from_str_radix(text, 16)
            .map(|value| Self(value.to_be_bytes()))
            .map_err(|_| wrong())
    }
}

impl fmt::Display for WriterId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// What names a namespace in journals and footers beside its ordinal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceShape {
    /// The namespace.
    pub namespace: kvstored_core::Namespace,
    /// First half of the digest of its layout.
    pub layout_digest: [u8; LAYOUT_DIGEST_BYTES],
    /// Pages of one block image.
    pub image_pages: u32,
}

impl NamespaceShape {
    /// The shape of a namespace that is known whole.
    pub fn of(info: &kvstored_core::NamespaceInfo) -> Self {
        Self {
            namespace: info.namespace,
            layout_digest: array_at(info.layout.digest(), 0),
            image_pages: (info.layout.image_bytes() / PAGE_BYTES) as u32,
        }
    }
}

/// The `N` bytes at `offset`; zeros where the slice ends before (callers have checked lengths).
pub(super) fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes
        .get(offset..offset + N)
        .and_then(|part| part.try_into().ok())
        .unwrap_or([0; N])
}

pub(super) fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, offset))
}

pub(super) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, offset))
}

pub(super) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, offset))
}

/// Copies `source` to `offset`, if it fits.
pub(super) fn put(bytes: &mut [u8], offset: usize, source: &[u8]) {
    if let Some(target) = bytes.get_mut(offset..offset + source.len()) {
        target.copy_from_slice(source);
    }
}

/// Checks length, magic, checksum and version of a header, in this order: with a wrong checksum the version says
/// nothing. The checksum lies at `checksum_offset`, over all bytes before it, in every version.
pub(super) fn check_header(
    bytes: &[u8],
    length: usize,
    magic: [u8; 8],
    checksum_offset: usize,
    what: &str,
) -> Result<()> {
    if bytes.len() < length {
        return Err(corrupt(
            what,
            &format!("{} bytes instead of {length}", bytes.len()),
        ));
    }
    if array_at::<8>(bytes, 0) != magic {
        return Err(corrupt(what, "wrong magic"));
    }
    let covered = bytes.get(..checksum_offset).unwrap_or_default();
    if header_checksum(&[covered]) != u32_at(bytes, checksum_offset) {
        return Err(corrupt(what, "wrong header checksum"));
    }
    let version = u16_at(bytes, 8);
    if version != VERSION {
        let kind = if version > VERSION {
            ErrorKind::Unsupported
        } else {
            ErrorKind::Corrupt
        };
        return Err(Error::new(
            kind,
            format!("{what} has version {version}, this build reads {VERSION}"),
        ));
    }
    Ok(())
}

pub(super) fn corrupt(what: &str, why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{what}: {why}"))
}
