//! Models of the hand-over between senders, the reader, the writer and the application of one link.
//!
//! The hand-over and the stop signal are the shipped files. The wire and the link's thread are this file's: they follow
//! `transport`, `link::session` and `link::manager`, and say how those have to use the shipped parts, not that they do.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use shuttle::rand::Rng as _;
use shuttle::sync::{Arc, Condvar, Mutex, mpsc};
use shuttle::thread::{JoinHandle, spawn, yield_now};

use crate::base::ids::Epoch;
use crate::base::shutdown::{Level, Shutdown};
use crate::link::handover::{Handover, Signal, Work};
use crate::link::outbox::{Answered, Full, OutboxLimits, Outgoing};
use crate::seed::{Seed, quietly};
use crate::{explore, failure};

const SCHEDULES: usize = 10_000;

/// Fewer than the messages of one sender, so that the writer has to wait for answers.
const WINDOW: usize = 2;

/// About as many steps as the senders need.
const DAWDLE: u32 = 30;

type Link = Arc<Handover<Arc<Wire>>>;

/// One connection with a peer that has all it needs to answer.
#[derive(Default)]
struct Wire {
    state: Mutex<WireState>,
    changed: Condvar,
    /// What arrived, over all wires.
    arrived: Arc<Mutex<Vec<u64>>>,
    /// The peer reads, and answers nothing.
    mute: bool,
}

#[derive(Default)]
struct WireState {
    answers: VecDeque<u64>,
    cut: bool,
    closed: bool,
}

enum Read {
    Answer(u64),
    End { clean: bool },
}

impl Wire {
    /// Says whether the connection still stands.
    fn write(&self, text: &str) -> bool {
        let mut state = self.state.lock().unwrap();
        if state.cut {
            return false;
        }
        let tag = text.parse().unwrap();
        self.arrived.lock().unwrap().push(tag);
        if !self.mute && !is_once(tag) {
            state.answers.push_back(tag);
        }
        drop(state);
        self.changed.notify_all();
        true
    }

    /// The connection breaks; answers on their way are lost.
    fn cut(&self) {
        self.state.lock().unwrap().cut = true;
        self.changed.notify_all();
    }

    fn close(&self) {
        self.state.lock().unwrap().closed = true;
        self.changed.notify_all();
    }

    fn read(&self) -> Read {
        let mut state = self.state.lock().unwrap();
        loop {
            if state.cut {
                return Read::End { clean: false };
            }
            if let Some(tag) = state.answers.pop_front() {
                return Read::Answer(tag);
            }
            if state.closed {
                return Read::End { clean: true };
            }
            state = self.changed.wait(state).unwrap();
        }
    }
}

/// Tags count from a hundred for each sender; those of messages that nobody answers are odd.
fn is_once(tag: u64) -> bool {
    tag % 2 == 1
}

fn message(tag: u64) -> Outgoing {
    let text = tag.to_string();
    Outgoing { tag, ..if is_once(tag) { Outgoing::once(text) } else { Outgoing::acked(text) } }
}

fn new_link() -> Link {
    Arc::new(Handover::new(OutboxLimits { messages: 100, bytes: 10_000, window: WINDOW }))
}

/// Sends one by one; gives the tags of the messages that were taken.
fn sender(link: &Link, tags: &'static [u64]) -> JoinHandle<Vec<u64>> {
    let link = link.clone();
    spawn(move || {
        let taken = |tag: &u64| match link.send(message(*tag)) {
            Ok(()) => true,
            Err(Full::Closed { message }) => {
                assert_eq!(message.tag, *tag);
                false
            }
            Err(full) => panic!("{full}"),
        };
        tags.iter().copied().filter(taken).collect()
    })
}

