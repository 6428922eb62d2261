//! One connection to a Redis, owned by one thread.
//!
//! The `redis` crate makes the commands and the values; the socket is ours, because nothing can interrupt a read of the
//! crate's own connection. It does not block: a wait is a `poll` on the socket and, where there is one, on a [`Wake`].

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind};
use std::marker::PhantomData;
use std::net::{Shutdown as End, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use redis::{Cmd, ConnectionLike, FromRedisValue, PushKind, RedisResult, Value};
use rustix::event::PollFlags;

use super::byte_stream::Stream;
use super::config::RedisConfig;
use super::error::RedisError;
use super::refusal::of_command;
use super::resp::Parser;
use super::socket::{Inbox, Ready, poll};
use crate::base::limits::{REDIS_PUSHES, REDIS_READ_BYTES};
use crate::base::shutdown::{Level, Shutdown};
use crate::base::waits::waiting_unless_noted;
use crate::net::tls::explain_io;
use crate::net::wake::Wake;

/// What Redis sends without being asked: a message of a channel, an invalidated key.
pub type Push = (PushKind, Vec<Value>);

/// Why [`Connection::wait_push`] came back.
#[derive(Debug, Clone, PartialEq)]
pub enum Waited {
    /// A push message.
    Push(PushKind, Vec<Value>),
    /// The wake was raised; it still is.
    Woken,
    /// Neither, by the deadline.
    Deadline,
}

/// What has arrived.
#[derive(Debug)]
pub(super) enum Incoming {
    Reply(Value),
    Push(PushKind, Vec<Value>),
}

/// A connection, logged in and speaking RESP3.
///
/// After [`RedisError::connection_lost`] it is broken for good: every later call gives the same error, so that a late
/// reply cannot answer another request. One thread at a time may use it:
///
/// ```compile_fail
/// fn shared<T: Sync>() {}
/// shared::<phalanx::redis::Connection>();
/// ```
pub struct Connection {
    stream: Stream,
    kicked: Arc<AtomicBool>,
    peer: String,
    db: u32,
    version: String,
    /// `standalone`, `cluster` or `sentinel`.
    mode: String,
    /// `master`, `replica` or `sentinel`.
    role: String,
    deadline: Instant,
    begun: Instant,
    parser: Parser,
    inbox: Inbox,
    pushes: VecDeque<Push>,
    outbox: Vec<u8>,
    /// Bytes of the outbox that the socket has taken.
    sent: usize,
    /// Bytes that the socket has taken since the start.
    written: u64,
    broken: Option<RedisError>,
    /// One thread at a time: two that wait for replies would take each other's.
    not_sync: PhantomData<Cell<()>>,
}

/// Interrupts whatever its connection waits for, for good.
#[derive(Clone)]
pub struct ConnectionKick {
    socket: Arc<TcpStream>,
    kicked: Arc<AtomicBool>,
}

impl ConnectionKick {
    /// Ends the connection: what waits for it returns [`RedisError::Stopped`], as does every later call.
    pub fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        // An error means that it has ended already.
        let _ = self.socket.shutdown(End::Both);
    }
}

impl fmt::Debug for ConnectionKick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConnectionKick")
    }
}

/// Why TLS failed, with the setting of a Redis address that would help.
fn of_tls(error: &io::Error) -> String {
    explain_io(error).replace("--tls-ca FILE", "ssl_ca_certs=FILE in its address")
}

impl Connection {
    /// Logs in over a stream, as [`Connection::open`] does.
    pub(super) fn greeted(
        config: &RedisConfig,
        (socket, host, peer): (TcpStream, &str, String),
        deadline: Instant,
        shutdown: &Shutdown,
        level: Level,
    ) -> Result<Self, RedisError> {
        let begun = Instant::now();
        let stream = Stream::new(socket, host, config.tls.as_ref())
            .map_err(|e| RedisError::Tls { peer: peer.clone(), problem: of_tls(&e) })?;
        let mut connection = Self {
            stream,
            kicked: Arc::default(),
            peer,
            db: config.db,
            version: String::new(),
            mode: String::new(),
            role: String::new(),
            deadline,
            begun,
            parser: Parser::limited(config.reply_bytes),
            inbox: Inbox::default(),
            pushes: VecDeque::new(),
            outbox: Vec::new(),
            sent: 0,
            written: 0,
            broken: None,
            not_sync: PhantomData,
        };
        let kick = connection.kick();
        let _kick = shutdown.on(level, move || kick.kick());
        connection.greet(config)?;
        Ok(connection)
    }

