use std::fmt;
use std::io::Read;
use std::net::Shutdown as Shut;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex};
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
fn each_limit_ends_its_task_and_says_which_it_was() {
    let fixture = fixture(|c| c.workers(1));
    let second = Duration::from_secs(1);
    let limited = |tasks: &Tasks, limits: Limits| gated(tasks, TaskOptions::new("limited").limits(limits));
    for (limits, which) in [
        (Limits { run: Some(second), ..Limits::default() }, Limit::Run),
        (Limits { total: Some(second), ..Limits::default() }, Limit::Total),
        (Limits { silence: Some(second), ..Limits::default() }, Limit::Silence),
    ] {
        let (handle, begun, _open) = limited(&fixture.tasks, limits);
        begin(&begun);
        fixture.clock.advance(second);
        match handle.wait_for(LONG) {
            Err(TaskError::TimedOut { limit, after }) => assert_eq!((limit, after), (which, second)),
            other => panic!("{which:?}: {other:?}"),
        }
        assert_eq!(handle.info().unwrap().state, TaskState::Failed);
    }
    let (first, begun, open) = gated(&fixture.tasks, "first");
    begin(&begun);
    let (queued, ..) = limited(&fixture.tasks, Limits { queue: Some(second), run: Some(HOUR), ..Limits::default() });
    fixture.clock.advance(second);
    assert!(matches!(queued.wait_for(LONG), Err(TaskError::TimedOut { limit: Limit::Queue, .. })));
    open.send(()).unwrap();
    first.wait().unwrap();
}

#[test]
fn signs_of_life_put_the_silence_limit_off() {
    let fixture = fixture(|c| c.workers(1));
    let second = Duration::from_secs(1);
    let (go, steps) = bounded::<()>(0);
    let (did, done) = bounded::<()>(0);
    let work = move |cx: &TaskContext<'_>| {
        while steps.recv().is_ok() {
            cx.heartbeat();
            did.send(()).unwrap();
        }
        cx.check().map_err(|error| error.to_string())
    };
    let handle = fixture.tasks.submit(TaskOptions::new("alive").silence_limit(second), work).unwrap();
    for _ in 0..5 {
        go.send(()).unwrap();
        done.recv_timeout(LONG).unwrap();
        fixture.clock.advance(second * 9 / 10);
    }
    drop(go);
    handle.wait().unwrap();
}

#[test]
fn a_task_that_does_not_end_when_cancelled_is_visible_and_does_not_hold_up_others() {
    let mut fixture = fixture(|c| c.workers(1));
    let (begin_tx, begun) = bounded(1);
    let (open, gate) = bounded::<()>(1);
    let work = move |_: &TaskContext<'_>| {
        begin_tx.send(()).unwrap();
        gate.recv().map_err(|error| error.to_string())
    };
    let stuck = fixture.tasks.submit(TaskOptions::new("stuck").run_limit(Duration::from_secs(1)), work).unwrap();
    begin(&begun);
    let id = stuck.id();
    let behind = quick(&fixture.tasks, "behind");
    fixture.clock.advance(Duration::from_secs(1));
    // Whether the limit has rung is seen from the task's side; then the grace starts.
    until("the limit has rung", || fixture.tasks.is_cancelled(stuck.id()));
    assert!(matches!(stuck.wait_for(Duration::ZERO), Err(TaskError::StillRunning)));
    fixture.clock.advance(Duration::from_secs(5));
    assert!(matches!(stuck.wait_for(LONG), Err(TaskError::TimedOut { limit: Limit::Run, .. })));
    behind.wait_for(LONG).expect("its place is taken by another worker");
    let status = fixture.tasks.status();
    assert_eq!((status.written_off, status.workers), (1, 1));
    assert_eq!(status.unresponsive.iter().map(|info| info.name.as_str()).collect::<Vec<_>>(), ["stuck"]);
    let (report, stop) = fixture.stop(Duration::from_millis(10));
    assert_eq!(report.unresponsive.iter().map(|info| info.name.as_str()).collect::<Vec<_>>(), ["stuck"]);
    assert_eq!(stop.stragglers(), ["t-task-0", &format!("task {id} (stuck)")]);
    open.send(()).unwrap();
    until("no thread is left", || fixture.threads.live().is_empty());
}

