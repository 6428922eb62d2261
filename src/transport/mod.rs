//! Connections as two halves: one thread reads, one writes, a kick frees both.
//!
//! [`ws`] carries them over TCP and TLS with the WebSocket protocol; `memory` (feature `test-util`) within the process,
//! with planned faults. Both are behind [`Dialer`] and [`Listener`], so whatever stands on them runs over either.
//!
//! The rules of every implementation:
//! * The reader never writes to the socket and never waits for the writer. What the peer is owed (a pong, the answer to
//!   its Close) waits in a control slot; the reader says so with [`Incoming::Control`], and whoever owns both threads
//!   wakes the writer, which sends it on its next [`WriteHalf::flush`].
//! * A blocked call ends by [`ConnectionKick::kick`] and by nothing else: no time-outs, no polling. Liveness is the
//!   caller's.
//! * No subprotocol and no extension is negotiated; a peer's offer of compression is declined.

use std::fmt;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use tungstenite::{Bytes, Utf8Bytes};

use crate::base::limits;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::timer::TimerHandle;
pub use crate::net::USER_AGENT;
use crate::net::http::head;
pub use crate::net::proxy::Proxy;
pub use crate::net::tls::{ClientTls, ServerTls, TlsFileError};
use crate::ops::health::Health;

mod control;
pub mod counted;
mod error;
mod handshake;
pub mod idle;
mod intake;
#[cfg(any(test, feature = "test-util"))]
pub mod memory;
mod proxy;
mod reader;
mod receiving;
mod tls;
mod traffic;
mod url;
mod writer;
pub mod ws;

pub use counted::{MessageTypes, PeerMeters};
pub use error::TransportError;
pub use intake::{Intake, IntakeLimits, ReceivingMemory};
pub use traffic::Traffic;
use url::WsUrl;

/// Bytes that a write half collects before it sends without being flushed: some 60 typical messages in one system call.
pub const WRITE_BUFFER_BYTES: usize = 64 << 10;

/// How long a reader that failed the connection keeps reading, so that unread bytes do not reset the connection under
/// the Close on its way to the peer.
pub const CLOSE_DRAIN_TIME: Duration = Duration::from_secs(1);

/// Bytes that are read so at most: one of the largest messages of any link (52 MiB), which may be on its way whole.
pub const CLOSE_DRAIN_BYTES: usize = 64 << 20;

/// How long a pong or a Close may take to leave where nothing else is on its way: they are small.
pub const CLOSE_SEND_TIME: Duration = Duration::from_secs(1);

/// Whether a text is the URL of a WebSocket server, `ws://host[:port][/path]` or `wss://…`, by the rules of a dial.
///
/// # Errors
/// [`TransportError::Url`].
pub fn check_url(url: &str) -> Result<(), TransportError> {
    WsUrl::parse(url).map(drop)
}

/// What a read half received.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Incoming {
    /// A whole text message, fragments joined.
    Text(Utf8Bytes),
    /// A whole binary message, fragments joined.
    Binary(Bytes),
    /// Nothing for the caller, but something waits in the write half: wake the writer so that it flushes.
    Control,
    /// The answer to a ping.
    Pong,
    /// The peer sent Close or its stream ended. After a Close, one more flush of the write half sends what is still to
    /// be sent, the answer to it (unless our Close went before), and the end of our stream, for which some peers wait.
    Closed(CloseInfo),
}

/// How the peer ended the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloseInfo {
    /// The code of its Close; `None` if that had none, or if there was no Close (then `clean` is false).
    pub code: Option<u16>,
    /// The reason in its Close, or what ended the stream.
    pub reason: String,
    /// Whether a Close was received; false means that the stream just ended.
    pub clean: bool,
}

impl CloseInfo {
    pub(crate) fn end_of_stream() -> Self {
        Self { code: None, reason: "the stream ended without a Close".to_owned(), clean: false }
    }
}

impl fmt::Display for CloseInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.clean, self.code) {
            (false, _) => f.write_str(&self.reason),
            (true, None) => f.write_str("closed by the peer without a code"),
            (true, Some(code)) if self.reason.is_empty() => write!(f, "closed by the peer with code {code}"),
            (true, Some(code)) => write!(f, "closed by the peer with code {code}: {}", self.reason),
        }
    }
}

