//! What validators do: connect, authenticate, speak, disconnect.

use std::collections::VecDeque;
use std::time::Duration;

use super::io::{Action, CLOSE_NORMAL, CLOSE_POLICY, TraceEvent, ValidatorFrame};
use super::job::{JobKey, News, Phase};
use super::state::{Router, Validator, ValidatorState};
use crate::base::ids::SessionId;
use crate::base::limits::{JOB_UUID_BYTES, MINER_LINK_MESSAGE_BYTES, PRE_AUTH_MESSAGES};
use crate::base::now::Now;
use crate::base::text::truncated;
use crate::protocol::{
    Manifest, ReceiptPayload, V0ExecutorManifestRequest, V0JobRequest, V0MainHotkeyMessage, ValidatorAuthForMiner,
    ValidatorToMiner, answer,
};
use crate::transport::Utf8Bytes;

/// Bytes that may wait for a validator's authentication: one message of the largest size.
const PRE_AUTH_BYTES: usize = MINER_LINK_MESSAGE_BYTES;

impl Router {
    pub(super) fn validator_opened(&mut self, id: SessionId, hotkey: String, now: Now) {
        let until = now.mono + self.limits.auth_time;
        let state = ValidatorState::Unknown { until, queue: VecDeque::new(), bytes: 0 };
        let known = self.allowed.contains(&hotkey);
        self.validators.insert(id, Validator { hotkey: hotkey.clone(), state, clock_skew: 0 });
        if !known {
            self.turn_away(id, &hotkey);
        }
    }

    /// Ends the connection of a validator that we do not know, or do not know any more.
    pub(super) fn turn_away(&mut self, id: SessionId, hotkey: &str) {
        let Some(validator) = self.validators.get_mut(&id) else { return };
        if matches!(validator.state, ValidatorState::Refused) {
            return;
        }
        validator.state = ValidatorState::Refused;
        self.complain(id, format!("Unknown validator: {hotkey}"));
        self.out.push(Action::Close(id, CLOSE_NORMAL, ""));
        self.validator_gone(id);
    }

    /// A validator says something.
    pub(super) fn validator_message(&mut self, id: SessionId, frame: ValidatorFrame, now: Now) {
        let Some(validator) = self.validators.get_mut(&id) else { return };
        let hotkey = validator.hotkey.clone();
        match (&frame.message, &mut validator.state) {
            (_, ValidatorState::Refused) => {}
            (Err(error), _) => {
                self.error("validator-message", format!("validator {hotkey}: bad frame: {error}"));
                let complaint = answer::by_miner(error);
                self.send(id, complaint);
            }
            (Ok(ValidatorToMiner::ValidatorAuthForMiner(auth)), _) => match self.check_auth(&hotkey, auth, now) {
                Ok(skew) => self.authenticated(id, hotkey, skew, now),
                Err(why) => self.refuse(id, CLOSE_NORMAL, &why),
            },
            (Ok(_), ValidatorState::Unknown { queue, bytes, .. }) => {
                *bytes += frame.bytes;
                if queue.len() >= PRE_AUTH_MESSAGES || *bytes > PRE_AUTH_BYTES {
                    let why =
                        format!("more than {PRE_AUTH_MESSAGES} messages or {PRE_AUTH_BYTES} bytes came before it");
                    return self.refuse(id, CLOSE_POLICY, &why);
                }
                queue.push_back(frame);
            }
            (Ok(_), ValidatorState::Authenticated) => self.authenticated_message(id, hotkey, frame, now),
        }
    }

    /// Gives the seconds by which the validator's clock is ahead of ours. The texts are those of the Python miner, but
    /// for the future, which it does not mind.
    fn check_auth(&mut self, hotkey: &str, auth: &ValidatorAuthForMiner, now: Now) -> Result<i64, String> {
        let age = now.unix_seconds().saturating_sub(auth.timestamp.saturating_i64());
        let limit = i64::try_from(self.limits.auth_age.as_secs()).unwrap_or(i64::MAX);
        if age > limit {
            // The words of the Python miner come first.
            return Err(format!("msg too old ({age} s behind this miner's clock, at most {limit} s)"));
        }
        if age < -limit {
            let ahead = age.unsigned_abs();
            return Err(format!("msg from the future ({ahead} s ahead of this miner's clock, at most {limit} s)"));
        }
        if auth.validator_hotkey != hotkey {
            return Err(format!("wrong validator hotkey ({hotkey}!={})", auth.validator_hotkey));
        }
        if auth.miner_hotkey != self.hotkey {
            return Err(format!("wrong miner hotkey ({}!={})", self.hotkey, auth.miner_hotkey));
        }
        auth.verify().map(|_| -age).map_err(|error| {
            self.error("validator-signature", format!("validator {hotkey}: {error}"));
            "Signature mismatches".to_owned()
        })
    }

