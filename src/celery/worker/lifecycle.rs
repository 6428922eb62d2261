//! The life of a message that is held in our name: taken on, scheduled, given to a thread, and in the end settled or
//! given back. Everything here only gives requests to the commander and never blocks.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redis::Value;

use super::builtin;
use super::core::{Core, TAKE_PART, Taken};
use super::held::{Held, Stage};
use super::outcome::{self, Op, Outcome, Returned, complete, extend};
use super::restore;
use super::run::Run;
use super::scripts::{self, ACKNOWLEDGE, BEGIN, BEGUN, RELEASE, REVOKE, SETTLE, STATE};
use super::telling::End;
use crate::base::backoff::exponential;
use crate::base::limits::CELERY_MESSAGE_BYTES;
use crate::base::lock::lock;
use crate::celery::envelope::{Envelope, MessageError, find_id};
use crate::celery::event::Event;
use crate::celery::message::TaskMessage;
use crate::celery::meta::{Exception, Meta, ResultState};
use crate::celery::moment::Moment;
use crate::ops::errors::ErrorClass;
use crate::redis::{CommanderHandle, RedisError, Repeat, Request};

/// The longest alarm that is set for a task whose time has not come; then its time is looked at again.
const FAR: Duration = Duration::from_secs(24 * 3600);

/// Pauses before a message is settled again: the first, doubled with each attempt up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The part that is down while what has ended does not reach Redis.
const SETTLE_PART: &str = "cel-settle";

/// What is sent for one message until Redis has it.
#[derive(Debug, Clone)]
enum Last {
    /// What belongs to the results, which are elsewhere; then the rest.
    Store(Vec<Op>, Rest),
    Settle(Rest),
    /// The message as it goes back, and whether to the front.
    Release(String, bool),
}

/// What is done with the acknowledgement.
#[derive(Debug, Clone, Default)]
pub(super) struct Rest {
    pub ops: Vec<Op>,
    /// Chords that have ended and whose body was called with this; where results are elsewhere, it is noted there then.
    pub ended: Vec<Op>,
}

/// Whether a message is held for this run, and not once more for another; any is held for none.
fn is_held_for(held: &Held<Taken>, tag: &str, run: Option<&Arc<Run>>) -> bool {
    let own = || held.get(tag).and_then(|entry| entry.item.run.as_ref());
    run.is_none_or(|run| own().is_some_and(|own| Arc::ptr_eq(own, run)))
}

impl Core {
    /// Decides what becomes of a message that is held in our name.
    pub(super) fn accept(self: &Arc<Self>, tag: &str, list: &str, raw: Vec<u8>) {
        if let Some(entry) = lock(&self.held).get_mut(tag) {
            if entry.stage == Stage::Settling {
                // It went back, and came again before Redis had answered that it is gone.
                entry.item.again = Some(raw);
            } else {
                // A Redis that has forgotten its last second: it is held in our name again, and its end will end it.
                let what = format_args!("message {tag} was delivered again while it is held");
                self.board.errors.report(ErrorClass::Retry, TAKE_PART, &what);
            }
            return;
        }
        let read = Envelope::read(&raw).map_err(|error| (None, error)).and_then(|envelope| {
            TaskMessage::read_in(&envelope, &self.zone)
                .map_err(|error| (envelope.task_name().map(str::to_owned), error))
        });
        let id = if read.is_err() { find_id(&raw) } else { None };
        let taken = |message| Taken {
            message,
            raw,
            list: list.to_owned(),
            since: Instant::now(),
            alarm: None,
            again: None,
            run: None,
        };
        match read {
            Ok(message) => self.accept_task(tag, taken, message),
            Err((name, error)) => {
                let noted = lock(&self.held).insert(tag, id.as_deref().unwrap_or(""), Stage::Waiting, taken(None));
                if noted {
                    self.refuse(tag, id.as_deref(), name.as_deref(), &error);
                }
            }
        }
    }

