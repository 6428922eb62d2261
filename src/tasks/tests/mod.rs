mod later;
mod limits;

use std::fmt;
use std::io::Read;
use std::net::Shutdown as Shut;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::*;
use crate::base::clock::Clock;
use crate::base::lock::lock;
use crate::base::rng::Rng;
use crate::base::scope;
use crate::base::shutdown::Level;
use crate::base::stop::{StopReport, Stopping};
use crate::base::thread::{Group as Threads, Kick, spawn};
pub(super) use crate::base::wait::{LONG, until};
use crate::base::waits::Activity;

pub(super) const HOUR: Duration = Duration::from_secs(3600);

pub(super) type Text = String;

/// A manager with a clock that stands still; its drop stops it and checks that no thread is left.
pub(super) struct Fixture {
    manager: Option<TaskManager>,
    pub(super) tasks: Tasks,
    pub(super) clock: Clock,
    threads: Threads,
}

pub(super) fn fixture(change: impl FnOnce(TaskConfig) -> TaskConfig) -> Fixture {
    let threads = Threads::enter();
    let clock = Clock::manual();
    let config = TaskConfig { clock: clock.clone(), ..TaskConfig::new("t-task").workers(2) };
    let manager = TaskManager::start(change(config)).unwrap();
    Fixture { tasks: manager.handle(), manager: Some(manager), clock, threads }
}

impl Fixture {
    pub(super) fn stop(&mut self, budget: Duration) -> (TasksReport, StopReport) {
        let mut stopping = Stopping::alone();
        let manager = self.manager.take().unwrap();
        let report = stopping.step("tasks", budget, |step| manager.stop_in(step));
        (report, stopping.finish())
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        drop(self.manager.take());
        if !std::thread::panicking() {
            assert!(self.threads.live().is_empty(), "{:?}", self.threads.live());
        }
    }
}

/// A task that says that it has begun, and ends when it is let.
pub(super) fn gated(
    tasks: &Tasks,
    options: impl Into<TaskOptions>,
) -> (TaskHandle<u32, Text>, Receiver<()>, Sender<()>) {
    let (begin, begun) = bounded(1);
    let (open, gate) = bounded::<()>(1);
    let work = move |cx: &TaskContext<'_>| {
        begin.send(()).unwrap();
        crossbeam_channel::select! {
            recv(gate) -> _ => Ok(7),
            recv(cx.signal().cancel_receiver()) -> _ => Err("cancelled".to_owned()),
        }
    };
    (tasks.submit(options, work).unwrap(), begun, open)
}

pub(super) fn begin(begun: &Receiver<()>) {
    begun.recv_timeout(LONG).expect("the task begins");
}

pub(super) fn quick(tasks: &Tasks, options: impl Into<TaskOptions>) -> TaskHandle<(), Text> {
    tasks.submit(options, |_| Ok(())).unwrap()
}

#[test]
fn a_result_an_error_and_a_panic_are_distinguished() {
    let fixture = fixture(|c| c);
    assert_eq!(fixture.tasks.submit("sum", |_| Ok::<_, Text>(1 + 1)).unwrap().wait().unwrap(), 2);
    let failed = fixture.tasks.submit("fails", |_| Err::<(), _>("no".to_owned())).unwrap();
    let id = failed.id();
    assert!(matches!(failed.wait(), Err(TaskError::Failed(error)) if error == "no"));
    let info = fixture.tasks.info(id).unwrap();
    assert_eq!((info.state, info.error.as_deref()), (TaskState::Failed, Some("the task failed: no")));
    keep_backtraces();
    let panicked = fixture.tasks.submit("panics", |_| -> Result<(), Text> { panic!("boom {}", 7) }).unwrap();
    let Err(TaskError::Panicked(panic)) = panicked.wait() else { panic!("expected a panic") };
    assert_eq!(panic.message(), "boom 7");
    let trace = panic.backtrace().expect("it is kept").to_string();
    assert!(trace.contains("tasks::tests"), "{trace}");
    // The worker lives on.
    quick(&fixture.tasks, "after").wait().unwrap();
}

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "a bomb goes off");
    }
}