    fn refuse(&mut self, id: SessionId, code: u16, why: &str) {
        let Some(validator) = self.validators.get_mut(&id) else { return };
        validator.state = ValidatorState::Refused;
        let details = format!("Validator {} not authenticated due to: {why}", validator.hotkey);
        self.error("validator-authentication", format!("{id}: {details}"));
        self.complain(id, details);
        self.out.push(Action::Close(id, code, ""));
        // It may have been authenticated before.
        self.validator_gone(id);
    }

    fn authenticated(&mut self, id: SessionId, hotkey: String, clock_skew: i64, now: Now) {
        let Some(validator) = self.validators.get_mut(&id) else { return };
        validator.clock_skew = clock_skew;
        let before = std::mem::replace(&mut validator.state, ValidatorState::Authenticated);
        self.out.push(Action::Known(id));
        // Nothing is offered that cannot be run.
        let counts = self.offered(now.mono).into_iter().map(|(class, count)| (class, (count as i64).into()));
        let manifest: Manifest = counts.collect();
        self.send(id, V0ExecutorManifestRequest { manifest });
        if let ValidatorState::Unknown { queue, .. } = before {
            self.offer_news(id, &hotkey);
            for frame in queue {
                self.authenticated_message(id, hotkey.clone(), frame, now);
            }
        }
    }

    /// A validator is back: it is notified of what it missed of jobs whose connection was lost.
    fn offer_news(&mut self, id: SessionId, hotkey: &str) {
        let keys: Vec<_> = self.jobs.keys().filter(|key| key.validator == hotkey).cloned().collect();
        for key in keys {
            // A connection that has spoken of the job is the one that is notified; if it is dead, its end will be
            // noticed.
            if !self.jobs[&key].claimed {
                self.join_audience(id, &key);
            }
        }
    }

    fn join_audience(&mut self, id: SessionId, key: &JobKey) {
        let Some(job) = self.jobs.get_mut(key) else { return };
        if job.audience.contains(&id) {
            return;
        }
        job.audience.push(id);
        let news = job.kept();
        if !news.is_empty() {
            self.note(key, TraceEvent::SentAgain, format!("{} to {id}", news.len()));
        }
        self.out.extend(news.into_iter().map(|text| Action::Send(id, text)));
    }

    /// A connection has ended: what it did not confirm is repeated to a younger one of the same validator that speaks
    /// of no job yet, or to the next that comes.
    pub(super) fn validator_gone(&mut self, id: SessionId) {
        self.stop_waiting(id);
        let lost: Vec<_> =
            self.jobs.iter().filter(|(_, job)| job.audience.contains(&id)).map(|(k, _)| k.clone()).collect();
        for key in lost {
            let Some(job) = self.jobs.get_mut(&key) else { continue };
            job.audience.retain(|session| *session != id);
            if !std::mem::replace(&mut job.claimed, false) {
                continue;
            }
            let of_another =
                |session: &SessionId| self.jobs.values().any(|j| j.claimed && j.audience.contains(session));
            let successors = self.validators.iter().filter(|(successor, validator)| {
                **successor > id
                    && validator.hotkey == key.validator
                    && validator.is_authenticated()
                    && !of_another(successor)
            });
            let successors: Vec<_> = successors.map(|(successor, _)| *successor).collect();
            for successor in successors {
                self.join_audience(successor, &key);
            }
        }
    }

    pub(super) fn expire_validators(&mut self, now: Now) {
        let late = self.validators.iter().filter(|(_, v)| v.auth_by().is_some_and(|until| until <= now.mono));
        let late: Vec<_> = late.map(|(id, _)| *id).collect();
        for id in late {
            let why = format!("it did not come within {} s", self.limits.auth_time.as_secs_f64());
            self.refuse(id, CLOSE_POLICY, &why);
        }
    }

