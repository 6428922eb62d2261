//! What job workers tell their fronts: in order, kept until Redis has it.
//!
//! No thread of its own: callers append, a commander's thread gets Redis's answers, the timer tries again. One request
//! at a time is under way, with all that has come meanwhile. Each event has a number; a script refuses one that does
//! not follow the last and passes over one that is there, so that nothing is lost, doubled or overtaken by a lost
//! connection.
//!
//! Bounded by the jobs that run: each has some ten events at most, and ends only when Redis has all of them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use redis::Value;

use super::call::{Event, News, events_key, job_key};
use crate::base::backoff::exponential;
use crate::base::limits::REDIS_STREAM_MESSAGES;
use crate::base::lock::lock;
use crate::base::timer::{Alarm, TimerHandle};
use crate::ops::status::Board;
use crate::redis::messaging::wake_channel;
use crate::redis::{CommanderHandle, RedisError, Repeat, Request, Script, may};

/// The part that is down while events do not reach Redis.
const PART: &str = "job-events";

/// Events in one request.
const AT_ONCE: usize = 64;

/// Machine specs are news without weight: they are passed over when so many events wait.
const SPECS_UNTIL: usize = 4096;

/// How long Redis remembers the number of the last event: far longer than a request is repeated.
const NUMBER_SECONDS: u64 = 3600;

/// Pauses between attempts.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Appends an event unless it is there or its job is not wanted any more.
///
/// KEYS: the stream, the number of the last event, the job. ARGV: number, the one that Redis had acknowledged, payload,
/// limit, seconds, wake-up channel, a field of the job and its value, or nothing.
static APPEND: Script = Script::new(concat!(
    may!(),
    "local last = tonumber(redis.call('GET', KEYS[2]) or ARGV[2])
local number = tonumber(ARGV[1])
if number <= last then return 0 end
if number > last + 1 then return redis.error_reply('GAP ' .. number .. ' does not follow ' .. last) end
if redis.call('EXISTS', KEYS[3]) == 1 then
  if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[4]) then return redis.error_reply('FULL nobody reads the events') end
  may('SET', KEYS[2])
  may('HSET', KEYS[3])
  may('PUBLISH', ARGV[6])
  redis.call('XADD', KEYS[1], '*', 'm', ARGV[3])
  if ARGV[7] ~= '' then redis.call('HSET', KEYS[3], ARGV[7], ARGV[8]) end
  redis.call('PUBLISH', ARGV[6], '')
end
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[5])
return 1",
));

/// Events on their way; clones are the same.
#[derive(Clone)]
pub(super) struct Outbox(Arc<OutboxShared>);

struct OutboxShared {
    commands: CommanderHandle,
    timer: TimerHandle,
    board: Board,
    patience: Duration,
    /// Of the number of the last event that Redis has.
    number_key: String,
    state: Mutex<OutboxState>,
}

#[derive(Default)]
struct OutboxState {
    /// The number of the last event that Redis has acknowledged.
    acknowledged: u64,
    waiting: VecDeque<QueuedEvent>,
    in_flight: bool,
    attempt: u32,
    /// The last request failed.
    down: bool,
    alarm: Option<Alarm>,
    /// Who waits until Redis has an event; dropped then.
    watchers: Vec<(u64, Sender<()>)>,
}

struct QueuedEvent {
    front: String,
    job: String,
    /// What whoever goes on with the job is to know.
    note: (&'static str, String),
    payload: String,
}

impl Outbox {
    pub(super) fn new(commands: CommanderHandle, timer: TimerHandle, board: Board, patience: Duration) -> Self {
        let number_key = format!("phalanx.producer.{}", uuid::Uuid::new_v4());
        Self(Arc::new(OutboxShared { commands, timer, board, patience, number_key, state: Mutex::default() }))
    }

