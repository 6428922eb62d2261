//! The only place that spawns: threads that are named, caught, listed, and joined with a deadline.
//!
//! A thread is stopped by interrupting the call it blocks in, so [`spawn`] asks for the [`Kick`] that does it.

#![allow(clippy::disallowed_methods)] // The one allowed use of `std::thread::Builder`.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use super::lock::lock;
pub use super::panics::panic_message;
use super::scope;
use super::waits::{Activity, ActivitySlot, keep, waiting_unless_noted};

/// Linux truncates a thread's name here.
pub const NAME_BYTES_MAX: usize = 15;

/// How long the drop of a [`Thread`] waits for its end. A kicked thread ends within milliseconds, so only a bug or a
/// very busy machine comes near it.
pub const DROP_BUDGET: Duration = Duration::from_secs(10);

/// What interrupts the call that a thread blocks in.
#[derive(Clone)]
pub struct Kick {
    what: &'static str,
    action: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Kick {
    /// A kick that acts, as a `shutdown` of the socket that the thread reads. It may run more than once and must not
    /// block.
    pub fn new(what: &'static str, action: impl Fn() + Send + Sync + 'static) -> Self {
        Self { what, action: Some(Arc::new(action)) }
    }

    /// The thread blocks only on something whose other end its owner drops or sets; `what` names it.
    pub fn dropped(what: &'static str) -> Self {
        Self { what, action: None }
    }

    /// Interrupts the blocking call, if that takes an action.
    pub fn kick(&self) {
        if let Some(action) = &self.action {
            action();
        }
    }
}

impl fmt::Debug for Kick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Kick").field(&self.what).finish()
    }
}

/// One thread of the live list.
#[derive(Debug, Clone)]
pub struct LiveThread {
    /// The thread's name, at most 15 bytes.
    pub name: String,
    /// What interrupts it.
    pub kick: &'static str,
    /// When it was spawned.
    pub since: Instant,
    /// What it waited for, or that it ran, when the list was made.
    pub activity: Activity,
}

impl fmt::Display for LiveThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}, kick: {}", self.name, self.activity, self.kick)
    }
}

struct LiveEntry {
    name: String,
    kick: &'static str,
    since: Instant,
    slot: Arc<ActivitySlot>,
    id: u64,
    group: u64,
}

impl LiveEntry {
    fn look(&self) -> LiveThread {
        let (name, activity) = (self.name.clone(), self.slot.activity());
        LiveThread { name, kick: self.kick, since: self.since, activity }
    }
}

static LIVE: Mutex<Vec<LiveEntry>> = Mutex::new(Vec::new());
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// Threads inherit the group of the thread that spawns them, so a test can list its own among those of other tests.
    static GROUP: Cell<u64> = const { Cell::new(0) };
}

type PanicHook = Arc<dyn Fn() + Send + Sync>;

static ON_PANIC: Mutex<Option<PanicHook>> = Mutex::new(None);

/// From now on `hook` is called on each thread whose closure panicked; the last hook counts.
///
/// For the owner of the process: a role whose thread has panicked is not to go on as if it were alive.
pub fn on_panic(hook: impl Fn() + Send + Sync + 'static) {
    *lock(&ON_PANIC) = Some(Arc::new(hook));
}

/// The name of the calling thread, whoever has spawned it.
pub fn current_name() -> String {
    std::thread::current().name().unwrap_or("a thread without a name").to_owned()
}

/// Whether the calling thread unwinds from a panic.
pub fn is_panicking() -> bool {
    std::thread::panicking()
}

/// Every live thread of this crate in the process, oldest first.
pub fn live() -> Vec<LiveThread> {
    lock(&LIVE).iter().map(LiveEntry::look).collect()
}

/// Puts a thread on the list; the number takes it off again.
fn list(name: &str, kick: &'static str, group: u64) -> (Listed, Arc<ActivitySlot>) {
    let (id, since) = (NEXT_ID.fetch_add(1, Ordering::Relaxed), Instant::now());
    let slot = ActivitySlot::new(since);
    lock(&LIVE).push(LiveEntry { name: name.to_owned(), kick, since, slot: slot.clone(), id, group });
    (Listed(id), slot)
}

