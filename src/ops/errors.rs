//! Errors that a loop lives on after: sorted by what it does about them, counted, logged without flooding, and kept for
//! the status page.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::metrics::Metrics;
use super::redact;
use super::throttle::Throttle;
use crate::base::lock::lock;
use crate::base::text::truncated;

/// Characters that are kept of an error's text: a peer may have written it.
const TEXT_CHARS: usize = 500;

/// What is told apart at one place for the pace of its lines within ten seconds: more hosts than most miners have. With
/// a throttle of 24 bytes and a name of at most [`SUBJECT_BYTES`] each, that is 11 KB for a place at most.
const SUBJECTS: usize = 64;

/// Bytes of a name that tell apart: a uuid or a hotkey is shorter, and a peer may have chosen it.
const SUBJECT_BYTES: usize = 128;

/// What a loop does about an error; it decides by nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ErrorClass {
    /// The same call may succeed later: it tries again after a pause, and keeps what it has open.
    Retry,
    /// The connection is of no use any more: it makes a new one after a pause and sends again what was not
    /// acknowledged.
    Reconnect,
    /// The peer said no: it gives this piece of work up, reports that, and goes on with the next; asking again does not
    /// help.
    Rejected,
    /// A stop or a newer request ended it: it returns at once and complains to nobody.
    Cancelled,
    /// Nothing that it can do helps: it ends, and says why to whoever started it.
    Fatal,
}

impl ErrorClass {
    /// Whether the same work may succeed when it is tried again, over the same connection or a new one.
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Retry | Self::Reconnect)
    }

    /// The class in lower case, as in `Display`, in metrics and on the status page.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Reconnect => "reconnect",
            Self::Rejected => "rejected",
            Self::Cancelled => "cancelled",
            Self::Fatal => "fatal",
        }
    }

    /// At which level it is logged: retries are ordinary, a cancel was requested.
    pub fn level(self) -> log::Level {
        match self {
            Self::Cancelled => log::Level::Debug,
            Self::Retry => log::Level::Info,
            Self::Reconnect | Self::Rejected => log::Level::Warn,
            Self::Fatal => log::Level::Error,
        }
    }
}

impl Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The newest error of one class at one place, as the status page shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// What is done about it.
    pub class: ErrorClass,
    /// Where it happened.
    pub place: String,
    /// Its text, at most 500 characters, without passwords.
    pub text: String,
    /// How many there were since the start.
    pub count: u64,
    /// Whole seconds since the newest.
    pub seconds_ago: u64,
}

/// Where errors are reported; clones are the same. It has no thread and blocks on nothing but a short lock.
///
/// The table has a row for each class and place, and places are in the program's text, so it is bounded.
#[derive(Debug, Clone, Default)]
pub struct ErrorHandler {
    table: Arc<Mutex<Table>>,
    metrics: Metrics,
}

