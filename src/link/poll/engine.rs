//! The poll thread: it has the sockets of all polled connections of a server, reads and writes what is possible without
//! blocking, and gives the workers what they are to do.
//!
//! Owner: the [`Poll`]. Blocks in: the poll of all sockets. Kick: its event, with word to break all connections. Ends:
//! when it was told to and the last connection is over; it joins the workers then.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::io;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::news::News;
use super::peer::{Descriptor, Outcome, Peer, look_every};
use super::runs::Runs;
use super::shared::{Advanced, Arrival, PollShared, Run, Shaking};
use super::workers::{ROUND_TIME, Role, work};
use crate::base::ids::SessionId;
use crate::base::stop::{Step, stop_dropped};
use crate::base::thread::{Kick, NoThread, Thread, try_spawn};
use crate::base::timer::{Alarm, TimerHandle};
use crate::link::events::{HandshakeCheck, ServerEvent, ServerSink};
use crate::link::heartbeat::LivenessConfig;
use crate::link::session::{SessionEnd, SessionHandle};
use crate::net::poller::{Interest, Poller, Ready};
use crate::net::wake::Wake;
use crate::ops::errors::{ErrorClass, ErrorHandler};
use crate::ops::health::Health;
use crate::transport::{Polled, TransportError};

/// How long a peer that was refused may take to read why.
const LINGER_TIME: Duration = Duration::from_secs(1);

/// The part of the health that is the poll thread, and the place of its errors.
const POLL: &str = "poll";

/// Longest that a turn of the poll thread may take: it never blocks, however many sockets can go on.
const TURN_TIME: Duration = Duration::from_secs(10);

/// What a poll needs.
#[derive(Debug, Clone)]
pub(in crate::link) struct PollConfig {
    /// Prefix of the thread names, at most 3 bytes.
    pub(in crate::link) name: &'static str,
    /// Threads that call the role.
    pub(in crate::link) workers: usize,
    /// Time for one handshake.
    pub(in crate::link) handshake_time: Duration,
    /// When to ping and when to give up.
    pub(in crate::link) liveness: LivenessConfig,
    /// Where the poll thread promises progress.
    pub(in crate::link) health: Health,
    /// Is told of what it goes on after.
    pub(in crate::link) errors: ErrorHandler,
}

/// The poll thread of one server. When dropped, it breaks all its connections and joins its threads.
pub(in crate::link) struct Poll {
    shared: Arc<PollShared>,
    /// Taken by the stop.
    thread: Option<Thread<()>>,
}

impl Poll {
    /// Starts the poll thread and its workers.
    ///
    /// # Errors
    /// What the system says when it has no file descriptor or no thread left.
    pub(in crate::link) fn start(
        config: PollConfig,
        timer: TimerHandle,
        check: HandshakeCheck,
        sink: ServerSink,
    ) -> io::Result<Self> {
        let wake = Wake::new()?;
        let poller = Poller::new(wake.clone())?;
        let raise: Box<dyn Fn() + Send + Sync> = Box::new(move || wake.raise());
        let shared = Arc::new(PollShared { news: News::new(raise), runs: Runs::new() });
        let (polling, kicked) = (shared.clone(), shared.clone());
        let kick =
            Kick::new("its event", move || kicked.news.tell(|news| (news.finish, news.break_all) = (true, true)));
        let workers = config.workers;
        let mut polling = Polling::new(config, timer, polling, poller, Role { check, sink });
        for _ in 0..workers.max(1) {
            polling.hire().map_err(io::Error::other)?;
        }
        let thread = try_spawn(format!("{}-poll", polling.config.name), kick, move || polling.run());
        Ok(Self { shared, thread: Some(thread.map_err(io::Error::other)?) })
    }

    /// Takes a connection over. Returns at once.
    pub(in crate::link) fn add(&self, arrival: Arrival) {
        self.shared.news.tell(|news| news.arrivals.push(arrival));
    }

