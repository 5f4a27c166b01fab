//! How a master's server is set up. Plain data.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use kvstored_core::{Error, ErrorKind, Result};

/// Certificates for the server's side of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// PEM file with the server's certificate, and those between it and the authority's.
    pub certificate: PathBuf,
    /// PEM file with the certificate's private key.
    pub key: PathBuf,
    /// PEM file with the certificates that clients' must come from; without it clients show none.
    pub client_authority: Option<PathBuf>,
}

/// How several masters agree on one leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HaSettings {
    /// etcd's addresses, `host:port` or URLs.
    pub endpoints: Vec<String>,
    /// Masters with the same name elect one leader.
    pub cluster: String,
    /// How long a leader that is dead or cut off stays leader, in whole seconds; etcd takes no less than about 2.
    pub lease: Duration,
    /// PEM file with the authority of etcd's certificates, for `https` addresses.
    pub authority: Option<PathBuf>,
    /// PEM files with the certificate and the key that etcd is shown.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// How a master's server is set up.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Where it listens. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where others reach it, if that differs from `listen`; followers name it.
    pub advertise: Option<String>,
    /// What clients must know. Required, together with `tls`, for every address that isn't a loopback one.
    pub token: Option<Vec<u8>>,
    /// Encrypts the connections.
    pub tls: Option<ServerTls>,
    /// Several masters; `None` for one alone.
    pub ha: Option<HaSettings>,
    /// Connections at once that have shown the token.
    pub max_connections: usize,
    /// Connections at once that haven't yet; past that, the oldest of them goes.
    pub max_strangers: usize,
    /// A connection that hasn't shown the token by then is closed (at most 10 s).
    pub stranger_patience: Duration,
    /// Calls that are worked on at once, those not counted that wait for orders or room.
    pub max_calls: usize,
    /// Threads that serve.
    pub threads: usize,
}

impl Default for ServerSettings {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 50088)),
            advertise: None,
            token: None,
            tls: None,
            ha: None,
            max_connections: 8192,
            max_strangers: 1024,
            stranger_patience: Duration::from_secs(10),
            max_calls: 256,
            threads: processors.clamp(1, 4),
        }
    }
}

impl ServerSettings {
    /// Fails with `InvalidInput`, and with `PermissionDenied` where an address needs a token and TLS that aren't there.
    pub fn check(&self) -> Result<()> {
        let loopback = self.listen.ip().to_canonical().is_loopback();
        if !loopback && (self.token.is_none() || self.tls.is_none()) {
            return Err(Error::new(
                ErrorKind::PermissionDenied,
                "addresses other than loopback need a token and TLS",
            )
            .with("address", self.listen));
        }
        if self
            .token
            .as_ref()
            .is_some_and(|token| token.is_empty() || !token.iter().all(u8::is_ascii_graphic))
        {
            return Err(Error::invalid(
                "the token is empty or has other characters than visible ASCII ones",
            ));
        }
        let positive = [
            ("max_connections", self.max_connections),
            ("max_strangers", self.max_strangers),
            ("max_calls", self.max_calls),
            ("threads", self.threads),
        ];
        for (name, value) in positive {
            if value == 0 {
                return Err(Error::invalid(format!("{name} is 0")));
            }
        }
        if self.stranger_patience.is_zero() || self.stranger_patience > Duration::from_secs(10) {
            return Err(Error::invalid(
                "stranger_patience is not above 0 and at most 10 s",
            ));
        }
        self.ha.as_ref().map_or(Ok(()), HaSettings::check)
    }
}

impl HaSettings {
    fn check(&self) -> Result<()> {
        if self.endpoints.is_empty() {
            return Err(Error::invalid(
                "etcd_endpoints: several masters need at least one address of etcd",
            ));
        }
        if self.cluster.is_empty() || self.cluster.len() > 256 {
            return Err(Error::invalid("cluster_id is empty or longer than 256 bytes"));
        }
        if self.lease < Duration::from_secs(2) || self.lease > Duration::from_mins(1) {
            return Err(Error::invalid("the leader's lease is not 2 to 60 seconds"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exposed_address_needs_a_token_and_tls() {
        let mut settings = ServerSettings {
            listen: "0.0.0.0:0".parse().unwrap(),
            ..ServerSettings::default()
        };
        assert_eq!(settings.check().unwrap_err().kind(), ErrorKind::PermissionDenied);
        settings.token = Some(b"secret".to_vec());
        assert_eq!(settings.check().unwrap_err().kind(), ErrorKind::PermissionDenied);
        settings.listen = "[::1]:0".parse().unwrap();
        settings.check().unwrap();
        settings.token = Some(b"two words\n".to_vec());
        assert!(settings.check().is_err());
    }
}