/// As `link::session`: the reader here, the writer on a thread of its own, which may outlive the session as an abandoned
/// one does; says whether the end was a goodbye.
fn session(link: &Link, wire: &Arc<Wire>, mut on_answer: impl FnMut(Epoch, u64)) -> (bool, JoinHandle<()>) {
    let epoch = link.attach(wire.clone(), true);
    let (writes, out) = (link.clone(), wire.clone());
    let writer = spawn(move || {
        loop {
            match writes.next_work(epoch) {
                Work::Batch { texts, .. } => {
                    if !texts.iter().all(|text| out.write(text)) {
                        return out.cut();
                    }
                }
                Work::Close(..) => return out.close(),
                Work::Over => return,
            }
        }
    });
    let clean = loop {
        match wire.read() {
            Read::Answer(tag) => on_answer(epoch, tag),
            Read::End { clean } => break clean,
        }
    };
    wire.cut();
    assert!(link.detach().is_some_and(|present| Arc::ptr_eq(&present, wire)));
    (clean, writer)
}

/// Lets others go first for a while, so that a cut or a close also comes late.
fn dawdle() {
    for _ in 0..shuttle::rand::thread_rng().gen_range(0..DAWDLE) {
        yield_now();
    }
}

static STALE: AtomicUsize = AtomicUsize::new(0);
static REPEATED: AtomicUsize = AtomicUsize::new(0);
static REFUSED: AtomicUsize = AtomicUsize::new(0);

/// Two senders, a connection that is lost, its successor, an application that counts answers late, and a close at any time:
/// all that was taken is answered once, in the end, and arrives in its sender's order.
fn senders_a_cut_and_a_close() {
    let link = new_link();
    let arrived = Arc::<Mutex<Vec<u64>>>::default();
    let wires = [(); 2].map(|()| Arc::new(Wire { arrived: arrived.clone(), ..Wire::default() }));

    const ONE: &[u64] = &[100, 102, 103, 104];
    const TWO: &[u64] = &[200, 202];
    let senders = [sender(&link, ONE), sender(&link, TWO)];
    let (answers, late) = mpsc::channel::<(Epoch, u64)>();
    let counts = link.clone();
    let application = spawn(move || {
        let mut counted = BTreeSet::new();
        for (epoch, tag) in late {
            if shuttle::rand::thread_rng().gen_ratio(1, 2) {
                dawdle();
            }
            let answered = match () {
                () if Seed::NoWakeOnAnswer.is_planted() => quietly(|| counts.answered(epoch, true)),
                () if Seed::EpochUnchecked.is_planted() => counts.answered(counts.epoch(), true),
                () => counts.answered(epoch, true),
            };
            match answered {
                Answered::Message(message) => {
                    assert_eq!(message.tag, tag, "an answer counts for another message");
                    assert!(counted.insert(tag), "{tag} is answered twice");
                }
                Answered::Nothing => {
                    // In this order, because a successor may come between.
                    let gone = counts.with(|present| present.is_none()) || counts.epoch() != epoch;
                    assert!(gone, "the answer to {tag} counts for nothing");
                    STALE.fetch_add(1, SeqCst);
                }
                Answered::Unclear => panic!("a certain answer is unclear"),
            }
        }
        counted
    });
    let first = wires[0].clone();
    let cutter = spawn(move || {
        dawdle();
        first.cut();
    });
    let closes = link.clone();
    let closer = spawn(move || {
        dawdle();
        closes.signal(Signal::Ping);
        closes.close(1000, "");
    });

    let mut writers = Vec::new();
    for wire in &wires {
        let (done, writer) = session(&link, wire, |epoch, tag| answers.send((epoch, tag)).unwrap());
        writers.push(writer);
        if done || link.is_closing() && link.unsent() == 0 {
            break;
        }
    }
    drop(answers);
    for writer in writers {
        writer.join().unwrap();
    }
    let taken: Vec<u64> = senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect();
    let counted = application.join().unwrap();
    cutter.join().unwrap();
    closer.join().unwrap();

    assert_eq!((link.unsent(), link.unsent_bytes()), (0, 0));
    let wanted: BTreeSet<u64> = taken.iter().copied().filter(|tag| !is_once(*tag)).collect();
    assert_eq!(counted, wanted, "taken and answered");
    let arrived = arrived.lock().unwrap();
    let mut seen = Vec::new();
    for tag in arrived.iter() {
        match seen.contains(tag) {
            true => assert!(!is_once(*tag), "{tag} arrived twice"),
            false => seen.push(*tag),
        }
    }
    for sender in [ONE, TWO] {
        let order: Vec<u64> = seen.iter().copied().filter(|tag| sender.contains(tag)).collect();
        assert!(order.is_sorted(), "{order:?} arrived out of order");
    }
    REPEATED.fetch_add(arrived.len() - seen.len(), SeqCst);
    REFUSED.fetch_add(ONE.len() + TWO.len() - taken.len(), SeqCst);
}

