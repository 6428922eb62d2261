//! What each thread waits for, since when and until when, for whoever looks at the live list.
//!
//! A thread marks a wait where it is about to block, and not on the way on which it need not. A mark takes two looks at
//! the clock and a lock that nobody else holds but for the moment of a look; nothing is allocated. Threads that are not
//! on the live list of [`super::thread`] mark nothing.

use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvError, SendError, Sender, TryRecvError, TrySendError};

use super::limits::WAIT_LATE;

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Activity {
    /// What it waits for; `None` if it runs.
    pub waits_for: Option<&'static str>,
    /// Since when it waits, or runs.
    pub since: Instant,
    /// When the wait ends at the latest; `None` if something else has to end it.
    pub deadline: Option<Instant>,
}

impl Activity {
    fn runs(since: Instant) -> Self {
        Self { waits_for: None, since, deadline: None }
    }

    /// By how much the wait is over its deadline, if by [`WAIT_LATE`] or more.
    pub fn late(&self, now: Instant) -> Option<Duration> {
        let over = now.saturating_duration_since(self.deadline?);
        (over >= WAIT_LATE).then_some(over)
    }
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (now, Self { waits_for, since, deadline }) = (Instant::now(), self);
        match waits_for {
            Some(what) => write!(f, "waits for {what} for ")?,
            None => write!(f, "runs for ")?,
        }
        write!(f, "{:.1?}", now.saturating_duration_since(*since))?;
        match deadline {
            Some(by) if *by >= now => write!(f, ", {:.1?} left", *by - now),
            Some(by) => write!(f, ", {:.1?} over its deadline", now - *by),
            None => Ok(()),
        }
    }
}

/// Where one thread keeps its [`Activity`] for others to see.
#[derive(Debug)]
pub(super) struct ActivitySlot(Mutex<Activity>);

impl ActivitySlot {
    pub(super) fn new(now: Instant) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Activity::runs(now))))
    }

    pub(super) fn activity(&self) -> Activity {
        self.replace(|activity| activity)
    }

    /// Not by [`super::lock::lock`], which marks a wait itself.
    fn replace(&self, with: impl FnOnce(Activity) -> Activity) -> Activity {
        let mut activity = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let old = *activity;
        *activity = with(old);
        old
    }
}

thread_local! {
    static SLOT: RefCell<Option<Arc<ActivitySlot>>> = const { RefCell::new(None) };
}

/// From now on the marks of the calling thread go here; gives where they went before.
pub(super) fn keep(slot: Option<Arc<ActivitySlot>>) -> Option<Arc<ActivitySlot>> {
    SLOT.replace(slot)
}

/// What the calling thread did until now; `None` if it is not on the live list, or is past the end of its closure.
fn replace(with: impl FnOnce(Activity) -> Activity) -> Option<Activity> {
    SLOT.try_with(|slot| slot.borrow().as_ref().map(|slot| slot.replace(with))).ok().flatten()
}

/// The calling thread waits; when this is dropped, it does what it did before.
#[derive(Debug)]
#[must_use = "the mark is there only while the value lives"]
pub struct Waiting {
    outer: Option<Activity>,
    /// The mark is the calling thread's.
    not_send: PhantomData<*const ()>,
}

/// Says that the calling thread is about to wait for `what`, by `deadline` if there is one. A mark inside a mark is the
/// one that is seen.
pub fn waiting(what: &'static str, deadline: Option<Instant>) -> Waiting {
    let outer = replace(|_| Activity { waits_for: Some(what), since: Instant::now(), deadline });
    Waiting { outer, not_send: PhantomData }
}

/// As [`waiting`], for a wait of many uses: if the caller has marked what it waits for, that stays to be seen.
pub fn waiting_unless_noted(what: &'static str, deadline: Option<Instant>) -> Waiting {
    let outer = replace(|outer| match outer.waits_for {
        Some(_) => outer,
        None => Activity { waits_for: Some(what), since: Instant::now(), deadline },
    });
    Waiting { outer, not_send: PhantomData }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(outer) = self.outer {
            replace(|_| if outer.waits_for.is_some() { outer } else { Activity::runs(Instant::now()) });
        }
    }
}

/// Receives; a wait for it is marked as one for `what`. Blocks until there is a message or the last sender has gone.
///
/// # Errors
/// The last sender has gone, and nothing is left.
pub fn recv<T>(from: &Receiver<T>, what: &'static str) -> Result<T, RecvError> {
    match from.try_recv() {
        Ok(message) => Ok(message),
        Err(TryRecvError::Disconnected) => Err(RecvError),
        Err(TryRecvError::Empty) => {
            let _waiting = waiting(what, None);
            from.recv()
        }
    }
}

