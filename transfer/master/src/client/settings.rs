//! How a client reaches the master. Plain data.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use kvstored_core::{Error, ErrorKind, Result};

/// Certificates for the client's side of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTls {
    /// PEM file with the certificates that masters' must come from.
    pub authority: PathBuf,
    /// PEM file with the certificate that masters are shown, and with its key, where they ask for one.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name that masters' certificates must carry; by default the host of the address.
    pub server_name: Option<String>,
}

/// How a client reaches the master.
#[derive(Clone)]
pub struct ClientSettings {
    /// The masters' addresses, `host:port`. With several, the one that leads is found.
    pub endpoints: Vec<String>,
    /// The pool's token. Required, together with `tls`, for every address that isn't a loopback one.
    pub token: Option<Vec<u8>>,
    /// Encrypts the connections.
    pub tls: Option<ClientTls>,
    /// How long one master may take to answer before the next is asked.
    pub attempt_timeout: Duration,
    /// How long calls fail at once after no master answered in time; calls of nodes are always tried.
    pub away: Duration,
    /// Objects whose last-known locations are kept for when no master answers; 0 for none.
    pub known_objects: usize,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            endpoints: vec!["127.0.0.1:50088".to_owned()],
            token: None,
            tls: None,
            attempt_timeout: Duration::from_secs(1),
            away: Duration::from_millis(500),
            known_objects: 0,
        }
    }
}

impl fmt::Debug for ClientSettings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ClientSettings")
            .field("endpoints", &self.endpoints)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("tls", &self.tls)
            .field("attempt_timeout", &self.attempt_timeout)
            .finish_non_exhaustive()
    }
}

impl ClientSettings {
    /// Fails with `InvalidInput` for addresses that aren't any.
    pub fn check(&self) -> Result<()> {
        if self.endpoints.is_empty() {
            return Err(Error::invalid("no address of a master"));
        }
        self.endpoints
            .iter()
            .try_for_each(|address| self.check_address(address))
    }

    /// Fails with `InvalidInput` for what isn't `host:port`, and with `PermissionDenied` where an address needs a token
    /// and TLS that aren't there.
    pub(super) fn check_address(&self, address: &str) -> Result<()> {
        let wrong = || Error::invalid(format!("a master's address \"{address}\" is not host:port"));
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        let plain = |byte: u8| byte.is_ascii_graphic() && !b"/@?#\\\"<>".contains(&byte);
        if host.is_empty() || port.parse::<u16>().is_err() || !address.bytes().all(plain) {
            return Err(wrong());
        }
        if is_loopback(host) || (self.token.is_some() && self.tls.is_some()) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::PermissionDenied,
            "addresses other than loopback need a token and TLS",
        )
        .with("address", address))
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let ip = bare.parse::<std::net::IpAddr>();
    bare == "localhost" || ip.is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(address: &str) -> ClientSettings {
        ClientSettings {
            endpoints: vec![address.to_owned()],
            ..ClientSettings::default()
        }
    }

    #[test]
    fn addresses_are_checked() {
        for address in ["127.0.0.1:1", "[::1]:50088", "localhost:9"] {
            with(address).check().unwrap();
        }
        for address in [
            "127.0.0.1",
            ":1",
            "h:",
            "h:70000",
            "user@127.0.0.1:1",
            "127.0.0.1/x:1",
        ] {
            assert_eq!(
                with(address).check().unwrap_err().kind(),
                ErrorKind::InvalidInput,
                "{address}"
            );
        }
        for address in ["192.168.10.1:50088", "example.org:1", "localhost.example.org:1"] {
            assert_eq!(
                with(address).check().unwrap_err().kind(),
                ErrorKind::PermissionDenied,
                "{address}"
            );
        }
    }

    #[test]
    fn the_token_is_not_printed() {
        let settings = ClientSettings {
            token: Some(b"hunter2".to_vec()),
            ..ClientSettings::default()
        };
        assert!(!format!("{settings:?}").contains("hunter"));
    }
}
