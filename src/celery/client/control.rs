//! Commands to workers, as `app.control` and `app.control.inspect` send them, through kombu's mailboxes.
//!
//! A command is published to all workers that listen at the moment; nothing is kept for those that come later.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use redis::FromRedisValue;
use serde_json::{Value, json};

use super::CeleryHandle;
use crate::base::shutdown::Level;
use crate::celery::envelope::Envelope;
use crate::celery::keys::{CONTROL_EXCHANGE, CONTROL_REPLY_EXCHANGE};
use crate::ops::errors::ErrorHandler;
use crate::redis::{Connection, RedisError, Request};

/// Whether a task that runs is ended as well.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Terminate {
    /// One that runs goes on; one that waits is not begun.
    #[default]
    No,
    /// The process that runs it gets `SIGTERM`. Workers with threads cannot do that and only forget the task.
    Term,
    /// It gets this signal, as `SIGKILL`.
    Signal(String),
}

/// Where the answers of workers are collected.
struct Mailbox {
    oid: String,
    ticket: String,
}

impl Mailbox {
    fn queue(&self) -> String {
        format!("{}.{CONTROL_REPLY_EXCHANGE}", self.oid)
    }
}

fn message(command: &str, arguments: &Value, destination: &[String], mailbox: Option<&Mailbox>) -> Envelope {
    let destination = if destination.is_empty() { Value::Null } else { json!(destination) };
    let mut body = json!({
        "method": command, "arguments": arguments, "destination": destination, "pattern": null, "matcher": null,
    });
    if let Some(mailbox) = mailbox {
        body["ticket"] = mailbox.ticket.clone().into();
        body["reply_to"] = json!({"exchange": CONTROL_REPLY_EXCHANGE, "routing_key": mailbox.oid});
    }
    let mut envelope = Envelope::json(&body);
    envelope.headers.insert("clock".to_owned(), 1.into());
    envelope.headers.insert("expires".to_owned(), 0.into());
    let properties = json!({
        "delivery_mode": 2,
        "delivery_info": {"exchange": CONTROL_EXCHANGE, "routing_key": ""},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": uuid::Uuid::new_v4().to_string(),
    });
    if let Value::Object(properties) = properties {
        envelope.properties = properties;
    }
    envelope
}

fn revocation(ids: &[&str], terminate: &Terminate) -> Value {
    let signal = match terminate {
        Terminate::Signal(signal) => signal,
        Terminate::No | Terminate::Term => "SIGTERM",
    };
    let ids = match ids {
        [id] => json!(id),
        ids => json!(ids),
    };
    json!({"task_id": ids, "terminate": *terminate != Terminate::No, "signal": signal})
}

/// The number of receivers that a publish answers.
fn receivers(answer: Vec<redis::Value>) -> Result<usize, RedisError> {
    Ok(usize::from_redis_value(answer.into_iter().next().unwrap_or_default())?)
}

impl CeleryHandle {
    /// Tells all workers not to begin these tasks, and to end those that run if that is wished; gives the number of
    /// workers that received it. With none the tasks are not revoked: workers that start later know nothing of it.
    ///
    /// Blocks until `deadline` at most.
    ///
    /// # Errors
    /// [`RedisError`].
    pub fn revoke(&self, ids: &[&str], terminate: &Terminate, deadline: Instant) -> Result<usize, RedisError> {
        self.broadcast("revoke", &revocation(ids, terminate), &[], deadline)
    }

    /// As [`CeleryHandle::revoke`], without waiting: `on_sent` gets the number of workers that received it, by
    /// `deadline`, on a thread of the client, so it must be quick and must not panic.
    ///
    /// # Errors
    /// [`RedisError`]; `on_sent` is dropped then.
    pub fn submit_revoke(
        &self,
        ids: &[&str],
        terminate: &Terminate,
        deadline: Instant,
        on_sent: impl FnOnce(Result<usize, RedisError>) + Send + 'static,
    ) -> Result<(), RedisError> {
        let publish = self.publish("revoke", &revocation(ids, terminate), &[], deadline);
        self.commander().submit(publish, move |answer| on_sent(answer.and_then(receivers)))
    }

    /// Sends any command, to all workers or to those of these names; gives the number of workers that received it.
    ///
    /// Blocks until `deadline` at most. The command may arrive twice if the connection is lost.
    ///
    /// # Errors
    /// [`RedisError`].
    pub fn broadcast(
        &self,
        command: &str,
        arguments: &Value,
        destination: &[String],
        deadline: Instant,
    ) -> Result<usize, RedisError> {
        self.commander().call(self.publish(command, arguments, destination, deadline)).and_then(receivers)
    }

