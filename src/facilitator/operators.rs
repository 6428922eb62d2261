//! From where operators ask, as a setting.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::net::reach::{Network, NetworkError};

/// From where operators ask, who see the jobs of all users: written as `10.0.0.0/8,fd00::1`, or `none`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operators(Vec<Network>);

impl Operators {
    /// Whoever asks from there without the help of a proxy.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(address))
    }
}

impl Default for Operators {
    /// This machine: 127.0.0.0/8 and ::1.
    fn default() -> Self {
        Self(vec![Network::new(Ipv4Addr::new(127, 0, 0, 0).into(), 8), Network::new(Ipv6Addr::LOCALHOST.into(), 128)])
    }
}

impl FromStr for Operators {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        if text == "none" {
            return Ok(Self(Vec::new()));
        }
        Ok(Self(text.split(',').map(|network| network.trim().parse()).collect::<Result<_, _>>()?))
    }
}

impl fmt::Display for Operators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(networks) = self;
        if networks.is_empty() {
            return f.write_str("none");
        }
        f.write_str(&networks.iter().map(Network::to_string).collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_are_those_of_this_machine_unless_others_are_named() {
        let has = |text: &str, address: &str| text.parse::<Operators>().unwrap().has(address.parse().unwrap());
        let usual = Operators::default().to_string();
        assert_eq!(usual, "127.0.0.0/8,::1/128");
        assert!(has(&usual, "127.0.0.2") && has(&usual, "::1") && has(&usual, "::ffff:127.0.0.1"));
        assert!(!has(&usual, "10.0.0.1") && !has("none", "127.0.0.1"));
        assert!(has("10.0.0.0/8, fd00::1", "fd00::1") && !has("10.0.0.0/8", "127.0.0.1"));
        assert_eq!("none".parse::<Operators>().unwrap().to_string(), "none");
        let wrong = "10.0.0.1/8".parse::<Operators>().unwrap_err().to_string();
        assert!(wrong.contains("should it be 10.0.0.0/8?"), "{wrong}");
    }
}
