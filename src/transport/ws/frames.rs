//! Messages to frames and frames to messages, on either side of a [`Socket`].

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::protocol::{Role, WebSocket, WebSocketConfig};
use tungstenite::{Error, Message};

use super::gate::Gate;
use super::socket::{Asking, Caller, Inbound, Outbound, Socket};
use crate::transport::SocketLimits;
use crate::transport::intake::Intake;
use crate::transport::reader::Receive;
use crate::transport::writer::Transmit;

/// tungstenite's codec, of which only the receiving side is used.
pub(super) struct Decoder {
    /// None once nothing is received any more: then the memory of what was begun is free for others.
    codec: Option<WebSocket<Gate>>,
    socket: Arc<Socket>,
}

/// The codec's buffer on a polled connection, which need not save system calls.
const POLLED_BUFFER_BYTES: usize = 512;

impl Decoder {
    /// `tail`: what was received together with the handshake.
    pub(super) fn new(
        socket: Arc<Socket>,
        tail: Vec<u8>,
        role: Role,
        (limits, intake): (&SocketLimits, Arc<Intake>),
    ) -> Self {
        let inbound = Inbound::new(socket.clone(), Caller::Threads, limits.read_buffer_bytes);
        Self::over(Gate::new(inbound, intake, tail), socket, role, limits)
    }

    /// Goes on with what has shaken hands.
    pub(super) fn polled(
        inbound: Inbound,
        socket: Arc<Socket>,
        (limits, intake): (&SocketLimits, Arc<Intake>),
    ) -> Self {
        let limits = SocketLimits { read_buffer_bytes: POLLED_BUFFER_BYTES, ..*limits };
        Self::over(Gate::new(inbound, intake, Vec::new()), socket, Role::Server, &limits)
    }

    fn over(gate: Gate, socket: Arc<Socket>, role: Role, limits: &SocketLimits) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(limits.read_buffer_bytes)
            .max_message_size(Some(limits.message_bytes))
            .max_frame_size(Some(limits.frame_bytes));
        Self { codec: Some(WebSocket::from_raw_socket(gate, role, Some(config))), socket }
    }
}

impl Decoder {
    /// Without blocking.
    fn receive_by(&mut self, asking: Asking) -> Result<Option<Message>, Error> {
        let codec = self.codec.as_mut().ok_or(Error::AlreadyClosed)?;
        codec.get_mut().set_asking(asking);
        let received = codec.read();
        let inbound = codec.get_mut();
        inbound.set_asking(Asking::Waits);
        match received {
            Err(Error::Io(e)) if e.kind() == io::ErrorKind::WouldBlock && inbound.is_dry() => Ok(None),
            received => received.map(Some),
        }
    }
}

impl Receive for Decoder {
    fn receive(&mut self) -> Result<Message, Error> {
        self.codec.as_mut().ok_or(Error::AlreadyClosed)?.read()
    }

    fn receive_ready(&mut self) -> Result<Option<Message>, Error> {
        self.receive_by(Asking::Never)
    }

    fn receive_now(&mut self) -> Result<Option<Message>, Error> {
        self.receive_by(Asking::Now)
    }

    fn descriptor(&self) -> Option<Arc<dyn AsFd + Send + Sync>> {
        Some(self.socket.descriptor())
    }

    fn drain(&mut self) {
        self.codec = None;
        self.socket.drain();
    }

    fn is_shut(&self) -> bool {
        self.codec.as_ref().is_some_and(|codec| codec.get_ref().is_shut())
    }

    fn drain_now(&mut self) -> bool {
        self.codec = None;
        self.socket.drain_now()
    }

    fn shut(&mut self) {
        self.socket.shut();
    }
}

/// Collects frames in two buffers and sends them.
pub(super) struct Encoder {
    outbound: Outbound,
    masks: Option<Masks>,
    control: Vec<u8>,
    data: Vec<u8>,
    /// What a buffer may keep between two uses, so that one large message does not cost its size for ever.
    kept_bytes: usize,
}

impl Encoder {
    pub(super) fn new(outbound: Outbound, role: Role, limits: &SocketLimits) -> Self {
        Self {
            outbound,
            masks: (role == Role::Client).then(|| Masks { key: RandomState::new(), count: 0 }),
            control: Vec::new(),
            data: Vec::new(),
            kept_bytes: 2 * limits.write_buffer_bytes,
        }
    }
}

fn put(buffer: &mut Vec<u8>, masks: &mut Option<Masks>, message: Message) {
    let mut frame = match message {
        Message::Text(text) => Frame::message(text, OpCode::Data(Data::Text), true),
        Message::Binary(bytes) => Frame::message(bytes, OpCode::Data(Data::Binary), true),
        Message::Ping(payload) => Frame::ping(payload),
        Message::Pong(payload) => Frame::pong(payload),
        Message::Close(frame) => Frame::close(frame),
        Message::Frame(frame) => frame,
    };
    frame.header_mut().mask = masks.as_mut().map(Masks::next);
    buffer.reserve(frame.len());
    frame.format(buffer).expect("writing to a vector does not fail");
}

impl Transmit for Encoder {
    fn put_control(&mut self, message: Message) {
        put(&mut self.control, &mut self.masks, message);
    }

    fn put_data(&mut self, message: Message) -> usize {
        put(&mut self.data, &mut self.masks, message);
        self.data.len()
    }

    fn transmit(&mut self) -> io::Result<()> {
        // Together if they are small, because each call is a packet of its own.
        if !self.control.is_empty() && self.data.len() <= self.kept_bytes {
            self.control.append(&mut self.data);
        }
        for buffer in [&mut self.control, &mut self.data] {
            if !buffer.is_empty() {
                self.outbound.send_all_of(buffer)?;
                buffer.shrink_to(self.kept_bytes);
            }
        }
        self.outbound.send(&[])
    }

    fn try_transmit(&mut self) -> io::Result<bool> {
        // In one buffer, so that what is left of a frame goes before everything else.
        self.control.append(&mut self.data);
        self.outbound.try_send_all_of(&mut self.control)
    }

    fn transmit_rest(&mut self) -> io::Result<bool> {
        self.outbound.send_rest()
    }

    fn half_close(&mut self) -> io::Result<()> {
        self.outbound.half_close()
    }
}

/// What a client masks its frames with (RFC 6455, 5.3): the keyed hash of a counter, which nobody can foretell who does
/// not know the key.
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
