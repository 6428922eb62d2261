//! What a commander is asked to do, and which reply belongs to which request. Pure.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use redis::{Cmd, ServerErrorKind, ToRedisArgs, Value};

use super::error::RedisError;
use super::refusal::of_command;
use super::script::Script;

/// What becomes of a request whose answer is lost with the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// Running it twice does what running it once does: it is sent again, until its deadline.
    Idempotent,
    /// It fails with [`RedisError::Closed`], which says that its outcome is unknown. If it had not been written yet, it
    /// is sent over the next connection all the same.
    Never,
}

/// Commands that are sent together, not as a transaction. They must not block (`BLPOP`) nor change the connection
/// (`SUBSCRIBE`, `SELECT`, `CLIENT REPLY`): others' requests follow on it.
#[derive(Clone)]
pub struct Request {
    bytes: Vec<u8>,
    commands: usize,
    scripts: Vec<Call>,
    pub(super) repeat: Repeat,
    pub(super) deadline: Instant,
}

/// A command of a request that calls a script.
#[derive(Clone)]
struct Call {
    command: usize,
    bytes: Range<usize>,
    script: &'static Script,
}

impl Request {
    /// An empty request, to be answered by `deadline`.
    pub fn new(repeat: Repeat, deadline: Instant) -> Self {
        Self { bytes: Vec::new(), commands: 0, scripts: Vec::new(), repeat, deadline }
    }

    /// One command that may be repeated.
    pub fn idempotent(command: &Cmd, deadline: Instant) -> Self {
        Self::new(Repeat::Idempotent, deadline).command(command)
    }

    /// One command that may not be repeated.
    pub fn once(command: &Cmd, deadline: Instant) -> Self {
        Self::new(Repeat::Never, deadline).command(command)
    }

    /// Adds a command.
    pub fn command(mut self, command: &Cmd) -> Self {
        command.write_packed_command(&mut self.bytes);
        self.commands += 1;
        self
    }

    /// Adds a call of a script. The commander loads the script where Redis does not have it.
    pub fn script(mut self, script: &'static Script, keys: &[impl AsRef<[u8]>], arguments: impl ToRedisArgs) -> Self {
        let mut command = redis::cmd("EVALSHA");
        command.arg(script.digest()).arg(keys.len());
        for key in keys {
            command.arg(key.as_ref());
        }
        command.arg(arguments);
        let start = self.bytes.len();
        self = self.command(&command);
        self.scripts.push(Call { command: self.commands - 1, bytes: start..self.bytes.len(), script });
        self
    }

    /// Its bytes on the wire.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it has no command; it is then answered without Redis.
    pub fn is_empty(&self) -> bool {
        self.commands == 0
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Request({} commands, {} bytes, {:?})", self.commands, self.bytes.len(), self.repeat)
    }
}

/// Where an answer goes.
pub type Answer = Box<dyn FnOnce(Result<Vec<Value>, RedisError>) + Send>;

/// A request and where its answer goes.
pub(super) struct QueuedRequest {
    pub request: Request,
    pub answer: Answer,
    pub since: Instant,
}

/// What has been packed for one connection and not been answered, in order.
#[derive(Default)]
pub(super) struct Pipe {
    slots: VecDeque<Slot>,
    /// Scripts that this connection's Redis knows.
    loaded: HashSet<&'static str>,
    /// Bytes that were packed since the connection was made.
    packed: u64,
}

struct Slot {
    /// `None` once the caller was notified that it took too long: the replies are still to come, and are nobody's.
    job: Option<QueuedRequest>,
    /// Where its bytes begin.
    start: u64,
    /// Replies to the loading of scripts that come first.
    loads: usize,
    /// The error of Redis about a script that it could not load.
    refused: Option<RedisError>,
    /// Which of the commands the next replies belong to.
    fill: Range<usize>,
    /// Calls that are made again after their script was loaded; then `fill` counts these.
    again: Vec<usize>,
    values: Vec<Value>,
}

/// A request that is over.
pub(super) type Done = (QueuedRequest, Result<Vec<Value>, RedisError>);

