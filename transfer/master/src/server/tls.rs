//! Certificates.

use std::path::Path;

use kvstored_core::{Error, Result};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use super::settings::ServerTls;

/// How long a TLS handshake may take.
const HANDSHAKE: std::time::Duration = std::time::Duration::from_secs(10);

/// Reads the server's certificates. Fails as reading files does.
pub(crate) fn server_config(tls: &ServerTls) -> Result<ServerTlsConfig> {
    let identity = Identity::from_pem(read(&tls.certificate)?, read(&tls.key)?);
    let mut config = ServerTlsConfig::new().identity(identity).timeout(HANDSHAKE);
    if let Some(authority) = &tls.client_authority {
        config = config.client_ca_root(Certificate::from_pem(read(authority)?));
    }
    Ok(config)
}

/// Reads a PEM file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path)
        .map_err(|error| Error::from_io(error, "a certificate can't be read").with("path", path.display()))
}