#[test]
fn a_task_that_ends_after_all_lets_the_next_of_its_key_start() {
    let fixture = fixture(|c| c.workers(1));
    let (begin_tx, begun) = bounded(1);
    let (open, gate) = bounded::<()>(1);
    let keyed = || TaskOptions::new("keyed").key("k", 1);
    let work = move |_: &TaskContext<'_>| {
        begin_tx.send(()).unwrap();
        gate.recv().map_err(|error| error.to_string())
    };
    let stuck = fixture.tasks.submit(keyed(), work).unwrap();
    begin(&begun);
    let next = quick(&fixture.tasks, keyed());
    assert!(stuck.cancel(""));
    fixture.clock.advance(Duration::from_secs(5));
    assert!(matches!(stuck.wait_for(LONG), Err(TaskError::Cancelled(CancelReason::Requested(_)))));
    // Another worker has come, and found nothing that may start.
    quick(&fixture.tasks, "other").wait().unwrap();
    until("another worker has nothing to do", || fixture.tasks.status().idle == 1);
    open.send(()).unwrap();
    next.wait_for(LONG).expect("the key is free");
    until("the stuck worker has left", || fixture.tasks.status().written_off == 0);
}

#[test]
fn a_full_queue_blocks_waits_or_hands_the_work_back() {
    let fixture = fixture(|c| TaskConfig { queue: 1, ..c.workers(1) });
    let (first, begun, open) = gated(&fixture.tasks, "first");
    begin(&begun);
    let second = quick(&fixture.tasks, "second");
    let refused = fixture.tasks.submit(TaskOptions::new("third").when_full(WhenFull::Refuse), |_| Ok::<_, Text>(3));
    let error = refused.expect_err("there is no room");
    assert_eq!(error.refusal, Refusal::Full);
    let short = TaskOptions::new("third").when_full(WhenFull::Timeout(Duration::from_millis(5)));
    let error = fixture.tasks.submit(short, error.work).expect_err("there is no room in time");
    let tasks = fixture.tasks.clone();
    let submitter = spawn("t-submit", Kick::dropped("room"), move || tasks.submit("third", error.work).unwrap().wait());
    open.send(()).unwrap();
    assert_eq!(submitter.join_by(Instant::now() + LONG).unwrap().unwrap(), 3);
    assert_eq!(first.wait().unwrap(), 7);
    second.wait().unwrap();
}

#[test]
fn a_stop_frees_a_submitter_that_waits_for_room() {
    let mut fixture = fixture(|c| TaskConfig { queue: 1, ..c.workers(1) });
    let (first, begun, _open) = gated(&fixture.tasks, "first");
    begin(&begun);
    let second = quick(&fixture.tasks, "second");
    let tasks = fixture.tasks.clone();
    let submitter = spawn("t-submit", Kick::dropped("room"), move || tasks.submit("third", |_| Ok::<_, Text>(3)));
    let (report, stop) = fixture.stop(Duration::from_millis(20));
    assert!(stop.is_clean(), "{stop}");
    assert_eq!(report.cancelled, 2);
    assert_eq!(submitter.join_by(Instant::now() + LONG).unwrap().unwrap_err().refusal, Refusal::Stopping);
    assert!(matches!(first.wait(), Err(TaskError::Cancelled(CancelReason::Stopping))));
    assert!(matches!(second.wait(), Err(TaskError::Cancelled(CancelReason::Stopping))));
    assert_eq!(fixture.tasks.submit("late", |_| Ok::<_, Text>(())).unwrap_err().refusal, Refusal::Stopping);
}

