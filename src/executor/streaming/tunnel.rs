//! One client's connection: TLS on its side, plain TCP to the job, and the bytes in both directions as they come.
//!
//! Nothing is read of what is inside, so HTTP/1.1 in all its forms, WebSocket and streamed answers go through
//! unchanged. One thread serves both directions: it waits for whichever socket can go on. A side that does not read
//! holds up the other at [`BUFFER_BYTES`] in each direction, beside what the system and rustls hold.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown as Direction, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustls::ServerConnection;

use crate::base::limits::HANDSHAKE_TIME;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::waits::waiting;
use crate::net::accept::Standing;
use crate::net::dial::{dial, set_options};

/// Bytes under way in each direction: the largest TLS record.
const BUFFER_BYTES: usize = 16 << 10;

/// How long the job may take to accept a connection; it is on this machine.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// How long nothing may move before a connection is ended. The Python executor's nginx waits 60 s for an answer, which
/// a large model may need for its first word.
const IDLE_TIME: Duration = Duration::from_secs(600);

/// After the job has ended its side, or the handshake has failed, how long the client may take to read that.
const CLOSING_TIME: Duration = Duration::from_secs(5);

/// What a client with a right certificate gets when the job does not take its connection, as from nginx.
const BAD_GATEWAY: &[u8] = b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/plain\r\nContent-Length: 38\r\n\
                             Connection: close\r\n\r\nthe job's server takes no connections\n";

/// Serves one client to its end. Blocks in its handshake, in the connection to the job, and until a socket can go on;
/// the cancel of `stop` ends all of these. Its drain ends the reading from the client: what the job has sent still
/// goes to it.
pub(super) fn serve(
    client: TcpStream,
    tls: ServerConnection,
    job: SocketAddr,
    (stop, standing): (&Shutdown, &Standing),
) -> io::Result<()> {
    set_options(&client)?;
    client.set_nonblocking(true)?;
    let client = Arc::new(client);
    let (reading, all) = (client.clone(), client.clone());
    // An error means that it is closed already.
    let _reading = stop.on(Level::Drain, move || drop(reading.shutdown(Direction::Read)));
    let _all = stop.on(Level::Cancel, move || drop(all.shutdown(Direction::Both)));
    let mut client = Client { socket: client, tls, ended: false };
    client.shake_hands(Instant::now() + HANDSHAKE_TIME)?;
    // Its certificate is the right one.
    standing.known();
    let host = job.ip().to_string();
    let connected = dial(&host, job.port(), Instant::now() + CONNECT_TIME, stop, Level::Cancel);
    let job = match connected {
        Ok(job) => Arc::new(job),
        Err(error) => {
            client.tls.writer().write_all(BAD_GATEWAY)?;
            client.end();
            return Err(io::Error::other(error));
        }
    };
    job.set_nonblocking(true)?;
    let kicked = job.clone();
    let _job = stop.on(Level::Cancel, move || drop(kicked.shutdown(Direction::Both)));
    Tunnel { client, job, up: Buffer::new(), down: Buffer::new(), job_reads: true, job_ended: false }.run(stop)
}

/// The client's side.
struct Client {
    socket: Arc<TcpStream>,
    tls: ServerConnection,
    /// It sends no more.
    ended: bool,
}

