//! The plugin's settings.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use kvstored_plugin::{Failure, Kind, Settings};

use crate::symbols::{
    ADDRESS_IP_V4, ADDRESS_IP_V6, Endpoint, EndpointAddress, EndpointPlace, PLACE_DEVICE, PLACE_HOST,
    PROTOCOL_ROCE,
};

const KNOWN: [&str; 9] = [
    "address",
    "listen",
    "placement",
    "device",
    "physical_device",
    "traffic_class",
    "service_level",
    "library",
    "acl_library",
];
/// What CANN itself takes where nothing is given.
const TRAFFIC_CLASS: u8 = 132;
const SERVICE_LEVEL: u8 = 4;
/// Ports that are tried at most.
const MOST_PORTS: u16 = 256;

/// Where the server listens: on the first of those ports that nobody has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listen {
    pub ip: IpAddr,
    pub ports: RangeInclusive<u16>,
}

impl Listen {
    /// Reads `IP:PORT` and `IP:FIRST-LAST`.
    fn read(text: &str) -> Option<Self> {
        let (first, last) = match text.rsplit_once('-') {
            Some((first, last)) => (first, Some(last.parse::<u16>().ok()?)),
            None => (text, None),
        };
        let first: SocketAddr = first.parse().ok()?;
        let last = last.unwrap_or(first.port());
        let wide = last.checked_sub(first.port())? < MOST_PORTS;
        (first.port() != 0 && wide).then(|| Self {
            ip: first.ip(),
            ports: first.port()..=last,
        })
    }
}

pub(crate) struct Options {
    pub endpoint: Endpoint,
    pub listen: Option<Listen>,
    /// The device that threads must have, where its card moves the bytes.
    pub device: Option<i32>,
    pub traffic_class: u8,
    pub service_level: u8,
    pub library: Option<String>,
    pub acl_library: Option<String>,
}

fn invalid(message: String) -> Failure {
    Failure::new(Kind::InvalidInput, message)
}

impl Options {
    /// Fails with `InvalidInput`, naming what is wrong.
    pub fn read(settings: &Settings) -> Result<Self, Failure> {
        settings.expect(&KNOWN)?;
        let address = settings
            .get("address")
            .ok_or_else(|| invalid("setting address is missing: the IP address of the card".into()))?;
        let address: IpAddr = address
            .parse()
            .map_err(|_| invalid(format!("setting address = \"{address}\" is no IP address")))?;
        let listen = settings.get("listen").map(|text| {
            let wrong = || {
                invalid(format!(
                    "setting listen = \"{text}\" is no IP:PORT or IP:FIRST-LAST"
                ))
            };
            Listen::read(text).ok_or_else(wrong)
        });
        let device: i32 = settings.parse("device", 0)?;
        let (place, device) = match settings.get("placement").unwrap_or("host") {
            "host" => (place(PLACE_HOST, 0), None),
            "device" => {
                let physical = settings.parse("physical_device", device as u32)?;
                (place(PLACE_DEVICE, physical), Some(device))
            }
            other => {
                let message = format!("setting placement = \"{other}\" is neither host nor device");
                return Err(invalid(message));
            }
        };
        Ok(Self {
            endpoint: Endpoint {
                protocol: PROTOCOL_ROCE,
                address: endpoint_address(address),
                place,
                reserved: [0; 52],
            },
            listen: listen.transpose()?,
            device,
            traffic_class: settings.parse("traffic_class", TRAFFIC_CLASS)?,
            service_level: settings.parse("service_level", SERVICE_LEVEL)?,
            library: settings.get("library").map(str::to_owned),
            acl_library: settings.get("acl_library").map(str::to_owned),
        })
    }
}

fn place(kind: std::ffi::c_int, number: u32) -> EndpointPlace {
    let mut numbers = [0; 15];
    numbers[0] = number;
    EndpointPlace { kind, numbers }
}

fn endpoint_address(address: IpAddr) -> EndpointAddress {
    let mut bytes = [0; 36];
    let kind = match address {
        IpAddr::V4(address) => {
            bytes[..4].copy_from_slice(&address.octets());
            ADDRESS_IP_V4
        }
        IpAddr::V6(address) => {
            bytes[..16].copy_from_slice(&address.octets());
            ADDRESS_IP_V6
        }
    };
    EndpointAddress { kind, bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_listens_on_a_port_or_on_one_of_several() {
        let ports = |text| Listen::read(text).map(|listen| listen.ports);
        assert_eq!(ports("10.0.0.7:26000"), Some(26_000..=26_000));
        assert_eq!(ports("10.0.0.7:26000-26007"), Some(26_000..=26_007));
        assert_eq!(ports("[fd00::7]:26000-26000"), Some(26_000..=26_000));
        for wrong in [
            "10.0.0.7",
            "10.0.0.7:0",
            "10.0.0.7:0-3",
            "10.0.0.7:26001-26000",
            "10.0.0.7:26000-26256",
            "10.0.0.7:26000-",
            "10.0.0.7:26000-70000",
        ] {
            assert_eq!(ports(wrong), None, "{wrong}");
        }
    }
}
