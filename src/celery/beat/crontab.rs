//! Times of the calendar as Celery's `crontab` has them. Pure, but that the rules of a zone are read from the disk.

use std::fmt;

use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Timestamp, ToSpan, Zoned};

use crate::celery::moment::Moment;

/// Days that are looked at for the next time: every date comes again within eight years, in 2100 as well.
const DAYS: usize = 8 * 366;

/// Times of the calendar: minute, hour, day of the month, month, day of the week, in one time zone.
///
/// All five have to fit, as with Celery's `crontab`; Unix `cron` takes a day that fits either of its two fields. A time
/// that the zone skips in spring is left out. One that it has twice in autumn comes once, unless the hour is `*`.
#[derive(Debug, Clone)]
pub struct Crontab {
    text: String,
    zone: TimeZone,
    minutes: Field,
    hours: Field,
    days: Field,
    months: Field,
    weekdays: Field,
}

/// A time of the calendar cannot be read, or never comes. The text says what is wrong and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CrontabError(String);

/// The numbers of one field, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Field(u64);

impl Field {
    fn has(self, number: i8) -> bool {
        u32::try_from(number).is_ok_and(|number| self.0 >> number & 1 == 1)
    }
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

impl Crontab {
    /// Five fields as in a crontab, in UTC: `*/15 8-17 * * mon-fri`. Each has `*`, numbers, names of months or days,
    /// ranges `a-b` (also over the end, as `fri-mon`), steps `*/n` and `a-b/n`, and lists of these. Sunday is 0 or 7.
    ///
    /// # Errors
    /// [`CrontabError`].
    pub fn parse(text: &str) -> Result<Self, CrontabError> {
        let wrong = |why: String| CrontabError(format!("{text:?} is no crontab: {why}"));
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            let need = "minute, hour, day of the month, month and day of the week";
            return Err(wrong(format!("it has {} fields and needs {need}", fields.len())));
        };
        let field = |what, text, first, last, names: &[&str]| {
            field(text, first, last, names).map_err(|why| wrong(format!("{what}: {why}")))
        };
        let crontab = Self {
            text: text.to_owned(),
            zone: TimeZone::UTC,
            minutes: field("minute", minutes, 0, 59, &[])?,
            hours: field("hour", hours, 0, 23, &[])?,
            days: field("day of the month", days, 1, 31, &[])?,
            months: field("month", months, 1, 12, &MONTHS)?,
            weekdays: field("day of the week", weekdays, 0, 6, &WEEKDAYS)?,
        };
        match crontab.after(Moment::from_unix_micros(0)) {
            Some(_) => Ok(crontab),
            None => Err(wrong("there is no such day".to_owned())),
        }
    }

    /// The same in a time zone of the system's, as `Europe/Zurich`.
    ///
    /// # Errors
    /// [`CrontabError`] if the system does not know it.
    pub fn in_zone(mut self, zone: &str) -> Result<Self, CrontabError> {
        let unknown = || CrontabError(format!("{zone:?} is no time zone of this system; name one as Europe/Zurich"));
        self.zone = TimeZone::get(zone).map_err(|_| unknown())?;
        Ok(self)
    }

    /// The first time after `moment`; `None` if none comes before the end of 9999.
    pub(super) fn after(&self, moment: Moment) -> Option<Moment> {
        let minute = moment.unix_micros().div_euclid(60_000_000) + 1;
        let mut at = Timestamp::from_second(minute * 60).ok()?.to_zoned(self.zone.clone());
        // The days, and the hours and minutes of some of them.
        for _ in 0..DAYS + 500 {
            if !self.is_day(&at) {
                at = at.tomorrow().and_then(|day| day.start_of_day()).ok()?;
            } else if !self.hours.has(at.hour()) {
                at = at.checked_add((60 - i64::from(at.minute())).minutes()).ok()?;
            } else if !self.minutes.has(at.minute()) || self.is_second(&at) {
                at = at.checked_add(1.minute()).ok()?;
            } else {
                return Some(Moment::from_unix_micros(at.timestamp().as_microsecond()));
            }
        }
        None
    }

    fn is_day(&self, at: &Zoned) -> bool {
        self.months.has(at.month())
            && self.days.has(at.day())
            && self.weekdays.has(at.weekday().to_sunday_zero_offset())
    }

    /// Whether the clock has shown this time an hour before, and that counted.
    fn is_second(&self, at: &Zoned) -> bool {
        let offset = self.zone.to_ambiguous_timestamp(at.datetime()).offset();
        let second = matches!(offset, AmbiguousOffset::Fold { after, .. } if after == at.offset());
        second && self.hours != Field((1 << 24) - 1)
    }
}

impl fmt::Display for Crontab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text, self.zone.iana_name().unwrap_or("UTC"))
    }
}

