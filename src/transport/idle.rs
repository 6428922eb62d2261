//! Connections that nobody uses at present, and that are to be used again: one thread for all of them answers their
//! peers' pings, and takes a Close.
//!
//! Owner: the [`IdleWatch`]. Blocks in: `poll` of all of them, and for a moment in an answer ([`CLOSE_SEND_TIME`]).
//! Kick: an event that is polled with them. Ends: with [`IdleWatch::stop`], or when it is dropped.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::{CLOSE_SEND_TIME, Connection, ConnectionKick, Incoming};
use crate::base::lock::lock;
use crate::base::stop::{Step, StopReport, stop_alone, stop_dropped};
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::timer::TimerHandle;
use crate::base::waits::waiting;
use crate::net::wake::Wake;

/// Watches idle connections. Dropping it stops it; the connections stay with those who hold them.
#[derive(Debug)]
pub struct IdleWatch {
    shared: Arc<WatchShared>,
    /// Taken by the stop.
    thread: Option<Thread<()>>,
}

/// Takes connections into the watch; clones are the same watch, and may outlive it.
#[derive(Debug, Clone)]
pub struct IdleHandle(Arc<WatchShared>);

struct WatchShared {
    wake: Wake,
    timer: TimerHandle,
    state: Mutex<WatchState>,
}

#[derive(Default)]
struct WatchState {
    idle: HashMap<u64, Watched>,
    next: u64,
    stopped: bool,
}

#[derive(Clone)]
struct Watched {
    place: Arc<Place>,
    descriptor: Arc<dyn AsFd + Send + Sync>,
}

/// Where the connection is; `None` once it was taken or has ended.
struct Place(Mutex<Option<Connection>>);

/// A connection that nobody uses at present. Dropping it ends the connection without a Close.
pub struct IdleConnection {
    shared: Arc<WatchShared>,
    number: u64,
    place: Arc<Place>,
    kick: ConnectionKick,
}

impl fmt::Debug for WatchShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} idle connections", lock(&self.state).idle.len())
    }
}

impl fmt::Debug for IdleConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdleConnection({})", self.number)
    }
}

impl IdleWatch {
    /// Starts the thread, with a name of at most 15 bytes.
    ///
    /// # Errors
    /// What the system says when it has no file descriptor left.
    pub fn start(name: &str, timer: TimerHandle) -> io::Result<Self> {
        let shared = Arc::new(WatchShared { wake: Wake::new()?, timer, state: Mutex::default() });
        let (watching, kicked) = (shared.clone(), shared.clone());
        let kick = Kick::new("the watch's event", move || kicked.end());
        let thread = spawn(name, kick, move || watching.run());
        Ok(Self { shared, thread: Some(thread) })
    }

    /// What takes connections in.
    pub fn handle(&self) -> IdleHandle {
        IdleHandle(self.shared.clone())
    }

    /// Stops it alone, within `budget`, as [`IdleWatch::stop_in`] does.
    pub fn stop(self, budget: Duration) -> StopReport {
        stop_alone("idle connections", budget, |step| self.stop_in(step))
    }

    /// Ends the thread and joins it. Connections that are still idle are not watched any more.
    pub fn stop_in(mut self, step: &mut Step) {
        self.shared.end();
        if let Some(thread) = self.thread.take() {
            step.join(thread);
        }
    }
}

impl Drop for IdleWatch {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.shared.end();
        stop_dropped(|step| {
            step.join(thread);
        });
    }
}

impl IdleHandle {
    /// Watches a connection that both sides have nothing to say on, until it is taken back. What was read of it already
    /// is looked at here, because no poll shows that. One over a transport that cannot be polled is kept as it is.
    /// Blocks at most [`CLOSE_SEND_TIME`], while a ping is answered.
    pub fn keep(&self, connection: Connection) -> IdleConnection {
        let kick = connection.kick.clone();
        let descriptor = connection.reader.descriptor();
        let place = Arc::new(Place(Mutex::new(Some(connection))));
        let goes_on = descriptor.is_some() && self.0.tend(&place);
        let mut state = lock(&self.0.state);
        let number = state.next;
        state.next += 1;
        if let Some(descriptor) = descriptor
            && goes_on
            && !state.stopped
        {
            state.idle.insert(number, Watched { place: place.clone(), descriptor });
        }
        drop(state);
        self.0.wake.raise();
        IdleConnection { shared: self.0.clone(), number, place, kick }
    }

