//! A thread that owns a connection with subscriptions, and proves that they work.
//!
//! Owner: whoever holds the [`Subscriber`]. Blocks in: `poll` on its socket and its wake, and in a dial. Kick: the wake
//! with a flag, and the cancel of its dial. Ends: after a kick.
//!
//! After each connect it subscribes to all that is wanted and publishes a token to a channel of its own, over the same
//! connection. Redis works in order, so when the token comes back through that channel's subscription, every
//! subscription before it is in force: only then is the part up and [`SubscriberHandle::on_connected`] notified.
//! Messages that were published meanwhile are lost, as they are for every subscriber of Redis; who must not miss any
//! looks for them then.
//!
//! What it costs when nothing happens: a token each ten seconds (two thirds of the stall limit), at which the thread
//! wakes twice (to publish it, and when it comes back): two context switches for each token, so 0.2 a second, as
//! measured by `tests/celery/redis_messaging.rs`.

mod channel;
mod session;

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};
use redis::{PushKind, Value};

pub use self::channel::{Channel, Message};
use self::channel::{Sink, Waiter};
use self::session::{Sent, Session, bytes, text};
use super::commander::{BEAT, ROUND_TIME};
use super::config::RedisConfig;
use super::connection::{Connection, Incoming};
use super::error::RedisError;
use super::meters::SubscriberMeters;
use super::proof::{Liveness, Verdict};
use super::socket::poll;
use crate::base::backoff::Backoff;
use crate::base::limits::REDIS_PROOFS;
use crate::base::lock::lock;
use crate::base::rng::Rng;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::stop::{Step, StopReport, stop_alone};
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::waits::{waiting, waiting_unless_noted};
use crate::net::wake::Wake;
use crate::ops::health::Beat;
use crate::ops::status::Board;

/// Owns the thread. Dropping it kicks and joins the thread.
#[derive(Debug)]
#[must_use = "dropping it ends the thread"]
pub struct Subscriber {
    handle: SubscriberHandle,
    thread: Thread<()>,
}

/// What subscribers hold; clones are the same. It may outlive its thread: nothing comes then.
#[derive(Clone)]
pub struct SubscriberHandle(Arc<SubscriberShared>);

struct SubscriberShared {
    name: &'static str,
    state: Mutex<SubscriberTable>,
    wake: Wake,
    /// Ends a dial.
    shutdown: Shutdown,
}

#[derive(Clone)]
struct Hook {
    run: Arc<dyn Fn(u64) + Send + Sync>,
    /// The hook goes when this does; `None` stays for good.
    keeper: Option<Weak<dyn Any + Send + Sync>>,
}

#[derive(Default)]
struct SubscriberTable {
    wanted: BTreeMap<Channel, Vec<(u64, Sink)>>,
    /// What was added or taken away since the thread last looked.
    changed: BTreeSet<Channel>,
    next_id: u64,
    /// Called for each connection; with the last one that each was called for.
    hooks: Vec<(u64, Hook)>,
    /// Who waits for a proof that was not begun.
    proofs: Vec<Waiter>,
    stopped: bool,
    shown: SubscriberState,
}

/// How a subscriber is.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct SubscriberState {
    /// Whether there is a connection whose subscriptions were proved.
    pub proved: bool,
    /// Connections whose subscriptions were proved; the number of the present one.
    pub epoch: u64,
    /// Why the last one ended, or why none comes about.
    pub last_error: Option<RedisError>,
}

/// Keeps a sink subscribed; dropping it takes it back. A message that is being handed out may still reach the sink
/// after that.
#[must_use = "dropping the subscription takes it back"]
pub struct Subscription {
    shared: Arc<SubscriberShared>,
    channel: Channel,
    id: u64,
}

