//! The date of an HTTP header. Pure: the moment is an argument.

use speedate::{Date, DateConfig, TimestampUnit};

const DAY_SECONDS: u64 = 86_400;
const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// As `Sat, 31 Jan 2026 23:59:59 GMT` (RFC 9110, section 5.6.7), from seconds since 1970; years after 9999 are 1970.
pub(super) fn http_date(unix_seconds: u64) -> String {
    let seconds = i64::try_from(unix_seconds).unwrap_or(0);
    let config = DateConfig { timestamp_unit: TimestampUnit::Second };
    let date = Date::from_timestamp(seconds, false, &config).unwrap_or(Date { year: 1970, month: 1, day: 1 });
    // The first of January 1970 was a Thursday.
    let weekday = WEEKDAYS[(unix_seconds / DAY_SECONDS % 7) as usize];
    let month = MONTHS[usize::from(date.month) - 1];
    let (hour, minute, second) = (unix_seconds / 3600 % 24, unix_seconds / 60 % 60, unix_seconds % 60);
    format!("{weekday}, {:02} {month} {:04} {hour:02}:{minute:02}:{second:02} GMT", date.day, date.year)
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
}
