//! Versions of NVIDIA's container toolkit, and when a security check is due. Pure.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// A version, as 1.17.8; one with a word behind it, as 1.17.8-rc.1, comes before the one without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ToolkitVersion {
    numbers: [u32; 3],
    released: bool,
}

impl ToolkitVersion {
    /// The first without the ways out of a container that are known: CVE-2024-0132 ends with 1.16.2, CVE-2025-23359
    /// with 1.17.4, CVE-2025-23266 with this one.
    pub const SAFE: Self = Self { numbers: [1, 17, 8], released: true };

    /// The version in what `nvidia-ctk --version` or a tool like it prints.
    pub fn find(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(|word| word.parse().ok())
    }
}

/// Why a text is no version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it should be a version, as {}", ToolkitVersion::SAFE)]
pub struct BadVersion;

impl FromStr for ToolkitVersion {
    type Err = BadVersion;

    fn from_str(text: &str) -> Result<Self, BadVersion> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let (plain, more) = text.split_once(['-', '~', '+']).unwrap_or((text, ""));
        let mut parts = plain.split('.');
        let mut numbers = [0; 3];
        for (at, number) in numbers.iter_mut().enumerate() {
            let part = match parts.next() {
                Some(part) => part,
                // A version has at least two numbers.
                None if at == 2 => break,
                None => return Err(BadVersion),
            };
            if !part.chars().all(|c| c.is_ascii_digit()) {
                return Err(BadVersion);
            }
            *number = part.parse().map_err(|_| BadVersion)?;
        }
        if parts.next().is_some() {
            return Err(BadVersion);
        }
        // A number behind it is of a package of the release.
        Ok(Self { numbers, released: !more.starts_with(|c: char| c.is_ascii_alphabetic()) })
    }
}

impl fmt::Display for ToolkitVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.numbers;
        write!(f, "{major}.{minor}.{patch}{}", if self.released { "" } else { " (not released)" })
    }
}

/// How often checks are made that are too dear for each job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RareChecks {
    /// Time between two that went well.
    pub interval: Duration,
    /// Time from one that did not to the next.
    pub retry: Duration,
}

/// The last verdict of rare checks.
#[derive(Debug, Clone, Default)]
pub(in crate::miner) struct Remembered(Option<(Result<(), String>, Instant)>);

impl Remembered {
    /// What is known without another check.
    pub(in crate::miner) fn known(&self, now: Instant) -> Option<Result<(), String>> {
        self.0.as_ref().filter(|(_, until)| now < *until).map(|(outcome, _)| outcome.clone())
    }

    /// Keeps an outcome for its time.
    pub(in crate::miner) fn keep(&mut self, outcome: Result<(), String>, checks: RareChecks, now: Instant) {
        let time = if outcome.is_ok() { checks.interval } else { checks.retry };
        self.0 = Some((outcome, now + time));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_and_compared_by_their_numbers() {
        for (text, shown) in [
            ("NVIDIA Container Toolkit CLI version 1.17.8\ncommit: f202b80a9b9d0db00d9b1d73c0128c8962c55f4d", "1.17.8"),
            ("cli-version: 1.13.5\nlib-version: 0.11.0+jetpack", "1.13.5"),
            ("NVIDIA Container Runtime Hook version v1.18", "1.18.0"),
            ("1.17.8-1", "1.17.8"),
            ("1.17.8-rc.1", "1.17.8 (not released)"),
        ] {
            assert_eq!(ToolkitVersion::find(text).map(|version| version.to_string()).as_deref(), Some(shown), "{text}");
        }
        for text in ["", "commit 7", "a.b", "1..2", "1.2.3.4", "99999999999.1", "1.17.x", "+1.2"] {
            assert_eq!(ToolkitVersion::find(text), None, "{text}");
        }
        let version = |text: &str| text.parse::<ToolkitVersion>().unwrap();
        for (older, newer) in
            [("1.9.9", "1.16.2"), ("1.17.7", "1.17.8"), ("1.17.8-rc.1", "1.17.8"), ("1.17.8", "1.18.0-rc.1")]
        {
            assert!(version(older) < version(newer), "{older} {newer}");
        }
        assert!(version("1.17.8-1") >= ToolkitVersion::SAFE && version("1.17.8~rc.2") < ToolkitVersion::SAFE);
    }

    #[test]
    fn an_outcome_counts_for_its_time() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let checks = RareChecks { interval: 100 * second, retry: 10 * second };
        let mut remembered = Remembered::default();
        assert_eq!(remembered.known(start), None);
        remembered.keep(Ok(()), checks, start);
        assert_eq!(
            (remembered.known(start + 99 * second), remembered.known(start + 100 * second)),
            (Some(Ok(())), None)
        );
        remembered.keep(Err("no".to_owned()), checks, start);
        assert_eq!(remembered.known(start + 9 * second), Some(Err("no".to_owned())));
        assert_eq!(remembered.known(start + 10 * second), None);
    }
}
