//! A job from its request to its end.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::hosts::NoHost;
use super::io::{Action, CLOSE_NORMAL, Counted, TraceEvent};
use super::job::{Executor, JobKey, MinerJob, News, Phase, Placed};
use super::state::{Router, Waiting};
use crate::base::ids::SessionId;
use crate::base::limits::{JOB_UUID_BYTES, MINER_KEPT_BYTES, MINER_KEPT_JOBS};
use crate::base::now::Now;
use crate::base::shutdown::Level;
use crate::ops::errors::ErrorClass;
use crate::protocol::json::JsonMap;
use crate::protocol::{
    ExecutorClass, HordeFailureReason, JobParticipantType, JobRejectionReason, MinerToValidator, Receipt,
    ReceiptPayload, V0AcceptJobRequest, V0DeclineJobRequest, V0HordeFailedRequest, V0InitialJobRequest,
};
use crate::transport::Utf8Bytes;

/// What is reported to a validator of a job that a stop refuses or ends.
const STOPPING: &str = "the miner is stopping";

/// What is reported to a validator of a job that cannot run here; why is the operator's business.
const NO_ENGINE: &str = "this miner cannot run jobs at present";

impl News {
    /// What is remembered of it.
    pub(super) fn event(self) -> TraceEvent {
        match self {
            News::Accepted => TraceEvent::Accepted,
            News::ExecutorReady => TraceEvent::ExecutorReady,
            News::VolumesReady => TraceEvent::VolumesReady,
            News::StreamingReady => TraceEvent::StreamingReady,
            News::ExecutionDone => TraceEvent::ExecutionDone,
            News::Specs => TraceEvent::MachineSpecs,
            News::End => TraceEvent::Ended,
        }
    }
}

impl Router {
    /// A validator asks for a job.
    pub(super) fn job_asked(
        &mut self,
        session: SessionId,
        validator: String,
        (initial, text): (V0InitialJobRequest, Utf8Bytes),
        signed: Option<bool>,
        now: Now,
    ) {
        // It is remembered, logged and answered with, so one that is none is not even declined.
        if initial.job_uuid.len() > JOB_UUID_BYTES {
            let bytes = initial.job_uuid.len();
            let why = format!("the job_uuid has {bytes} bytes, more than the {JOB_UUID_BYTES} that are taken");
            return self.complain(session, format!("Refused InitialJobRequest: {why}"));
        }
        let key = JobKey { validator, uuid: initial.job_uuid.clone() };
        if self.jobs.contains_key(&key) {
            return self.asked_again(&key, session);
        }
        if let Some(waiting) = self.waiting.iter_mut().find(|w| w.key == key) {
            waiting.session = session;
            return;
        }
        if let Err((reason, why)) = self.judge(&key, &initial, signed) {
            log::info!("job {}: declined: {reason} {why}", key.uuid);
            self.note(&key, TraceEvent::Declined, format!("{reason} {why}"));
            return self.decline(session, &key, reason, why);
        }
        let class = initial.executor_class;
        if self.level >= Level::Drain {
            return self.decline_busy(session, &key, class, STOPPING);
        }
        if let Some(why) = &self.paused {
            let why = format!("this miner is {why}");
            log::info!("job {}: declined: {why}", key.uuid);
            self.note(&key, TraceEvent::Declined, why.as_str());
            let context = Some(V0DeclineJobRequest::pause_context());
            return self.decline_busy_in(session, &key, class, (&why, context));
        }
        let ahead = self.waiting.iter().filter(|w| w.initial.executor_class == class).count();
        let slots = self.usable(class, now.mono);
        if slots.free == 0 && ahead < slots.ending.saturating_sub(slots.draining) {
            let until = now.mono + self.limits.reservation_wait;
            self.waiting.push_back(Waiting { key, session, initial, text, until, asked: now.mono });
            return;
        }
        self.reserve(Waiting { key, session, initial, text, until: now.mono, asked: now.mono }, now);
    }

    /// The same job again: it is not started twice, but the validator is notified of what it may have missed.
    fn asked_again(&mut self, key: &JobKey, session: SessionId) {
        let Some(job) = self.jobs.get_mut(key) else { return };
        job.claim(session);
        if matches!(job.phase, Phase::Storing(_)) {
            return;
        }
        let news = job.kept();
        if !matches!(job.first_kept(), Some(News::Accepted)) {
            self.send(session, V0AcceptJobRequest { job_uuid: key.uuid.clone() });
        }
        self.out.extend(news.into_iter().map(|text| Action::Send(session, text)));
    }

