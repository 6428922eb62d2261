//! The helper that finds what was left behind. Alone in its file, because other tests' threads and files would be
//! found.

#![cfg(target_os = "linux")]

use std::fs::File;
use std::panic::{PanicHookInfo, set_hook, take_hook};
use std::ptr::from_ref;
use std::time::{Duration, Instant};

use crate::alone;
use crossbeam_channel::bounded;
use phalanx::base::leaks::Before;
use phalanx::base::stop::Stopping;
use phalanx::base::thread::{Kick, spawn};
use phalanx::tasks::{Interrupted, TaskConfig, TaskError, TaskManager};

#[test]
fn what_is_left_is_named_until_it_is_gone_and_a_stopped_task_manager_leaves_nothing() {
    alone("leaks::what_is_left_is_named_until_it_is_gone_and_a_stopped_task_manager_leaves_nothing", || {
        a_thread_and_a_file_that_are_left_are_named_until_they_are_gone();
        a_stopped_task_manager_leaves_nothing();
    });
}

/// Alone, because a panic hook belongs to the process.
#[test]
fn a_task_manager_sets_no_panic_hook_and_the_programs_own_reports_the_place() {
    let name = "leaks::a_task_manager_sets_no_panic_hook_and_the_programs_own_reports_the_place";
    alone(name, the_programs_own_hook_reports_the_place);
}

fn the_programs_own_hook_reports_the_place() {
    let (seen, places) = bounded(1);
    let ours: Box<dyn Fn(&PanicHookInfo<'_>) + Send + Sync> =
        Box::new(move |info| seen.send(info.location().map(|place| place.file().to_owned())).unwrap());
    let place = from_ref(&*ours).cast::<()>();
    let before = take_hook();
    set_hook(ours);
    let manager = TaskManager::start(TaskConfig::new("t-task").workers(1)).unwrap();
    let task = manager.handle().submit::<(), Interrupted, _>("panics", |_| panic!("planned")).unwrap();
    let ended = task.wait();
    drop(manager);
    let after = take_hook();
    set_hook(before);
    assert_eq!(from_ref(&*after).cast::<()>(), place);
    let Err(TaskError::Panicked(panic)) = ended else { panic!("expected a panic, got {ended:?}") };
    assert_eq!((panic.message(), panic.backtrace().is_none()), ("planned", true));
    assert_eq!(places.try_recv().unwrap().as_deref(), Some(file!()));
}

fn a_stopped_task_manager_leaves_nothing() {
    let before = Before::of_process();
    let manager = TaskManager::start(TaskConfig::new("t-task").workers(3)).unwrap();
    let tasks = manager.handle();
    for _ in 0..10 {
        // Each holds a thread or a place in the queue, and a file as soon as it runs.
        let work = |cx: &phalanx::tasks::TaskContext<'_>| {
            let _file = File::open("/proc/self/status").unwrap();
            cx.sleep(Duration::from_secs(3600))
        };
        drop(tasks.submit::<(), Interrupted, _>("sleeps", work).unwrap());
    }
    assert!(!before.leaks(Duration::ZERO).threads.is_empty());
    let mut stopping = Stopping::alone();
    let report = stopping.step("tasks", Duration::from_millis(10), |step| manager.stop_in(step));
    assert_eq!((report.cancelled, report.unresponsive.len()), (10, 0));
    assert!(stopping.finish().is_clean());
    before.assert_none();
}

fn a_thread_and_a_file_that_are_left_are_named_until_they_are_gone() {
    let before = Before::of_process();
    before.assert_none();
    let file = File::open("/proc/self/status").unwrap();
    let (tx, rx) = bounded::<()>(0);
    // A thread has the name of the one that spawned it until it runs.
    let (runs, begun) = bounded::<()>(2);
    let ours = runs.clone();
    let thread = spawn("t-ours", Kick::dropped("tx"), move || {
        ours.send(()).unwrap();
        rx.recv().is_err()
    });
    let (release, held) = bounded::<()>(0);
    // One that this crate does not know of.
    #[allow(clippy::disallowed_methods)]
    let foreign = std::thread::Builder::new().name("t-foreign".into()).spawn(move || {
        runs.send(()).unwrap();
        held.recv().is_err()
    });
    let foreign = foreign.unwrap();
    begun.recv().unwrap();
    begun.recv().unwrap();

    let leaks = before.leaks(Duration::ZERO);
    let names: Vec<&str> = leaks.threads.iter().map(|thread| thread.split(' ').next().unwrap()).collect();
    assert_eq!(names, ["t-ours", "t-foreign"], "{leaks}");
    assert!(leaks.threads[0].ends_with("kick: tx"), "{leaks}");
    assert!(leaks.descriptors.len() == 1 && leaks.descriptors[0].ends_with("/status"), "{leaks}");

    drop(tx);
    assert!(thread.join_by(Instant::now() + Duration::from_secs(30)).unwrap());
    drop(release);
    assert!(foreign.join().unwrap());
    let leaks = before.leaks(Duration::ZERO);
    assert!(!leaks.threads.iter().any(|name| name.starts_with("t-ours ")) && leaks.descriptors.len() == 1, "{leaks}");
    drop(file);
    before.assert_none();
}
