use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use crossbeam_channel::bounded;

use super::*;
use crate::base::clock::Clock;
use crate::base::rng::Rng;
use crate::base::shutdown::Shutdown;
use crate::base::thread::{Kick, spawn};
use crate::tasks::tests::{HOUR, LONG, Text, begin, fixture, gated, quick, until};
use crate::tasks::{
    CancelReason, Counts, Filter, Priority, Refusal, TaskConfig, TaskContext, TaskError, TaskOptions, Tasks,
    TasksReport, WhenFull,
};

#[test]
fn tasks_of_one_submitter_begin_in_their_order_whether_inline_or_not() {
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let fixture = fixture(|c| c.workers(1));
    let (order, starts) = bounded(5000);
    let mut last = None;
    for n in 0..5000 {
        let order = order.clone();
        let work = move |_: &TaskContext<'_>| order.send(n).map_err(|error| error.to_string());
        match rng.next_u64() % 100 {
            0 => drop(fixture.tasks.submit(TaskOptions::new("limited").total_limit(HOUR), work).unwrap()),
            1 => drop(fixture.tasks.submit(TaskOptions::new(format!("named {n}")), work).unwrap()),
            2 => {
                last = Some(fixture.tasks.spawn("inline", work).unwrap());
                // Whoever looks enters all in the table.
                assert!(fixture.tasks.info(last.unwrap()).is_some());
            }
            _ => last = Some(fixture.tasks.spawn("inline", work).unwrap()),
        }
    }
    fixture.tasks.submit("last", |_| Ok::<_, Text>(())).unwrap().wait().unwrap();
    assert!(starts.try_iter().eq(0..5000));
    assert!(fixture.tasks.info(last.unwrap()).is_some_and(|info| info.name == "inline" && info.attempts == 1));
}

#[test]
fn what_is_in_a_local_queue_waits_is_counted_and_can_be_cancelled() {
    let fixture = fixture(|c| c.workers(1));
    let (first, begun, open) = gated(&fixture.tasks, "first");
    begin(&begun);
    let (second, begun, then) = gated(&fixture.tasks, "second");
    let rest: Vec<_> = (0..8).map(|_| quick(&fixture.tasks, "rest")).collect();
    open.send(()).unwrap();
    first.wait().unwrap();
    begin(&begun);
    let counts = Counts { pending: 8, running: 1, completed: 1, ..Counts::default() };
    assert_eq!(fixture.tasks.counts(), counts);
    let waits = fixture.tasks.info(rest[3].id()).unwrap();
    assert_eq!((waits.state, waits.attempts, waits.started), (TaskState::Pending, 0, None));
    assert!(rest[3].cancel("") && !rest[3].cancel(""));
    assert!(matches!(rest[3].wait_for(LONG), Err(TaskError::Cancelled(CancelReason::Requested(_)))));
    assert_eq!(fixture.tasks.counts(), Counts { pending: 7, cancelled: 1, ..counts });
    let running = fixture.tasks.list(&Filter::state(TaskState::Running));
    assert_eq!(running.iter().map(|info| info.id).collect::<Vec<_>>(), [second.id()]);
    fixture.clock.advance(HOUR / 2);
    then.send(()).unwrap();
    second.wait_for(LONG).unwrap();
    let ended: Vec<_> = rest.iter().map(|handle| handle.wait_for(LONG).is_ok()).collect();
    assert_eq!(ended, [true, true, true, false, true, true, true, true]);
    assert_eq!(fixture.tasks.counts(), Counts { completed: 9, cancelled: 1, ..Counts::default() });
    let times = fixture.tasks.info(second.id()).unwrap();
    assert_eq!((times.age, times.started, times.ended), (Some(HOUR / 2), Some(HOUR / 2), Some(Duration::ZERO)));
}