    /// What interrupts it, for [`Kick::new`](crate::base::thread::Kick::new).
    pub fn kick(&self) -> ConnectionKick {
        ConnectionKick { socket: self.stream.socket().clone(), kicked: self.kicked.clone() }
    }

    /// By when the following requests have to be answered.
    pub fn set_deadline(&mut self, deadline: Instant) {
        self.begun = Instant::now();
        self.deadline = deadline;
    }

    /// `standalone`, `cluster` or `sentinel`, as Redis calls itself.
    pub(super) fn mode(&self) -> &str {
        &self.mode
    }

    /// `master`, `replica` or `sentinel`, as Redis called itself at the beginning.
    pub(super) fn role(&self) -> &str {
        &self.role
    }

    /// The version that Redis says it has.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Host and port.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Runs one command. Blocks until the deadline at most, or until the connection is kicked.
    ///
    /// # Errors
    /// [`RedisError::Server`] if Redis answers with an error, and then the connection is as good as before; otherwise
    /// see [`RedisError::connection_lost`].
    pub fn request(&mut self, command: &Cmd) -> Result<Value, RedisError> {
        command.write_packed_command(&mut self.outbox);
        match self.reply()? {
            Value::ServerError(error) => Err(of_command((&error).into(), &command.get_packed_command(), 0, None)),
            value => Ok(value),
        }
    }

    /// As [`Connection::request`], with the reply as a value of that type.
    ///
    /// # Errors
    /// Also [`RedisError::Reply`] if the reply is something else.
    pub fn query<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, RedisError> {
        Ok(T::from_redis_value(self.request(command)?)?)
    }

    /// Waits until a push message is there, `wake` is raised, or the deadline has come; a message that is there goes
    /// first. The connection can be kicked meanwhile.
    ///
    /// # Errors
    /// When the connection is lost. Bytes of a message that has not arrived as a whole are kept for the next call.
    pub fn wait_push(&mut self, wake: &Wake, deadline: Instant) -> Result<Waited, RedisError> {
        loop {
            if let Some((kind, data)) = self.pushes.pop_front() {
                return Ok(Waited::Push(kind, data));
            }
            match self.next_incoming()? {
                Some(Incoming::Push(kind, data)) => return Ok(Waited::Push(kind, data)),
                Some(Incoming::Reply(value)) => return Err(self.nobody_asked(&value)),
                None => {}
            }
            let waiting = waiting_unless_noted("a message of Redis", Some(deadline));
            let ready = self.poll(Some(wake), Some(deadline))?;
            drop(waiting);
            if ready.readable {
                self.read_some()?;
            } else if ready.woken {
                return Ok(Waited::Woken);
            } else if Instant::now() >= deadline {
                return Ok(Waited::Deadline);
            }
        }
    }

