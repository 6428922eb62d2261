//! A managed link over the in-memory transport: reconnect, authentication first, nothing lost or overtaken, and a stop
//! test for each place where a link can block.

use crate::testkit::transport as kit;
use crate::testkit::wait::{LONG, until};
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use phalanx::base::backoff::BackoffConfig;
use phalanx::base::limits::INBOUND_MESSAGES;
use phalanx::base::rng::Rng;
use phalanx::base::shutdown::Shutdown;
use phalanx::base::stop::{StopReport, Stopping};
use phalanx::base::thread::{Group, JoinError, Kick, Thread, spawn};
use phalanx::base::timer::Timer;
use phalanx::identity::KeyPair;
use phalanx::link::handover::{Handover, Work};
use phalanx::link::heartbeat::LivenessConfig;
use phalanx::link::server::{Server, ServerConfig, ServerEvent};
use phalanx::link::session::{self, Arrival, Beat, SessionConfig, SessionEnd, SessionHandle};
use phalanx::link::{
    About, Answered, Authenticate, Authenticated, Link, LinkConfig, LinkState, OutboxLimits, Outgoing, Rate, Refused,
    Text,
};
use phalanx::transport::memory::{self, DialFault, MemoryNet, Side, WIRE_BYTES};
use phalanx::transport::{Connection, Incoming, SocketLimits};
use phalanx::validator::MinerAddress;
use phalanx::validator::miner_client::{MinerClient, MinerEvent};
use tungstenite::Utf8Bytes;

const URL: &str = "ws://peer/x";

type LinkEvent = phalanx::link::LinkEvent<Utf8Bytes, ()>;

/// The peer's answers are `ack`.
fn classify(text: Utf8Bytes) -> Text<Utf8Bytes, ()> {
    if text.as_str() == "ack" { Text::Answer(About::Kept, ()) } else { Text::Message(text) }
}

struct Fixture {
    net: MemoryNet,
    timer: Option<Timer>,
    group: Option<Group>,
}

impl Fixture {
    fn new() -> Self {
        let group = Group::enter();
        Self { net: MemoryNet::new(), timer: Some(Timer::start()), group: Some(group) }
    }

    fn config(&self) -> LinkConfig {
        let quick = BackoffConfig {
            base: Duration::from_millis(1),
            cap: Duration::from_millis(2),
            stable_after: Duration::from_secs(60),
        };
        LinkConfig { backoff: quick, ..LinkConfig::new("t-link", URL) }
    }

    fn start(&self, config: LinkConfig, password: Option<&'static str>) -> (Link, Receiver<LinkEvent>) {
        let (tx, rx) = bounded(100_000);
        let authenticate = password.map(|password| Box::new(Password(password)) as Box<dyn Authenticate>);
        let timer = self.timer.as_ref().unwrap().handle();
        let (_, link) = Link::new(config, Arc::new(self.net.dialer()), timer);
        // The receiver may be gone in a test that has seen enough.
        (link.start(authenticate, classify, move |event| drop(tx.send(event))), rx)
    }

    /// A server that answers `password` with `welcome`, anything else but `no-ack…` with `ack`, and tells what it got.
    fn server(&self) -> (Server, Receiver<String>) {
        let (tx, rx) = bounded(100_000);
        let handles = Arc::new(std::sync::Mutex::new(std::collections::HashMap::new()));
        let sink = Arc::new(move |event| match event {
            ServerEvent::Opened { id, handle, .. } => {
                handles.lock().unwrap().insert(id, handle);
            }
            ServerEvent::Text { id, text } => {
                let answer = match text.as_str() {
                    "password" => Some("welcome"),
                    "wrong" => Some("go away"),
                    text if text.starts_with("no-ack") => None,
                    _ => Some("ack"),
                };
                drop(tx.send(text.to_string()));
                let handle = handles.lock().unwrap().get(&id).cloned().unwrap();
                if let Some(answer) = answer {
                    drop(handle.send(Outgoing::once(answer)));
                }
            }
            ServerEvent::Closed { id, .. } => {
                handles.lock().unwrap().remove(&id);
            }
        });
        let listener = Box::new(self.net.listener("peer"));
        let timer = self.timer.as_ref().unwrap().handle();
        (Server::start(ServerConfig::new("tst"), listener, timer, Arc::new(|_| Ok(())), sink), rx)
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let timer = self.timer.take().unwrap();
        let report = stop(LONG, |step| timer.stop_in(step));
        let group = self.group.take().unwrap();
        if !std::thread::panicking() {
            assert!(report.is_clean());
            let left: Vec<_> = group.live().into_iter().map(|t| t.name).collect();
            assert!(left.is_empty(), "threads left: {left:?}");
        }
    }
}

