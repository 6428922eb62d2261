//! The one socket under both halves, plain or TLS.
//!
//! rustls does no I/O of its own, so its lock is never held across a system call: the reader receives into its own
//! buffer and then decrypts, the writer encrypts and then sends. Only the writer takes records out of rustls, so they
//! reach the wire in the order in which they were sealed.

use std::io::{self, Read, Write};
use std::net::{Shutdown as Half, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::base::lock::lock;
use crate::base::waits::waiting;
use crate::transport::control::Control;
use crate::transport::{CLOSE_DRAIN_TIME, Traffic};

/// Plaintext that is sealed and sent at a time: four TLS records, so that little is held twice.
const SEAL_BYTES: usize = 64 << 10;

/// Bytes that are given to the system at a time. It returns only when it has taken all of them, so a large message must
/// come in parts for its progress to be seen; this is more than any batch of small ones, which stays one call.
const SEND_BYTES: usize = 256 << 10;

pub(super) struct Socket {
    tcp: Arc<TcpStream>,
    tls: Option<Mutex<rustls::Connection>>,
    pub(super) control: Arc<Control>,
    pub(super) traffic: Arc<Traffic>,
    /// We have ended the reading ourselves.
    has_ended_reading: AtomicBool,
}

impl Socket {
    pub(super) fn new(tcp: Arc<TcpStream>, tls: Option<rustls::Connection>) -> Self {
        let has_ended_reading = AtomicBool::new(false);
        Self { tcp, tls: tls.map(Mutex::new), control: Arc::default(), traffic: Arc::default(), has_ended_reading }
    }

    pub(super) fn kick(&self) {
        self.control.set_kicked();
        self.shut();
    }

    /// Receives what there is. Blocks until there is something, the end, or a kick.
    fn receive(&self, buf: &mut [u8]) -> io::Result<usize> {
        let received = (&*self.tcp).read(buf)?;
        self.traffic.count_read(received);
        Ok(received)
    }

    /// As [`Socket::receive`], but fails as `WouldBlock` where it would block.
    fn receive_now(&self, buf: &mut [u8]) -> io::Result<usize> {
        let (received, _) = rustix::net::recv(&*self.tcp, buf, RecvFlags::DONTWAIT)?;
        self.traffic.count_read(received);
        Ok(received)
    }

    pub(super) fn descriptor(&self) -> Arc<TcpStream> {
        self.tcp.clone()
    }

    /// Sends all of `bytes`. Blocks while the peer does not read; a kick interrupts it.
    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        for part in bytes.chunks(SEND_BYTES) {
            let sent = self.try_send(part)?;
            if sent < part.len() {
                let _waiting = waiting("the peer to read", None);
                (&*self.tcp).write_all(&part[sent..])?;
                self.traffic.count_written(part.len() - sent);
            }
        }
        Ok(())
    }

    /// Sends what the system takes without blocking; gives the number of bytes.
    fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::send(&*self.tcp, bytes, flags) {
            Ok(sent) => {
                self.traffic.count_written(sent);
                Ok(sent)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Interrupts the reading alone. An error means that the peer has gone.
    pub(super) fn end_reading(&self) {
        self.has_ended_reading.store(true, Ordering::SeqCst);
        let _ = self.tcp.shutdown(Half::Read);
    }

    /// Interrupts both halves. An error means that the peer has gone, and then nothing blocks.
    pub(super) fn shut(&self) {
        let _ = self.tcp.shutdown(Half::Both);
    }

    /// Waits until the writer has said why the connection ends and shut its direction as well.
    fn wait_for_writer(&self, until: Instant) {
        let _waiting = waiting("the Close to be sent", Some(until));
        // An error means that nothing can be waited for.
        let _ = rustix::event::poll(
            &mut [PollFd::new(&*self.tcp, PollFlags::empty())],
            Timespec::try_from(until.saturating_duration_since(Instant::now())).ok().as_ref(),
        );
    }

    /// Reads and discards until the end of the stream, at most for [`CLOSE_DRAIN_TIME`]. Nothing is read afterwards, so
    /// this is the one place where a time-out on the socket does no harm.
    pub(super) fn drain(&self) {
        let until = Instant::now() + CLOSE_DRAIN_TIME;
        if self.has_ended_reading.load(Ordering::SeqCst) {
            return self.wait_for_writer(until);
        }
        let mut discarded = [0; 4096];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.tcp.set_read_timeout(Some(left)).is_err() {
                return;
            }
            let _waiting = waiting("the peer to close", Some(until));
            match (&*self.tcp).read(&mut discarded) {
                Ok(1..) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // The end, the time-out, a reset or a kick: in each case there is nothing to wait for any more.
                Ok(0) | Err(_) => return,
            }
        }
    }
}

/// How the system may be asked for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asking {
    Waits,
    Now,
    Never,
}