    fn authenticated_message(&mut self, id: SessionId, validator: String, frame: ValidatorFrame, now: Now) {
        use ValidatorToMiner as M;
        let ValidatorFrame { message, signed, relay, .. } = frame;
        // Bad frames and authentications were dealt with when they came.
        let Ok(message) = message else { return };
        match message {
            M::ValidatorAuthForMiner(_) => {}
            M::GenericError(error) => {
                let details = error.details.unwrap_or_default();
                self.error("validator-report", format!("validator {validator} reports: {details}"));
            }
            M::V0MainHotkeyMessage(_) => {
                let main_hotkey = Some(self.hotkey.clone());
                self.send(id, V0MainHotkeyMessage { main_hotkey });
            }
            M::V0InitialJobRequest(initial) => self.job_asked(id, validator, (initial, relay), signed, now),
            M::V0JobRequest(request) => self.job_requested(id, validator, request, (relay, signed), now),
            M::V0JobAcceptedReceiptRequest(receipt) => {
                let valid = receipt.payload.verify(&validator, &receipt.signature).map(drop).map_err(|e| e.to_string());
                self.receipt(id, validator, (receipt.payload.into(), receipt.signature), valid, News::Accepted, now);
            }
            M::V0JobFinishedReceiptRequest(receipt) => {
                let valid = receipt.payload.verify(&validator, &receipt.signature).map(drop).map_err(|e| e.to_string());
                self.receipt(id, validator, (receipt.payload.into(), receipt.signature), valid, News::End, now);
            }
        }
    }

    /// The second half of a job: passed on once its executor is ready.
    fn job_requested(
        &mut self,
        id: SessionId,
        validator: String,
        request: V0JobRequest,
        (relay, signed): (Utf8Bytes, Option<bool>),
        now: Now,
    ) {
        let key = JobKey { validator, uuid: request.job_uuid };
        if !self.jobs.contains_key(&key) {
            let uuid = truncated(&key.uuid, JOB_UUID_BYTES);
            return self.complain(id, format!("Received JobRequest for unknown job_uuid: {uuid}"));
        }
        if signed == Some(false) {
            let why = format!("validator_signature is not by {} over this message", key.validator);
            return self.complain(id, format!("Refused JobRequest for job {}: {why}", key.uuid));
        }
        self.claim(&key, id);
        let Some(job) = self.jobs.get_mut(&key) else { return };
        job.confirmed(News::ExecutorReady);
        // A repeat after a reconnect changes nothing: the first request is the job.
        let is_first = matches!(job.phase, Phase::Starting | Phase::Ready(_)) && job.request.is_none();
        self.note(&key, TraceEvent::Requested, if is_first { "" } else { "again" });
        if is_first && let Some(job) = self.jobs.get_mut(&key) {
            job.request = Some(relay);
            self.begin_running(&key, now);
        }
    }

    /// A receipt for a job that was accepted or finished: checked, then countersigned and stored.
    fn receipt(
        &mut self,
        id: SessionId,
        validator: String,
        (payload, signature): (ReceiptPayload, String),
        valid: Result<(), String>,
        confirms: News,
        now: Now,
    ) {
        let checked = self.check_hotkeys(&validator, payload.validator_hotkey(), payload.miner_hotkey()).and(valid);
        let key = JobKey { uuid: payload.job_uuid().to_owned(), validator };
        if let Err(why) = checked {
            self.error("receipt", format!("job {}: receipt refused: {why}", key.uuid));
            return self.complain(id, format!("Invalid receipt for job {}: {why}", key.uuid));
        }
        let number = self.store_order();
        self.out.push(Action::Store { job: key.clone(), number, row: None, payload, validator_signature: signature });
        let Some(job) = self.jobs.get_mut(&key) else { return };
        // A finished-receipt before the end says that the validator has given the job up.
        job.answered |= confirms == News::End;
        job.confirmed(confirms);
        let is_given_up =
            job.answered && job.request.is_none() && matches!(job.phase, Phase::Starting | Phase::Ready(_));
        self.note(&key, TraceEvent::Confirmed, format!("{:?}", confirms.event()));
        self.claim(&key, id);
        if is_given_up {
            log::info!("job {}: its validator has given it up before it was to run", key.uuid);
            self.over(&key, now, Duration::ZERO);
        }
        self.forget_if_done(&key, None);
    }
}
