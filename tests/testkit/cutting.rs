//! A TCP proxy on loopback that cuts what goes through it at a byte, and for a while lets nobody through.

use std::io::{Read, Write};
use std::net::{Shutdown as Half, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use phalanx::base::thread::{Kick, Thread, spawn};

use super::transport::{raw_client, try_raw_client};
use super::wait::far;

/// What its threads share.
struct Passage {
    target: SocketAddr,
    state: Mutex<PassageState>,
}

struct PassageState {
    /// That have passed, both ways, over all connections.
    bytes: u64,
    cut: Option<Cut>,
    /// Until then, connections are accepted and dropped.
    closed_until: Option<Instant>,
    /// Cuts that have happened.
    cuts: usize,
    sockets: Vec<TcpStream>,
    pumps: Vec<Thread<()>>,
    stopped: bool,
}

#[derive(Clone, Copy)]
struct Cut {
    at: u64,
    outage: Duration,
}

impl PassageState {
    fn break_all(&mut self) {
        for socket in self.sockets.drain(..) {
            // One that has ended already is as good as broken.
            let _ = socket.shutdown(Half::Both);
        }
    }
}

/// The proxy. Dropping it breaks what goes through it, and joins its threads.
pub struct CuttingProxy {
    pub address: SocketAddr,
    passage: Arc<Passage>,
    accepting: Option<Thread<()>>,
}

impl CuttingProxy {
    pub fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = PassageState {
            bytes: 0,
            cut: None,
            closed_until: None,
            cuts: 0,
            sockets: Vec::new(),
            pumps: Vec::new(),
            stopped: false,
        };
        let passage = Arc::new(Passage { target, state: Mutex::new(state) });
        let serving = passage.clone();
        let kick = Kick::new("a connection to itself", move || drop(raw_client(address)));
        let accepting = spawn("t-cut", kick, move || serve(&listener, &serving));
        Self { address, passage, accepting: Some(accepting) }
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.passage.state.lock().unwrap().bytes
    }

    /// Cuts so far.
    pub fn cuts(&self) -> usize {
        self.passage.state.lock().unwrap().cuts
    }

    /// Breaks all connections when so many more bytes have passed; what is behind them is lost, and nobody gets through
    /// for the time of the outage.
    pub fn cut_after(&self, bytes: u64, outage: Duration) {
        let mut state = self.passage.state.lock().unwrap();
        state.cut = Some(Cut { at: state.bytes + bytes, outage });
    }

    /// No cut any more.
    pub fn leave(&self) {
        self.passage.state.lock().unwrap().cut = None;
    }
}

impl Drop for CuttingProxy {
    fn drop(&mut self) {
        {
            let mut state = self.passage.state.lock().unwrap();
            state.stopped = true;
            state.break_all();
        }
        let accepting = self.accepting.take().unwrap();
        accepting.kick();
        accepting.join_by(far()).unwrap();
        let pumps = std::mem::take(&mut self.passage.state.lock().unwrap().pumps);
        pumps.into_iter().for_each(|pump| pump.join_by(far()).unwrap());
    }
}

fn serve(listener: &TcpListener, passage: &Arc<Passage>) {
    loop {
        let (client, _) = listener.accept().unwrap();
        let mut state = passage.state.lock().unwrap();
        if state.stopped {
            return;
        }
        if state.closed_until.is_some_and(|until| Instant::now() < until) {
            continue;
        }
        // Nobody may listen there for a while, as a server that was killed.
        let Ok(server) = try_raw_client(passage.target) else { continue };
        for (from, to) in [(&client, &server), (&server, &client)] {
            let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            state.sockets.push(from.try_clone().unwrap());
            let pumping = passage.clone();
            state.pumps.push(spawn("t-pump", Kick::dropped("the sockets"), move || pump(from, to, &pumping)));
        }
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, passage: &Passage) {
    let mut buffer = [0; 4096];
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(n) => n,
        };
        let mut state = passage.state.lock().unwrap();
        let passes = match state.cut {
            Some(Cut { at, .. }) if at < state.bytes + n as u64 => at.saturating_sub(state.bytes) as usize,
            _ => n,
        };
        state.bytes += passes as u64;
        if to.write_all(&buffer[..passes]).is_err() {
            break;
        }
        if passes < n
            && let Some(Cut { outage, .. }) = state.cut.take()
        {
            state.closed_until = Some(Instant::now() + outage);
            state.cuts += 1;
            state.break_all();
            break;
        }
    }
    // An end that has been noticed already is no matter.
    let _ = (from.shutdown(Half::Both), to.shutdown(Half::Both));
}