type Table = BTreeMap<(ErrorClass, &'static str), Row>;

#[derive(Debug)]
struct Row {
    /// Of each of what there are many; `""` of the place itself.
    throttles: BTreeMap<Box<str>, Throttle>,
    text: String,
    count: u64,
    at: Instant,
}

impl Row {
    /// The pace of this subject. If there are too many, those that are not quiet any more make room; what they have
    /// held back is told with the next line of the place itself.
    fn throttle(&mut self, now: Instant, subject: &str) -> &mut Throttle {
        if self.throttles.len() >= SUBJECTS && !self.throttles.contains_key(subject) {
            let mut dropped = Throttle::default();
            self.throttles.retain(|of, throttle| {
                let stays = of.is_empty() || throttle.is_quiet(now);
                if !stays {
                    dropped.take_over(throttle);
                }
                stays
            });
            self.throttles.entry("".into()).or_default().take_over(&dropped);
        }
        // The one of the place itself does not count.
        let has_room = self.throttles.len() <= SUBJECTS || self.throttles.contains_key(subject);
        self.throttles.entry(if has_room { subject } else { "" }.into()).or_default()
    }
}

impl ErrorHandler {
    /// A handler that counts in these metrics.
    pub fn new(metrics: &Metrics) -> Self {
        Self { table: Arc::default(), metrics: metrics.clone() }
    }

    /// Counts an error in `phalanx_errors_total{class, place}` and logs it as `place: error`, at most once in ten
    /// seconds for each class and place; a later line ends in `(and N more like it)`.
    pub fn report(&self, class: ErrorClass, place: &'static str, error: &dyn Display) {
        self.note(class, place, "", error);
    }

    /// As [`ErrorHandler::report`], at a place that has many of a kind, as a miner has hosts: each of them is logged at
    /// its own pace, up to 64 in ten seconds; those beyond share theirs. Of `subject` the first 128 bytes count.
    pub fn report_of(&self, class: ErrorClass, place: &'static str, subject: &str, error: &dyn Display) {
        self.note(class, place, subject, error);
    }

    fn note(&self, class: ErrorClass, place: &'static str, subject: &str, error: &dyn Display) {
        let labels = [("class", class.as_str()), ("place", place)];
        self.metrics.counter("phalanx_errors_total", "Errors by what is done about them.", &labels).inc();
        let line = note(&mut lock(&self.table), Instant::now(), (class, place), subject, error);
        // Outside the lock: stderr may be slow.
        if let Some(line) = line {
            log::log!(class.level(), "{line}");
        }
    }

    /// The newest error of each class and place, the newest first.
    pub fn last_errors(&self) -> Vec<LastError> {
        last(&lock(&self.table), Instant::now())
    }
}

/// Writes an error into the table; the line to log, if it is time for one.
fn note(
    table: &mut Table,
    now: Instant,
    key: (ErrorClass, &'static str),
    subject: &str,
    error: &dyn Display,
) -> Option<String> {
    let text = shown(&error.to_string());
    let row =
        table.entry(key).or_insert_with(|| Row { throttles: BTreeMap::new(), text: String::new(), count: 0, at: now });
    row.count += 1;
    row.at = now;
    let throttle = row.throttle(now, truncated(subject, SUBJECT_BYTES));
    let line = throttle.line(now, &format_args!("{}: {text}", key.1));
    row.text = text;
    line
}

fn last(table: &Table, now: Instant) -> Vec<LastError> {
    let mut rows: Vec<_> = table.iter().collect();
    rows.sort_by_key(|(_, row)| std::cmp::Reverse(row.at));
    rows.into_iter()
        .map(|((class, place), row)| LastError {
            class: *class,
            place: (*place).to_owned(),
            text: row.text.clone(),
            count: row.count,
            seconds_ago: now.saturating_duration_since(row.at).as_secs(),
        })
        .collect()
}

fn shown(text: &str) -> String {
    let text = redact::secrets(text);
    match text.char_indices().nth(TEXT_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_classes_that_may_succeed_later() {
        use ErrorClass::{Cancelled, Fatal, Reconnect, Rejected, Retry};
        assert!(Retry.is_retryable() && Reconnect.is_retryable());
        assert!(!Rejected.is_retryable() && !Cancelled.is_retryable() && !Fatal.is_retryable());
        assert_eq!(
            [Retry, Reconnect, Rejected, Cancelled, Fatal].map(|class| class.to_string()).join(" "),
            "retry reconnect rejected cancelled fatal"
        );
    }

    #[test]
    fn each_class_and_place_is_logged_at_its_own_pace_and_the_newest_is_kept() {
        let (start, mut table) = (Instant::now(), Table::new());
        let note = |table: &mut Table, seconds: u64, class, place: (&'static str, &str), text: &str| {
            let (place, subject) = place;
            note(table, start + Duration::from_secs(seconds), (class, place), subject, &text)
        };
        assert_eq!(note(&mut table, 0, ErrorClass::Reconnect, ("link", ""), "refused").unwrap(), "link: refused");
        assert_eq!(note(&mut table, 1, ErrorClass::Reconnect, ("link", ""), "reset"), None);
        assert_eq!(note(&mut table, 2, ErrorClass::Reconnect, ("link", ""), "reset"), None);
        assert_eq!(note(&mut table, 2, ErrorClass::Rejected, ("link", ""), "no").unwrap(), "link: no");
        assert_eq!(note(&mut table, 3, ErrorClass::Reconnect, ("disk", ""), "full").unwrap(), "disk: full");
        let line = note(&mut table, 12, ErrorClass::Reconnect, ("link", ""), "lost").unwrap();
        assert_eq!(line, "link: lost (and 2 more like it)");
        assert_eq!(note(&mut table, 13, ErrorClass::Reconnect, ("link", ""), "newest"), None);
        assert_eq!(note(&mut table, 14, ErrorClass::Retry, ("host", "a"), "a is away").unwrap(), "host: a is away");
        assert_eq!(note(&mut table, 14, ErrorClass::Retry, ("host", "b"), "b is away").unwrap(), "host: b is away");
        assert_eq!(note(&mut table, 15, ErrorClass::Retry, ("host", "a"), "a is away"), None);
        for n in 0..1000 {
            note(&mut table, 16, ErrorClass::Retry, ("host", &format!("{n}")), "one of many");
        }
        assert_eq!(table[&(ErrorClass::Retry, "host")].throttles.len(), SUBJECTS + 1);
        table.remove(&(ErrorClass::Retry, "host"));
        let last = last(&table, start + Duration::from_secs(20));
        let shown: Vec<_> = last.iter().map(|e| (e.place.as_str(), e.text.as_str(), e.count, e.seconds_ago)).collect();
        assert_eq!(shown, [("link", "newest", 5, 7), ("disk", "full", 1, 17), ("link", "no", 1, 18)]);
    }

    #[test]
    fn subjects_that_are_not_quiet_any_more_make_room_and_what_they_held_back_is_told() {
        let (start, mut table) = (Instant::now(), Table::new());
        let mut note = |seconds: u64, subject: &str, text: &str| {
            let now = start + Duration::from_secs(seconds);
            note(&mut table, now, (ErrorClass::Retry, "job"), subject, &text)
        };
        for n in 0..SUBJECTS {
            assert_eq!(note(0, &n.to_string(), "no").unwrap(), "job: no");
            assert_eq!(note(1, &n.to_string(), "no"), None);
        }
        assert_eq!(note(2, "late", "late").unwrap(), "job: late");
        assert_eq!(note(3, "later", "later"), None, "it shares the pace of the place");
        assert_eq!(note(9, "0", "no"), None, "the others keep theirs");
        assert_eq!(note(11, "new", "new").unwrap(), "job: new");
        assert_eq!(note(12, "newer", "newer").unwrap(), "job: newer");
        let line = note(13, "", "all").unwrap();
        assert_eq!(line, format!("job: all (and {} more like it)", SUBJECTS + 2));
        let long = "ü".repeat(SUBJECT_BYTES);
        assert_eq!(note(14, &(long.clone() + "a"), "long").unwrap(), "job: long");
        assert_eq!(note(15, &(long + "b"), "long"), None, "only its beginning tells apart");
        let of = &table[&(ErrorClass::Retry, "job")].throttles;
        assert_eq!((of.len(), of.keys().map(|subject| subject.len()).max()), (4, Some(SUBJECT_BYTES)));
    }

    #[test]
    fn reports_are_counted_and_texts_are_bounded_and_without_passwords() {
        let metrics = Metrics::new();
        let handler = ErrorHandler::new(&metrics);
        for text in ["x".repeat(10_000), "bad url ws://u:p@h".to_owned()] {
            handler.clone().report(ErrorClass::Fatal, "t-place", &text);
        }
        assert!(metrics.render().contains("phalanx_errors_total{class=\"fatal\",place=\"t-place\"} 2\n"));
        let last = handler.last_errors();
        assert_eq!((last.len(), last[0].count, last[0].text.as_str()), (1, 2, "bad url ws://…@h"));
        handler.report(ErrorClass::Fatal, "t-place", &"ü".repeat(501));
        assert_eq!(handler.last_errors()[0].text, "ü".repeat(500) + "…");
    }
}
