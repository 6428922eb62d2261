//! What is up, what is not, what is stuck, and why. Apart from one lock and the channels of those who ask, it touches
//! nothing.
//!
//! A thread that goes round in a loop has a [`Pulse`]. While it works it promises to be done by a deadline. While it is
//! idle it promises nothing, so an idle process is not woken; but whoever wants to know ([`Health::probe`]) has it
//! woken and asks it for a sign of life, which it gives when it comes round.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

pub use super::part::{Part, PartState};
use super::redact;
use crate::base::lock::lock;
use crate::base::shutdown::Never;

/// Those who wait at a time for one loop's sign of life. One more does not wait for it: it has not answered the others.
const ASKED_AT_ONCE: usize = 16;

/// The parts of a process that must be up for it to be ready; clones are the same list.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<HealthState>>);

#[derive(Debug, Default)]
struct HealthState {
    parts: BTreeMap<&'static str, PartEntry>,
    next_id: u64,
}

impl HealthState {
    fn entry(&mut self, part: &'static str) -> &mut PartEntry {
        self.parts.entry(part).or_default()
    }
}

#[derive(Debug, Default)]
struct PartEntry {
    down: Option<String>,
    was_up: bool,
    /// Those of its threads that promise progress.
    loops: BTreeMap<u64, LoopEntry>,
}

#[derive(Default)]
struct LoopEntry {
    poke: Option<Poke>,
    promise: Option<Promise>,
}

impl fmt::Debug for LoopEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoopEntry").field("promise", &self.promise).finish_non_exhaustive()
    }
}

/// Wakes a loop that is idle; and how long it may take to come round.
#[derive(Clone)]
struct Poke {
    wake: Arc<dyn Fn(&Answer) + Send + Sync>,
    limit: Duration,
}

#[derive(Debug)]
struct Promise {
    due: Instant,
    /// Dropped with the promise, which those who ask see.
    asked: Vec<Sender<Never>>,
}

impl Health {
    /// No parts: ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// The part works.
    pub fn up(&self, part: &'static str) {
        let mut state = lock(&self.0);
        let entry = state.entry(part);
        entry.down = None;
        entry.was_up = true;
    }

    /// The part does not work; `why` is shown to the operator, without passwords.
    pub fn down(&self, part: &'static str, why: impl Into<String>) {
        lock(&self.0).entry(part).down = Some(redact::secrets(&why.into()).into_owned());
    }

    /// The watch over one thread of a part, which promises progress while it works; it is up unless reported otherwise.
    pub fn pulse(&self, part: &'static str) -> Pulse {
        self.pulse_with(part, None)
    }

    /// As [`Health::pulse`], of a thread that can also be asked for a sign of life while it is idle: `wake` has it come
    /// round and call [`Pulse::done`], or does that itself where the thread runs what it is given; it must not block.
    /// It has `limit` for that.
    pub fn pulse_of_loop(
        &self,
        part: &'static str,
        limit: Duration,
        wake: impl Fn(&Answer) + Send + Sync + 'static,
    ) -> Pulse {
        self.pulse_with(part, Some(Poke { wake: Arc::new(wake), limit }))
    }

    /// As [`Health::pulse_of_loop`], of a thread that receives from channels: it has to receive from this one too, and
    /// then to call [`Pulse::done`].
    pub fn pulse_and_probe(&self, part: &'static str, limit: Duration) -> (Pulse, Receiver<()>) {
        let (wake, woken) = bounded(1);
        let wake = move |_: &Answer| {
            // One that is full wakes the thread as well.
            let _woken = wake.try_send(());
        };
        (self.pulse_of_loop(part, limit, wake), woken)
    }

    /// As [`Health::pulse_of_loop`], of a loop that comes round very often: it costs that loop nothing until somebody
    /// asks. `wake` has it come round and call [`Beat::come_round`]; it must not block. A loop that hangs is found when
    /// the next who asks has waited for `limit`.
    pub fn beat(&self, part: &'static str, limit: Duration, wake: impl Fn() + Send + Sync + 'static) -> Beat {
        let asked = Arc::new(AtomicBool::new(false));
        let asks = asked.clone();
        let wake = move |_: &Answer| {
            asks.store(true, Ordering::SeqCst);
            wake();
        };
        Beat { asked, pulse: self.pulse_of_loop(part, limit, wake) }
    }

