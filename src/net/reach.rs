//! Which addresses a job may name: global unicast, and the networks that the operator opens. Pure.
//!
//! What is judged is the address that is dialled, after the look-up of its name, so neither a name that points inside,
//! nor one that is looked up anew, nor a redirect, nor another way to write a number gets further than the address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Networks of four bytes that are for special purposes (IANA's registry), with multicast and what is reserved.
const CLOSED_V4: [([u8; 4], u8); 18] = [
    ([0, 0, 0, 0], 8),       // this network
    ([10, 0, 0, 0], 8),      // private
    ([100, 64, 0, 0], 10),   // shared by a carrier's customers
    ([127, 0, 0, 0], 8),     // loopback
    ([169, 254, 0, 0], 16),  // link-local, with the metadata of clouds
    ([172, 16, 0, 0], 12),   // private
    ([192, 0, 0, 0], 24),    // protocol assignments
    ([192, 0, 2, 0], 24),    // documentation
    ([192, 31, 196, 0], 24), // AS112
    ([192, 52, 193, 0], 24), // AMT
    ([192, 88, 99, 0], 24),  // relays of 6to4
    ([192, 168, 0, 0], 16),  // private
    ([192, 175, 48, 0], 24), // AS112
    ([198, 18, 0, 0], 15),   // benchmarking
    ([198, 51, 100, 0], 24), // documentation
    ([203, 0, 113, 0], 24),  // documentation
    ([224, 0, 0, 0], 4),     // multicast
    ([240, 0, 0, 0], 4),     // reserved, with broadcast
];

/// The part of IPv6 that has global unicast addresses; all else is special or not assigned.
const OPEN_V6: ([u16; 8], u8) = ([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);

/// Networks in [`OPEN_V6`] that are for special purposes.
const CLOSED_V6: [([u16; 8], u8); 5] = [
    ([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), // protocol assignments: Teredo, benchmarking, ORCHID
    ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32), // documentation
    ([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), // 6to4, which leads to any address of four bytes
    ([0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0], 48), // AS112
    ([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), // documentation
];

/// The prefix of IPv4 addresses that a translator of the network makes reachable (RFC 6052).
const TRANSLATED: ([u16; 8], u8) = ([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96);

/// A network, written as `10.0.0.0/8` or `fd00::/8`; without a length, one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    length: u8,
}

/// Why a text is no [`Network`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no network: {why}")]
pub struct NetworkError {
    text: String,
    why: String,
}

/// An address as a number of its width, so that four and sixteen bytes are compared alike.
fn bits(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)), 32),
        IpAddr::V6(v6) => (u128::from(v6), 128),
    }
}

impl Network {
    /// Whether the address is in the network; one of the other family never is.
    pub fn contains(&self, address: IpAddr) -> bool {
        let ((network, width), (address, other)) = (bits(self.address), bits(address));
        width == other && tail_shift(network ^ address, width - self.length) == 0
    }

    /// The addresses that have the first `length` bits of this one; its other bits are 0.
    pub(crate) const fn new(address: IpAddr, length: u8) -> Self {
        Self { address, length }
    }

    fn v4((address, length): ([u8; 4], u8)) -> Self {
        Self::new(Ipv4Addr::from(address).into(), length)
    }

    fn v6((address, length): ([u16; 8], u8)) -> Self {
        Self::new(Ipv6Addr::from(address).into(), length)
    }
}

/// `value` without its last `by` bits.
fn tail_shift(value: u128, by: u8) -> u128 {
    value.checked_shr(by.into()).unwrap_or(0)
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let bad = |why: String| NetworkError { text: text.to_owned(), why };
        let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
        let address: IpAddr =
            address.parse().map_err(|_| bad("it should be like 10.0.0.0/8, fd00::/8 or 10.0.0.5".to_owned()))?;
        let (number, width) = bits(address);
        let length = length.map_or(Ok(width), |length| {
            length
                .parse()
                .ok()
                .filter(|length| *length <= width)
                .ok_or_else(|| bad(format!("what follows the slash should be a number of bits from 0 to {width}")))
        })?;
        let first = tail_shift(number, width - length).checked_shl((width - length).into()).unwrap_or(0);
        if first != number {
            let network = match u32::try_from(first) {
                Ok(first) if width == 32 => IpAddr::V4(first.into()),
                _ => IpAddr::V6(first.into()),
            };
            return Err(bad(format!("its address has more than {length} bits, should it be {network}/{length}?")));
        }
        if address.to_canonical() != address {
            return Err(bad(format!("it is an IPv4 address in its IPv6 form; give it as {}", address.to_canonical())));
        }
        Ok(Self { address, length })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// What may be dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// Everything: for addresses that come from the operator.
    Everywhere,
    /// Global unicast addresses and these networks: for addresses that come from a job. Without networks, the default.
    Global(Vec<Network>),
}

