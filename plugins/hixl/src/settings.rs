//! The plugin's settings.

use std::net::{IpAddr, SocketAddr};

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

pub(crate) struct Options {
    pub endpoint: Endpoint,
    pub listen: Option<SocketAddr>,
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
            let parsed = text.parse().ok().filter(|at: &SocketAddr| at.port() != 0);
            parsed.ok_or_else(|| invalid(format!("setting listen = \"{text}\" is no IP:PORT")))
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
