//! The dates of HTTP headers, and the waits that they ask for. Pure: the moment is an argument.

#[cfg(feature = "client")]
use std::time::Duration;

#[cfg(feature = "client")]
use speedate::DateTime;
use speedate::{Date, DateConfig, TimestampUnit};

#[cfg(feature = "client")]
use super::head::{all, first};

const DAY_SECONDS: u64 = 86_400;
const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// As `Sat, 31 Jan 2026 23:59:59 GMT` (RFC 9110, section 5.6.7), from seconds since 1970; years after 9999 are 1970.
pub(crate) fn http_date(unix_seconds: u64) -> String {
    let seconds = i64::try_from(unix_seconds).unwrap_or(0);
    let config = DateConfig { timestamp_unit: TimestampUnit::Second };
    let date = Date::from_timestamp(seconds, false, &config).unwrap_or(Date { year: 1970, month: 1, day: 1 });
    // The first of January 1970 was a Thursday.
    let weekday = WEEKDAYS[(unix_seconds / DAY_SECONDS % 7) as usize];
    let month = MONTHS[usize::from(date.month) - 1];
    let (hour, minute, second) = (unix_seconds / 3600 % 24, unix_seconds / 60 % 60, unix_seconds % 60);
    format!("{weekday}, {:02} {month} {:04} {hour:02}:{minute:02}:{second:02} GMT", date.day, date.year)
}

/// Seconds since 1970 of a date in one of the three forms that a server may use (RFC 9110, section 5.6.7); none for
/// what is no date, or one before 1970.
#[cfg(feature = "client")]
pub(crate) fn unix_seconds(text: &str) -> Option<u64> {
    let words: Vec<&str> = text.split([' ', ',', '-']).filter(|word| !word.is_empty()).collect();
    let (day, month, year, time) = match words[..] {
        // The numbers are what mail has, and Python's `formatdate`.
        [_, day, month, year, time, "GMT" | "UTC" | "0000" | "+0000"] => (day, month, year, time),
        // As C's asctime has it.
        [_, month, day, time, year] => (day, month, year, time),
        _ => return None,
    };
    let month = 1 + MONTHS.iter().position(|name| name.eq_ignore_ascii_case(month))?;
    let year = match (year.len(), year.parse().ok()?) {
        (2, year @ 0..70) => 2000 + year,
        (2, year) => 1900 + year,
        (_, year) => year,
    };
    let date = DateTime::parse_str(&format!("{year:04}-{month:02}-{day:0>2}T{time}Z")).ok()?;
    u64::try_from(date.timestamp()).ok()
}

/// The wait that a `Retry-After` asks for, in seconds or as a date (RFC 9110, section 10.2.3); `date` is the server's
/// own time, or else ours counts. A wait is rounded up.
#[cfg(feature = "client")]
fn wait_asked(value: &str, date: Option<&str>, unix_now: u64) -> Option<Duration> {
    let value = value.trim();
    if value.starts_with(|c: char| c.is_ascii_digit()) && value.chars().all(|c| c.is_ascii_digit() || c == '.') {
        let seconds: f64 = value.parse().ok()?;
        // Beyond any wait, so that a cast which cuts off does not matter.
        return Some(Duration::from_secs(seconds.ceil() as u64));
    }
    let now = date.and_then(unix_seconds).unwrap_or(unix_now);
    Some(Duration::from_secs(unix_seconds(value)?.saturating_sub(now)))
}

/// The wait that the headers of an answer ask for; of several the longest counts. It is the peer's word: bound it.
#[cfg(feature = "client")]
pub(crate) fn longest_wait(headers: &[(String, String)], unix_now: u64) -> Option<Duration> {
    let date = first(headers, "date");
    all(headers, "retry-after").filter_map(|value| wait_asked(value, date, unix_now)).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        assert_eq!(http_date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(http_date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(http_date(951_868_799), "Tue, 29 Feb 2000 23:59:59 GMT");
    }

    #[cfg(feature = "client")]
    #[test]
    fn dates_are_read_in_all_their_forms() {
        for text in ["Sun, 06 Nov 1994 08:49:37 -0000", "Sun, 06 Nov 1994 08:49:37 +0000"] {
            assert_eq!(unix_seconds(text), Some(784_111_777), "{text}");
        }
        for text in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            assert_eq!(unix_seconds(text), Some(784_111_777), "{text}");
        }
        for seconds in [0, 951_868_799, 1_769_903_999, 4_102_444_800] {
            assert_eq!(unix_seconds(&http_date(seconds)), Some(seconds));
        }
        assert_eq!(unix_seconds("Friday, 06-Nov-26 08:49:37 GMT"), Some(1_793_954_977));
        for text in [
            "",
            "6",
            "Sun, 31 Feb 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 25:00:00 GMT",
            "a b c d e f",
            "Sun, 06 Nov 1954 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 PST",
        ] {
            assert_eq!(unix_seconds(text), None, "{text}");
        }
    }

    #[cfg(feature = "client")]
    #[test]
    fn a_wait_is_asked_for_in_seconds_or_until_a_date() {
        let date = |seconds| http_date(seconds);
        for (value, theirs, seconds) in [
            ("6", None, Some(6)),
            (" 120 ", None, Some(120)),
            ("0", None, Some(0)),
            ("1.2", None, Some(2)),
            ("99999999999999999999999", None, Some(u64::MAX)),
            (&date(1_007), None, Some(7)),
            (&date(990), None, Some(0)),
            (&date(5_007), Some(date(5_000)), Some(7)),
            (&date(1_007), Some("no date".to_owned()), Some(7)),
            ("soon", None, None),
            ("-1", None, None),
            ("", None, None),
        ] {
            let wait = wait_asked(value, theirs.as_deref(), 1_000);
            assert_eq!(wait.map(|wait| wait.as_secs()), seconds, "{value}");
        }
    }
}
