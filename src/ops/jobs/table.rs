//! The open jobs of a role and the newest of those that have ended: bounded, and counted by outcome. Pure: it takes
//! `now`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::base::now::Now;
use crate::base::text::truncated;

/// Open jobs that are kept, each with at most 2 KB: 8 MB. More of them are only counted.
const OPEN: usize = 4096;

/// Ended jobs that are kept, the newest.
const ENDED: usize = 256;

/// Jobs of each kind in a view: the open ones that have taken longest, and the newest that have ended. With some 700
/// bytes each that is a page of 140 KB.
const SHOWN: usize = 100;

/// Stages of one job: a job has at most nine statuses.
const STAGES: usize = 12;

/// Bytes of a text that somebody else wrote.
const TEXT_BYTES: usize = 80;

/// Whole minutes of which it is known how many jobs ended in them.
const MINUTES: usize = 60;

/// Names a job: its uuid, and whose it is where several may use the same uuid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobName<'a> {
    /// The uuid.
    pub uuid: &'a str,
    /// Whose; empty where the uuid alone is a name.
    pub of: &'a str,
}

impl<'a> From<&'a str> for JobName<'a> {
    fn from(uuid: &'a str) -> Self {
        Self { uuid, of: "" }
    }
}

impl JobName<'_> {
    fn key(self) -> String {
        // No uuid has this character, and if one had, it would only share a line.
        if self.of.is_empty() { self.uuid.to_owned() } else { format!("{}\u{1f}{}", self.uuid, self.of) }
    }
}

/// What is known of a job at its beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobFacts<'a> {
    /// Who has it, or whose it is: to a facilitator the validator, to a validator the miner, to a miner the validator.
    pub peer: &'a str,
    /// The class of executors that it asks for.
    pub class: &'static str,
    /// What its user files it under.
    pub tag: &'a str,
    /// Its user, where users see their own jobs only; else empty.
    pub user: &'a str,
}

/// Whose jobs somebody sees one by one. The counts are of all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Viewer {
    /// An operator: all.
    Operator,
    /// Those of this user.
    User(String),
    /// None.
    Nobody,
}

impl Viewer {
    fn sees(&self, entry: &Entry) -> bool {
        match self {
            Viewer::Operator => true,
            Viewer::User(user) => *user == entry.user,
            Viewer::Nobody => false,
        }
    }
}

/// A stage that a job has left, and how long it was in it.
pub(super) type StageOver = (&'static str, Duration);

/// One stage of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobStage {
    /// Its name, as `executor_ready`.
    pub stage: String,
    /// When it began, in seconds since 1970.
    pub at: f64,
}

/// One job, for people. Nothing in it says what the job does, reads or gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobLine {
    /// Its uuid, at most 80 bytes.
    pub uuid: String,
    /// Its last stage: its outcome once it has ended.
    pub stage: String,
    /// Whole seconds in that stage.
    pub stage_seconds: u64,
    /// Seconds from its beginning until now, or until its end.
    pub age_seconds: f64,
    /// Whether it has ended.
    pub ended: bool,
    /// Who has it, or whose it is; see the role.
    pub peer: Option<String>,
    /// The class of executors that it asks for.
    pub class: Option<String>,
    /// What its user files it under, at most 80 bytes.
    pub tag: Option<String>,
    /// Why it ended so, in a word.
    pub reason: Option<String>,
    /// Its stages, the oldest first.
    pub history: Vec<JobStage>,
}

/// The jobs of a role at a moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct JobsView {
    /// Jobs that have begun and not ended.
    pub open: usize,
    /// Jobs that have ended since the start, by outcome.
    pub ended: BTreeMap<String, u64>,
    /// How many ended in each of the last 60 minutes, the present one last.
    pub ended_by_minute: Vec<u32>,
    /// Open jobs, those that have taken longest first; at most 100.
    pub open_jobs: Vec<JobLine>,
    /// Ended jobs, the newest first; at most 100.
    pub ended_jobs: Vec<JobLine>,
    /// Only those of the user who asks are listed, or none.
    #[serde(default)]
    pub own_only: bool,
}