struct Password(&'static str);

impl Authenticate for Password {
    fn hello(&mut self) -> Vec<Utf8Bytes> {
        vec![self.0.into()]
    }

    fn answer(&mut self, text: &str) -> Result<Authenticated, Refused> {
        match text {
            "welcome" => Ok(Authenticated::Yes),
            "go away" => Err(Refused { reason: text.to_owned(), passing: true, broken: false }),
            _ => Ok(Authenticated::NotYet),
        }
    }
}

fn stop(budget: Duration, work: impl FnOnce(&mut phalanx::base::stop::Step)) -> StopReport {
    let mut stopping = Stopping::alone();
    stopping.step("test", budget, work);
    stopping.finish()
}

fn stop_link(link: Link, budget: Duration) -> (usize, Duration) {
    let start = Instant::now();
    let mut unsent = 0;
    let report = stop(budget, |step| unsent = link.stop_in(step));
    assert!(report.stragglers().is_empty(), "{report}");
    (unsent, start.elapsed())
}

fn stop_server(server: Server) {
    let report = stop(LONG, |step| server.stop_in(step, "test ends"));
    assert!(report.is_clean(), "{report}");
}

fn next(events: &Receiver<LinkEvent>) -> LinkEvent {
    events.recv_timeout(LONG).expect("an event")
}

fn ready(events: &Receiver<LinkEvent>) {
    loop {
        if let LinkEvent::Ready { .. } = next(events) {
            return;
        }
    }
}

/// Nobody listens at its first address: it goes on to the second, and when that is lost, to the first again.
#[test]
fn a_link_with_several_addresses_turns_to_the_next_and_loses_nothing() {
    let fixture = Fixture::new();
    let (server, got) = fixture.server();
    let config = LinkConfig { fallbacks: vec![URL.to_owned()], ..fixture.config() };
    let (link, events) = fixture.start(LinkConfig { url: "ws://nobody/x".to_owned(), ..config }, Some("password"));
    let handle = link.handle();
    handle.send(Outgoing::kept(1, "before")).unwrap();
    ready(&events);
    assert_eq!(handle.endpoint(), (2, URL));
    handle.kick();
    while !matches!(next(&events), LinkEvent::Failed { refused: false, .. }) {}
    handle.send(Outgoing::kept(1, "after")).unwrap();
    ready(&events);
    assert_eq!(handle.endpoint(), (2, URL));
    let mut seen: Vec<String> = Vec::new();
    while seen.last().is_none_or(|last| last != "after") {
        seen.push(got.recv_timeout(LONG).unwrap());
    }
    assert!(seen.contains(&"before".to_owned()), "{seen:?}");
    assert_eq!(stop_link(link, LONG).0, 0);
    stop_server(server);
}

/// An error that may be about specs or about the update behind them: no later answer may count for the update.
#[test]
fn behind_an_unclear_answer_nothing_is_answered() {
    let link = Handover::new(OutboxLimits::default());
    let (refused, loan) = link.offer([Outgoing::newest(1, "specs"), Outgoing::kept(1, "update")], |()| ());
    assert!(refused.is_empty() && loan.is_none(), "nobody is connected");
    let epoch = link.attach((), false);
    assert!(matches!(link.next_work(epoch), Work::Batch { texts, .. } if texts.len() == 2));
    let answers = [(About::KeptOrNewest, "error"), (About::Kept, "success")];
    assert_eq!(link.answered(answers), [Answered::Unclear("error")]);
    assert_eq!(link.answered(answers), []);
    assert_eq!(link.unsent(), 1);
}

#[test]
fn an_answer_right_before_the_close_counts() {
    let fixture = Fixture::new();
    let (server, got) = fixture.server();
    let (link, events) = fixture.start(fixture.config(), None);
    ready(&events);
    let wire = fixture.net.wires().pop().unwrap();
    // The answer and the Close arrive together.
    wire.withhold(Side::Listener);
    link.handle().send(Outgoing::kept(1, "last")).unwrap();
    assert_eq!(got.recv_timeout(LONG).unwrap(), "last");
    until("the answer is under way", || wire.messages(Side::Listener) == 1);
    wire.send_close(Side::Listener, Some(1001), "");
    wire.release(Side::Listener);
    match next(&events) {
        LinkEvent::Answered(answers) => assert!(matches!(answers[..], [Answered::Message(..)]), "{answers:?}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(stop_link(link, LONG).0, 0);
    stop_server(server);
}

#[test]
fn it_authenticates_first_then_beats_then_sends_what_was_queued() {
    let fixture = Fixture::new();
    let (server, got) = fixture.server();
    let mut config = fixture.config();
    config.beat = Some(Beat { every: Duration::from_secs(60), text: "beat".into() });
    let (link, events) = fixture.start(config, Some("password"));
    link.handle().send(Outgoing::once("one")).unwrap();
    link.handle().send(Outgoing::once("two")).unwrap();
    ready(&events);
    for expected in ["password", "beat", "one", "two"] {
        assert_eq!(got.recv_timeout(LONG).unwrap(), expected);
    }
    link.handle().kick();
    ready(&events);
    for expected in ["password", "beat"] {
        assert_eq!(got.recv_timeout(LONG).unwrap(), expected, "after the reconnect");
    }
    assert_eq!(stop_link(link, LONG).0, 0);
    stop_server(server);
}

#[test]
fn a_refusal_is_reported_and_tried_again() {
    let fixture = Fixture::new();
    let (server, _got) = fixture.server();
    let (link, events) = fixture.start(fixture.config(), Some("wrong"));
    for _ in 0..3 {
        match next(&events) {
            LinkEvent::Failed { why, refused: true, .. } => assert_eq!(why, "refused: go away"),
            other => panic!("{other:?}"),
        }
    }
    assert!(!matches!(link.handle().state(), LinkState::Ready { .. }));
    stop_link(link, LONG);
    stop_server(server);
}

#[test]
fn a_silent_server_ends_at_the_dial_deadline() {
    let fixture = Fixture::new();
    let (server, got) = fixture.server();
    let mut config = fixture.config();
    config.dial_time = Duration::from_millis(50);
    let (link, events) = fixture.start(config, Some("no-ack"));
    assert_eq!(got.recv_timeout(LONG).unwrap(), "no-ack");
    match next(&events) {
        LinkEvent::Failed { why, refused: false, .. } => {
            assert!(why.starts_with("no answer to the authentication"), "{why}")
        }
        other => panic!("{other:?}"),
    }
    stop_link(link, LONG);
    stop_server(server);
}

/// Sends acknowledged messages through random cuts, refused dials and withheld answers; asserts order and completeness.
#[test]
fn nothing_is_lost_or_overtaken_through_disconnections() {
    const MESSAGES: usize = 400;
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let fixture = Fixture::new();
    let (server, got) = fixture.server();
    let (tx, answered) = bounded(MESSAGES);
    let timer = fixture.timer.as_ref().unwrap().handle();
    let authenticate = Some(Box::new(Password("password")) as Box<dyn Authenticate>);
    let (handle, link) = Link::new(fixture.config(), Arc::new(fixture.net.dialer()), timer);
    let link = link.start(authenticate, classify, move |event| {
        if let LinkEvent::Answered(answers) = event {
            answers.into_iter().for_each(|answer| tx.send(answer).unwrap());
        }
    });
    for n in 0..MESSAGES {
        handle.send(Outgoing::kept(n as u64, n.to_string())).unwrap();
        if rng.one_in(25) {
            if rng.one_in(2) {
                fixture.net.fail_next(1, DialFault::Refused);
            }
            let cut = (rng.next_u64() % 20) as usize;
            match fixture.net.wires().last() {
                Some(wire) if rng.one_in(2) => wire.disconnect_after(Side::Dialer, cut),
                Some(wire) => wire.disconnect_after(Side::Listener, cut),
                None => {}
            }
        }
    }
    let mut first = Vec::new();
    while first.len() < MESSAGES {
        let text = got.recv_timeout(LONG).unwrap_or_else(|_| panic!("seed {seed}: only {} came", first.len()));
        if let Ok(n) = text.parse::<usize>()
            && !first.contains(&n)
        {
            first.push(n);
        }
    }
    assert_eq!(first, (0..MESSAGES).collect::<Vec<_>>(), "seed {seed}");
    assert_eq!(stop_link(link, LONG).0, 0, "seed {seed}");
    let answered: Vec<_> = answered.try_iter().collect();
    let all = (0..MESSAGES).map(|n| Answered::Message(Outgoing::kept(n as u64, n.to_string()), ()));
    assert_eq!(answered, all.collect::<Vec<_>>(), "seed {seed}");
    stop_server(server);
}

#[test]
fn what_is_repeated_counts_as_delivered_when_the_peer_has_answered_our_close() {
    let fixture = Fixture::new();
    let (server, got) = fixture.server();
    let (link, events) = fixture.start(fixture.config(), None);
    ready(&events);
    let handle = link.handle();
    handle.send(Outgoing::repeated("no-ack 1")).unwrap();
    handle.send(Outgoing::repeated("no-ack 2")).unwrap();
    assert_eq!([(); 2].map(|()| got.recv_timeout(LONG).unwrap()), ["no-ack 1", "no-ack 2"]);
    assert_eq!(handle.unsent(), 2, "the peer has them, but nobody here knows");
    // Our Close is lost, and the next attempt fails: both come again.
    fixture.net.fail_next(1, DialFault::Refused);
    fixture.net.wires().last().unwrap().disconnect_after(Side::Dialer, 0);
    assert_eq!(stop_link(link, LONG).0, 0);
    assert_eq!([(); 2].map(|()| got.recv_timeout(LONG).unwrap()), ["no-ack 1", "no-ack 2"]);
    stop_server(server);

    // Without an answer to our Close they are unsent.
    let fixture = Fixture::new();
    let (server, _got) = fixture.server();
    let (link, events) = fixture.start(fixture.config(), None);
    ready(&events);
    link.handle().send(Outgoing::repeated("no-ack")).unwrap();
    fixture.net.fail_next(100_000, DialFault::Refused);
    fixture.net.wires().last().unwrap().disconnect();
    assert_eq!(stop_link(link, Duration::from_millis(50)).0, 1);
    stop_server(server);
}

#[test]
fn a_silent_peer_is_pinged_and_given_up() {
    let fixture = Fixture::new();
    let (server, _got) = fixture.server();
    let mut config = fixture.config();
    let dead_after = Duration::from_millis(100);
    config.liveness = LivenessConfig { ping_after: dead_after / 5, dead_after, stuck_after: LONG };
    fixture.net.plan_next(|wire| wire.withhold(Side::Listener));
    let (link, events) = fixture.start(config, None);
    ready(&events);
    match next(&events) {
        LinkEvent::Lost { why, .. } => assert_eq!(why, "the peer was silent for too long"),
        other => panic!("{other:?}"),
    }
    // On a later connection the pongs arrive, so it lives past several times its limit; a busy machine may lose some.
    let begun = Instant::now();
    loop {
        ready(&events);
        match events.recv_timeout(5 * dead_after) {
            Err(RecvTimeoutError::Timeout) => break,
            lost => assert!(lost.is_ok() && begun.elapsed() < LONG, "no connection outlives its limit: {lost:?}"),
        }
    }
    stop_link(link, LONG);
    stop_server(server);
}

#[test]
fn a_peer_that_never_reads_is_given_up_although_it_talks() {
    let fixture = Fixture::new();
    let (server, _got) = fixture.server();
    let mut config = fixture.config();
    config.liveness = LivenessConfig {
        ping_after: Duration::from_millis(20),
        dead_after: LONG,
        stuck_after: Duration::from_millis(60),
    };
    fixture.net.plan_next(|wire| wire.stall(Side::Dialer));
    let (link, events) = fixture.start(config, None);
    ready(&events);
    link.handle().send(Outgoing::once("x")).unwrap();
    match next(&events) {
        LinkEvent::Lost { why, .. } => assert_eq!(why, "the peer did not read for too long"),
        other => panic!("{other:?}"),
    }
    stop_link(link, LONG);
    stop_server(server);
}

#[test]
fn stop_while_the_peer_never_reads_ends_within_its_budget_and_counts() {
    let fixture = Fixture::new();
    let (server, _got) = fixture.server();
    fixture.net.plan_next(|wire| wire.stall(Side::Dialer));
    let (link, events) = fixture.start(fixture.config(), None);
    ready(&events);
    for _ in 0..3 {
        link.handle().send(Outgoing::kept(0, "x")).unwrap();
    }
    let (unsent, took) = stop_link(link, Duration::from_millis(200));
    assert_eq!(unsent, 3);
    assert!(took < LONG / 2, "{took:?}");
    stop_server(server);
}

#[test]
fn stop_during_an_outage_still_delivers_when_the_peer_comes_back() {
    let fixture = Fixture::new();
    fixture.net.fail_next(20, DialFault::Refused);
    let (link, events) = fixture.start(fixture.config(), Some("password"));
    assert!(matches!(next(&events), LinkEvent::Failed { .. }));
    for n in 0..3 {
        link.handle().send(Outgoing::once(n.to_string())).unwrap();
    }
    let (server, got) = fixture.server();
    let (unsent, _) = stop_link(link, LONG);
    assert_eq!(unsent, 0);
    let texts: Vec<String> = got.try_iter().collect();
    assert_eq!(texts, ["password", "0", "1", "2"]);
    stop_server(server);
}

#[test]
fn connections_over_the_limit_are_refused_without_end() {
    let fixture = Fixture::new();
    let listener = Box::new(fixture.net.listener("peer"));
    let mut config = ServerConfig::new("tst");
    config.places.total = 2;
    let timer = fixture.timer.as_ref().unwrap().handle();
    let server = Server::start(config, listener, timer, Arc::new(|_| Ok(())), Arc::new(|_| {}));
    let (mut links, mut refused) = (Vec::new(), 0);
    for n in 0..5 {
        let (link, events) = fixture.start(fixture.config(), None);
        match next(&events) {
            LinkEvent::Ready { .. } => assert!(n < 2),
            LinkEvent::Failed { why, .. } => {
                assert!(why.contains("503") && why.contains("too many connections"), "{why}");
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
        links.push(link);
    }
    assert_eq!(refused, 3);
    for link in links {
        stop_link(link, LONG);
    }
    stop_server(server);
}

#[test]
fn handshakes_of_one_address_over_its_rate_are_refused() {
    let fixture = Fixture::new();
    let listener = Box::new(fixture.net.listener("peer"));
    let mut config = ServerConfig::new("tst");
    config.places.connects = Rate::new(2, Duration::from_secs(3600));
    let timer = fixture.timer.as_ref().unwrap().handle();
    let server = Server::start(config, listener, timer, Arc::new(|_| Ok(())), Arc::new(|_| {}));
    for n in 0..3 {
        let (link, events) = fixture.start(fixture.config(), None);
        match next(&events) {
            LinkEvent::Ready { .. } => assert!(n < 2),
            LinkEvent::Failed { why, .. } => {
                assert!(
                    n == 2 && why.contains("429") && why.contains("more than 2 connections of one address"),
                    "{why}"
                );
            }
            other => panic!("{other:?}"),
        }
        // An end gives nothing back.
        stop_link(link, LONG);
    }
    stop_server(server);
}

#[test]
fn stop_while_dialling_in_backoff_authenticating_or_idle_is_immediate() {
    for place in ["dialling", "backoff", "authenticating", "idle"] {
        let fixture = Fixture::new();
        let mut config = fixture.config();
        let mut server = None;
        let mut password = None;
        match place {
            "dialling" => fixture.net.fail_next(1000, DialFault::Hang),
            "backoff" => config.backoff.base = Duration::from_secs(3600),
            "authenticating" => {
                server = Some(fixture.server().0);
                password = Some("no-ack");
            }
            _ => server = Some(fixture.server().0),
        }
        config.backoff.cap = config.backoff.base;
        let (link, events) = fixture.start(config, password);
        match place {
            "dialling" | "authenticating" => until("a dial", || fixture.net.dials() > 0),
            "backoff" => assert!(matches!(next(&events), LinkEvent::Failed { .. })),
            _ => ready(&events),
        }
        let handle = link.handle();
        let (_, took) = stop_link(link, LONG);
        assert!(took < LONG / 2, "{place}: {took:?}");
        assert_eq!(handle.state(), LinkState::Stopped, "{place}");
        assert!(handle.send(Outgoing::once("late")).is_err(), "{place}: a stopped link takes no message");
        if let Some(server) = server {
            stop_server(server);
        }
    }
}

/// The fixture finds a thread that is left.
#[test]
fn dropping_a_link_stops_it() {
    for place in ["dialling", "backoff", "authenticating", "idle", "writing"] {
        let fixture = Fixture::new();
        let mut config = fixture.config();
        let (mut server, mut password) = (None, None);
        match place {
            "dialling" => fixture.net.fail_next(1000, DialFault::Hang),
            "backoff" => config.backoff.base = Duration::from_secs(3600),
            "authenticating" => password = Some("no-ack"),
            "writing" => fixture.net.plan_next(|wire| wire.stall(Side::Dialer)),
            _ => {}
        }
        config.backoff.cap = config.backoff.base;
        if !matches!(place, "dialling" | "backoff") {
            server = Some(fixture.server().0);
        }
        let (link, events) = fixture.start(config, password);
        match place {
            "dialling" | "authenticating" => until("a dial", || fixture.net.dials() > 0),
            "backoff" => assert!(matches!(next(&events), LinkEvent::Failed { .. })),
            _ => ready(&events),
        }
        let handle = link.handle();
        handle.send(Outgoing::kept(0, "x")).unwrap();
        drop(link);
        assert_eq!(handle.state(), LinkState::Stopped, "{place}");
        // An idle peer may have answered it before.
        assert!(handle.unsent() == 1 || place == "idle", "{place}: {}", handle.unsent());
        server.into_iter().for_each(stop_server);
    }
}

#[test]
fn dropping_a_server_stops_it() {
    let fixture = Fixture::new();
    let (server, _got) = fixture.server();
    let (link, events) = fixture.start(fixture.config(), None);
    ready(&events);
    drop(server);
    assert!(matches!(next(&events), LinkEvent::Lost { .. }));
    drop(link);
}

/// A panic of the receiver drops the session while its writer waits for something to send.
#[test]
fn dropping_a_session_stops_it() {
    let fixture = Fixture::new();
    let (mut peer, connection, _wire) = memory::pair();
    let handle = SessionHandle::new(OutboxLimits::default(), fixture.timer.as_ref().unwrap().handle());
    let session = session(connection, &handle, LivenessConfig::default(), |text| panic!("{text}"));
    peer.writer.write("by plan".into()).unwrap();
    peer.writer.flush().unwrap();
    let ended = session.join_by(Instant::now() + LONG);
    assert!(matches!(&ended, Err(JoinError::Panicked(why)) if why == "by plan"), "{ended:?}");
    assert!(!handle.is_connected());
}

/// The miner says more than there is room for, so the link's thread waits for the client to take it.
#[test]
fn dropping_a_miner_client_stops_it() {
    let fixture = Fixture::new();
    let key = KeyPair::from_uri("//Miner").unwrap();
    let sink = Arc::new(|event| {
        if let ServerEvent::Opened { handle, .. } = event {
            let manifest = r#"{"message_type":"V0ExecutorManifestRequest","manifest":{}}"#;
            (0..2 * INBOUND_MESSAGES).for_each(|_| handle.send(Outgoing::once(manifest)).unwrap());
        }
    });
    let timer = fixture.timer.as_ref().unwrap().handle();
    let listener = Box::new(fixture.net.listener("127.0.0.1:9101"));
    let server = Server::start(ServerConfig::new("tst"), listener, timer.clone(), Arc::new(|_| Ok(())), sink);
    let miner =
        MinerAddress { hotkey: key.public(), address: "127.0.0.1".to_owned(), port: 9101, trusted: false, tls: false };
    let client = MinerClient::start(&miner, &key, Arc::new(fixture.net.dialer()), timer, 1);
    let first = client.next(Instant::now() + LONG, &Shutdown::new());
    assert!(matches!(first, Ok(MinerEvent::Ready)), "{first:?}");
    drop(client);
    stop_server(server);
}

/// The two threads of a link, the server's, cuts from outside, and a stop at a random moment: always ends, nothing
/// left.
#[test]
fn a_stop_at_a_random_moment_always_ends() {
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    for round in 0..200 {
        let fixture = Fixture::new();
        let (server, _got) = fixture.server();
        if rng.one_in(4) {
            fixture.net.fail_next((rng.next_u64() % 3) as usize, DialFault::Refused);
        }
        let password = rng.one_in(2).then_some("password");
        let (link, _events) = fixture.start(fixture.config(), password);
        let cutter: Thread<()> = {
            let (net, end) = (fixture.net.clone(), Shutdown::new());
            let kicked = end.clone();
            spawn("t-cutter", Kick::new("its end", move || kicked.cancel()), move || {
                while !end.wait(Duration::from_micros(50)) {
                    if let Some(wire) = net.wires().last() {
                        wire.disconnect();
                    }
                }
            })
        };
        for n in 0..rng.next_u64() % 2000 {
            if n % 10 == 0 {
                // A full outbox is as good a moment to stop as any.
                let _ = link.handle().send(Outgoing::kept(0, "x"));
            }
            std::hint::spin_loop();
        }
        let (_, took) = stop_link(link, Duration::from_millis(rng.next_u64() % 60));
        assert!(took < LONG / 2, "seed {seed}, round {round}: {took:?}");
        drop(cutter);
        stop_server(server);
    }
}

/// A thread that runs one session over `connection` and ends with it.
fn session(
    connection: Connection,
    handle: &SessionHandle,
    liveness: LivenessConfig,
    mut on_text: impl FnMut(Utf8Bytes) + Send + 'static,
) -> Thread<SessionEnd> {
    let config = SessionConfig { writer_name: "t-wr".to_owned(), liveness, beat: None };
    let handle = handle.clone();
    kit::background("t-session", move || {
        session::run(connection, &handle, &config, |arrival| {
            if let Arrival::Text(text) = arrival {
                on_text(text);
            }
        })
    })
}

/// Gives the slow peer of a test its pace; says whether the session lives on.
fn lives_on(session: &Thread<SessionEnd>, pace: Duration) -> bool {
    session.done_receiver().recv_timeout(pace) == Err(RecvTimeoutError::Timeout)
}

/// Runs a test whose peer is slower than a limit allows, but not by much: a busy machine may make it slower still, so
/// it is given up only when times that no machine adds are too short as well. `test` says whether the session lived.
fn at_some_scale(test: impl Fn(u32) -> bool) {
    assert!([1, 4, 16].into_iter().any(test), "the session was cut");
}

#[test]
fn a_message_that_trickles_in_counts_as_life_until_it_stops() {
    at_some_scale(trickles_in);
}

fn trickles_in(scale: u32) -> bool {
    let fixture = Fixture::new();
    let dead_after = scale * Duration::from_millis(400);
    let liveness = LivenessConfig { ping_after: dead_after / 8, dead_after, stuck_after: LONG };
    let (mut client, connection) = kit::raw_client_connected(SocketLimits::default());
    let handle = SessionHandle::new(OutboxLimits::default(), fixture.timer.as_ref().unwrap().handle());
    let (tx, got) = bounded(1);
    let session = session(connection, &handle, liveness, move |text| drop(tx.send(text)));
    let start = Instant::now();
    // One frame, byte by byte; the pings are never answered.
    for byte in kit::frame(0x81, true, &[b'x'; 60]) {
        if client.write_all(&[byte]).is_err() || !lives_on(&session, dead_after / 20) {
            return false;
        }
    }
    assert!(start.elapsed() > 3 * dead_after);
    assert_eq!(got.recv_timeout(LONG).unwrap().as_str(), "x".repeat(60));
    // Half a message and then nothing.
    client.write_all(&kit::frame(0x81, true, b"half")[..8]).unwrap();
    let end = kit::join(session);
    assert!(matches!(end, SessionEnd::Silent), "{end}");
    true
}

#[test]
fn a_batch_that_trickles_out_is_not_stuck_until_it_stops() {
    at_some_scale(trickles_out);
}

fn trickles_out(scale: u32) -> bool {
    const TEXTS: usize = 60;
    let fixture = Fixture::new();
    let stuck_after = scale * Duration::from_millis(400);
    let liveness = LivenessConfig { ping_after: stuck_after / 8, dead_after: LONG, stuck_after };
    let (mut peer, connection, _wire) = memory::pair();
    let handle = SessionHandle::new(OutboxLimits::default(), fixture.timer.as_ref().unwrap().handle());
    let large = Utf8Bytes::from("x".repeat(WIRE_BYTES));
    // All are one batch, and only one at a time fits on the wire.
    for _ in 0..TEXTS {
        handle.send(Outgoing::once(large.clone())).unwrap();
    }
    let session = session(connection, &handle, liveness, |_| {});
    let start = Instant::now();
    for _ in 0..TEXTS {
        loop {
            match peer.reader.read() {
                Ok(Incoming::Text(_)) => break,
                Ok(Incoming::Closed(_)) | Err(_) => return false,
                Ok(_) => {}
            }
        }
        if !lives_on(&session, stuck_after / 16) {
            return false;
        }
    }
    assert!(start.elapsed() > 3 * stuck_after);
    // Now the peer reads no more.
    for _ in 0..3 {
        handle.send(Outgoing::once(large.clone())).unwrap();
    }
    let end = kit::join(session);
    assert!(matches!(end, SessionEnd::Stuck), "{end}");
    true
}

#[test]
fn a_peer_is_not_silent_while_its_text_is_being_handled() {
    let fixture = Fixture::new();
    let liveness = LivenessConfig {
        ping_after: Duration::from_millis(20),
        dead_after: Duration::from_millis(100),
        stuck_after: LONG,
    };
    let (mut peer, connection, _wire) = memory::pair();
    let handle = SessionHandle::new(OutboxLimits::default(), fixture.timer.as_ref().unwrap().handle());
    let (go, gate) = bounded(0);
    let session = session(connection, &handle, liveness, move |_| gate.recv().unwrap());
    for _ in 0..2 {
        peer.writer.write("x".into()).unwrap();
    }
    peer.writer.flush().unwrap();
    for _ in 0..2 {
        assert!(lives_on(&session, 4 * liveness.dead_after), "the session was cut");
        go.send(()).unwrap();
    }
    let end = kit::join(session);
    assert!(matches!(end, SessionEnd::Silent), "{end}");
}