#[test]
fn a_panic_anywhere_in_a_task_costs_no_worker_and_no_waiter() {
    let fixture = fixture(|c| c.workers(1));
    let bomb = Bomb;
    let carries = fixture.tasks.submit("carries", move |_| {
        let _carried = &bomb;
        Ok::<_, Text>(1)
    });
    assert!(matches!(carries.unwrap().wait(), Err(TaskError::Panicked(panic)) if panic.message() == "a bomb goes off"));
    let options =
        TaskOptions::new("says").on_progress(|_, _| panic!("in the callback")).on_end(|_, _| panic!("at the end"));
    let says = fixture.tasks.submit(options, |cx| {
        cx.progress(50, "half");
        Ok::<_, Text>(2)
    });
    assert_eq!(says.unwrap().wait().unwrap(), 2);
    // An error that cannot be shown.
    struct Unspeakable;
    impl fmt::Display for Unspeakable {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            panic!("in the error")
        }
    }
    let unspeakable = fixture.tasks.submit("error", |_| Err::<(), _>(Unspeakable)).unwrap();
    assert!(matches!(unspeakable.wait_for(LONG), Err(TaskError::Failed(Unspeakable))));
    let text = unspeakable.info().unwrap().error.unwrap();
    assert!(text.ends_with("panicked: in the error"), "{text}");
    // Options that cannot be made, and the clock goes on.
    let second = Duration::from_secs(1);
    let periodic = fixture.tasks.every(second, || panic!("in the options"), |_| Ok::<_, Text>(())).unwrap();
    fixture.clock.advance(second);
    until("a time that is left out", || periodic.skipped() == 1);
    let later = quick(&fixture.tasks, TaskOptions::new("later").delay(second));
    fixture.clock.advance(second);
    later.wait_for(LONG).unwrap();
    // A result that nobody wants, and that panics when it is dropped.
    drop(fixture.tasks.submit("result", |_| Ok::<_, Text>(Bomb)).unwrap().wait().map(std::mem::forget));
    let (handle, begun, open) = gated(&fixture.tasks, "before");
    begin(&begun);
    drop(fixture.tasks.submit("result", |_| Ok::<_, Text>(Bomb)).unwrap());
    open.send(()).unwrap();
    assert_eq!(handle.wait().unwrap(), 7);
    quick(&fixture.tasks, "after").wait().unwrap();
}

#[test]
fn waiting_distinguishes_running_taken_and_unknown() {
    let fixture = fixture(|c| c);
    let (handle, begun, open) = gated(&fixture.tasks, "slow");
    begin(&begun);
    assert!(matches!(handle.wait_for(Duration::from_millis(1)), Err(TaskError::StillRunning)));
    assert_eq!(fixture.tasks.wait_for(handle.id(), Duration::from_millis(1)), WaitEnd::StillRunning);
    open.send(()).unwrap();
    assert!(
        matches!(fixture.tasks.wait_for(handle.id(), LONG), WaitEnd::Yes(info) if info.state == TaskState::Completed)
    );
    assert_eq!(handle.wait_for(LONG).unwrap(), 7);
    assert!(matches!(handle.wait_for(LONG), Err(TaskError::Taken)));
    let id = handle.id();
    fixture.clock.advance(HOUR);
    // The reaper forgets it, and then nothing is known of it.
    until("the reaper forgets the task", || fixture.tasks.info(id).is_none());
    assert_eq!(fixture.tasks.wait_for(id, LONG), WaitEnd::Unknown);
    assert_eq!(fixture.tasks.counts(), Counts::default());
}

