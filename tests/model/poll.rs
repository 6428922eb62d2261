//! Models of the poll thread's wake-ups: what it is told, what its workers are given, and the texts of a connection
//! whose writer waits for sockets.
//!
//! The poll itself is this file's: an event that stays raised until it is lowered.

use std::collections::BTreeSet;

use shuttle::rand::Rng as _;
use shuttle::sync::{Arc, Condvar, Mutex};
use shuttle::thread::{spawn, yield_now};

use crate::base::sync::Arc as SharedArc;
use crate::explore;
use crate::failure;
use crate::link::handover::{Handover, Work};
use crate::link::news::News;
use crate::link::outbox::{OutboxLimits, Outgoing};
use crate::link::runs::Runs;
use crate::seed::Seed;

const SCHEDULES: usize = 10_000;

/// As `net::wake::Wake` under a poll.
#[derive(Default)]
struct Event {
    raised: Mutex<bool>,
    changed: Condvar,
}

impl Event {
    fn raise(&self) {
        *self.raised.lock().unwrap() = true;
        self.changed.notify_all();
    }

    /// Waits until it is raised, and lowers it; a poll may also end for a socket, without it.
    fn wait(&self) {
        let mut raised = self.raised.lock().unwrap();
        if shuttle::rand::thread_rng().gen_ratio(1, 8) {
            return;
        }
        while !*raised {
            raised = self.changed.wait(raised).unwrap();
        }
        *raised = false;
    }
}

fn dawdle() {
    for _ in 0..shuttle::rand::thread_rng().gen_range(0..6) {
        yield_now();
    }
}

/// Each tells three things; the poll thread hears all of them, although it looks only when it is woken.
fn everything_told_is_heard() {
    let event = Arc::new(Event::default());
    let raised = event.clone();
    let news = Arc::new(News::<Vec<u32>, _>::new(move || raised.raise()));
    let tellers: Vec<_> = (0..3)
        .map(|teller| {
            let news = news.clone();
            spawn(move || {
                for n in 0..3 {
                    dawdle();
                    news.tell(|told| told.push(10 * teller + n));
                }
            })
        })
        .collect();
    let mut heard = Vec::new();
    while heard.len() < 9 {
        if Seed::LoweredAfterTaking.is_planted() {
            heard.extend(news.take());
            dawdle();
            *event.raised.lock().unwrap() = false;
            if heard.len() < 9 {
                event.wait();
            }
            continue;
        }
        event.wait();
        heard.extend(news.take());
    }
    tellers.into_iter().for_each(|teller| teller.join().unwrap());
    assert_eq!(heard.iter().copied().collect::<BTreeSet<_>>().len(), 9);
    for teller in 0..3 {
        assert!(heard.iter().filter(|told| **told / 10 == teller).is_sorted(), "{heard:?}");
    }
}

#[test]
fn what_the_poll_thread_is_told_it_hears() {
    explore(SCHEDULES, everything_told_is_heard);
}

#[test]
fn an_event_that_is_lowered_after_the_news_were_taken_is_found() {
    let found = failure(Seed::LoweredAfterTaking, SCHEDULES, everything_told_is_heard);
    assert!(found.contains("deadlock"), "{found}");
}

/// Two workers take what one thread puts in, put some of it back, and end when it closes the queue.
fn everything_queued_is_taken() {
    let runs = Arc::new(Runs::<u32>::new());
    let workers: Vec<_> = (0..2)
        .map(|_| {
            let runs = runs.clone();
            spawn(move || {
                let mut taken = Vec::new();
                while let Some(run) = runs.next(|| ()) {
                    dawdle();
                    // Hundreds are to come again.
                    if run >= 100 {
                        runs.push(run - 100);
                    } else {
                        taken.push(run);
                    }
                }
                taken
            })
        })
        .collect();
    for run in 0..6 {
        dawdle();
        runs.push(run + if run % 2 == 0 { 100 } else { 0 });
    }
    dawdle();
    runs.close();
    let mut taken: Vec<u32> = workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
    taken.sort_unstable();
    assert_eq!(taken, [0, 1, 2, 3, 4, 5]);
}

#[test]
fn what_the_workers_are_given_they_take_before_they_end() {
    explore(SCHEDULES, everything_queued_is_taken);
}

/// Senders and a polled writer, which looks only when it is woken: every text is written once and in its sender's
/// order, by the writer or by a sender that had its turn, and then the Close.
fn a_polled_writer_misses_nothing() {
    let event = Arc::new(Event::default());
    let link = Arc::new(Handover::<()>::new(OutboxLimits { messages: 100, bytes: 10_000, window: 100 }));
    let raised = event.clone();
    let epoch = link.attach_polled((), SharedArc::new(move || raised.raise()));
    let written = Arc::new(Mutex::new(Vec::<u32>::new()));
    let senders: Vec<_> = (0..2)
        .map(|sender| {
            let (link, written) = (link.clone(), written.clone());
            spawn(move || {
                for n in 0..3 {
                    dawdle();
                    let text = (10 * sender + n).to_string();
                    let (refused, loan) = link.offer([Outgoing::once(text)], |()| ());
                    assert!(refused.is_empty());
                    if let Some((texts, ())) = loan {
                        dawdle();
                        written.lock().unwrap().extend(texts.iter().map(|text| text.parse::<u32>().unwrap()));
                        dawdle();
                        // What has not left is the writer's to send.
                        link.give_back(shuttle::rand::thread_rng().gen_ratio(1, 2));
                    }
                }
            })
        })
        .collect();
    let closes = link.clone();
    let closer = spawn(move || {
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        closes.close(1000, "");
    });
    'open: loop {
        while let Some(work) = link.try_work(epoch, false) {
            match work {
                Work::Batch { texts, .. } => {
                    written.lock().unwrap().extend(texts.iter().map(|text| text.parse::<u32>().unwrap()));
                }
                Work::Close(..) => break 'open,
                Work::Over => panic!("it is not over"),
            }
        }
        event.wait();
    }
    closer.join().unwrap();
    let written = written.lock().unwrap();
    assert_eq!(written.iter().copied().collect::<BTreeSet<_>>(), BTreeSet::from([0, 1, 2, 10, 11, 12]));
    assert_eq!(written.len(), 6, "{written:?}");
    for sender in 0..2 {
        assert!(written.iter().filter(|text| **text / 10 == sender).is_sorted(), "{written:?}");
    }
}

#[test]
fn a_writer_that_waits_for_sockets_misses_no_text() {
    explore(SCHEDULES, a_polled_writer_misses_nothing);
}
