//! The one socket under both halves, plain or TLS.
//!
//! rustls does no I/O of its own, so its lock is never held across a system call: the reader receives into its own
//! buffer and then decrypts, the writer encrypts and then sends. Only the writer takes records out of rustls, so they
//! reach the wire in the order in which they were sealed.

use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown as Half, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::sealed::Sealed;
use crate::base::lock::lock;
use crate::base::waits::waiting;
use crate::transport::control::Control;
use crate::transport::{CLOSE_DRAIN_BYTES, CLOSE_DRAIN_TIME, Traffic};

/// Plaintext that is sealed and sent at a time: four TLS records, so that little is held twice.
const SEAL_BYTES: usize = 64 << 10;

/// Bytes that are given to the system at a time. It returns only when it has taken all of them, so a large message must
/// come in parts for its progress to be seen; this is more than any batch of small ones, which stays one call.
const SEND_BYTES: usize = 256 << 10;

pub(super) struct Socket {
    tcp: Arc<TcpStream>,
    tls: Option<Mutex<Sealed>>,
    pub(super) control: Arc<Control>,
    pub(super) traffic: Arc<Traffic>,
    /// We have ended the reading ourselves.
    has_ended_reading: AtomicBool,
    /// Bytes that came when nothing was read any more.
    discarded: AtomicUsize,
}

impl Socket {
    pub(super) fn new(tcp: Arc<TcpStream>, tls: Option<Sealed>) -> Self {
        let (tls, has_ended_reading, discarded) = (tls.map(Mutex::new), AtomicBool::new(false), AtomicUsize::new(0));
        Self { tcp, tls, control: Arc::default(), traffic: Arc::default(), has_ended_reading, discarded }
    }

    /// Whether the peer has shown a certificate, which then was a good one.
    pub(super) fn peer_is_certified(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| lock(tls).peer_is_certified())
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

    /// So many bytes were discarded; whether more may be, see [`CLOSE_DRAIN_BYTES`].
    fn may_discard_after(&self, bytes: usize) -> bool {
        self.discarded.fetch_add(bytes, Ordering::Relaxed) + bytes < CLOSE_DRAIN_BYTES
    }

    /// Discards what has come; says whether the stream has ended, or enough was discarded.
    pub(super) fn drain_now(&self) -> bool {
        let mut discarded = [0; 4096];
        for _ in 0..POLLED_TURN_BYTES / discarded.len() {
            match rustix::net::recv(&*self.tcp, &mut discarded[..], RecvFlags::DONTWAIT) {
                Ok((received @ 1.., _)) if self.may_discard_after(received) => {}
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return false,
                Ok(_) | Err(_) => return true,
            }
        }
        false
    }

