//! Hours and days on a manual clock that goes from one planned moment to the next as soon as nothing runs. In a process
//! of its own, because all its threads are looked at.

#![cfg(target_os = "linux")]

use crate::alone;
use crate::testkit::threads::NoThreads;
use crate::testkit::wait::far;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use phalanx::base::clock::Clock;
use phalanx::base::shutdown::{Level, Shutdown};
use phalanx::base::simulate::{Standstill, pass_until};
use phalanx::base::stop::Stopping;
use phalanx::base::thread::{Kick, Thread, spawn};
use phalanx::base::timer::Timer;
use phalanx::link::manager::{Link, LinkConfig, LinkEvent, Text};
use phalanx::link::session::Beat;
use phalanx::tasks::{TaskConfig, TaskManager};
use phalanx::transport::memory::{DialFault, MemoryListener, MemoryNet, Side};
use phalanx::transport::{
    CLOSE_DRAIN_TIME, DialRequest, Dialer, Incoming, Listener, SocketLimits, TransportError, Utf8Bytes,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A peer that takes one connection after the other, answers pings and counts what it is told.
fn peer(listener: MemoryListener, beats: Arc<AtomicUsize>) -> Thread<()> {
    let kick = listener.kick();
    spawn("t-peer", Kick::new("listener", move || kick.kick()), move || {
        while let Ok(pending) = listener.accept() {
            let (limits, stop) = (SocketLimits::default(), Shutdown::new());
            let shaken = pending.handshake(&limits, far(), &stop, Level::Cancel, &mut |_| Ok(()));
            let (mut connection, _) = shaken.unwrap();
            while let Ok(incoming) = connection.reader.read() {
                match incoming {
                    Incoming::Text(_) => {
                        beats.fetch_add(1, SeqCst);
                    }
                    // A ping's answer; a connection that is cut meanwhile shows in the next read.
                    Incoming::Control => drop(connection.writer.flush()),
                    Incoming::Closed(_) => break,
                    _ => {}
                }
            }
        }
    })
}

/// What the link told, with when.
#[derive(Debug, Clone, PartialEq)]
enum Told {
    Ready,
    Lost(String),
    Failed(String, Duration),
}

#[test]
fn a_link_lives_for_hours_in_a_moment() {
    alone("virtual_time::a_link_lives_for_hours_in_a_moment", hours_of_a_link);
}

fn hours_of_a_link() {
    let _threads = NoThreads::expected();
    let began = Instant::now();
    let clock = Clock::manual();
    let timer = Timer::start_with(clock.clone());
    let net = MemoryNet::with_clock(clock.clone());
    let beats = Arc::new(AtomicUsize::new(0));
    let peer = peer(net.listener("peer"), beats.clone());
    let told: Arc<Mutex<Vec<(Instant, Told)>>> = Arc::default();

    let config = LinkConfig {
        beat: Some(Beat { every: MINUTE, text: Utf8Bytes::from_static("beat") }),
        ..LinkConfig::new("t-link", "ws://peer")
    };
    let (handle, idle) = Link::new(config, Arc::new(net.dialer()), timer.handle());
    let (telling, now) = (told.clone(), clock.clone());
    let link = idle.start(None, Text::<Utf8Bytes, Infallible>::Message, move |event| {
        let event = match event {
            LinkEvent::Ready { .. } => Told::Ready,
            LinkEvent::Lost { why } => Told::Lost(why),
            LinkEvent::Failed { why, next_in, .. } => Told::Failed(why, next_in),
            LinkEvent::Message(_) | LinkEvent::Answered(_) => return,
        };
        telling.lock().unwrap().push((now.now(), event));
    });
    let last = || told.lock().unwrap().last().cloned();
    let pass = |limit, done: &mut dyn FnMut() -> bool| pass_until(&clock, limit, done).unwrap();

    // Five hours: nothing but a heartbeat each minute, and pings that are answered.
    let start = clock.now();
    pass(6 * HOUR, &mut || clock.now() >= start + 5 * HOUR);
    assert_eq!(last().unwrap().1, Told::Ready);
    assert_eq!(beats.load(SeqCst), 5 * 60 + 1, "the first one at once, then one each minute");

    // The peer falls silent, and is given up by the clock: 90 s, noticed at the latest two pings later.
    let silent = clock.now();
    let wire = net.wires().pop().unwrap();
    wire.withhold(Side::Listener);
    net.fail_next(2, DialFault::Hang);
    net.fail_next(1000, DialFault::Refused);
    pass(HOUR, &mut || matches!(last(), Some((_, Told::Lost(_)))) || net.dials() > 1);
    let (at, lost) = told.lock().unwrap()[1].clone();
    assert_eq!(lost, Told::Lost("the peer was silent for too long".to_owned()));
    assert!((60 * SECOND..=150 * SECOND).contains(&(at - silent)), "{:?}", at - silent);

    // Two dials hang for their 15 s, then all are refused; the pauses grow up to 30 s, for as long as it takes.
    let before = clock.now();
    pass(2 * DAY, &mut || net.dials() >= 800);
    let tries: Vec<(Instant, Told)> = told.lock().unwrap()[2..].to_vec();
    let pauses: Vec<Duration> = tries
        .iter()
        .map(|(_, told)| if let Told::Failed(_, pause) = told { *pause } else { panic!("{told:?}") })
        .collect();
    let Told::Failed(hung, _) = &tries[0].1 else { unreachable!() };
    assert!(hung.contains("15.0s"), "{hung}");
    assert!(pauses.iter().all(|pause| *pause <= 30 * SECOND) && pauses[6..].iter().any(|pause| *pause > 25 * SECOND));
    for (pair, pause) in tries.windows(2).zip(&pauses).skip(1) {
        assert_eq!(pair[1].0 - pair[0].0, *pause, "each try comes when its pause is over");
    }
    let hours = clock.now() - before;
    assert!(hours > 2 * HOUR && hours < 5 * HOUR, "{hours:?}: 800 pauses of 15 s on average");

    // The peer is back.
    wire.release(Side::Listener);
    let more = pass(2 * DAY, &mut || last().unwrap().1 == Told::Ready);
    assert_eq!(net.dials(), 1003 + 1);
    let passed = clock.now() - start;
    assert!(passed > 8 * HOUR, "{passed:?}, {more:?} of it until it was back");

    let mut stopping = Stopping::alone();
    assert_eq!(stopping.step("link", 10 * SECOND, |step| link.stop_in(step)), 0);
    stopping.step("timer", 10 * SECOND, |step| timer.stop_in(step));
    peer.kick();
    stopping.step("peer", 10 * SECOND, |step| step.join(peer));
    assert!(stopping.finish().is_clean());
    assert_eq!(handle.unsent(), 0);
    let took = began.elapsed();
    println!("{:.1} h of a link, {} dials, in {took:.2?}", passed.as_secs_f64() / 3600.0, net.dials());
    assert!(took < MINUTE, "{took:?}");
}

#[test]
fn the_end_of_a_connection_is_waited_for_by_the_clock() {
    alone("virtual_time::the_end_of_a_connection_is_waited_for_by_the_clock", end_of_a_connection);
}

fn end_of_a_connection() {
    let _threads = NoThreads::expected();
    let clock = Clock::manual();
    let net = MemoryNet::with_clock(clock.clone());
    let peer = peer(net.listener("peer"), Arc::default());
    let request =
        DialRequest { url: "ws://peer", headers: &[], limits: SocketLimits::default(), deadline: clock.now() + MINUTE };
    let mut connection = net.dialer().dial(&request, &Shutdown::new(), Level::Cancel).unwrap();
    // A Close that its peer knows nothing of, so that the end of the stream does not follow.
    net.wires()[0].send_close(Side::Listener, Some(1000), "");
    assert!(matches!(connection.reader.read(), Ok(Incoming::Closed(_))));
    let kick = connection.kick.clone();
    let reader = spawn("t-reader", Kick::new("connection", move || kick.kick()), move || {
        let end = connection.reader.read();
        assert!(matches!(end, Err(TransportError::Closed)), "{end:?}");
    });
    let passed = pass_until(&clock, HOUR, || reader.is_finished()).unwrap();
    assert_eq!(passed, CLOSE_DRAIN_TIME);
    drop(connection.writer);
    peer.kick();
    let mut stopping = Stopping::alone();
    stopping.step("peer", 10 * SECOND, |step| step.join_all([reader, peer]));
    assert!(stopping.finish().is_clean());
}

#[test]
fn tasks_keep_a_schedule_of_days_in_a_moment() {
    alone("virtual_time::tasks_keep_a_schedule_of_days_in_a_moment", days_of_tasks);
}

fn days_of_tasks() {
    let _threads = NoThreads::expected();
    let began = Instant::now();
    let clock = Clock::manual();
    let start = clock.now();
    let config = TaskConfig { clock: clock.clone(), ..TaskConfig::new("t-task").workers(2) };
    let manager = TaskManager::start(config).unwrap();
    let runs: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let (running, now) = (runs.clone(), clock.clone());
    let work = move |_: &phalanx::tasks::TaskContext<'_>| {
        running.lock().unwrap().push(now.now() - start);
        Ok::<_, String>(())
    };
    let periodic = manager.handle().every(6 * HOUR, || "report".into(), work).unwrap();
    let passed = pass_until(&clock, 40 * DAY, || runs.lock().unwrap().len() >= 120).unwrap();
    assert_eq!(passed, 30 * DAY);
    let expected: Vec<Duration> = (1..=120).map(|n| n * 6 * HOUR).collect();
    assert_eq!(*runs.lock().unwrap(), expected, "each at its moment, to the nanosecond");
    drop(periodic);

    // A task that sleeps wakes by the same clock.
    let slept = manager.handle().submit("sleeper", move |cx| cx.sleep(2 * DAY)).unwrap();
    let passed = pass_until(&clock, 40 * DAY, || slept.has_ended()).unwrap();
    assert_eq!(passed, 2 * DAY);

    // What nobody waits for does not come.
    let nothing = pass_until(&clock, 40 * DAY, || runs.lock().unwrap().len() > 120);
    assert_eq!(nothing, Err(Standstill::NothingPlanned));
    let mut stopping = Stopping::alone();
    stopping.step("tasks", 10 * SECOND, |step| manager.stop_in(step));
    assert!(stopping.finish().is_clean());
    println!("30 days of tasks in {:.2?}", began.elapsed());
}
