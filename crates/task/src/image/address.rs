//! Which network addresses an image may come from.
//!
//! A data set's URLs are foreign input: without this check they could make the machine that runs vgen ask its own
//! neighbours. The check is on the addresses that a connection is made to, so no name can change its answer between
//! the check and the connection.

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use thiserror::Error;
use url::{Host, Url};

/// Whether `address` isn't a public unicast address: loopback, private, link-local, unique-local, carrier-grade NAT,
/// multicast, unspecified, reserved, or an IPv6 form of such an IPv4 address.
pub fn is_private_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_private_v4(address),
        IpAddr::V6(address) => is_private_v6(address),
    }
}

fn is_private_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation()
        // "This network", shared (carrier-grade NAT), protocol assignments, benchmarks, reserved with broadcast.
        || a == 0
        || (a == 100 && b & 0xc0 == 64)
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && b & 0xfe == 18)
        || a >= 240
}

fn is_private_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    // Mapped, NAT64, 6to4: what an IPv4 address is, its IPv6 forms are. Old "compatible" addresses include :: and ::1.
    let embedded = match segments {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some((high, low)),
        [0x2002, high, low, ..] => Some((high, low)),
        _ => None,
    };
    if let Some((high, low)) = embedded {
        return is_private_v4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    }
    address.is_unique_local()
        || address.is_unicast_link_local()
        || address.is_multicast()
        // Site-local (old), local NAT64, documentation.
        || segments[0] & 0xffc0 == 0xfec0
        || segments[..3] == [0x64, 0xff9b, 1]
        || segments[..2] == [0x2001, 0xdb8]
}

/// A URL or name that leads to an address that isn't public.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{address} is not a public address")]
pub(super) struct PrivateAddress {
    /// The address.
    pub(super) address: IpAddr,
}

/// Tells the addresses to refuse: [`is_private_address`] unless all are allowed.
pub(super) type Refused = fn(IpAddr) -> bool;

/// Refuses a URL whose host is written as an address to refuse: such a host is never resolved.
pub(super) fn check_literal(url: &Url, refused: Refused) -> Result<(), PrivateAddress> {
    let address = match url.host() {
        Some(Host::Ipv4(address)) => IpAddr::V4(address),
        Some(Host::Ipv6(address)) => IpAddr::V6(address),
        _ => return Ok(()),
    };
    if refused(address) { Err(PrivateAddress { address }) } else { Ok(()) }
}

/// The system's resolver without the addresses to refuse.
pub(super) struct FilteringResolver {
    /// Which those are.
    pub(super) refused: Refused,
}

impl Resolve for FilteringResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let refused = self.refused;
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            allowed_only(found, refused).map_err(|error| Box::new(error) as Box<dyn Error + Send + Sync>)
        })
    }
}

fn allowed_only(found: Vec<SocketAddr>, refused: Refused) -> Result<Addrs, PrivateAddress> {
    let (private, allowed): (Vec<_>, Vec<_>) = found.into_iter().partition(|found| refused(found.ip()));
    match (allowed.is_empty(), private.first()) {
        (true, Some(private)) => Err(PrivateAddress { address: private.ip() }),
        _ => Ok(Box::new(allowed.into_iter())),
    }
}

#[cfg(test)]
mod tests {
    // Fixtures and inputs of the tests are their own.
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn private_and_public() {
        let private = [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "239.1.1.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.1.2.3",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "fc00::1",
            "fdff::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ];
        for address in private {
            assert!(is_private_address(address.parse().unwrap()), "{address}");
        }
        let public = [
            "1.1.1.1",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.167.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "2002:808:808::",
        ];
        for address in public {
            assert!(!is_private_address(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn literal_hosts_in_any_notation() {
        for url in
            ["http://127.0.0.1/", "http://0x7f.1/", "http://2130706433/", "http://[::1]:80/", "http://[::ffff:a00:1]/"]
        {
            assert!(check_literal(&Url::parse(url).unwrap(), is_private_address).is_err(), "{url}");
        }
        assert_eq!(check_literal(&Url::parse("http://localhost/").unwrap(), is_private_address), Ok(()));
    }

    #[test]
    fn a_name_keeps_its_public_addresses_only() {
        let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let kept: Vec<_> = allowed_only(addresses(&["10.0.0.1:0", "1.1.1.1:0"]), is_private_address).unwrap().collect();
        assert_eq!(kept, addresses(&["1.1.1.1:0"]) as Vec<SocketAddr>);
        assert!(allowed_only(addresses(&["10.0.0.1:0", "[::1]:0"]), is_private_address).is_err());
    }
}