#[test]
fn dropping_a_task_manager_stops_it_though_a_task_does_not_end() {
    let mut fixture = fixture(|c| TaskConfig { cancel_grace: Duration::from_millis(10), ..c.workers(2) });
    let (begins, begun) = bounded(1);
    let (release, held) = bounded::<()>(0);
    let stuck = fixture.tasks.submit("stuck", move |_| {
        begins.send(()).unwrap();
        held.recv().map_err(|error| error.to_string())
    });
    begin(&begun);
    let (running, begun, _open) = gated(&fixture.tasks, "running");
    begin(&begun);
    let waiting = quick(&fixture.tasks, "waiting");
    drop(fixture.manager.take());
    let names = |fixture: &Fixture| fixture.threads.live().into_iter().map(|thread| thread.name).collect::<Vec<_>>();
    assert_eq!(names(&fixture), ["t-task-0"], "only the thread that nothing ends is left behind");
    for ended in [stuck.unwrap().wait().map(drop), running.wait().map(drop), waiting.wait()] {
        assert!(matches!(ended, Err(TaskError::Cancelled(CancelReason::Stopping))), "{ended:?}");
    }
    drop(release);
    until("no thread is left", || names(&fixture).is_empty());
}

#[test]
fn a_task_manager_may_be_dropped_by_one_of_its_tasks() {
    let mut fixture = fixture(|c| TaskConfig { cancel_grace: Duration::from_millis(10), ..c.workers(1) });
    let manager = fixture.manager.take();
    let (dropped, done) = bounded(1);
    let drops = fixture.tasks.submit("drops", move |_| {
        drop(manager);
        dropped.send(()).unwrap();
        Ok::<_, Text>(())
    });
    assert!(matches!(drops.unwrap().wait(), Err(TaskError::Cancelled(CancelReason::Stopping))));
    done.recv_timeout(LONG).unwrap();
    until("no thread is left", || fixture.threads.live().is_empty());
}

#[test]
fn a_stop_lets_what_was_accepted_end_and_tasks_know_that_it_stops() {
    let mut fixture = fixture(|c| c.workers(1));
    let ran = Arc::new(AtomicUsize::new(0));
    let (begin_tx, begun) = bounded(1);
    let work = move |cx: &TaskContext<'_>| {
        begin_tx.send(()).unwrap();
        assert!(cx.signal().wait_for(Level::Drain, LONG));
        Ok::<_, Text>((cx.is_stopping(), cx.is_cancelled()))
    };
    let first = fixture.tasks.submit("first", work).unwrap();
    begin(&begun);
    let rest: Vec<_> = (0..10)
        .map(|_| {
            let ran = ran.clone();
            fixture.tasks.submit("queued", move |_| Ok::<_, Text>(ran.fetch_add(1, SeqCst))).unwrap()
        })
        .collect();
    let later = quick(&fixture.tasks, TaskOptions::new("later").delay(HOUR));
    let (report, stop) = fixture.stop(LONG);
    assert_eq!((report, stop.is_clean()), (TasksReport::default(), true));
    assert_eq!(first.wait().unwrap(), (true, false));
    assert_eq!(ran.load(SeqCst), 10);
    assert_eq!(rest.into_iter().map(|handle| handle.wait().unwrap()).sum::<usize>(), 45);
    assert!(matches!(later.wait(), Err(TaskError::Cancelled(CancelReason::Stopping))));
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
fn a_failed_task_is_tried_again_after_its_delay_and_keeps_its_state_legal() {
    let fixture = fixture(|c| c.workers(1));
    let (attempted, attempts) = bounded(10);
    let policy = RetryPolicy::new(3).delays(Duration::from_secs(10), HOUR).only_if(|error: &Text| error != "final");
    let work = move |cx: &TaskContext<'_>| {
        attempted.send(cx.attempt()).unwrap();
        Err::<(), _>("again".to_owned())
    };
    let handle = fixture.tasks.submit_retried("tries", policy, work).unwrap();
    for attempt in 1..=3 {
        assert_eq!(attempts.recv_timeout(LONG).unwrap(), attempt);
        if attempt < 3 {
            until("the task waits for its next attempt", || handle.info().unwrap().state == TaskState::Pending);
            fixture.clock.advance(Duration::from_secs(40));
        }
    }
    assert!(matches!(handle.wait(), Err(TaskError::Failed(error)) if error == "again"));
    let never = RetryPolicy::new(3).only_if(|error: &Text| error != "final");
    let failed = fixture.tasks.submit_retried("final", never, |_| Err::<(), _>("final".to_owned())).unwrap();
    let id = failed.id();
    assert!(failed.wait().is_err());
    assert_eq!(fixture.tasks.info(id).unwrap().attempts, 1);
}

