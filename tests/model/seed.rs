//! Bugs that are planted to see that the check finds them. The modelled files carry no branch for that: the bugs are in
//! the locks they are compiled against, in the outbox they are given, or in how the model calls them.

use std::cell::Cell;

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seed {
    /// A wait lets go of the lock a moment before it listens, as if the check were made outside the lock.
    GapBeforeWait,
    /// An answer does not wake the writer.
    NoWakeOnAnswer,
    /// A sender that gives back the writer's turn does not wake it.
    NoWakeOnTurnBack,
    /// A sender does not report that some of its texts have not left.
    LeftoversUntold,
    /// A sender gives back the writer's turn before it writes, as if the writer did not heed who has it.
    TurnBackBeforeUse,
    /// A lost connection does not put its unacknowledged messages back.
    NoRewind,
    /// Answers are matched on another thread than the one that reads the connection they came on.
    MatchedElsewhere,
    /// The poll thread lowers its event only when it has taken the news.
    LoweredAfterTaking,
    /// A stop kicks the connection that is present, and forgets the one that is about to be.
    NoKickOnAttach,
    /// The end of a task wakes none of those who wait for it.
    NoWakeOnEnd,
    /// Those who wait for a task learn of its end before the table does.
    ShownBeforeKnown,
    /// A lease is reported as dropped a moment before it is.
    ToldBeforeReturned,
    /// A lease that is lost in a panic is never dropped.
    LeaseForgotten,
    /// A lease is dropped while its executor is still there.
    DroppedWhileThere,
    /// A reload makes a new pool instead of telling the present one.
    PoolReplaced,
    /// A connection that could not be made keeps its place in the pool.
    PlaceLost,
    /// A pool counts the connections that are being made only once they are made.
    PlaceUncounted,
    /// Whoever gives a place, a permit or a connection back wakes nobody.
    NoWakeOnReturn,
    /// A permit is never dropped.
    PermitForgotten,
    /// A probe that ends without an outcome keeps its place in the breaker.
    ProbeKept,
    /// A caller looks at the budget and goes ahead, whatever it is granted then.
    LookThenTake,
}

thread_local! {
    // All tasks of a model run on the thread of its test, so this is one bug for a whole model.
    static PLANTED: Cell<Option<Seed>> = const { Cell::new(None) };
}

shuttle::thread_local! {
    static QUIET: Cell<bool> = Cell::new(false);
}

impl Seed {
    /// Runs `work` with this bug.
    pub fn plant<T>(self, work: impl FnOnce() -> T) -> T {
        PLANTED.set(Some(self));
        let done = work();
        PLANTED.set(None);
        done
    }

    pub fn is_planted(self) -> bool {
        PLANTED.get() == Some(self)
    }
}

/// Runs `work` with all its notifications forgotten.
pub fn quietly<T>(work: impl FnOnce() -> T) -> T {
    QUIET.with(|quiet| quiet.set(true));
    let done = work();
    QUIET.with(|quiet| quiet.set(false));
    done
}

pub fn is_quiet() -> bool {
    QUIET.with(Cell::get)
}
