//! What two ends tell each other so that their queue pairs find one another.

use kvstored_core::{Error, ErrorKind, Result};

/// Bytes of an encoded address.
pub const LINK_ADDRESS_BYTES: usize = 64;
const MAGIC: [u8; 4] = *b"KVRA";
const VERSION: u8 = 1;
const MOST_MTU: u8 = 5;
/// Queue pairs and packets are numbered with 24 bits.
const MOST_NUMBER: u32 = (1 << 24) - 1;
/// The fewest receives that a link works with.
pub(crate) const LEAST_RECEIVES: u16 = 8;
/// Far more than any device has; keeps sums small.
pub(crate) const MOST_RECEIVES: u16 = 16_384;

/// One end of a link that isn't connected yet, for the other end: 64 bytes, to be carried over a connection that is
/// authenticated already.
///
/// | bytes | what (little-endian) |
/// | --- | --- |
/// | 0–3 | `KVRA` |
/// | 4 | version, 1 |
/// | 5 | largest packet, as verbs number them: 1 for 256 bytes to 5 for 4096 |
/// | 6 | RDMA reads that this end answers at once |
/// | 7 | 1 if there is a GID |
/// | 8–11 | queue pair |
/// | 12–15 | number of the first packet that this end sends |
/// | 16–31 | GID |
/// | 32–33 | address on an InfiniBand fabric |
/// | 34–35 | receives that are posted |
/// | 36–37 | requests that this end serves at once |
/// | 38–63 | zero |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkAddress {
    pub(crate) mtu: u8,
    pub(crate) reads_in: u8,
    pub(crate) gid: Option<[u8; 16]>,
    pub(crate) number: u32,
    pub(crate) psn: u32,
    pub(crate) lid: u16,
    pub(crate) receives: u16,
    pub(crate) window: u16,
}

impl LinkAddress {
    /// The bytes for the other end.
    pub fn encode(&self) -> [u8; LINK_ADDRESS_BYTES] {
        let mut bytes = [0; LINK_ADDRESS_BYTES];
        let mut put = |at: usize, value: &[u8]| {
            if let Some(place) = bytes.get_mut(at..at + value.len()) {
                place.copy_from_slice(value);
            }
        };
        put(0, &MAGIC);
        put(
            4,
            &[VERSION, self.mtu, self.reads_in, u8::from(self.gid.is_some())],
        );
        put(8, &self.number.to_le_bytes());
        put(12, &self.psn.to_le_bytes());
        put(16, &self.gid.unwrap_or_default());
        put(32, &self.lid.to_le_bytes());
        put(34, &self.receives.to_le_bytes());
        put(36, &self.window.to_le_bytes());
        bytes
    }

    /// Reads what the other end sent. Fails with `Unsupported` for another version and `Corrupt` for anything that no end
    /// says.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let corrupt = |what: &str| Error::new(ErrorKind::Corrupt, format!("an RDMA address with {what}"));
        let bytes: &[u8; LINK_ADDRESS_BYTES] = bytes.try_into().map_err(|_| corrupt("another length"))?;
        let [m0, m1, m2, m3, version, mtu, reads_in, has_gid, rest @ ..] = *bytes;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(corrupt("another beginning"));
        }
        if version != VERSION {
            return Err(
                Error::new(ErrorKind::Unsupported, "an RDMA address of another version")
                    .with("version", version),
            );
        }
        let [n0, n1, n2, n3, p0, p1, p2, p3, rest @ ..] = rest;
        let (gid, rest) = rest.split_first_chunk::<16>().ok_or_else(|| corrupt("no GID"))?;
        let (numbers, zeros) = rest
            .split_first_chunk::<6>()
            .ok_or_else(|| corrupt("no numbers"))?;
        let [l0, l1, r0, r1, w0, w1] = *numbers;
        let address = Self {
            mtu,
            reads_in,
            gid: (has_gid == 1).then_some(*gid),
            number: u32::from_le_bytes([n0, n1, n2, n3]),
            psn: u32::from_le_bytes([p0, p1, p2, p3]),
            lid: u16::from_le_bytes([l0, l1]),
            receives: u16::from_le_bytes([r0, r1]),
            window: u16::from_le_bytes([w0, w1]),
        };
        if has_gid > 1
            || (has_gid == 0 && gid.iter().any(|byte| *byte != 0))
            || zeros.iter().any(|byte| *byte != 0)
        {
            return Err(corrupt("something in its empty fields"));
        }
        if !(1..=MOST_MTU).contains(&mtu) || address.number > MOST_NUMBER || address.psn > MOST_NUMBER {
            return Err(corrupt("numbers out of range"));
        }
        if !(LEAST_RECEIVES..=MOST_RECEIVES).contains(&address.receives) || address.window == 0 {
            return Err(corrupt("too few or too many receives"));
        }
        Ok(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> LinkAddress {
        LinkAddress {
            mtu: 3,
            reads_in: 16,
            gid: Some([7; 16]),
            number: 0x0012_3456,
            psn: 0x00ab_cdef,
            lid: 9,
            receives: 128,
            window: 32,
        }
    }

    #[test]
    fn an_address_is_read_back() {
        let with = address();
        assert_eq!(LinkAddress::decode(&with.encode()).unwrap(), with);
        let without = LinkAddress { gid: None, ..with };
        assert_eq!(LinkAddress::decode(&without.encode()).unwrap(), without);
    }

    #[test]
    fn every_other_length_and_every_wrong_field_is_refused() {
        let good = address().encode();
        for length in (0..LINK_ADDRESS_BYTES).chain([LINK_ADDRESS_BYTES + 1]) {
            let mut bytes = good.to_vec();
            bytes.resize(length, 0);
            assert!(LinkAddress::decode(&bytes).is_err(), "{length} bytes");
        }
        for (at, value) in [
            (0, 0),
            (4, 2),
            (5, 0),
            (5, 6),
            (7, 2),
            (11, 1),
            (15, 1),
            (34, 0),
            (36, 0),
            (38, 1),
            (63, 1),
        ] {
            let mut bytes = good;
            bytes[at] = value;
            let decoded = LinkAddress::decode(&bytes);
            assert!(decoded.is_err(), "byte {at} = {value}: {decoded:?}");
        }
    }
}
