//! The name of a host that executors run on. Pure.

use std::fmt;
use std::str::FromStr;

/// Bytes of a host's name: it stands in metrics, logs and status lines.
const NAME_BYTES: usize = 32;

/// A host as the settings call it: a word of small letters, digits, `-` and `.`, at most 32 bytes long. Cheap to copy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName([u8; NAME_BYTES]);

/// A text is no name of a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name of a host: it should be a word of at most 32 small letters, digits, - and ., as gpu-1")]
pub struct BadHostName(String);

impl HostName {
    /// This machine: its processes, or the engine that the miner finds by itself.
    pub const LOCAL: Self = Self(padded("local"));

    /// The name.
    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|byte| *byte == 0).unwrap_or(NAME_BYTES);
        std::str::from_utf8(&self.0[..len]).unwrap_or_default()
    }
}

/// A text of at most so many bytes, none of them 0.
const fn padded(text: &str) -> [u8; NAME_BYTES] {
    let (mut bytes, from) = ([0; NAME_BYTES], text.as_bytes());
    let mut at = 0;
    while at < from.len() {
        bytes[at] = from[at];
        at += 1;
    }
    bytes
}

impl FromStr for HostName {
    type Err = BadHostName;

    fn from_str(text: &str) -> Result<Self, BadHostName> {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let fits = (1..=NAME_BYTES).contains(&text.len());
        let bytes = text.bytes().all(|byte| inner(byte) || matches!(byte, b'-' | b'.'));
        // As a flag it would be taken for an option, and as a folder for another one.
        let begins = text.bytes().next().is_some_and(inner);
        if fits && bytes && begins {
            return Ok(Self(padded(text)));
        }
        Err(BadHostName(text.chars().take(2 * NAME_BYTES).collect()))
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_short_word_and_comes_back_as_it_was() {
        let longest = "x".repeat(NAME_BYTES);
        for name in ["local", "gpu-1", "7", "rack.3-node", &longest] {
            assert_eq!(name.parse::<HostName>().unwrap().to_string(), name);
        }
        assert_eq!("local".parse(), Ok(HostName::LOCAL));
        for bad in ["", "GPU", "a b", "-a", ".a", "a/b", "a\0", "ä", "a_b", &format!("{longest}x")] {
            assert!(bad.parse::<HostName>().unwrap_err().to_string().contains("as gpu-1"), "{bad:?}");
        }
    }
}