    /// As [`Socket::drain`], where we have ended the reading: the system goes on to take what the peer sends as long as
    /// our own direction is open, and tells of each packet once. The peer's end looks as if nothing had come, so this
    /// takes all its time.
    fn drain_behind_our_end(&self, until: Instant) -> io::Result<()> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*self.tcp, EventData::new_u64(0), EventFlags::IN | EventFlags::ET)?;
        let mut discarded = [0; 4096];
        let mut events = [MaybeUninit::<Event>::uninit()];
        loop {
            match rustix::net::recv(&*self.tcp, &mut discarded[..], RecvFlags::DONTWAIT) {
                Ok((received @ 1.., _)) if self.may_discard_after(received) => continue,
                Ok((1.., _)) => return Ok(()),
                Err(Errno::INTR) => continue,
                Ok(_) | Err(Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.control.is_kicked() {
                return Ok(());
            }
            let _waiting = waiting("what the peer still sends", Some(until));
            match epoll::wait(&epoll, &mut events, Timespec::try_from(left).ok().as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads and discards until the end of the stream, at most for [`CLOSE_DRAIN_TIME`] and [`CLOSE_DRAIN_BYTES`].
    /// Nothing is read afterwards, so this is the one place where a time-out on the socket does no harm.
    pub(super) fn drain(&self) {
        let until = Instant::now() + CLOSE_DRAIN_TIME;
        if self.has_ended_reading.load(Ordering::SeqCst) {
            // An error means that the peer has gone, or that the system has no descriptor: it may be reset then.
            if let Err(error) = self.drain_behind_our_end(until) {
                log::debug!("what the peer still sends is not read: {error}");
            }
            return;
        }
        let mut discarded = [0; 4096];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.tcp.set_read_timeout(Some(left)).is_err() {
                return;
            }
            let _waiting = waiting("the peer to close", Some(until));
            match (&*self.tcp).read(&mut discarded) {
                Ok(received @ 1..) if self.may_discard_after(received) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // The end, enough, the time-out, a reset or a kick: in each case nothing is waited for any more.
                Ok(_) | Err(_) => return,
            }
        }
    }
}

/// Bytes that a polled connection takes of the system at a time, and for one message at most before others have their
/// turn.
const POLLED_READ_BYTES: usize = 8 << 10;
const POLLED_TURN_BYTES: usize = 256 << 10;

/// Who calls the two directions of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    /// A thread for each, which may block.
    Threads,
    /// One thread for many sockets, which may not. Buffers are there only while they hold something.
    Poll,
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
    caller: Caller,
    /// Received and not yet passed on: with TLS because rustls takes no more while it holds plaintext, and if polled
    /// because the codec asks for little at a time.
    received: Box<[u8]>,
    start: usize,
    end: usize,
    asking: Asking,
    /// More was wanted than there is without waiting.
    dry: bool,
    /// If polled: the system had less than it was asked for, so that it need not be asked once more.
    drained: bool,
    /// If polled: bytes since the present message was asked for.
    turn: usize,
}

impl Inbound {
    pub(super) fn new(socket: Arc<Socket>, caller: Caller, buffer: usize) -> Self {
        let buffer = if caller == Caller::Threads && socket.tls.is_some() { buffer.max(1) } else { 0 };
        let received = vec![0; buffer].into();
        let asking = if caller == Caller::Poll { Asking::Now } else { Asking::Waits };
        Self { socket, caller, received, start: 0, end: 0, asking, dry: false, drained: false, turn: 0 }
    }

    /// Says how reading may ask the system for more; without waiting it fails as `WouldBlock` where it would, and
    /// [`Inbound::is_dry`] tells so.
    pub(super) fn set_asking(&mut self, asking: Asking) {
        self.asking = asking;
        self.turn = 0;
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

    /// Receives into the own buffer, which is empty; gives the bytes.
    fn refill(&mut self, socket: &Socket) -> io::Result<usize> {
        let mut buffer = std::mem::take(&mut self.received);
        let received = if self.caller == Caller::Threads {
            self.receive(socket, &mut buffer)
        } else if self.drained || self.turn >= POLLED_TURN_BYTES {
            // The poll tells if the system has more.
            self.drained = false;
            self.dry = true;
            Err(io::ErrorKind::WouldBlock.into())
        } else {
            if buffer.is_empty() {
                buffer = vec![0; POLLED_READ_BYTES].into();
            }
            self.receive(socket, &mut buffer).inspect(|received| {
                self.turn += received;
                self.drained = *received < POLLED_READ_BYTES;
            })
        };
        if self.caller == Caller::Threads || received.as_ref().is_ok_and(|received| *received > 0) {
            self.received = buffer;
        }
        (self.start, self.end) = (0, *received.as_ref().unwrap_or(&0));
        received
    }

    /// Decrypts what was received. `None`: more must be received first.
    ///
    /// `WouldBlock` says that rustls wants something sent, which only the writer does; the next call goes on.
    fn open(&mut self, tls: &Mutex<Sealed>, buf: &mut [u8]) -> io::Result<Option<usize>> {
        let mut tls = lock(tls);
        loop {
            if let Some(taken) = tls.take(buf)? {
                return Ok(Some(taken));
            }
            if self.start == self.end {
                return Ok(None);
            }
            let waited = tls.wants_write();
            self.start += tls.feed(&self.received[self.start..self.end])?;
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
            if self.caller == Caller::Threads {
                return self.receive(&socket, buf);
            }
            if self.start == self.end {
                self.refill(&socket)?;
            }
            let given = buf.len().min(self.end - self.start);
            buf[..given].copy_from_slice(&self.received[self.start..self.start + given]);
            self.start += given;
            return Ok(given);
        };
        loop {
            if let Some(n) = self.open(tls, buf)? {
                return Ok(n);
            }
            if self.refill(&socket)? == 0 {
                return Ok(0);
            }
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
    caller: Caller,
    sealed: Vec<u8>,
    /// If polled: what has not been sent yet, and how much of `sealed` and of this has been.
    kept: Vec<u8>,
    kept_sent: usize,
    sealed_sent: usize,
    /// If polled: the end of the stream follows what is kept.
    ending: Ending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    No,
    Wanted,
    /// TLS has been told, which has something to say about it.
    Said,
    Done,
}

impl Outbound {
    pub(super) fn new(socket: Arc<Socket>, caller: Caller) -> Self {
        let (sealed, kept) = (Vec::new(), Vec::new());
        Self { socket, caller, sealed, kept, kept_sent: 0, sealed_sent: 0, ending: Ending::No }
    }

    /// Sends all of `bytes`, and before them whatever TLS itself has to say. Blocks while the peer does not read; if
    /// polled, it keeps what would.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.caller == Caller::Poll {
            self.kept.extend_from_slice(bytes);
            return self.send_rest().map(drop);
        }
        let Some(tls) = &self.socket.tls else {
            return self.socket.send(bytes);
        };
        let mut rest = bytes;
        loop {
            let (chunk, later) = rest.split_at(rest.len().min(SEAL_BYTES));
            lock(tls).seal(chunk, &mut self.sealed)?;
            self.socket.send(&self.sealed)?;
            rest = later;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    /// As [`Outbound::send`], of a buffer that is empty afterwards; if polled, it is taken over, which spares a copy
    /// and leaves no memory behind.
    pub(super) fn send_all_of(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        if self.caller == Caller::Threads {
            self.send(bytes)?;
            bytes.clear();
            return Ok(());
        }
        let bytes = std::mem::take(bytes);
        if self.kept.is_empty() {
            self.kept = bytes;
        } else {
            self.kept.extend_from_slice(&bytes);
        }
        self.send_rest().map(drop)
    }

    /// Sends what the system takes without blocking, and leaves the rest in the buffer; says whether nothing is left.
    /// Over TLS, whose records would have to be kept, that is nothing. If polled, what is left is kept here.
    pub(super) fn try_send_all_of(&mut self, bytes: &mut Vec<u8>) -> io::Result<bool> {
        if self.caller == Caller::Poll {
            self.send_all_of(bytes)?;
            return self.send_rest();
        }
        let sent = if self.socket.tls.is_some() { 0 } else { self.socket.try_send(bytes)? };
        bytes.drain(..sent);
        Ok(bytes.is_empty())
    }

    /// Sends of what is kept, and of what TLS has to say, as much as the system takes without blocking; says whether
    /// all has left.
    pub(super) fn send_rest(&mut self) -> io::Result<bool> {
        if self.caller == Caller::Threads {
            return Ok(true);
        }
        loop {
            let (bytes, sent) = match &self.socket.tls {
                None => (&self.kept, &mut self.kept_sent),
                Some(tls) => {
                    if self.sealed_sent == self.sealed.len() {
                        self.sealed_sent = 0;
                        let chunk = &self.kept[self.kept_sent..];
                        let chunk = &chunk[..chunk.len().min(SEAL_BYTES)];
                        if self.ending == Ending::Wanted && chunk.is_empty() {
                            lock(tls).send_close_notify();
                            self.ending = Ending::Said;
                        }
                        lock(tls).seal(chunk, &mut self.sealed)?;
                        self.kept_sent += chunk.len();
                    }
                    (&self.sealed, &mut self.sealed_sent)
                }
            };
            while *sent < bytes.len() {
                let part = &bytes[*sent..];
                let taken = self.socket.try_send(&part[..part.len().min(SEND_BYTES)])?;
                if taken == 0 {
                    return Ok(false);
                }
                *sent += taken;
            }
            if self.kept_sent < self.kept.len() {
                continue;
            }
            (self.kept, self.kept_sent) = (Vec::new(), 0);
            (self.sealed, self.sealed_sent) = (Vec::new(), 0);
            match self.ending {
                Ending::Wanted if self.socket.tls.is_some() => {}
                Ending::Wanted | Ending::Said => {
                    self.ending = Ending::Done;
                    self.socket.tcp.shutdown(Half::Write)?;
                    return Ok(true);
                }
                Ending::No | Ending::Done => return Ok(true),
            }
        }
    }

    /// Tells the peer that nothing follows; it may still send.
    pub(super) fn half_close(&mut self) -> io::Result<()> {
        if self.caller == Caller::Poll {
            if self.ending == Ending::No {
                self.ending = Ending::Wanted;
            }
            return self.send_rest().map(drop);
        }
        if let Some(tls) = &self.socket.tls {
            lock(tls).send_close_notify();
        }
        self.send(&[])?;
        if self.socket.has_ended_reading.load(Ordering::SeqCst) {
            // With both directions ended, what the peer still sends would reset the connection under what it has not
            // read yet. The reader drains first, and then ends this one.
            return Ok(());
        }
        self.socket.tcp.shutdown(Half::Write)
    }
}
