//! Calendar text of a moment. Pure: the moment is an argument.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY_SECONDS: u64 = 86_400;
/// Days of 400 years, after which the Gregorian calendar repeats.
const ERA_DAYS: u64 = 146_097;
/// Days from 1 March of the year 0, where the count below begins, to 1 January 1970.
const DAYS_TO_1970: u64 = 719_468;

const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Microseconds since 1970, the form in which moments are stored; 0 for a clock before that.
pub fn unix_micros(now: SystemTime) -> i64 {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// As `2026-01-31T23:59:59.123456Z` (RFC 3339), from microseconds since 1970; moments before are 1970.
pub fn rfc3339(unix_micros: i64) -> String {
    let micros = u64::try_from(unix_micros).unwrap_or(0);
    let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
    let (year, month, day) = civil(seconds / DAY_SECONDS);
    let (hour, minute, second) = clock(seconds);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// As `Sat, 31 Jan 2026 23:59:59 GMT`, the form of HTTP's `Date` (RFC 9110, section 5.6.7), from seconds since 1970.
pub fn http_date(unix_seconds: u64) -> String {
    let days = unix_seconds / DAY_SECONDS;
    let (year, month, day) = civil(days);
    let (hour, minute, second) = clock(unix_seconds);
    let weekday = WEEKDAYS[(days % 7) as usize];
    let month = MONTHS[month as usize - 1];
    format!("{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
}

fn clock(unix_seconds: u64) -> (u64, u64, u64) {
    let second = unix_seconds % DAY_SECONDS;
    (second / 3600, second / 60 % 60, second % 60)
}

/// Year, month and day of a count of days since 1970. The year is taken to begin in March, so that the leap day is its last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + DAYS_TO_1970;
    let (era, day_of_era) = (days / ERA_DAYS, days % ERA_DAYS);
    // Each correction takes out the leap days that lie before: every 4 years, not every 100, but every 400.
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // From March, months have 31 30 31 30 31 days over and over: 153 days for each five.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(rfc3339(951_782_399_999_999), "2000-02-28T23:59:59.999999Z");
        assert_eq!(rfc3339(951_868_799_000_001), "2000-02-29T23:59:59.000001Z");
        assert_eq!(rfc3339(4_107_542_400_000_000), "2100-03-01T00:00:00.000000Z");
        assert_eq!(rfc3339(-5), "1970-01-01T00:00:00.000000Z");
        assert_eq!(http_date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
    }

    /// Each day is the day after the one before, over two eras with all their leap years.
    #[test]
    fn the_calendar_has_no_gaps() {
        let leap = |y: u64| (y % 4 == 0 && y % 100 != 0) || y % 400 == 0;
        let length = |y, m| match m {
            2 => 28 + u64::from(leap(y)),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..2 * ERA_DAYS {
            assert_eq!(civil(days), (year, month, day));
            day += 1;
            if day > length(year, month) {
                (day, month) = (1, month + 1);
            }
            if month > 12 {
                (month, year) = (1, year + 1);
            }
        }
        assert_eq!(year, 2770);
    }
}
