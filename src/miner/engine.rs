//! The threads that ask each host whether jobs can run there, so that the miner offers executors only where they can.
//!
//! Owner: the miner's router thread, by [`HostThreads`](super::host_threads::HostThreads). Blocks in: a check of one
//! host, with a limit of its own, or the wait for the next. Kick: the thread's stop signal. Ends: with the kick.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::check::{CheckPolicy, Gate, Trouble};
use super::executor_manager::{Answered, ExecutorBackend, Owner, Remembered, SecurityChecks};
use super::host::HostName;
use super::images::Floor;
use super::router::Input;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::waits::waiting;
use crate::ops::errors::{ErrorClass, ErrorHandler};

/// What a busy machine may take longer than a limit.
pub(super) const LATE: Duration = Duration::from_secs(5);

/// One host to ask.
pub(super) struct HostCheck {
    pub host: HostName,
    pub backend: Arc<dyn ExecutorBackend>,
    pub policy: CheckPolicy,
    /// How jobs ran there by the checks of earlier settings.
    pub known: Option<String>,
    /// Whether its images are to be known.
    pub images: bool,
    /// What its disk must have free for any job, if that is looked at.
    pub floor: Option<Arc<Floor>>,
    /// Whose the containers of its security checks are.
    pub owner: Owner,
    pub answered: Answered,
    pub errors: ErrorHandler,
}

impl HostCheck {
    /// Asks until `stop`, and reports each outcome.
    pub(super) fn run(self, stop: &Shutdown, report: impl Fn(Input)) {
        // A stop of any level ends what is being asked.
        let asking = stop.child();
        let cancel = asking.clone();
        let _at_once = stop.on(Level::Drain, move || cancel.cancel());
        let mut gate = Gate::resumed(self.policy, self.known.clone(), Instant::now());
        let (mut images, mut remembered) = (Vec::new(), Remembered::default());
        loop {
            self.ask(&mut gate, &mut remembered, &asking);
            if self.images && gate.verdict().is_ok() {
                match self.backend.images(&asking, gate.limit(Instant::now())) {
                    Ok(found) => images = found,
                    Err(why) => log::debug!("host {}: its images are not known: {why}", self.host),
                }
            }
            if asking.is_cancelled() {
                return;
            }
            let latest = gate.next_check() + self.policy.limit + self.backend.more_time() + LATE;
            let rare = self.backend.security().filter(|_| remembered.known(latest).is_none());
            // The next asks for the images too.
            let due = latest + self.policy.limit + rare.map_or(Duration::ZERO, SecurityChecks::longest);
            report(Input::Checked { host: self.host, found: gate.verdict(), images: images.clone(), due });
            let waits = waiting("the next check of the host", Some(gate.next_check()));
            let stopped = stop.wait(gate.next_check().saturating_duration_since(Instant::now()));
            drop(waits);
            if stopped {
                return;
            }
        }
    }

    /// Asks once.
    fn ask(&self, gate: &mut Gate, remembered: &mut Remembered, stop: &Shutdown) {
        let Self { host, backend, .. } = self;
        let (limit, more) = (gate.limit(Instant::now()), backend.more_time());
        let has_room = || self.floor.as_ref().map_or(Ok(()), |floor| floor.check(stop, gate.limit(Instant::now())));
        let found = backend.check(stop, limit).and_then(|what| has_room().map(|()| what));
        let now = Instant::now();
        let late = || format!("a check took longer than {} s", self.policy.limit.as_secs_f64());
        let found = if now > limit + more + LATE { Err(late()) } else { found };
        let found = found.map_err(Trouble::Unanswered);
        let found = found.and_then(|what| self.is_secure(remembered, stop).map(|()| what));
        if stop.is_cancelled() {
            return;
        }
        let class = match &found {
            Err(Trouble::Unanswered(_)) => ErrorClass::Reconnect,
            _ => ErrorClass::Fatal,
        };
        match gate.checked(found, Instant::now()) {
            Some(Ok(what)) => log::info!("host {host}: jobs run {what}"),
            Some(Err(why)) => {
                let what = format_args!("host {host}: no job can run, and none is taken until that is over: {why}");
                self.errors.report_of(class, "host", host.as_str(), &what);
            }
            None => {}
        }
    }

    /// Whether the security checks have gone well; they are made if no verdict is remembered.
    fn is_secure(&self, remembered: &mut Remembered, stop: &Shutdown) -> Result<(), Trouble> {
        let Some(checks) = self.backend.security() else { return Ok(()) };
        let verdict = match remembered.known(Instant::now()) {
            Some(verdict) => verdict,
            None => {
                let made = checks.run(&self.owner, &self.answered, stop);
                let verdict =
                    made.map_err(|why| Trouble::Unanswered(format!("a security check could not be made: {why}")))?;
                remembered.keep(verdict.clone(), checks.times, Instant::now());
                verdict
            }
        };
        verdict.map_err(|why| Trouble::Unfit(format!("a security check has failed: {why}")))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::miner::executor_manager::{ExecutorEnd, ExecutorError, ExecutorSpec, PROBE_TIME, RareChecks};
    use crate::proc::docker::Docker;

    struct Checked(SecurityChecks);

    impl ExecutorBackend for Checked {
        fn run(&self, _: &ExecutorSpec, _: &Shutdown) -> ExecutorEnd {
            Err(ExecutorError::Lost)
        }

        fn security(&self) -> Option<&SecurityChecks> {
            Some(&self.0)
        }
    }

    /// The time from a host's first check until the next must have been reported.
    fn due(interval: Duration) -> Duration {
        let checks = SecurityChecks::new(Docker::default(), RareChecks { interval, retry: interval });
        let check = HostCheck {
            host: HostName::LOCAL,
            backend: Arc::new(Checked(checks)),
            policy: CheckPolicy::default(),
            known: None,
            images: false,
            floor: None,
            owner: Owner { miner: "5M".to_owned(), instance: "i".to_owned(), epoch: 1 },
            answered: Answered::default(),
            errors: ErrorHandler::default(),
        };
        let (stop, begun, seen) = (Shutdown::new(), Instant::now(), Cell::new(Duration::ZERO));
        check.run(&stop, |input| {
            let Input::Checked { due, .. } = input else { return };
            seen.set(due - begun);
            stop.drain();
        });
        seen.get()
    }

    #[test]
    fn a_check_in_which_security_checks_are_due_has_their_time() {
        assert!(due(Duration::from_secs(3600)) < PROBE_TIME);
        // The outcome counts when the next check is due, but not until its end.
        let policy = CheckPolicy::default();
        assert!(due(policy.interval + LATE) > PROBE_TIME);
    }
}