#[test]
fn a_task_that_begins_from_the_local_queue_makes_room_at_once() {
    let fixture = fixture(|c| TaskConfig { queue: 10, when_full: WhenFull::Refuse, ..c.workers(1) });
    let mut gates: Vec<_> = (0..11)
        .map(|n| {
            let gate = gated(&fixture.tasks, "gated");
            if n == 0 {
                begin(&gate.1);
            }
            gate
        })
        .collect();
    for n in 0..20 {
        let refused = fixture.tasks.submit("more", |_| Ok::<_, Text>(())).unwrap_err();
        assert_eq!(refused.refusal, Refusal::Full, "after {n}");
        gates[n].2.send(()).unwrap();
        begin(&gates[n + 1].1);
        gates.push(gated(&fixture.tasks, "one more"));
    }
    // The same for one that sleeps until then.
    let tasks = fixture.tasks.clone();
    let sleeper = spawn("t-submit", Kick::dropped("room"), move || {
        let options = TaskOptions::new("blocks").when_full(WhenFull::Block);
        tasks.spawn(options, |_| Ok::<_, Text>(())).unwrap();
    });
    until("the submitter sleeps", || fixture.tasks.scheduler().fast.intake().submitters[0].asleep > 0);
    gates[20].2.send(()).unwrap();
    begin(&gates[21].1);
    sleeper.join_by(Instant::now() + LONG).unwrap();
    gates.iter().for_each(|(handle, ..)| assert!(handle.cancel("") || handle.has_ended()));
}

#[test]
fn submitters_that_wait_for_room_all_get_it() {
    for queue in [1, 7, 100] {
        let mut fixture = fixture(|c| TaskConfig { queue, clock: Clock::system(), ..c.workers(2) });
        let ran = Arc::new(AtomicUsize::new(0));
        let submitters: Vec<_> = (0..4)
            .map(|n| {
                let (tasks, ran) = (fixture.tasks.clone(), ran.clone());
                spawn(format!("t-submit-{n}"), Kick::dropped("room"), move || {
                    for m in 0..3000 {
                        let ran = ran.clone();
                        let options = TaskOptions::new("counts");
                        let options = if m % 50 == n { options.priority(Priority::High) } else { options };
                        let work = move |_: &TaskContext<'_>| {
                            ran.fetch_add(1, SeqCst);
                            Ok::<_, Text>(())
                        };
                        tasks.spawn(options, work).unwrap();
                    }
                })
            })
            .collect();
        for submitter in submitters {
            submitter.join_by(Instant::now() + LONG).unwrap();
        }
        assert!(fixture.stop(LONG).1.is_clean());
        assert_eq!(ran.load(SeqCst), 12_000, "with a queue of {queue}");
    }
}

#[test]
fn no_task_is_left_to_a_worker_that_falls_asleep() {
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    for workers in [1, 2] {
        let fixture = fixture(|c| TaskConfig { clock: Clock::system(), ..c.workers(workers) });
        for _ in 0..10_000 {
            // Some of these moments are those in which a worker gives up looking.
            for _ in 0..rng.next_u64() % 3000 {
                std::hint::spin_loop();
            }
            quick(&fixture.tasks, "now").wait_for(LONG).unwrap();
        }
    }
}

/// Submits itself again and again, so that there is always something to do, until it is over.
fn chain(tasks: &Tasks, over: Arc<AtomicBool>) {
    let next = tasks.clone();
    let work = move |_: &TaskContext<'_>| {
        if !over.load(SeqCst) {
            chain(&next, over.clone());
        }
        Ok::<_, Text>(())
    };
    drop(tasks.spawn("chain", work));
}

#[test]
fn a_worker_that_is_stuck_keeps_no_task_from_the_others() {
    let fixture = fixture(|c| TaskConfig { clock: Clock::system(), ..c.workers(2) });
    let busy = [0, 1].map(|_| gated(&fixture.tasks, "busy"));
    busy.iter().for_each(|(_, begun, _)| begin(begun));
    let before: Vec<_> = (0..3).map(|_| quick(&fixture.tasks, "before")).collect();
    let (stuck, begun, open) = gated(&fixture.tasks, "stuck");
    let behind: Vec<_> = (0..100).map(|_| quick(&fixture.tasks, "behind")).collect();
    let over = Arc::new(AtomicBool::new(false));
    (0..8).for_each(|_| chain(&fixture.tasks, over.clone()));
    // One comes to be stuck with a full local queue while the other is busy, and goes on while there is always more
    // to do.
    busy[0].2.send(()).unwrap();
    begin(&begun);
    assert!(before.into_iter().all(|handle| handle.wait_for(LONG).is_ok()));
    busy[1].2.send(()).unwrap();
    for handle in behind {
        handle.wait_for(LONG).unwrap();
    }
    assert!(!stuck.has_ended());
    over.store(true, SeqCst);
    open.send(()).unwrap();
    stuck.wait().unwrap();
}