/// The receiving side of a connection, for one thread.
pub trait ReadHalf: Send {
    /// The next thing from the peer.
    ///
    /// Blocks until there is one; [`ConnectionKick::kick`] interrupts it, nothing else does. Never waits for the
    /// writer. After [`Incoming::Closed`] a further call waits for the end of the stream, at most [`CLOSE_DRAIN_TIME`],
    /// and returns [`TransportError::Closed`].
    ///
    /// With an error, and with an end that is not clean, both directions are over: a writer that is blocked is freed
    /// and gets an error.
    ///
    /// # Errors
    /// [`TransportError::Stopped`] after a kick. For bad input (message over the limit, protocol error, bad UTF-8) the
    /// first call returns [`Incoming::Control`], so that the writer is woken and sends the Close with the right code;
    /// the next call waits for the peer's end of stream, at most [`CLOSE_DRAIN_TIME`], and returns the error. Any error
    /// is final.
    fn read(&mut self) -> Result<Incoming, TransportError>;

    /// As [`ReadHalf::read`], but never blocks: `None` if nothing is left of what was received, or if that is not
    /// known; then `read` goes on.
    ///
    /// # Errors
    /// As for [`ReadHalf::read`].
    fn read_ready(&mut self) -> Result<Option<Incoming>, TransportError> {
        Ok(None)
    }

    /// As [`ReadHalf::read_ready`], but asks the system for more as well, without blocking. Only for a transport that
    /// has a [`ReadHalf::descriptor`]. Of a large message it may take only a part, and give `None`: the rest is there
    /// when the descriptor is readable.
    ///
    /// # Errors
    /// As for [`ReadHalf::read`], and [`TransportError::Closed`] after the end. Bad input is given at once, and the
    /// stream left as it is, for [`ReadHalf::drain_now`].
    fn read_now(&mut self) -> Result<Option<Incoming>, TransportError> {
        self.read_ready()
    }

    /// Whether [`ReadHalf::read_now`] gave nothing because the [`Intake`] admits no more at present: the descriptor may
    /// be readable all the same, and [`Intake::on_change`] tells when to go on.
    fn is_shut(&self) -> bool {
        false
    }

    /// After a Close or bad input: discards what has come, without blocking; says whether the peer's stream has ended.
    fn drain_now(&mut self) -> bool {
        true
    }

    /// What `poll` finds readable when the peer has sent more; [`ReadHalf::read_now`] may have something to give
    /// without that. `None` if nothing can be polled.
    fn descriptor(&self) -> Option<Arc<dyn AsFd + Send + Sync>> {
        None
    }
}

/// The sending side of a connection, for one thread.
///
/// Every method may block while the peer does not read; [`ConnectionKick::kick`] interrupts it. Any error is final.
pub trait WriteHalf: Send {
    /// Puts a text message into the write buffer; when that is over its size, it is sent.
    ///
    /// # Errors
    /// [`TransportError::Closed`] after a Close was sent, [`TransportError::Stopped`] after a kick.
    fn write(&mut self, text: Utf8Bytes) -> Result<(), TransportError>;

    /// Sends waiting control frames, then all that was written, then, if the peer is owed a Close, that and the end of
    /// the stream.
    ///
    /// # Errors
    /// As for [`WriteHalf::write`], but flushing after a Close is no error.
    fn flush(&mut self) -> Result<(), TransportError>;

    /// Sends of what was written as much as can be sent without blocking; says whether all of it has left. The rest,
    /// control frames and a Close that is owed go with the next flush. A transport that cannot tell sends nothing.
    ///
    /// # Errors
    /// As for [`WriteHalf::flush`].
    fn try_flush(&mut self) -> Result<bool, TransportError> {
        Ok(false)
    }

    /// Only for a half of a [`Polled`] connection, none of whose methods blocks: they keep what the system does not
    /// take, and this sends of it what it takes now. Says whether all that was flushed has left, a Close and the end of
    /// the stream too.
    ///
    /// # Errors
    /// As for [`WriteHalf::flush`].
    fn flush_rest(&mut self) -> Result<bool, TransportError> {
        Ok(true)
    }

    /// Queues a ping, which goes with the next flush and before the messages written so far.
    ///
    /// # Errors
    /// As for [`WriteHalf::write`].
    fn ping(&mut self) -> Result<(), TransportError>;