    /// Takes an event in; gives its number. Never blocks.
    pub(super) fn append(&self, front: &str, event: &Event) -> u64 {
        let note = match &event.news {
            News::Begun { worker, .. } => ("worker", worker.clone()),
            News::RunsOn { miner } => ("miner", miner.clone()),
            News::Message { .. } | News::GivenBack => ("", String::new()),
        };
        let payload = serde_json::to_string(event).expect("an event has nothing that JSON cannot say");
        let item = QueuedEvent { front: front.to_owned(), job: event.job.clone(), note, payload };
        let number = {
            let mut state = lock(&self.0.state);
            state.waiting.push_back(item);
            state.acknowledged + state.waiting.len() as u64
        };
        transmit(&self.0);
        number
    }

    /// Whether so many events wait that those of no weight should not be sent.
    pub(super) fn is_crowded(&self) -> bool {
        lock(&self.0.state).waiting.len() >= SPECS_UNTIL
    }

    /// Disconnects when Redis has the event of this number.
    pub(super) fn delivered(&self, number: u64) -> Receiver<()> {
        let (sender, receiver) = bounded(0);
        let mut state = lock(&self.0.state);
        if state.acknowledged < number {
            state.watchers.push((number, sender));
        }
        receiver
    }

    /// Events that Redis does not have.
    pub(super) fn waiting(&self) -> usize {
        lock(&self.0.state).waiting.len()
    }
}

fn transmit(inner: &Arc<OutboxShared>) {
    let mut state = lock(&inner.state);
    if state.in_flight || state.alarm.is_some() || state.waiting.is_empty() {
        return;
    }
    let mut request = Request::new(Repeat::Idempotent, Instant::now() + inner.patience);
    let count = state.waiting.len().min(AT_ONCE);
    for (at, item) in state.waiting.iter().take(count).enumerate() {
        let number = state.acknowledged + 1 + at as u64;
        let stream = events_key(&item.front);
        let wake = wake_channel(&stream);
        let keys = [stream.as_str(), &inner.number_key, &job_key(&item.job)];
        let payload = item.payload.as_str();
        let arguments = (
            number,
            state.acknowledged,
            payload,
            REDIS_STREAM_MESSAGES,
            NUMBER_SECONDS,
            wake,
            item.note.0,
            item.note.1.as_str(),
        );
        request = request.script(&APPEND, &keys, &arguments);
    }
    state.in_flight = true;
    drop(state);
    let weak = Arc::downgrade(inner);
    let submitted = inner.commands.submit(request, move |answer| settled(&weak, count, answer));
    if let Err(error) = submitted {
        settled(&Arc::downgrade(inner), count, Err(error));
    }
}

/// What Redis says to a request with `count` events.
fn settled(inner: &Weak<OutboxShared>, count: usize, answer: Result<Vec<Value>, RedisError>) {
    let Some(inner) = inner.upgrade() else { return };
    let mut state = lock(&inner.state);
    state.in_flight = false;
    let error = match answer {
        Ok(_) => {
            state.waiting.drain(..count);
            state.acknowledged += count as u64;
            state.attempt = 0;
            let has = state.acknowledged;
            state.watchers.retain(|(number, _)| *number > has);
            let was_down = std::mem::take(&mut state.down);
            drop(state);
            if was_down {
                inner.board.health.up(PART);
            }
            return transmit(&inner);
        }
        Err(error) => error,
    };
    if matches!(error, RedisError::Stopped) {
        return;
    }
    let pause = exponential(PAUSE.0, PAUSE.1, state.attempt);
    state.attempt = state.attempt.saturating_add(1);
    let weak = Arc::downgrade(&inner);
    state.alarm = Some(inner.timer.at(Instant::now() + pause, move || {
        if let Some(inner) = weak.upgrade() {
            // An alarm that rings is not dropped under the lock.
            let alarm = lock(&inner.state).alarm.take();
            drop(alarm);
            transmit(&inner);
        }
    }));
    state.down = true;
    drop(state);
    let advice = error.advice().map(|advice| format!("; {advice}")).unwrap_or_default();
    inner.board.health.down(PART, format!("{error}{advice}"));
    inner.board.errors.report(error.class(), PART, &error);
}