    fn publish(&self, command: &str, arguments: &Value, destination: &[String], deadline: Instant) -> Request {
        let text = message(command, arguments, destination, None).write();
        let channel = self.names().fanout(self.db(), CONTROL_EXCHANGE);
        Request::idempotent(redis::cmd("PUBLISH").arg(channel).arg(text), deadline)
    }

    /// Asks all workers, or those of these names, and gives what each answered within `time`, by its name. Ends as soon
    /// as all that received the question have answered.
    ///
    /// Blocks for `time` and the making of a connection at most; a stop of the client ends it.
    ///
    /// # Errors
    /// [`RedisError`].
    pub fn inspect(
        &self,
        command: &str,
        arguments: &Value,
        destination: &[String],
        time: Duration,
    ) -> Result<BTreeMap<String, Value>, RedisError> {
        let deadline = Instant::now() + time;
        let fresh = || uuid::Uuid::new_v4().to_string();
        let mailbox = Mailbox { oid: fresh(), ticket: fresh() };
        // A connection of its own, because it waits in Redis.
        let config = self.redis().clone().named("celery-inspect");
        let mut connection = Connection::open(&config, deadline, self.stopping(), Level::Drain)?;
        let kick = connection.kick();
        let _kick = self.stopping().on(Level::Drain, move || kick.kick());
        connection.set_deadline(deadline + config.operation_time);
        let names = self.names();
        let (key, list) = (names.bindings(CONTROL_REPLY_EXCHANGE), names.key(&mailbox.queue()));
        let member = names.binding(&mailbox.oid, &mailbox.queue());
        connection.request(redis::cmd("SADD").arg(&key).arg(&member))?;
        let text = message(command, arguments, destination, Some(&mailbox)).write();
        let channel = names.fanout(self.db(), CONTROL_EXCHANGE);
        let (asked, until) = ((text.as_str(), destination.len()), (deadline, self.errors()));
        let answers = collect(&mut connection, (&channel, &list), &mailbox, asked, until);
        // Also after an error, if the connection still works.
        let removed = connection.request(redis::cmd("SREM").arg(&key).arg(&member));
        let emptied = removed.and_then(|_| connection.request(redis::cmd("DEL").arg(&list)));
        let answers = answers?;
        emptied?;
        Ok(answers)
    }

    /// The names of the workers that answer within `time`.
    ///
    /// # Errors
    /// As [`CeleryHandle::inspect`].
    pub fn ping(&self, time: Duration) -> Result<Vec<String>, RedisError> {
        let answers = self.inspect("ping", &json!({}), &[], time)?;
        Ok(answers.into_iter().filter(|(_, answer)| answer["ok"] == "pong").map(|(name, _)| name).collect())
    }

    /// The tasks that each worker runs now, as Celery shows them.
    ///
    /// # Errors
    /// As [`CeleryHandle::inspect`].
    pub fn active(&self, time: Duration) -> Result<BTreeMap<String, Value>, RedisError> {
        self.inspect("active", &json!({}), &[], time)
    }
}

fn collect(
    connection: &mut Connection,
    (channel, list): (&str, &str),
    mailbox: &Mailbox,
    (text, named): (&str, usize),
    (deadline, errors): (Instant, &ErrorHandler),
) -> Result<BTreeMap<String, Value>, RedisError> {
    let receivers: usize = connection.query(redis::cmd("PUBLISH").arg(channel).arg(text))?;
    let expected = if named > 0 { named.min(receivers) } else { receivers };
    let mut answers = BTreeMap::new();
    while answers.len() < expected {
        let left = deadline.saturating_duration_since(Instant::now()).as_secs_f64();
        if left <= 0.0 {
            break;
        }
        // To Redis, nothing would mean for ever.
        let mut pop = redis::cmd("BRPOP");
        pop.arg(list).arg(format!("{:.3}", left.max(0.001)));
        let Some((_, raw)) = connection.query::<Option<(String, Vec<u8>)>>(&pop)? else { break };
        let answer = Envelope::read(&raw).and_then(|envelope| {
            let mine = envelope.headers.get("ticket").and_then(Value::as_str) == Some(&mailbox.ticket);
            Ok(envelope.payload()?.as_object().cloned().filter(|_| mine))
        });
        match answer {
            Ok(answer) => answers.extend(answer.unwrap_or_default()),
            Err(error) => {
                let what = format_args!("a worker's answer cannot be read: {error}");
                errors.report(error.class(), "celery-control", &what);
            }
        }
    }
    Ok(answers)
}