    fn greet(&mut self, config: &RedisConfig) -> Result<(), RedisError> {
        if let Some(password) = &config.password {
            let mut auth = redis::cmd("AUTH");
            if let Some(user) = &config.user {
                auth.arg(user);
            }
            auth.arg(password.secret());
            auth.write_packed_command(&mut self.outbox);
        }
        redis::cmd("HELLO").arg(3).write_packed_command(&mut self.outbox);
        redis::cmd("CLIENT").arg("SETNAME").arg(&config.name).write_packed_command(&mut self.outbox);
        redis::cmd("SELECT").arg(config.db).write_packed_command(&mut self.outbox);
        redis::cmd("PING").write_packed_command(&mut self.outbox);
        let auth = if config.password.is_some() { Some(self.reply()?) } else { None };
        let hello = self.reply()?;
        // A name is a courtesy, so a user that may not set one is let in.
        self.reply()?;
        let (select, ping) = (self.reply()?, self.reply()?);
        let reason = |error: &redis::ServerError| reason_of(error, config);
        let hello = match hello {
            Value::ServerError(error) => {
                let (peer, reason) = (self.peer.clone(), reason(&error));
                return Err(match error.code() {
                    "ERR" | "NOPROTO" => RedisError::TooOld { peer, reason },
                    _ => RedisError::Auth {
                        peer,
                        reason: auth.as_ref().and_then(refusal).map_or(reason, |e| reason_of(e, config)),
                    },
                });
            }
            Value::Map(fields) => fields,
            other => return Err(self.nobody_asked(&other)),
        };
        for (key, value) in hello {
            let Value::BulkString(name) = &key else { continue };
            match &name[..] {
                b"version" => self.version = String::from_redis_value(value)?,
                b"mode" => self.mode = String::from_redis_value(value)?,
                b"role" => self.role = String::from_redis_value(value)?,
                _ => {}
            }
        }
        for (reply, fatal) in [(auth, true), (Some(select), false), (Some(ping), false)] {
            let Some(error) = reply.as_ref().and_then(refusal) else { continue };
            match error.code() {
                _ if fatal => return Err(RedisError::Auth { peer: self.peer.clone(), reason: reason(error) }),
                // Only a command that is not needed is refused to this user.
                "NOPERM" => {}
                // It has no databases.
                "ERR" if self.mode == "sentinel" => {}
                _ => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Sends what is in the outbox and waits for one reply.
    fn reply(&mut self) -> Result<Value, RedisError> {
        loop {
            self.write_some()?;
            match self.next_incoming()? {
                Some(Incoming::Reply(value)) => return Ok(value),
                Some(Incoming::Push(kind, data)) => {
                    if self.pushes.len() >= REDIS_PUSHES {
                        let problem = format!("more than {REDIS_PUSHES} push messages while an answer was awaited");
                        return Err(self.breaks(RedisError::Protocol { peer: self.peer.clone(), problem }));
                    }
                    self.pushes.push_back((kind, data));
                    continue;
                }
                None => {}
            }
            let waiting = waiting_unless_noted("an answer of Redis", Some(self.deadline));
            let ready = self.poll(None, Some(self.deadline))?;
            drop(waiting);
            if ready.readable {
                self.read_some()?;
            } else if Instant::now() >= self.deadline {
                let after = self.begun.elapsed();
                let doing = if self.stream.is_handshaking() { "the TLS handshake" } else { "an answer" };
                return Err(self.breaks(RedisError::Timeout { doing, after, last: None }));
            }
        }
    }

    fn nobody_asked(&mut self, value: &Value) -> RedisError {
        let problem = format!("a reply that nobody asked for: {value:.100?}");
        self.breaks(RedisError::Protocol { peer: self.peer.clone(), problem })
    }

    /// Remembers that the connection cannot be used any more, and ends it.
    fn breaks(&mut self, error: RedisError) -> RedisError {
        let error = if self.kicked.load(Ordering::SeqCst) { RedisError::Stopped } else { error };
        // It may have ended already.
        let _ = self.stream.socket().shutdown(End::Both);
        self.broken.get_or_insert(error).clone()
    }

    fn io_failed(&mut self, error: &io::Error) -> RedisError {
        let peer = self.peer.clone();
        self.breaks(if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
            RedisError::Tls { peer, problem: of_tls(error) }
        } else {
            RedisError::Closed { peer, why: error.to_string(), unknown: false }
        })
    }

    fn check(&self) -> Result<(), RedisError> {
        self.broken.clone().map_or(Ok(()), Err)
    }
}

/// The parts from which a thread builds its own loop.
impl Connection {
    /// Where requests are packed to be written.
    pub(super) fn outbox(&mut self) -> &mut Vec<u8> {
        &mut self.outbox
    }

    /// Bytes in the outbox that the socket has not taken.
    pub(super) fn unsent(&self) -> usize {
        self.outbox.len() - self.sent
    }

    /// Bytes that the socket has taken since the start.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Writes as much of the outbox as the socket takes.
    pub(super) fn write_some(&mut self) -> Result<(), RedisError> {
        self.check()?;
        while self.sent < self.outbox.len() {
            match self.stream.write(&self.outbox[self.sent..]) {
                Ok(n) => {
                    self.sent += n;
                    self.written += n as u64;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.io_failed(&error)),
            }
        }
        self.outbox.clear();
        self.outbox.shrink_to(REDIS_READ_BYTES);
        self.sent = 0;
        if self.stream.wants_write()
            && let Err(error) = self.stream.flush()
        {
            return Err(self.io_failed(&error));
        }
        Ok(())
    }

    /// Takes in what the socket has, one buffer at most; says whether anything came.
    pub(super) fn read_some(&mut self) -> Result<bool, RedisError> {
        self.check()?;
        loop {
            let ended = match self.stream.read(self.inbox.room()) {
                Ok(0) => io::Error::from(ErrorKind::UnexpectedEof),
                Ok(n) => {
                    self.inbox.filled(n);
                    return Ok(true);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            return Err(self.io_failed(&ended));
        }
    }

    /// The next reply or push among what was read.
    pub(super) fn next_incoming(&mut self) -> Result<Option<Incoming>, RedisError> {
        self.check()?;
        let mut bytes = self.inbox.bytes();
        let before = bytes.len();
        let found = self.parser.next(&mut bytes);
        let used = before - bytes.len();
        self.inbox.used(used);
        match found {
            Ok(None) => Ok(None),
            Ok(Some(Value::Push { kind, data })) => Ok(Some(Incoming::Push(kind, data))),
            Ok(Some(value)) => Ok(Some(Incoming::Reply(value))),
            Err(malformed) => {
                Err(self.breaks(RedisError::Protocol { peer: self.peer.clone(), problem: malformed.to_string() }))
            }
        }
    }

    /// Waits until the socket can be read (or has ended), takes more of what is unsent, `wake` is raised, or `until`.
    pub(super) fn poll(&mut self, wake: Option<&Wake>, until: Option<Instant>) -> Result<Ready, RedisError> {
        self.check()?;
        if self.stream.has_more() {
            return Ok(Ready { readable: true, woken: false });
        }
        let mut events = PollFlags::IN;
        if self.unsent() > 0 || self.stream.wants_write() {
            events |= PollFlags::OUT;
        }
        let found = poll(Some((&**self.stream.socket(), events)), wake, until);
        found.map_err(|error| self.io_failed(&error))
    }
}

fn refusal(reply: &Value) -> Option<&redis::ServerError> {
    match reply {
        Value::ServerError(error) => Some(error),
        _ => None,
    }
}

/// The error of Redis, without the password: some errors repeat what was sent.
fn reason_of(error: &redis::ServerError, config: &RedisConfig) -> String {
    let reason = RedisError::from(error).to_string().replace("Redis says ", "");
    config.password.as_ref().map_or(reason.clone(), |password| reason.replace(password.secret(), "…"))
}

impl ConnectionLike for Connection {
    fn req_packed_command(&mut self, command: &[u8]) -> RedisResult<Value> {
        self.outbox.extend_from_slice(command);
        Ok(self.reply()?)
    }

    fn req_packed_commands(&mut self, commands: &[u8], offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        self.outbox.extend_from_slice(commands);
        for _ in 0..offset {
            self.reply()?;
        }
        let mut replies = Vec::with_capacity(count);
        for _ in 0..count {
            replies.push(self.reply()?);
        }
        Ok(replies)
    }

    fn get_db(&self) -> i64 {
        i64::from(self.db)
    }

    fn check_connection(&mut self) -> bool {
        self.set_deadline(Instant::now() + Duration::from_secs(1));
        self.request(&redis::cmd("PING")).is_ok()
    }

    fn is_open(&self) -> bool {
        self.broken.is_none()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer).field("broken", &self.broken).finish_non_exhaustive()
    }
}