/// Sends; a wait for room is marked as one for `what`. Blocks until there is room or the last receiver has gone.
///
/// # Errors
/// The last receiver has gone; the message is handed back.
pub fn send<T>(to: &Sender<T>, message: T, what: &'static str) -> Result<(), SendError<T>> {
    match to.try_send(message) {
        Ok(()) => Ok(()),
        Err(TrySendError::Disconnected(message)) => Err(SendError(message)),
        Err(TrySendError::Full(message)) => {
            let _waiting = waiting(what, None);
            to.send(message)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use crossbeam_channel::bounded;

    use super::*;
    use crate::base::thread::{Group, Kick, Thread, spawn};
    use crate::base::wait::{LONG, far, until_some};

    fn mine() -> Option<Activity> {
        replace(|activity| activity)
    }

    fn on_a_listed_thread(run: impl FnOnce() + Send + 'static) {
        let thread = spawn("t-waits", Kick::dropped("nothing"), run);
        thread.join_by(far()).unwrap();
    }

    #[test]
    fn a_mark_inside_a_mark_is_seen_and_the_outer_one_comes_back_with_its_time() {
        on_a_listed_thread(|| {
            let waits = |what| mine().unwrap().waits_for == what;
            let ran_since = mine().unwrap().since;
            assert!(waits(None));
            let deadline = far();
            let outer = waiting("the outer", Some(deadline));
            let seen = mine().unwrap();
            assert_eq!((seen.waits_for, seen.deadline), (Some("the outer"), Some(deadline)));
            drop(waiting_unless_noted("something", None));
            assert_eq!(mine().unwrap(), seen);
            let general = waiting_unless_noted("something", None);
            assert_eq!(mine().unwrap(), seen);
            let inner = waiting("the inner", None);
            assert_eq!((mine().unwrap().waits_for, mine().unwrap().deadline), (Some("the inner"), None));
            drop(inner);
            assert_eq!(mine().unwrap(), seen);
            drop(general);
            drop(outer);
            assert!(waits(None) && mine().unwrap().since >= seen.since && seen.since >= ran_since);
            let _general = waiting_unless_noted("something", None);
            assert!(waits(Some("something")));
        });
    }

    #[test]
    fn a_panic_takes_the_marks_with_it() {
        on_a_listed_thread(|| {
            let caught = catch_unwind(|| {
                let _outer = waiting("the outer", None);
                let _inner = waiting("the inner", None);
                panic!("boom");
            });
            assert!(caught.is_err());
            assert_eq!(mine().unwrap().waits_for, None);
        });
    }

    #[test]
    fn a_thread_that_is_not_listed_marks_nothing() {
        // The threads of the test harness are not ours.
        let _waiting = waiting("nothing that anybody sees", None);
        assert_eq!(mine(), None);
    }

    /// The activity of a thread of the group once it waits for `what`.
    fn once_it_waits(group: &Group, what: &str) -> Activity {
        until_some(what, || Some(group.live()[0].activity).filter(|activity| activity.waits_for == Some(what)))
    }

    #[test]
    fn a_channel_is_marked_only_while_it_blocks() {
        let group = Group::enter();
        let (tx, rx) = bounded::<u8>(1);
        let thread: Thread<Option<Activity>> = spawn("t-recv", Kick::dropped("tx"), move || {
            assert_eq!(recv(&rx, "the first"), Ok(1));
            let ran = mine();
            assert_eq!(recv(&rx, "the end"), Err(RecvError));
            assert_eq!(recv(&rx, "nothing"), Err(RecvError));
            ran
        });
        assert_eq!(once_it_waits(&group, "the first").deadline, None);
        tx.send(1).unwrap();
        once_it_waits(&group, "the end");
        drop(tx);
        assert_eq!(thread.join_by(far()).unwrap().unwrap().waits_for, None);

        let (tx, rx) = bounded::<u8>(1);
        let thread = spawn("t-send", Kick::dropped("rx"), move || {
            send(&tx, 1, "nothing").unwrap();
            send(&tx, 2, "room").unwrap();
            send(&tx, 3, "room for more")
        });
        once_it_waits(&group, "room");
        assert_eq!(rx.recv(), Ok(1));
        once_it_waits(&group, "room for more");
        drop(rx);
        assert_eq!(thread.join_by(far()).unwrap(), Err(SendError(3)));
    }

    #[test]
    fn a_wait_is_late_some_time_after_its_deadline() {
        let now = Instant::now();
        let wait = |deadline| Activity { waits_for: Some("it"), since: now, deadline };
        assert_eq!(wait(None).late(now + LONG), None);
        assert_eq!(wait(Some(now)).late(now + WAIT_LATE - Duration::from_millis(1)), None);
        assert_eq!(wait(Some(now)).late(now + WAIT_LATE), Some(WAIT_LATE));
        assert_eq!(Activity::runs(now).late(now + LONG), None);
    }
}
