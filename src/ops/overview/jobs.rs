//! The jobs of a role: counts, rates, who has them, how they came along. Pure.

use super::section::{Cell, Content, Section, Table, Width};
use super::words::{ago, time_of_day, took};
use crate::ops::jobs::JobLine;
use crate::ops::status::Snapshot;

/// The sections; none for a role that has had no job and has nothing to say of any.
pub(super) fn sections(now: &Snapshot) -> Vec<Section> {
    let jobs = &now.jobs;
    let (peer, filed) = (peer(&now.role), filed(&now.role));
    let mut facts = vec![("open".to_owned(), Cell::new(&jobs.open.to_string()))];
    for (outcome, count) in &jobs.ended {
        facts.push((outcome.replace('_', " "), Cell::toned(&count.to_string(), Cell::state(outcome).tone)));
    }
    let rate = |minutes| jobs.ended_lately(minutes);
    let rates = format!("{} in the last 5 min, {} in the last hour", rate(5), rate(60));
    facts.push(("ended".to_owned(), Cell::new(&format!("{} in all, {rates}", jobs.ended_in_all()))));
    if jobs.own_only {
        facts.push(("listed".to_owned(), Cell::new("only the jobs of the user who asks, and to whoever else none")));
    }
    let mut sections = vec![Section::new("jobs", Content::Facts(facts))];
    if jobs.ended_lately(60) > 0 {
        let minutes = jobs.ended_by_minute.clone();
        sections.push(Section::new("ended in each of the last 60 minutes", Content::Minutes(minutes)));
    }
    if !jobs.open_jobs.is_empty() {
        let title = title("open jobs", jobs.open_jobs.len(), jobs.open as u64, "the oldest");
        sections.push(Section::new(&title, Content::Table(open(&jobs.open_jobs, (peer, filed)))));
    }
    if !jobs.ended_jobs.is_empty() {
        let title = title("ended jobs", jobs.ended_jobs.len(), jobs.ended_in_all(), "the newest");
        sections.push(Section::new(&title, Content::Table(ended(&jobs.ended_jobs, (peer, filed)))));
    }
    sections
}

fn title(what: &str, shown: usize, of: u64, which: &str) -> String {
    if shown as u64 >= of { what.to_owned() } else { format!("{what}: {which} {shown} of {of}") }
}

/// What the peer of a job is to a role.
fn peer(role: &str) -> &'static str {
    match role {
        "validator" | "worker" => "miner",
        _ => "validator",
    }
}

/// What a job is filed under: a facilitator has its user's tag, which goes no further; the others its namespace.
fn filed(role: &str) -> &'static str {
    if role == "facilitator" { "tag" } else { "namespace" }
}

fn open(jobs: &[JobLine], (peer, filed): (&str, &str)) -> Table {
    let mut table = Table::new(&[
        ("job", Width::Name),
        ("stage", Width::Whole),
        ("for", Width::Whole),
        ("age", Width::Whole),
        (peer, Width::Key),
        ("class", Width::Text),
        (filed, Width::Text),
        ("history", Width::Spare),
    ]);
    table.rows.extend(jobs.iter().map(|job| {
        vec![
            Cell::new(&job.uuid),
            Cell::state(&job.stage),
            Cell::new(&ago(job.stage_seconds)),
            Cell::new(&took(job.age_seconds)),
            optional(job.peer.as_deref()),
            optional(job.class.as_deref()),
            optional(job.tag.as_deref()),
            history(job),
        ]
    }));
    without_empty(table)
}

fn ended(jobs: &[JobLine], (peer, filed): (&str, &str)) -> Table {
    let mut table = Table::new(&[
        ("job", Width::Name),
        ("end", Width::Whole),
        ("reason", Width::Text),
        ("at", Width::Text),
        ("took", Width::Whole),
        (peer, Width::Key),
        ("class", Width::Text),
        (filed, Width::Text),
        ("history", Width::Spare),
    ]);
    table.rows.extend(jobs.iter().map(|job| {
        vec![
            Cell::new(&job.uuid),
            Cell::state(&job.stage),
            optional(job.reason.as_deref()),
            Cell::new(&job.history.last().map_or(String::new(), |last| time_of_day(last.at))),
            Cell::new(&took(job.age_seconds)),
            optional(job.peer.as_deref()),
            optional(job.class.as_deref()),
            optional(job.tag.as_deref()),
            history(job),
        ]
    }));
    without_empty(table)
}

fn optional(text: Option<&str>) -> Cell {
    text.map_or_else(Cell::default, Cell::new)
}

/// Each stage with the time from the one before.
fn history(job: &JobLine) -> Cell {
    let mut last: Option<f64> = None;
    let stages = job.history.iter().map(|stage| {
        let shown = match last {
            None => format!("{} {}", time_of_day(stage.at), stage.stage),
            // The wall clock may be set back.
            Some(before) => format!("+{} {}", took(stage.at - before), stage.stage),
        };
        last = Some(stage.at);
        shown
    });
    Cell::new(&stages.collect::<Vec<_>>().join(", "))
}

/// A column in which nothing stands says nothing.
fn without_empty(mut table: Table) -> Table {
    for column in (0..table.columns.len()).rev() {
        if table.rows.iter().all(|row| row[column].text().is_empty()) {
            table.columns.remove(column);
            table.rows.iter_mut().for_each(|row| drop(row.remove(column)));
        }
    }
    table
}
