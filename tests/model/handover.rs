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
use crate::link::outbox::{About, Answered, Full, Kind, OutboxLimits, Outgoing, given};
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
    /// Held for each batch, as the lock of the write half.
    half: Mutex<()>,
    /// What arrived, over all wires.
    arrived: Arc<Mutex<Vec<u64>>>,
    /// The peer reads, and answers nothing.
    mute: bool,
    /// It begins with a heartbeat.
    beat: bool,
}

#[derive(Default)]
struct WireState {
    /// All that was written, in order.
    written: Vec<u64>,
    /// Of that, what arrived.
    flushed: usize,
    answers: VecDeque<u64>,
    beats: usize,
    pings: usize,
    /// A control frame waits for a flush.
    control: bool,
    disconnected: bool,
    closed: bool,
}

impl WireState {
    fn is_over(&self) -> bool {
        self.disconnected || self.closed
    }
}

enum Read {
    /// All that have come.
    Answers(Vec<u64>),
    End {
        clean: bool,
    },
}

impl Wire {
    /// Puts a text into the buffer; says whether the connection still stands.
    fn write(&self, text: &str) -> bool {
        let mut state = self.state.lock().unwrap();
        assert!(state.disconnected || !self.beat || state.beats > 0, "{text} goes before the heartbeat");
        if !state.disconnected {
            state.written.push(text.parse().unwrap());
        }
        !state.disconnected
    }

    /// Sends so many texts of the buffer; says whether all have left.
    fn try_flush(&self, texts: usize) -> bool {
        let mut held = self.state.lock().unwrap();
        let state = &mut *held;
        if state.disconnected {
            return false;
        }
        let until = state.written.len().min(state.flushed.saturating_add(texts));
        for &tag in &state.written[state.flushed..until] {
            self.arrived.lock().unwrap().push(tag);
            if !self.mute && !is_once(tag) {
                state.answers.push_back(tag);
            }
        }
        state.flushed = until;
        let all = until == state.written.len();
        drop(held);
        self.changed.notify_all();
        all
    }

    /// Sends the control frames, then all of the buffer.
    fn flush(&self) -> bool {
        self.note(|state| state.control = false);
        self.try_flush(usize::MAX)
    }