/// The calling thread is on the live list although this crate has not spawned it, until the value is dropped on it.
#[derive(Debug)]
#[must_use = "the thread is listed only while the value lives"]
pub struct Adopted {
    _listed: Listed,
    outer: Option<Arc<ActivitySlot>>,
    /// The marks are the calling thread's.
    not_send: PhantomData<*const ()>,
}

/// Puts the calling thread on the live list, as the main thread of a program; `kick` says what interrupts it.
pub fn adopt(name: &str, kick: &'static str) -> Adopted {
    let (listed, slot) = list(name, kick, GROUP.get());
    Adopted { _listed: listed, outer: keep(Some(slot)), not_send: PhantomData }
}

impl Drop for Adopted {
    fn drop(&mut self) {
        keep(self.outer.take());
    }
}

/// A set of threads: those spawned by the thread that entered it, and by them in turn.
#[derive(Debug)]
pub struct Group {
    id: u64,
    outer: u64,
}

impl Group {
    /// From now on, threads spawned by the calling thread belong to a new group; until the value is dropped on that
    /// thread.
    pub fn enter() -> Self {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Self { id, outer: GROUP.replace(id) }
    }

    /// The live threads of this group.
    pub fn live(&self) -> Vec<LiveThread> {
        lock(&LIVE).iter().filter(|t| t.group == self.id).map(LiveEntry::look).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        GROUP.set(self.outer);
    }
}

/// Why a thread could not be joined to its result.
#[derive(Debug, thiserror::Error)]
pub enum JoinError<T> {
    /// It still runs; the thread is handed back so that it can be kicked and joined again.
    #[error("thread {} is still running", .0.name())]
    Late(Thread<T>),
    /// It panicked with this message, which was also logged.
    #[error("thread panicked: {0}")]
    Panicked(String),
}

/// An owned thread. Dropping it kicks it, if it still runs, joins it within [`DROP_BUDGET`], and leaves it behind if it
/// does not end; owners call [`Thread::join_by`] instead.
#[must_use = "a thread is joined by the one that spawned it"]
pub struct Thread<T> {
    name: String,
    kick: Kick,
    handle: Option<JoinHandle<Result<T, String>>>,
    done: Receiver<()>,
}

impl<T> fmt::Debug for Thread<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Thread").field("name", &self.name).field("kick", &self.kick).finish_non_exhaustive()
    }
}

/// The system has no thread to give: a limit of the user, of the control group or of the machine is reached.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "the system gives no further thread, for {name} ({why}): raise the limit of tasks (ulimit -u, TasksMax=, pids.max)"
)]
pub struct NoThread {
    /// The name that the thread would have had.
    pub name: String,
    /// What the system says.
    pub why: String,
}

/// Spawns a named thread that runs `f`; `kick` is what interrupts the call it blocks in.
///
/// A panic of `f` is caught, logged with the thread's name and given to the joiner. The thread begins in the caller's
/// [`scope`].
///
/// Where the caller can go on without the thread, as with one connection among many, it calls [`try_spawn`].
///
/// # Panics
/// If the system has no thread to give. The panic's payload is the [`NoThread`], and no panic hook is called: the
/// calling thread unwinds, its owners stop what they own, and [`no_thread`] finds the reason.
pub fn spawn<T, F>(name: impl Into<String>, kick: Kick, f: F) -> Thread<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    try_spawn(name, kick, f).unwrap_or_else(|none| resume_unwind(Box::new(none)))
}

