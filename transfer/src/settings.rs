//! How an engine is set up: plain data.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use kvstored_core::{Error, Result, TransportFactory};

/// The longest that a handshake may take, whatever is configured.
pub(crate) const MAX_HANDSHAKE: Duration = Duration::from_secs(10);
const MAX_STREAMS: usize = 16;
const MAX_REACTORS: usize = 16;

/// A way to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TransportKind {
    /// Memory shared with a process of the same host.
    Shm,
    /// RDMA verbs.
    Rdma,
    /// Sockets.
    Tcp,
    /// A plugged-in transport, for the interconnect of Ascend devices. Only where it's named, and given.
    Ascend,
}

impl TransportKind {
    /// All that are tried where none is configured, fastest first.
    pub const ALL: [Self; 3] = [Self::Shm, Self::Rdma, Self::Tcp];
    /// All that can be named.
    pub const NAMED: [Self; 4] = [Self::Shm, Self::Rdma, Self::Tcp, Self::Ascend];

    /// The name in configuration, metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shm => "shm",
            Self::Rdma => "rdma",
            Self::Tcp => "tcp",
            Self::Ascend => "ascend",
        }
    }
}

impl fmt::Display for TransportKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for TransportKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = Self::NAMED.into_iter().find(|kind| kind.name() == name);
        known.ok_or_else(|| Error::invalid(format!("transport \"{name}\" is none of shm, rdma, tcp, ascend")))
    }
}

/// What engines share so that they trust each other. Its bytes are never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Takes the bytes over. They should be random and at least 16: who can guess them is trusted.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes, for whoever derives keys from them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

/// Mutual TLS: every engine shows a certificate of the same authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    /// PEM file with this engine's certificate, and those between it and the authority's.
    pub certificate: PathBuf,
    /// PEM file with the certificate's private key.
    pub key: PathBuf,
    /// PEM file with the certificates that peers' must come from.
    pub authority: PathBuf,
    /// The name that peers' certificates must carry; by default the host in the address that is opened.
    pub peer_name: Option<String>,
}

/// How an engine is set up.
#[derive(Clone, Debug)]
pub struct EngineSettings {
    /// Where peers reach it. `None`: it only opens others. Port 0 takes a free one.
    pub listen: Option<SocketAddr>,
    /// What peers must know. Required, together with `tls`, for every address that isn't a loopback one.
    pub token: Option<Secret>,
    /// Encrypts `tcp`; peers must show certificates.
    pub tls: Option<TlsSettings>,
    /// The transports to try, in order; the first that works with a peer is taken. Empty: all, fastest first.
    pub transports: Vec<TransportKind>,
    /// What [`TransportKind::Ascend`] is, where `transports` names it.
    pub ascend: Option<TransportFactory>,
    /// Connections to each peer that large transfers are spread over (1 to 16).
    pub streams_per_peer: usize,
    /// Threads that serve sockets (1 to 16).
    pub reactors: usize,
    /// A peer that answers nothing for so long is given up (at least 50 ms).
    pub peer_timeout: Duration,
    /// An incoming connection that hasn't finished its handshake by then is closed (at most 10 s).
    pub handshake_timeout: Duration,
    /// Connections that are served at once, and at most half of the descriptors that the process may have. Half as many
    /// more (an eighth of the descriptors) may be in their handshake; past that, the oldest of those goes.
    pub max_connections: usize,
    /// Operations of at most 1 MiB that may be under way to one peer; past that, `submit` answers `Busy`.
    pub queue_depth: usize,
    /// Notifications that wait to be taken; past that, peers are answered `Busy`.
    pub max_notifications: usize,
}

impl Default for EngineSettings {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            listen: None,
            token: None,
            tls: None,
            transports: Vec::new(),
            ascend: None,
            streams_per_peer: 2,
            reactors: (processors / 4).clamp(1, 4),
            peer_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(5),
            max_connections: 16_384,
            queue_depth: 65_536,
            max_notifications: 4_096,
        }
    }
}