/// The stream of the receiving codec. What that writes (its own pongs and answers to Close) is dropped, because only
/// the writer writes.
pub(super) struct Inbound {
    socket: Arc<Socket>,
    /// Received and not yet given to rustls, which takes no more while it holds plaintext; empty without TLS.
    sealed: Box<[u8]>,
    start: usize,
    end: usize,
    asking: Asking,
    /// More was wanted than there is without waiting.
    dry: bool,
}

impl Inbound {
    pub(super) fn new(socket: Arc<Socket>, buffer: usize) -> Self {
        let buffer = if socket.tls.is_some() { buffer.max(1) } else { 0 };
        Self { socket, sealed: vec![0; buffer].into(), start: 0, end: 0, asking: Asking::Waits, dry: false }
    }

    /// Says how reading may ask the system for more; without waiting it fails as `WouldBlock` where it would, and
    /// [`Inbound::is_dry`] tells so.
    pub(super) fn set_asking(&mut self, asking: Asking) {
        self.asking = asking;
    }

    /// Whether the last reading ended because nothing more is there without waiting.
    pub(super) fn is_dry(&self) -> bool {
        self.dry
    }

    /// Receives as far as the system may be asked.
    fn receive(&mut self, socket: &Socket, buf: &mut [u8]) -> io::Result<usize> {
        let received = match self.asking {
            Asking::Waits => return socket.receive(buf),
            Asking::Now => socket.receive_now(buf),
            Asking::Never => Err(io::ErrorKind::WouldBlock.into()),
        };
        self.dry = matches!(&received, Err(e) if e.kind() == io::ErrorKind::WouldBlock);
        received
    }

    /// Decrypts what was received. `None`: more must be received first.
    ///
    /// `WouldBlock` says that rustls wants something sent, which only the writer does; the next call goes on.
    fn open(&mut self, tls: &Mutex<rustls::Connection>, buf: &mut [u8]) -> io::Result<Option<usize>> {
        let mut tls = lock(tls);
        loop {
            match tls.reader().read(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                done => return done.map(Some),
            }
            if self.start == self.end {
                return Ok(None);
            }
            let mut rest = &self.sealed[self.start..self.end];
            tls.read_tls(&mut rest)?;
            self.start = self.end - rest.len();
            let waited = tls.wants_write();
            let outcome = tls.process_new_packets();
            outcome.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            // Only a change is reported, so that a writer which is slow to wake is not asked again and again.
            if tls.wants_write() && !waited {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
    }
}

impl Read for Inbound {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let socket = self.socket.clone();
        self.dry = false;
        let Some(tls) = &socket.tls else {
            return self.receive(&socket, buf);
        };
        loop {
            if let Some(n) = self.open(tls, buf)? {
                return Ok(n);
            }
            let mut sealed = std::mem::take(&mut self.sealed);
            let received = self.receive(&socket, &mut sealed);
            self.sealed = sealed;
            let received = received?;
            if received == 0 {
                return Ok(0);
            }
            (self.start, self.end) = (0, received);
        }
    }
}

impl Write for Inbound {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The sending direction; the only user of it is the write half.
pub(super) struct Outbound {
    socket: Arc<Socket>,
    sealed: Vec<u8>,
}

impl Outbound {
    pub(super) fn new(socket: Arc<Socket>) -> Self {
        Self { socket, sealed: Vec::new() }
    }

    /// Sends all of `bytes`, and before them whatever TLS itself has to say. Blocks while the peer does not read.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(tls) = &self.socket.tls else {
            return self.socket.send(bytes);
        };
        let mut rest = bytes;
        loop {
            let (chunk, later) = rest.split_at(rest.len().min(SEAL_BYTES));
            self.sealed.clear();
            {
                let mut tls = lock(tls);
                tls.writer().write_all(chunk)?;
                while tls.wants_write() {
                    tls.write_tls(&mut self.sealed)?;
                }
            }
            self.socket.send(&self.sealed)?;
            rest = later;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    /// Sends what the system takes without blocking; gives the number of bytes. Nothing over TLS, whose records would
    /// have to be kept.
    pub(super) fn try_send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.socket.tls.is_some() { Ok(0) } else { self.socket.try_send(bytes) }
    }

    /// Tells the peer that nothing follows; it may still send.
    pub(super) fn half_close(&mut self) -> io::Result<()> {
        if let Some(tls) = &self.socket.tls {
            lock(tls).send_close_notify();
        }
        self.send(&[])?;
        self.socket.tcp.shutdown(Half::Write)
    }
}