    /// Connections that are watched now.
    pub fn len(&self) -> usize {
        lock(&self.0.state).idle.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl IdleConnection {
    /// Takes it back to use it; `None` if its peer has ended it, or has said something unasked. Waits at most
    /// [`CLOSE_SEND_TIME`], while a ping is answered.
    pub fn take(self) -> Option<Connection> {
        lock(&self.place.0).take()
    }

    /// Whether nothing has ended it so far.
    pub fn is_open(&self) -> bool {
        lock(&self.place.0).is_some()
    }

    /// Ends it with a Close, whose answer nobody waits for. Blocks at most [`CLOSE_SEND_TIME`].
    pub fn close(self) {
        let connection = lock(&self.place.0).take();
        if let Some(connection) = connection {
            connection.close(&self.shared.timer);
        }
    }
}

impl Drop for IdleConnection {
    fn drop(&mut self) {
        lock(&self.shared.state).idle.remove(&self.number);
        let left = lock(&self.place.0).take();
        if left.is_some() {
            self.kick.kick();
        }
    }
}

impl WatchShared {
    fn end(&self) {
        lock(&self.state).stopped = true;
        self.wake.raise();
    }

    fn run(&self) {
        loop {
            self.wake.lower();
            let watched: Vec<_> = {
                let state = lock(&self.state);
                if state.stopped {
                    return;
                }
                state.idle.iter().map(|(number, watched)| (*number, watched.clone())).collect()
            };
            match readable(&self.wake, &watched) {
                Ok(ready) => {
                    for (number, watched) in ready {
                        if !self.tend(&watched.place) {
                            lock(&self.state).idle.remove(&number);
                        }
                    }
                }
                Err(Errno::INTR) => {}
                Err(error) => {
                    // Too many for the system; they are found out of order, or in order, when they are used.
                    log::error!("idle connections are not watched any more: {error}");
                    return self.end();
                }
            }
        }
    }

    /// Takes what the peer has said; says whether the connection can still be used.
    fn tend(&self, place: &Place) -> bool {
        let mut place = lock(&place.0);
        // Whoever has taken it reads what comes.
        let Some(connection) = place.as_mut() else { return false };
        let kick = connection.kick.clone();
        let _late = self.timer.at(self.timer.clock().now() + CLOSE_SEND_TIME, move || kick.kick());
        if goes_on(connection) {
            return true;
        }
        connection.kick.kick();
        *place = None;
        false
    }
}

/// Frames that a peer may send at a time on an idle connection. One that sends more holds up the others.
const FRAMES: usize = 32;

/// Reads what there is, and answers it; says whether the connection can still be used.
fn goes_on(connection: &mut Connection) -> bool {
    for _ in 0..FRAMES {
        match connection.reader.read_now() {
            Ok(None) => return true,
            Ok(Some(Incoming::Pong)) => {}
            Ok(Some(Incoming::Control)) => {
                if connection.writer.flush().is_err() {
                    return false;
                }
            }
            Ok(Some(Incoming::Closed(info))) => {
                log::debug!("idle connection to {}: {info}", connection.peer);
                // The answer to its Close; a peer that has gone needs none.
                let _ = connection.writer.flush();
                return false;
            }
            Ok(Some(Incoming::Text(_) | Incoming::Binary(_))) => {
                log::debug!("{} speaks unasked on an idle connection, which is closed", connection.peer);
                // Polite only.
                let _ = connection.writer.close(1000, "");
                return false;
            }
            Err(error) => {
                log::debug!("idle connection to {}: {error}", connection.peer);
                return false;
            }
        }
    }
    log::debug!("{} says too much on an idle connection, which is closed", connection.peer);
    false
}

/// Blocks until any of them, or the wake, is readable; gives those that are.
fn readable(wake: &Wake, watched: &[(u64, Watched)]) -> Result<Vec<(u64, Watched)>, Errno> {
    let mut fds = vec![PollFd::new(wake, PollFlags::IN)];
    fds.extend(watched.iter().map(|(_, watched)| PollFd::from_borrowed_fd(watched.descriptor.as_fd(), PollFlags::IN)));
    let _waiting = waiting("the peers of idle connections", None);
    poll(&mut fds, None)?;
    let ready = fds[1..].iter().zip(watched).filter(|(fd, _)| !fd.revents().is_empty());
    Ok(ready.map(|(_, watched)| watched.clone()).collect())
}