impl Subscriber {
    /// Starts the thread, which connects at once and for ever again. `name` (at most 15 bytes) is the name of the
    /// thread, of its part on the board's health and of its series in the metrics.
    ///
    /// # Errors
    /// [`RedisError::System`] if there is no file descriptor for the wake.
    pub fn start(name: &'static str, config: RedisConfig, board: &Board) -> Result<Self, RedisError> {
        let wake = Wake::new().map_err(|e| RedisError::System(format!("no event descriptor: {e}")))?;
        board.health.down(name, format!("no connection to {config} yet"));
        let shared = Arc::new(SubscriberShared { name, state: Mutex::default(), wake, shutdown: Shutdown::new() });
        let handle = SubscriberHandle(shared.clone());
        let kicked = handle.clone();
        let runner = Runner {
            meters: SubscriberMeters::new(name, board),
            board: board.clone(),
            backoff: Backoff::new(config.backoff),
            rng: Rng::from_entropy(),
            private: format!("phalanx.proof.{}", uuid::Uuid::new_v4()),
            config,
            shared,
        };
        let thread = spawn(name, Kick::new("its wake", move || kicked.kick()), move || runner.run());
        Ok(Self { handle, thread })
    }

    /// What others subscribe with.
    pub fn handle(&self) -> SubscriberHandle {
        self.handle.clone()
    }

    /// Stops it alone, within `budget`, as [`Subscriber::stop_in`] does.
    pub fn stop(self, budget: Duration) -> StopReport {
        stop_alone("redis subscriber", budget, |step| self.stop_in(step))
    }

    /// Ends the subscriptions and joins the thread.
    pub fn stop_in(self, step: &mut Step) {
        self.handle.kick();
        step.join(self.thread);
    }
}

impl SubscriberHandle {
    /// Subscribes, as soon as there is a connection and again over each later one; `sink` gets every message that
    /// comes. It runs on the subscriber's thread, which waits for it, so it must not block and must not panic. Returns
    /// at once: see [`SubscriberHandle::prove`].
    pub fn subscribe(&self, channel: Channel, sink: impl Fn(Message) + Send + Sync + 'static) -> Subscription {
        let id = {
            let mut state = lock(&self.0.state);
            let id = state.next_id;
            state.next_id += 1;
            state.wanted.entry(channel.clone()).or_default().push((id, Arc::new(sink)));
            state.changed.insert(channel.clone());
            id
        };
        self.0.wake.raise();
        Subscription { shared: self.0.clone(), channel, id }
    }

    /// Waits until a token that is published after this call has come back through a subscription of the same
    /// connection; gives how long that took. All that was subscribed to before this call is then in force.
    ///
    /// Blocks until `deadline` at most; a stop ends the wait.
    ///
    /// # Errors
    /// [`RedisError::Timeout`] with the reason, [`RedisError::Full`] if too many wait already, [`RedisError::Stopped`].
    pub fn prove(&self, deadline: Instant) -> Result<Duration, RedisError> {
        let since = Instant::now();
        let (notify, notified) = bounded(1);
        let id = {
            let mut state = lock(&self.0.state);
            if state.stopped {
                return Err(RedisError::Stopped);
            }
            if state.proofs.len() >= REDIS_PROOFS {
                return Err(RedisError::Full { requests: state.proofs.len(), bytes: 0 });
            }
            let id = state.next_id;
            state.next_id += 1;
            state.proofs.push((id, notify));
            id
        };
        self.0.wake.raise();
        let _waiting = waiting_unless_noted("a proof of the subscriptions", Some(deadline));
        match notified.recv_deadline(deadline) {
            Ok(()) => Ok(since.elapsed()),
            Err(RecvTimeoutError::Disconnected) => Err(RedisError::Stopped),
            Err(RecvTimeoutError::Timeout) => {
                let shown = {
                    let mut state = lock(&self.0.state);
                    // Its place is for others, while no connection takes it.
                    state.proofs.retain(|(other, _)| *other != id);
                    state.shown.clone()
                };
                let last = if shown.proved { None } else { shown.last_error.map(Arc::new) };
                Err(RedisError::Timeout { doing: "a proof of the subscriptions", after: since.elapsed(), last })
            }
        }
    }

    /// Calls `hook` with the number of each connection, once its subscriptions are proved, and of the present one if
    /// there is one: to look for what was missed. It runs on the subscriber's thread, so it must not block; it is kept
    /// for good.
    pub fn on_connected(&self, hook: impl Fn(u64) + Send + Sync + 'static) {
        self.hook(None, hook);
    }

