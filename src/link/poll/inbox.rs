//! The events of one connection on their way to a worker: in order, one worker at a time, and bounded by that the
//! connection is not read while too many wait. Pure: no thread, no lock, no clock.

use std::collections::VecDeque;

/// Events of one connection after which it is not read until they are done with, and the bytes of their texts. A
/// connection of two threads has one: its reader waits. This many are a batch of answers in one packet.
const EVENTS: usize = 16;
const BYTES: usize = 64 << 10;

/// What is to be done after [`Inbox::push`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pushed {
    /// A worker is to be given the connection.
    pub(super) schedule: bool,
    /// No more is to be read until [`Next::Event`] says so.
    pub(super) pause: bool,
}

/// What a worker that has the connection does.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<E> {
    /// Handles the event, and comes back; with `resume` the connection is to be read again.
    Event { event: E, resume: bool },
    /// Leaves the connection: nothing is there.
    Idle,
}

/// The events of one connection.
#[derive(Debug)]
pub(super) struct Inbox<E> {
    events: VecDeque<(E, usize)>,
    bytes: usize,
    /// A worker has the connection, or will have it.
    given: bool,
    paused: bool,
}

impl<E> Default for Inbox<E> {
    fn default() -> Self {
        Self { events: VecDeque::new(), bytes: 0, given: false, paused: false }
    }
}

impl<E> Inbox<E> {
    /// Takes an event with the bytes that it keeps. What comes in spite of a pause (the end) is taken as well.
    pub(super) fn push(&mut self, event: E, bytes: usize) -> Pushed {
        self.events.push_back((event, bytes));
        self.bytes += bytes;
        self.paused |= self.events.len() >= EVENTS || self.bytes >= BYTES;
        Pushed { schedule: !std::mem::replace(&mut self.given, true), pause: self.paused }
    }

    /// The next event for the worker that has the connection.
    pub(super) fn next(&mut self) -> Next<E> {
        let Some((event, bytes)) = self.events.pop_front() else {
            self.given = false;
            // Most connections are idle most of the time.
            self.events = VecDeque::new();
            return Next::Idle;
        };
        self.bytes -= bytes;
        let resume = self.events.is_empty() && std::mem::take(&mut self.paused);
        Next::Event { event, resume }
    }

    /// Whether a worker has the connection, or will have it.
    pub(super) fn is_busy(&self) -> bool {
        self.given
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    /// A reader, workers and a connection that is always in one place only; each picks what to do at random.
    #[test]
    fn events_are_handled_once_in_order_and_neither_too_many_nor_none_wait() {
        let seed = Rng::from_entropy().next_u64();
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        for _ in 0..500 {
            let mut inbox = Inbox::default();
            let (mut pushed, mut handled, mut reads) = (0u32, Vec::new(), true);
            // How many workers have the connection, or find it in their queue.
            let mut workers = 0;
            while handled.len() < 200 {
                if reads && pushed < 200 && rng.one_in(2) {
                    let Pushed { schedule, pause } = inbox.push(pushed, (rng.next_u64() % 20_000) as usize);
                    pushed += 1;
                    workers += u32::from(schedule);
                    reads = !pause;
                } else if workers > 0 {
                    match inbox.next() {
                        Next::Event { event, resume } => {
                            handled.push(event);
                            reads |= resume;
                        }
                        Next::Idle => workers -= 1,
                    }
                }
                assert!(workers <= 1, "seed {seed}: two workers have it");
                assert_eq!(workers == 1, inbox.is_busy(), "seed {seed}");
                assert!(workers == 1 || (reads && inbox.events.is_empty()), "seed {seed}: something waits for nobody");
                assert!(inbox.events.len() <= EVENTS && inbox.bytes < BYTES + 20_000, "seed {seed}: too many wait");
            }
            assert_eq!(handled, (0..200).collect::<Vec<_>>(), "seed {seed}");
        }
    }
}
