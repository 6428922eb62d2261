//! A poll thread that has nothing to do does nothing, however many connections wait for something: for their role, for
//! being known, for the peer.

use crate::testkit::transport as kit;
use crate::testkit::wait::{LONG, until};
use std::fs;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use phalanx::base::shutdown::Shutdown;
use phalanx::base::timer::Timer;
use phalanx::link::Outgoing;
use phalanx::link::server::{Server, ServerConfig, ServerEvent, StrangerLimits};
use phalanx::transport::ws::WsListener;
use phalanx::transport::{Connection, IntakeLimits, Listener, SocketLimits};

/// Of a thread of this process: voluntary context switches, and nanoseconds on a processor.
fn state_of(name: &str) -> (u64, u64) {
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name) {
            let status = fs::read_to_string(path.join("status")).unwrap();
            let switches = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
            let times = fs::read_to_string(path.join("schedstat")).unwrap();
            return (switches.trim().parse().unwrap(), times.split(' ').next().unwrap().parse().unwrap());
        }
    }
    panic!("no thread {name}");
}

#[test]
fn a_poll_thread_with_nothing_to_do_does_nothing() {
    super::alone("polled_idle::a_poll_thread_with_nothing_to_do_does_nothing", idle);
}

fn idle() {
    const IDLE: usize = 200;
    let timer = Timer::start();
    let listener = WsListener::bind("127.0.0.1:0", None).unwrap();
    let (url, address) = (listener.url(), listener.local_addr());
    let mut config = ServerConfig::new("tst");
    config.threaded = 0;
    let limits = StrangerLimits { time: 2 * LONG, intake: IntakeLimits::DEFAULT, outbox_bytes: 64 << 10 };
    config.strangers = Some(limits);
    (config.places.strangers, config.places.address) = (1000, 1000);
    let (opened_tx, opened) = bounded(1000);
    let (texts_tx, texts) = bounded(1000);
    let (never, gate) = bounded::<()>(0);
    let sink = Arc::new(move |event| match event {
        ServerEvent::Opened { handle, .. } => opened_tx.send(handle).unwrap(),
        ServerEvent::Text { text, .. } => {
            texts_tx.send(text.to_string()).unwrap();
            if text.starts_with("wait") {
                // Until the end of the test.
                let _ = gate.recv();
            }
        }
        ServerEvent::Closed { .. } => {}
    });
    let server = Server::start(config, Box::new(listener), timer.handle(), Arc::new(|_| Ok(())), sink);
    let dial = || {
        let client =
            kit::dial_ws(&phalanx::transport::ws::WsDialer::default(), &url, &SocketLimits::default()).unwrap();
        (client, opened.recv_timeout(LONG).unwrap())
    };
    let idle: Vec<_> = (0..IDLE).map(|_| dial()).collect();
    idle.iter().for_each(|(_, handle)| handle.known());
    // One whose role waits, and that has more to say than may wait with it.
    let (Connection { mut writer, kick, reader: _reader, .. }, handle) = dial();
    handle.known();
    let flood = kit::background("t-flood", move || {
        let text = format!("wait {}", "x".repeat(32 << 10));
        while writer.write(text.clone().into()).and_then(|()| writer.flush()).is_ok() {}
    });
    assert!(texts.recv_timeout(LONG).unwrap().starts_with("wait"));
    // One that is not known, and says too much for that.
    let (mut stranger, _) = {
        let mut client = kit::raw_client(address);
        client.write_all(kit::REQUEST.as_bytes()).unwrap();
        kit::read_head(&mut client);
        (client, opened.recv_timeout(LONG).unwrap())
    };
    stranger.write_all(&[kit::frame(0x81, true, b"small"), kit::frame(0x81, true, &[b'x'; 60_000])].concat()).unwrap();
    assert_eq!(texts.recv_timeout(LONG).unwrap(), "small");
    // One that does not read.
    let (_deaf, handle) = dial();
    handle.known();
    (0..32).for_each(|_| handle.send(Outgoing::once("x".repeat(1 << 20))).unwrap());
    // One that has ended on its side, behind what waits.
    let (ended, handle) = dial();
    handle.known();
    drop(ended);
    until("it has ended", || !handle.is_connected());

    // The turns that all this has brought about are over when the thread has slept without a turn.
    let never_set = Shutdown::new();
    until("it is at rest", || {
        let before = state_of("tst-poll");
        never_set.wait(Duration::from_millis(100));
        state_of("tst-poll").0 - before.0 <= 2
    });
    let ((switches, ran), begin) = (state_of("tst-poll"), Instant::now());
    never_set.wait(Duration::from_secs(1));
    let ((later, has_run), took) = (state_of("tst-poll"), begin.elapsed());
    let (switches, ran) = (later - switches, Duration::from_nanos(has_run - ran));
    println!("{IDLE} idle connections: {switches} context switches, {ran:?} of work in {took:?}");
    assert!(switches <= 5, "{switches} context switches in {took:?}");
    assert!(ran < took / 20, "{ran:?} of work in {took:?}");
    drop(never);
    drop(server);
    kick.kick();
    kit::join(flood);
}
