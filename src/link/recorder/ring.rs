//! What a link did last: its newest frames, without what they say, and its newest events. Pure.
//!
//! Frames and events have a ring each, so that a busy link does not push out why it was lost before.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::base::text::truncated;

/// Frames that are kept of a link, 48 bytes each: 3 KiB.
pub const FRAMES: usize = 64;

/// Events that are kept of a link, with up to [`EVENT_BYTES`] each: at most 7 KiB. With its frames a link has 10 KiB at
/// most, and a validator that drives 1,000 jobs at a time 10 MiB; rings grow as they fill.
pub const EVENTS: usize = 32;

/// Bytes of the text of an event: part of it may be the peer's.
pub const EVENT_BYTES: usize = 200;

/// Bytes of the name of a kind of message; the longest of the network has 27.
const KIND_BYTES: usize = 31;

/// What a frame was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FrameWay {
    /// A text of ours.
    Sent,
    /// A text of the peer's.
    Received,
    /// A binary message of the peer's, which is ignored.
    Ignored,
    /// A ping of ours.
    PingSent,
    /// The peer's answer to one.
    PongReceived,
    /// A ping of the peer's, or its wish to close.
    ControlReceived,
    /// Our Close.
    CloseSent,
}

/// A frame, or an event, of a link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// When, in seconds since 1970.
    pub at: f64,
    /// For a frame: what it was.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub frame: Option<FrameWay>,
    /// For a text: the kind of message, if it says one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kind: Option<String>,
    /// For a text or a binary message: its bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bytes: Option<u32>,
    /// For an event: what happened, at most 200 bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub event: Option<String>,
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    at: u64,
    way: FrameWay,
    kind: Kind,
    bytes: u32,
}

#[derive(Debug)]
struct Event {
    at: u64,
    text: Box<str>,
}

/// The beginning of a name, of a fixed size.
#[derive(Debug, Clone, Copy)]
struct Kind {
    length: u8,
    bytes: [u8; KIND_BYTES],
}

impl Kind {
    /// Of letters, digits, `_`, `.` and `-`: what a peer writes is no name otherwise.
    fn of(name: &str) -> Self {
        let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        let (mut length, mut bytes) = (0, [0; KIND_BYTES]);
        for (to, from) in bytes.iter_mut().zip(name.as_bytes().iter().take_while(|b| plain(b))) {
            *to = *from;
            length += 1;
        }
        Self { length, bytes }
    }

    fn text(&self) -> Option<String> {
        let bytes = &self.bytes[..usize::from(self.length)];
        (!bytes.is_empty()).then(|| bytes.iter().map(|b| char::from(*b)).collect())
    }
}

/// The newest frames and events of one link.
#[derive(Debug, Default)]
pub(super) struct Ring {
    frames: VecDeque<Frame>,
    events: VecDeque<Event>,
    /// Frames since the beginning.
    seen: u64,
}

impl Ring {
    /// A frame at `at`, in microseconds since 1970.
    pub(super) fn frame(&mut self, at: u64, way: FrameWay, kind: Option<&str>, bytes: usize) {
        if self.frames.len() >= FRAMES {
            self.frames.pop_front();
        }
        let (kind, bytes) = (Kind::of(kind.unwrap_or_default()), u32::try_from(bytes).unwrap_or(u32::MAX));
        self.frames.push_back(Frame { at, way, kind, bytes });
        self.seen += 1;
    }

    /// An event at `at`, in microseconds since 1970. The text is as it is to be shown.
    pub(super) fn event(&mut self, at: u64, text: &str) {
        if self.events.len() >= EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(Event { at, text: truncated(text, EVENT_BYTES).into() });
    }

    /// Frames since the beginning, those that are not kept any more among them.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    /// All that is kept, the oldest first.
    pub(super) fn entries(&self) -> Vec<Entry> {
        let seconds = |at: u64| at as f64 / 1e6;
        let frame = |frame: &Frame| {
            let has_bytes = matches!(frame.way, FrameWay::Sent | FrameWay::Received | FrameWay::Ignored);
            let entry = Entry {
                at: seconds(frame.at),
                frame: Some(frame.way),
                kind: frame.kind.text(),
                bytes: has_bytes.then_some(frame.bytes),
                event: None,
            };
            (frame.at, entry)
        };
        let event = |event: &Event| {
            let (at, text) = (seconds(event.at), Some(event.text.to_string()));
            (event.at, Entry { at, frame: None, kind: None, bytes: None, event: text })
        };
        let mut entries: Vec<_> = self.events.iter().map(event).chain(self.frames.iter().map(frame)).collect();
        entries.sort_by_key(|(at, _)| *at);
        entries.into_iter().map(|(_, entry)| entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_in_order_and_many_frames_push_out_no_event() {
        let mut ring = Ring::default();
        ring.event(1, "connecting");
        for at in 2..1_000 {
            ring.frame(at, FrameWay::Sent, Some("V0Heartbeat"), 30);
        }
        ring.event(1_000, &"x".repeat(10_000));
        let entries = ring.entries();
        assert_eq!((ring.seen(), entries.len()), (998, FRAMES + 2));
        assert_eq!(entries[0].event.as_deref(), Some("connecting"));
        let [first, .., last] = &entries[1..=FRAMES] else { panic!("{entries:?}") };
        assert_eq!((first.at, last.at), (0.000_936, 0.000_999));
        assert_eq!(
            (last.frame, last.kind.as_deref(), last.bytes),
            (Some(FrameWay::Sent), Some("V0Heartbeat"), Some(30))
        );
        assert_eq!(entries[FRAMES + 1].event.as_ref().map(String::len), Some(EVENT_BYTES));
        (0..1_000).for_each(|at| ring.event(at, "lost"));
        assert_eq!(ring.entries().len(), FRAMES + EVENTS);
    }

    #[test]
    fn a_kind_is_a_short_name_and_nothing_else() {
        let kind = |name: &str| Kind::of(name).text();
        assert_eq!(kind("job.new").as_deref(), Some("job.new"));
        assert_eq!(kind("V0 \u{1b}[2J").as_deref(), Some("V0"));
        assert_eq!(kind("\"").as_deref(), None);
        assert_eq!(kind(&"a".repeat(99)).map(|kind| kind.len()), Some(KIND_BYTES));
    }
}