#[test]
fn a_task_between_two_attempts_can_be_cancelled_and_frees_its_key() {
    let fixture = fixture(|c| c);
    let options = || TaskOptions::new("tries").key("k", 1);
    let policy = RetryPolicy::new(9).delays(HOUR, HOUR);
    let tries = fixture.tasks.submit_retried(options(), policy, |_| Err::<(), _>("again".to_owned())).unwrap();
    until("the task waits for its next attempt", || {
        tries.info().is_some_and(|info| info.attempts == 1 && info.state == TaskState::Pending)
    });
    let next = quick(&fixture.tasks, options());
    assert!(matches!(next.wait_for(Duration::from_millis(5)), Err(TaskError::StillRunning)));
    assert!(tries.cancel(""));
    next.wait_for(LONG).unwrap();
    assert!(matches!(tries.wait(), Err(TaskError::Cancelled(CancelReason::Requested(_)))));
    assert_eq!(fixture.tasks.status().delayed, 0);
}

#[test]
fn a_total_limit_counts_the_waits_between_attempts() {
    let fixture = fixture(|c| c.workers(1));
    let options = TaskOptions::new("tries").total_limit(Duration::from_secs(60));
    let policy = RetryPolicy::new(9).delays(HOUR, HOUR);
    let tries = fixture.tasks.submit_retried(options, policy, |_| Err::<(), _>("again".to_owned())).unwrap();
    until("the task waits for its next attempt", || {
        tries.info().is_some_and(|info| info.attempts == 1 && info.state == TaskState::Pending)
    });
    fixture.clock.advance(Duration::from_secs(60));
    assert!(matches!(tries.wait_for(LONG), Err(TaskError::TimedOut { limit: Limit::Total, .. })));
}

#[test]
fn a_key_limits_its_tasks_and_a_unique_one_runs_once_more_at_most() {
    let fixture = fixture(|c| c.workers(4));
    let unique = || TaskOptions::new("sync").unique("sync");
    let (first, begun, open) = gated(&fixture.tasks, unique());
    begin(&begun);
    let second = quick(&fixture.tasks, unique());
    let third = fixture.tasks.submit(unique(), |_| Ok::<_, Text>(()));
    assert_eq!(third.unwrap_err().refusal, Refusal::Duplicate);
    assert_eq!(second.info().unwrap().state, TaskState::Pending);
    open.send(()).unwrap();
    first.wait().unwrap();
    second.wait().unwrap();
    let most = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0), Barrier::new(2)));
    let all: Vec<_> = (0..200)
        .map(|_| {
            let most = most.clone();
            let work = move |_: &TaskContext<'_>| {
                let now = most.0.fetch_add(1, SeqCst) + 1;
                most.1.fetch_max(now, SeqCst);
                // Two run at a time, or it never ends.
                most.2.wait();
                most.0.fetch_sub(1, SeqCst);
                Ok::<_, Text>(())
            };
            fixture.tasks.submit(TaskOptions::new("keyed").key("two", 2), work).unwrap()
        })
        .collect();
    all.into_iter().for_each(|handle| handle.wait_for(LONG).unwrap());
    assert_eq!(most.1.load(SeqCst), 2);
}

#[test]
fn delayed_and_periodic_tasks_wait_for_their_time() {
    let fixture = fixture(|c| c.workers(1));
    let minute = Duration::from_secs(60);
    let later = quick(&fixture.tasks, TaskOptions::new("later").delay(minute).queue_limit(minute));
    let (beat, beats) = bounded(10);
    let periodic =
        fixture.tasks.every(minute, || "beat".into(), move |_| beat.send(()).map_err(|e| e.to_string())).unwrap();
    assert_eq!(fixture.tasks.status().delayed, 1);
    fixture.clock.advance(minute - Duration::from_nanos(1));
    assert!(matches!(later.wait_for(Duration::from_millis(5)), Err(TaskError::StillRunning)));
    fixture.clock.advance(Duration::from_nanos(1));
    later.wait_for(LONG).unwrap();
    for _ in 0..3 {
        beats.recv_timeout(LONG).unwrap();
        until("no task is open", || fixture.tasks.open() == 0);
        fixture.clock.advance(minute);
    }
    beats.recv_timeout(LONG).unwrap();
    assert_eq!(periodic.skipped(), 0);
    drop(periodic);
    fixture.clock.advance(minute);
    assert!(beats.recv_timeout(LONG).is_err(), "the work is dropped with the repetition");
}

