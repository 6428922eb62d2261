//! What a stop did: how long each step took and who did not end.

use std::cell::Cell;
use std::fmt;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};

use super::shutdown::Shutdown;
use super::thread::{JoinError, Thread};
use super::waits::waiting_unless_noted;

/// How long a kicked thread may still take; a kicked call returns within a millisecond, so this is for a busy machine.
pub const KICK_GRACE: Duration = Duration::from_millis(500);

/// What each step still has once a cancel is asked for: time to end processes, remove containers and tell the peers.
pub const CANCEL_BUDGET: Duration = Duration::from_secs(5);

/// A budget beyond it is none.
const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// One step of a stop, in the order of the steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopStep {
    /// What was stopped.
    pub name: String,
    /// How long it took.
    pub took: Duration,
    /// Names of the threads that did not end within the step's budget, not even after their kick, and of the tasks
    /// that they run.
    pub stragglers: Vec<String>,
}

/// The account of a whole stop.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopReport {
    /// The steps, in order.
    pub steps: Vec<StopStep>,
    /// Messages that were accepted from a producer but not by the peer.
    pub unsent: usize,
    /// Jobs that were still running and were cancelled.
    pub cancelled_jobs: usize,
}

impl StopReport {
    /// Whether every thread ended and every message was accepted by its peer.
    pub fn is_clean(&self) -> bool {
        self.unsent == 0 && self.steps.iter().all(|s| s.stragglers.is_empty())
    }

    /// Names of all threads that did not end.
    pub fn stragglers(&self) -> Vec<&str> {
        self.steps.iter().flat_map(|s| s.stragglers.iter().map(String::as_str)).collect()
    }
}

type Told = Box<dyn Fn(&str) + Send>;

/// A stop in progress: runs the steps in order, each with a budget, and writes the report.
///
/// When `shutdown` reaches cancel, the present step and each later one have [`CANCEL_BUDGET`] left, or what
/// [`Stopping::with_cancel_budget`] says.
pub struct Stopping {
    shutdown: Shutdown,
    cancel_budget: Duration,
    /// When it is cancelled.
    until: Option<Instant>,
    report: StopReport,
    /// Called with the name of each step that begins.
    told: Option<Told>,
}

impl fmt::Debug for Stopping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stopping")
            .field("shutdown", &self.shutdown)
            .field("report", &self.report)
            .finish_non_exhaustive()
    }
}

impl Stopping {
    /// The beginning of a stop.
    pub fn new(shutdown: &Shutdown) -> Self {
        let (shutdown, report) = (shutdown.clone(), StopReport::default());
        Self { shutdown, cancel_budget: CANCEL_BUDGET, until: None, report, told: None }
    }

    /// The same, whose steps have `budget` left once they are cancelled: for a stop inside a step that has
    /// [`CANCEL_BUDGET`] itself.
    #[must_use]
    pub fn with_cancel_budget(self, budget: Duration) -> Self {
        Self { cancel_budget: budget, ..self }
    }

    /// The same, which tells `told` the name of each step when it begins; it must not block.
    #[must_use]
    pub fn telling(self, told: impl Fn(&str) + Send + 'static) -> Self {
        Self { told: Some(Box::new(told)), ..self }
    }

    /// The beginning of a stop that no signal shortens: a test's, an example's, that of a part whose owner goes on.
    pub fn alone() -> Self {
        Self::new(&Shutdown::new())
    }

    /// A stop that no signal shortens, whose steps have `budget` together; those that begin later are cancelled.
    pub fn within(budget: Duration) -> Self {
        Self { until: Instant::now().checked_add(budget), ..Self::alone() }
    }

    /// A stop that is cancelled at once, of an owner that is dropped.
    pub fn cancelled() -> Self {
        let stopping = Self::alone();
        stopping.shutdown.cancel();
        stopping
    }

    /// The signal that shortens the budgets.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// Runs one step and records it.
    pub fn step<T>(&mut self, name: &str, budget: Duration, work: impl FnOnce(&mut Step) -> T) -> T {
        if let Some(told) = &self.told {
            told(name);
        }
        let start = Instant::now();
        let left = self.until.map_or(FAR, |until| until.saturating_duration_since(start));
        if left.is_zero() {
            self.shutdown.cancel();
        }
        let mut step = Step {
            shutdown: self.shutdown.clone(),
            until: start + if left.is_zero() { budget.min(FAR) } else { budget.min(left) },
            cancel_budget: self.cancel_budget,
            cancelled_until: Cell::new(None),
            stragglers: Vec::new(),
        };
        let value = work(&mut step);
        let took = start.elapsed();
        log::debug!("stop: {name} took {took:.1?}");
        self.report.steps.push(StopStep { name: name.to_owned(), took, stragglers: step.stragglers });
        value
    }