impl Client {
    fn shake_hands(&mut self, deadline: Instant) -> io::Result<()> {
        while self.tls.is_handshaking() {
            self.flush()?;
            match self.receive() {
                Ok(true) => {}
                Ok(false) => self.wait(deadline)?,
                Err(error) => {
                    // The alert tells the client why.
                    self.end();
                    return Err(error);
                }
            }
            if self.ended && self.tls.is_handshaking() {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Takes in what has come; whether anything has.
    fn receive(&mut self) -> io::Result<bool> {
        if self.ended || !self.tls.wants_read() {
            return Ok(false);
        }
        match unless_blocked(self.tls.read_tls(&mut &*self.socket))? {
            None => return Ok(false),
            Some(0) => self.ended = true,
            Some(_) => {}
        }
        self.tls.process_new_packets().map_err(io::Error::other)?;
        Ok(true)
    }

    /// Sends what can be sent; whether anything could.
    fn flush(&mut self) -> io::Result<bool> {
        let mut sent = false;
        while self.tls.wants_write() {
            match unless_blocked(self.tls.write_tls(&mut &*self.socket))? {
                Some(0) | None => break,
                Some(_) => sent = true,
            }
        }
        Ok(sent)
    }

    /// Waits until the socket can go on.
    fn wait(&self, deadline: Instant) -> io::Result<()> {
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::IN, self.tls.wants_read());
        wanted.set(PollFlags::OUT, self.tls.wants_write());
        poll(&[(&self.socket, wanted)], deadline)
    }

    /// Sends what is left and the end, and lets the client read it: unread bytes of its own would reset the connection
    /// under it.
    fn end(&mut self) {
        let deadline = Instant::now() + CLOSING_TIME;
        self.tls.send_close_notify();
        while self.tls.wants_write() {
            if self.flush().is_err() || (self.tls.wants_write() && self.wait(deadline).is_err()) {
                return;
            }
        }
        if self.socket.shutdown(Direction::Write).is_err() {
            return;
        }
        while let Ok(read) = unless_blocked((&mut &*self.socket).read(&mut [0; 4096])) {
            match read {
                Some(0) => return,
                Some(_) if Instant::now() < deadline => {}
                _ if poll(&[(&self.socket, PollFlags::IN)], deadline).is_err() => return,
                _ => {}
            }
        }
    }
}

/// Bytes of one direction that were read and not written yet.
struct Buffer {
    bytes: Box<[u8]>,
    from: usize,
    to: usize,
}

impl Buffer {
    fn new() -> Self {
        Self { bytes: vec![0; BUFFER_BYTES].into(), from: 0, to: 0 }
    }

    fn is_empty(&self) -> bool {
        self.from == self.to
    }

    fn clear(&mut self) {
        self.from = self.to;
    }

    /// Refills it, when it is empty; `None` if nothing is there to be read.
    fn read(&mut self, from: &mut impl Read) -> io::Result<Option<usize>> {
        let read = unless_blocked(from.read(&mut self.bytes))?;
        (self.from, self.to) = (0, read.unwrap_or(0));
        Ok(read)
    }

    /// Writes of it what can be written; whether anything could.
    fn write(&mut self, to: &mut impl Write) -> io::Result<bool> {
        let written = unless_blocked(to.write(&self.bytes[self.from..self.to]))?.unwrap_or(0);
        self.from += written;
        Ok(written > 0)
    }
}

struct Tunnel {
    client: Client,
    job: Arc<TcpStream>,
    up: Buffer,
    down: Buffer,
    /// The job still takes what the client sends.
    job_reads: bool,
    /// The job sends no more, and the client has been told.
    job_ended: bool,
}

impl Tunnel {
    fn run(mut self, stop: &Shutdown) -> io::Result<()> {
        loop {
            let (mut moved, sent) = (self.upwards()? | self.downwards()?, self.client.flush()?);
            moved |= sent;
            if stop.is_cancelled() {
                return Ok(());
            }
            if self.job_ended && self.down.is_empty() && !self.client.tls.wants_write() {
                self.client.end();
                return Ok(());
            }
            if !moved {
                self.wait()?;
            }
        }
    }

    /// From the client to the job: one step, so that the directions take turns. A job that reads no more may still
    /// answer, so what it does not take is dropped.
    fn upwards(&mut self) -> io::Result<bool> {
        let mut moved = self.client.receive()?;
        if self.up.is_empty() && self.job_reads {
            match self.up.read(&mut self.client.tls.reader()) {
                Ok(None) => {}
                Ok(Some(n)) if n > 0 => moved = true,
                // Its end, with a farewell of TLS or without.
                Err(error) if error.kind() != ErrorKind::UnexpectedEof => return Err(error),
                _ => {
                    moved = true;
                    self.job_reads = false;
                    // An error means that the job has gone, which its answer shows.
                    drop(self.job.shutdown(Direction::Write));
                }
            }
        }
        if !self.up.is_empty() {
            match self.up.write(&mut &*self.job) {
                Ok(written) => moved |= written,
                Err(_) => {
                    self.up.clear();
                    self.job_reads = false;
                }
            }
        }
        Ok(moved)
    }

    /// From the job to the client: one step. Read only when all before has left, so that a client that does not read
    /// holds the job up.
    fn downwards(&mut self) -> io::Result<bool> {
        let mut moved = false;
        if self.down.is_empty() && !self.job_ended && !self.client.tls.wants_write() {
            match self.down.read(&mut &*self.job) {
                Ok(None) => {}
                Ok(Some(n)) if n > 0 => moved = true,
                // A job that resets its connection has ended it.
                Ok(Some(_)) | Err(_) => {
                    moved = true;
                    self.job_ended = true;
                }
            }
        }
        if !self.down.is_empty() {
            moved |= self.down.write(&mut self.client.tls.writer())?;
        }
        Ok(moved)
    }

    fn wait(&self) -> io::Result<()> {
        let tls = &self.client.tls;
        let mut client = PollFlags::empty();
        client.set(PollFlags::IN, self.up.is_empty() && self.job_reads && !self.client.ended && tls.wants_read());
        client.set(PollFlags::OUT, tls.wants_write());
        let mut job = PollFlags::empty();
        job.set(PollFlags::OUT, !self.up.is_empty());
        job.set(PollFlags::IN, self.down.is_empty() && !self.job_ended && !tls.wants_write());
        poll(&[(&self.client.socket, client), (&self.job, job)], Instant::now() + IDLE_TIME)
    }
}

fn unless_blocked(outcome: io::Result<usize>) -> io::Result<Option<usize>> {
    match outcome {
        Ok(n) => Ok(Some(n)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Waits until a socket can do what is wanted of it; [`ErrorKind::TimedOut`] at the deadline. A socket of which nothing
/// is wanted is left out: the system would report its end at once, again and again.
fn poll(sockets: &[(&TcpStream, PollFlags)], deadline: Instant) -> io::Result<()> {
    let _waiting = waiting("a client or the job", Some(deadline));
    let wanted = sockets.iter().filter(|(_, wanted)| !wanted.is_empty());
    let mut wanted: Vec<_> = wanted.map(|(socket, wanted)| PollFd::new(*socket, *wanted)).collect();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match rustix::event::poll(&mut wanted, Some(&timeout)) {
            Ok(0) => return Err(ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