    /// Flushes and sends Close with `code`; nothing can be written afterwards. If the peer sent a Close, or broke the
    /// protocol, it gets the answer to that instead. The peer's Close is still to be read.
    ///
    /// A `reason` over 123 bytes is truncated.
    ///
    /// # Errors
    /// [`TransportError::CloseCode`] if the code must not be sent (then nothing was); otherwise as
    /// [`WriteHalf::flush`].
    fn close(&mut self, code: u16, reason: &str) -> Result<(), TransportError>;
}

/// Frees both halves of one connection from whatever they block in; clones are the same kick.
///
/// It does not keep the connection open: with both halves dropped it does nothing.
#[derive(Clone)]
pub struct ConnectionKick(Arc<dyn Fn() + Send + Sync>);

impl ConnectionKick {
    /// A kick that runs `action`, which must not block and may run more than once.
    pub fn new(action: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(action))
    }

    /// Ends the connection without a Close. Does not block; more than once is the same as once.
    pub fn kick(&self) {
        (self.0)();
    }
}

impl fmt::Debug for ConnectionKick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConnectionKick")
    }
}

/// An open connection. Its parts go to the threads that need them.
pub struct Connection {
    /// For the reading thread.
    pub reader: Box<dyn ReadHalf>,
    /// For the writing thread.
    pub writer: Box<dyn WriteHalf>,
    /// For whoever ends those threads.
    pub kick: ConnectionKick,
    /// For whoever judges whether the peer is alive.
    pub traffic: Arc<Traffic>,
    /// For whoever says what the peer may send.
    pub intake: Arc<Intake>,
    /// The peer's address, for logs.
    pub peer: String,
}

impl Connection {
    /// Ends it with Close 1000, whose answer nobody waits for. Blocks at most [`CLOSE_SEND_TIME`].
    pub fn close(mut self, timer: &TimerHandle) {
        let kick = self.kick.clone();
        let _late = timer.at(timer.clock().now() + CLOSE_SEND_TIME, move || kick.kick());
        // Polite only: the peer may have gone.
        let _ = self.writer.close(1000, "");
        self.kick.kick();
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// The sizes of one connection, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketLimits {
    /// Payload of one received message, fragments joined; more is answered with Close 1009.
    pub message_bytes: usize,
    /// Payload of one received frame; more is answered with Close 1009.
    pub frame_bytes: usize,
    /// Request or response head of the handshake.
    pub handshake_bytes: usize,
    /// Read buffer, allocated for as long as the connection lives.
    pub read_buffer_bytes: usize,
    /// Written bytes that are collected before they are sent without a flush.
    pub write_buffer_bytes: usize,
}

impl Default for SocketLimits {
    /// The limits of the miner links.
    fn default() -> Self {
        Self {
            message_bytes: limits::MINER_LINK_MESSAGE_BYTES,
            frame_bytes: limits::MINER_LINK_MESSAGE_BYTES,
            handshake_bytes: limits::HANDSHAKE_BYTES,
            read_buffer_bytes: limits::READ_BUFFER_BYTES,
            write_buffer_bytes: WRITE_BUFFER_BYTES,
        }
    }
}

/// Where to connect to, and how.
#[derive(Debug, Clone, Copy)]
pub struct DialRequest<'a> {
    /// `ws://host[:port][/path]` or `wss://…`.
    pub url: &'a str,
    /// Headers of the upgrade request beside those of the protocol; [`USER_AGENT`] is sent if none of them names
    /// another.
    pub headers: &'a [(String, String)],
    /// Sizes of the connection.
    pub limits: SocketLimits,
    /// End of the look-up, TCP connect, TLS handshake and upgrade together.
    pub deadline: Instant,
}

/// Makes outgoing connections.
pub trait Dialer: Send + Sync {
    /// Connects. Blocks until the connection is open, the request's deadline, or `shutdown` at `level`.
    ///
    /// # Errors
    /// [`TransportError::Stopped`] if the shutdown came first; a time-out, a failure to connect, or a refusal by the
    /// server with its HTTP status otherwise.
    fn dial(&self, request: &DialRequest<'_>, shutdown: &Shutdown, level: Level) -> Result<Connection, TransportError>;
}

/// Takes incoming connections.
pub trait Listener: Send + Sync {
    /// The next connection, before its handshake. Blocks; [`ListenerKick::kick`] interrupts it.
    ///
    /// # Errors
    /// [`TransportError::Stopped`] after the kick, for ever. Another error (out of descriptors) may pass: the caller
    /// waits a little before it tries again.
    fn accept(&self) -> Result<Box<dyn Pending>, TransportError>;