    /// What has no delivery tag, or is too large to be held, was put aside when it was taken. Its producer gets to know
    /// why, if an id is found in it.
    pub(super) fn answer_aside(self: &Arc<Self>, list: &str, raw: &[u8], bytes: usize) {
        self.totals.aside.inc();
        let error = match bytes > CELERY_MESSAGE_BYTES {
            true => MessageError::TooLarge { what: "the message", limit: CELERY_MESSAGE_BYTES },
            false => match Envelope::read(raw) {
                Ok(_) => MessageError::NotAMessage("it has no delivery tag".to_owned()),
                Err(error) => error,
            },
        };
        let (id, beginning) = (find_id(raw), String::from_utf8_lossy(&raw[..raw.len().min(100)]).into_owned());
        let what = format_args!("what came from {list:?} is put aside: {error}; id {id:?}: {beginning:?}");
        // Each is told apart, because its producer may look for it here.
        self.board.errors.report_of(error.class(), TAKE_PART, id.as_ref().unwrap_or(&beginning), &what);
        let Some(id) = id else { return };
        let op = self.setting((list, ""), raw, |setting| outcome::unreadable(&id, &error.to_string(), setting));
        let board = self.board.clone();
        let sent = self.stored().submit(self.settlement("", &[op]), move |answer| {
            if let Err(error) = answer {
                board.errors.report(error.class(), SETTLE_PART, &error);
            }
        });
        if let Err(error) = sent {
            self.board.errors.report(error.class(), SETTLE_PART, &error);
        }
    }

    /// Who stores results.
    pub(super) fn stored(&self) -> &CommanderHandle {
        self.results.as_ref().unwrap_or(&self.commands)
    }

    /// What these operations are in Redis. No message is held under an empty tag: then only what belongs to the results
    /// is done.
    fn settlement(&self, tag: &str, ops: &[Op]) -> Request {
        self.settlement_for(&self.keys.held, None, tag, ops)
    }

    /// The same for a message that is held under another key; only if there is no key `alive`, when that is given.
    pub(super) fn settlement_for(&self, held: &str, alive: Option<&str>, tag: &str, ops: &[Op]) -> Request {
        let mut args = vec![Cow::Borrowed(tag), CELERY_MESSAGE_BYTES.to_string().into()];
        ops.iter().for_each(|op| self.write_op(tag, op, &mut args));
        let mut keys = vec![held, &self.keys.unacked, &self.keys.unacked_index];
        keys.extend(alive);
        Request::new(Repeat::Idempotent, self.patience()).script(&SETTLE, &keys[..], &args[..])
    }

