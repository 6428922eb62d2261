//! Tasks that are tried again, share a key, wait for their time, or belong to a group.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::*;

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
