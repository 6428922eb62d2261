//! What executors do: connect, speak, disconnect, end.

use std::time::Duration;

use super::io::{Action, CLOSE_NORMAL, Counted, ExecutorFrame, TraceEvent};
use super::job::{JobKey, MinerJob, News, Phase};
use super::state::{Connected, Router};
use crate::base::ids::SessionId;
use crate::base::now::Now;
use crate::miner::executor_manager::{ExecutorEnd, ExecutorError, Leftover};
use crate::miner::executor_pool::{Quarantine, SlotId};
use crate::ops::errors::ErrorClass;
use crate::protocol::executor::{FAULT, FAULT_OF_OPERATOR};
use crate::protocol::stages::Stage;
use crate::protocol::{ExecutorToMiner, GenericError, MinerToValidator, answer};
use crate::transport::Utf8Bytes;

/// A process that has ended may still have texts on its way to us on its connection; this is for a busy machine.
pub(super) const FINAL_MESSAGES: Duration = Duration::from_secs(2);

/// What a connection is told in whose place its executor has another one.
const OVERTAKEN: &str = "the executor has connected again";

impl Router {
    /// An executor dials in with a token: the first time, or again after it lost its connection, which we may not have
    /// noticed yet. So the connection that was accepted last is the executor's, the only one, whichever is open first;
    /// the older one is ended, but what the executor had sent on it still counts. One that has reported the end of its
    /// job may come to see that it did.
    pub(super) fn executor_opened(&mut self, id: SessionId, token: String, address: Option<String>, now: Now) {
        let key = self.tokens.get(&token).cloned();
        let job = key.as_ref().and_then(|key| self.jobs.get_mut(key));
        let wanted = |job: &&mut MinerJob| !job.is_over() || job.executor.as_ref().is_some_and(|e| e.reported);
        let Some(MinerJob { executor: Some(executor), phase, .. }) = job.filter(wanted) else {
            self.error("executor-without-job", format!("{id}: an executor is turned away: no job waits for its token"));
            self.complain(id, format!("No job waiting for token {token}"));
            self.out.push(Action::Close(id, CLOSE_NORMAL, ""));
            return;
        };
        if let Some(newer) = executor.session.filter(|current| *current > id) {
            log::info!("{id}: the executor has connected again as {newer} meanwhile, so {id} is ended");
            self.executors.insert(id, Connected { token, replaced: true });
            self.out.push(Action::Close(id, CLOSE_NORMAL, OVERTAKEN));
            return;
        }
        if let Some(older) = executor.session.replace(id) {
            log::info!("{id}: the executor of {older} has connected again, so {older} is ended");
            if let Some(connected) = self.executors.get_mut(&older) {
                connected.replaced = true;
            }
            self.out.push(Action::Close(older, CLOSE_NORMAL, OVERTAKEN));
        }
        // Nobody but the executor was told the token.
        self.out.push(Action::Known(id));
        executor.back_by = None;
        if let Some(since) = executor.gone_since.take() {
            phase.postpone(now.mono.saturating_duration_since(since));
        }
        executor.address = self.streaming_address.clone().or(address);
        self.executors.insert(id, Connected { token, replaced: false });
        if let Some(key) = key {
            self.note(&key, TraceEvent::ExecutorConnected, "");
            self.push_work(&key);
        }
    }

    /// Sends a connected executor what it does not have yet, as far as we can know.
    pub(super) fn push_work(&mut self, key: &JobKey) {
        let Some(job) = self.jobs.get(key) else { return };
        let Some(executor) = &job.executor else { return };
        let Some(session) = executor.session else { return };
        let (event, text) = match &job.phase {
            Phase::Starting => (TraceEvent::InitialSent, job.initial_for(executor.address.as_deref())),
            Phase::Running(Stage::Download, _) => match &job.request {
                Some(request) => (TraceEvent::RequestSent, request.clone()),
                None => return,
            },
            _ => return,
        };
        self.note(key, event, "");
        self.out.push(Action::Send(session, text));
    }

