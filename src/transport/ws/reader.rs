//! The read half: the receiving codec, and what it asks of the writer.

use std::io;
use std::sync::Arc;

use tungstenite::error::{CapacityError, ProtocolError};
use tungstenite::protocol::{CloseFrame, Role, WebSocket, WebSocketConfig};
use tungstenite::{Error, Message};

use super::socket::{Inbound, Socket};
use crate::base::lock::lock;
use crate::transport::control::{CloseReply, fitting};
use crate::transport::{CloseInfo, Incoming, ReadHalf, SocketLimits, TransportError, tls};

pub(super) struct WsReader {
    codec: WebSocket<Inbound>,
    socket: Arc<Socket>,
    peer: String,
    state: State,
}

enum State {
    Open,
    /// The peer's Close was given out.
    Closing,
    /// The peer did wrong and the writer was woken to say so.
    Failing(TransportError),
    Over,
}

impl WsReader {
    pub(super) fn new(socket: Arc<Socket>, tail: Vec<u8>, role: Role, limits: &SocketLimits, peer: String) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(limits.read_buffer_bytes)
            .max_message_size(Some(limits.message_bytes))
            .max_frame_size(Some(limits.frame_bytes));
        let inbound = Inbound::new(socket.clone(), limits.read_buffer_bytes);
        let codec = WebSocket::from_partially_read(inbound, tail, role, Some(config));
        Self { codec, socket, peer, state: State::Open }
    }

    fn closed_by_peer(&mut self, frame: Option<CloseFrame>) -> Incoming {
        let code = frame.as_ref().map(|f| u16::from(f.code));
        let reason = frame.map_or_else(String::new, |f| f.reason.as_str().to_owned());
        lock(&self.socket.slot).set_close(CloseReply { code, reason: reason.clone() });
        self.state = State::Closing;
        Incoming::Closed(CloseInfo { code, reason, clean: true })
    }

    /// Has the writer send what the peer is owed for `error`; the error itself is for the next call.
    fn fail(&mut self, error: TransportError) -> Incoming {
        if let Some(code) = error.close_code() {
            let reason = error.to_string();
            lock(&self.socket.slot).set_close(CloseReply { code: Some(code), reason: fitting(&reason).to_owned() });
        }
        self.state = State::Failing(error);
        Incoming::Control
    }

    fn end(&mut self, error: TransportError) -> Result<Incoming, TransportError> {
        self.state = State::Over;
        Err(if self.socket.is_kicked() { TransportError::Stopped } else { error })
    }
}

impl ReadHalf for WsReader {
    fn read(&mut self) -> Result<Incoming, TransportError> {
        match std::mem::replace(&mut self.state, State::Open) {
            State::Open => {}
            State::Closing => {
                self.socket.drain();
                return self.end(TransportError::Closed);
            }
            State::Failing(error) => {
                self.socket.drain();
                return self.end(error);
            }
            State::Over => return self.end(TransportError::Closed),
        }
        loop {
            return Ok(match self.codec.read() {
                Ok(Message::Text(text)) => Incoming::Text(text),
                Ok(Message::Binary(bytes)) => Incoming::Binary(bytes),
                Ok(Message::Ping(payload)) => {
                    lock(&self.socket.slot).push_pong(payload);
                    Incoming::Control
                }
                Ok(Message::Pong(_)) => Incoming::Pong,
                Ok(Message::Close(frame)) => self.closed_by_peer(frame),
                Ok(Message::Frame(_)) => unreachable!("the codec gives raw frames to nobody who reads messages"),
                Err(Error::Io(e)) => match e.kind() {
                    io::ErrorKind::Interrupted => continue,
                    io::ErrorKind::WouldBlock => Incoming::Control,
                    io::ErrorKind::InvalidData => self.fail(tls::io_failed(&self.peer, e)),
                    // The peer's TLS ended without saying so, which for us is an end like that of plain TCP.
                    io::ErrorKind::UnexpectedEof => return self.ended(),
                    _ => {
                        let error = self.socket.error("reading", e);
                        return self.end(error);
                    }
                },
                Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake))
                | Err(Error::ConnectionClosed | Error::AlreadyClosed) => return self.ended(),
                Err(Error::Capacity(CapacityError::MessageTooLong { size, max_size })) => {
                    self.fail(TransportError::TooLarge { size, limit: max_size })
                }
                Err(Error::Utf8(problem)) => self.fail(TransportError::Utf8 { problem }),
                Err(e) => self.fail(TransportError::Protocol { problem: e.to_string() }),
            });
        }
    }
}

impl WsReader {
    fn ended(&mut self) -> Result<Incoming, TransportError> {
        self.state = State::Over;
        if self.socket.is_kicked() {
            return Err(TransportError::Stopped);
        }
        Ok(Incoming::Closed(CloseInfo::end_of_stream()))
    }
}
