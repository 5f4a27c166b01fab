//! Where an instance listens: a host and a port, written one way only, so that one instance can't be listed twice.

use std::fmt;
use std::net::IpAddr;

use kvstored_core::{Error, Result};

/// The longest host name of the domain name system.
const MAX_NAME_BYTES: usize = 253;

/// A host and a port. IP addresses are kept in their canonical spelling, names in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// From a host (a name, an IPv4 address, an IPv6 address with or without brackets) and a port.
    pub fn new(host: &str, port: u16) -> Result<Self> {
        if port == 0 {
            return Err(Error::invalid(format!(
                "port 0 of host {host:?} can't be reached"
            )));
        }
        Ok(Self {
            host: canonical(host)?,
            port,
        })
    }

    /// From `host:port` or `[v6]:port`.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || Error::invalid(format!("{text:?} is not HOST:PORT or [IPV6]:PORT"));
        let (host, port) = text.trim().rsplit_once(':').ok_or_else(wrong)?;
        if host.contains(':') && !host.starts_with('[') {
            // an IPv6 address without brackets could end in its last group or in a port
            return Err(wrong());
        }
        let port = port.parse().map_err(|_| wrong())?;
        Self::new(host, port)
    }

    /// The host without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(formatter, "[{}]:{}", self.host, self.port)
        } else {
            write!(formatter, "{}:{}", self.host, self.port)
        }
    }
}

/// The one spelling of a host.
pub fn canonical(host: &str) -> Result<String> {
    let bare = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    let valid = !bare.is_empty()
        && bare.len() <= MAX_NAME_BYTES
        && bare
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    if valid {
        Ok(bare.to_ascii_lowercase())
    } else {
        Err(Error::invalid(format!(
            "{host:?} is neither a host name nor an IP address"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_instance_has_one_spelling() {
        for (one, other) in [
            ("LocalHost:9000", "localhost:9000"),
            ("[0:0:0:0:0:0:0:1]:9000", "[::1]:9000"),
            (" 10.0.0.1:80 ", "10.0.0.1:80"),
        ] {
            assert_eq!(Address::parse(one).unwrap(), Address::parse(other).unwrap());
        }
        assert_eq!(
            Address::new("::1", 80).unwrap(),
            Address::new("[::1]", 80).unwrap()
        );
        assert_eq!(Address::new("::1", 80).unwrap().to_string(), "[::1]:80");
    }

    #[test]
    fn what_is_no_address_is_quoted() {
        for wrong in [
            "",
            "host",
            "host:",
            "host:0",
            "host:70000",
            "::1:80",
            "a b:80",
            "http://host:80",
            "host/path:80",
            "user@host:80",
            "[::1:80",
        ] {
            let error = Address::parse(wrong).unwrap_err();
            assert!(error.to_string().contains('"'), "{wrong}: {error}");
        }
    }
}