    /// An executor says something.
    pub(super) fn executor_message(&mut self, id: SessionId, frame: ExecutorFrame, now: Now) {
        // Nothing is owed to a connection that was turned away or whose executor has ended.
        let connected = self.executors.get(&id);
        let Some(key) = connected.and_then(|connected| self.tokens.get(&connected.token)).cloned() else { return };
        if let Err(complaint) = self.executor_says(&key, frame, now) {
            let details = complaint.details.as_deref().unwrap_or_default();
            self.error("executor-message", format!("job {}: its executor is answered: {details}", key.uuid));
            self.send(id, complaint);
        }
    }

    /// What an executor could not say itself, as if it had.
    pub(super) fn spooled(&mut self, token: &str, frames: Vec<ExecutorFrame>, now: Now) {
        let Some(key) = self.tokens.get(token).cloned() else {
            let what = "a result is dropped: its job is not known any more";
            return self.error("spool", what.to_owned());
        };
        log::info!("job {}: {} messages of its executor were in the spool", key.uuid, frames.len());
        for frame in frames {
            if let Err(complaint) = self.executor_says(&key, frame, now) {
                let details = complaint.details.unwrap_or_default();
                self.error("spooled-message", format!("job {}: spooled: {details}", key.uuid));
            }
        }
    }

    /// A message about a job; an error is the answer to it.
    fn executor_says(&mut self, key: &JobKey, frame: ExecutorFrame, now: Now) -> Result<(), GenericError> {
        let key = key.clone();
        let message = frame.message.map_err(|error| answer::by_miner(&error))?;
        if let Some(uuid) = job_uuid(&message)
            && uuid != key.uuid
        {
            let details = format!("This executor is for job {}, not {uuid}", key.uuid);
            return Err(GenericError { details: Some(details) });
        }
        if self.jobs.get(&key).is_none_or(MinerJob::is_over) {
            log::debug!("job {}: is over, its executor still speaks", key.uuid);
            return Ok(());
        }
        use ExecutorToMiner as M;
        if let M::V0HordeFailedRequest(failed) = &message
            && failed.context.as_ref().and_then(|context| context.get(FAULT)).is_some_and(|f| f == FAULT_OF_OPERATOR)
        {
            let host = self.jobs.get(&key).map(|job| job.placed.host);
            host.into_iter().for_each(|host| self.machine_failed(host, &key, &failed.message, now));
        }
        let (outcome, reason) = (outcome(&message), reason(&message));
        let Some(job) = self.jobs.get_mut(&key) else { return Ok(()) };
        match message {
            M::GenericError(error) => {
                let details = error.details.unwrap_or_default();
                self.error("executor-report", format!("job {}: its executor reports: {details}", key.uuid));
            }
            M::V0ExecutorReadyRequest(_) if matches!(job.phase, Phase::Starting) => {
                job.ready(now.mono + self.limits.request_time);
                if let Some(executor) = &job.executor {
                    self.pool.ready(executor.slot);
                }
                self.notify_text(&key, News::ExecutorReady, frame.relay);
                self.begin_running(&key, now);
            }
            M::V0VolumesReadyRequest(_) => {
                self.host_worked(&key);
                self.stage_over(&key, Stage::Download, News::VolumesReady, frame.relay);
            }
            M::V0StreamingJobReadyRequest(mut ready) => {
                if let Some(address) = job.executor.as_ref().and_then(|e| e.address.clone()) {
                    ready.ip = Some(address);
                }
                ready.sign(&self.key);
                let text = MinerToValidator::from(ready).encode().into();
                self.stage_over(&key, Stage::StreamingStart, News::StreamingReady, text);
            }
            M::V0ExecutionDoneRequest(_) => self.stage_over(&key, Stage::Execution, News::ExecutionDone, frame.relay),
            M::V0MachineSpecsRequest(_) => self.notify_text(&key, News::Specs, frame.relay),
            M::V0ExecutorReadyRequest(_) => log::debug!("job {}: its executor is ready once more", key.uuid),
            M::V0JobFinishedRequest(_)
            | M::V0JobFailedRequest(_)
            | M::V0HordeFailedRequest(_)
            | M::V0ExecutorFailedRequest(_)
            | M::V0StreamingJobNotReadyRequest(_) => {
                log::info!("job {}: over", key.uuid);
                self.out.push(Action::Ended(key.clone(), outcome, reason));
                if let Some(executor) = &mut job.executor {
                    executor.reported = true;
                }
                self.notify_text(&key, News::End, frame.relay);
                self.over(&key, now, self.limits.exit_time);
            }
        }
        Ok(())
    }

