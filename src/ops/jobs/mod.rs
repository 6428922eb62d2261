//! The jobs of a role as people look for them: those that have not ended, and the newest that have. Pure apart from one
//! lock.
//!
//! * `table`: what is kept of them and what is shown. Pure.

use std::fmt;
use std::sync::{Arc, Mutex};

mod table;

pub use table::{JobFacts, JobLine, JobName, JobStage, JobsView, Viewer};

use self::table::{JobTable, StageOver};
use super::metrics::{Counter, Metrics, SECONDS};
use crate::base::clock::now;
use crate::base::lock::lock;

/// The metrics of a role's jobs, by name.
#[derive(Debug, Clone, Copy)]
pub struct JobMetrics {
    /// The counter of ends, by `outcome`; none if the role counts them elsewhere.
    pub ended: Option<&'static str>,
    /// The histogram of times in a stage, by `kind`; none if the role measures its stages otherwise.
    pub stages: Option<&'static str>,
}

/// What happened to the jobs of a role, for whoever watches them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobEvent {
    /// One has begun.
    Begun,
    /// One has ended, or was not taken.
    Ended {
        /// Whether it ran: it was neither rejected nor declined.
        ran: bool,
        /// How many are open now.
        open: usize,
    },
}

type Watcher = Arc<dyn Fn(JobEvent) + Send + Sync>;

/// Outcomes of jobs that nobody has taken.
const NOT_TAKEN: [&str; 2] = ["rejected", "declined"];

/// The jobs of a role; clones are the same. Nothing here blocks on anything but a short lock.
#[derive(Debug, Clone, Default)]
pub struct Jobs(Arc<Mutex<Shared>>);

#[derive(Default)]
struct Shared {
    table: JobTable,
    metrics: Option<(Metrics, JobMetrics)>,
    watcher: Option<Watcher>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jobs").field("table", &self.table).finish_non_exhaustive()
    }
}

impl Shared {
    fn observe(&self, over: Option<StageOver>) {
        if let (Some((metrics, JobMetrics { stages: Some(name), .. })), Some((stage, took))) = (&self.metrics, over) {
            let help = "How long jobs were in a stage before they came to the next, or to their end.";
            metrics.histogram(name, help, &[("kind", stage)], SECONDS).observe_time(took);
        }
    }
}

impl Jobs {
    /// From now on ends and stages are counted in these metrics; the ends that there may be begin with 0.
    pub fn measure(&self, metrics: &Metrics, names: JobMetrics, outcomes: &[&'static str]) {
        outcomes.iter().for_each(|outcome| drop(ended(metrics, names, outcome)));
        lock(&self.0).metrics = Some((metrics.clone(), names));
    }

    /// A job begins with this stage; one that is known already goes on.
    pub fn begin<'a>(&self, name: impl Into<JobName<'a>>, facts: JobFacts<'_>, stage: &'static str) {
        let mut shared = lock(&self.0);
        shared.table.begin(name.into(), facts, stage, now());
        let watcher = shared.watcher.clone();
        drop(shared);
        tell(watcher, JobEvent::Begun);
    }

    /// A job that was never taken is no job.
    pub fn forget<'a>(&self, name: impl Into<JobName<'a>>) {
        let mut shared = lock(&self.0);
        shared.table.forget(name.into());
        let (watcher, open) = (shared.watcher.clone(), shared.table.open());
        drop(shared);
        tell(watcher, JobEvent::Ended { ran: false, open });
    }

    /// From now on `watcher` hears when jobs begin and end, on the thread that says so: it must be quick, and must not
    /// block. The last one counts.
    pub fn watch(&self, watcher: impl Fn(JobEvent) + Send + Sync + 'static) {
        lock(&self.0).watcher = Some(Arc::new(watcher));
    }

    /// Jobs that have begun and not ended.
    pub fn open(&self) -> usize {
        lock(&self.0).table.open()
    }

    /// Who has an open job now.
    pub fn peer<'a>(&self, name: impl Into<JobName<'a>>, peer: &str) {
        lock(&self.0).table.peer(name.into(), peer);
    }

    /// The class of executors that an open job asks for.
    pub fn class<'a>(&self, name: impl Into<JobName<'a>>, class: &'static str) {
        lock(&self.0).table.class(name.into(), class);
    }

    /// An open job has come to another stage.
    pub fn step<'a>(&self, name: impl Into<JobName<'a>>, stage: &'static str) {
        let mut shared = lock(&self.0);
        let over = shared.table.step(name.into(), stage, now());
        shared.observe(over);
    }

    /// A job has ended; it is counted also if it was not known.
    pub fn end<'a>(&self, name: impl Into<JobName<'a>>, outcome: &'static str, reason: Option<&'static str>) {
        let mut shared = lock(&self.0);
        let over = shared.table.end(name.into(), outcome, reason, now());
        shared.observe(over);
        if let Some((metrics, names)) = &shared.metrics
            && let Some(ended) = ended(metrics, *names, outcome)
        {
            ended.inc();
        }
        let (watcher, open) = (shared.watcher.clone(), shared.table.open());
        drop(shared);
        tell(watcher, JobEvent::Ended { ran: !NOT_TAKEN.contains(&outcome), open });
    }

    /// What is shown to an operator.
    pub fn view(&self) -> JobsView {
        self.view_of(&Viewer::Operator)
    }

    /// What is shown to this one.
    pub fn view_of(&self, viewer: &Viewer) -> JobsView {
        lock(&self.0).table.view(viewer, now())
    }
}

fn tell(watcher: Option<Watcher>, event: JobEvent) {
    if let Some(watcher) = watcher {
        watcher(event);
    }
}

fn ended(metrics: &Metrics, names: JobMetrics, outcome: &'static str) -> Option<Counter> {
    Some(metrics.counter(names.ended?, "Jobs that have ended, by outcome.", &[("outcome", outcome)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watcher_hears_of_begins_and_ends_and_whether_a_job_ran() {
        let (jobs, heard) = (Jobs::default(), Arc::new(Mutex::new(Vec::new())));
        let hears = heard.clone();
        jobs.watch(move |event| lock(&hears).push(event));
        for job in ["a", "b", "c"] {
            jobs.begin(job, JobFacts::default(), "asked");
        }
        jobs.end("a", "rejected", Some("busy"));
        jobs.forget("b");
        jobs.end("c", "horde_failed", None);
        let ended = |ran, open| JobEvent::Ended { ran, open };
        let begun = [JobEvent::Begun; 3];
        assert_eq!(lock(&heard)[..3], begun);
        assert_eq!(lock(&heard)[3..], [ended(false, 2), ended(false, 1), ended(true, 0)]);
    }

    #[test]
    fn ends_and_stages_are_counted() {
        let (jobs, metrics) = (Jobs::default(), Metrics::new());
        let names = JobMetrics { ended: Some("phalanx_t_jobs_ended_total"), stages: Some("phalanx_t_stage_seconds") };
        jobs.measure(&metrics, names, &["completed", "failed"]);
        jobs.begin("a", JobFacts::default(), "sent");
        jobs.step("a", "received");
        jobs.end("a", "completed", None);
        jobs.end("b", "completed", None);
        let text = metrics.render();
        for expected in [
            "phalanx_t_jobs_ended_total{outcome=\"completed\"} 2\n",
            "phalanx_t_jobs_ended_total{outcome=\"failed\"} 0\n",
            "phalanx_t_stage_seconds_count{kind=\"sent\"} 1\n",
            "phalanx_t_stage_seconds_count{kind=\"received\"} 1\n",
        ] {
            assert!(text.contains(expected), "{expected} is not in {text}");
        }
    }
}