    /// What interrupts [`Listener::accept`].
    fn kick(&self) -> ListenerKick;

    /// The URL by which a dialer of the same kind reaches this listener, without a path.
    fn url(&self) -> String;

    /// Has the thread that calls [`Listener::accept`] promise progress from now on, as the part `accept`: it comes back
    /// for the next connection soon after it has got one. A listener that cannot be woken for a sign of life promises
    /// nothing.
    fn watch(&mut self, _health: &Health) {}
}

/// Ends the accepting of one listener; clones are the same kick.
#[derive(Clone)]
pub struct ListenerKick(Arc<dyn Fn() + Send + Sync>);

impl ListenerKick {
    /// A kick that runs `action`, which must not block and may run more than once.
    pub fn new(action: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(action))
    }

    /// Makes `accept` return [`TransportError::Stopped`], now and later. Does not block; once is enough.
    pub fn kick(&self) {
        (self.0)();
    }
}

impl fmt::Debug for ListenerKick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ListenerKick")
    }
}

/// A connection that was accepted but has not shaken hands; that happens on a thread of its own.
pub trait Pending: Send {
    /// The peer's address (and port), for logs.
    fn peer(&self) -> String;

    /// Reads the peer's request, lets `check` judge it, and answers. Blocks at most until `deadline`, however slowly
    /// the peer sends; `shutdown` at `level` interrupts it.
    ///
    /// # Errors
    /// [`TransportError::Refused`] if `check` refused (the peer got its status and body); otherwise what was wrong with
    /// the peer, a time-out, or [`TransportError::Stopped`].
    fn handshake(
        self: Box<Self>,
        limits: &SocketLimits,
        deadline: Instant,
        shutdown: &Shutdown,
        level: Level,
        check: &mut dyn FnMut(&HandshakeRequest) -> Result<(), Refusal>,
    ) -> Result<(Connection, HandshakeRequest), TransportError>;

    /// For one thread that has many connections: its handshake, and later its halves, never block.
    ///
    /// # Errors
    /// Gives it back if nothing below it can be polled.
    fn polled(self: Box<Self>, limits: &SocketLimits) -> Result<Box<dyn Polled>, Box<dyn Pending>>;
}

/// An accepted connection whose handshake goes on whenever its descriptor is ready.
pub trait Polled: Send {
    /// What can be polled.
    fn descriptor(&self) -> Arc<dyn AsFd + Send + Sync>;

    /// The peer's address (and port), for logs.
    fn peer(&self) -> &str;

    /// Goes on as far as that is possible without blocking; `None` if the peer has to do something first. Of the
    /// connection that it gives, [`ReadHalf::read_now`] and all methods of the write half never block.
    ///
    /// # Errors
    /// As for [`Pending::handshake`]; then only [`Polled::linger`] is left.
    fn advance(
        &mut self,
        check: &mut dyn FnMut(&HandshakeRequest) -> Result<(), Refusal>,
    ) -> Result<Option<(Connection, HandshakeRequest)>, TransportError>;

    /// Whether it waits for the peer to read.
    fn has_left(&self) -> bool;

    /// After an error: sends what the peer is still to be told and discards what it sends; says whether its stream has
    /// ended. Without that, unread bytes would reset the connection under the answer.
    fn linger(&mut self) -> bool;
}

/// What a client asked for in its upgrade request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandshakeRequest {
    /// Path and query, as `/ws/v0/`.
    pub path: String,
    /// All headers in their order; bytes that are not UTF-8 are replaced.
    pub headers: Vec<(String, String)>,
}

impl HandshakeRequest {
    /// The first header of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        head::first(&self.headers, name)
    }
}

/// Why a server does not take a connection, as the client is answered. Status 200 is a page, for a client that wants no
/// connection at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status, 200 or 400 to 599; another is sent as 500.
    pub status: u16,
    /// Text for people; with status 200, JSON.
    pub body: String,
    /// When the client may try again, told in whole seconds as `Retry-After`.
    pub retry_after: Option<Duration>,
}