    fn stage_over(&mut self, key: &JobKey, stage: Stage, news: News, text: Utf8Bytes) {
        if let Some(job) = self.jobs.get_mut(key) {
            job.stage_over(stage);
        }
        self.notify_text(key, news, text);
    }

    /// With the executor ready and the request there, the job runs.
    pub(super) fn begin_running(&mut self, key: &JobKey, now: Now) {
        let limits = self.limits;
        let Some(job) = self.jobs.get_mut(key) else { return };
        if matches!(job.phase, Phase::Ready(_)) && job.request.is_some() {
            job.run(limits.timing(&job.initial), now.mono);
            self.push_work(key);
        }
    }

    /// An executor's connection has ended; it may come back, unless the executor itself has ended.
    pub(super) fn executor_gone(&mut self, token: &str, now: Now) {
        let Some(key) = self.tokens.get(token).cloned() else { return };
        let job = self.jobs.get_mut(&key);
        let Some(MinerJob { executor: Some(executor), phase, .. }) = job else {
            if let Some(MinerJob { phase: Phase::FinalMessages(_, how), .. }) = self.jobs.get(&key) {
                let how = how.clone();
                let reason = self.jobs[&key].loss();
                self.fail(&key, reason, how, now);
            }
            return;
        };
        executor.session = None;
        if !matches!(phase, Phase::Over(_)) {
            log::info!("job {}: its executor has disconnected", key.uuid);
            executor.back_by = Some(now.mono + self.limits.reconnect_grace);
            executor.gone_since = Some(now.mono);
            self.pool.postpone(executor.slot, self.limits.reconnect_grace);
            self.note(&key, TraceEvent::ExecutorDisconnected, "");
        }
    }

    /// An executor has ended, or was never started; what is left of it is being removed.
    pub(super) fn executor_ended(&mut self, token: String, end: ExecutorEnd, now: Now) {
        let Some(key) = self.tokens.get(&token).cloned() else { return };
        let Some(job) = self.jobs.get_mut(&key) else { return };
        let Some(executor) = job.executor.take() else { return };
        let of_machine = matches!(end, Err(ExecutorError::Start { .. } | ExecutorError::Folder(_)));
        let (how, reason) = match end {
            Ok(exit) => (format!("the executor ended with {exit}"), "exited"),
            Err(error) => (error.to_string(), error.reason()),
        };
        log::debug!("job {}: {how}", key.uuid);
        let class = executor.slot.class();
        self.out.push(Action::Note(key.clone(), Some(class), TraceEvent::ExecutorEnded, how.clone()));
        job.unclean = Some(executor.slot);
        self.pool.ending(executor.slot, now.mono + self.limits.end_time);
        let over = job.is_over();
        let (host, starts) = (job.placed.host, !over && !job.was_ready());
        // One of an earlier process has ended while nobody looked, which shows nothing.
        let failed = starts && executor.has_never_connected() && job.placed.epoch == self.owner.epoch;
        let failed = failed.then(|| how.clone());
        if starts {
            self.out.push(Action::Count(Counted::StartFailed(reason)));
        }
        if !over && executor.session.is_some() {
            // Its last messages may still be on their way; the end of its connection decides, or this.
            job.phase = Phase::FinalMessages(now.mono + FINAL_MESSAGES, how);
        } else if !over {
            let reason = job.loss();
            self.fail(&key, reason, how, now);
        }
        match failed {
            Some(how) if of_machine => self.machine_failed(host, &key, &how, now),
            Some(how) => self.host_failed(host, &how, now),
            None => {}
        }
    }
}