    /// Whether the job may be taken at all.
    fn judge(
        &self,
        key: &JobKey,
        initial: &V0InitialJobRequest,
        signed: Option<bool>,
    ) -> Result<(), (JobRejectionReason, String)> {
        if self.blacklist.contains(&key.validator) {
            return Err((JobRejectionReason::ValidatorBlacklisted, String::new()));
        }
        if signed == Some(false) {
            let why = format!("validator_signature is not by {} over this message", key.validator);
            return Err((JobRejectionReason::InvalidSignature, why));
        }
        let receipt = &initial.job_started_receipt_payload;
        let invalid = |why: String| Err((JobRejectionReason::InvalidReceipt, why));
        if receipt.job_uuid != key.uuid {
            return invalid(format!("the started-receipt is for job {}, not {}", receipt.job_uuid, key.uuid));
        }
        if receipt.executor_class != initial.executor_class {
            let (wrong, right) = (receipt.executor_class, initial.executor_class);
            return invalid(format!("the started-receipt is for executor class {wrong}, not {right}"));
        }
        let signature = &initial.job_started_receipt_signature;
        self.check_hotkeys(&key.validator, &receipt.validator_hotkey, &receipt.miner_hotkey)
            .and_then(|()| receipt.verify(&key.validator, signature).map(drop).map_err(|e| e.to_string()))
            .or_else(|why| invalid(format!("started-receipt: {why}")))?;
        let asked = self.limits.timing(initial).asked(initial.streaming_details.is_some());
        if let Some(most) = self.limits.max_job_time.filter(|most| asked > *most) {
            let (asked, most) = (asked.as_secs_f64(), most.as_secs_f64());
            let why = format!("its limits are {asked} s together; this miner takes jobs of at most {most} s");
            return Err((JobRejectionReason::Unknown, why));
        }
        Ok(())
    }

    /// Whether a receipt is between this miner and the validator that has authenticated.
    pub(super) fn check_hotkeys(&self, validator: &str, by: &str, to: &str) -> Result<(), String> {
        if by != validator {
            return Err(format!("validator_hotkey is {by}, not {validator}"));
        }
        if to != self.hotkey {
            return Err(format!("miner_hotkey is {to}, not {}", self.hotkey));
        }
        Ok(())
    }

    fn reserve(&mut self, waiting: Waiting, now: Now) {
        let Waiting { key, session, initial, text, asked, .. } = waiting;
        let class = initial.executor_class;
        let ready_by = now.mono + class.spin_up_time() + self.limits.startup_time_limit;
        let placed = self.place(class, initial.docker_image.as_deref(), now.mono);
        let lease = placed.and_then(|host| self.pool.reserve(host, class, ready_by).map_err(NoHost::Busy));
        let lease = match lease {
            Ok(lease) => lease,
            Err(NoHost::Down(why)) => {
                log::info!("job {}: declined: no job can run: {why}", key.uuid);
                return self.decline_busy(session, &key, class, NO_ENGINE);
            }
            Err(NoHost::Busy(busy)) => {
                log::info!("job {}: declined: {busy}", key.uuid);
                self.note(&key, TraceEvent::Declined, busy.to_string());
                return self.decline_busy(session, &key, class, "");
            }
        };
        let host = lease.slot().host();
        self.host_begins(host, now);
        let payload = initial.job_started_receipt_payload.clone().into();
        let validator_signature = initial.job_started_receipt_signature.clone();
        let placed = Placed {
            token: format!("{}-{}", key.uuid, uuid::Uuid::new_v4()),
            run: uuid::Uuid::new_v4().simple().to_string(),
            host,
            epoch: self.owner.epoch,
            asked,
            ready_by,
        };
        let number = self.store_order();
        let job = MinerJob::new((initial, text), lease, placed, session, number);
        let row = Some(Box::new(job.row(&key, now)));
        self.jobs.insert(key.clone(), job);
        self.note(&key, TraceEvent::Asked, "");
        self.out.push(Action::Store { job: key, number, row, payload, validator_signature });
    }

