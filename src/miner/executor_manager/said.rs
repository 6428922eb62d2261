//! A log line of an executor, as it is in the miner's log: at its own level, and without what the miner's line has
//! anyway. Pure.

use std::borrow::Cow;

use log::Level;
use serde::Deserialize;

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Said<'a> {
    /// How bad it is; `Info` if the line has no level, as those of programs that are not ours.
    pub(super) level: Level,
    /// The line, without the time, level and thread of a log line of ours.
    pub(super) message: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Record<'a> {
    time: &'a str,
    level: &'a str,
    #[serde(borrow)]
    message: Cow<'a, str>,
}

impl<'a> Said<'a> {
    /// Reads a line in either of our formats.
    pub(super) fn read(line: &'a str) -> Self {
        let read = if line.starts_with('{') { of_json(line) } else { of_text(line) };
        let (level, message) = read.unwrap_or((Level::Info, Cow::Borrowed(line)));
        Self { level, message }
    }
}

/// `TIME LEVEL [THREAD] MESSAGE`.
fn of_text(line: &str) -> Option<(Level, Cow<'_, str>)> {
    let (time, rest) = line.split_once(' ')?;
    let (level, rest) = rest.split_once(" [")?;
    let (_thread, message) = rest.split_once("] ")?;
    is_time(time).then_some(())?;
    Some((level.trim_end().parse().ok()?, Cow::Borrowed(message)))
}

fn of_json(line: &str) -> Option<(Level, Cow<'_, str>)> {
    let record: Record<'_> = serde_json::from_str(line).ok()?;
    is_time(record.time).then_some(())?;
    Some((record.level.parse().ok()?, record.message))
}

/// `2026-01-31T12:00:00.000Z`.
fn is_time(text: &str) -> bool {
    text.len() == 24 && text.ends_with('Z') && text.as_bytes().get(10) == Some(&b'T')
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "2026-01-31T12:00:00.000Z";

    #[track_caller]
    fn reads(line: &str, level: Level, message: &str) {
        assert_eq!(Said::read(line), Said { level, message: message.into() }, "{line}");
    }

    #[test]
    fn our_lines_keep_their_level_in_both_formats() {
        reads(&format!("{TIME} WARN  [exec-work] job 1: so [and] so"), Level::Warn, "job 1: so [and] so");
        reads(&format!("{TIME} ERROR [main] bad"), Level::Error, "bad");
        reads(&format!("{TIME} INFO  [main] "), Level::Info, "");
        let json = |level| format!(r#"{{"time": "{TIME}", "level": "{level}", "job": null, "message": "a \"b\""}}"#);
        reads(&json("DEBUG"), Level::Debug, r#"a "b""#);
    }

    #[test]
    fn other_lines_are_information_and_stay_as_they_are() {
        for line in [
            "ERROR a Python executor says it so",
            "2026-01-31 12:00:00 ERROR [main] bad",
            "x WARN  [main] bad",
            &format!("{TIME} LOUD  [main] bad"),
            &format!("{TIME} WARN  main bad"),
            r#"{"level": "ERROR", "message": "no time"}"#,
            r#"{"time": "2026-01-31T12:00:00.000Z", "level": "LOUD", "message": "x"}"#,
            "{",
            "",
        ] {
            reads(line, Level::Info, line);
        }
    }
}