    fn pulse_with(&self, part: &'static str, poke: Option<Poke>) -> Pulse {
        let mut state = lock(&self.0);
        let id = state.next_id;
        state.next_id += 1;
        let entry = state.entry(part);
        entry.was_up = true;
        entry.loops.insert(id, LoopEntry { poke, promise: None });
        drop(state);
        Pulse(Arc::new(Answer { health: self.clone(), part, id }))
    }

    /// Asks all loops for a sign of life: from now on each has promised one. The receiver disconnects when all have
    /// given it.
    pub fn probe(&self, now: Instant) -> Receiver<Never> {
        let (ask, asked) = bounded(0);
        let mut pokes = Vec::new();
        for (part, entry) in &mut lock(&self.0).parts {
            for (id, of_loop) in &mut entry.loops {
                let Some(poke) = of_loop.poke.clone() else { continue };
                let promise =
                    of_loop.promise.get_or_insert_with(|| Promise { due: now + poke.limit, asked: Vec::new() });
                if promise.asked.len() < ASKED_AT_ONCE {
                    promise.asked.push(ask.clone());
                }
                pokes.push((poke, Answer { health: self.clone(), part, id: *id }));
            }
        }
        // Without the lock, because it may be answered at once.
        pokes.iter().for_each(|(poke, answer)| (poke.wake)(answer));
        asked
    }

    /// All parts by name.
    pub fn parts(&self, now: Instant) -> Vec<Part> {
        let state = lock(&self.0);
        let part = |(name, entry): (&&'static str, &PartEntry)| {
            let promised =
                entry.loops.values().filter_map(|of_loop| of_loop.promise.as_ref()).map(|promise| promise.due);
            let late = promised.min().filter(|due| *due <= now).map(|due| (now - due).as_secs());
            let (state, why) = match (late, &entry.down) {
                (Some(seconds), _) => (PartState::Stuck, Some(format!("should have made progress {seconds} s ago"))),
                (None, Some(why)) => (PartState::Down, Some(why.clone())),
                (None, None) => (PartState::Up, None),
            };
            Part { name: (*name).to_owned(), state, why }
        };
        state.parts.iter().map(part).collect()
    }

    /// Whether each part has been up at least once.
    pub fn has_started(&self) -> bool {
        lock(&self.0).parts.values().all(|entry| entry.was_up)
    }
}

/// The watch over a loop that comes round very often, see [`Health::beat`].
#[derive(Debug)]
pub struct Beat {
    asked: Arc<AtomicBool>,
    pulse: Pulse,
}

impl Beat {
    /// The loop has come round; whoever has asked is answered. To be called after what `wake` raises is lowered, and
    /// before the loop waits.
    pub fn come_round(&self) {
        if self.asked.load(Ordering::SeqCst) && self.asked.swap(false, Ordering::SeqCst) {
            self.pulse.done();
        }
    }
}

/// The watch over one thread of a part; clones are the same. It ends with the last of them, and so do its promises.
#[derive(Debug, Clone)]
pub struct Pulse(Arc<Answer>);

impl Pulse {
    /// The thread has something to do and is done by `deadline`; if it has promised something already, the earlier
    /// promise stands until [`Pulse::done`].
    pub fn begin(&self, deadline: Instant) {
        let Answer { health, part, id } = &*self.0;
        if let Some(of_loop) = lock(&health.0).entry(part).loops.get_mut(id) {
            of_loop.promise.get_or_insert_with(|| Promise { due: deadline, asked: Vec::new() });
        }
    }

    /// The thread has come round; it waits for something to do, for ever if need be.
    pub fn done(&self) {
        self.0.give();
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        let Answer { health, part, id } = &*self.0;
        if Arc::strong_count(&self.0) == 1 {
            let ended = lock(&health.0).entry(part).loops.remove(id);
            // Without the lock: it may own what looks at the health too.
            drop(ended);
        }
    }
}

/// Whose sign of life is asked for.
#[derive(Debug, Clone)]
pub struct Answer {
    health: Health,
    part: &'static str,
    id: u64,
}

