//! One client's connection to the server, plain or TLS, each of whose calls ends at a deadline.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown as Direction, TcpStream};
use std::time::Instant;

use rustls::ServerConnection;

use crate::base::waits::waiting;
use crate::net::deadline::by;
use crate::net::tls::{ServerTls, shake_hands};

/// The first byte of TLS: a record of the handshake (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// A client's connection.
pub(super) struct Socket<'a> {
    tcp: &'a TcpStream,
    tls: Option<Box<ServerConnection>>,
}

/// A connection whose client has begun to speak.
pub(super) enum Opened<'a> {
    /// As it should.
    Ready(Socket<'a>),
    /// Without the TLS that there is here. What it gets is plain.
    Plain(Socket<'a>),
}

/// The socket under it, whose time-outs are set anew for what is left.
struct Timed<'a> {
    tcp: &'a TcpStream,
    deadline: Instant,
}

impl Read for Timed<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut tcp = self.tcp;
        by(self.deadline, |left| {
            tcp.set_read_timeout(Some(left))?;
            let _waiting = waiting("a client's request", Some(self.deadline));
            tcp.read(bytes)
        })
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut tcp = self.tcp;
        by(self.deadline, |left| {
            tcp.set_write_timeout(Some(left))?;
            let _waiting = waiting("a client to take its answer", Some(self.deadline));
            tcp.write(bytes)
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> Socket<'a> {
    /// Shakes hands if there is TLS. Blocks until `deadline`; a shutdown of the socket interrupts it, as all that
    /// follows.
    ///
    /// # Errors
    /// Those of the system and of TLS; [`ErrorKind::TimedOut`] at the deadline.
    pub(super) fn open(tcp: &'a TcpStream, tls: Option<&ServerTls>, deadline: Instant) -> io::Result<Opened<'a>> {
        let plain = Self { tcp, tls: None };
        let Some(tls) = tls else { return Ok(Opened::Ready(plain)) };
        let mut timed = Timed { tcp, deadline };
        let mut first = [0];
        let seen = by(deadline, |left| {
            tcp.set_read_timeout(Some(left))?;
            let _waiting = waiting("a client's handshake", Some(deadline));
            tcp.peek(&mut first)
        })?;
        if seen > 0 && first[0] != TLS_HANDSHAKE {
            return Ok(Opened::Plain(plain));
        }
        let mut connection = tls.connection().map_err(io::Error::other)?;
        shake_hands(&mut connection, &mut timed)?;
        Ok(Opened::Ready(Self { tcp, tls: Some(connection.into()) }))
    }

    /// Reads once; 0 at the end of the stream. Blocks until `deadline`.
    ///
    /// # Errors
    /// As [`Socket::open`].
    pub(super) fn read(&mut self, bytes: &mut [u8], deadline: Instant) -> io::Result<usize> {
        let mut timed = Timed { tcp: self.tcp, deadline };
        match &mut self.tls {
            None => timed.read(bytes),
            Some(tls) => rustls::Stream::new(tls.as_mut(), &mut timed).read(bytes),
        }
    }

    /// Writes a part of `bytes`, at least one; with TLS it is on the wire, or in the way of the next call. Blocks until
    /// `deadline`.
    ///
    /// # Errors
    /// As [`Socket::open`].
    pub(super) fn write(&mut self, bytes: &[u8], deadline: Instant) -> io::Result<usize> {
        let mut timed = Timed { tcp: self.tcp, deadline };
        let written = match &mut self.tls {
            None => timed.write(bytes)?,
            Some(tls) => {
                let mut stream = rustls::Stream::new(tls.as_mut(), &mut timed);
                let written = stream.write(bytes)?;
                stream.flush()?;
                written
            }
        };
        if written == 0 && !bytes.is_empty() { Err(ErrorKind::WriteZero.into()) } else { Ok(written) }
    }

    /// Tells the client that nothing follows; it may still send. Blocks until `deadline`.
    ///
    /// # Errors
    /// As [`Socket::open`].
    pub(super) fn half_close(&mut self, deadline: Instant) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let mut timed = Timed { tcp: self.tcp, deadline };
            while tls.wants_write() {
                tls.write_tls(&mut timed)?;
            }
        }
        self.tcp.shutdown(Direction::Write)
    }
}