    /// The number of the next order to store a receipt.
    pub(super) fn store_order(&mut self) -> u64 {
        self.store_orders += 1;
        self.store_orders
    }

    fn decline(&mut self, to: SessionId, key: &JobKey, reason: JobRejectionReason, message: String) {
        let job_uuid = key.uuid.clone();
        self.send(to, V0DeclineJobRequest { job_uuid, message, reason, receipts: Vec::new(), context: None });
    }

    /// Declines with the receipts of the jobs that have the executors of the class, as an excuse.
    fn decline_busy(&mut self, to: SessionId, key: &JobKey, class: ExecutorClass, message: &str) {
        self.decline_busy_in(to, key, class, (message, None));
    }

    fn decline_busy_in(
        &mut self,
        to: SessionId,
        key: &JobKey,
        class: ExecutorClass,
        (message, context): (&str, Option<JsonMap>),
    ) {
        let has_executor =
            |job: &&MinerJob| job.executor.as_ref().is_some_and(|executor| executor.slot.class() == class);
        let receipts = self.jobs.values().filter(has_executor).filter_map(|job| job.receipt.clone()).collect();
        let (job_uuid, message, reason) = (key.uuid.clone(), message.to_owned(), JobRejectionReason::Busy);
        self.send(to, V0DeclineJobRequest { job_uuid, message, reason, receipts, context });
    }

    /// A receipt has been stored, or could not be; for a started-receipt the job depends on it.
    pub(super) fn stored(&mut self, key: JobKey, number: u64, result: Result<(Box<Receipt>, bool), String>, now: Now) {
        let waits = |job: &&mut MinerJob| matches!(job.phase, Phase::Storing(order) if order == number);
        let Some(job) = self.jobs.get_mut(&key).filter(waits) else {
            match result {
                Err(why) => self.error("receipt", format!("job {}: it was not stored: {why}", key.uuid)),
                // With its job, which was declined in the meantime.
                Ok((receipt, _))
                    if matches!(receipt.payload, ReceiptPayload::JobStarted(_)) && !self.jobs.contains_key(&key) =>
                {
                    self.forgotten.push(key)
                }
                Ok(_) => {}
            }
            return;
        };
        match result {
            Ok((receipt, true)) => job.receipt = Some(*receipt),
            Ok((_, false)) => {
                let why = "this job was started here before";
                self.note(&key, TraceEvent::Declined, why);
                for session in self.undo(&key) {
                    self.decline(session, &key, JobRejectionReason::Unknown, why.to_owned());
                }
                return;
            }
            Err(why) => {
                let what = format!("job {}: cannot be accepted, it was not stored: {why}", key.uuid);
                self.out.push(Action::Error(ErrorClass::Rejected, "receipt", None, what));
                return self.not_stored(&key, "the started-receipt could not be stored");
            }
        }
        let Some(lease) = job.executor.as_mut().and_then(|executor| executor.lease.take()) else { return };
        job.phase = Phase::Starting;
        self.out.push(Action::Count(Counted::Accepted(now.mono.saturating_duration_since(job.placed.asked))));
        let spec = self.spec(&key, lease.slot().class(), &self.jobs[&key]);
        let host = lease.slot().host();
        self.tokens.insert(spec.token.clone(), key.clone());
        self.notify(&key, News::Accepted, V0AcceptJobRequest { job_uuid: key.uuid.clone() });
        self.out.push(Action::Start(spec, lease));
        log::info!("job {}: accepted from validator {}, for host {host}", key.uuid, key.validator);
    }

    /// A job cannot be accepted because this miner's disk does not take it: that is not the job's fault, so it is no
    /// refusal.
    fn not_stored(&mut self, key: &JobKey, why: &str) {
        self.note(key, TraceEvent::Failed, why);
        for session in self.undo(key) {
            let failed = V0HordeFailedRequest {
                job_uuid: key.uuid.clone(),
                reported_by: JobParticipantType::Miner,
                message: why.to_owned(),
                reason: HordeFailureReason::GenericError,
                context: None,
            };
            self.send(session, failed);
        }
    }

    /// A job that has a slot but no executor yet is taken back; gives those who are to be notified.
    fn undo(&mut self, key: &JobKey) -> Vec<SessionId> {
        self.forgotten.push(key.clone());
        // With its lease, which gives the slot back.
        self.jobs.remove(key).map(|job| job.audience).unwrap_or_default()
    }

