//! How a transfer engine is set up from what Python gives.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use kvstored_core::{Error, Result};
use kvstored_transfer::{EngineSettings, Secret, TlsSettings};

/// An engine that listens at a name and port. Fails with `InvalidInput` for a name without an address, for a transport that
/// there isn't, and when the certificates' files aren't complete.
pub fn engine_settings(
    listen: &str,
    transports: &[String],
    token: Option<Vec<u8>>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    authority: Option<PathBuf>,
) -> Result<EngineSettings> {
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
    Ok(EngineSettings {
        listen: Some(resolve(listen)?),
        token: token.map(Secret::new),
        tls,
        transports: transports
            .iter()
            .map(|name| name.parse())
            .collect::<Result<_>>()?,
        ..EngineSettings::default()
    })
}

fn resolve(name: &str) -> Result<SocketAddr> {
    let unknown = |why: String| Error::invalid(format!("\"{name}\" is no address to listen on: {why}"));
    let mut addresses = name
        .to_socket_addrs()
        .map_err(|error| unknown(error.to_string()))?;
    addresses
        .next()
        .ok_or_else(|| unknown("the name has none".to_owned()))
}