impl EngineSettings {
    /// Fails with `InvalidInput`, naming the first setting that makes no sense.
    pub(crate) fn check(&self) -> Result<()> {
        let within = |name: &str, value: usize, least: usize, most: usize| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err(Error::invalid(format!(
                    "{name} is {value}, not {least} to {most}"
                )))
            }
        };
        within("streams_per_peer", self.streams_per_peer, 1, MAX_STREAMS)?;
        within("reactors", self.reactors, 1, MAX_REACTORS)?;
        within("max_connections", self.max_connections, 1, 1 << 20)?;
        within("queue_depth", self.queue_depth, 1, 1 << 24)?;
        within("max_notifications", self.max_notifications, 1, 1 << 20)?;
        if self.handshake_timeout.is_zero() || self.handshake_timeout > MAX_HANDSHAKE {
            return Err(Error::invalid(
                "handshake_timeout is not above 0 and at most 10 s",
            ));
        }
        if self.peer_timeout < Duration::from_millis(50) {
            return Err(Error::invalid("peer_timeout is below 50 ms"));
        }
        if let Some(token) = &self.token
            && token.expose().is_empty()
        {
            return Err(Error::invalid("the token is empty"));
        }
        if self.transports.contains(&TransportKind::Ascend) && self.ascend.is_none() {
            return Err(Error::invalid(
                "transport ascend is a plug-in, and none is given here",
            ));
        }
        self.listen.map_or(Ok(()), |listen| self.check_exposure(listen))
    }

    /// Fails with `PermissionDenied` where an address needs a token and TLS that aren't there.
    pub(crate) fn check_exposure(&self, address: SocketAddr) -> Result<()> {
        let loopback = address.ip().to_canonical().is_loopback();
        if loopback || (self.token.is_some() && self.tls.is_some()) {
            return Ok(());
        }
        Err(Error::new(
            kvstored_core::ErrorKind::PermissionDenied,
            "addresses other than loopback need a token and TLS",
        )
        .with("address", address))
    }

    /// The transports to try, in order.
    pub(crate) fn order(&self) -> &[TransportKind] {
        if self.transports.is_empty() {
            &TransportKind::ALL
        } else {
            &self.transports
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvstored_core::ErrorKind;

    #[test]
    fn an_exposed_address_needs_a_token_and_tls() {
        let mut settings = EngineSettings {
            listen: Some("0.0.0.0:0".parse().unwrap()),
            ..EngineSettings::default()
        };
        assert_eq!(settings.check().unwrap_err().kind(), ErrorKind::PermissionDenied);
        settings.token = Some(Secret::new("x"));
        assert_eq!(settings.check().unwrap_err().kind(), ErrorKind::PermissionDenied);
        settings.listen = Some("[::ffff:127.0.0.1]:0".parse().unwrap());
        settings.check().unwrap();
    }

    #[test]
    fn values_out_of_range_are_named() {
        let settings = EngineSettings {
            streams_per_peer: 0,
            ..EngineSettings::default()
        };
        assert!(
            settings
                .check()
                .unwrap_err()
                .to_string()
                .contains("streams_per_peer")
        );
        let settings = EngineSettings {
            handshake_timeout: Duration::from_secs(11),
            ..EngineSettings::default()
        };
        assert!(
            settings
                .check()
                .unwrap_err()
                .to_string()
                .contains("handshake_timeout")
        );
    }

    #[test]
    fn a_transport_that_is_plugged_in_has_to_be_given() {
        let settings = EngineSettings {
            transports: vec![TransportKind::Ascend, TransportKind::Tcp],
            ..EngineSettings::default()
        };
        assert!(settings.check().unwrap_err().to_string().contains("ascend"));
    }

    #[test]
    fn a_secret_is_not_printed() {
        assert!(!format!("{:?}", Secret::new("hunter2")).contains("hunter"));
    }

    #[test]
    fn names_of_transports_are_read_back() {
        for kind in TransportKind::NAMED {
            assert_eq!(kind.name().parse::<TransportKind>().unwrap(), kind);
        }
        assert!("udp".parse::<TransportKind>().is_err());
    }
}