    fn note(&self, note: impl FnOnce(&mut WireState)) {
        note(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }

    /// Waits until `done`, or until the connection is over.
    fn wait_until(&self, done: impl Fn(&WireState) -> bool) {
        let mut state = self.state.lock().unwrap();
        while !done(&state) && !state.is_over() {
            state = self.changed.wait(state).unwrap();
        }
    }

    /// The connection breaks; answers on their way are lost.
    fn disconnect(&self) {
        self.note(|state| state.disconnected = true);
    }

    fn close(&self) {
        self.flush();
        self.note(|state| state.closed = true);
    }

    fn read(&self) -> Read {
        let mut state = self.state.lock().unwrap();
        loop {
            if state.disconnected {
                return Read::End { clean: false };
            }
            if !state.answers.is_empty() {
                return Read::Answers(state.answers.drain(..).collect());
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
    if is_once(tag) { Outgoing::once(text) } else { Outgoing::kept(tag, text) }
}

fn new_link() -> Link {
    Arc::new(Handover::new(OutboxLimits { messages: 100, bytes: 10_000, window: WINDOW }))
}

static LOANS: AtomicUsize = AtomicUsize::new(0);
static LEFTOVERS: AtomicUsize = AtomicUsize::new(0);
static LOANS_OVER_AN_END: AtomicUsize = AtomicUsize::new(0);

/// As `SessionHandle::send_all`: whoever is lent the writer's turn writes what leaves at once. Gives what was refused.
fn send_all(link: &Link, tags: &[u64]) -> Vec<Full> {
    let (refused, loan) = link.offer(tags.iter().copied().map(message), Arc::clone);
    let Some((texts, wire)) = loan else { return refused };
    if Seed::TurnBackBeforeUse.is_planted() {
        link.give_back(true);
    }
    dawdle_at_times();
    let half = wire.half.try_lock().ok();
    assert!(
        half.is_some() || wire.state.lock().unwrap().disconnected,
        "the sender of {tags:?} has to wait for the writer"
    );
    let written = half.is_some() && texts.iter().all(|text| wire.write(text));
    let all_left = written && wire.try_flush(shuttle::rand::thread_rng().gen_range(0..=texts.len()));
    drop(half);
    dawdle_at_times();
    LOANS.fetch_add(1, SeqCst);
    LEFTOVERS.fetch_add(usize::from(!all_left), SeqCst);
    let is_present = link.with(|present| present.is_some_and(|present| Arc::ptr_eq(present, &wire)));
    LOANS_OVER_AN_END.fetch_add(usize::from(!is_present), SeqCst);
    match () {
        () if Seed::TurnBackBeforeUse.is_planted() && all_left => {}
        () if Seed::TurnBackBeforeUse.is_planted() => link.signal(Signal::Control),
        () if Seed::NoWakeOnTurnBack.is_planted() => quietly(|| link.give_back(all_left)),
        () if Seed::LeftoversUntold.is_planted() => link.give_back(true),
        () => link.give_back(all_left),
    }
    refused
}

/// Sends one by one or by twos; gives the tags of the messages that were taken.
fn sender(link: &Link, tags: &'static [u64]) -> JoinHandle<Vec<u64>> {
    let link = link.clone();
    spawn(move || {
        let (mut taken, mut left) = (Vec::new(), tags);
        while !left.is_empty() {
            let (some, rest) = left.split_at(shuttle::rand::thread_rng().gen_range(1..=left.len().min(2)));
            left = rest;
            taken.extend(some);
            // The writer comes to wait, as one does that is lent.
            dawdle_at_times();
            for full in send_all(&link, some) {
                let Full::Closed { message } = full else { panic!("{full}") };
                taken.retain(|tag: &u64| message.text != tag.to_string());
            }
        }
        taken
    })
}

/// As the timers and the reader of a session: whatever is signalled, the writer takes it up, or the connection ends.
fn watch(link: &Link, wire: &Arc<Wire>) -> JoinHandle<()> {
    let (link, wire) = (link.clone(), wire.clone());
    spawn(move || {
        dawdle();
        let (beats, pings) = {
            let state = wire.state.lock().unwrap();
            (state.beats, state.pings)
        };
        match shuttle::rand::thread_rng().gen_range(0..6) {
            0 => {
                link.signal(Signal::Beat);
                wire.wait_until(|state| state.beats > beats);
            }
            1 => {
                link.signal(Signal::Ping);
                wire.wait_until(|state| state.pings > pings);
            }
            2 => {
                wire.note(|state| state.control = true);
                link.signal(Signal::Control);
                wire.wait_until(|state| !state.control);
            }
            // What a sender missed must show, and a signal would make it good.
            _ => {}
        }
    })
}

/// As the writer of `link::session`.
fn write_loop(link: &Link, epoch: Epoch, wire: &Wire) {
    loop {
        let work = link.next_work(epoch);
        let _half = wire.half.lock().unwrap();
        match work {
            Work::Batch { texts, beat, ping } => {
                if beat {
                    wire.note(|state| state.beats += 1);
                }
                let written = texts.iter().all(|text| wire.write(text));
                if ping {
                    wire.note(|state| state.pings += 1);
                }
                if !(written && wire.flush()) {
                    return wire.disconnect();
                }
            }
            Work::Close(..) => return wire.close(),
            Work::Over => {
                wire.flush();
                return;
            }
        }
    }
}

/// As `link::session`: the reader here, the writer on a thread of its own, which may outlive the session as an
/// abandoned one does; says whether it ended with a Close.
fn session(link: &Link, wire: &Arc<Wire>, mut on_answers: impl FnMut(Vec<u64>)) -> (bool, JoinHandle<()>) {
    let epoch = link.attach(wire.clone(), wire.beat);
    let (writes, out) = (link.clone(), wire.clone());
    let writer = spawn(move || write_loop(&writes, epoch, &out));
    let watch = watch(link, wire);
    let clean = loop {
        match wire.read() {
            Read::Answers(tags) => on_answers(tags),
            Read::End { clean } => break clean,
        }
    };
    wire.disconnect();
    watch.join().unwrap();
    assert!(link.detach().is_some_and(|present| Arc::ptr_eq(&present, wire)));
    (clean, writer)
}

/// As `link::manager`: matches answers, on the thread that reads. Gives the tags of what was answered.
fn match_answers(link: &Link, tags: Vec<u64>) -> Vec<u64> {
    let answers = tags.into_iter().map(|tag| (About::Kept, tag));
    let answered = match Seed::NoWakeOnAnswer.is_planted() {
        true => quietly(|| link.answered(answers)),
        false => link.answered(answers),
    };
    let answered = answered.into_iter().filter_map(|answered| match answered {
        Answered::Message(message, tag) => {
            assert_eq!(message.kind, Kind::Kept { tag }, "an answer counts for another message");
            Some(tag)
        }
        // Of a connection that has gone, when the one that follows has sent nothing yet.
        Answered::Nothing(_) if Seed::MatchedElsewhere.is_planted() => None,
        other => panic!("an answer counts as {other:?}"),
    });
    answered.collect()
}

/// Each wire has its texts in the order in which the outbox gave them, and all of them if it ended with a Close.
fn assert_order<'a>(wires: impl IntoIterator<Item = &'a Arc<Wire>>) {
    for (given, wire) in given().iter().zip(wires) {
        let state = wire.state.lock().unwrap();
        assert!(given.starts_with(&state.written), "given {given:?}, written out of order {:?}", state.written);
        assert!(
            !state.closed || *given == state.written,
            "given {given:?}, written before the Close {:?}",
            state.written
        );
    }
}

/// Lets others go first for a while, so that a disconnection or a close also comes late.
fn dawdle() {
    for _ in 0..shuttle::rand::thread_rng().gen_range(0..DAWDLE) {
        yield_now();
    }
}

fn dawdle_at_times() {
    if shuttle::rand::thread_rng().gen_ratio(1, 2) {
        dawdle();
    }
}

static REPEATED: AtomicUsize = AtomicUsize::new(0);
static REFUSED: AtomicUsize = AtomicUsize::new(0);

/// Two senders, a connection that is lost, its successor, an application that counts what was answered, and a close at
/// any time: all that was taken is answered once, in the end, and arrives in its sender's order.
fn senders_a_disconnection_and_a_close() {
    let link = new_link();
    let arrived = Arc::<Mutex<Vec<u64>>>::default();
    let wires = [true, false].map(|beat| Arc::new(Wire { arrived: arrived.clone(), beat, ..Wire::default() }));

    const ONE: &[u64] = &[100, 102, 103, 104];
    const TWO: &[u64] = &[200, 202];
    let senders = [sender(&link, ONE), sender(&link, TWO)];
    let (answers, late) = mpsc::channel::<Vec<u64>>();
    let counts = link.clone();
    let application = spawn(move || {
        let mut counted = BTreeSet::new();
        for tags in late {
            dawdle_at_times();
            let tags = if Seed::MatchedElsewhere.is_planted() { match_answers(&counts, tags) } else { tags };
            for tag in tags {
                assert!(counted.insert(tag), "{tag} is answered twice");
            }
        }
        counted
    });
    let first = wires[0].clone();
    let breaker = spawn(move || {
        dawdle();
        first.disconnect();
    });
    let closes = link.clone();
    let closer = spawn(move || {
        dawdle();
        closes.signal(Signal::Ping);
        closes.close(1000, "");
    });

    let mut writers = Vec::new();
    for wire in &wires {
        let (done, writer) = session(&link, wire, |tags| {
            let tags = if Seed::MatchedElsewhere.is_planted() { tags } else { match_answers(&link, tags) };
            answers.send(tags).unwrap();
        });
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
    breaker.join().unwrap();
    closer.join().unwrap();

    assert_order(&wires);
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
fn what_is_taken_is_answered_once_over_a_disconnection_and_a_close() {
    explore(SCHEDULES, senders_a_disconnection_and_a_close);
    for (what, count) in [
        ("repeated messages", &REPEATED),
        ("refused messages", &REFUSED),
        ("loans", &LOANS),
        ("leftovers of loans", &LEFTOVERS),
        ("loans that outlive their connection", &LOANS_OVER_AN_END),
    ] {
        let count = count.load(SeqCst);
        println!("{what}: {count}");
        assert!(count > 0, "no schedule has {what}");
    }
}

#[test]
fn a_wait_that_lets_go_of_the_lock_is_found() {
    let found = failure(Seed::GapBeforeWait, SCHEDULES, senders_a_disconnection_and_a_close);
    assert!(found.contains("deadlock"), "{found}");
}

#[test]
fn an_answer_that_does_not_wake_the_writer_is_found() {
    let found = failure(Seed::NoWakeOnAnswer, SCHEDULES, senders_a_disconnection_and_a_close);
    assert!(found.contains("deadlock"), "{found}");
}

#[test]
fn a_turn_whose_return_wakes_nobody_is_found() {
    let found = failure(Seed::NoWakeOnTurnBack, SCHEDULES, senders_and_a_disconnection);
    assert!(found.contains("deadlock"), "{found}");
}

#[test]
fn leftovers_that_nobody_is_notified_of_are_found() {
    let found = failure(Seed::LeftoversUntold, SCHEDULES, senders_and_a_disconnection);
    assert!(found.contains("deadlock"), "{found}");
}

#[test]
fn a_turn_that_keeps_nobody_out_is_found() {
    let found = failure(Seed::TurnBackBeforeUse, SCHEDULES, senders_and_a_disconnection);
    // What is written out of order is answered out of order, which may show first.
    let shows = ["out of order", "has to wait", "an answer counts"];
    assert!(shows.iter().any(|how| found.contains(how)), "{found}");
}

#[test]
fn a_disconnection_that_forgets_what_was_in_flight_is_found() {
    let found = failure(Seed::NoRewind, SCHEDULES, senders_a_disconnection_and_a_close);
    assert!(["deadlock", "taken and answered", "counts for another"].iter().any(|how| found.contains(how)), "{found}");
}

#[test]
fn an_answer_of_an_old_connection_that_counts_is_found() {
    let found = failure(Seed::MatchedElsewhere, SCHEDULES, senders_a_disconnection_and_a_close);
    assert!(["counts for", "answered twice"].iter().any(|how| found.contains(how)), "{found}");
}

/// As above, but the close comes when all is answered and the writer of the lost connection has left: until then
/// nothing that happens later makes good what a sender that had its turn, or a signal, has missed.
fn senders_and_a_disconnection() {
    let link = new_link();
    let wires = [(); 2].map(|()| Arc::new(Wire::default()));
    let senders = [sender(&link, &[100, 102]), sender(&link, &[200, 203])];
    let first = wires[0].clone();
    let breaker = spawn(move || {
        dawdle();
        first.disconnect();
    });
    let (answers, counted) = mpsc::channel();
    let (leaves, left_behind) = mpsc::channel::<JoinHandle<()>>();
    let closes = link.clone();
    let closer = spawn(move || {
        let taken = senders.into_iter().flat_map(|sender| sender.join().unwrap());
        let wanted: BTreeSet<u64> = taken.filter(|tag| !is_once(*tag)).collect();
        let answered: BTreeSet<u64> = wanted.iter().map(|_| counted.recv().unwrap()).collect();
        assert_eq!(answered, wanted, "taken and answered");
        left_behind.recv().unwrap().join().unwrap();
        closes.close(1000, "");
    });
    for wire in &wires {
        let (_, writer) = session(&link, wire, |tags| {
            match_answers(&link, tags).into_iter().for_each(|tag| answers.send(tag).unwrap());
        });
        leaves.send(writer).unwrap_or_else(|last| last.0.join().unwrap());
    }
    closer.join().unwrap();
    breaker.join().unwrap();
    assert_order(&wires);
    assert_eq!(link.unsent(), 0);
}

#[test]
fn what_is_taken_is_answered_and_an_old_writer_leaves_without_a_close() {
    explore(SCHEDULES, senders_and_a_disconnection);
}

static STOPPED_IN_SESSION: AtomicUsize = AtomicUsize::new(0);
static STOPPED_BETWEEN: AtomicUsize = AtomicUsize::new(0);

/// A link whose peer answers nothing is stopped for good while it reconnects: it ends, and what was taken is still
/// inside.
fn stop_against_reconnect() {
    let link = new_link();
    let stop = Shutdown::new();
    let first = Arc::new(Wire { mute: true, ..Wire::default() });
    let breaking = first.clone();
    let breaker = spawn(move || {
        dawdle();
        breaking.disconnect();
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
            let _kick =
                (!Seed::NoKickOnAttach.is_planted()).then(|| until.on(Level::Cancel, move || kicked.disconnect()));
            let (_, writer) = session(&runs, &wire, |tags| panic!("{tags:?} are answered"));
            writer.join().unwrap();
            STOPPED_IN_SESSION.fetch_add(usize::from(until.is_set()), SeqCst);
        }
    });
    let sender = sender(&link, &[100, 102, 104]);

    // The deadline of a stop: the present connection is kicked, and none shall follow.
    dawdle();
    link.close(1000, "");
    if let Some(present) = link.with(|present| present.cloned()) {
        present.disconnect();
    }
    stop.cancel();
    thread.join().unwrap();
    breaker.join().unwrap();
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