/// As [`spawn`], for a caller that can go on without the thread.
///
/// # Errors
/// If the system has no thread to give; `f` is dropped.
pub fn try_spawn<T, F>(name: impl Into<String>, kick: Kick, f: F) -> Result<Thread<T>, NoThread>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let name: String = name.into();
    debug_assert!(name.len() <= NAME_BYTES_MAX, "thread name {name} is longer than {NAME_BYTES_MAX} bytes");
    let group = GROUP.get();
    let job = scope::current();
    let (listed, slot) = list(&name, kick.what, group);
    let (done_tx, done) = bounded::<()>(0);
    let thread_name = name.clone();
    let body = move || {
        // Declared before the guard, so that the thread has left the list when the joiner wakes.
        let _done = done_tx;
        let _listed = listed;
        keep(Some(slot));
        GROUP.set(group);
        let _job = scope::enter(job);
        log::trace!("thread {thread_name} starts");
        let result = catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
            let what = if payload.is::<NoThread>() { "cannot go on" } else { "panicked" };
            (what, panic_message(payload.as_ref()))
        });
        match &result {
            Ok(_) => log::trace!("thread {thread_name} ends"),
            Err((what, message)) => {
                log::error!("thread {thread_name} {what}: {message}");
                let hook = lock(&ON_PANIC).clone();
                if let Some(hook) = hook {
                    hook();
                }
            }
        }
        result.map_err(|(_, message)| message)
    };
    let handle = Builder::new().name(name.clone()).spawn(body);
    // The closure, and with it the place on the list, has gone with an error.
    match handle {
        Ok(handle) => Ok(Thread { name, kick, handle: Some(handle), done }),
        Err(error) => Err(NoThread { name, why: error.to_string() }),
    }
}

/// A place on the live list.
#[derive(Debug)]
struct Listed(u64);

impl Drop for Listed {
    fn drop(&mut self) {
        lock(&LIVE).retain(|t| t.id != self.0);
    }
}

/// Runs `work`, and gives the reason if that came to its end for want of a thread. Another panic goes on.
///
/// # Errors
/// The [`NoThread`] with which [`spawn`] has unwound.
pub fn no_thread<T>(work: impl FnOnce() -> T) -> Result<T, NoThread> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| match payload.downcast::<NoThread>() {
        Ok(none) => *none,
        Err(panic) => resume_unwind(panic),
    })
}

impl<T> Thread<T> {
    /// The thread's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Interrupts the call that the thread blocks in.
    pub fn kick(&self) {
        self.kick.kick();
    }

    /// Whether the thread has ended; [`Thread::join_by`] then returns at once.
    pub fn is_finished(&self) -> bool {
        self.done.try_recv().is_err_and(|e| e.is_disconnected())
    }

    /// Disconnects when the thread ends; for an arm of `select!`.
    pub fn done_receiver(&self) -> &Receiver<()> {
        &self.done
    }

    /// Waits until the thread ends, at most until `deadline`, and gives its result.
    ///
    /// # Errors
    /// [`JoinError::Late`] hands the thread back; [`JoinError::Panicked`] has the panic's message.
    pub fn join_by(mut self, deadline: Instant) -> Result<T, JoinError<T>> {
        let waiting = waiting_unless_noted("a thread to end", Some(deadline));
        let done = self.done.recv_deadline(deadline);
        drop(waiting);
        match done {
            Err(RecvTimeoutError::Timeout) => Err(JoinError::Late(self)),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => self.finish().map_err(JoinError::Panicked),
        }
    }

    /// Waits until `deadline`, then kicks and waits for `grace` more.
    ///
    /// # Errors
    /// As [`Thread::join_by`], after the kick.
    pub fn join_or_kick(self, deadline: Instant, grace: Duration) -> Result<T, JoinError<T>> {
        match self.join_by(deadline) {
            Err(JoinError::Late(thread)) => {
                thread.kick();
                thread.join_by(Instant::now() + grace)
            }
            done => done,
        }
    }

    /// Gives the thread up: it stays on the live list, but nobody will join it.
    ///
    /// For a straggler that was kicked and reported, and for the one call that nothing can interrupt (a name look-up).
    pub fn abandon(mut self, why: &str) {
        log::warn!("thread {} is left behind: {why}", self.name);
        self.handle = None;
    }

    fn finish(&mut self) -> Result<T, String> {
        let handle =
            self.handle.take().expect("the handle is taken only here and in abandon, which consumes the thread");
        handle.join().unwrap_or_else(|payload| Err(panic_message(payload.as_ref())))
    }
}

