//! The owner file: who writes to a writer directory.

use kvstored_core::Result;
use kvstored_core::envelope::header_checksum;

use super::{VERSION, WriterId, array_at, check_header, put, u16_at, u32_at, u64_at};

/// Bytes of the file.
pub const OWNER_BYTES: usize = 192;
const MAGIC: [u8; 8] = *b"KVSOWNER";
const HOST_OFFSET: usize = 64;
const HOST_BYTES: usize = 124;
const CHECKSUM_OFFSET: usize = 188;

/// A decoded owner file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Grows by one with each owner.
    pub epoch: u64,
    /// The writer that is owned.
    pub writer: WriterId,
    /// The owner's process id, for people.
    pub process_id: u32,
    /// Boot id of the owner's host.
    pub boot_id: [u8; 16],
    /// When the file was written, in microseconds since the Unix epoch.
    pub unix_us: u64,
    /// The owner's host name, for people; cut to 124 bytes.
    pub host: String,
}

impl Owner {
    /// The file's bytes.
    pub fn encode(&self) -> [u8; OWNER_BYTES] {
        let mut cut = self.host.len().min(HOST_BYTES);
        while !self.host.is_char_boundary(cut) {
            cut -= 1;
        }
        let host = self.host.as_bytes().get(..cut).unwrap_or_default();
        let mut bytes = [0; OWNER_BYTES];
        put(&mut bytes, 0, &MAGIC);
        put(&mut bytes, 8, &VERSION.to_le_bytes());
        put(&mut bytes, 10, &(host.len() as u16).to_le_bytes());
        put(&mut bytes, 12, &self.process_id.to_le_bytes());
        put(&mut bytes, 16, &self.epoch.to_le_bytes());
        put(&mut bytes, 24, &self.writer.0);
        put(&mut bytes, 40, &self.boot_id);
        put(&mut bytes, 56, &self.unix_us.to_le_bytes());
        put(&mut bytes, HOST_OFFSET, host);
        let checksum = header_checksum(&[&bytes[..CHECKSUM_OFFSET]]);
        put(&mut bytes, CHECKSUM_OFFSET, &checksum.to_le_bytes());
        bytes
    }

    /// Parses the file. Fails with `Unsupported` for a newer version, else with `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        check_header(bytes, OWNER_BYTES, MAGIC, CHECKSUM_OFFSET, "owner file")?;
        let host_bytes = usize::from(u16_at(bytes, 10)).min(HOST_BYTES);
        Ok(Self {
            epoch: u64_at(bytes, 16),
            writer: WriterId(array_at(bytes, 24)),
            process_id: u32_at(bytes, 12),
            boot_id: array_at(bytes, 40),
            unix_us: u64_at(bytes, 56),
            host: String::from_utf8_lossy(&bytes[HOST_OFFSET..HOST_OFFSET + host_bytes]).into_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(host: &str) -> Owner {
        Owner {
            epoch: 7,
            writer: WriterId([3; 16]),
            process_id: 4711,
            boot_id: [9; 16],
            unix_us: 1_700_000_000_000_000,
            host: host.into(),
        }
    }

    #[test]
    fn round_trips() {
        assert_eq!(
            Owner::decode(&sample("node-1").encode()).unwrap(),
            sample("node-1")
        );
        let cut = Owner::decode(&sample(&"ä".repeat(100)).encode()).unwrap();
        assert_eq!(cut.host, "ä".repeat(62));
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_noticed(bit in 0..OWNER_BYTES * 8) {
            let mut bytes = sample("node-1").encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Owner::decode(&bytes).is_err());
        }

        #[test]
        fn rubbish_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Owner::decode(&bytes);
        }
    }
}