#[test]
fn a_stop_cancels_what_is_in_the_local_queues() {
    let mut fixture = fixture(|c| c.workers(1));
    let (first, begun, open) = gated(&fixture.tasks, "first");
    begin(&begun);
    let (second, begun, _closed) = gated(&fixture.tasks, "second");
    let rest: Vec<_> = (0..8).map(|_| quick(&fixture.tasks, "rest")).collect();
    open.send(()).unwrap();
    first.wait().unwrap();
    begin(&begun);
    let (report, stop) = fixture.stop(Duration::from_millis(1));
    assert_eq!((report.cancelled, stop.is_clean()), (9, true));
    for handle in rest {
        assert!(matches!(handle.wait(), Err(TaskError::Cancelled(CancelReason::Stopping))));
    }
    assert!(matches!(second.wait(), Err(TaskError::Cancelled(CancelReason::Stopping))));
}

#[test]
fn whatever_happens_every_inline_task_runs_once_or_is_cancelled_and_the_counts_agree() {
    const EACH: usize = 5000;
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    let mut fixture = fixture(|c| TaskConfig { queue: 300, keep_max: 100_000, clock: Clock::system(), ..c.workers(3) });
    let ran = Arc::new(AtomicUsize::new(0));
    let submitters: Vec<_> = (0..4)
        .map(|n| {
            let (tasks, ran) = (fixture.tasks.clone(), ran.clone());
            let mut rng = Rng::new(seed + n);
            spawn(format!("t-inline-{n}"), Kick::dropped("room"), move || {
                let (mut handles, mut cancelled) = (Vec::new(), 0);
                for _ in 0..EACH {
                    let (ran, what) = (ran.clone(), rng.next_u64() % 50);
                    let work = move |_: &TaskContext<'_>| {
                        ran.fetch_add(1, SeqCst);
                        match what {
                            0 => panic!("planned"),
                            1 => {
                                // Others go first for a while.
                                Shutdown::new().wait(Duration::from_micros(50));
                                Ok::<_, Text>(())
                            }
                            _ => Ok(()),
                        }
                    };
                    let options = TaskOptions::new("random");
                    let options = match rng.next_u64() % 200 {
                        0 => options.priority(Priority::High),
                        1 => options.priority(Priority::Low),
                        2 => options.total_limit(HOUR),
                        _ => options,
                    };
                    let handle = tasks.submit(options, work).unwrap();
                    match rng.next_u64() % 300 {
                        0..10 => drop(handle.cancel("")),
                        10 => drop(tasks.info(handle.id()).expect("it is known")),
                        11 => drop(tasks.list(&Filter::state(TaskState::Running))),
                        12 => assert!(tasks.open() <= 4 * EACH),
                        _ => {}
                    }
                    handles.push(handle);
                }
                for handle in handles {
                    match handle.wait_for(LONG) {
                        Err(TaskError::StillRunning) => panic!("a task has not ended"),
                        Err(TaskError::Cancelled(_)) => cancelled += 1,
                        _ => {}
                    }
                }
                cancelled
            })
        })
        .collect();
    let cancelled: usize =
        submitters.into_iter().map(|submitter| submitter.join_by(Instant::now() + LONG).unwrap()).sum();
    let (report, stop) = fixture.stop(LONG);
    assert_eq!((report, stop.is_clean()), (TasksReport::default(), true));
    let counts = fixture.tasks.counts();
    assert_eq!((counts.pending, counts.running), (0, 0));
    assert_eq!(counts.completed + counts.failed + counts.cancelled, 4 * EACH);
    assert_eq!(fixture.tasks.list(&Filter::default()).len(), 4 * EACH);
    // One that was cancelled while it ran has run, and ended as if it had not been cancelled.
    assert_eq!((ran.load(SeqCst) + counts.cancelled, counts.cancelled), (4 * EACH, cancelled));
    assert!(cancelled > 0);
}