impl<T> Drop for Thread<T> {
    fn drop(&mut self) {
        if self.handle.is_none() {
            return;
        }
        // What a thread that has ended was blocked in may be in others' use by now.
        if !self.is_finished() {
            self.kick.kick();
        }
        let deadline = Instant::now() + DROP_BUDGET;
        let _waiting = waiting_unless_noted("a thread to end", Some(deadline));
        if self.done.recv_deadline(deadline) == Err(RecvTimeoutError::Timeout) {
            log::warn!("thread {} is left behind: it did not end when its owner was dropped", self.name);
        } else {
            // The panic, if any, was logged by the thread itself.
            let _ = self.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::wait::{far, until_some};

    #[test]
    fn a_thread_is_listed_in_its_group_until_joined() {
        let group = Group::enter();
        let (tx, rx) = bounded::<()>(0);
        let thread = spawn("t-listed", Kick::dropped("tx"), move || rx.recv().is_err());
        assert_eq!(group.live().iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["t-listed"]);
        drop(tx);
        assert!(thread.join_by(far()).unwrap());
        assert!(group.live().is_empty());
    }

    #[test]
    fn threads_of_threads_are_of_the_same_group() {
        let group = Group::enter();
        let (tx, rx) = bounded::<()>(0);
        let outer = spawn("t-outer", Kick::dropped("tx"), move || {
            spawn("t-inner", Kick::dropped("tx"), move || rx.recv().is_err())
        });
        let inner = outer.join_by(far()).unwrap();
        assert_eq!(group.live().len(), 1);
        drop(tx);
        assert!(inner.join_by(far()).unwrap());
    }

    #[test]
    fn a_panic_is_a_result() {
        let thread = spawn("t-panic", Kick::dropped("nothing"), || -> u32 { panic!("boom {}", 7) });
        match thread.join_by(far()) {
            Err(JoinError::Panicked(message)) => assert_eq!(message, "boom 7"),
            other => panic!("expected a panic, got {other:?}"),
        }
    }

    #[test]
    fn a_late_thread_is_handed_back_and_its_kick_frees_it() {
        let (tx, rx) = bounded::<()>(1);
        let thread =
            spawn("t-late", Kick::new("tx", move || assert!(tx.try_send(()).is_ok())), move || rx.recv().is_ok());
        let Err(JoinError::Late(thread)) = thread.join_by(Instant::now()) else { panic!("joined too early") };
        assert!(thread.join_or_kick(Instant::now(), Duration::from_secs(30)).unwrap());
    }

    #[test]
    fn dropping_a_thread_that_has_ended_does_not_kick() {
        let thread = spawn("t-ended", Kick::new("panic", || panic!("kicked")), || {});
        assert!(thread.done_receiver().recv().is_err());
        drop(thread);
    }

    #[test]
    fn an_adopted_thread_is_listed_with_what_it_waits_for() {
        let group = Group::enter();
        let mine = adopt("t-adopted", "nothing");
        let waiting = super::super::waits::waiting("the test", None);
        let seen = group.live();
        assert_eq!((seen.len(), seen[0].name.as_str(), seen[0].activity.waits_for), (1, "t-adopted", Some("the test")));
        drop(waiting);
        assert_eq!(group.live()[0].activity.waits_for, None);
        drop(mine);
        assert!(group.live().is_empty());
    }

    #[test]
    fn a_join_is_a_wait_with_its_deadline() {
        let group = Group::enter();
        let (tx, rx) = bounded::<()>(0);
        let inner = spawn("t-inner", Kick::dropped("tx"), move || rx.recv().is_err());
        let by = far();
        let outer = spawn("t-outer", Kick::dropped("the other"), move || inner.join_by(by).unwrap());
        let activity = until_some("the outer thread waits for the inner", || {
            let live = group.live();
            let activity = live.iter().find(|thread| thread.name == "t-outer").unwrap().activity;
            (activity.waits_for == Some("a thread to end")).then_some(activity)
        });
        assert_eq!(activity.deadline, Some(by));
        drop(tx);
        assert!(outer.join_by(far()).unwrap());
    }

    #[test]
    fn dropping_a_thread_kicks_and_joins_it() {
        let group = Group::enter();
        let (tx, rx) = bounded::<()>(1);
        drop(spawn("t-drop", Kick::new("tx", move || assert!(tx.try_send(()).is_ok())), move || rx.recv().is_ok()));
        assert!(group.live().is_empty());
    }
}
