//! A device's port, ready for links.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use kvstored_core::{Error, ErrorKind, Result};

use crate::gid::{self, Gid};
use crate::sys::{Device, Domain, Limits, Port};

/// Which port to take. By default the first that works.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NicChoice {
    /// A device's name, as under `/sys/class/infiniband`.
    pub device: Option<String>,
    /// A port, counted from 1.
    pub port: Option<u8>,
    /// The IP address that the port must have.
    pub address: Option<IpAddr>,
}

/// A port whose link is up, and a protection domain for everything that goes over it.
pub struct Nic {
    domain: Arc<Domain>,
    limits: Limits,
    number: u8,
    port: Port,
    gid: Option<Gid>,
}

impl Nic {
    /// Opens the first port that fits. Fails with `Unavailable`, saying of each candidate why not, where there is none.
    pub fn open(choice: &NicChoice) -> Result<Arc<Self>> {
        let mut reasons = Vec::new();
        for name in Device::names()? {
            if choice.device.as_ref().is_some_and(|wanted| *wanted != name) {
                continue;
            }
            match Self::open_on(&name, choice) {
                Ok(nic) => return Ok(Arc::new(nic)),
                Err(error) => reasons.push(format!("{name}: {error}")),
            }
        }
        if reasons.is_empty() {
            reasons.push(match &choice.device {
                Some(device) => format!("there is no {device}"),
                None => "there is none".to_owned(),
            });
        }
        let message = format!("no RDMA device that can be used: {}", reasons.join("; "));
        Err(Error::new(ErrorKind::Unavailable, message))
    }

    fn open_on(name: &str, choice: &NicChoice) -> Result<Self> {
        let device = Device::open(name)?;
        let limits = device.limits()?;
        if limits.windows == 0 {
            // without them a peer could touch more of our memory than an operation is about, and longer
            return Err(Error::new(ErrorKind::Unsupported, "no memory windows of type 2"));
        }
        let mut reason = Error::new(ErrorKind::Unavailable, "no such port");
        for number in 1..=limits.ports {
            if choice.port.is_some_and(|wanted| wanted != number) {
                continue;
            }
            let port = device.port(number)?;
            if !port.is_active {
                reason = Error::new(ErrorKind::Unavailable, "the port's link is down").with("port", number);
                continue;
            }
            match gid::choose(&device, number, &port, choice.address) {
                Ok(gid) => {
                    let domain = Domain::new(&device)?;
                    return Ok(Self {
                        domain,
                        limits,
                        number,
                        port,
                        gid,
                    });
                }
                Err(error) => reason = error,
            }
        }
        Err(reason)
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        self.domain.device()
    }

    /// The domain that memory for its links is registered in.
    pub fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }

    /// What the device can do.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The port's number, from 1.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// How the port was when it was opened.
    pub fn port(&self) -> &Port {
        &self.port
    }

    /// The GID that it sends from.
    pub fn gid(&self) -> Option<Gid> {
        self.gid
    }
}

impl fmt::Debug for Nic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Nic")
            .field("device", &self.device().name())
            .field("port", &self.number)
            .field("gid", &self.gid)
            .finish_non_exhaustive()
    }
}