    /// What breaks one connection, whatever it is doing.
    pub(in crate::link) fn kick_of(&self, id: SessionId) -> impl Fn() + Send + Sync + 'static {
        let shared = self.shared.clone();
        move || shared.news.tell(|news| news.kicked.push(id.0))
    }

    /// Ends the handshakes that are under way.
    pub(in crate::link) fn end_handshakes(&self) {
        self.shared.news.tell(|news| news.no_handshakes = true);
    }

    /// Joins the threads once the last connection is over; at the step's deadline the rest is broken.
    pub(in crate::link) fn stop_in(mut self, step: &mut Step) {
        self.shared.news.tell(|news| news.finish = true);
        if let Some(thread) = self.thread.take() {
            step.join(thread);
        }
    }
}

impl Drop for Poll {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        thread.kick();
        stop_dropped(|step| {
            step.join(thread);
        });
    }
}

/// A connection as the poll thread has it.
struct Entry {
    id: SessionId,
    handle: SessionHandle,
    descriptor: Descriptor,
    /// What its socket is watched for; `None` if for nothing at all.
    watched: Option<Interest>,
    state: EntryState,
    place: Box<dyn Fn(&SessionEnd) + Send>,
}

enum EntryState {
    /// In its handshake, which a worker may have; until then.
    Shaking(Option<Shaking>, Instant),
    /// It reads why it was refused; until then.
    Refused(Box<dyn Polled>, Instant),
    Open(Box<Peer>),
}

struct Polling {
    config: PollConfig,
    timer: TimerHandle,
    shared: Arc<PollShared>,
    poller: Poller,
    role: Role,
    workers: Vec<Thread<()>>,
    /// Workers so far, for their names.
    count: usize,
    entries: HashMap<u64, Box<Entry>>,
    /// Those of which something may be there that no poll shows.
    again: Vec<u64>,
    /// Those that must be over before long.
    soon: HashSet<u64>,
    /// When all are looked at.
    look_at: Instant,
    alarm: Option<(Instant, Alarm)>,
    no_handshakes: bool,
    finish: bool,
}

impl Polling {
    fn trouble(&self, class: ErrorClass, what: &dyn Display) {
        let what = format_args!("{}: {what}", self.config.name);
        self.config.errors.report_of(class, POLL, self.config.name, &what);
    }

    fn new(config: PollConfig, timer: TimerHandle, shared: Arc<PollShared>, poller: Poller, role: Role) -> Self {
        let look_at = timer.clock().now();
        Self {
            config,
            timer,
            shared,
            poller,
            role,
            workers: Vec::new(),
            count: 0,
            entries: HashMap::new(),
            again: Vec::new(),
            soon: HashSet::new(),
            look_at,
            alarm: None,
            no_handshakes: false,
            finish: false,
        }
    }

    /// Starts a worker.
    fn hire(&mut self) -> Result<(), NoThread> {
        self.count += 1;
        let (working, kicked, role) = (self.shared.clone(), self.shared.clone(), self.role.clone());
        let kick = Kick::new("its queue closes", move || kicked.runs.close());
        let name = format!("{}-work-{}", self.config.name, self.count % 10_000);
        let of = Arc::downgrade(&self.shared);
        let wake = move || of.upgrade().iter().for_each(|shared| shared.runs.wake_all());
        let beat = self.config.health.beat("workers", ROUND_TIME, wake);
        self.workers.push(try_spawn(name, kick, move || work(&working, &role, &beat))?);
        Ok(())
    }

    /// Lets go of workers that have panicked, and has as many as there should be, if the system gives so many threads.
    fn replace_workers(&mut self) {
        self.workers.retain(|worker| !worker.is_finished());
        while self.workers.len() < self.config.workers.max(1) && self.hire().is_ok() {}
    }

