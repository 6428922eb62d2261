//! Limits in time, a full queue, stops.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::*;

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