    /// Counts messages that no peer accepted.
    pub fn unsent(&mut self, messages: usize) {
        self.report.unsent += messages;
    }

    /// Counts jobs that were still running and were cancelled.
    pub fn cancelled_jobs(&mut self, jobs: usize) {
        self.report.cancelled_jobs += jobs;
    }

    /// The account.
    pub fn finish(self) -> StopReport {
        self.report
    }
}

/// Stops an owner by itself, in one step of this name.
pub(crate) fn stop_alone(what: &str, budget: Duration, work: impl FnOnce(&mut Step)) -> StopReport {
    let mut stopping = Stopping::within(budget);
    stopping.step(what, budget, work);
    stopping.finish()
}

/// Runs the stop of an owner that is merely dropped, after it has cancelled and kicked its threads: they have
/// [`CANCEL_BUDGET`] to end, and a straggler is logged and left behind.
pub fn stop_dropped(work: impl FnOnce(&mut Step)) {
    Stopping::cancelled().step("a dropped owner", CANCEL_BUDGET, work);
}

/// Runs the stop of a role that is merely dropped, cancelled, and logs what it did; `what` names it.
#[cfg(feature = "roles")]
pub(crate) fn drop_role(what: &str, end: impl FnOnce(&mut Stopping)) {
    let mut stopping = Stopping::cancelled();
    end(&mut stopping);
    log::info!("{what} was dropped: {}", stopping.finish());
}

/// One step of a [`Stopping`].
#[derive(Debug)]
pub struct Step {
    shutdown: Shutdown,
    until: Instant,
    cancel_budget: Duration,
    /// Fixed when the cancel is first seen, so that several stuck threads share it.
    cancelled_until: Cell<Option<Instant>>,
    stragglers: Vec<String>,
}

impl Step {
    /// When the step's budget is spent, as things stand now.
    pub fn deadline(&self) -> Instant {
        if !self.shutdown.is_cancelled() {
            return self.until;
        }
        let cancelled_until = self.cancelled_until.get().unwrap_or_else(|| Instant::now() + self.cancel_budget);
        self.cancelled_until.set(Some(cancelled_until));
        self.until.min(cancelled_until)
    }

    /// What is left of the step's budget, as things stand now.
    pub fn left(&self) -> Duration {
        self.deadline().saturating_duration_since(Instant::now())
    }

    /// Gives what was cancelled when the budget was spent its time for that, from now, to end.
    pub fn extend_for_cancel(&mut self) {
        self.until = self.until.max(Instant::now() + self.cancel_budget);
    }

    /// What is left to do is not worth more than this.
    pub fn shorten(&mut self, budget: Duration) {
        self.until = self.until.min(Instant::now() + budget);
    }

    /// The signal that shortens the budget.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// Waits until `done` disconnects, the budget is spent, or a cancel is asked for; says whether it disconnected.
    pub fn wait(&self, done: &Receiver<()>) -> bool {
        let left = self.left();
        let _waiting = waiting_unless_noted("a part to end", Some(self.deadline()));
        select! {
            recv(done) -> _ => true,
            recv(self.shutdown.cancel_receiver()) -> _ => done.try_recv().is_err_and(|e| e.is_disconnected()),
            default(left) => false,
        }
    }

    /// Joins a thread within the budget, kicks it then, and records it as a straggler if even that does not end it.
    ///
    /// `None` if it panicked or is a straggler.
    pub fn join<T>(&mut self, thread: Thread<T>) -> Option<T> {
        self.wait(thread.done_receiver());
        match thread.join_or_kick(self.deadline(), KICK_GRACE) {
            Ok(value) => Some(value),
            Err(JoinError::Panicked(_)) => None,
            Err(JoinError::Late(thread)) => {
                self.leave_behind(thread);
                None
            }
        }
    }

    /// As [`Step::join`], of several: those that are late are kicked together and share the grace, however many they
    /// are.
    pub fn join_all(&mut self, threads: impl IntoIterator<Item = Thread<()>>) {
        self.join_all_within(threads, KICK_GRACE);
    }

    fn join_all_within(&mut self, threads: impl IntoIterator<Item = Thread<()>>, grace: Duration) {
        let threads: Vec<_> = threads.into_iter().collect();
        for thread in &threads {
            let done = thread.done_receiver();
            if !self.wait(done) {
                // A cancel ends the wait, not the budget.
                let _waiting = waiting_unless_noted("a thread to end", Some(self.deadline()));
                let _ended = done.recv_deadline(self.deadline());
            }
        }
        threads.iter().filter(|thread| !thread.is_finished()).for_each(Thread::kick);
        let until = Instant::now() + grace;
        for thread in threads {
            if let Err(JoinError::Late(thread)) = thread.join_by(until) {
                self.leave_behind(thread);
            }
        }
    }