    /// As [`SubscriberHandle::on_connected`], as long as `keeper` lives.
    pub(super) fn on_connected_while<T: Any + Send + Sync>(
        &self,
        keeper: &Arc<T>,
        hook: impl Fn(u64) + Send + Sync + 'static,
    ) {
        let keeper: Weak<T> = Arc::downgrade(keeper);
        self.hook(Some(keeper), hook);
    }

    fn hook(&self, keeper: Option<Weak<dyn Any + Send + Sync>>, hook: impl Fn(u64) + Send + Sync + 'static) {
        {
            let mut state = lock(&self.0.state);
            state.hooks.retain(|(_, hook)| hook.keeper.as_ref().is_none_or(|keeper| keeper.strong_count() > 0));
            state.hooks.push((0, Hook { run: Arc::new(hook), keeper }));
        }
        self.0.wake.raise();
    }

    /// Whether the subscriptions work, and the last error.
    pub fn state(&self) -> SubscriberState {
        lock(&self.0.state).shown.clone()
    }

    fn kick(&self) {
        lock(&self.0.state).stopped = true;
        self.0.shutdown.cancel();
        self.0.wake.raise();
    }
}

impl fmt::Debug for SubscriberHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.0.state);
        f.debug_struct("SubscriberHandle")
            .field("name", &self.0.name)
            .field("channels", &state.wanted.len())
            .field("proved", &state.shown.proved)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Subscription").field(&self.channel).finish()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let sinks = {
            let mut state = lock(&self.shared.state);
            let Some(sinks) = state.wanted.get_mut(&self.channel) else { return };
            let gone: Vec<_> = sinks.extract_if(.., |(id, _)| *id == self.id).collect();
            if sinks.is_empty() {
                state.wanted.remove(&self.channel);
            }
            state.changed.insert(self.channel.clone());
            gone
        };
        // Outside the lock: it may own anything.
        drop(sinks);
        self.shared.wake.raise();
    }
}

struct Runner {
    shared: Arc<SubscriberShared>,
    config: RedisConfig,
    board: Board,
    meters: SubscriberMeters,
    backoff: Backoff,
    rng: Rng,
    /// The channel that tokens are published to.
    private: String,
}

impl Drop for Runner {
    /// Nobody waits for a thread that has gone, not even after a panic.
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.stopped = true;
        state.shown.proved = false;
        state.proofs.clear();
        self.meters.connected.set(0);
    }
}

impl Runner {
    fn run(mut self) {
        let wake = self.shared.wake.clone();
        let beat = self.board.health.beat(BEAT, self.config.operation_time + ROUND_TIME, move || wake.raise());
        loop {
            beat.come_round();
            let deadline = Instant::now() + self.config.operation_time;
            let error = match Connection::open(&self.config, deadline, &self.shared.shutdown, Level::Cancel) {
                Err(error) => error,
                Ok(connection) => {
                    self.meters.connects.inc();
                    self.backoff.connected(Instant::now());
                    let mut session = self.begin(connection);
                    let Err(error) = self.serve(&mut session, &beat) else { return };
                    // The next connection proves it to them.
                    let waiting = session.token.take().map(|(_, waiters)| waiters);
                    lock(&self.shared.state).proofs.extend(waiting.unwrap_or_default());
                    error
                }
            };
            if !self.pause_after(&error, &beat) {
                return;
            }
        }
    }