    /// Notifies the validator of a job, now or when it is back.
    pub(super) fn notify(&mut self, key: &JobKey, news: News, message: impl Into<MinerToValidator>) {
        let message: MinerToValidator = message.into();
        self.notify_text(key, news, message.encode().into());
    }

    /// As [`Router::notify`], for a message that is passed on as it is.
    pub(super) fn notify_text(&mut self, key: &JobKey, news: News, text: Utf8Bytes) {
        let Some(job) = self.jobs.get_mut(key) else { return };
        if job.keep(news, text.clone()) {
            self.out.extend(job.audience.iter().map(|session| Action::Send(*session, text.clone())));
            let how = if job.audience.is_empty() { "kept, the validator is away" } else { "sent" };
            if job.answered {
                job.confirmed(news);
            }
            self.note(key, news.event(), how);
        }
    }

    /// The session speaks of the job, so it is the one that wants its news, and those that an older one may have lost.
    pub(super) fn claim(&mut self, key: &JobKey, session: SessionId) {
        let Some(job) = self.jobs.get_mut(key) else { return };
        if job.claim(session) {
            self.out.extend(job.kept().into_iter().map(|text| Action::Send(session, text)));
        }
    }

    /// The miner itself fails a job.
    pub(super) fn fail(&mut self, key: &JobKey, reason: HordeFailureReason, message: String, now: Now) {
        self.error("job", format!("job {}: failed: {message}", key.uuid));
        self.note(key, TraceEvent::Failed, message.clone());
        self.out.push(Action::Ended(key.clone(), "horde_failed", Some(reason.as_str())));
        let reported_by = JobParticipantType::Miner;
        let job_uuid = key.uuid.clone();
        self.notify(key, News::End, V0HordeFailedRequest { job_uuid, reported_by, message, reason, context: None });
        self.over(key, now, Duration::ZERO);
    }

    /// The job is over; its executor has `exit_time` to end by itself.
    pub(super) fn over(&mut self, key: &JobKey, now: Now, exit_time: Duration) {
        let Some(job) = self.jobs.get_mut(key) else { return };
        job.phase = Phase::Over(now.mono + self.limits.result_time);
        job.request = None;
        if let Some(executor) = &mut job.executor {
            executor.back_by = None;
            executor.end_at = Some(now.mono + exit_time);
            self.pool.ending(executor.slot, now.mono + exit_time + self.limits.end_time);
        }
        self.bound_kept();
    }

    /// Forgets the oldest outcomes that nobody has confirmed, when they are too many.
    fn bound_kept(&mut self) {
        let size = |router: &Self| {
            let over = router.jobs.values().filter(|job| job.is_over());
            over.fold((0, 0), |(jobs, bytes), job| (jobs + 1, bytes + job.kept_bytes()))
        };
        let (mut jobs, mut bytes) = size(self);
        while jobs > MINER_KEPT_JOBS || bytes > MINER_KEPT_BYTES {
            let over = self.jobs.iter().filter_map(|(key, job)| match job.phase {
                Phase::Over(until) if job.kept_bytes() > 0 => Some((until, key.clone())),
                _ => None,
            });
            let Some((_, oldest)) = over.min() else { return };
            let what = format!("job {}: it is dropped: the validator has not been here to take it", oldest.uuid);
            self.error("outcome", what);
            if let Some(job) = self.jobs.get_mut(&oldest) {
                job.confirmed(News::End);
            }
            self.forget_if_done(&oldest, None);
            (jobs, bytes) = size(self);
        }
    }

    /// Lets go of a job of which nothing is left.
    pub(super) fn forget_if_done(&mut self, key: &JobKey, now: Option<Instant>) {
        if self.jobs.get(key).is_some_and(|job| job.is_done_with(now))
            && let Some(job) = self.jobs.remove(key)
        {
            self.tokens.remove(&job.placed.token);
            self.forgotten.push(key.clone());
        }
    }

    /// Those that wait for a slot are served in their order, as far as there are slots by now.
    pub(super) fn serve_waiting(&mut self, now: Now) {
        let mut at = 0;
        let mut taken = BTreeSet::new();
        while let Some(class) = self.waiting.get(at).map(|waiting| waiting.initial.executor_class) {
            if taken.contains(&class) || self.usable(class, now.mono).free == 0 {
                taken.insert(class);
                at += 1;
            } else if let Some(waiting) = self.waiting.remove(at) {
                self.reserve(waiting, now);
            }
        }
    }

