//! What the process says on stderr. Nobody waits for who reads it: lines go through a bounded queue to one thread,
//! and what finds no room is dropped, counted (`phalanx_log_lines_dropped_total`) and told of in the next line that
//! gets through. A reader that has gone is no error.
//!
//! Owner of the thread `log`: [`Stderr`]. Blocks in: a condition variable, until there is a line, and in `poll`, until
//! stderr can be written to. Kick: `closed`, and the other end of a socket that `poll` looks at too. Ends: when the
//! owner is dropped, which waits up to [`FLUSH_TIME`] for what is still to be written.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::log_queue::{LogQueue, WRITE_BYTES};
use super::output::write_when_ready;
use crate::base::lock::{lock, wait, wait_timeout};
use crate::base::thread::{Kick, Thread, try_spawn};
use crate::base::waits::waiting;
use crate::ops::log_lines;

/// How long the end of the process waits for lines that are still to be written: a reader that reads at all takes
/// what a pipe holds within milliseconds.
pub const FLUSH_TIME: Duration = Duration::from_millis(500);

/// How long the thread may take to end once it is kicked, unless it hangs in a write that nothing interrupts, as one
/// to a terminal that is stopped.
const END_TIME: Duration = Duration::from_millis(100);

/// How long lines are held for the ready line: a start that takes longer has something to tell.
const HOLD_TIME: Duration = Duration::from_secs(10);

/// Makes the line that tells how many were dropped.
type Notice = fn(u64) -> Vec<u8>;

/// Owns the thread that writes to stderr.
#[derive(Debug)]
pub struct Stderr {
    shared: Arc<Shared>,
    thread: Option<Thread<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    written: Condvar,
    notice: Notice,
}

#[derive(Default)]
struct State {
    queue: LogQueue,
    /// What the thread is to do next; it may log.
    words: Option<Box<dyn FnOnce() + Send>>,
    /// The thread has taken something and is not done with it.
    is_busy: bool,
    held_until: Option<Instant>,
    closed: bool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shared({:?})", lock(&self.state).queue)
    }
}

static SHARED: OnceLock<Arc<Shared>> = OnceLock::new();

impl Stderr {
    /// From now on lines are written by the thread `log`. Once in a process; `notice` makes the line that tells how
    /// many were dropped.
    ///
    /// # Errors
    /// If the system has no descriptors or threads left.
    pub fn start(notice: Notice) -> io::Result<Self> {
        let (woken, wake) = UnixStream::pair()?;
        let shared =
            Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), written: Condvar::new(), notice });
        let (running, kicked) = (shared.clone(), shared.clone());
        let kick = Kick::new("closed, and a socket", move || {
            lock(&kicked.state).closed = true;
            kicked.changed.notify_all();
            // It fails only if the thread has ended already.
            let _ = wake.shutdown(std::net::Shutdown::Both);
        });
        let thread = try_spawn("log", kick, move || run(&running, &woken)).map_err(io::Error::other)?;
        // A second one in a process (none has it) would write nothing.
        let shared = SHARED.get_or_init(|| shared).clone();
        Ok(Self { shared, thread: Some(thread) })
    }
}

impl Drop for Stderr {
    fn drop(&mut self) {
        self.shared.flush(FLUSH_TIME);
        if let Some(thread) = self.thread.take() {
            thread.kick();
            if let Err(crate::base::thread::JoinError::Late(thread)) = thread.join_by(Instant::now() + END_TIME) {
                thread.abandon("stderr is stuck");
            }
        }
    }
}

/// Writes lines, each with its end. Never waits for the reader, unless [`Stderr`] was not started.
pub fn write(lines: Vec<u8>) {
    match SHARED.get() {
        Some(shared) => shared.push(lines),
        // It could be told to nobody.
        None => drop(io::stderr().write_all(&lines)),
    }
}

/// Holds all lines until [`release`], for some seconds at most: a role first says on stdout that it is ready.
pub fn hold() {
    if let Some(shared) = SHARED.get() {
        lock(&shared.state).held_until = Some(Instant::now() + HOLD_TIME);
    }
}

/// Lets lines that were held be written.
pub fn release() {
    if let Some(shared) = SHARED.get() {
        lock(&shared.state).held_until = None;
        shared.changed.notify_all();
    }
}

/// Drops the lines that are held.
pub fn drop_held() {
    if let Some(shared) = SHARED.get() {
        let mut state = lock(&shared.state);
        if state.held_until.take().is_some_and(|until| until > Instant::now()) {
            state.queue = LogQueue::default();
        }
        drop(state);
        shared.changed.notify_all();
    }
}

/// Waits until all lines are written, at most for `limit`.
pub fn flush(limit: Duration) {
    if let Some(shared) = SHARED.get() {
        shared.flush(limit);
    }
}

/// Has the thread `log` call `words`, which may log, and waits until all is written, at most for `limit`: whatever
/// `words` waits for, the caller goes on.
pub fn last_words(limit: Duration, words: impl FnOnce() + Send + 'static) {
    if let Some(shared) = SHARED.get() {
        lock(&shared.state).words = Some(Box::new(words));
        shared.changed.notify_all();
        shared.flush(limit);
    }
}

impl Shared {
    fn push(&self, lines: Vec<u8>) {
        let mut state = lock(&self.state);
        let taken = !state.closed && state.queue.push(lines, &self.notice);
        drop(state);
        if taken {
            self.changed.notify_all();
        } else {
            log_lines::count_dropped(1);
        }
    }

    fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut state = lock(&self.state);
        state.held_until = None;
        self.changed.notify_all();
        while !state.closed && (state.is_busy || state.words.is_some() || !state.queue.is_empty()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let _waiting = waiting("log lines to be written", Some(deadline));
            state = wait_timeout(&self.written, state, left);
        }
    }
}

fn run(shared: &Shared, woken: &UnixStream) {
    let mut state = lock(&shared.state);
    loop {
        let held = state.held_until.map(|until| until.saturating_duration_since(Instant::now()));
        if let Some(words) = state.words.take() {
            state.is_busy = true;
            drop(state);
            words();
            state = lock(&shared.state);
        } else if let Some(left) = held.filter(|left| !left.is_zero() && !state.closed) {
            let _waiting = waiting("the ready line", state.held_until);
            state = wait_timeout(&shared.changed, state, left);
        } else if let Some(batch) = state.queue.take(&shared.notice) {
            state.is_busy = true;
            drop(state);
            let written = write_all(&batch.bytes, woken);
            state = lock(&shared.state);
            if written.is_err() {
                state.queue.lost(batch.lines);
                log_lines::count_dropped(batch.lines);
            }
        } else if state.closed {
            break;
        } else {
            let _waiting = waiting("a log line", None);
            state = wait(&shared.changed, state);
        }
        state.is_busy = false;
        shared.written.notify_all();
    }
}

fn write_all(mut bytes: &[u8], woken: &UnixStream) -> io::Result<()> {
    while !bytes.is_empty() {
        let some = &bytes[..bytes.len().min(WRITE_BYTES)];
        match write_when_ready(&io::stderr(), woken, "a reader of stderr", some) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