impl Pipe {
    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Slots, with those whose caller has gone.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Packs a request behind the others.
    pub(super) fn pack(&mut self, job: QueuedRequest, out: &mut Vec<u8>) {
        let (before, start) = (out.len(), self.packed);
        let request = &job.request;
        let mut loads = 0;
        for call in &request.scripts {
            loads += self.load(call.script, out);
        }
        out.extend_from_slice(&request.bytes);
        self.packed += (out.len() - before) as u64;
        let fill = 0..request.commands;
        let values = Vec::with_capacity(request.commands);
        self.slots.push_back(Slot { job: Some(job), start, loads, refused: None, fill, again: Vec::new(), values });
    }

    /// Packs the loading of a script, unless this connection has it.
    fn load(&mut self, script: &'static Script, out: &mut Vec<u8>) -> usize {
        let new = self.loaded.insert(script.text());
        if new {
            redis::cmd("SCRIPT").arg("LOAD").arg(script.text()).write_packed_command(out);
        }
        usize::from(new)
    }

    /// Takes the next reply; the request that is over with it. A reply too many is an error.
    ///
    /// `out` is for calls that have to be made again.
    pub(super) fn reply(&mut self, value: Value, out: &mut Vec<u8>) -> Result<Option<Done>, Value> {
        let Some(slot) = self.slots.front_mut() else { return Err(value) };
        if slot.loads > 0 {
            slot.loads -= 1;
            if let Value::ServerError(error) = &value {
                slot.refused = Some(error.into());
            }
            return Ok(None);
        }
        match slot.fill.next().map(|n| slot.again.get(n)) {
            Some(Some(&command)) => slot.values[command] = value,
            _ => slot.values.push(value),
        }
        if !slot.fill.is_empty() {
            return Ok(None);
        }
        let Some(mut slot) = self.slots.pop_front() else { return Ok(None) };
        let Some(job) = slot.job.take() else { return Ok(None) };
        let forgotten: Vec<usize> =
            job.request.scripts.iter().map(|call| call.command).filter(|n| is_no_script(&slot.values[*n])).collect();
        if forgotten.is_empty() || !slot.again.is_empty() || slot.refused.is_some() {
            let outcome = match (slot.refused, forgotten.is_empty()) {
                (Some(refused), false) => Err(refused),
                _ => first_error(slot.values, &job.request),
            };
            return Ok(Some((job, outcome)));
        }
        self.call_again(job, forgotten, slot.values, out);
        Ok(None)
    }

    /// Redis has forgotten scripts (`SCRIPT FLUSH`): those calls have done nothing, so they can be made again.
    fn call_again(&mut self, job: QueuedRequest, again: Vec<usize>, values: Vec<Value>, out: &mut Vec<u8>) {
        let (before, start) = (out.len(), self.packed);
        let calls: Vec<_> = job.request.scripts.iter().filter(|call| again.contains(&call.command)).cloned().collect();
        let mut loads = 0;
        for call in &calls {
            self.loaded.remove(call.script.text());
            loads += self.load(call.script, out);
        }
        for call in calls {
            out.extend_from_slice(&job.request.bytes[call.bytes]);
        }
        self.packed += (out.len() - before) as u64;
        let fill = 0..again.len();
        self.slots.push_back(Slot { job: Some(job), start, loads, refused: None, fill, again, values });
    }

    /// Those whose deadline has come: their callers are to be notified, while the replies are still awaited.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<QueuedRequest> {
        let late = |slot: &mut Slot| slot.job.take_if(|job| job.request.deadline <= now);
        self.slots.iter_mut().filter_map(late).collect()
    }

    /// The earliest deadline.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.slots.iter().filter_map(|slot| slot.job.as_ref()).map(|job| job.request.deadline).min()
    }

    /// The connection is lost after `written` bytes: what is to be sent again, in order, and what is over.
    pub(super) fn lost(self, written: u64, error: &RedisError) -> (Vec<QueuedRequest>, Vec<Done>) {
        let (mut again, mut over) = (Vec::new(), Vec::new());
        let malformed = matches!(error, RedisError::Protocol { .. });
        for (n, slot) in self.slots.into_iter().enumerate() {
            let Some(job) = slot.job else { continue };
            let unsent = slot.start >= written && slot.again.is_empty();
            if n == 0 && malformed && !unsent {
                // It would come again, and the requests behind it would suffer again.
                over.push((job, Err(error.clone())));
            } else if unsent || job.request.repeat == Repeat::Idempotent {
                again.push(job);
            } else {
                over.push((job, Err(outcome_unknown(error))));
            }
        }
        (again, over)
    }
}

