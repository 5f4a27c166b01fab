//! What one plugin tells another so that it can connect.

use std::ffi::c_int;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use kvstored_plugin::{Failure, Kind};

use crate::symbols::{Endpoint, EndpointAddress, EndpointPlace};

const MAGIC: [u8; 4] = *b"HXL1";
/// The magic, port, address of the listener, then the card: protocol, address and place.
const BYTES: usize = 4 + 2 + 16 + 4 + 40 + 64;

/// Where a server listens, and its card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerAddress {
    pub listen: SocketAddr,
    pub endpoint: Endpoint,
}

impl ServerAddress {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.listen.port().to_le_bytes());
        let ip = match self.listen.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        bytes.extend(ip.octets());
        let endpoint = &self.endpoint;
        bytes.extend(endpoint.protocol.to_le_bytes());
        bytes.extend(endpoint.address.kind.to_le_bytes());
        bytes.extend(endpoint.address.bytes);
        bytes.extend(endpoint.place.kind.to_le_bytes());
        bytes.extend(
            endpoint
                .place
                .numbers
                .iter()
                .flat_map(|number| number.to_le_bytes()),
        );
        bytes
    }

    /// Reads one, which came from a peer. Fails with `InvalidInput`.
    pub fn decode(bytes: &[u8]) -> Result<Self, Failure> {
        let wrong = || Failure::new(Kind::InvalidInput, "these bytes are no address of HIXL");
        if bytes.len() != BYTES {
            return Err(wrong());
        }
        let mut fields = Fields(bytes);
        let magic: [u8; 4] = fields.take().ok_or_else(wrong)?;
        let port = u16::from_le_bytes(fields.take().ok_or_else(wrong)?);
        let ip = Ipv6Addr::from(fields.take::<16>().ok_or_else(wrong)?).to_canonical();
        let mut number = || fields.take().map(c_int::from_le_bytes).ok_or_else(wrong);
        let (protocol, address_kind) = (number()?, number()?);
        let address: [u8; 36] = fields.take().ok_or_else(wrong)?;
        let place_kind = c_int::from_le_bytes(fields.take().ok_or_else(wrong)?);
        let mut numbers = [0; 15];
        for number in &mut numbers {
            *number = u32::from_le_bytes(fields.take().ok_or_else(wrong)?);
        }
        if magic != MAGIC || port == 0 || protocol != crate::symbols::PROTOCOL_ROCE {
            return Err(wrong());
        }
        Ok(Self {
            listen: SocketAddr::new(ip, port),
            endpoint: Endpoint {
                protocol,
                address: EndpointAddress {
                    kind: address_kind,
                    bytes: address,
                },
                place: EndpointPlace {
                    kind: place_kind,
                    numbers,
                },
                reserved: [0; 52],
            },
        })
    }
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const COUNT: usize>(&mut self) -> Option<[u8; COUNT]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbols::{ADDRESS_IP_V4, PLACE_DEVICE, PROTOCOL_ROCE};

    #[test]
    fn an_address_survives_the_way() {
        let mut bytes = [0; 36];
        bytes[..4].copy_from_slice(&[10, 0, 0, 7]);
        let mut numbers = [0; 15];
        numbers[0] = 3;
        for listen in ["10.0.0.7:26000", "[fd00::7]:26000"] {
            let address = ServerAddress {
                listen: listen.parse().unwrap(),
                endpoint: Endpoint {
                    protocol: PROTOCOL_ROCE,
                    address: EndpointAddress {
                        kind: ADDRESS_IP_V4,
                        bytes,
                    },
                    place: EndpointPlace {
                        kind: PLACE_DEVICE,
                        numbers,
                    },
                    reserved: [0; 52],
                },
            };
            let encoded = address.encode();
            assert!(encoded.len() <= kvstored_plugin::abi::MOST_ADDRESS_BYTES);
            assert_eq!(ServerAddress::decode(&encoded).unwrap(), address);
            for length in 0..encoded.len() {
                assert!(ServerAddress::decode(&encoded[..length]).is_err());
            }
        }
    }
}