#[test]
fn a_result_that_is_kept_is_had_by_the_id_once_and_by_its_own_type() {
    let fixture = fixture(|c| c.workers(1));
    let kept = || TaskOptions::new("kept").keep_result();
    let text = |id| fixture.tasks.result::<Text, Text>(id).map_err(|error| error.to_string());
    let (running, begun, open) = gated(&fixture.tasks, kept());
    begin(&begun);
    let (first, fails) = (running.id(), fixture.tasks.spawn(kept(), |_| Err::<Text, Text>("no".to_owned())).unwrap());
    drop(running);
    assert!(matches!(fixture.tasks.result::<u32, Text>(first), Err(TaskError::StillRunning)));
    let cancelled = fixture.tasks.spawn(kept(), |_| Ok::<_, Text>(Text::new())).unwrap();
    assert!(fixture.tasks.cancel(cancelled, ""));
    open.send(()).unwrap();
    assert!(matches!(fixture.tasks.wait_for(fails, LONG), WaitEnd::Yes(_)));
    assert_eq!(text(first).unwrap_err(), "the task's result is of another type");
    assert_eq!(fixture.tasks.result::<u32, Text>(first).unwrap(), 7);
    assert!(matches!(fixture.tasks.result::<u32, Text>(first), Err(TaskError::Taken)));
    assert_eq!(text(fails).unwrap_err(), "the task failed: no");
    assert_eq!(text(cancelled).unwrap_err(), "the task was cancelled on request");
    // Without the option it is dropped with its handle, also where nothing but a name is left.
    for options in [TaskOptions::new("inline"), TaskOptions::new("other").priority(Priority::High)] {
        let id = fixture.tasks.spawn(options, |_| Ok::<_, Text>(1)).unwrap();
        assert!(matches!(fixture.tasks.wait_for(id, LONG), WaitEnd::Yes(_)));
        assert!(matches!(fixture.tasks.result::<i32, Text>(id), Err(TaskError::NotKept)));
    }
    let held = Arc::new(());
    let value = held.clone();
    let id = fixture.tasks.spawn(kept(), move |_| Ok::<_, Text>(value)).unwrap();
    assert!(matches!(fixture.tasks.wait_for(id, LONG), WaitEnd::Yes(_)));
    assert_eq!(Arc::strong_count(&held), 2);
    fixture.clock.advance(HOUR);
    until("the result goes with its task", || Arc::strong_count(&held) == 1);
    assert!(matches!(fixture.tasks.result::<Arc<()>, Text>(id), Err(TaskError::Unknown)));
}

#[test]
fn a_cancel_ends_a_waiting_task_at_once_and_reaches_a_running_one() {
    let fixture = fixture(|c| c.workers(1));
    let (running, begun, _open) = gated(&fixture.tasks, "running");
    begin(&begun);
    let held = Arc::new(());
    let captured = held.clone();
    let waiting = fixture.tasks.submit("waiting", move |_| Ok::<_, Text>(Arc::strong_count(&captured))).unwrap();
    assert!(waiting.cancel(""));
    assert_eq!(Arc::strong_count(&held), 1, "what the work has captured is free");
    assert!(!waiting.cancel(""), "a terminal state is final");
    assert!(matches!(waiting.wait(), Err(TaskError::Cancelled(CancelReason::Requested(_)))));
    let id = running.id();
    assert!(fixture.tasks.cancel(id, "its user has left"));
    let error = running.wait().unwrap_err().to_string();
    assert_eq!(error, "the task was cancelled on request: its user has left");
    assert_eq!(fixture.tasks.info(id).unwrap().error, Some(error));
    let late = quick(&fixture.tasks, "done");
    let id = late.id();
    late.wait().unwrap();
    assert!(!fixture.tasks.cancel(id, ""));
    assert_eq!(fixture.tasks.counts(), Counts { completed: 1, cancelled: 2, ..Counts::default() });
}

