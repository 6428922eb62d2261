//! One client's connection to the server, plain or TLS, each of whose calls ends at a deadline.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown as Direction, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ServerConnection;

use crate::base::waits::waiting;
use crate::net::deadline::by;
use crate::net::tls::{ServerTls, shake_hands};

/// The first byte of TLS: a record of the handshake (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// Plaintext that is sealed at a time: four TLS records, so that little is held twice.
const SEAL_BYTES: usize = 64 << 10;

/// After how long a client that takes nothing of its answer counts as slow.
const RESTLESS: Duration = Duration::from_secs(1);

/// A client's connection.
pub(super) struct Socket {
    tcp: Arc<TcpStream>,
    tls: Option<Box<ServerConnection>>,
}

/// A connection whose client has begun to speak.
pub(super) enum Opened {
    /// As it should.
    Ready(Socket),
    /// Without the TLS that there is here. What it gets is plain.
    Plain(Socket),
}

/// The reading side, whose time-out is set anew for what is left.
struct Reading<'a> {
    tcp: &'a TcpStream,
    deadline: Instant,
}

impl Read for Reading<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut tcp = self.tcp;
        by(self.deadline, |left| {
            tcp.set_read_timeout(Some(left))?;
            let _waiting = waiting("a client's request", Some(self.deadline));
            tcp.read(bytes)
        })
    }
}

/// For handshakes.
impl Write for Reading<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write_by(self.tcp, bytes, self.deadline)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The writing side of an answer.
struct Writing<'a> {
    tcp: &'a TcpStream,
    deadline: Instant,
    /// How long the client may take nothing at all.
    stall_time: Duration,
    stalls: &'a mut dyn FnMut(),
}

impl Write for Writing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let now = Instant::now();
        let deadline = self.deadline.min(now + self.stall_time);
        match write_by(self.tcp, bytes, deadline.min(now + RESTLESS)) {
            Err(error) if error.kind() == ErrorKind::TimedOut && Instant::now() < deadline => {
                (self.stalls)();
                write_by(self.tcp, bytes, deadline)
            }
            outcome => outcome,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_by(mut tcp: &TcpStream, bytes: &[u8], deadline: Instant) -> io::Result<usize> {
    by(deadline, |left| {
        tcp.set_write_timeout(Some(left))?;
        let _waiting = waiting("a client to take its answer", Some(deadline));
        tcp.write(bytes)
    })
}

impl Socket {
    /// Shakes hands if there is TLS. Blocks until `deadline`; a shutdown of the socket interrupts it, as all that
    /// follows.
    ///
    /// # Errors
    /// Those of the system and of TLS; [`ErrorKind::TimedOut`] at the deadline.
    pub(super) fn open(tcp: Arc<TcpStream>, tls: Option<&ServerTls>, deadline: Instant) -> io::Result<Opened> {
        let Some(tls) = tls else { return Ok(Opened::Ready(Self { tcp, tls: None })) };
        let mut first = [0];
        let seen = by(deadline, |left| {
            tcp.set_read_timeout(Some(left))?;
            let _waiting = waiting("a client's handshake", Some(deadline));
            tcp.peek(&mut first)
        })?;
        if seen > 0 && first[0] != TLS_HANDSHAKE {
            return Ok(Opened::Plain(Self { tcp, tls: None }));
        }
        let mut connection = tls.connection().map_err(io::Error::other)?;
        shake_hands(&mut connection, &mut Reading { tcp: &tcp, deadline })?;
        Ok(Opened::Ready(Self { tcp, tls: Some(connection.into()) }))
    }

    /// Reads once; 0 at the end of the stream. Blocks until `deadline`.
    ///
    /// # Errors
    /// As [`Socket::open`].
    pub(super) fn read(&mut self, bytes: &mut [u8], deadline: Instant) -> io::Result<usize> {
        let mut reading = Reading { tcp: &self.tcp, deadline };
        match &mut self.tls {
            None => reading.read(bytes),
            Some(tls) => rustls::Stream::new(tls.as_mut(), &mut reading).read(bytes),
        }
    }

    /// Sends all of `bytes`. Blocks while the client does not take them, until `deadline`, and no longer than
    /// `stall_time` while it takes nothing at all; before, after a second, `stalls` is called.
    ///
    /// # Errors
    /// As [`Socket::open`].
    pub(super) fn send(
        &mut self,
        bytes: &[u8],
        deadline: Instant,
        stall_time: Duration,
        stalls: &mut dyn FnMut(),
    ) -> io::Result<()> {
        let mut writing = Writing { tcp: &self.tcp, deadline, stall_time, stalls };
        let Some(tls) = &mut self.tls else { return writing.write_all(bytes) };
        for part in bytes.chunks(SEAL_BYTES) {
            tls.writer().write_all(part)?;
            while tls.wants_write() {
                tls.write_tls(&mut writing)?;
            }
        }
        Ok(())
    }

    /// Tells the client that nothing follows; it may still send. Blocks until `deadline`.
    ///
    /// # Errors
    /// As [`Socket::open`].
    pub(super) fn half_close(&mut self, deadline: Instant) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            while tls.wants_write() {
                tls.write_tls(&mut Reading { tcp: &self.tcp, deadline })?;
            }
        }
        self.tcp.shutdown(Direction::Write)
    }
}
