//! Tokens of puts: what a node wants to see before it grants the right to write a range.

use std::fmt;

use kvstored_core::{Error, ErrorKind, Result};

use crate::types::NodeId;

/// Bytes of a token: the epoch of the master that made it, and a MAC.
pub const TOKEN_BYTES: usize = 8 + 32;
const CONTEXT: &str = "kvstored master 1 put token";

/// The range that a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenRange<'a> {
    /// The node.
    pub node: &'a NodeId,
    /// The put.
    pub put: u64,
    /// Where the range begins.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// The object's whole key.
    pub key: &'a [u8],
}

/// What a master and one node share since the node's mount. Its bytes are never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenKey([u8; 32]);

impl TokenKey {
    /// A key that somebody told.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes, for telling it to the node.
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The token for a range.
    pub fn sign(&self, epoch: u64, range: &TokenRange<'_>) -> [u8; TOKEN_BYTES] {
        let mut token = [0; TOKEN_BYTES];
        let (front, back) = token.split_at_mut(8);
        front.copy_from_slice(&epoch.to_le_bytes());
        back.copy_from_slice(self.mac(epoch, range).as_bytes());
        token
    }

    /// Checks a token that a client shows, in constant time. `obeyed` is the epoch of the master that the node obeys.
    ///
    /// Fails with `Fenced` for a token of another master, and with `PermissionDenied` for one that was made for something
    /// else or by somebody else.
    pub fn verify(&self, obeyed: u64, range: &TokenRange<'_>, token: &[u8]) -> Result<()> {
        let wrong = || {
            Error::new(
                ErrorKind::PermissionDenied,
                "the put's token is not for this range",
            )
        };
        let (epoch, mac) = token.split_at_checked(8).ok_or_else(wrong)?;
        let epoch = u64::from_le_bytes(epoch.try_into().map_err(|_| wrong())?);
        let mac: [u8; 32] = mac.try_into().map_err(|_| wrong())?;
        if epoch != obeyed {
            return Err(
                Error::new(ErrorKind::Fenced, "the put's token is of another master")
                    .with("epoch", epoch)
                    .with("obeyed", obeyed),
            );
        }
        // comparing hashes takes the same time wherever they differ
        if self.mac(epoch, range) == blake3::Hash::from_bytes(mac) {
            Ok(())
        } else {
            Err(wrong())
        }
    }

    fn mac(&self, epoch: u64, range: &TokenRange<'_>) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(CONTEXT.as_bytes());
        for number in [epoch, range.put, range.offset, range.length] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(range.node);
        hasher.update(range.key);
        hasher.finalize()
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("TokenKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = [7; 16];

    fn range() -> TokenRange<'static> {
        TokenRange {
            node: &NODE,
            put: 1,
            offset: 2,
            length: 3,
            key: b"\0k",
        }
    }

    #[test]
    fn a_token_is_good_for_its_range_only() {
        let key = TokenKey::from_bytes([1; 32]);
        let token = key.sign(9, &range());
        key.verify(9, &range(), &token).unwrap();
        for other in [
            TokenRange { put: 2, ..range() },
            TokenRange { offset: 3, ..range() },
            TokenRange { length: 4, ..range() },
            TokenRange {
                key: b"\0l",
                ..range()
            },
            TokenRange {
                node: &[8; 16],
                ..range()
            },
        ] {
            let error = key.verify(9, &other, &token).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        }
        assert!(TokenKey::from_bytes([2; 32]).verify(9, &range(), &token).is_err());
        for cut in [0, 7, 39] {
            assert!(key.verify(9, &range(), &token[..cut]).is_err());
        }
    }

    #[test]
    fn a_token_of_another_master_is_fenced() {
        let key = TokenKey::from_bytes([1; 32]);
        let token = key.sign(9, &range());
        assert_eq!(
            key.verify(10, &range(), &token).unwrap_err().kind(),
            ErrorKind::Fenced
        );
    }
}