    fn write_op<'a>(&self, tag: &str, op: &'a Op, args: &mut Vec<Cow<'a, str>>) {
        let expires = || self.config.expires_seconds().to_string().into();
        let mut four = |what: &'static str, key: Cow<'a, str>, value: Cow<'a, str>, number: Cow<'a, str>| {
            args.extend([what.into(), key, value, number]);
        };
        match op {
            Op::Result(key, value) => four("result", key.into(), value.into(), expires()),
            Op::OwnResult(key, value) => {
                // Whether the message is still ours is not known where the results are.
                let what = if tag.is_empty() { "weak-result" } else { "own-result" };
                four(what, key.into(), value.into(), expires());
            }
            Op::Push(list, message, keep) => four("push", list.into(), message.into(), keep.to_string().into()),
            Op::Size(key, size) => four("size", key.into(), size.to_string().into(), expires()),
            Op::Group(key, text) => four("group", key.into(), text.into(), expires()),
            Op::Part(part) => {
                let is_ordered = self.config.app.result_backend_transport_options.result_chord_ordered;
                let ordered = if is_ordered { "ordered" } else { "as they come" };
                four("part", self.names.group(&part.group).into(), (&part.entry).into(), expires());
                args.extend([part.member().into(), part.score().into(), ordered.into(), part.token().into()]);
            }
            Op::Claimed(claim) => {
                let end = if claim.failed { "failed" } else { "done" };
                four("claimed", (&claim.key).into(), (&claim.token).into(), end.into());
                claim.ops.iter().for_each(|op| self.write_op(tag, op, args));
                args.extend(["end", "", "", ""].map(Cow::Borrowed));
            }
        }
    }

    fn refuse(self: &Arc<Self>, tag: &str, id: Option<&str>, name: Option<&str>, error: &MessageError) {
        self.board.errors.report(error.class(), TAKE_PART, error);
        self.put_aside(tag, id, name.unwrap_or(""), &error.to_string());
    }

    fn accept_task(
        self: &Arc<Self>,
        tag: &str,
        taken: impl FnOnce(Option<Arc<TaskMessage>>) -> Taken,
        mut message: TaskMessage,
    ) {
        let now = Self::now();
        let message = {
            let mut held = lock(&self.held);
            // A Redis that came back without its last second delivers what was settled already.
            message.redelivered |= held.was_settled(tag);
            message.ignore_result.get_or_insert(self.policies.of(&message.task).ignores_result());
            let message = Arc::new(message);
            let stage = if message.eta.is_some_and(|eta| eta > now) { Stage::Scheduled } else { Stage::Waiting };
            if !held.insert(tag, &message.id, stage, taken(Some(message.clone()))) {
                return;
            }
            message
        };
        log::debug!("task {}[{}] received", message.task, message.id);
        if message.expires.is_some_and(|expires| expires < now) {
            self.conclude(tag, None, Outcome::Revoked("expired"));
        } else if self.is_revoked(&message) {
            self.conclude(tag, None, Outcome::Revoked("revoked"));
        } else if !self.policies.has(&message.task) && !builtin::is_known(&message.task) {
            self.conclude(tag, None, Outcome::Unknown);
        } else {
            self.tell(&message.task, || Event::received(&message));
            match message.eta.filter(|eta| *eta > now) {
                Some(eta) => self.schedule(tag, eta, now),
                None => self.queue_run(tag, &message),
            }
        }
    }

    fn schedule(self: &Arc<Self>, tag: &str, eta: Moment, now: Moment) {
        let when = Instant::now() + eta.since(now).min(FAR);
        let due = tag.to_owned();
        let alarm = self.at(when, move |core| core.come_due(&due));
        let mut held = lock(&self.held);
        if let Some(entry) = held.get_mut(tag)
            && entry.stage == Stage::Scheduled
        {
            let old = entry.item.alarm.replace(alarm);
            drop(held);
            drop(old);
        }
    }

    /// The time of a task has come, or an alarm was too short.
    fn come_due(self: &Arc<Self>, tag: &str) {
        let now = Self::now();
        let message = {
            let mut held = lock(&self.held);
            let Some(message) = held.get(tag).and_then(|entry| entry.item.message.clone()) else { return };
            if message.eta.is_none_or(|eta| eta <= now) && !held.advance(tag, Stage::Scheduled, Stage::Waiting) {
                return;
            }
            message
        };
        match message.eta.filter(|eta| *eta > now) {
            Some(eta) => self.schedule(tag, eta, now),
            None if message.expires.is_some_and(|expires| expires < now) => {
                self.conclude(tag, None, Outcome::Revoked("expired"));
            }
            None => self.queue_run(tag, &message),
        }
    }

    /// Gives a task to the threads, or lets it wait for its turn if the rate of its kind is limited.
    fn queue_run(self: &Arc<Self>, tag: &str, message: &Arc<TaskMessage>) {
        let may_begin = lock(&self.limits).offer(&message.task, tag, Instant::now());
        match may_begin {
            true => self.begin_run(tag, message),
            false => self.await_turn(&message.task),
        }
    }

    pub(super) fn begin_run(self: &Arc<Self>, tag: &str, message: &Arc<TaskMessage>) {
        let limits = lock(&self.limits).time_limits(message);
        let run = Run::new(tag, message.clone(), limits);
        if !self.queue.push(run) {
            // The worker stops.
            self.give_back(tag, None, true);
        }
    }

    /// Stores a state on the way, as long as the message is ours.
    pub(super) fn store_state(
        self: &Arc<Self>,
        run: &Run,
        mut meta: Meta,
        then: impl FnOnce(&Arc<Self>) + Send + 'static,
    ) {
        complete(&run.message, &mut meta);
        if self.config.app.result_extended {
            extend(&run.message, &mut meta, &self.config.hostname);
        }
        let key = self.names.meta(&run.message.id);
        let request = match self.results {
            Some(_) => self.settlement("", &[Op::OwnResult(key, meta.write())]),
            None => {
                let args = (run.tag.as_str(), meta.write(), self.config.expires_seconds());
                let keys = [self.keys.held.as_str(), &key];
                Request::new(Repeat::Idempotent, self.patience()).script(&STATE, &keys, &args)
            }
        };
        let (weak, id) = (Arc::downgrade(self), run.message.id.clone());
        let sent = self.stored().submit(request, move |answer| {
            if let Some(core) = weak.upgrade() {
                if let Err(error) = answer {
                    core.not_stored(&id, &error);
                }
                then(&core);
            }
        });
        if let Err(error) = sent {
            self.not_stored(&run.message.id, &error);
        }
    }

    fn not_stored(&self, id: &str, error: &RedisError) {
        self.board.errors.report(error.class(), "cel-store", &format_args!("the state of task {id}: {error}"));
    }

    /// A task that did not do what it should.
    pub(super) fn task_trouble(&self, task: &TaskMessage, what: &dyn std::fmt::Display) {
        let (name, id) = (&task.task, &task.id);
        self.board.errors.report_of(ErrorClass::Rejected, "task", id, &format_args!("task {name}[{id}] {what}"));
    }

    /// Settles a message with this outcome, unless somebody has settled it before; with a run, only if it is held for
    /// that one.
    pub(super) fn conclude(self: &Arc<Self>, tag: &str, run: Option<&Arc<Run>>, outcome: Outcome) {
        let (message, list, raw, runtime) = {
            let mut held = lock(&self.held);
            if !is_held_for(&held, tag, run) || held.conclude(tag).is_none() {
                return;
            }
            let Some(entry) = held.get_mut(tag) else { return };
            entry.item.alarm = None;
            let Some(message) = entry.item.message.clone() else { return };
            // Only what is put aside needs the message once more.
            let is_kept = match outcome {
                Outcome::Unknown => true,
                Outcome::Failure(..) | Outcome::Retry { .. } => self.policies.of(&message.task).keeps_failed(),
                _ => false,
            };
            let raw = if is_kept { entry.item.raw.clone() } else { Vec::new() };
            let begun = entry.item.run.as_ref().and_then(|run| run.begun.get());
            let runtime = begun.map(|begun| begun.elapsed().as_secs_f64());
            (message, entry.item.list.clone(), raw, runtime)
        };
        let label = match &outcome {
            Outcome::Revoked(reason) => *reason,
            Outcome::Unknown => "unknown",
            _ => "",
        };
        let policy = self.policies.of(&message.task);
        let is_expected = matches!(&outcome, Outcome::Failure(why, _) if policy.options().expects(why));
        let end = self.task_events.load(Ordering::Relaxed).then(|| End::of(&outcome, &message.task));
        let place = (list.as_str(), message.task.as_str());
        let settlement = self.setting(place, &raw, |setting| outcome::settle(&message, outcome, setting));
        let why = settlement.complaints.join("; ");
        let event = end.and_then(|end| end.event(&message.id, &settlement.state, &why, runtime));
        for complaint in &settlement.complaints {
            self.task_trouble(&message, &format_args!("is odd: {complaint}"));
        }
        self.totals.ended(if label == "unknown" { label } else { settlement.state.as_str() });
        match settlement.state.as_str() {
            "SUCCESS" => log::debug!("task {}[{}] succeeded", message.task, message.id),
            "FAILURE" if label == "unknown" => {
                self.task_trouble(&message, &"is not known here, and is put aside");
                self.totals.aside.inc();
            }
            "FAILURE" if is_expected => {
                log::info!("task {}[{}] failed as expected: {}", message.task, message.id, settlement.why);
            }
            "FAILURE" => self.task_trouble(&message, &format_args!("failed: {}", settlement.why)),
            "REVOKED" => log::info!("task {}[{}] is {label}", message.task, message.id),
            "RETRY" => log::info!("task {}[{}] will be retried: {}", message.task, message.id, settlement.why),
            state => log::info!("task {}[{}]: {state}", message.task, message.id),
        }
        let sent = self.events_of_sent(settlement.ops.iter());
        // Behind the result, which whoever sees the event may look for; but before the next attempt is received.
        let is_before = settlement.state == ResultState::Retry;
        let (before, behind) = if is_before { (event, None) } else { (None, event) };
        let tell = |event: Option<Event>| event.into_iter().for_each(|event| self.tell(&message.task, || event));
        tell(before);
        self.send(tag.to_owned(), Arc::new(self.last(settlement.ops)), 0);
        sent.into_iter().for_each(|event| self.events.put(event));
        tell(behind);
    }

    /// Settles what is no task: it is put aside, and its producer is notified if its id is known.
    pub(super) fn put_aside(self: &Arc<Self>, tag: &str, id: Option<&str>, name: &str, reason: &str) {
        let (raw, list) = {
            let mut held = lock(&self.held);
            if held.conclude(tag).is_none() {
                return;
            }
            let Some(entry) = held.get_mut(tag) else { return };
            (std::mem::take(&mut entry.item.raw), entry.item.list.clone())
        };
        let shown = id.unwrap_or("");
        let what = format_args!("message {tag} of {list:?} (task {name:?}, id {shown:?}) is put aside: {reason}");
        self.board.errors.report_of(ErrorClass::Rejected, TAKE_PART, id.unwrap_or(tag), &what);
        self.totals.aside.inc();
        let ops = self.setting((&list, name), &raw, |setting| {
            let sent = id.map(|id| outcome::unreadable(id, reason, setting));
            let aside = outcome::aside(id.unwrap_or(""), name, reason, setting.raw, setting);
            sent.into_iter().chain([aside]).collect()
        });
        self.send(tag.to_owned(), Arc::new(self.last(ops)), 0);
    }

    /// What is sent for these operations: where results are elsewhere, those first.
    fn last(&self, ops: Vec<Op>) -> Last {
        let (results, rest) = self.split(ops);
        if results.is_empty() { Last::Settle(rest) } else { Last::Store(results, rest) }
    }

    /// What is done where the results are, if that is elsewhere, and the rest.
    pub(super) fn split(&self, ops: Vec<Op>) -> (Vec<Op>, Rest) {
        if self.results.is_none() {
            return (Vec::new(), Rest { ops, ended: Vec::new() });
        }
        let (mut results, mut rest) = (Vec::new(), Rest::default());
        for op in ops {
            match op {
                Op::Claimed(mut claim) => {
                    let (stored, pushed): (Vec<_>, Vec<_>) =
                        std::mem::take(&mut claim.ops).into_iter().partition(Op::is_result);
                    results.extend(stored);
                    rest.ops.extend(pushed);
                    rest.ended.push(Op::Claimed(claim));
                }
                op if op.is_result() => results.push(op),
                op => rest.ops.push(op),
            }
        }
        (results, rest)
    }

    /// What is left to do of these operations where parts of chords were the last ones, and what follows from that.
    pub(super) fn continued(&self, done: &[Op], returned: Vec<(usize, Returned)>) -> Vec<Op> {
        let (ops, told) = self.setting(("", ""), b"", |setting| outcome::chord::continued(done, returned, setting));
        told.iter().for_each(|told| self.board.errors.report(ErrorClass::Rejected, SETTLE_PART, told));
        let added = outcome::chord::added(done, &ops);
        self.events_of_sent(added).into_iter().for_each(|event| self.events.put(event));
        ops
    }

    /// Goes on where parts of chords were the last ones: what follows from that is done with the acknowledgement.
    fn complete(self: &Arc<Self>, tag: String, last: &Last, returned: Vec<(usize, Returned)>) {
        let (done, rest) = match last {
            Last::Store(ops, rest) => (ops, rest.clone()),
            Last::Settle(rest) => (&rest.ops, Rest { ops: Vec::new(), ended: rest.ended.clone() }),
            Last::Release(..) => return,
        };
        let ops = [self.continued(done, returned), rest.ops].concat();
        let (results, mut more) = self.split(ops);
        more.ended.splice(0..0, rest.ended);
        let next = if results.is_empty() { Last::Settle(more) } else { Last::Store(results, more) };
        self.send(tag, Arc::new(next), 0);
    }

    /// Notes where the results are that the body of a chord was called. If that is not noted, what is known of the
    /// chord expires by itself.
    pub(super) fn end_chords(self: &Arc<Self>, ended: &[Op]) {
        let board = self.board.clone();
        let sent = self.stored().submit(self.settlement("", ended), move |answer| {
            if let Err(error) = answer {
                board.errors.report(error.class(), SETTLE_PART, &error);
            }
        });
        if let Err(error) = sent {
            self.board.errors.report(error.class(), SETTLE_PART, &error);
        }
    }

    /// Acknowledges a message before its task begins, or notes that it begins, if that is how it is set. Blocks until
    /// Redis has it. False if the task is not to begin: then it was given back, or is somebody else's.
    pub(super) fn tell_of_begin(self: &Arc<Self>, run: &Arc<Run>) -> bool {
        let (policy, keys) = (self.policies.of(&run.message.task), &self.keys);
        let request = Request::new(Repeat::Idempotent, self.patience());
        let request = match (policy.acks_late(), policy.fails_if_lost()) {
            (true, false) => return true,
            (true, true) => request.script(&BEGIN, &[keys.held.as_str()], (run.tag.as_str(), BEGUN.to_string())),
            (false, _) => {
                let keys = [keys.held.as_str(), &keys.unacked, &keys.unacked_index];
                request.script(&ACKNOWLEDGE, &keys, run.tag.as_str())
            }
        };
        match self.commands.call(request).as_deref() {
            Ok([Value::Int(1)]) => {
                run.acknowledged.store(!policy.acks_late(), Ordering::SeqCst);
                return true;
            }
            Ok(_) => {
                let what = format_args!("message {} is not ours any more; its task is not begun here", run.tag);
                self.board.errors.report(ErrorClass::Rejected, "cel-ack", &what);
            }
            Err(error) => self.board.errors.report(error.class(), "cel-ack", error),
        }
        self.give_back(&run.tag, Some(run), true);
        false
    }

    /// Gives a message back to its queue, marked as delivered before: to the front, or to the end for one that was
    /// rejected. The task of one that is acknowledged already has failed. False if it was settled already, or is not
    /// held for the run that is given.
    pub(super) fn give_back(self: &Arc<Self>, tag: &str, run: Option<&Arc<Run>>, front: bool) -> bool {
        let raw = {
            let mut held = lock(&self.held);
            if !is_held_for(&held, tag, run) {
                return false;
            }
            let own = held.get(tag).and_then(|entry| entry.item.run.clone());
            if let Some(own) = own.filter(|own| own.acknowledged.load(Ordering::SeqCst)) {
                drop(held);
                let why = "it did not end, and is not run again: it was acknowledged before it began";
                let exception = Exception::new("billiard.exceptions", "WorkerLostError", why);
                self.conclude(tag, Some(&own), Outcome::Failure(exception, None));
                return false;
            }
            if held.conclude(tag).is_none() {
                return false;
            }
            let Some(entry) = held.get_mut(tag) else { return false };
            entry.item.alarm = None;
            std::mem::take(&mut entry.item.raw)
        };
        let Some(message) = restore::marked(&raw) else {
            let what = format_args!("message {tag} cannot be given back: it is not JSON");
            self.board.errors.report(ErrorClass::Rejected, "cel-settle", &what);
            return false;
        };
        self.send(tag.to_owned(), Arc::new(Last::Release(message, front)), 0);
        true
    }

    fn send(self: &Arc<Self>, tag: String, last: Arc<Last>, attempt: u32) {
        let commands = if matches!(&*last, Last::Store(..)) { self.stored() } else { &self.commands };
        let request = match &*last {
            Last::Store(ops, _) => self.settlement("", ops),
            Last::Settle(rest) => self.settlement(&tag, &rest.ops),
            Last::Release(message, front) => {
                let list = lock(&self.held).get(&tag).map(|entry| entry.item.list.clone()).unwrap_or_default();
                let args = (tag.as_str(), message.as_str(), if *front { "first" } else { "last" });
                let keys = [self.keys.held.as_str(), &self.keys.unacked, &self.keys.unacked_index, &list];
                Request::new(Repeat::Idempotent, self.patience()).script(&RELEASE, &keys, args)
            }
        };
        let (weak, again) = (Arc::downgrade(self), (tag.clone(), last.clone()));
        let sent = commands.submit(request, move |answer| {
            if let Some(core) = weak.upgrade() {
                core.sent(again.0, &again.1, attempt, answer);
            }
        });
        if let Err(error) = sent {
            self.sent(tag, &last, attempt, Err(error));
        }
    }

    /// What has ended reaches Redis again.
    fn settles(&self) {
        if self.unsettled.load(Ordering::Relaxed) && self.unsettled.swap(false, Ordering::SeqCst) {
            self.board.health.up(SETTLE_PART);
        }
    }

    /// What has ended does not reach Redis, as when that is full: the worker is not ready, though it may still take.
    fn does_not_settle(&self, error: &RedisError) {
        self.unsettled.store(true, Ordering::SeqCst);
        let advice = error.advice().map(|advice| format!("; {advice}")).unwrap_or_default();
        self.board.health.down(SETTLE_PART, format!("{error}{advice}"));
    }

    /// Whether Redis refuses because something else is where the messages of workers are recorded.
    fn is_of_record(&self, error: &RedisError) -> bool {
        let RedisError::Server { code, message } = error else { return false };
        let keys = [&self.keys.unacked, &self.keys.unacked_index, &self.keys.held];
        code == "WRONGTYPE" && keys.iter().any(|key| message.contains(&format!("\"{key}\"")))
    }

    /// What Redis says of the end of a message.
    fn sent(self: &Arc<Self>, tag: String, last: &Arc<Last>, attempt: u32, answer: Result<Vec<Value>, RedisError>) {
        let error = match answer {
            Ok(mut replies) if matches!(replies.first(), Some(Value::Array(_))) => {
                let returned = scripts::returned(replies.swap_remove(0));
                self.complete(tag, last, returned);
                return;
            }
            Ok(_) if matches!(**last, Last::Store(..)) => {
                let Last::Store(_, rest) = &**last else { return };
                self.send(tag, Arc::new(Last::Settle(rest.clone())), 0);
                return;
            }
            Ok(replies) => {
                if let Last::Settle(Rest { ended, .. }) = &**last
                    && !ended.is_empty()
                {
                    self.end_chords(ended);
                }
                if replies.first() == Some(&Value::Int(0)) && attempt == 0 {
                    log::debug!("message {tag} was not ours any more, or an answer had been lost");
                }
                self.settles();
                let gone = lock(&self.held).remove(&tag);
                if let Last::Release(..) = **last {
                    self.given_back.fetch_add(1, Ordering::SeqCst);
                }
                if let Some((list, raw)) = gone.and_then(|entry| Some((entry.item.list, entry.item.again?))) {
                    self.accept(&tag, &list, raw);
                }
                self.room_made();
                return;
            }
            Err(error) => error,
        };
        self.board.errors.report(error.class(), SETTLE_PART, &error);
        let is_of_result = error.class() == ErrorClass::Rejected && !self.is_of_record(&error);
        if !is_of_result && !self.ending.is_set() {
            self.does_not_settle(&error);
        }
        // What is not settled stays in our name, for another worker to find.
        if self.ending.is_set() || matches!(error, RedisError::Stopped) {
            return;
        }
        let next = match &**last {
            Last::Settle(Rest { ops, .. }) | Last::Store(ops, _) if is_of_result && ops.iter().any(Op::is_result) => {
                // Redis will not have the result, so asking again is of no use: the operator finds it aside.
                let reason = format!("its result could not be stored: {error}");
                let aside = self.setting(("", ""), b"", |setting| outcome::aside(&tag, "", &reason, b"", setting));
                Arc::new(Last::Settle(Rest { ops: vec![aside], ended: Vec::new() }))
            }
            _ => last.clone(),
        };
        let again = tag.clone();
        let alarm = self.at(Instant::now() + exponential(PAUSE.0, PAUSE.1, attempt), move |core| {
            core.send(again, next, attempt.saturating_add(1));
        });
        let replaced = lock(&self.held).get_mut(&tag).map(|entry| entry.item.alarm.replace(alarm));
        drop(replaced);
    }

    /// Calls tasks off, those that wait and, if `terminate`, those that run; of others it is noted that they are not to
    /// run.
    pub(super) fn revoke(self: &Arc<Self>, ids: &[String], terminate: bool) {
        for id in ids {
            lock(&self.revoked).add(id, Instant::now());
            let held: Vec<_> = {
                let held = lock(&self.held);
                let of_task = |tag: &String| held.get(tag).map(|e| (tag.clone(), e.stage, e.item.run.clone()));
                held.tags_of(id).iter().filter_map(of_task).collect()
            };
            if held.is_empty() {
                let meta = Meta::revoked(id, "revoked", Self::now()).write();
                let args = (meta, self.config.expires_seconds());
                let keys = [self.names.meta(id)];
                let request = Request::new(Repeat::Idempotent, self.patience()).script(&REVOKE, &keys, &args);
                let place = "cel-revoke";
                let board = self.board.clone();
                let sent = self.stored().submit(request, move |answer| {
                    if let Err(error) = answer {
                        board.errors.report(error.class(), place, &error);
                    }
                });
                if let Err(error) = sent {
                    self.board.errors.report(error.class(), place, &error);
                }
            }
            self.call_off(held, terminate);
        }
    }
}