fn is_no_script(value: &Value) -> bool {
    matches!(value, Value::ServerError(error) if error.kind() == Some(ServerErrorKind::NoScript))
}

fn first_error(values: Vec<Value>, request: &Request) -> Result<Vec<Value>, RedisError> {
    let error = values.iter().enumerate().find_map(|(at, value)| match value {
        Value::ServerError(error) => Some((at, error.into())),
        _ => None,
    });
    let Some((at, error)) = error else { return Ok(values) };
    let call = request.scripts.iter().find(|call| call.command == at);
    Err(of_command(error, &request.bytes, at, call.map(|call| call.script.text())))
}

fn outcome_unknown(error: &RedisError) -> RedisError {
    match error {
        RedisError::Closed { peer, why, .. } => {
            RedisError::Closed { peer: peer.clone(), why: why.clone(), unknown: true }
        }
        RedisError::Timeout { doing, after, .. } => {
            RedisError::Timeout { doing, after: *after, last: Some(Arc::new(error.clone())) }
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::time::Duration;

    static ONE: Script = Script::new("return 1");
    static TWO: Script = Script::new("return 2");

    type Notified = Arc<Mutex<Vec<String>>>;

    fn at(seconds: u64) -> Instant {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *START.get_or_init(Instant::now) + Duration::from_secs(seconds)
    }

    fn get(key: &str, repeat: Repeat) -> Request {
        Request::new(repeat, at(10)).command(redis::cmd("GET").arg(key))
    }

    fn job(request: Request, name: &'static str, notified: &Notified) -> QueuedRequest {
        let notified = notified.clone();
        let answer = Box::new(move |outcome| {
            let words = match outcome {
                Ok(values) => format!("{name}: {values:?}"),
                Err(error) => format!("{name}: {error}"),
            };
            notified.lock().unwrap().push(words);
        });
        QueuedRequest { request, answer, since: at(0) }
    }

    fn finish((job, outcome): Done) {
        (job.answer)(outcome);
    }

    fn reply(pipe: &mut Pipe, value: Value, out: &mut Vec<u8>) {
        if let Some(done) = pipe.reply(value, out).unwrap() {
            finish(done);
        }
    }

    fn no_script() -> Value {
        parse(b"-NOSCRIPT No matching script.\r\n")
    }

    fn parse(reply: &[u8]) -> Value {
        redis::parse_redis_value(reply).unwrap()
    }

    #[test]
    fn replies_are_dealt_out_in_order_and_one_too_many_is_given_back() {
        let (mut pipe, mut out, notified) = (Pipe::default(), Vec::new(), Notified::default());
        pipe.pack(job(get("a", Repeat::Never).command(redis::cmd("GET").arg("b")), "first", &notified), &mut out);
        pipe.pack(job(get("c", Repeat::Never), "second", &notified), &mut out);
        for n in 1..=3 {
            reply(&mut pipe, Value::Int(n), &mut out);
        }
        assert_eq!(*notified.lock().unwrap(), ["first: [int(1), int(2)]", "second: [int(3)]"]);
        assert!(pipe.is_empty() && pipe.reply(Value::Int(4), &mut out).is_err());
    }

    #[test]
    fn the_replies_to_a_request_that_was_given_up_are_nobodys() {
        let (mut pipe, mut out, notified) = (Pipe::default(), Vec::new(), Notified::default());
        let mut hasty = get("a", Repeat::Never).command(redis::cmd("GET").arg("b"));
        hasty.deadline = at(5);
        pipe.pack(job(hasty, "hasty", &notified), &mut out);
        pipe.pack(job(get("c", Repeat::Never), "patient", &notified), &mut out);
        assert_eq!(pipe.next_deadline(), Some(at(5)));
        assert!(pipe.expire(at(4)).is_empty());
        reply(&mut pipe, Value::Int(1), &mut out);
        assert_eq!((pipe.expire(at(5)).len(), pipe.expire(at(5)).len()), (1, 0));
        assert_eq!((pipe.next_deadline(), pipe.len()), (Some(at(10)), 2));
        for n in 2..=3 {
            reply(&mut pipe, Value::Int(n), &mut out);
        }
        assert_eq!(*notified.lock().unwrap(), ["patient: [int(3)]"]);
    }

    #[test]
    fn a_script_is_sent_once_and_again_when_it_was_forgotten() {
        let (mut pipe, mut out, notified) = (Pipe::default(), Vec::new(), Notified::default());
        let none: [&str; 0] = [];
        let request = || {
            let request = Request::new(Repeat::Never, at(10)).script(&ONE, &none, 1);
            request.command(&redis::cmd("PING")).script(&TWO, &none, 2)
        };
        pipe.pack(job(request(), "first", &notified), &mut out);
        assert_eq!(String::from_utf8_lossy(&out).matches("LOAD").count(), 2);
        // Two loads, and the three replies.
        for n in 1..=5 {
            reply(&mut pipe, Value::Int(n), &mut out);
        }
        out.clear();
        pipe.pack(job(request(), "second", &notified), &mut out);
        assert!(!String::from_utf8_lossy(&out).contains("LOAD"));
        out.clear();
        reply(&mut pipe, Value::Int(6), &mut out);
        reply(&mut pipe, Value::Int(7), &mut out);
        reply(&mut pipe, no_script(), &mut out);
        let again = String::from_utf8_lossy(&out).into_owned();
        assert!(again.contains("LOAD") && again.contains(TWO.digest()) && !again.contains("PING"), "{again}");
        reply(&mut pipe, Value::Okay, &mut out);
        reply(&mut pipe, Value::Int(8), &mut out);
        assert_eq!(*notified.lock().unwrap(), ["first: [int(3), int(4), int(5)]", "second: [int(6), int(7), int(8)]"]);
        // It is not asked for ever.
        pipe.pack(job(Request::new(Repeat::Never, at(10)).script(&ONE, &none, 1), "third", &notified), &mut out);
        reply(&mut pipe, no_script(), &mut out);
        reply(&mut pipe, parse(b"-ERR no\r\n"), &mut out);
        reply(&mut pipe, no_script(), &mut out);
        assert_eq!(notified.lock().unwrap()[2], "third: Redis says ERR no");
        assert!(pipe.is_empty());
    }

    #[test]
    fn after_a_loss_what_may_or_was_not_sent_goes_again_in_order_and_the_rest_is_unknown() {
        let (mut pipe, mut out, notified) = (Pipe::default(), Vec::new(), Notified::default());
        let mut written = 0;
        for (name, repeat) in
            [("a", Repeat::Never), ("b", Repeat::Idempotent), ("c", Repeat::Never), ("d", Repeat::Never)]
        {
            pipe.pack(job(get(name, repeat), name, &notified), &mut out);
            if name == "b" {
                written = out.len() as u64;
            }
        }
        // One byte of c was written, and none of d.
        let lost = RedisError::Closed { peer: "h:1".to_owned(), why: "cut".to_owned(), unknown: false };
        let (again, over) = pipe.lost(written + 1, &lost);
        assert_eq!(over.len(), 2);
        over.into_iter().for_each(finish);
        again.into_iter().for_each(|job| finish((job, Ok(vec![]))));
        let unknown = "the connection to Redis at h:1 was lost: cut; what was sent may have been done";
        assert_eq!(
            *notified.lock().unwrap(),
            [format!("a: {unknown}"), format!("c: {unknown}"), "b: []".into(), "d: []".into()]
        );
    }

    #[test]
    fn a_request_whose_reply_cannot_be_read_is_not_sent_again() {
        let (mut pipe, mut out, notified) = (Pipe::default(), Vec::new(), Notified::default());
        pipe.pack(job(get("a", Repeat::Idempotent), "a", &notified), &mut out);
        pipe.pack(job(get("b", Repeat::Idempotent), "b", &notified), &mut out);
        let broken = RedisError::Protocol { peer: "h:1".to_owned(), problem: "too large".to_owned() };
        let (again, over) = pipe.lost(out.len() as u64, &broken);
        assert_eq!((again.len(), over.len()), (1, 1));
        over.into_iter().for_each(finish);
        assert_eq!(*notified.lock().unwrap(), ["a: Redis at h:1: too large"]);
    }
}
