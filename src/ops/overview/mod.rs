//! A snapshot as people read it: a list of sections, which the web page, `phalanx status` and `phalanx top` only lay
//! out. Pure.
//!
//! All that others wrote is escaped here, once: no text of a section has anything that a terminal obeys. A web page
//! escapes its own marks beside.
//!
//! * `details`: what only one role has, whatever its fields are.
//! * `jobs`: its jobs.
//! * `section`: what an overview is made of.
//! * [`words`]: numbers and names.

mod details;
mod jobs;
mod section;
pub mod words;

pub use section::{Cell, Column, Content, Section, Table, Tone, Width};

use super::health::PartState;
use super::status::{Snapshot, ThreadLine};
use words::ago;

/// A role at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overview {
    /// The role's name.
    pub role: String,
    /// The role, its version, what it is doing and for how long.
    pub headline: String,
    /// Whether it is ready.
    pub ready: bool,
    /// The parts, in their order.
    pub sections: Vec<Section>,
}

/// What people read of a snapshot.
pub fn overview(now: &Snapshot) -> Overview {
    let headline = format!("{} {}, {}, up {}", now.role, now.version, now.state, ago(now.uptime_seconds));
    let mut sections = vec![parts(now)];
    sections.extend(warnings(now));
    sections.extend(jobs::sections(now));
    sections.extend(details::sections(&now.role, &now.details));
    sections.extend(process(now));
    sections.extend(errors(now));
    let safe = |text: &str| Cell::new(text).text().to_owned();
    Overview { role: safe(&now.role), headline: safe(&headline), ready: now.ready, sections }
}

fn parts(now: &Snapshot) -> Section {
    let part = |part: &super::health::Part| {
        let why = part.why.as_deref().filter(|_| part.state != PartState::Up);
        let text = why.map_or_else(|| part.state.to_string(), |why| format!("{}  {why}", part.state));
        (Cell::new(&part.name).text().to_owned(), Cell::state(&text))
    };
    Section::new("", Content::Facts(now.parts.iter().map(part).collect()))
}

fn warnings(now: &Snapshot) -> Option<Section> {
    let mut table = Table::new(&[("warning", Width::Text)]);
    table.rows.extend(now.warnings.iter().map(|text| vec![Cell::toned(text, Tone::Warning)]));
    (!table.rows.is_empty()).then(|| Section::new("warnings", Content::Table(table)))
}

fn process(now: &Snapshot) -> Option<Section> {
    let process = now.process?;
    let memory = words::bytes(process.resident_memory_bytes as u64);
    let facts =
        [("memory", memory), ("threads", process.threads.to_string()), ("open files", process.open_fds.to_string())];
    let facts = facts.map(|(name, text)| (name.to_owned(), Cell::new(&text)));
    Some(Section::new("process", Content::Facts(facts.into())))
}

fn errors(now: &Snapshot) -> Option<Section> {
    let mut table = Table::new(&[
        ("ago", Width::Whole),
        ("class", Width::Whole),
        ("place", Width::Text),
        ("in all", Width::Whole),
        ("error", Width::Text),
    ]);
    table.rows.extend(now.errors.iter().map(|error| {
        vec![
            Cell::new(&ago(error.seconds_ago)),
            Cell::new(error.class.as_str()),
            Cell::new(&error.place),
            Cell::new(&error.count.to_string()),
            Cell::new(&error.text),
        ]
    }));
    (!table.rows.is_empty()).then(|| Section::new("last errors", Content::Table(table)))
}

/// The threads of a process; not part of an overview, because few want to read them.
pub fn threads(now: &Snapshot) -> Section {
    let line = |thread: &ThreadLine| {
        let text = format!("{:>10}  {}; kick: {}", ago(thread.age_seconds), does(thread), thread.kick);
        (Cell::new(&thread.name).text().to_owned(), Cell::new(&text))
    };
    Section::new("threads", Content::Facts(now.threads.iter().map(line).collect()))
}

/// What a thread waits for, since when and until when, or since when it runs.
fn does(thread: &ThreadLine) -> String {
    let (what, time) = (thread.waits_for.as_deref(), ago(thread.for_seconds));
    let does = what.map_or_else(|| format!("runs for {time}"), |what| format!("waits for {what} for {time}"));
    match thread.left_seconds {
        None => does,
        Some(left @ 0..) => format!("{does}, {} left", ago(left.unsigned_abs())),
        Some(over) => format!("{does}, {} over its deadline", ago(over.unsigned_abs())),
    }
}
