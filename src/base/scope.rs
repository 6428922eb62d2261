//! Which job a thread works for, so that whatever logs can say so.
//!
//! Kept per thread; a thread that [`spawn`](super::thread::spawn) starts begins in the scope of the one that starts it.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::Arc;

thread_local! {
    static JOB: RefCell<Option<Arc<str>>> = const { RefCell::new(None) };
}

/// The calling thread's stay in a scope; dropping it restores the scope before. Scopes of one thread nest: the later
/// one is dropped first.
#[derive(Debug)]
#[must_use = "the scope ends when this is dropped"]
pub struct Scope {
    outer: Option<Arc<str>>,
    /// It belongs to its thread.
    _not_send: PhantomData<*const ()>,
}

/// From now on the calling thread, and each thread that it spawns, works for this job; until the value is dropped.
pub fn job(uuid: impl Into<Arc<str>>) -> Scope {
    enter(Some(uuid.into()))
}

/// The job that the calling thread works for.
pub fn current() -> Option<Arc<str>> {
    // The fallback is for what is logged while the thread's own values are being dropped.
    JOB.try_with(|job| job.borrow().clone()).unwrap_or(None)
}

/// As [`job`], with another thread's [`current`].
pub(crate) fn enter(job: Option<Arc<str>>) -> Scope {
    Scope { outer: JOB.replace(job), _not_send: PhantomData }
}

impl Drop for Scope {
    fn drop(&mut self) {
        let outer = self.outer.take();
        // It fails only while the thread's own values are being dropped, and then nobody asks any more.
        let _ = JOB.try_with(|job| job.replace(outer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::thread::{Kick, spawn};

    fn seen() -> Option<String> {
        current().map(|job| job.to_string())
    }

    #[test]
    fn scopes_nest_and_end() {
        assert_eq!(seen(), None);
        let outer = job("a");
        {
            let _inner = job("b");
            assert_eq!(seen().as_deref(), Some("b"));
        }
        assert_eq!(seen().as_deref(), Some("a"));
        drop(outer);
        assert_eq!(seen(), None);
    }

    #[test]
    fn threads_of_threads_inherit_the_scope_and_keep_it() {
        let look = || spawn("t-scope", Kick::dropped("nothing"), seen);
        let kept = {
            let _in = job("a");
            let (go, wait) = crossbeam_channel::bounded::<()>(0);
            let outer = spawn("t-outer", Kick::dropped("go"), move || {
                let _woken = wait.recv();
                spawn("t-inner", Kick::dropped("nothing"), seen)
            });
            (outer, go)
        };
        let far = std::time::Instant::now() + std::time::Duration::from_secs(30);
        // The spawner's scope has ended, and what it spawned then has none.
        assert_eq!(look().join_by(far).unwrap(), None);
        let (outer, go) = kept;
        drop(go);
        assert_eq!(outer.join_by(far).unwrap().join_by(far).unwrap().as_deref(), Some("a"));
    }
}
