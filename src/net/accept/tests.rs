use crossbeam_channel::{Receiver, Sender, bounded};

use super::*;
use crate::base::shutdown::Level;
use crate::base::thread::Group;
use crate::base::wait::until;
use crate::net::dial::dial;
use crate::net::rate::Rate;

const LONG: Duration = Duration::from_secs(60);

/// Fails as long as it is told to.
struct Failing {
    listener: KickableListener,
    fails: Arc<AtomicBool>,
}

impl Service for Failing {
    type Incoming = TcpStream;
    type Handle = ();

    fn accept(&self) -> io::Result<Option<TcpStream>> {
        match self.fails.load(Ordering::SeqCst) {
            true => Err(io::Error::other("no descriptors")),
            false => Ok(self.listener.accept()?.map(|(stream, _)| stream)),
        }
    }

    fn errors(&self) -> ErrorHandler {
        ErrorHandler::default()
    }

    fn origin(&self, _: &TcpStream) -> Origin {
        unreachable!("nobody connects")
    }

    fn admit(&self, _: TcpStream, _: Place) -> Admitted<()> {
        unreachable!("nobody connects")
    }

    fn refuse(&self, _: TcpStream) {}
}

#[test]
fn trouble_lasts_while_accept_fails_and_when_its_thread_has_ended() {
    let listener = KickableListener::new(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    let (kick, fails) = (listener.kick(), Arc::new(AtomicBool::new(true)));
    let service = Failing { listener, fails: fails.clone() };
    let acceptor = Acceptor::start("t-accept".to_owned(), limits(1, 0), kick, service);
    let state = acceptor.state();
    let trouble = || state.trouble(Instant::now());
    until("a try has failed", || trouble().as_deref() == Some("cannot accept connections: no descriptors"));
    // From now on it waits for a connection, and none comes.
    fails.store(false, Ordering::SeqCst);
    until("it waits again", || trouble().is_none());
    drop(acceptor);
    assert_eq!(trouble().as_deref(), Some("nobody accepts connections any more"));
}

fn limits(total: usize, turned_away: usize) -> PlaceLimits {
    let connects = Rate::new(1000, Duration::from_secs(1));
    PlaceLimits { total, strangers: total, address: total, connects, turned_away }
}

/// Each connection says its number and whether it has no place, and then waits for its stop.
struct Waiting {
    listener: KickableListener,
    seen: Sender<(u32, bool)>,
}

impl Service for Waiting {
    type Incoming = TcpStream;
    type Handle = u32;

    fn accept(&self) -> io::Result<Option<TcpStream>> {
        Ok(self.listener.accept()?.map(|(stream, _)| stream))
    }

    fn errors(&self) -> ErrorHandler {
        ErrorHandler::default()
    }

    fn origin(&self, stream: &TcpStream) -> Origin {
        stream.peer_addr().unwrap().ip().into()
    }

    fn admit(&self, stream: TcpStream, place: Place) -> Admitted<u32> {
        let Place { number, refused, stop, .. } = place;
        let seen = self.seen.clone();
        let serve = move || {
            seen.send((number, refused.is_some())).unwrap();
            stop.wait_for(Level::Cancel, Duration::MAX);
            drop(stream);
        };
        Admitted {
            handle: number,
            thread_name: format!("t-acc-{number}"),
            kick: Box::new(|| {}),
            serve: Box::new(serve),
        }
    }

    fn refuse(&self, _: TcpStream) {
        self.seen.send((0, true)).unwrap();
    }
}

fn start() -> (Acceptor<u32>, Receiver<(u32, bool)>, SocketAddr) {
    let listener = KickableListener::new(TcpListener::bind("0.0.0.0:0").unwrap()).unwrap();
    let (kick, address) = (listener.kick(), listener.reachable_addr());
    let (seen, sees) = bounded(8);
    (Acceptor::start("t-accept".to_owned(), limits(1, 1), kick, Waiting { listener, seen }), sees, address)
}

fn connect(address: SocketAddr) -> TcpStream {
    let host = address.ip().to_string();
    dial(&host, address.port(), Instant::now() + LONG, &Shutdown::new(), Level::Cancel).unwrap()
}

#[test]
fn connections_are_served_then_turned_away_then_refused_and_the_stop_joins_all() {
    let group = Group::enter();
    let (mut acceptor, sees, address) = start();
    let mut clients = Vec::new();
    for expected in [(1, false), (2, true), (0, true)] {
        clients.push(connect(address));
        assert_eq!(sees.recv_timeout(LONG).unwrap(), expected);
    }
    let mut handles = Vec::new();
    acceptor.opened().each(|handle| handles.push(*handle));
    handles.sort_unstable();
    assert_eq!(handles, [1, 2]);
    let mut stopping = crate::base::stop::Stopping::alone();
    stopping.step("acceptor", LONG, |step| {
        acceptor.stop_accepting(step);
        assert_eq!(group.live().len(), 2, "the connections go on");
        acceptor.cancel();
        acceptor.join(step);
    });
    assert!(stopping.finish().is_clean() && group.live().is_empty());
}

#[test]
fn dropping_an_acceptor_stops_it() {
    let group = Group::enter();
    let (acceptor, sees, address) = start();
    let _client = connect(address);
    assert_eq!(sees.recv_timeout(LONG).unwrap(), (1, false));
    drop(acceptor);
    assert!(group.live().is_empty(), "{:?}", group.live());
}
