//! Calls of the user's code: a panic of it becomes a value.

use std::backtrace::Backtrace;
use std::cell::{Cell as ThreadCell, RefCell};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

use super::error::Panic;
use crate::base::thread::panic_message;

thread_local! {
    static AT_WORK: ThreadCell<bool> = const { ThreadCell::new(false) };
    static BACKTRACE: RefCell<Option<Backtrace>> = const { RefCell::new(None) };
}

/// From now on [`Panic::backtrace`] has the backtrace of each panic of a task.
///
/// Only a panic hook sees the stack of a panic. This puts one before the hook that the process has; it acts on threads
/// that run a task, and then calls the one before. It is for the owner of the process to call, once, at its start:
/// nothing else here sets a hook. Without it, a panic is known by its message, and the process's own hook reports the
/// place.
pub fn keep_backtraces() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            if AT_WORK.try_with(ThreadCell::get).unwrap_or(false) {
                // It fails only while the thread's own values are being dropped, and then no task runs.
                let _ = BACKTRACE.try_with(|kept| kept.replace(Some(Backtrace::force_capture())));
            }
            before(info);
        }));
    });
}

/// Runs the user's code: a panic of it becomes a value.
pub(super) fn guarded<T>(f: impl FnOnce() -> T) -> Result<T, Panic> {
    let outer = AT_WORK.replace(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    AT_WORK.set(outer);
    result.map_err(|payload| {
        let message = panic_message(payload.as_ref());
        // A payload may panic when it is dropped; it is leaked rather than dropped a second time.
        if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            std::mem::forget(again);
        }
        Panic::new(message, BACKTRACE.take())
    })
}

/// As [`guarded`], for what may panic and nobody waits for.
pub(super) fn tolerated(what: &str, f: impl FnOnce()) {
    if let Err(panic) = guarded(f) {
        log::error!("{what} panicked: {panic}");
    }
}

/// What the user's code says of an error.
pub(super) fn error_text(error: &impl fmt::Display) -> String {
    guarded(|| error.to_string()).unwrap_or_else(|panic| format!("it failed, and its error panicked: {panic}"))
}
