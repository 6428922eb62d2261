//! The write half, whatever is below it: the order of control frames, messages and Close, and the end.

use std::io;
use std::sync::Arc;

use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Bytes, Message, Utf8Bytes};

use super::control::{Control, fitting};
use super::{TransportError, WriteHalf};

/// Where messages go to, in two queues: control frames overtake messages.
pub(super) trait Transmit: Send {
    /// Queues a control frame.
    fn put_control(&mut self, message: Message);

    /// Queues a message; gives the bytes of all messages queued.
    fn put_data(&mut self, message: Message) -> usize;

    /// Sends both queues, control frames first, and whatever the layers below have to say. Blocks while the peer does
    /// not read.
    fn transmit(&mut self) -> io::Result<()>;

    /// Sends what can be sent without blocking; whether everything has left. By default nothing is tried.
    fn try_transmit(&mut self) -> io::Result<bool> {
        Ok(false)
    }

    /// Sends what a transport that never blocks has kept back; whether everything has left.
    fn transmit_rest(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    /// Tells the peer that nothing follows; it may still send.
    fn half_close(&mut self) -> io::Result<()>;
}

pub(super) struct Writer<T> {
    sink: T,
    control: Arc<Control>,
    buffer_bytes: usize,
    state: WriterState,
}

#[derive(PartialEq)]
enum WriterState {
    Open,
    /// Close was sent.
    Closed,
    /// Nothing can be sent any more.
    Broken,
}

impl<T: Transmit> Writer<T> {
    pub(super) fn new(sink: T, control: Arc<Control>, buffer_bytes: usize) -> Self {
        Self { sink, control, buffer_bytes, state: WriterState::Open }
    }

    fn check_open(&self) -> Result<(), TransportError> {
        match self.state {
            WriterState::Open => Ok(()),
            _ if self.control.is_kicked() => Err(TransportError::Stopped),
            _ => Err(TransportError::Closed),
        }
    }

    /// After a kick everything that fails was stopped, whatever the system calls it.
    fn check(&mut self, outcome: io::Result<()>) -> Result<(), TransportError> {
        outcome.map_err(|source| {
            self.state = WriterState::Broken;
            if self.control.is_kicked() {
                TransportError::Stopped
            } else {
                TransportError::Io { doing: "writing", source }
            }
        })
    }

    fn transmit(&mut self) -> Result<(), TransportError> {
        let pongs = self.control.take_pongs();
        if self.state == WriterState::Open {
            pongs.into_iter().for_each(|payload| self.sink.put_control(Message::Pong(payload)));
        }
        let outcome = self.sink.transmit();
        self.check(outcome)
    }

    fn send_close(&mut self, frame: Option<CloseFrame>) -> Result<(), TransportError> {
        self.sink.put_control(Message::Close(frame));
        self.state = WriterState::Closed;
        let outcome = self.sink.transmit();
        self.check(outcome)
    }

    /// Sends the Close that the peer is owed, if it is; then both directions are done.
    fn answer_close(&mut self) -> Result<bool, TransportError> {
        let Some(reply) = self.control.take_close() else {
            return Ok(false);
        };
        if self.state == WriterState::Open {
            self.send_close(reply.code.map(|code| CloseFrame { code: code.into(), reason: reply.reason.into() }))?;
        }
        let outcome = self.sink.half_close();
        self.check(outcome)?;
        Ok(true)
    }
}

impl<T: Transmit> WriteHalf for Writer<T> {
    fn write(&mut self, text: Utf8Bytes) -> Result<(), TransportError> {
        self.check_open()?;
        if self.sink.put_data(Message::Text(text)) > self.buffer_bytes { self.transmit() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), TransportError> {
        if self.state == WriterState::Broken {
            return self.check_open();
        }
        self.transmit()?;
        self.answer_close()?;
        Ok(())
    }

    fn try_flush(&mut self) -> Result<bool, TransportError> {
        self.check_open()?;
        match self.sink.try_transmit() {
            Ok(all_left) => Ok(all_left),
            Err(error) => self.check(Err(error)).map(|()| false),
        }
    }

    fn flush_rest(&mut self) -> Result<bool, TransportError> {
        match self.sink.transmit_rest() {
            Ok(all_left) => Ok(all_left),
            Err(error) => self.check(Err(error)).map(|()| false),
        }
    }

    fn ping(&mut self) -> Result<(), TransportError> {
        self.check_open()?;
        self.sink.put_control(Message::Ping(Bytes::new()));
        Ok(())
    }

    fn close(&mut self, code: u16, reason: &str) -> Result<(), TransportError> {
        self.check_open()?;
        let close_code = CloseCode::from(code);
        if !close_code.is_allowed() {
            return Err(TransportError::CloseCode { code });
        }
        self.transmit()?;
        if !self.answer_close()? {
            self.send_close(Some(CloseFrame { code: close_code, reason: fitting(reason).into() }))?;
        }
        Ok(())
    }
}