    pub(super) fn expire_waiting(&mut self, now: Now) {
        while let Some(at) = self.waiting.iter().position(|w| w.until <= now.mono) {
            let Some(late) = self.waiting.remove(at) else { return };
            self.note(&late.key, TraceEvent::Declined, "no slot came free in time");
            self.decline_busy(late.session, &late.key, late.initial.executor_class, "");
        }
    }

    /// Jobs of a connection that has gone before they had a slot are not wanted any more.
    pub(super) fn stop_waiting(&mut self, session: SessionId) {
        self.waiting.retain(|waiting| waiting.session != session);
    }

    pub(super) fn expire_jobs(&mut self, now: Now) {
        let leeway = self.limits.leeway;
        let due = |job: &MinerJob| job.next_wake(leeway).is_some_and(|at| at <= now.mono);
        let starting = |job: &MinerJob, router: &Self| {
            job.executor.as_ref().is_some_and(|executor| router.pool.has_expired(executor.slot, now.mono))
        };
        let keys: Vec<_> =
            self.jobs.iter().filter(|(_, job)| due(job) || starting(job, self)).map(|(key, _)| key.clone()).collect();
        for key in keys {
            let job = &self.jobs[&key];
            if matches!(job.phase, Phase::Storing(_)) {
                self.not_stored(&key, "the started-receipt could not be stored in time");
                continue;
            }
            if matches!(job.phase, Phase::Starting) && starting(job, self) {
                let why = match &job.executor {
                    Some(Executor { session: Some(_), .. }) => "the executor connected but was not ready in time",
                    _ => "the executor did not connect in time",
                };
                self.out.push(Action::Count(Counted::StartFailed("late")));
                if job.executor.as_ref().is_some_and(Executor::has_never_connected) {
                    self.host_failed(job.placed.host, why, now);
                }
                self.fail(&key, HordeFailureReason::ExecutorSpinupFailed, why.to_owned(), now);
            } else if let Some((reason, why)) = job.failure(leeway, now.mono) {
                self.fail(&key, reason, why, now);
            }
            self.end_overdue_executor(&key, now);
            self.forget_if_done(&key, Some(now.mono));
        }
    }

    /// Tells the executor of a job that is over to end, if it has not by itself.
    fn end_overdue_executor(&mut self, key: &JobKey, now: Now) {
        let Some(executor) = self.jobs.get_mut(key).and_then(|job| job.executor.as_mut()) else { return };
        if executor.end_at.is_some_and(|end_at| end_at <= now.mono) {
            executor.end_at = None;
            self.out.push(Action::End(executor.token.clone()));
            if let Some(session) = executor.session {
                self.out.push(Action::Close(session, CLOSE_NORMAL, "the job is over"));
            }
        }
    }

    /// The miner is stopping: at `Drain` nothing new is taken, at `Cancel` what runs is failed.
    pub(super) fn stop(&mut self, level: Level, now: Now) {
        self.level = self.level.max(level);
        for waiting in std::mem::take(&mut self.waiting) {
            self.note(&waiting.key, TraceEvent::Declined, STOPPING);
            self.decline_busy(waiting.session, &waiting.key, waiting.initial.executor_class, STOPPING);
        }
        if level < Level::Cancel {
            return;
        }
        let running: Vec<_> = self.jobs.iter().filter(|(_, job)| !job.is_over()).map(|(key, _)| key.clone()).collect();
        for key in running {
            let MinerJob { phase, initial, .. } = &self.jobs[&key];
            let class = initial.executor_class;
            if !matches!(phase, Phase::Storing(_)) {
                self.fail(&key, HordeFailureReason::GenericError, STOPPING.to_owned(), now);
                continue;
            }
            self.note(&key, TraceEvent::Declined, STOPPING);
            for session in self.undo(&key) {
                self.decline_busy(session, &key, class, STOPPING);
            }
        }
        for job in self.jobs.values_mut() {
            if let Some(executor) = &mut job.executor {
                executor.end_at = Some(now.mono);
            }
        }
    }
}