impl Answer {
    /// The thread gives the sign of life.
    pub fn give(&self) {
        let promise = lock(&self.health.0).entry(self.part).loops.get_mut(&self.id).and_then(|it| it.promise.take());
        drop(promise);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn problems(health: &Health, now: Instant) -> Vec<String> {
        let parts = health.parts(now);
        parts.iter().filter(|part| part.state != PartState::Up).map(Part::to_string).collect()
    }

    #[test]
    fn it_is_ready_when_no_part_is_down() {
        let (health, now) = (Health::new(), Instant::now());
        assert!(problems(&health, now).is_empty() && health.has_started());
        health.down("store", "disk full");
        health.clone().up("link");
        assert_eq!(problems(&health, now), ["store: disk full"]);
        assert!(!health.has_started());
        health.up("store");
        assert!(problems(&health, now).is_empty());
        health.down("store", "disk full");
        assert!(health.has_started(), "it has been up once");
    }

    #[test]
    fn who_promises_progress_and_makes_none_is_stuck() {
        let (health, start) = (Health::new(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let pulse = health.pulse("loop");
        assert!(problems(&health, at(1_000_000)).is_empty(), "an idle part is well");
        pulse.begin(at(5));
        assert!(problems(&health, at(4)).is_empty());
        // A later promise does not hide the broken one.
        pulse.begin(at(100));
        assert_eq!(problems(&health, at(7)), ["loop: should have made progress 2 s ago"]);
        health.down("loop", "x");
        assert_eq!(health.parts(at(7))[0].state, PartState::Stuck, "worse than down");
        health.up("loop");
        pulse.done();
        assert!(problems(&health, at(7)).is_empty());
        pulse.begin(at(8));
        assert_eq!(problems(&health, at(8)).len(), 1);
    }

    #[test]
    fn an_idle_loop_answers_when_it_is_asked_and_a_stuck_one_is_told_of() {
        let (health, start) = (Health::new(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let (pulse, woken) = health.pulse_and_probe("router", Duration::from_secs(10));
        let itself = health.pulse_of_loop("timer", Duration::from_secs(5), Answer::give);
        let asked = health.probe(at(0));
        assert_eq!(woken.try_recv(), Ok(()));
        assert!(asked.try_recv().is_err_and(|e| e.is_empty()), "one has not answered");
        pulse.done();
        assert!(asked.try_recv().is_err_and(|e| e.is_disconnected()), "all have");
        assert!(problems(&health, at(1000)).is_empty());
        // One that does not come round.
        for asked in [1, 2, 3] {
            drop(health.probe(at(asked)));
        }
        assert_eq!(problems(&health, at(10)), [""; 0]);
        assert_eq!(problems(&health, at(12)), ["router: should have made progress 1 s ago"]);
        drop(itself);
        drop(pulse);
        assert!(problems(&health, at(1000)).is_empty(), "one that has ended promises nothing");
        assert!(health.probe(at(0)).try_recv().is_err_and(|e| e.is_disconnected()));
    }

    #[test]
    fn a_beat_is_given_when_somebody_has_asked_and_a_loop_that_hangs_is_stuck() {
        let (health, start) = (Health::new(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let (wake, woken) = bounded(9);
        let beat = health.beat("redis", Duration::from_secs(10), move || wake.send(()).unwrap());
        beat.come_round();
        assert!(problems(&health, at(1000)).is_empty(), "nobody has asked");
        let asked = health.probe(at(0));
        woken.try_recv().unwrap();
        assert!(asked.try_recv().is_err_and(|e| e.is_empty()));
        beat.come_round();
        assert!(asked.try_recv().is_err_and(|e| e.is_disconnected()));
        assert!(problems(&health, at(1000)).is_empty());
        drop(health.probe(at(0)));
        assert_eq!(problems(&health, at(12)), ["redis: should have made progress 2 s ago"]);
        drop(beat);
        assert!(problems(&health, at(1000)).is_empty(), "it has ended");
    }

    #[test]
    fn threads_of_one_part_keep_their_own_promises() {
        let (health, start) = (Health::new(), Instant::now());
        let (one, other) = (health.pulse("checks"), health.pulse("checks"));
        one.begin(start);
        other.begin(start + Duration::from_secs(60));
        other.done();
        assert_eq!(problems(&health, start), ["checks: should have made progress 0 s ago"]);
        drop(other.clone());
        one.done();
        other.begin(start);
        assert_eq!(problems(&health, start).len(), 1, "a clone's end is not its own");
    }

    #[test]
    fn those_who_ask_a_stuck_loop_do_not_pile_up() {
        let (health, start) = (Health::new(), Instant::now());
        let (_pulse, _woken) = health.pulse_and_probe("router", Duration::from_secs(10));
        let waiting: Vec<_> = (0..100).map(|_| health.probe(start)).collect();
        let left_waiting = waiting.iter().filter(|asked| asked.try_recv().is_err_and(|e| e.is_empty())).count();
        assert_eq!(left_waiting, ASKED_AT_ONCE);
    }
}