    /// Says that the subscriptions do not work, and waits before the next attempt; `false` if it is to stop.
    fn pause_after(&mut self, error: &RedisError, beat: &Beat) -> bool {
        {
            let mut state = lock(&self.shared.state);
            if state.stopped {
                return false;
            }
            state.shown.proved = false;
            state.shown.last_error = Some(error.clone());
        }
        self.meters.connected.set(0);
        let advice = error.advice().map(|advice| format!("; {advice}")).unwrap_or_default();
        self.board.health.down(self.shared.name, format!("{error}{advice}"));
        self.board.errors.report(error.class(), self.shared.name, &format_args!("{error}{advice}"));
        let (now, unit) = (Instant::now(), self.rng.unit());
        let until = now + self.backoff.next_delay(now, unit);
        loop {
            beat.come_round();
            if lock(&self.shared.state).stopped {
                return false;
            }
            if Instant::now() >= until {
                return true;
            }
            let _waiting = waiting("time to connect to Redis again", Some(until));
            match poll(None, Some(&self.shared.wake), Some(until)) {
                Ok(ready) if ready.woken => {
                    self.shared.wake.lower();
                }
                Ok(_) => {}
                // The shutdown signal's wait needs no descriptor.
                Err(_) => return !self.shared.shutdown.wait(until.saturating_duration_since(Instant::now())),
            }
        }
    }

    fn begin(&self, connection: Connection) -> Session {
        let mut session = Session {
            connection,
            sent: VecDeque::new(),
            subscribed: HashMap::new(),
            liveness: Liveness::new(Instant::now(), self.config.operation_time, self.config.stall_after),
            token: None,
            tokens: 0,
            proved: false,
            refused: BTreeMap::new(),
        };
        session.subscribe(Channel::Exact(self.private.clone()));
        // All is new to this connection.
        let state = &mut *lock(&self.shared.state);
        state.changed.extend(state.wanted.keys().cloned());
        session
    }

    /// Serves one connection until it is lost; `Ok` when it is to stop.
    fn serve(&mut self, session: &mut Session, beat: &Beat) -> Result<(), RedisError> {
        loop {
            beat.come_round();
            if !self.take_changes(session) {
                return Ok(());
            }
            let until = match session.liveness.verdict(Instant::now()) {
                Verdict::Wait(until) => until,
                Verdict::Ask => {
                    self.ask(session, Vec::new());
                    continue;
                }
                Verdict::Stalled(after) => {
                    self.meters.stalls.inc();
                    return Err(RedisError::Timeout { doing: "a proof of the subscriptions", after, last: None });
                }
            };
            session.connection.write_some()?;
            let waiting = waiting("a message of a subscription", Some(until));
            let ready = session.connection.poll(Some(&self.shared.wake), Some(until))?;
            drop(waiting);
            if ready.woken {
                self.shared.wake.lower();
            }
            if ready.readable {
                session.connection.read_some()?;
                while let Some(incoming) = session.connection.next_incoming()? {
                    self.take(session, incoming)?;
                }
            }
        }
    }

    /// Sends what has changed since the last look; `false` if it is to stop.
    fn take_changes(&self, session: &mut Session) -> bool {
        let (waiters, hooks, epoch) = {
            let state = &mut *lock(&self.shared.state);
            if state.stopped {
                return false;
            }
            for channel in std::mem::take(&mut state.changed) {
                match state.wanted.get(&channel) {
                    Some(sinks) => {
                        if session.subscribed.insert(channel.clone(), sinks.clone()).is_none() {
                            session.subscribe(channel);
                        }
                    }
                    None => {
                        session.refused.remove(&channel);
                        if session.subscribed.remove(&channel).is_some() {
                            session.unsubscribe(&channel);
                        }
                    }
                }
            }
            let waiters = if session.token.is_none() { std::mem::take(&mut state.proofs) } else { Vec::new() };
            let epoch = state.shown.epoch;
            let mut hooks = Vec::new();
            if session.proved {
                for (notified, hook) in &mut state.hooks {
                    if std::mem::replace(notified, epoch) < epoch {
                        hooks.push(hook.clone());
                    }
                }
            }
            (waiters, hooks, epoch)
        };
        if session.tokens == 0 || !waiters.is_empty() {
            self.ask(session, waiters);
        }
        // Outside the lock: a hook may subscribe.
        for hook in hooks {
            (hook.run)(epoch);
        }
        true
    }

    /// Publishes a token to ourselves.
    fn ask(&self, session: &mut Session, waiters: Vec<Waiter>) {
        session.tokens += 1;
        let token = session.tokens.to_string();
        redis::cmd("PUBLISH").arg(&self.private).arg(&token).write_packed_command(session.connection.outbox());
        session.sent.push_back(Sent::Publish);
        session.token = Some((token, waiters));
        session.liveness.asked();
    }

