//! Points in time with the offset they were written with, read by the parser that pydantic uses too.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use jiter::JsonValue;
use speedate::{DateTimeConfig, MicrosecondsPrecisionOverflowBehavior, TimeConfig, TimestampUnit};

use super::error::{Errors, Fault};
use super::json::Writer;
use super::schema::Wire;

/// The last microsecond of the year 9999, the latest that a date can say.
const LAST_UNIX_MICROS: i64 = 253_402_300_799_999_999;

/// A date and time with its offset from UTC, to the microsecond.
///
/// Receipts are signed over its text, so it is written as it was read, in pydantic's layout: `Z` for UTC, and either
/// six digits of a second or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DateTime(speedate::DateTime);

/// The text is not a date and time with an offset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a date and time with an offset: {text:?}: {why} (right would be 2025-01-02T03:04:05Z)")]
pub struct ParseDateTimeError {
    text: String,
    why: String,
}

impl DateTime {
    /// That many microseconds after 1970 in UTC; times before 1970 or after 9999 become the nearest of those.
    pub fn from_unix_micros(micros: i64) -> Self {
        let micros = micros.clamp(0, LAST_UNIX_MICROS);
        let (seconds, rest) = (micros / 1_000_000, (micros % 1_000_000) as u32);
        let time = speedate::DateTime::from_timestamp_with_config(seconds, rest, &config(TimestampUnit::Second));
        DateTime(time.expect("the clamped value is within the years 1970 to 9999"))
    }

    /// Microseconds since 1970 in UTC.
    pub fn unix_micros(&self) -> i64 {
        self.0.timestamp_tz() * 1_000_000 + i64::from(self.0.time.microsecond)
    }

    /// The year as written, which may differ from the year in UTC.
    pub fn year(&self) -> u16 {
        self.0.date.year
    }
}

impl From<SystemTime> for DateTime {
    /// The time in UTC, truncated to microseconds; limits as for [`DateTime::from_unix_micros`].
    fn from(time: SystemTime) -> Self {
        let micros = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
        DateTime::from_unix_micros(micros.try_into().unwrap_or(i64::MAX))
    }
}

impl FromStr for DateTime {
    type Err = ParseDateTimeError;

    fn from_str(text: &str) -> Result<Self, ParseDateTimeError> {
        let error = |why: &str| ParseDateTimeError { text: text.to_owned(), why: why.to_owned() };
        match speedate::DateTime::parse_bytes_rfc3339_with_config(text.as_bytes(), &TIME_CONFIG) {
            Ok(time) if time.time.tz_offset.is_some() => Ok(DateTime(time)),
            Ok(_) => Err(error("the offset is missing")),
            Err(why) => Err(error(&reason(&why))),
        }
    }
}

impl fmt::Display for DateTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Digits beyond a microsecond are dropped, and a number alone counts in UTC.
const TIME_CONFIG: TimeConfig = TimeConfig {
    microseconds_precision_overflow_behavior: MicrosecondsPrecisionOverflowBehavior::Truncate,
    unix_timestamp_offset: Some(0),
};

fn config(timestamp_unit: TimestampUnit) -> DateTimeConfig {
    let time_config = TIME_CONFIG;
    DateTimeConfig { timestamp_unit, time_config }
}

impl Wire for DateTime {
    /// Reads ISO texts and Unix times in seconds or milliseconds; a time without an offset is refused.
    fn decode(value: &JsonValue<'_>, errors: &mut Errors) -> Option<Self> {
        let config = config(TimestampUnit::Infer);
        let from_number = |parsed: Result<speedate::DateTime, speedate::ParseError>| {
            parsed.map_err(|why| fault("datetime_parsing", "Input should be a valid datetime", &why))
        };
        let read = match value {
            JsonValue::Str(text) => from_text(text, &config),
            JsonValue::Int(int) => from_number(speedate::DateTime::from_timestamp_with_config(*int, 0, &config)),
            JsonValue::Float(float) if float.is_nan() => {
                Err(Fault::new("datetime_parsing", "Input should be a valid datetime, NaN values not permitted")
                    .with("error", "NaN values not permitted"))
            }
            JsonValue::Float(float) => from_number(speedate::DateTime::from_float_with_config(*float, &config)),
            _ => Err(Fault::new("datetime_type", "Input should be a valid datetime")),
        };
        match read {
            Ok(time) if time.time.tz_offset.is_some() => Some(DateTime(time)),
            Ok(_) => errors.fail(Fault::new("timezone_aware", "Input should have timezone info"), value),
            Err(fault) => errors.fail(fault, value),
        }
    }

    fn encode(&self, out: &mut Writer) {
        out.string(&self.to_string());
    }
}

/// Reads a date and time, or else a date alone, which is its midnight without an offset.
fn from_text(text: &str, config: &DateTimeConfig) -> Result<speedate::DateTime, Fault> {
    if let Ok(time) = speedate::DateTime::parse_bytes_with_config(text.as_bytes(), config) {
        return Ok(time);
    }
    let midnight = speedate::Time { hour: 0, minute: 0, second: 0, microsecond: 0, tz_offset: None };
    match speedate::Date::parse_str(text) {
        Ok(date) => Ok(speedate::DateTime { date, time: midnight }),
        Err(why) => Err(fault("datetime_from_date_parsing", "Input should be a valid datetime or date", &why)),
    }
}

fn fault(kind: &'static str, msg: &str, why: &speedate::ParseError) -> Fault {
    let why = reason(why);
    Fault::new(kind, format!("{msg}, {why}")).with("error", why)
}

/// The parser names its errors in snake case.
fn reason(why: &speedate::ParseError) -> String {
    why.to_string().replace('_', " ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn texts_are_written_in_the_layout_of_pydantic() {
        let rows = [
            ("2025-01-02T03:04:05+00:00", "2025-01-02T03:04:05Z"),
            ("2025-01-02t03:04:05.12z", "2025-01-02T03:04:05.120000Z"),
            ("2025-06-07T08:09:10.120000+05:30", "2025-06-07T08:09:10.120000+05:30"),
            ("2025-01-02 03:04:05-0330", "2025-01-02T03:04:05-03:30"),
        ];
        for (text, written) in rows {
            assert_eq!(text.parse::<DateTime>().unwrap().to_string(), written);
        }
        for text in ["", "x", "2025-01-02", "2025-01-02T03:04:05", "2025-02-30T00:00:00Z"] {
            assert!(text.parse::<DateTime>().is_err(), "{text}");
        }
    }

    #[test]
    fn instants_count_from_1970_in_utc() {
        let micros = 1_735_787_045_123_456;
        let time = DateTime::from_unix_micros(micros);
        assert_eq!((time.to_string().as_str(), time.year()), ("2025-01-02T03:04:05.123456Z", 2025));
        assert_eq!(time.unix_micros(), micros);
        let abroad: DateTime = "2025-01-02T08:34:05.123456+05:30".parse().unwrap();
        assert_eq!(abroad.unix_micros(), micros);
        assert_eq!(DateTime::from(UNIX_EPOCH + Duration::from_micros(micros as u64)), time);
        assert_eq!(DateTime::from(UNIX_EPOCH - Duration::from_secs(1)).to_string(), "1970-01-01T00:00:00Z");
        let late = "9999-12-31T23:59:59.999999Z";
        assert_eq!(DateTime::from_unix_micros(i64::MAX).to_string(), late);
    }
}
