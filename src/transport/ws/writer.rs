//! The write half: makes frames, and is the only one that sends.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;

use tungstenite::protocol::Role;
use tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tungstenite::protocol::frame::{CloseFrame, Frame};
use tungstenite::{Bytes, Utf8Bytes};

use super::socket::{Outbound, Socket};
use crate::base::lock::lock;
use crate::transport::control::fitting;
use crate::transport::{SocketLimits, TransportError, WriteHalf};

pub(super) struct WsWriter {
    outbound: Outbound,
    socket: Arc<Socket>,
    masks: Option<Masks>,
    /// Frames of messages, in order.
    data: Vec<u8>,
    /// Pings and pongs, which go before them.
    control: Vec<u8>,
    buffer_bytes: usize,
    state: State,
}

#[derive(PartialEq)]
enum State {
    Open,
    /// Close was sent.
    Closed,
    /// Nothing can be sent any more.
    Broken,
}

/// What a client masks its frames with (RFC 6455, 5.3): the keyed hash of a counter, which nobody can foretell who does not
/// know the key.
struct Masks {
    key: RandomState,
    count: u64,
}

impl Masks {
    fn next(&mut self) -> [u8; 4] {
        self.count += 1;
        let [a, b, c, d, ..] = self.key.hash_one(self.count).to_le_bytes();
        [a, b, c, d]
    }
}

impl WsWriter {
    pub(super) fn new(socket: Arc<Socket>, role: Role, limits: &SocketLimits) -> Self {
        Self {
            outbound: Outbound::new(socket.clone()),
            socket,
            masks: (role == Role::Client).then(|| Masks { key: RandomState::new(), count: 0 }),
            data: Vec::new(),
            control: Vec::new(),
            buffer_bytes: limits.write_buffer_bytes,
            state: State::Open,
        }
    }

    fn check_open(&self) -> Result<(), TransportError> {
        match self.state {
            State::Open => Ok(()),
            _ if self.socket.is_kicked() => Err(TransportError::Stopped),
            _ => Err(TransportError::Closed),
        }
    }

    fn put(buffer: &mut Vec<u8>, masks: &mut Option<Masks>, mut frame: Frame) {
        frame.header_mut().mask = masks.as_mut().map(Masks::next);
        buffer.reserve(frame.len());
        frame.format(buffer).expect("writing to a vector does not fail");
    }

    /// Sends pings and pongs, then the messages written so far.
    fn send(&mut self) -> Result<(), TransportError> {
        let pongs = lock(&self.socket.slot).take_pongs();
        if self.state == State::Open {
            for payload in pongs {
                Self::put(&mut self.control, &mut self.masks, Frame::pong(payload));
            }
        }
        let mut outcome = Ok(());
        for buffer in [&mut self.control, &mut self.data] {
            if outcome.is_ok() && !buffer.is_empty() {
                outcome = self.outbound.send(buffer);
            }
            buffer.clear();
            // One large message must not cost its size for as long as the connection lives.
            buffer.shrink_to(2 * self.buffer_bytes);
        }
        self.sent(outcome)
    }

    fn sent(&mut self, outcome: io::Result<()>) -> Result<(), TransportError> {
        outcome.map_err(|e| {
            self.state = State::Broken;
            self.socket.error("writing", e)
        })
    }

    fn send_close(&mut self, frame: Option<CloseFrame>) -> Result<(), TransportError> {
        Self::put(&mut self.control, &mut self.masks, Frame::close(frame));
        self.send()?;
        self.state = State::Closed;
        Ok(())
    }

    /// The close that the peer is owed, if any; after it, both directions are done.
    fn answer_close(&mut self) -> Result<bool, TransportError> {
        let Some(reply) = lock(&self.socket.slot).take_close() else {
            return Ok(false);
        };
        if self.state == State::Open {
            self.send_close(reply.code.map(|code| CloseFrame { code: code.into(), reason: reply.reason.into() }))?;
        }
        let outcome = self.outbound.half_close();
        self.sent(outcome)?;
        Ok(true)
    }
}

impl WriteHalf for WsWriter {
    fn write(&mut self, text: Utf8Bytes) -> Result<(), TransportError> {
        self.check_open()?;
        Self::put(&mut self.data, &mut self.masks, Frame::message(text, OpCode::Data(Data::Text), true));
        if self.data.len() > self.buffer_bytes { self.send() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), TransportError> {
        if self.state == State::Broken {
            return self.check_open();
        }
        self.send()?;
        if !self.answer_close()? {
            // For what TLS itself has to say when there was nothing else.
            let outcome = self.outbound.send(&[]);
            self.sent(outcome)?;
        }
        Ok(())
    }

    fn ping(&mut self) -> Result<(), TransportError> {
        self.check_open()?;
        Self::put(&mut self.control, &mut self.masks, Frame::ping(Bytes::new()));
        Ok(())
    }

    fn close(&mut self, code: u16, reason: &str) -> Result<(), TransportError> {
        self.check_open()?;
        let close_code = CloseCode::from(code);
        if !close_code.is_allowed() {
            return Err(TransportError::CloseCode { code });
        }
        self.send()?;
        if !self.answer_close()? {
            self.send_close(Some(CloseFrame { code: close_code, reason: fitting(reason).into() }))?;
        }
        Ok(())
    }
}
