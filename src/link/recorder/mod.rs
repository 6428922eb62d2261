//! The flight recorder: why a link is as it is, told by what it did last.
//!
//! Each managed link has one, from its start on, and so has each server, for the comings and goings of its connections;
//! a server's connection has none, so that thousands of them cost nothing. All of a process are in one list, as its
//! threads are: those that run, and the newest that have ended. What messages say is never kept, only their kinds.
//!
//! * `ring`: what is kept of one link. Pure.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, Weak};

use serde::{Deserialize, Serialize};
use serde_json::json;

mod ring;

pub use ring::{EVENT_BYTES, EVENTS, Entry, FRAMES, FrameWay};

use crate::base::clock::now;
use crate::base::lock::lock;
use crate::net::http::{HttpRequest, HttpResponse};
use crate::ops::redact::{OneLine, secrets};
use ring::Ring;

/// Ended links that are kept: 160 KiB.
const ENDED: usize = 16;

/// Names the kind of a message, in whatever way its protocol has it; it must be quick.
pub type KindOf = for<'a> fn(&'a str) -> Option<&'a str>;

/// What a link did last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinkRecord {
    /// The prefix of its thread names, as `val-fac`.
    pub link: String,
    /// When it was started, in seconds since 1970.
    pub since: f64,
    /// Whether it still runs.
    pub running: bool,
    /// Frames since then; of them the newest are among the entries.
    pub frames: u64,
    /// What is kept, the oldest first.
    pub entries: Vec<Entry>,
}

/// Where a link puts down what it does; clones are the same. Nothing here blocks but on a short lock.
#[derive(Clone)]
pub struct Recorder(Arc<Recording>);

struct Recording {
    link: String,
    since: u64,
    kind_of: KindOf,
    ring: Mutex<Ring>,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Recorder").field(&self.0.link).finish()
    }
}

/// Those of the process.
struct Recordings {
    running: Vec<Weak<Recording>>,
    ended: VecDeque<Arc<Recording>>,
}

static RECORDINGS: Mutex<Recordings> = Mutex::new(Recordings { running: Vec::new(), ended: VecDeque::new() });

/// What the links of this process did last: those that run, and the last 16 that have ended.
pub fn links() -> Vec<LinkRecord> {
    let (running, ended) = {
        let all = lock(&RECORDINGS);
        (
            all.running.iter().filter_map(Weak::upgrade).collect::<Vec<_>>(),
            all.ended.iter().cloned().collect::<Vec<_>>(),
        )
    };
    let ended = ended.iter().map(|recording| recording.look(false));
    ended.chain(running.iter().map(|recording| recording.look(true))).collect()
}

/// Where [`page`] is.
pub const PATH: &str = "/links.json";

/// The page of all [`links`], [`PATH`]; `None` if another is asked for.
pub fn page(request: &HttpRequest) -> Option<HttpResponse> {
    (request.path == PATH).then(|| HttpResponse::json(200, &json!({ "links": links() })))
}

fn micros() -> u64 {
    u64::try_from(now().wall.as_micros()).unwrap_or(u64::MAX)
}

impl Recording {
    fn look(&self, running: bool) -> LinkRecord {
        let ring = lock(&self.ring);
        LinkRecord {
            link: self.link.clone(),
            since: self.since as f64 / 1e6,
            running,
            frames: ring.seen(),
            entries: ring.entries(),
        }
    }
}

impl Recorder {
    /// One that is not in the list yet.
    pub(super) fn new(link: &str, kind_of: KindOf) -> Self {
        Self(Arc::new(Recording { link: link.to_owned(), since: micros(), kind_of, ring: Mutex::default() }))
    }

    /// It is in the list, as a running one until the value is dropped.
    pub(super) fn begin(&self) -> Listed {
        let mut all = lock(&RECORDINGS);
        all.running.retain(|running| running.strong_count() > 0);
        all.running.push(Arc::downgrade(&self.0));
        Listed(self.clone())
    }

    /// A text.
    pub(super) fn text(&self, way: FrameWay, text: &str) {
        let kind = (self.0.kind_of)(text);
        lock(&self.0.ring).frame(micros(), way, kind, text.len());
    }

    /// A frame that is no text.
    pub(super) fn frame(&self, way: FrameWay, bytes: usize) {
        lock(&self.0.ring).frame(micros(), way, None, bytes);
    }

    /// What happened. Part of it may be the peer's: it is escaped, and secrets of addresses are hidden.
    pub(super) fn event(&self, what: fmt::Arguments<'_>) {
        let text = OneLine(&secrets(&what.to_string())).to_string();
        lock(&self.0.ring).event(micros(), &text);
    }
}

/// A recorder in the list.
#[derive(Debug)]
pub(super) struct Listed(Recorder);

impl Drop for Listed {
    fn drop(&mut self) {
        let Recorder(recording) = &self.0;
        let mut all = lock(&RECORDINGS);
        all.running.retain(|running| !std::ptr::eq(running.as_ptr(), Arc::as_ptr(recording)));
        if all.ended.len() >= ENDED {
            all.ended.pop_front();
        }
        all.ended.push_back(recording.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_listed_while_it_runs_and_for_a_while_after_that() {
        let recorder = Recorder::new("t-recorder", |text| text.split(' ').next());
        let found = || links().into_iter().find(|record| record.link == "t-recorder");
        assert_eq!(found(), None);
        let listed = recorder.begin();
        recorder.event(format_args!("connecting to ws://me:secret@peer/x?token=t\u{1b}[2J"));
        recorder.text(FrameWay::Sent, "hello what nobody is to read");
        let record = found().unwrap();
        assert!(record.running && record.frames == 1, "{record:?}");
        assert_eq!(record.entries[0].event.as_deref(), Some("connecting to ws://…@peer/x?…"));
        assert_eq!((record.entries[1].kind.as_deref(), record.entries[1].bytes), (Some("hello"), Some(28)));
        let json = json!(record).to_string();
        assert!(!json.contains("secret") && !json.contains("nobody") && !json.contains("token"), "{json}");
        drop(listed);
        assert_eq!(found().map(|record| record.running), Some(false));
    }
}
