//! Integers without a limit, as Python has them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// An integer of any size; what does not fit 64 bits is kept as its digits, so that no message changes in passing.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Int(Repr);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Repr {
    Small(i64),
    /// Canonical decimal digits of a value outside `i64`, with `-` if negative.
    Big(Box<str>),
}

/// The text is not an integer: it should be decimal digits with an optional sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an integer: {0:?} should be decimal digits, with an optional sign before them")]
pub struct ParseIntError(String);

impl Int {
    /// The value, if it fits.
    pub fn as_i64(&self) -> Option<i64> {
        match &self.0 {
            Repr::Small(value) => Some(*value),
            Repr::Big(_) => None,
        }
    }

    /// The value, if it fits.
    pub fn as_u64(&self) -> Option<u64> {
        match &self.0 {
            Repr::Small(value) => u64::try_from(*value).ok(),
            Repr::Big(digits) => digits.parse().ok(),
        }
    }

    /// The value, or the nearest `i64` if it does not fit.
    pub fn saturating_i64(&self) -> i64 {
        match &self.0 {
            Repr::Small(value) => *value,
            Repr::Big(digits) if digits.starts_with('-') => i64::MIN,
            Repr::Big(_) => i64::MAX,
        }
    }

    /// The value as that many seconds, a negative one as none: how the time limits of the wire are read.
    pub fn saturating_seconds(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.saturating_i64()).unwrap_or(0))
    }
}

impl Default for Int {
    fn default() -> Self {
        Int(Repr::Small(0))
    }
}

impl From<i64> for Int {
    fn from(value: i64) -> Self {
        Int(Repr::Small(value))
    }
}

impl From<i32> for Int {
    fn from(value: i32) -> Self {
        Int(Repr::Small(value.into()))
    }
}

impl From<u32> for Int {
    fn from(value: u32) -> Self {
        Int(Repr::Small(value.into()))
    }
}

impl From<u64> for Int {
    fn from(value: u64) -> Self {
        Int(i64::try_from(value).map_or_else(|_| Repr::Big(value.to_string().into()), Repr::Small))
    }
}

impl PartialEq<i64> for Int {
    fn eq(&self, other: &i64) -> bool {
        self.as_i64() == Some(*other)
    }
}

impl FromStr for Int {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        if let Ok(small) = text.parse() {
            return Ok(Int(Repr::Small(small)));
        }
        let (sign, digits) = match text.strip_prefix('-') {
            Some(digits) => ("-", digits),
            None => ("", text.strip_prefix('+').unwrap_or(text)),
        };
        let digits = digits.trim_start_matches('0');
        // What is empty here was no number at all: zeros alone have been parsed above.
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(ParseIntError(text.into()));
        }
        // Leading zeros may have hidden a value that does fit.
        let canonical = format!("{sign}{digits}");
        Ok(Int(canonical.parse().map_or_else(|_| Repr::Big(canonical.into()), Repr::Small)))
    }
}

impl fmt::Display for Int {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Repr::Small(value) => value.fmt(f),
            Repr::Big(digits) => {
                f.pad_integral(!digits.starts_with('-'), "", digits.strip_prefix('-').unwrap_or(digits))
            }
        }
    }
}

impl fmt::Debug for Int {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_of_any_size_keep_their_value() {
        let rows = [
            ("0", "0"),
            ("-000", "0"),
            ("+5", "5"),
            ("9223372036854775807", "9223372036854775807"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("00000000000000000000000000009223372036854775807", "9223372036854775807"),
            ("+9223372036854775808", "9223372036854775808"),
            ("-0018446744073709551617", "-18446744073709551617"),
        ];
        for (text, canonical) in rows {
            let int: Int = text.parse().unwrap();
            assert_eq!((int.to_string(), format!("{int:?}")), (canonical.into(), canonical.into()));
            assert_eq!(int, canonical.parse::<Int>().unwrap(), "{text}");
        }
        for text in ["", "-", "+", "1.0", "1_0", " 1", "--1", "0x1", "١"] {
            assert!(text.parse::<Int>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_does_not_fit_is_the_nearest_or_nothing() {
        let big: Int = "18446744073709551616".parse().unwrap();
        let low: Int = "-9223372036854775809".parse().unwrap();
        assert_eq!((big.as_i64(), big.as_u64(), big.saturating_i64()), (None, None, i64::MAX));
        assert_eq!((low.as_i64(), low.as_u64(), low.saturating_i64()), (None, None, i64::MIN));
        let most = Int::from(u64::MAX);
        assert_eq!((most.as_i64(), most.as_u64()), (None, Some(u64::MAX)));
        assert_eq!(low.saturating_seconds(), Duration::ZERO);
        assert_eq!(Int::from(30).saturating_seconds(), Duration::from_secs(30));
        assert_eq!(big.saturating_seconds(), Duration::from_secs(i64::MAX as u64));
        assert_eq!(Int::from(u32::MAX), i64::from(u32::MAX));
        assert_ne!(big, 5);
    }
}
