//! The way of each job through the miner: what happened, and when. Pure: `now` is an argument.
//!
//! The wire has no acknowledgements, so this is how an operator learns at which hop a job waited or was lost.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::router::{JobKey, TraceEvent};
use crate::base::now::Now;
use crate::base::text;
use crate::ops::redact;
use crate::protocol::ExecutorClass;

/// Jobs that are remembered, the newest: with all their events about 20 MB.
const JOBS: usize = 1000;

/// Events of one job: some twenty of a job without trouble, and room for reconnects. The last is always kept.
const EVENTS: usize = 100;

/// Bytes of a detail: others write some of them.
const DETAIL_BYTES: usize = 200;

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TraceLine {
    /// Since the first event, in seconds.
    pub seconds: f64,
    /// What happened.
    pub event: TraceEvent,
    /// More of it, in words; at most 200 bytes.
    pub detail: String,
}

/// The way of one job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// The job.
    pub job_uuid: String,
    /// Whose it is.
    pub validator: String,
    /// Its class; none for a job that was declined at once.
    pub executor_class: Option<String>,
    /// When it began, in seconds since 1970.
    pub began: f64,
    /// What happened, the oldest first.
    pub events: Vec<TraceLine>,
    /// Events that had no room, before the last.
    pub left_out: usize,
}

/// The ways of the newest jobs.
#[derive(Debug, Default)]
pub struct Traces {
    jobs: HashMap<JobKey, (Duration, Trace)>,
    order: VecDeque<JobKey>,
}

impl Traces {
    /// Adds an event; gives the stage that it ends, by its name in metrics, and how long that took.
    pub fn note(
        &mut self,
        key: &JobKey,
        class: Option<ExecutorClass>,
        event: TraceEvent,
        detail: &str,
        now: Now,
    ) -> Option<(&'static str, Duration)> {
        if !self.jobs.contains_key(key) {
            self.begin(key, now);
        }
        let (began, trace) = self.jobs.get_mut(key)?;
        if let (None, Some(class)) = (&trace.executor_class, class) {
            trace.executor_class = Some(class.as_str().to_owned());
        }
        if trace.events.len() == EVENTS {
            trace.events.pop();
            trace.left_out += 1;
        }
        // The wall clock may be set back.
        let seconds = now.wall.saturating_sub(*began).as_secs_f64();
        let detail = redact::OneLine(text::truncated(detail, DETAIL_BYTES)).to_string();
        let milestone = trace.events.iter().rev().find(|line| is_milestone(line.event));
        let over = milestone.and_then(|line| Some((stage_between(line.event, event)?, seconds - line.seconds)));
        trace.events.push(TraceLine { seconds, event, detail });
        over.map(|(stage, took)| (stage, Duration::try_from_secs_f64(took).unwrap_or_default()))
    }

    fn begin(&mut self, key: &JobKey, now: Now) {
        if self.order.len() == JOBS
            && let Some(oldest) = self.order.pop_front()
        {
            self.jobs.remove(&oldest);
        }
        let trace = Trace {
            job_uuid: key.uuid.clone(),
            validator: key.validator.clone(),
            executor_class: None,
            began: now.wall.as_secs_f64(),
            events: Vec::new(),
            left_out: 0,
        };
        self.order.push_back(key.clone());
        self.jobs.insert(key.clone(), (now.wall, trace));
    }

    /// The jobs of this uuid, the newest first: each validator may have one.
    pub fn of(&self, uuid: &str) -> Vec<Trace> {
        let keys = self.order.iter().rev().filter(|key| key.uuid == uuid);
        keys.filter_map(|key| self.jobs.get(key)).map(|(_, trace)| trace.clone()).collect()
    }
}

/// Whether a stage begins or ends with the event.
fn is_milestone(event: TraceEvent) -> bool {
    use TraceEvent as E;
    matches!(
        event,
        E::Accepted | E::ExecutorReady | E::Requested | E::VolumesReady | E::StreamingReady | E::ExecutionDone
    )
}