#[test]
fn a_cancel_reaches_a_sleep_and_a_blocking_read() {
    let fixture = fixture(|c| c);
    let (begin_tx, begun) = bounded(2);
    let first = begin_tx.clone();
    let sleeps = fixture.tasks.submit("sleeps", move |cx| {
        first.send(()).unwrap();
        assert_eq!(cx.sleep(HOUR), Err(Interrupted(CancelReason::Requested("enough".to_owned()))));
        cx.check()
    });
    let reads = fixture.tasks.submit("reads", move |cx| {
        let (mut near, far) = UnixStream::pair().unwrap();
        let _kick = cx.signal().on(Level::Cancel, move || far.shutdown(Shut::Both).unwrap());
        begin_tx.send(()).unwrap();
        let read = near.read(&mut [0]).map_err(|error| error.to_string())?;
        Err::<(), _>(format!("{read} bytes"))
    });
    let (sleeps, reads) = (sleeps.unwrap(), reads.unwrap());
    begin(&begun);
    begin(&begun);
    assert!(sleeps.cancel("enough") && reads.cancel("enough"));
    assert!(matches!(sleeps.wait_for(LONG), Err(TaskError::Cancelled(CancelReason::Requested(_)))));
    assert!(matches!(reads.wait_for(LONG), Err(TaskError::Cancelled(CancelReason::Requested(_)))));
}

#[test]
fn an_end_is_seen_by_id_though_nobody_has_the_handle() {
    let fixture = fixture(|c| c.workers(1));
    let (handle, begun, open) = gated(&fixture.tasks, "alone");
    begin(&begun);
    let (id, mut watch) = (handle.id(), handle.watch());
    drop(handle);
    let tasks = fixture.tasks.clone();
    let waiter = spawn("t-waiter", Kick::dropped("the task"), move || tasks.wait_for(id, LONG));
    open.send(()).unwrap();
    let ended = waiter.join_by(Instant::now() + LONG).unwrap();
    assert!(matches!(ended, WaitEnd::Yes(info) if info.state == TaskState::Completed));
    assert_eq!(watch.next(LONG), Watched::Ended);
}

#[test]
fn a_worker_does_not_stay_in_the_scope_of_who_submitted_first() {
    let fixture = fixture(|c| c.workers(1));
    let _job = scope::job("job");
    let seen = fixture.tasks.submit("looks", |_| Ok::<_, Text>(scope::current().is_none())).unwrap();
    assert!(seen.wait().unwrap());
}

#[test]
fn a_more_urgent_task_overtakes() {
    let fixture = fixture(|c| c.workers(1));
    let (_first, begun, open) = gated(&fixture.tasks, "first");
    begin(&begun);
    let (order, starts) = bounded(3);
    let handles = [Priority::Low, Priority::Normal, Priority::High].map(|priority| {
        let order = order.clone();
        let work = move |_: &TaskContext<'_>| order.send(priority).map_err(|error| error.to_string());
        fixture.tasks.submit(TaskOptions::new("urgent").priority(priority), work).unwrap()
    });
    open.send(()).unwrap();
    handles.into_iter().for_each(|handle| handle.wait().unwrap());
    assert_eq!(starts.try_iter().collect::<Vec<_>>(), [Priority::High, Priority::Normal, Priority::Low]);
}