    fn run(mut self) {
        let mut ready = Vec::new();
        let woken = self.shared.clone();
        let pulse = self.config.health.pulse_of_loop(POLL, TURN_TIME, move |_| woken.news.tell(|_| ()));
        while !(self.finish && self.entries.is_empty()) {
            pulse.begin(Instant::now() + TURN_TIME);
            self.hear();
            for number in mem::take(&mut self.again) {
                self.read(number);
            }
            self.plan();
            if self.finish && self.entries.is_empty() {
                break;
            }
            pulse.done();
            if let Err(error) = self.poller.wait(self.again.is_empty(), &mut ready) {
                self.trouble(ErrorClass::Fatal, &format_args!("it failed, its connections end: {error}"));
                self.finish = true;
                self.break_all();
            }
            for event in ready.drain(..) {
                self.event(event);
            }
        }
        // The workers handle what is left for them first.
        self.shared.runs.close();
        drop(mem::take(&mut self.workers));
    }

    /// Does what others have told.
    fn hear(&mut self) {
        let news = self.shared.news.take();
        self.finish |= news.finish;
        self.no_handshakes |= news.no_handshakes;
        for arrival in news.arrivals {
            self.arrive(arrival);
        }
        for (number, shaking, advanced) in news.advanced {
            self.advanced(number, shaking, advanced);
        }
        for number in news.resumed {
            if let Some(peer) = self.peer(number) {
                peer.resume();
                self.read(number);
            }
        }
        for number in news.admitted {
            if let Some(peer) = self.peer(number) {
                peer.admit();
                // Also if it was not shut: it may be that it is to go.
                self.read(number);
            }
        }
        for number in news.to_write {
            self.write(number);
        }
        for number in news.panicked {
            // Its thread reports the panic, and ends with it; so do the events of the connection.
            if let Err(error) = self.hire() {
                self.trouble(ErrorClass::Retry, &format_args!("one worker less for now: {error}"));
            }
            self.end(number, SessionEnd::Broken(TransportError::Stopped));
        }
        for number in news.kicked {
            self.break_one(number);
        }
        if news.no_handshakes {
            let shaking: Vec<u64> =
                self.entries.iter().filter(|(_, entry)| entry.is_shaking()).map(|(n, _)| *n).collect();
            shaking.into_iter().for_each(|number| self.drop_entry(number));
        }
        if news.break_all {
            self.break_all();
        }
        if news.look {
            self.alarm = None;
            self.replace_workers();
            self.look();
        }
    }

    fn arrive(&mut self, arrival: Arrival) {
        let Arrival { id, handle, polled, refusal, opened, place } = arrival;
        if self.no_handshakes {
            return;
        }
        let descriptor = polled.descriptor();
        let shaking = Shaking { polled, refusal, opened };
        let until = self.timer.clock().now() + self.config.handshake_time;
        let state = EntryState::Shaking(Some(shaking), until);
        let mut entry = Box::new(Entry { id, handle, descriptor, watched: None, state, place });
        match entry.watch(&self.poller, Interest { read: true, write: false, once: true }) {
            Ok(()) => {
                self.soon.insert(id.0);
                self.entries.insert(id.0, entry);
            }
            Err(error) => {
                let what = format_args!("a connection cannot be polled and is closed: {error}");
                self.trouble(ErrorClass::Reconnect, &what);
            }
        }
    }

    /// A socket can go on.
    fn event(&mut self, ready: Ready) {
        let number = ready.number;
        let Some(entry) = self.entries.get_mut(&number) else { return };
        match &mut entry.state {
            EntryState::Shaking(shaking, _) => {
                if let Some(shaking) = shaking.take() {
                    self.shared.runs.push(Run::Shake(number, shaking));
                }
            }
            EntryState::Refused(polled, _) => {
                let ended = polled.linger();
                let interest = Interest { read: true, write: polled.has_left(), once: false };
                if ended || entry.watch(&self.poller, interest).is_err() {
                    self.drop_entry(number);
                }
            }
            EntryState::Open(peer) => {
                if ready.broken && !peer.interest().read && !ready_to_write(peer) {
                    // It would be told again and again, and is found when reading goes on.
                    entry.unwatch(&self.poller);
                    return;
                }
                if ready.write {
                    self.write(number);
                }
                if ready.read {
                    self.read(number);
                }
            }
        }
    }

