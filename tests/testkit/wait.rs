//! How every test waits, unit tests too: for what has an event on a channel or a condition variable with [`far`] as its
//! deadline, for what has none with [`until`]. Nothing sleeps for a time that is thought to be enough.

use std::time::{Duration, Instant};

use phalanx::base::shutdown::Shutdown;

/// Reached only by a bug: a machine under load is no bug.
pub const LONG: Duration = Duration::from_secs(60);

/// Between two looks at what tells nobody when it changes.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// [`LONG`] as a deadline.
pub fn far() -> Instant {
    Instant::now() + LONG
}

/// Waits for something that is seen only by looking.
#[track_caller]
pub fn until(what: &str, mut seen: impl FnMut() -> bool) {
    until_some(what, || seen().then_some(()));
}

/// Waits until a look finds something.
#[track_caller]
pub fn until_some<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let (limit, never) = (far(), Shutdown::new());
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < limit, "never seen: {what}");
        never.wait(LOOK_AGAIN);
    }
}
