//! The four frames that begin a connection, and the one that refuses it.

use kvstored_core::{Error, ErrorKind, Result};
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{error_of, status_of};

/// Bytes of a frame of the handshake.
pub const HANDSHAKE_BYTES: usize = 128;
/// The protocol's version.
pub const VERSION: u16 = 1;
const MAGIC: [u8; 8] = *b"KVSTXFER";

const OPENER_HELLO: u8 = 1;
const ACCEPTOR_HELLO: u8 = 2;
const OPENER_PROOF: u8 = 3;
const ACCEPTOR_PROOF: u8 = 4;
const REFUSAL: u8 = 5;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    kind: u8,
    status: u8,
    version: U16,
    heartbeat_ms: U32,
    first: [u8; 32],
    second: [u8; 32],
    third: [u8; 32],
    spare: [u8; 16],
}

const _: () = assert!(size_of::<Raw>() == HANDSHAKE_BYTES);

/// Who somebody is, and half of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// How often the opener shows that it lives, or how long the acceptor waits for that, in milliseconds.
    pub heartbeat_ms: u32,
    /// Ed25519 public key, which the engine's name derives from.
    pub identity: [u8; 32],
    /// X25519 public key, new for each connection.
    pub exchange: [u8; 32],
    /// Random, new for each connection.
    pub nonce: [u8; 32],
}

/// That somebody is who it says, and knows the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Ed25519 over the transcript.
    pub signature: [u8; 64],
    /// Keyed by what was agreed, the token included.
    pub mac: [u8; 32],
}

/// A frame of the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeFrame {
    /// Begins.
    OpenerHello(Hello),
    /// Answers it.
    AcceptorHello(Hello),
    /// Answers that.
    OpenerProof(Proof),
    /// Ends the handshake.
    AcceptorProof(Proof),
    /// Ends the connection.
    Refusal(ErrorKind),
}

impl HandshakeFrame {
    /// Its bytes.
    pub fn encode(&self) -> [u8; HANDSHAKE_BYTES] {
        let mut raw = Raw {
            magic: MAGIC,
            kind: REFUSAL,
            status: 0,
            version: VERSION.into(),
            heartbeat_ms: 0.into(),
            first: [0; 32],
            second: [0; 32],
            third: [0; 32],
            spare: [0; 16],
        };
        match self {
            Self::OpenerHello(hello) => raw.hello(OPENER_HELLO, hello),
            Self::AcceptorHello(hello) => raw.hello(ACCEPTOR_HELLO, hello),
            Self::OpenerProof(proof) => raw.proof(OPENER_PROOF, proof),
            Self::AcceptorProof(proof) => raw.proof(ACCEPTOR_PROOF, proof),
            Self::Refusal(kind) => raw.status = status_of(Some(*kind)),
        }
        zerocopy::transmute!(raw)
    }

    /// Reads a frame. Fails with `Corrupt` for bytes that are none, and with `Unsupported` for another version.
    pub fn decode(bytes: &[u8; HANDSHAKE_BYTES]) -> Result<Self> {
        let raw: Raw = zerocopy::transmute!(*bytes);
        if raw.magic != MAGIC {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "the other side speaks another protocol",
            ));
        }
        if raw.version.get() != VERSION {
            let version = raw.version.get();
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("protocol version {version}, not {VERSION}"),
            ));
        }
        let hello = Hello {
            heartbeat_ms: raw.heartbeat_ms.get(),
            identity: raw.first,
            exchange: raw.second,
            nonce: raw.third,
        };
        let proof = Proof {
            signature: zerocopy::transmute!([raw.first, raw.second]),
            mac: raw.third,
        };
        let frame = match (raw.kind, error_of(raw.status)) {
            (OPENER_HELLO, None) => Self::OpenerHello(hello),
            (ACCEPTOR_HELLO, None) => Self::AcceptorHello(hello),
            (OPENER_PROOF, None) => Self::OpenerProof(proof),
            (ACCEPTOR_PROOF, None) => Self::AcceptorProof(proof),
            (REFUSAL, Some(kind)) => Self::Refusal(kind),
            _ => {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    "these bytes are no frame of a handshake",
                ));
            }
        };
        // what has no place in the frame must be zero
        if frame.encode() != *bytes {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "these bytes are no frame of a handshake",
            ));
        }
        Ok(frame)
    }
}

impl Raw {
    fn hello(&mut self, kind: u8, hello: &Hello) {
        self.kind = kind;
        self.heartbeat_ms = hello.heartbeat_ms.into();
        self.first = hello.identity;
        self.second = hello.exchange;
        self.third = hello.nonce;
    }

    fn proof(&mut self, kind: u8, proof: &Proof) {
        self.kind = kind;
        [self.first, self.second] = zerocopy::transmute!(proof.signature);
        self.third = proof.mac;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_refusal_and_a_proof_survive_the_wire() {
        let refusal = HandshakeFrame::Refusal(ErrorKind::PermissionDenied);
        assert_eq!(HandshakeFrame::decode(&refusal.encode()).unwrap(), refusal);
        let mut signature = [1; 64];
        signature[63] = 2;
        let proof = HandshakeFrame::OpenerProof(Proof {
            signature,
            mac: [3; 32],
        });
        assert_eq!(HandshakeFrame::decode(&proof.encode()).unwrap(), proof);
    }

    #[test]
    fn another_version_is_told_from_another_protocol() {
        let mut bytes = HandshakeFrame::Refusal(ErrorKind::Busy).encode();
        bytes[10] = 2;
        assert_eq!(
            HandshakeFrame::decode(&bytes).unwrap_err().kind(),
            ErrorKind::Unsupported
        );
        bytes[0] = b'G';
        assert_eq!(
            HandshakeFrame::decode(&bytes).unwrap_err().kind(),
            ErrorKind::Corrupt
        );
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_the_same(kind in 0u8..7, status in 0u8..20, ms in 0u32..2, fill: u8, spare in 0u8..2) {
            let mut bytes = [fill; HANDSHAKE_BYTES];
            bytes[..8].copy_from_slice(&MAGIC);
            bytes[8] = kind;
            bytes[9] = status;
            bytes[10..12].copy_from_slice(&VERSION.to_le_bytes());
            bytes[12..16].copy_from_slice(&ms.to_le_bytes());
            bytes[112..].fill(spare);
            if let Ok(frame) = HandshakeFrame::decode(&bytes) {
                prop_assert_eq!(frame.encode(), bytes);
            }
        }
    }
}