/// The stage that lies between two milestones; none for a job that ends in the middle of one.
fn stage_between(from: TraceEvent, to: TraceEvent) -> Option<&'static str> {
    use TraceEvent as E;
    Some(match (from, to) {
        (E::Accepted, E::ExecutorReady) => "startup",
        (E::ExecutorReady | E::Requested, E::VolumesReady) => "download",
        (E::VolumesReady, E::StreamingReady) => "streaming_start",
        (E::VolumesReady | E::StreamingReady, E::ExecutionDone) => "execution",
        (E::ExecutionDone, E::Ended) => "upload",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn key(uuid: &str, validator: &str) -> JobKey {
        JobKey { validator: validator.to_owned(), uuid: uuid.to_owned() }
    }

    #[test]
    fn the_way_of_a_job_has_what_happened_and_when() {
        let (mut traces, start) = (Traces::default(), Now { mono: Instant::now(), wall: Duration::from_secs(1000) });
        let mut note = |validator: &str, seconds, event, detail: &str| {
            traces.note(&key("j", validator), None, event, detail, start + Duration::from_secs(seconds));
        };
        note("a", 0, TraceEvent::Asked, "");
        note("a", 2, TraceEvent::ExecutorEnded, "exit\n\u{1b}[2J");
        note("b", 3, TraceEvent::Declined, &"ü".repeat(200));
        let of = traces.of("j");
        assert_eq!(of.iter().map(|trace| trace.validator.as_str()).collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!((of[1].began, of[1].events[1].seconds), (1000.0, 2.0));
        assert!(!of[1].events[1].detail.contains(['\n', '\u{1b}']), "{:?}", of[1]);
        assert_eq!(of[0].events[0].detail.len(), DETAIL_BYTES);
        assert_eq!(traces.of("k"), []);
    }

    #[test]
    fn a_stage_lasts_from_milestone_to_milestone() {
        use TraceEvent as E;
        let (mut traces, start) = (Traces::default(), Now { mono: Instant::now(), wall: Duration::from_secs(1000) });
        let mut stages = |uuid: &str, events: &[(u64, E)]| {
            let note = |(seconds, event): &(u64, E)| {
                traces.note(&key(uuid, "v"), None, *event, "", start + Duration::from_secs(*seconds))
            };
            let over: Vec<_> = events.iter().filter_map(note).map(|(stage, took)| (stage, took.as_secs())).collect();
            over
        };
        let all = [
            (0, E::Asked),
            (1, E::Accepted),
            (2, E::ExecutorConnected),
            (4, E::ExecutorReady),
            (5, E::Requested),
            (9, E::VolumesReady),
            (10, E::ExecutorDisconnected),
            (19, E::ExecutionDone),
            (20, E::MachineSpecs),
            (24, E::Ended),
        ];
        assert_eq!(stages("whole", &all), [("startup", 3), ("download", 4), ("execution", 10), ("upload", 5)]);
        let failed = [(1, E::Accepted), (4, E::ExecutorReady), (5, E::Requested), (9, E::Ended)];
        assert_eq!(stages("failed", &failed), [("startup", 3)]);
    }

    #[test]
    fn jobs_and_events_are_bounded_and_the_last_event_is_kept() {
        let (mut traces, now) = (Traces::default(), Now { mono: Instant::now(), wall: Duration::ZERO });
        for number in 0..=EVENTS {
            traces.note(&key("first", "v"), None, TraceEvent::SentAgain, &number.to_string(), now);
        }
        let first = traces.of("first").remove(0);
        assert_eq!((first.events.len(), first.left_out), (EVENTS, 1));
        assert_eq!(first.events[EVENTS - 1].detail, EVENTS.to_string());
        for number in 0..JOBS {
            traces.note(&key(&number.to_string(), "v"), None, TraceEvent::Asked, "", now);
        }
        assert_eq!(traces.of("first"), []);
        assert_eq!((traces.of("0").len(), traces.jobs.len(), traces.order.len()), (1, JOBS, JOBS));
    }
}