    /// A worker has taken a handshake on.
    fn advanced(&mut self, number: u64, shaking: Shaking, advanced: Advanced) {
        let now = self.timer.clock().now();
        let Some(entry) = self.entries.get_mut(&number) else {
            if let Ok(Some((connection, _))) = advanced {
                connection.kick.kick();
            }
            return;
        };
        match advanced {
            Ok(None) => {
                let interest = Interest { read: true, write: shaking.polled.has_left(), once: true };
                if let EntryState::Shaking(place, _) = &mut entry.state {
                    *place = Some(shaking);
                }
                if entry.watch(&self.poller, interest).is_err() {
                    self.drop_entry(number);
                }
            }
            Ok(Some((connection, request))) => {
                (shaking.opened)(&connection);
                let peer = connection.peer.clone();
                let told = self.shared.clone();
                connection.intake.on_change(move || told.news.tell(|news| news.admitted.push(number)));
                let waked = self.shared.clone();
                let wake = Arc::new(move || waked.news.tell(|news| news.to_write.push(number)));
                let mut open = Peer::open((entry.id, number), entry.handle.clone(), connection, wake, now);
                let mut outcome = Outcome { again: true, ..Outcome::default() };
                let (id, handle) = (entry.id, entry.handle.clone());
                open.push(ServerEvent::Opened { id, handle, request, peer }, &mut outcome);
                open.write(false, now, &mut outcome);
                entry.state = EntryState::Open(Box::new(open));
                self.soon.remove(&number);
                self.settle(number, outcome);
            }
            Err(error) => {
                log::debug!("{}: no handshake with {}: {error}", self.config.name, shaking.polled.peer());
                use TransportError as E;
                if !matches!(error, E::Refused { .. } | E::Handshake { .. } | E::Tls { .. }) {
                    return self.drop_entry(number);
                }
                entry.state = EntryState::Refused(shaking.polled, now + LINGER_TIME);
                self.event(Ready { number, read: true, write: true, broken: false });
            }
        }
    }

    fn read(&mut self, number: u64) {
        let now = self.timer.clock().now();
        if let Some(peer) = self.peer(number) {
            let outcome = peer.read(now);
            self.settle(number, outcome);
        }
    }

    fn write(&mut self, number: u64) {
        let now = self.timer.clock().now();
        if let Some(peer) = self.peer(number) {
            let mut outcome = Outcome::default();
            peer.write(false, now, &mut outcome);
            self.settle(number, outcome);
        }
    }

    fn peer(&mut self, number: u64) -> Option<&mut Peer> {
        match &mut self.entries.get_mut(&number)?.state {
            EntryState::Open(peer) => Some(peer),
            _ => None,
        }
    }

    /// Does what a turn has found to do.
    fn settle(&mut self, number: u64, mut outcome: Outcome) {
        for bytes in &outcome.ignored {
            let what = format_args!("ignored a binary message of {bytes} bytes: this link speaks text");
            self.trouble(ErrorClass::Rejected, &what);
        }
        let Some(entry) = self.entries.get_mut(&number) else { return };
        let end = outcome.end.take();
        if let Some(end) = &end {
            (entry.place)(end);
        }
        let EntryState::Open(peer) = &mut entry.state else { return };
        let is_over = end.is_some();
        if let Some(end) = end {
            peer.finish(end, &mut outcome);
        }
        if outcome.schedule {
            self.shared.runs.push(Run::Events(peer.served().clone()));
        }
        if is_over {
            return self.drop_entry(number);
        }
        if peer.ends_by().is_some() {
            self.soon.insert(number);
        }
        let interest = peer.interest();
        if let Err(error) = entry.watch(&self.poller, interest) {
            let what = format_args!("a connection cannot be polled any more and is closed: {error}");
            self.trouble(ErrorClass::Reconnect, &what);
            return self.end(number, SessionEnd::Broken(TransportError::io("polling")(error)));
        }
        if outcome.again {
            self.again.push(number);
        }
    }

