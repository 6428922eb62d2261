//! Whether a role takes new work: a person pauses it, for a while or until it is resumed, or it has closed itself. What
//! runs goes on. Pure apart from one lock: `now` is an argument.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::overview::words::ago;
use super::redact::OneLine;
use crate::base::lock::lock;

/// Characters of a note that are shown: peers are told it.
pub const NOTE_CHARS: usize = 200;

/// A pause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paused {
    /// Why, in the words of whoever has paused it; users and validators are told it.
    #[serde(default)]
    pub note: String,
    /// When it began, in seconds since 1970.
    pub since: u64,
    /// When it ends by itself, in seconds since 1970; `None` if somebody has to resume it.
    #[serde(default)]
    pub until: Option<u64>,
}

impl Paused {
    /// Whether it is over by itself.
    pub fn is_over(&self, now: Duration) -> bool {
        self.until.is_some_and(|until| until <= now.as_secs())
    }

    /// In a sentence without its subject, as `paused for another 9 min 1 s: new disk`.
    pub fn shown(&self, now: Duration) -> String {
        let mut text = match self.until {
            Some(until) => format!("paused for another {}", ago(until.saturating_sub(now.as_secs()))),
            None => "paused until it is resumed".to_owned(),
        };
        if !self.note.is_empty() {
            text += &format!(": {:.NOTE_CHARS$}", OneLine(&self.note));
        }
        text
    }
}

/// Whether a role is paused; clones are the same. Nothing here blocks but on a short lock.
#[derive(Clone, Default)]
pub struct Pause(Arc<Mutex<PauseState>>);

#[derive(Default)]
struct PauseState {
    paused: Option<Paused>,
    closed: Option<&'static str>,
    /// Told of each change.
    watcher: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl fmt::Debug for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pause").field(&lock(&self.0).paused).finish()
    }
}

impl Pause {
    /// From now on the role is paused like this, or not at all. What it has taken goes on.
    pub fn set(&self, paused: Option<Paused>) {
        self.change(|state| state.paused = paused);
    }

    /// From now on the role takes no work of its own accord, for this reason; `None` if it does.
    pub fn close(&self, why: Option<&'static str>) {
        self.change(|state| state.closed = why);
    }

    /// From now on this is called after each change, for whoever waits for its end; one for each pause, and it must not
    /// block.
    pub fn watch(&self, changed: impl Fn() + Send + Sync + 'static) {
        lock(&self.0).watcher = Some(Arc::new(changed));
    }

    fn change(&self, change: impl FnOnce(&mut PauseState)) {
        let mut state = lock(&self.0);
        change(&mut state);
        let watcher = state.watcher.clone();
        // Without the lock, because it may be asked at once.
        drop(state);
        watcher.iter().for_each(|changed| changed());
    }

    /// Why no work is taken at `now`, since 1970; `None` if it is.
    pub fn why(&self, now: Duration) -> Option<String> {
        let state = lock(&self.0);
        let paused = state.paused.as_ref().filter(|paused| !paused.is_over(now));
        paused.map(|paused| paused.shown(now)).or_else(|| state.closed.map(str::to_owned))
    }

    /// The pause at `now`, since 1970, if there is one.
    pub fn paused(&self, now: Duration) -> Option<Paused> {
        lock(&self.0).paused.clone().filter(|paused| !paused.is_over(now))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_pause_ends_when_its_time_is_over_or_it_is_resumed() {
        let (pause, at) = (Pause::default(), Duration::from_secs);
        let changes = Arc::new(AtomicU32::new(0));
        let (counted, asked) = (changes.clone(), pause.clone());
        pause.watch(move || {
            asked.why(at(0));
            counted.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(pause.why(at(0)), None);
        pause.set(Some(Paused { note: "new disk\u{1b}[2J".to_owned(), since: 10, until: Some(100) }));
        assert_eq!(pause.why(at(30)).unwrap(), "paused for another 1 min 10 s: new disk\\u{1b}[2J");
        assert_eq!((pause.why(at(100)), pause.paused(at(100))), (None, None));
        pause.set(Some(Paused { note: String::new(), since: 10, until: None }));
        assert_eq!(pause.why(at(1_000)).unwrap(), "paused until it is resumed");
        pause.close(Some("one job"));
        pause.set(None);
        assert_eq!((pause.why(at(0)).as_deref(), pause.paused(at(0))), (Some("one job"), None));
        pause.close(None);
        assert_eq!((pause.why(at(0)), changes.load(Ordering::Relaxed)), (None, 5));
    }
}