/// The numbers from `first` to `last` that a field names.
fn field(text: &str, first: u32, last: u32, names: &[&str]) -> Result<Field, String> {
    let number = |text: &str| -> Result<u32, String> {
        let name = text.get(..3).map(str::to_lowercase).unwrap_or_default();
        let named = names.iter().position(|known| *known == name && text.len() >= 3);
        let number = named.and_then(|at| u32::try_from(at).ok()).map(|at| at + first).or_else(|| text.parse().ok());
        // Sunday has two numbers.
        let number = number.map(|number| if last == 6 && number == 7 { 0 } else { number });
        let known = number.filter(|number| (first..=last).contains(number));
        known.ok_or_else(|| format!("{text:?} is not from {first} to {last}"))
    };
    let mut bits = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            None => (part, 1),
            Some((range, step)) => {
                let step = step.parse().ok().filter(|step| *step > 0);
                (range, step.ok_or_else(|| format!("the step of {part:?} is not a number above 0"))?)
            }
        };
        let (from, to) = match range.split_once('-') {
            None if range == "*" => (first, last),
            None => (number(range)?, number(range)?),
            Some((from, to)) => (number(from)?, number(to)?),
        };
        // Over the end, as from Friday to Monday.
        let all = last - first + 1;
        let to = if to < from { to + all } else { to };
        for number in (from..=to).step_by(step) {
            bits |= 1 << ((number - first) % all + first);
        }
    }
    Ok(Field(bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The next times after one, as the zone's clock shows them.
    fn next(crontab: &str, zone: &str, after: &str, times: usize) -> Vec<String> {
        let crontab = Crontab::parse(crontab).unwrap().in_zone(zone).unwrap();
        let mut at: Moment = after.parse().unwrap();
        let mut found = Vec::new();
        for _ in 0..times {
            at = crontab.after(at).unwrap();
            found.push(at.to_string().replace(":00+00:00", ""));
        }
        found
    }

    #[test]
    fn the_next_time_fits_all_five_fields() {
        let from = "2026-11-21T12:00:00Z"; // A Saturday.
        for (crontab, expected) in [
            ("* * * * *", ["2026-11-21T12:01", "2026-11-21T12:02"]),
            ("*/25 * * * *", ["2026-11-21T12:25", "2026-11-21T12:50"]),
            ("0 0 * * *", ["2026-11-22T00:00", "2026-11-23T00:00"]),
            ("30 8-17/9 * * mon-fri", ["2026-11-23T08:30", "2026-11-23T17:30"]),
            ("0 12 * * fri-mon/2", ["2026-11-22T12:00", "2026-11-27T12:00"]),
            ("0 12 * * 7", ["2026-11-22T12:00", "2026-11-29T12:00"]),
            ("0 0 13 * Friday", ["2027-08-13T00:00", "2028-10-13T00:00"]),
            ("59 23 31 12,jan *", ["2026-12-31T23:59", "2027-01-31T23:59"]),
            ("0 0 29 2 *", ["2028-02-29T00:00", "2032-02-29T00:00"]),
            ("0 0 */10 nov-dec *", ["2026-12-01T00:00", "2026-12-11T00:00"]),
        ] {
            assert_eq!(next(crontab, "UTC", from, 2), expected, "{crontab}");
        }
        assert_eq!(next("0 0 29 2 *", "UTC", "2096-03-01T00:00:00Z", 1), ["2104-02-29T00:00"]);
        assert_eq!(next("0 12 * * *", "UTC", "2026-11-21T12:00:00.5Z", 1), ["2026-11-22T12:00"]);
    }

    #[test]
    fn a_time_that_the_zone_skips_is_left_out_and_one_that_it_has_twice_comes_once() {
        // The clocks go from 02:00 to 03:00 on 29 March, and from 03:00 to 02:00 on 25 October.
        let (spring, autumn) = ("2026-03-28T12:00:00Z", "2026-10-24T12:00:00Z");
        assert_eq!(next("30 2 * * *", "Europe/Zurich", spring, 1), ["2026-03-30T00:30"]);
        let daily = ["2026-10-25T00:30", "2026-10-26T01:30"];
        assert_eq!(next("30 2 * * *", "Europe/Zurich", autumn, 2), daily);
        let hourly = ["2026-10-25T00:30", "2026-10-25T01:30", "2026-10-25T02:30"];
        assert_eq!(next("30 * * * *", "Europe/Zurich", "2026-10-25T00:00:00Z", 3), hourly, "an hour is an hour");
        assert_eq!(next("0 9 * * *", "Asia/Kolkata", spring, 1), ["2026-03-29T03:30"]);
    }

    #[test]
    fn what_is_no_crontab_is_refused_with_what_would_be_right() {
        for (bad, why) in [
            ("", "it has 0 fields and needs minute, hour"),
            ("* * * *", "it has 4 fields"),
            ("60 * * * *", "minute: \"60\" is not from 0 to 59"),
            ("* * 0 * *", "day of the month: \"0\" is not from 1 to 31"),
            ("* * * foo *", "month: \"foo\" is not from 1 to 12"),
            ("* * * * 8", "day of the week: \"8\" is not from 0 to 6"),
            ("*/0 * * * *", "the step of \"*/0\""),
            ("1- * * * *", "minute: \"\""),
            ("-1 * * * *", "minute: \"\""),
            ("0 0 30 2 *", "there is no such day"),
        ] {
            let error = Crontab::parse(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad:?}: {error}");
        }
        let error = Crontab::parse("* * * * *").unwrap().in_zone("Mars/Base").unwrap_err().to_string();
        assert!(error.contains("Mars/Base") && error.contains("Europe/Zurich"), "{error}");
    }
}