#[test]
fn what_each_thread_waits_for_can_be_seen() {
    let fixture = fixture(|c| TaskConfig { clock: Clock::system(), ..c.workers(2) });
    let far = Instant::now() + HOUR;
    let _later = quick(&fixture.tasks, TaskOptions::new("later").delay(HOUR));
    quick(&fixture.tasks, "now").wait().unwrap();
    let (gated, begun, open) = gated(&fixture.tasks, "gated");
    begin(&begun);
    let waiter = spawn("t-waiter", Kick::dropped("the task"), move || gated.wait_for(LONG));
    let mut group: Group<(), Text> = Group::new(&fixture.tasks);
    group.submit("sleeps", |cx| cx.sleep(HOUR).map_err(|error| error.to_string())).unwrap();
    let ends = fixture.tasks.clone();
    let grouped = spawn("t-group", Kick::dropped("the group"), move || group.wait_any(LONG).is_some());
    let seen = |name: &str, what: &str, by: Option<Instant>| {
        let is_so = |seen: &Activity| seen.waits_for == Some(what) && seen.deadline.is_some() == by.is_some();
        until("the thread waits", || {
            fixture.threads.live().iter().any(|thread| thread.name == name && is_so(&thread.activity))
        });
        let live = fixture.threads.live();
        let activity = live.iter().find(|thread| thread.name == name).map(|thread| thread.activity).unwrap();
        assert!(activity.deadline <= by, "{activity}");
    };
    seen("t-task-time", "its next deadline", Some(far + LONG));
    seen("t-waiter", "a task", Some(far + LONG));
    seen("t-group", "a task of a group", Some(far + LONG));
    open.send(()).unwrap();
    assert_eq!(waiter.join_by(Instant::now() + LONG).unwrap().unwrap(), 7);
    let sleeper = ends.list(&Filter { name: Some("sleeps".into()), ..Filter::default() });
    assert!(ends.cancel(sleeper[0].id, ""));
    assert!(grouped.join_by(Instant::now() + LONG).unwrap());
    seen("t-task-0", "a task to run", None);
}

#[test]
fn progress_is_readable_and_can_be_followed() {
    let fixture = fixture(|c| c.workers(1));
    let (go, steps) = bounded::<u8>(0);
    let reported = Arc::new(Mutex::new(Vec::new()));
    let reporting = reported.clone();
    let options = TaskOptions::new("steps").on_progress(move |_, progress| lock(&reporting).push(progress.percent));
    let handle = fixture.tasks.submit(options, move |cx| {
        steps.iter().for_each(|percent| cx.progress(percent, format!("at {percent}")));
        Ok::<_, Text>(())
    });
    let handle = handle.unwrap();
    let mut watch = handle.watch();
    assert_eq!((handle.progress(), watch.next(Duration::ZERO)), (None, Watched::Nothing));
    for percent in [10, 200] {
        go.send(percent).unwrap();
        let seen = Progress { percent: percent.min(100), message: format!("at {percent}") };
        assert_eq!(watch.next(LONG), Watched::Progress(seen.clone()));
        assert_eq!(handle.progress(), Some(seen));
    }
    drop(go);
    assert_eq!(watch.next(LONG), Watched::Ended);
    handle.wait().unwrap();
    assert_eq!(*lock(&reported), [10, 100]);
}

#[test]
fn lists_are_filtered_and_tables_are_bounded() {
    let fixture = fixture(|c| TaskConfig { keep_max: 5, ..c.workers(1) });
    for n in 0..20 {
        quick(&fixture.tasks, TaskOptions::new(if n % 2 == 0 { "even" } else { "odd" }).metadata("n", n.to_string()))
            .wait()
            .unwrap();
    }
    let (_running, begun, _open) = gated(&fixture.tasks, TaskOptions::new("runs").key("k", 3));
    begin(&begun);
    assert_eq!(fixture.tasks.counts(), Counts { running: 1, completed: 5, ..Counts::default() });
    let list = |filter: Filter| fixture.tasks.list(&filter).len();
    assert_eq!(list(Filter::default()), 6);
    assert_eq!(list(Filter::state(TaskState::Completed)), 5);
    assert_eq!(list(Filter { name: Some("odd".into()), ..Filter::default() }), 3);
    assert_eq!(list(Filter { key: Some("k".into()), ..Filter::default() }), 1);
    assert_eq!(list(Filter { metadata: Some(("n".into(), "19".into())), ..Filter::default() }), 1);
    assert_eq!(list(Filter { most: Some(2), ..Filter::default() }), 2);
}