#[test]
fn what_is_taken_is_answered_once_over_a_cut_and_a_close() {
    explore(SCHEDULES, senders_a_cut_and_a_close);
    for (what, count) in [("stale answers", &STALE), ("repeated messages", &REPEATED), ("refused messages", &REFUSED)] {
        let count = count.load(SeqCst);
        println!("{what}: {count}");
        assert!(count > 0, "no schedule has {what}");
    }
}

#[test]
fn a_wait_that_lets_go_of_the_lock_is_found() {
    let found = failure(Seed::GapBeforeWait, SCHEDULES, senders_a_cut_and_a_close);
    assert!(found.contains("deadlock"), "{found}");
}

#[test]
fn an_answer_that_does_not_wake_the_writer_is_found() {
    let found = failure(Seed::NoWakeOnAnswer, SCHEDULES, senders_a_cut_and_a_close);
    assert!(found.contains("deadlock"), "{found}");
}

#[test]
fn a_cut_that_forgets_what_was_on_its_way_is_found() {
    let found = failure(Seed::NoRewind, SCHEDULES, senders_a_cut_and_a_close);
    assert!(["deadlock", "taken and answered", "counts for another"].iter().any(|how| found.contains(how)), "{found}");
}

#[test]
fn an_answer_of_an_old_connection_that_counts_is_found() {
    let found = failure(Seed::EpochUnchecked, SCHEDULES, senders_a_cut_and_a_close);
    assert!(["counts for", "answered twice"].iter().any(|how| found.contains(how)), "{found}");
}

static STOPPED_IN_SESSION: AtomicUsize = AtomicUsize::new(0);
static STOPPED_BETWEEN: AtomicUsize = AtomicUsize::new(0);

/// A link whose peer answers nothing is stopped for good while it reconnects: it ends, and what was taken is still inside.
fn stop_against_reconnect() {
    let link = new_link();
    let stop = Shutdown::new();
    let first = Arc::new(Wire { mute: true, ..Wire::default() });
    let cut = first.clone();
    let cutter = spawn(move || {
        dawdle();
        cut.cut();
    });
    let (runs, until) = (link.clone(), stop.clone());
    let thread = spawn(move || {
        let mut next = Some(first);
        while !until.is_set() {
            // Whatever a dial takes, a stop may come meanwhile.
            let wire = next.take().unwrap_or_else(|| Arc::new(Wire { mute: true, ..Wire::default() }));
            if until.is_set() {
                STOPPED_BETWEEN.fetch_add(1, SeqCst);
                break;
            }
            let kicked = wire.clone();
            let _kick = (!Seed::NoKickOnAttach.is_planted()).then(|| until.on(Level::Cancel, move || kicked.cut()));
            let (_, writer) = session(&runs, &wire, |_, tag| panic!("{tag} is answered"));
            writer.join().unwrap();
            STOPPED_IN_SESSION.fetch_add(usize::from(until.is_set()), SeqCst);
        }
    });
    let sender = sender(&link, &[100, 102, 104]);

    // The deadline of a stop: the present connection is kicked, and none shall follow.
    dawdle();
    link.close(1000, "");
    if let Some(present) = link.with(|present| present.cloned()) {
        present.cut();
    }
    stop.cancel();
    thread.join().unwrap();
    cutter.join().unwrap();
    assert_eq!(link.unsent(), sender.join().unwrap().len());
}

#[test]
fn a_stop_while_reconnecting_ends_the_link() {
    explore(SCHEDULES, stop_against_reconnect);
    assert!(STOPPED_IN_SESSION.load(SeqCst) > 0 && STOPPED_BETWEEN.load(SeqCst) > 0, "both occur");
}

#[test]
fn a_stop_that_misses_the_connection_about_to_be_is_found() {
    let found = failure(Seed::NoKickOnAttach, SCHEDULES, stop_against_reconnect);
    assert!(found.contains("deadlock"), "{found}");
}
