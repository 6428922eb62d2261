//! Points in time as Celery writes them. Pure, but that the rules of a [`Zone`] are read from the disk.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::civil;
use jiff::tz::TimeZone;
use speedate::{DateTime, DateTimeConfig, MicrosecondsPrecisionOverflowBehavior, TimeConfig, TimestampUnit};

/// The first microsecond of 1970 and the last of 9999: what both sides can say.
const RANGE: (i64, i64) = (0, 253_402_300_799_999_999);

/// A point in time to the microsecond, from 1970 to 9999.
///
/// Written as Python writes an aware time in UTC: `2026-11-21T12:00:00.250000+00:00`, without the fraction if it is
/// zero. Read with any offset; a time without one is in UTC, or in the zone of [`Moment::read`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(i64);

/// A time zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone(TimeZone);

impl Zone {
    /// Coordinated universal time.
    pub fn utc() -> Self {
        Self(TimeZone::UTC)
    }

    /// The zone of the system (`TZ`, else `/etc/localtime`). Blocks on the disk.
    pub fn system() -> Self {
        Self(TimeZone::system())
    }

    /// Its name, where it has one.
    pub fn name(&self) -> Option<&str> {
        self.0.iana_name()
    }

    /// The zone of a name, as `Asia/Tokyo`. Blocks on the disk.
    ///
    /// # Errors
    /// That the system knows none of this name, in words.
    pub fn named(name: &str) -> Result<Self, String> {
        let zone = TimeZone::get(name).map(Self);
        zone.map_err(|_| format!("{name:?} is not known to this system; give a name as Europe/Berlin"))
    }
}

/// The text is not a time in ISO 8601.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a time in ISO 8601: {0:?}")]
pub struct ParseMomentError(String);

impl Moment {
    /// That many microseconds after 1970, or the nearest moment within the years 1970 to 9999.
    pub fn from_unix_micros(micros: i64) -> Self {
        Self(micros.clamp(RANGE.0, RANGE.1))
    }

    /// Reads a time; one without an offset is in `zone`.
    ///
    /// # Errors
    /// [`ParseMomentError`].
    pub fn read(text: &str, zone: &Zone) -> Result<Self, ParseMomentError> {
        let error = || ParseMomentError(text.chars().take(64).collect());
        let read = DateTime::parse_bytes_rfc3339_with_config(text.as_bytes(), &time_config()).map_err(|_| error())?;
        let (date, time) = (&read.date, &read.time);
        if time.tz_offset.is_some() || zone.0 == TimeZone::UTC {
            // Without an offset this counts as UTC.
            let micros = read.timestamp_tz().checked_mul(1_000_000).ok_or_else(error)?;
            return Ok(Self::from_unix_micros(micros + i64::from(time.microsecond)));
        }
        let small = |number: u8| i8::try_from(number).map_err(|_| error());
        let year = i16::try_from(date.year).map_err(|_| error())?;
        let nanos = i32::try_from(time.microsecond * 1000).map_err(|_| error())?;
        let (hour, minute, second) = (small(time.hour)?, small(time.minute)?, small(time.second)?);
        let local = civil::DateTime::new(year, small(date.month)?, small(date.day)?, hour, minute, second, nanos);
        // An hour that a clock shows twice is the first one, as in Python.
        let at = zone.0.to_timestamp(local.map_err(|_| error())?).map_err(|_| error())?;
        Ok(Self::from_unix_micros(at.as_microsecond()))
    }

    /// Microseconds after 1970.
    pub fn unix_micros(self) -> i64 {
        self.0
    }

    /// This moment and `duration` more, at most the end of 9999.
    pub fn plus(self, duration: Duration) -> Self {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self::from_unix_micros(self.0.saturating_add(micros))
    }

    /// The time from `earlier` to this moment; zero if it is past.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl From<SystemTime> for Moment {
    fn from(time: SystemTime) -> Self {
        let micros = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
        Self::from_unix_micros(micros.try_into().unwrap_or(i64::MAX))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = TimeConfig { unix_timestamp_offset: None, ..time_config() };
        let config = DateTimeConfig { timestamp_unit: TimestampUnit::Second, time_config: config };
        let (seconds, micros) = (self.0 / 1_000_000, (self.0 % 1_000_000) as u32);
        let time = DateTime::from_timestamp_with_config(seconds, micros, &config)
            .expect("a moment is within the years 1970 to 9999");
        write!(f, "{time}+00:00")
    }
}

impl FromStr for Moment {
    type Err = ParseMomentError;

    fn from_str(text: &str) -> Result<Self, ParseMomentError> {
        Self::read(text, &Zone::utc())
    }
}

/// Digits beyond a microsecond are dropped.
fn time_config() -> TimeConfig {
    TimeConfig {
        microseconds_precision_overflow_behavior: MicrosecondsPrecisionOverflowBehavior::Truncate,
        unix_timestamp_offset: Some(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_as_python_does_and_read_with_any_offset() {
        for text in ["2026-11-21T12:00:00.250000+00:00", "2026-11-21T12:00:00+00:00", "1970-01-01T00:00:00+00:00"] {
            assert_eq!(text.parse::<Moment>().unwrap().to_string(), text);
        }
        let moment: Moment = "2026-11-21T12:00:00.25".parse().unwrap();
        for same in ["2026-11-21T13:00:00.250+01:00", "2026-11-21T12:00:00.25Z", "2026-11-21 06:30:00.2500-05:30"] {
            assert_eq!(same.parse::<Moment>().unwrap(), moment, "{same}");
        }
        for bad in ["", "tomorrow", "2026-13-01T00:00:00", "12"] {
            assert!(bad.parse::<Moment>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_time_without_an_offset_is_in_its_zone() {
        let read = |text: &str, zone: &str| Moment::read(text, &Zone::named(zone).unwrap()).unwrap().to_string();
        assert_eq!(read("2026-12-01T09:00:00.5", "Asia/Tokyo"), "2026-12-01T00:00:00.500000+00:00");
        assert_eq!(read("2026-07-01T09:00:00", "Europe/Berlin"), "2026-07-01T07:00:00+00:00");
        assert_eq!(read("2026-12-01T09:00:00+00:00", "Asia/Tokyo"), "2026-12-01T09:00:00+00:00", "it says so itself");
        assert_eq!(read("2026-10-25T02:30:00", "Europe/Berlin"), "2026-10-25T00:30:00+00:00", "the first of two");
        assert!(Zone::named("Mars/Base").unwrap_err().contains("Mars/Base"));
    }

    #[test]
    fn it_stays_within_its_years() {
        let last = Moment::from_unix_micros(i64::MAX);
        assert_eq!(last.to_string(), "9999-12-31T23:59:59.999999+00:00");
        assert_eq!(last.plus(Duration::MAX), last);
        assert_eq!(Moment::from_unix_micros(5).since(Moment::from_unix_micros(9)), Duration::ZERO);
        assert_eq!(Moment::from_unix_micros(9).since(Moment::from_unix_micros(5)), Duration::from_micros(4));
    }
}