#[test]
fn a_result_that_is_too_large_is_a_failure() {
    let fixture = fixture(|c| TaskConfig { result_bytes: 10, ..c });
    let weighed = |length| {
        let options = TaskOptions::new("bytes").weigh(|bytes: &Vec<u8>| bytes.len());
        fixture.tasks.submit(options, move |_| Ok::<_, Text>(vec![0u8; length])).unwrap().wait()
    };
    assert_eq!(weighed(10).unwrap().len(), 10);
    assert!(matches!(weighed(11), Err(TaskError::TooLarge { bytes: 11, limit: 10 })));
}

#[test]
fn submit_and_cancel_do_not_pile_up_behind_a_busy_worker() {
    let fixture = fixture(|c| c.workers(1));
    let (first, begun, open) = gated(&fixture.tasks, "first");
    begin(&begun);
    for n in 0..20_000 {
        let options = TaskOptions::new("gone").total_limit(HOUR);
        let options = if n % 2 == 0 { options.key("k", 1) } else { options };
        assert!(quick(&fixture.tasks, options).cancel(""));
    }
    let left = fixture.tasks.queue_len();
    assert!(left <= 200, "{left} dead entries");
    open.send(()).unwrap();
    first.wait().unwrap();
    quick(&fixture.tasks, TaskOptions::new("after").key("k", 1)).wait().unwrap();
}

#[test]
fn whatever_happens_every_task_ends_once_and_the_counts_agree() {
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    let mut fixture = fixture(|c| TaskConfig { queue: 64, keep_max: 100_000, clock: Clock::system(), ..c.workers(3) });
    let ends = Arc::new(AtomicUsize::new(0));
    let submitters: Vec<_> = (0..4)
        .map(|n| {
            let (tasks, ends) = (fixture.tasks.clone(), ends.clone());
            let mut rng = Rng::new(seed + n);
            spawn(format!("t-random-{n}"), Kick::dropped("room"), move || {
                let mut handles = Vec::new();
                for _ in 0..1000 {
                    let ends = ends.clone();
                    let mut options = TaskOptions::new("random").on_end(move |_, _| {
                        ends.fetch_add(1, SeqCst);
                    });
                    if rng.one_in(3) {
                        options = options.key(["a", "b"][(rng.next_u64() % 2) as usize], 1);
                    }
                    if rng.one_in(4) {
                        options = options.delay(Duration::from_micros(rng.next_u64() % 2000));
                    }
                    if rng.one_in(4) {
                        options = options.total_limit(Duration::from_micros(rng.next_u64() % 3000));
                    }
                    let what = rng.next_u64() % 4;
                    let policy = RetryPolicy::new(3).delays(Duration::from_micros(200), Duration::from_millis(1));
                    let work = move |_: &TaskContext<'_>| match what {
                        0 => Err("no".to_owned()),
                        1 => panic!("planned"),
                        _ => Ok(what),
                    };
                    let handle = tasks.submit_retried(options, policy, work).unwrap();
                    if rng.one_in(5) {
                        handle.cancel("");
                    }
                    if rng.one_in(2) {
                        handles.push(handle);
                    }
                }
                for handle in handles {
                    let end = handle.wait_for(LONG);
                    assert!(!matches!(end, Err(TaskError::StillRunning)), "a task has not ended");
                }
            })
        })
        .collect();
    for submitter in submitters {
        submitter.join_by(Instant::now() + LONG).unwrap();
    }
    let (report, stop) = fixture.stop(LONG);
    assert_eq!((report, stop.is_clean()), (TasksReport::default(), true));
    assert_eq!(ends.load(SeqCst), 4000);
    let Counts { pending, running, completed, failed, cancelled } = fixture.tasks.counts();
    assert_eq!((pending, running, completed + failed + cancelled), (0, 0, 4000));
    assert_eq!(fixture.tasks.list(&Filter::default()).len(), 4000);
}