    fn take(&self, session: &mut Session, incoming: Incoming) -> Result<(), RedisError> {
        match incoming {
            Incoming::Reply(Value::ServerError(error)) => self.refused(session, (&error).into()),
            Incoming::Reply(_) => session.answered(|sent| matches!(sent, Sent::Publish)),
            Incoming::Push(PushKind::Subscribe | PushKind::PSubscribe, _) => {
                session.answered(|sent| matches!(sent, Sent::Subscribe(_)))
            }
            Incoming::Push(PushKind::Unsubscribe | PushKind::PUnsubscribe, _) => {
                session.answered(|sent| matches!(sent, Sent::Unsubscribe))
            }
            Incoming::Push(PushKind::Message, data) => {
                let Ok([channel, payload]) = <[Value; 2]>::try_from(data) else { return Err(self.strange("message")) };
                let (Some(channel), Some(payload)) = (text(channel), bytes(payload)) else {
                    return Err(self.strange("message"));
                };
                if channel == self.private {
                    self.token_came(session, &payload);
                    return Ok(());
                }
                self.deliver(session, &Channel::Exact(channel.clone()), Message { channel, pattern: None, payload });
                Ok(())
            }
            Incoming::Push(PushKind::PMessage, data) => {
                let Ok([pattern, channel, payload]) = <[Value; 3]>::try_from(data) else {
                    return Err(self.strange("pmessage"));
                };
                let (Some(pattern), Some(channel), Some(payload)) = (text(pattern), text(channel), bytes(payload))
                else {
                    return Err(self.strange("pmessage"));
                };
                let to = Channel::Pattern(pattern.clone());
                self.deliver(session, &to, Message { channel, pattern: Some(pattern), payload });
                Ok(())
            }
            // Nothing that was asked for.
            Incoming::Push(..) => Ok(()),
        }
    }

    fn deliver(&self, session: &mut Session, to: &Channel, message: Message) {
        session.liveness.received(Instant::now());
        self.meters.messages.inc();
        if let Some(((_, last), others)) = session.subscribed.get(to).and_then(|sinks| sinks.split_last()) {
            for (_, sink) in others {
                sink(message.clone());
            }
            last(message);
        }
    }

    fn token_came(&self, session: &mut Session, payload: &[u8]) {
        // One that was published over an earlier connection proves nothing.
        if session.token.as_ref().is_none_or(|(token, _)| token.as_bytes() != payload) {
            return;
        }
        let waiters = session.token.take().map(|(_, waiters)| waiters).unwrap_or_default();
        session.liveness.proved(Instant::now());
        self.meters.proofs.inc();
        if !session.proved {
            session.proved = true;
            {
                let mut state = lock(&self.shared.state);
                state.shown.proved = true;
                state.shown.epoch += 1;
            }
            self.meters.connected.set(1);
            log::info!("{}: {} channels of {} work", self.shared.name, session.subscribed.len(), self.config);
        }
        self.show(session);
        for (_, waiter) in waiters {
            // It may have given up.
            let _ = waiter.send(());
        }
    }

    fn show(&self, session: &Session) {
        match session.refused.first_key_value() {
            None => self.board.health.up(self.shared.name),
            Some((channel, error)) => {
                self.board.health.down(self.shared.name, format!("not subscribed to {channel:?}: {error}"));
            }
        }
    }

    fn refused(&self, session: &mut Session, error: RedisError) -> Result<(), RedisError> {
        match session.sent.pop_front() {
            Some(Sent::Subscribe(channel)) if channel != Channel::Exact(self.private.clone()) => {
                let line = format!("not subscribed to {channel:?}: {error}");
                self.board.errors.report(error.class(), self.shared.name, &line);
                session.refused.insert(channel, error);
                self.show(session);
                Ok(())
            }
            // Without tokens there is no telling whether anything works.
            _ => Err(error),
        }
    }

    fn strange(&self, what: &str) -> RedisError {
        RedisError::Protocol { peer: self.config.peer(), problem: format!("a {what} of another shape than Redis's") }
    }
}