impl Default for Reach {
    fn default() -> Self {
        Self::Global(Vec::new())
    }
}

impl Reach {
    /// Whether a connection to this address is allowed.
    pub fn allows(&self, address: IpAddr) -> bool {
        let Self::Global(open) = self else { return true };
        let address = dialled(address);
        is_global(address) || open.iter().any(|network| network.contains(address))
    }
}

/// Where a packet to the address ends: an IPv4 address behind its IPv6 form.
fn dialled(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if Network::v6(TRANSLATED).contains(IpAddr::V6(v6)) => {
            let [.., a, b, c, d] = v6.octets();
            Ipv4Addr::new(a, b, c, d).into()
        }
        address => address,
    }
}

fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => !CLOSED_V4.iter().any(|network| Network::v4(*network).contains(address)),
        IpAddr::V6(_) => {
            Network::v6(OPEN_V6).contains(address)
                && !CLOSED_V6.iter().any(|network| Network::v6(*network).contains(address))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_global_unicast_is_open_by_default() {
        let reach = Reach::default();
        for open in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700::1111",
            "2001:200::1",
            "2a00::1",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
        ] {
            assert!(reach.allows(open.parse().unwrap()), "{open}");
        }
        for closed in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.0.170",
            "192.0.2.1",
            "192.31.196.1",
            "192.52.193.1",
            "192.88.99.1",
            "192.168.0.1",
            "192.175.48.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::8.8.8.8",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:0:127.0.0.1",
            "64:ff9b::127.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1.1.1.1",
            "100::1",
            "100:0:0:1::1",
            "2001::1",
            "2001:0:7f00:1::1",
            "2001:2::1",
            "2001:10::1",
            "2001:20::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "2002:808:808::1",
            "2620:4f:8000::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!reach.allows(closed.parse().unwrap()), "{closed}");
            assert!(Reach::Everywhere.allows(closed.parse().unwrap()), "{closed}");
        }
    }

    #[test]
    fn networks_open_what_is_in_them_in_whatever_form_it_is_dialled() {
        let open = ["127.0.0.0/8", "10.1.2.3", "fd00::/8", "169.254.0.0/31"].map(|text| text.parse().unwrap());
        let reach = Reach::Global(open.to_vec());
        for open in ["127.0.0.1", "::ffff:127.1.2.3", "64:ff9b::127.0.0.1", "10.1.2.3", "fd00::1", "169.254.0.1"] {
            assert!(reach.allows(open.parse().unwrap()), "{open}");
        }
        for closed in ["10.1.2.4", "fc00::1", "::1", "169.254.0.2", "::127.0.0.1", "2002:7f00:1::"] {
            assert!(!reach.allows(closed.parse().unwrap()), "{closed}");
        }
        let all = ["0.0.0.0/0", "::/0"].map(|text| text.parse().unwrap());
        assert!(["127.0.0.1", "::1"].iter().all(|a| Reach::Global(all.to_vec()).allows(a.parse().unwrap())));
    }

    #[test]
    fn networks_are_read_and_written_and_bad_ones_are_explained() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "::/0", "fd00::/8", "10.0.0.5/32", "::1/128"] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), text);
        }
        assert_eq!("::1".parse::<Network>().unwrap().to_string(), "::1/128");
        for (text, why) in [
            ("", "like 10.0.0.0/8"),
            ("localhost", "like 10.0.0.0/8"),
            ("10.0.0.0/", "from 0 to 32"),
            ("10.0.0.0/33", "from 0 to 32"),
            ("::/129", "from 0 to 128"),
            ("10.0.0.5/8", "should it be 10.0.0.0/8?"),
            ("fd12::1/8", "should it be fd00::/8?"),
            ("::ffff:127.0.0.1", "give it as 127.0.0.1"),
        ] {
            let error = text.parse::<Network>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text:?} is no network: ")) && error.contains(why), "{error}");
        }
    }
}