impl Router {
    /// Something of an executor that has ended does not go away: its slot is nobody's until it has gone.
    pub(super) fn executor_left(&mut self, token: &str, left: Leftover) {
        let job = self.tokens.get(token).and_then(|key| self.jobs.get(key));
        if let Some((slot, uuid)) = job.and_then(|job| Some((job.unclean?, &job.initial.job_uuid))) {
            let reason = format!("job {uuid}: {}", left.text);
            self.quarantine(slot, Quarantine { what: left.kind.as_str(), reason });
        }
    }

    /// The lease of an executor has been dropped; if nothing of the executor is left, nothing is remembered of it.
    pub(super) fn slot_returned(&mut self, token: String, clean: bool, now: Now) {
        if clean && let Some(key) = self.tokens.get(&token).cloned() {
            if let Some(job) = self.jobs.get_mut(&key) {
                job.unclean = None;
            }
            self.forget_if_done(&key, Some(now.mono));
        }
        self.out.push(Action::Reap(token));
    }

    /// Puts the slots in quarantine whose executors do not end.
    pub(super) fn quarantine_overdue(&mut self, now: Now) {
        for slot in self.pool.overdue(now.mono) {
            let of_slot = |job: &&MinerJob| job.unclean == Some(slot);
            let reason = match self.jobs.values().find(of_slot) {
                Some(job) => format!("job {}: what its executor left is still being removed", job.initial.job_uuid),
                None => "the executor did not end when it was stopped".to_owned(),
            };
            self.quarantine(slot, Quarantine { what: "executor", reason });
        }
    }

    fn quarantine(&mut self, slot: SlotId, why: Quarantine) {
        let what = format!("one of class {} on host {} is in quarantine: {}", slot.class(), slot.host(), why.reason);
        self.trouble(ErrorClass::Fatal, "slots", what);
        self.out.push(Action::Count(Counted::Quarantined(why.what)));
        self.pool.quarantine(slot, why);
    }
}

/// How a job has ended whose end this message is.
fn outcome(message: &ExecutorToMiner) -> &'static str {
    match message {
        ExecutorToMiner::V0JobFinishedRequest(_) => "completed",
        ExecutorToMiner::V0JobFailedRequest(_) => "failed",
        _ => "horde_failed",
    }
}

/// Why a job has not ended well.
fn reason(message: &ExecutorToMiner) -> Option<&'static str> {
    match message {
        ExecutorToMiner::V0JobFailedRequest(failed) => Some(failed.reason.as_str()),
        ExecutorToMiner::V0HordeFailedRequest(failed) => Some(failed.reason.as_str()),
        _ => None,
    }
}

/// The job that a message is about.
fn job_uuid(message: &ExecutorToMiner) -> Option<&str> {
    use ExecutorToMiner as M;
    Some(match message {
        M::GenericError(_) => return None,
        M::V0ExecutorFailedRequest(m) => &m.job_uuid,
        M::V0StreamingJobNotReadyRequest(m) => &m.job_uuid,
        M::V0ExecutorReadyRequest(m) => &m.job_uuid,
        M::V0StreamingJobReadyRequest(m) => &m.job_uuid,
        M::V0VolumesReadyRequest(m) => &m.job_uuid,
        M::V0ExecutionDoneRequest(m) => &m.job_uuid,
        M::V0JobFailedRequest(m) => &m.job_uuid,
        M::V0JobFinishedRequest(m) => &m.job_uuid,
        M::V0MachineSpecsRequest(m) => &m.job_uuid,
        M::V0HordeFailedRequest(m) => &m.job_uuid,
    })
}
