//! Numbers and names as people read them. Pure.

use crate::ops::redact::OneLine;

/// A time for people: its two largest units.
pub fn ago(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// So many of something, whose name gets an s but for one.
pub fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// A time of less than a second in milliseconds, one of less than ten with a tenth, a longer one as [`ago`] has it.
pub fn took(seconds: f64) -> String {
    // Times are finite and not negative; what is not is shown as nothing.
    match seconds.max(0.0) {
        seconds if seconds < 0.9995 => format!("{:.0} ms", seconds * 1000.0),
        seconds if seconds < 10.0 => format!("{seconds:.1} s"),
        seconds => ago(seconds as u64),
    }
}

/// A number of bytes in the largest unit of which there is at least one.
pub fn bytes(bytes: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} B"),
    }
}

/// The time of day of a moment in seconds since 1970, in UTC.
pub fn time_of_day(unix_seconds: f64) -> String {
    let seconds = (unix_seconds.max(0.0) as u64) % 86_400;
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// The name of a field without its unit of time, with spaces.
pub(super) fn label(field: &str) -> String {
    let field = ["_seconds_ago", "_seconds", "_ms"].iter().find_map(|unit| field.strip_suffix(unit)).unwrap_or(field);
    // A role of another release may name it as it likes.
    OneLine(&field.replace('_', " ")).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        for (seconds, text) in [(0, "0 s"), (61, "1 min 1 s"), (3_720, "1 h 2 min"), (90_000, "1 d 1 h")] {
            assert_eq!(ago(seconds), text);
        }
        for (seconds, text) in
            [(0.04, "40 ms"), (0.9999, "1.0 s"), (9.94, "9.9 s"), (10.9, "10 s"), (-1.0, "0 ms"), (75.0, "1 min 15 s")]
        {
            assert_eq!(took(seconds), text);
        }
        for (count, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB")] {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(
            (time_of_day(86_400.0 + 3_661.9), time_of_day(-5.0)),
            ("01:01:01".to_owned(), "00:00:00".to_owned())
        );
        for (field, text) in [
            ("round_trip_ms", "round trip"),
            ("unsent_bytes", "unsent bytes"),
            ("heartbeat_seconds_ago", "heartbeat"),
            ("jobs_run", "jobs run"),
        ] {
            assert_eq!(label(field), text);
        }
    }
}
