//! The byte stream under a connection: a socket that does not block, plain or with TLS by rustls.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use crate::net::tls::ClientTls;

/// A stream; its calls never block, but say `WouldBlock`.
pub(super) struct Stream {
    socket: Arc<TcpStream>,
    tls: Option<Box<ClientConnection>>,
    /// The last read was cut off by the caller's buffer, so TLS may hold more, of which the socket knows nothing.
    more: bool,
}

impl Stream {
    /// Takes a connected socket over.
    pub(super) fn new(socket: TcpStream, host: &str, tls: Option<&ClientTls>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let tls = match tls {
            None => None,
            Some(tls) => {
                let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
                Some(Box::new(tls.connection(name).map_err(io::Error::other)?))
            }
        };
        Ok(Self { socket: Arc::new(socket), tls, more: false })
    }

    pub(super) fn socket(&self) -> &Arc<TcpStream> {
        &self.socket
    }

    /// Whether TLS has something of its own to send, so that the socket is to be watched for that.
    pub(super) fn wants_write(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Whether a read may give something although the socket has nothing.
    pub(super) fn has_more(&self) -> bool {
        self.more
    }

    /// Whether TLS has not shaken hands yet.
    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    pub(super) fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return (&*self.socket).read(into) };
        loop {
            match tls.reader().read(into) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.more = false,
                done => {
                    self.more = done.as_ref().is_ok_and(|n| *n == into.len());
                    return done;
                }
            }
            if tls.read_tls(&mut &*self.socket)? == 0 {
                return Ok(0);
            }
            if let Err(error) = tls.process_new_packets() {
                // The alert that tells the peer why; the error is what matters.
                let _ = tls.write_tls(&mut &*self.socket);
                return Err(io::Error::new(ErrorKind::InvalidData, error));
            }
            send(tls, &self.socket)?;
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return (&*self.socket).write(bytes) };
        let taken = tls.writer().write(bytes)?;
        self.flush()?;
        // Its buffer was full; there is room for more if all of it could be sent.
        if taken == 0 && self.wants_write() { Err(ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }

    /// Sends what TLS has ready; what the socket does not take now stays.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.tls.as_mut().map_or(Ok(()), |tls| send(tls, &self.socket))
    }
}

fn send(tls: &mut ClientConnection, mut socket: &TcpStream) -> io::Result<()> {
    while tls.wants_write() {
        match tls.write_tls(&mut socket) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
