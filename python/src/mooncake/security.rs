//! Who may take part.

use std::path::PathBuf;

use kvstored_core::{Error, Result};
use kvstored_transfer::{Secret, TlsSettings};

/// The shared token, and certificates for TLS.
pub struct Security {
    pub token: Option<Secret>,
    pub tls: Option<TlsSettings>,
}

impl Security {
    /// From what Python gives. Fails with `InvalidInput` when the certificates' files aren't complete.
    pub fn new(
        token: Option<Vec<u8>>,
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
        authority: Option<PathBuf>,
    ) -> Result<Self> {
        let tls = match (certificate, key, authority) {
            (None, None, None) => None,
            (Some(certificate), Some(key), Some(authority)) => Some(TlsSettings {
                certificate,
                key,
                authority,
                peer_name: None,
            }),
            _ => return Err(Error::invalid("certificate, key and authority go together")),
        };
        Ok(Self {
            token: token.map(Secret::new),
            tls,
        })
    }
}
