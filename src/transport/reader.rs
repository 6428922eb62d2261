//! The read half, whatever is below it: passes messages on, and asks of the writer what the peer is owed.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use tungstenite::error::{CapacityError, ProtocolError};
use tungstenite::protocol::CloseFrame;
use tungstenite::{Error, Message};

use super::control::{CloseReply, Control, fitting};
use super::{CloseInfo, Incoming, ReadHalf, TransportError, tls};

/// Where messages come from.
pub(super) trait Receive: Send {
    /// Blocks until there is a message or the end. `WouldBlock` means that the writer has something to send first; the
    /// next call goes on where this one stopped.
    fn receive(&mut self) -> Result<Message, Error>;

    /// As [`Receive::receive`], but gives only what has been received already; `None` if the system must be asked, or
    /// if that is not known.
    fn receive_ready(&mut self) -> Result<Option<Message>, Error> {
        Ok(None)
    }

    /// As [`Receive::receive`], but never blocks; `None` if nothing has come.
    fn receive_now(&mut self) -> Result<Option<Message>, Error> {
        self.receive_ready()
    }

    /// See [`super::ReadHalf::descriptor`].
    fn descriptor(&self) -> Option<Arc<dyn AsFd + Send + Sync>> {
        None
    }

    /// Reads and discards until the peer's end, at most for [`super::CLOSE_DRAIN_TIME`]. Nothing is received
    /// afterwards.
    fn drain(&mut self);

    /// See [`super::ReadHalf::is_shut`].
    fn is_shut(&self) -> bool {
        false
    }

    /// Discards what has come, without blocking; says whether the stream has ended. Nothing is received afterwards.
    fn drain_now(&mut self) -> bool {
        true
    }

    /// Ends both directions, so that the writer does not wait for a peer that is gone or has lost its right to an
    /// answer.
    fn shut(&mut self);
}

pub(super) struct Reader<R> {
    source: R,
    control: Arc<Control>,
    peer: String,
    state: ReaderState,
}

enum ReaderState {
    Open,
    /// The peer's Close was given out.
    Closing,
    /// The peer did wrong and the writer was woken to say so.
    Failing(TransportError),
    Over,
}

impl<R: Receive> Reader<R> {
    pub(super) fn new(source: R, control: Arc<Control>, peer: String) -> Self {
        Self { source, control, peer, state: ReaderState::Open }
    }

    fn closed_by_peer(&mut self, frame: Option<CloseFrame>) -> Incoming {
        let code = frame.as_ref().map(|f| u16::from(f.code));
        let reason = frame.map_or_else(String::new, |f| f.reason.as_str().to_owned());
        self.control.set_close(CloseReply { code, reason: reason.clone() });
        self.state = ReaderState::Closing;
        Incoming::Closed(CloseInfo { code, reason, clean: true })
    }

    /// Has the writer send what the peer is owed for `error`; the error itself is for the next call.
    fn fail(&mut self, error: TransportError) -> Incoming {
        if let Some(code) = error.close_code() {
            let reason = error.to_string();
            self.control.set_close(CloseReply { code: Some(code), reason: fitting(&reason).to_owned() });
        }
        self.state = ReaderState::Failing(error);
        Incoming::Control
    }

    fn stream_ended(&mut self) -> Result<Incoming, TransportError> {
        self.source.shut();
        match self.over(TransportError::Closed) {
            TransportError::Stopped => Err(TransportError::Stopped),
            _ => Ok(Incoming::Closed(CloseInfo::end_of_stream())),
        }
    }

    /// After a kick everything that ends was stopped, whatever the system calls it.
    fn over(&mut self, error: TransportError) -> TransportError {
        self.state = ReaderState::Over;
        if self.control.is_kicked() { TransportError::Stopped } else { error }
    }

    fn pass_on(&mut self, received: Result<Message, Error>) -> Result<Incoming, TransportError> {
        Ok(match received {
            Ok(Message::Text(text)) => Incoming::Text(text),
            Ok(Message::Binary(bytes)) => Incoming::Binary(bytes),
            Ok(Message::Ping(payload)) => {
                self.control.push_pong(payload);
                Incoming::Control
            }
            Ok(Message::Pong(_)) => Incoming::Pong,
            Ok(Message::Close(frame)) => self.closed_by_peer(frame),
            Ok(Message::Frame(_)) => unreachable!("the codec gives raw frames to nobody who reads messages"),
            Err(Error::Io(e)) if e.get_ref().is_some_and(|e| e.is::<TransportError>()) => {
                let error = e.downcast::<TransportError>();
                self.fail(error.unwrap_or_else(TransportError::io("reading")))
            }
            Err(Error::Io(e)) => match e.kind() {
                io::ErrorKind::WouldBlock => Incoming::Control,
                io::ErrorKind::InvalidData => self.fail(tls::io_failed(&self.peer, e)),
                // A TLS peer that ends without saying so in TLS is no worse than one of plain TCP.
                io::ErrorKind::UnexpectedEof => return self.stream_ended(),
                _ => {
                    self.source.shut();
                    return Err(self.over(TransportError::Io { doing: "reading", source: e }));
                }
            },
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake))
            | Err(Error::ConnectionClosed | Error::AlreadyClosed) => return self.stream_ended(),
            Err(Error::Capacity(CapacityError::MessageTooLong { size, max_size })) => {
                self.fail(TransportError::TooLarge { size, limit: max_size })
            }
            Err(Error::Utf8(problem)) => self.fail(TransportError::Utf8 { problem }),
            Err(e) => self.fail(TransportError::Protocol { problem: e.to_string() }),
        })
    }
}

impl<R: Receive> ReadHalf for Reader<R> {
    fn read(&mut self) -> Result<Incoming, TransportError> {
        match std::mem::replace(&mut self.state, ReaderState::Open) {
            ReaderState::Open => {}
            ReaderState::Closing => {
                // The writer may still be sending what was queued before the answer, so it is left alone.
                self.source.drain();
                return Err(self.over(TransportError::Closed));
            }
            ReaderState::Failing(error) => {
                self.source.drain();
                self.source.shut();
                return Err(self.over(error));
            }
            ReaderState::Over => return Err(self.over(TransportError::Closed)),
        }
        loop {
            match self.source.receive() {
                Err(Error::Io(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                received => return self.pass_on(received),
            }
        }
    }

    fn read_ready(&mut self) -> Result<Option<Incoming>, TransportError> {
        match self.state {
            ReaderState::Open => {
                self.source.receive_ready().transpose().map(|received| self.pass_on(received)).transpose()
            }
            _ => Ok(None),
        }
    }

    fn read_now(&mut self) -> Result<Option<Incoming>, TransportError> {
        match std::mem::replace(&mut self.state, ReaderState::Open) {
            ReaderState::Open => {
                self.source.receive_now().transpose().map(|received| self.pass_on(received)).transpose()
            }
            ReaderState::Failing(error) => Err(self.over(error)),
            ReaderState::Closing | ReaderState::Over => Err(self.over(TransportError::Closed)),
        }
    }

    fn is_shut(&self) -> bool {
        self.source.is_shut()
    }

    fn drain_now(&mut self) -> bool {
        self.source.drain_now()
    }

    fn descriptor(&self) -> Option<Arc<dyn AsFd + Send + Sync>> {
        self.source.descriptor()
    }
}