    /// An open connection ends.
    fn end(&mut self, number: u64, end: SessionEnd) {
        if let Some(entry) = self.entries.get(&number) {
            (entry.place)(&end);
        }
        if let Some(peer) = self.peer(number) {
            let mut outcome = Outcome::default();
            peer.finish(end, &mut outcome);
            if outcome.schedule {
                let served = peer.served().clone();
                self.shared.runs.push(Run::Events(served));
            }
        }
        self.drop_entry(number);
    }

    fn drop_entry(&mut self, number: u64) {
        self.soon.remove(&number);
        if let Some(mut entry) = self.entries.remove(&number) {
            entry.unwatch(&self.poller);
            if let EntryState::Open(peer) = &entry.state {
                peer.kick();
            }
        }
    }

    fn break_one(&mut self, number: u64) {
        let Some(entry) = self.entries.get(&number) else { return };
        match &entry.state {
            EntryState::Open(peer) => {
                peer.kick();
                self.end(number, SessionEnd::Broken(TransportError::Stopped));
            }
            _ => self.drop_entry(number),
        }
    }

    fn break_all(&mut self) {
        let all: Vec<u64> = self.entries.keys().copied().collect();
        all.into_iter().for_each(|number| self.break_one(number));
    }

    /// Ends what is over its time, and has silent peers pinged.
    fn look(&mut self) {
        let now = self.timer.clock().now();
        let all = now >= self.look_at;
        let numbers: Vec<u64> = if all {
            self.look_at = now + look_every(&self.config.liveness, false);
            self.entries.keys().copied().collect()
        } else {
            self.soon.iter().copied().collect()
        };
        for number in numbers {
            let Some(entry) = self.entries.get_mut(&number) else { continue };
            match &mut entry.state {
                EntryState::Open(peer) => {
                    if let Some(end) = peer.look(now, &self.config.liveness) {
                        self.end(number, end);
                    }
                }
                EntryState::Shaking(_, until) if *until <= now => {
                    let after = self.config.handshake_time;
                    log::debug!("{}: session {number}: no handshake within {after:?}", self.config.name);
                    self.drop_entry(number);
                }
                EntryState::Refused(_, until) if *until <= now => self.drop_entry(number),
                EntryState::Shaking(..) | EntryState::Refused(..) => {}
            }
        }
    }

    /// Has itself woken for the next look, if there is anybody to look at.
    fn plan(&mut self) {
        if self.entries.is_empty() {
            self.alarm = None;
            return;
        }
        let soon = (!self.soon.is_empty()).then(|| self.timer.clock().now() + look_every(&self.config.liveness, true));
        let next = soon.map_or(self.look_at, |soon| soon.min(self.look_at));
        if self.alarm.as_ref().is_some_and(|(planned, _)| *planned <= next) {
            return;
        }
        let shared = self.shared.clone();
        self.alarm = Some((next, self.timer.at(next, move || shared.news.tell(|news| news.look = true))));
    }
}

/// Whether a break is found by writing.
fn ready_to_write(peer: &Peer) -> bool {
    peer.interest().write
}

impl Entry {
    fn is_shaking(&self) -> bool {
        matches!(self.state, EntryState::Shaking(..))
    }

    /// Watches the socket for `interest` from now on.
    fn watch(&mut self, poller: &Poller, interest: Interest) -> io::Result<()> {
        match self.watched {
            Some(watched) if watched == interest && !interest.once => return Ok(()),
            Some(_) => poller.change(&*self.descriptor, self.id.0, interest)?,
            None => poller.watch(&*self.descriptor, self.id.0, interest)?,
        }
        self.watched = Some(interest);
        Ok(())
    }

    fn unwatch(&mut self, poller: &Poller) {
        if self.watched.take().is_some() {
            poller.forget(&*self.descriptor);
        }
    }
}
