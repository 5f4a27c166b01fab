//! Which of a port's addresses to send from.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};

use kvstored_core::{Error, ErrorKind, Result};

use crate::sys::{Device, Port};

/// The most entries of a port's table that are looked at.
const MOST_GIDS: u32 = 255;

/// An address of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gid {
    /// Its place in the port's table.
    pub index: u8,
    /// Its bytes: an IPv6 address, or an IPv4 one mapped into it.
    pub bytes: [u8; 16],
}

/// An entry of the table, and the protocol that packets from it have, as the kernel names it.
struct Candidate {
    gid: Gid,
    protocol: Option<String>,
}

/// Chooses the GID to send from: that of `address` if one is asked for, else the most widely reachable. On Ethernet only
/// RoCE v2 counts, whose packets are UDP and can be routed.
///
/// `None` stands for InfiniBand's local addresses, which need none. Fails with `Unavailable` where no GID fits.
pub fn choose(device: &Device, number: u8, port: &Port, address: Option<IpAddr>) -> Result<Option<Gid>> {
    let mut candidates = Vec::new();
    for index in 0..port.gids.min(MOST_GIDS) as u8 {
        let bytes = device.gid(number, index)?;
        candidates.push(Candidate {
            gid: Gid { index, bytes },
            protocol: protocol(device.name(), number, index),
        });
    }
    let best = best(&candidates, port.is_ethernet, address);
    if best.is_none() && (port.is_ethernet || address.is_some()) {
        return Err(
            Error::new(ErrorKind::Unavailable, "the RDMA port has no fitting address")
                .with("device", device.name())
                .with("port", number),
        );
    }
    Ok(best)
}

fn protocol(device: &str, port: u8, index: u8) -> Option<String> {
    let path = format!("/sys/class/infiniband/{device}/ports/{port}/gid_attrs/types/{index}");
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn best(candidates: &[Candidate], is_ethernet: bool, address: Option<IpAddr>) -> Option<Gid> {
    let wanted = address.map(|address| match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    });
    let fits = |candidate: &&Candidate| {
        let ip = Ipv6Addr::from(candidate.gid.bytes);
        let routable = match candidate.protocol.as_deref() {
            Some(protocol) => protocol == "RoCE v2",
            // an old kernel doesn't tell; it had RoCE v2 for mapped addresses only
            None => ip.to_ipv4_mapped().is_some(),
        };
        !ip.is_unspecified() && (routable || !is_ethernet) && wanted.is_none_or(|wanted| wanted == ip)
    };
    let fitting = candidates.iter().filter(fits);
    fitting
        .min_by_key(|candidate| (reach(candidate.gid.bytes), candidate.gid.index))
        .map(|candidate| candidate.gid)
}

/// How far an address reaches: the smaller, the farther.
fn reach(gid: [u8; 16]) -> u8 {
    let ip = Ipv6Addr::from(gid);
    match ip.to_ipv4_mapped() {
        Some(v4) if v4.is_link_local() => 2,
        Some(_) => 0,
        None if ip.is_unicast_link_local() => 3,
        None => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(entries: &[(&str, Option<&str>)]) -> Vec<Candidate> {
        let parsed = entries
            .iter()
            .enumerate()
            .map(|(index, (address, protocol))| Candidate {
                gid: Gid {
                    index: index as u8,
                    bytes: address.parse::<Ipv6Addr>().unwrap().octets(),
                },
                protocol: protocol.map(str::to_owned),
            });
        parsed.collect()
    }

    #[test]
    fn the_farthest_reaching_address_of_the_right_protocol_is_taken() {
        let table = candidates(&[
            ("fe80::1", Some("IB/RoCE v1")),
            ("fe80::1", Some("RoCE v2")),
            ("::ffff:10.0.0.7", Some("IB/RoCE v1")),
            ("::", None),
            ("2001:db8::7", Some("RoCE v2")),
            ("::ffff:10.0.0.7", Some("RoCE v2")),
        ]);
        assert_eq!(best(&table, true, None).unwrap().index, 5);
        assert_eq!(best(&table[..5], true, None).unwrap().index, 4);
        assert_eq!(best(&table[..3], true, None).unwrap().index, 1);
        assert!(best(&table[..1], true, None).is_none());
        assert_eq!(best(&table[..1], false, None).unwrap().index, 0);
    }

    #[test]
    fn an_address_that_is_asked_for_is_taken_or_nothing() {
        let table = candidates(&[
            ("::ffff:10.0.0.7", Some("RoCE v2")),
            ("2001:db8::7", Some("RoCE v2")),
        ]);
        let index = |address: &str| best(&table, true, Some(address.parse().unwrap())).map(|gid| gid.index);
        assert_eq!(index("10.0.0.7"), Some(0));
        assert_eq!(index("2001:db8::7"), Some(1));
        assert_eq!(index("10.0.0.8"), None);
    }

    #[test]
    fn without_the_kernels_word_only_mapped_addresses_count() {
        let table = candidates(&[("fe80::1", None), ("::ffff:10.0.0.7", None)]);
        assert_eq!(best(&table, true, None).unwrap().index, 1);
        assert!(best(&table[..1], true, None).is_none());
    }
}
