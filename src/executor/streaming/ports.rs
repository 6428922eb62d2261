//! The ports on which clients of streaming jobs are served.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::base::rng::Rng;

/// Ports of which one is taken for each streaming job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    pub(super) first: u16,
    pub(super) last: u16,
}

impl PortRange {
    /// Those of the Python executors, so that what a firewall lets through stays as it is: 6000 to 6999.
    pub const DEFAULT: Self = Self { first: 6000, last: 6999 };

    /// All of them.
    pub fn all(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = String;

    /// `6000-6999`, or one port.
    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if first > 0 && first <= last => Ok(Self { first, last }),
            _ => Err(format!("{text:?} should be a range of ports, as {}, or one port", Self::DEFAULT)),
        }
    }
}

/// Listens on one of the ports, of all interfaces of the address' family. Begins somewhere in the range, so that the
/// executors of a machine seldom ask for the same one.
pub(super) fn listen(address: &str, ports: PortRange) -> io::Result<TcpListener> {
    let PortRange { first, last } = ports;
    let any = match address.parse() {
        Ok(IpAddr::V6(_)) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        _ => IpAddr::from(Ipv4Addr::UNSPECIFIED),
    };
    let count = u32::from(last - first) + 1;
    let begin = (Rng::from_entropy().next_u64() % u64::from(count)) as u32;
    let mut failure = io::ErrorKind::AddrInUse.into();
    for n in 0..count {
        let port = first + ((begin + n) % count) as u16;
        match TcpListener::bind((any, port)) {
            Ok(listener) => return Ok(listener),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}