    /// Names something beside threads that did not end.
    pub(crate) fn name_straggler(&mut self, what: String) {
        self.stragglers.push(what);
    }

    fn leave_behind<T>(&mut self, thread: Thread<T>) {
        self.stragglers.push(thread.name().to_owned());
        thread.abandon("it outlived its step of the stop and its kick");
    }
}

impl fmt::Display for StopReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total: Duration = self.steps.iter().map(|s| s.took).sum();
        write!(f, "stopped in {total:.3?}")?;
        if self.cancelled_jobs > 0 {
            write!(f, ", {} jobs cancelled", self.cancelled_jobs)?;
        }
        if self.unsent > 0 {
            write!(f, ", {} messages unsent", self.unsent)?;
        }
        for step in self.steps.iter().filter(|s| !s.stragglers.is_empty()) {
            write!(f, "; {} left behind: {}", step.name, step.stragglers.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::thread::{Kick, spawn};
    use crossbeam_channel::bounded;

    #[test]
    fn a_straggler_is_named_and_the_stop_goes_on() {
        let (tx, rx) = bounded::<()>(0);
        let stuck = spawn("t-stuck", Kick::dropped("a sender that the test keeps"), move || rx.recv().is_err());
        let mut stopping = Stopping::alone();
        stopping.step("workers", Duration::ZERO, |step| assert!(step.join(stuck).is_none()));
        stopping.step("rest", Duration::ZERO, |_| {});
        let report = stopping.finish();
        assert_eq!(report.stragglers(), ["t-stuck"]);
        assert!(!report.is_clean());
        assert!(report.to_string().contains("workers left behind: t-stuck"), "{report}");
        assert_eq!(report.steps.len(), 2);
        drop(tx);
    }

    #[test]
    fn a_stop_whose_budget_is_spent_cancels_what_is_left() {
        let mut stopping = Stopping::within(Duration::from_secs(3600));
        let left = stopping.step("first", Duration::MAX, |step| step.left());
        assert!(left <= Duration::from_secs(3600) && !stopping.shutdown().is_cancelled());
        let mut stopping = Stopping::within(Duration::ZERO);
        let left = stopping.step("first", Duration::MAX, |step| step.left());
        assert!(left <= CANCEL_BUDGET && left > Duration::ZERO && stopping.shutdown().is_cancelled());
        assert!(Stopping::within(Duration::MAX).step("first", Duration::MAX, |step| step.left()) > CANCEL_BUDGET);
    }

    #[test]
    fn a_stop_inside_another_has_less_time_once_it_is_cancelled() {
        let mut stopping = Stopping::cancelled().with_cancel_budget(Duration::from_secs(2));
        let left = stopping.step("inner", Duration::from_secs(15), |step| step.left());
        assert!(left <= Duration::from_secs(2) && left > Duration::ZERO, "{left:?}");
    }

    #[test]
    fn late_threads_are_kicked_together_and_share_the_grace() {
        let group = crate::base::thread::Group::enter();
        let (tx, rx) = bounded::<()>(2);
        let ended = |name: &str, kick| {
            let rx = rx.clone();
            spawn(name, kick, move || assert!(rx.recv().is_ok()))
        };
        // The first ends only by the kick of the second.
        let first = ended("t-first", Kick::dropped("the other's kick"));
        let both = Kick::new("tx", move || (0..2).for_each(|_| assert!(tx.try_send(()).is_ok())));
        let second = ended("t-second", both);
        let mut stopping = Stopping::cancelled();
        let long = Duration::from_secs(3600);
        stopping.step("workers", Duration::ZERO, |step| step.join_all_within([first, second], long));
        assert!(stopping.finish().is_clean());
        assert!(group.live().is_empty());
    }

    #[test]
    fn a_dropped_owner_leaves_no_thread_that_its_kick_ends() {
        let group = crate::base::thread::Group::enter();
        let (tx, rx) = bounded::<()>(1);
        let thread = spawn("t-owned", Kick::new("tx", move || assert!(tx.try_send(()).is_ok())), move || rx.recv());
        thread.kick();
        stop_dropped(|step| assert!(step.join(thread).is_some()));
        assert!(group.live().is_empty());
    }

    #[test]
    fn a_cancel_shortens_a_step_that_has_begun() {
        let shutdown = Shutdown::new();
        let (tx, rx) = bounded::<()>(1);
        let patient = spawn("t-patient", Kick::new("tx", move || assert!(tx.try_send(()).is_ok())), move || rx.recv());
        let cancelling = shutdown.clone();
        let canceller = spawn("t-cancel", Kick::dropped("nothing"), move || cancelling.cancel());
        let mut stopping = Stopping::new(&shutdown);
        let joined = stopping.step("workers", Duration::from_secs(3600), |step| step.join(patient));
        assert!(joined.is_some());
        drop(canceller);
    }
}