#[test]
fn a_period_in_which_the_one_before_still_runs_is_left_out() {
    let fixture = fixture(|c| c.workers(2));
    let minute = Duration::from_secs(60);
    let (beat, beats) = bounded(10);
    let (open, gate) = bounded::<()>(10);
    let work = move |_: &TaskContext<'_>| {
        beat.send(()).unwrap();
        gate.recv().map_err(|error| error.to_string())
    };
    let periodic = fixture.tasks.every(minute, || "beat".into(), work).unwrap();
    fixture.clock.advance(minute);
    begin(&beats);
    for skipped in 1..=2 {
        fixture.clock.advance(minute);
        until("a time that is left out", || periodic.skipped() == skipped);
    }
    assert!(beats.is_empty());
    open.send(()).unwrap();
    until("no task is open", || fixture.tasks.open() == 0);
    // Times that nobody could see are not made up for.
    fixture.clock.advance(minute * 10);
    begin(&beats);
    open.send(()).unwrap();
    until("no task is open", || fixture.tasks.open() == 0);
    assert!(beats.is_empty() && periodic.skipped() == 2);
}

#[test]
fn a_period_in_which_there_is_no_room_is_left_out_whatever_its_options_say() {
    let fixture = fixture(|c| TaskConfig { queue: 1, ..c.workers(1) });
    let (_first, begun, _open) = gated(&fixture.tasks, "first");
    begin(&begun);
    let _second = quick(&fixture.tasks, "second");
    let minute = Duration::from_secs(60);
    let options = || TaskOptions::new("beat").when_full(WhenFull::Block);
    let periodic = fixture.tasks.every(minute, options, |_| Ok::<_, Text>(())).unwrap();
    fixture.clock.advance(minute);
    until("a time that is left out", || periodic.skipped() == 1);
}

#[test]
fn a_group_gives_all_results_or_the_first_failure_and_cancels_the_rest() {
    let fixture = fixture(|c| c.workers(4));
    let mut group: Group<usize, Text> = Group::new(&fixture.tasks);
    (0..20).for_each(|n| group.submit("member", move |_| Ok(n)).unwrap());
    assert_eq!(group.wait_all(LONG).unwrap(), (0..20).collect::<Vec<_>>());

    let mut group: Group<(), Text> = Group::new(&fixture.tasks);
    let (tell, reasons) = bounded(1);
    let (begins, begun) = bounded(1);
    group
        .submit("waits", move |cx| {
            begins.send(()).unwrap();
            cx.signal().wait_for(Level::Cancel, LONG);
            tell.send(cx.cancelled()).unwrap();
            Err("ended".to_owned())
        })
        .unwrap();
    begin(&begun);
    group.submit("fails", |_| Err("first".to_owned())).unwrap();
    let error = group.wait_all(LONG).unwrap_err();
    assert!(matches!(error, GroupError { index: 1, error: TaskError::Failed(text) } if text == "first"));
    assert_eq!(reasons.recv_timeout(LONG).unwrap(), Some(CancelReason::Group));

    let mut group: Group<u32, Text> = Group::new(&fixture.tasks);
    let (open, gate) = bounded::<()>(1);
    group.submit("slow", move |_| gate.recv().map(|()| 1).map_err(|e| e.to_string())).unwrap();
    group.submit("fast", |_| Ok(2)).unwrap();
    assert!(matches!(group.wait_any(LONG), Some((1, Ok(2)))));
    assert!(matches!(group.wait_any(Duration::from_millis(1)), Some((0, Err(TaskError::StillRunning)))));
    open.send(()).unwrap();
    assert!(matches!(group.wait_any(LONG), Some((0, Ok(1)))));
    assert!(group.wait_any(LONG).is_none());
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