impl JobsView {
    /// Jobs that have ended.
    pub fn ended_in_all(&self) -> u64 {
        self.ended.values().sum()
    }

    /// How many ended in so many of the last minutes, the present one among them.
    pub fn ended_lately(&self, minutes: usize) -> u64 {
        self.ended_by_minute.iter().rev().take(minutes).map(|count| u64::from(*count)).sum()
    }
}

#[derive(Debug)]
struct Entry {
    uuid: String,
    began: Now,
    stages: Vec<(&'static str, Now)>,
    peer: String,
    class: &'static str,
    tag: String,
    user: String,
    end: Option<(Instant, Option<&'static str>)>,
}

impl Entry {
    fn line(&self, now: Now) -> JobLine {
        let until = self.end.map_or(now.mono, |(at, _)| at);
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let (stage, since) = self.stages.last().copied().unwrap_or(("", self.began));
        let stage_of = |(stage, at): &(&'static str, Now)| JobStage {
            stage: (*stage).to_owned(),
            at: (at.wall.as_secs_f64() * 1000.0).round() / 1000.0,
        };
        JobLine {
            uuid: self.uuid.clone(),
            stage: stage.to_owned(),
            stage_seconds: now.mono.saturating_duration_since(since.mono).as_secs(),
            age_seconds: (until.saturating_duration_since(self.began.mono).as_secs_f64() * 1000.0).round() / 1000.0,
            ended: self.end.is_some(),
            peer: text(&self.peer),
            class: text(self.class),
            tag: text(&self.tag),
            reason: self.end.and_then(|(_, reason)| text(reason?)),
            history: self.stages.iter().map(stage_of).collect(),
        }
    }

    /// Gives the stage that is over.
    fn step(&mut self, stage: &'static str, now: Now) -> Option<StageOver> {
        let last = self.stages.last().copied();
        if self.stages.len() == STAGES {
            self.stages.pop();
        }
        self.stages.push((stage, now));
        last.map(|(stage, since)| (stage, now.mono.saturating_duration_since(since.mono)))
    }
}

/// How many jobs ended in each of the last minutes.
#[derive(Debug, Default)]
struct Minutes {
    /// The minute of the last count, since 1970.
    minute: u64,
    counts: VecDeque<u32>,
}

impl Minutes {
    /// Makes the minute of `now` the last one.
    fn turn(&mut self, now: Now) {
        let minute = now.wall.as_secs() / 60;
        // A clock that is set back counts in the minute that it has left.
        let passed = minute.saturating_sub(self.minute);
        if passed >= MINUTES as u64 || self.counts.is_empty() {
            self.counts = VecDeque::from([0; MINUTES]);
        } else {
            (0..passed).for_each(|_| self.counts.push_back(0));
            self.counts.drain(..self.counts.len().saturating_sub(MINUTES));
        }
        self.minute = self.minute.max(minute);
    }

    fn count(&mut self, now: Now) {
        self.turn(now);
        if let Some(last) = self.counts.back_mut() {
            *last = last.saturating_add(1);
        }
    }
}

/// The jobs.
#[derive(Debug, Default)]
pub(super) struct JobTable {
    open: HashMap<String, Entry>,
    ended: VecDeque<Entry>,
    /// Open jobs that had no room.
    left_out: usize,
    outcomes: BTreeMap<&'static str, u64>,
    minutes: Minutes,
}

impl JobTable {
    /// A job begins with this stage; one that is known already goes on.
    pub(super) fn begin(&mut self, name: JobName<'_>, facts: JobFacts<'_>, stage: &'static str, now: Now) {
        let key = name.key();
        if self.open.contains_key(&key) {
            return;
        }
        if self.open.len() >= OPEN {
            self.left_out += 1;
            return;
        }
        let short = |text: &str| truncated(text, TEXT_BYTES).to_owned();
        let entry = Entry {
            uuid: short(name.uuid),
            began: now,
            stages: vec![(stage, now)],
            peer: short(facts.peer),
            class: facts.class,
            tag: short(facts.tag),
            user: short(facts.user),
            end: None,
        };
        self.open.insert(key, entry);
    }

    /// A job that was never taken is no job.
    pub(super) fn forget(&mut self, name: JobName<'_>) {
        if self.open.remove(&name.key()).is_none() {
            self.left_out = self.left_out.saturating_sub(1);
        }
    }

    /// Who has the job now.
    pub(super) fn peer(&mut self, name: JobName<'_>, peer: &str) {
        if let Some(entry) = self.open.get_mut(&name.key()) {
            truncated(peer, TEXT_BYTES).clone_into(&mut entry.peer);
        }
    }

    /// The class that an open job asks for.
    pub(super) fn class(&mut self, name: JobName<'_>, class: &'static str) {
        if let Some(entry) = self.open.get_mut(&name.key()) {
            entry.class = class;
        }
    }

    /// A job has come to another stage; gives the one that is over.
    pub(super) fn step(&mut self, name: JobName<'_>, stage: &'static str, now: Now) -> Option<StageOver> {
        let entry = self.open.get_mut(&name.key())?;
        if entry.stages.last().is_some_and(|(last, _)| *last == stage) {
            return None;
        }
        entry.step(stage, now)
    }

    /// A job has ended; gives the stage that is over.
    pub(super) fn end(
        &mut self,
        name: JobName<'_>,
        outcome: &'static str,
        reason: Option<&'static str>,
        now: Now,
    ) -> Option<StageOver> {
        *self.outcomes.entry(outcome).or_default() += 1;
        self.minutes.count(now);
        let Some(mut entry) = self.open.remove(&name.key()) else {
            self.left_out = self.left_out.saturating_sub(1);
            return None;
        };
        let over = entry.step(outcome, now);
        entry.end = Some((now.mono, reason));
        if self.ended.len() >= ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back(entry);
        over
    }

    /// Jobs that have begun and not ended.
    pub(super) fn open(&self) -> usize {
        self.open.len() + self.left_out
    }

    /// What is shown to this one.
    pub(super) fn view(&mut self, viewer: &Viewer, now: Now) -> JobsView {
        self.minutes.turn(now);
        let mut open: Vec<&Entry> = self.open.values().filter(|entry| viewer.sees(entry)).collect();
        let ended = self.ended.iter().rev().filter(|entry| viewer.sees(entry));
        open.sort_by(|a, b| (a.began.mono, &a.uuid).cmp(&(b.began.mono, &b.uuid)));
        JobsView {
            open: self.open(),
            ended: self.outcomes.iter().map(|(outcome, count)| ((*outcome).to_owned(), *count)).collect(),
            ended_by_minute: self.minutes.counts.iter().copied().collect(),
            open_jobs: open.into_iter().take(SHOWN).map(|entry| entry.line(now)).collect(),
            ended_jobs: ended.take(SHOWN).map(|entry| entry.line(now)).collect(),
            own_only: *viewer != Viewer::Operator,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Now {
        Now { mono: Instant::now(), wall: Duration::from_secs(6000) }
    }

    fn after(start: Now, millis: u64) -> Now {
        start + Duration::from_millis(millis)
    }

    const FACTS: JobFacts<'static> = JobFacts { peer: "v", class: "always_on.test", tag: "", user: "u" };

    #[test]
    fn a_job_has_its_stages_and_its_end() {
        let (mut table, start) = (JobTable::default(), start());
        table.begin("a".into(), FACTS, "sent", start);
        table.begin("a".into(), JobFacts::default(), "sent", after(start, 1));
        assert_eq!(table.step("a".into(), "received", after(start, 500)), Some(("sent", Duration::from_millis(500))));
        assert_eq!(table.step("a".into(), "received", after(start, 600)), None, "said twice");
        assert_eq!(table.step("b".into(), "received", after(start, 600)), None, "not known");
        let view = table.view(&Viewer::Operator, after(start, 3000));
        let [line] = &view.open_jobs[..] else { panic!("{view:?}") };
        assert_eq!(
            (line.stage.as_str(), line.stage_seconds, line.age_seconds, line.ended),
            ("received", 2, 3.0, false)
        );
        assert_eq!((line.peer.as_deref(), line.class.as_deref()), (Some("v"), Some("always_on.test")));
        assert_eq!((line.tag.as_deref(), view.open, view.ended_in_all()), (None, 1, 0));
        table.peer("a".into(), "m");
        let over = table.end("a".into(), "failed", Some("timeout"), after(start, 4000));
        assert_eq!(over, Some(("received", Duration::from_millis(3500))));
        assert_eq!(table.step("a".into(), "accepted", after(start, 5000)), None, "too late");
        let view = table.view(&Viewer::Operator, after(start, 9000));
        let [line] = &view.ended_jobs[..] else { panic!("{view:?}") };
        assert_eq!((line.age_seconds, line.ended, line.reason.as_deref()), (4.0, true, Some("timeout")));
        let history: Vec<_> = line.history.iter().map(|stage| (stage.stage.as_str(), stage.at)).collect();
        assert_eq!(history, [("sent", 6000.0), ("received", 6000.5), ("failed", 6004.0)]);
        assert_eq!((view.open, &view.ended), (0, &BTreeMap::from([("failed".to_owned(), 1)])));
    }

    #[test]
    fn two_may_use_the_same_uuid_and_one_that_was_not_taken_is_no_job() {
        let (mut table, start) = (JobTable::default(), start());
        let [one, other] = ["v", "w"].map(|of| JobName { uuid: "a", of });
        table.begin(one, FACTS, "asked", start);
        table.begin(other, FACTS, "asked", start);
        table.end(one, "completed", None, start);
        let view = table.view(&Viewer::Operator, start);
        assert_eq!((view.open, view.ended_jobs[0].uuid.as_str()), (1, "a"));
        table.forget(other);
        assert_eq!(
            (table.view(&Viewer::Operator, start).open, table.view(&Viewer::Operator, start).ended_in_all()),
            (0, 1)
        );
    }

    #[test]
    fn all_is_bounded_and_what_has_no_room_is_counted() {
        let (mut table, start) = (JobTable::default(), start());
        let long = "ü".repeat(TEXT_BYTES);
        for number in 0..OPEN + 5 {
            let uuid = format!("{number} {long}");
            table.begin(uuid.as_str().into(), FACTS, "sent", after(start, number as u64));
        }
        let first = format!("0 {long}");
        for _ in 0..STAGES {
            table.step(first.as_str().into(), "a", start);
            table.step(first.as_str().into(), "b", start);
        }
        let view = table.view(&Viewer::Operator, after(start, 10_000));
        assert_eq!((view.open, view.open_jobs.len()), (OPEN + 5, SHOWN));
        assert!(view.open_jobs[0].uuid.starts_with("0 ü") && view.open_jobs[0].uuid.len() <= TEXT_BYTES);
        assert_eq!((view.open_jobs[0].history.len(), view.open_jobs[0].stage.as_str()), (STAGES, "b"));
        for number in 0..OPEN + 5 {
            let uuid = format!("{number} {long}");
            table.end(uuid.as_str().into(), "completed", None, after(start, 20_000));
        }
        let view = table.view(&Viewer::Operator, after(start, 20_000));
        assert_eq!((view.open, view.ended_in_all(), view.ended_jobs.len()), (0, OPEN as u64 + 5, SHOWN));
        assert!(view.ended_jobs[0].uuid.starts_with(&format!("{} ", OPEN - 1)), "{:?}", view.ended_jobs[0]);
        assert_eq!(table.ended.len(), ENDED);
    }

    #[test]
    fn ends_are_counted_by_the_minute() {
        let (mut table, start) = (JobTable::default(), start());
        for minute in [0, 0, 1, 3] {
            table.end("x".into(), "completed", None, start + Duration::from_secs(60 * minute));
        }
        let view = table.view(&Viewer::Operator, start + Duration::from_secs(4 * 60 + 59));
        assert_eq!(view.ended_by_minute.len(), MINUTES);
        assert_eq!(view.ended_by_minute[MINUTES - 6..], [0, 2, 1, 0, 1, 0]);
        assert_eq!((view.ended_lately(2), view.ended_lately(60)), (1, 4));
        assert_eq!(table.view(&Viewer::Operator, start).ended_lately(60), 4, "a clock that was set back");
        assert_eq!(table.view(&Viewer::Operator, start + Duration::from_secs(7200)).ended_lately(60), 0);
    }
}
