//! What a fuzzer gives the reader of WebSocket frames, and what must hold of its answers.
//!
//! The peer is the other end of a pair of sockets of this process, whose bytes are there before they are read, so
//! nothing blocks and no thread is needed.

use std::io::{self, Write};
use std::net::{Shutdown as Half, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tungstenite::protocol::Role;

use super::frames::Decoder;
use super::intake_of;
use super::socket::{Caller, Inbound, Socket};
use crate::transport::reader::Reader;
use crate::transport::{Incoming, Intake, IntakeLimits, ReadHalf, SocketLimits};

/// Small, so that a short input gets beyond them.
const LIMITS: SocketLimits = SocketLimits {
    message_bytes: 2000,
    frame_bytes: 2000,
    handshake_bytes: 0,
    read_buffer_bytes: 4096,
    write_buffer_bytes: 4096,
};
const STRANGER: IntakeLimits = IntakeLimits { message_bytes: 100, bytes: 1000 };

/// Reads bytes as what a peer sends after its handshake: as a thread does, a part of them having come with the
/// handshake, and as a poll does, at once and in pieces. The first byte says which side the peer is and whether it is
/// a stranger, the second one how long the pieces are.
///
/// # Panics
/// If a message is larger than it may be, if the ways differ in what is read and how that ends, or if a pair of
/// sockets cannot be had.
pub fn frames(bytes: &[u8]) {
    let [kind, piece, bytes @ ..] = bytes else { return };
    let piece = usize::from(*piece).max(1);
    if kind & 1 == 1 {
        let (whole, pieces) = (by_thread(bytes, 0, Role::Client), by_thread(bytes, piece, Role::Client));
        assert_eq!(whole, pieces, "what comes with the handshake changes nothing of what a client reads");
        return;
    }
    let is_stranger = kind & 2 == 2;
    let whole = by_poll(bytes, bytes.len().max(1), is_stranger);
    assert_eq!(whole, by_poll(bytes, piece, is_stranger), "as they come changes nothing of what is read");
    if !is_stranger {
        assert_eq!(whole, by_thread(bytes, piece, Role::Server), "a thread reads what a poll reads");
    }
}

/// What was read, in order, and what ended it.
#[derive(Debug, Default, PartialEq)]
struct Story {
    read: Vec<Incoming>,
    /// How much of that before the stranger was known.
    by_stranger: usize,
    end: String,
}

impl Story {
    fn add(&mut self, incoming: Incoming) {
        let size = match &incoming {
            Incoming::Text(text) => text.len(),
            Incoming::Binary(bytes) => bytes.len(),
            _ => 0,
        };
        assert!(size <= LIMITS.message_bytes, "a message of {size} bytes");
        self.read.push(incoming);
    }
}

/// The peer's end, and ours with its intake.
fn pair() -> io::Result<(UnixStream, Arc<Socket>, Arc<Intake>)> {
    let (peer, ours) = UnixStream::pair()?;
    let socket = Arc::new(Socket::new(Arc::new(TcpStream::from(OwnedFd::from(ours))), None));
    let intake = intake_of(&socket);
    Ok((peer, socket, intake))
}

/// With two threads, the reader blocks; here never, because the peer has sent all and ended.
fn by_thread(bytes: &[u8], with_handshake: usize, role: Role) -> Story {
    let (mut peer, socket, intake) = pair().expect("a pair of sockets");
    let (tail, bytes) = bytes.split_at(with_handshake.min(bytes.len()));
    peer.write_all(bytes).expect("the buffer of a socket has room for an input");
    peer.shutdown(Half::Write).expect("the end of the peer's stream");
    let decoder = Decoder::new(socket.clone(), tail.to_vec(), role, (&LIMITS, intake));
    let mut reader = Reader::new(decoder, socket.control.clone(), String::new());
    let mut story = Story::default();
    story.end = loop {
        match reader.read() {
            Ok(incoming) => story.add(incoming),
            Err(error) => break error.to_string(),
        }
    };
    story
}

/// As the poll does; at the end of the bytes the stranger is known.
fn by_poll(bytes: &[u8], piece: usize, is_stranger: bool) -> Story {
    let (mut peer, socket, intake) = pair().expect("a pair of sockets");
    if is_stranger {
        intake.stranger(STRANGER);
    }
    let inbound = Inbound::new(socket.clone(), Caller::Poll, 0);
    let decoder = Decoder::polled(inbound, socket.clone(), (&LIMITS, intake.clone()));
    let mut reader = Reader::new(decoder, socket.control.clone(), String::new());
    let mut story = Story::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        // While the reader is shut, nothing is read, and a socket holds some 280 pieces only.
        let next = if reader.is_shut() { rest.len() } else { piece.min(rest.len()) };
        peer.write_all(&rest[..next]).expect("the buffer of a socket has room for an input");
        rest = &rest[next..];
        if let Some(end) = read_now(&mut reader, &mut story) {
            story.end = end;
            return story;
        }
    }
    if is_stranger {
        story.by_stranger = story.read.len();
        intake.known();
    }
    peer.shutdown(Half::Write).expect("the end of the peer's stream");
    story.end = read_now(&mut reader, &mut story).expect("a stream that has ended gives an end");
    story
}

/// Reads what there is, as long as the poll would come back; gives the error, if one comes.
fn read_now(reader: &mut impl ReadHalf, story: &mut Story) -> Option<String> {
    let descriptor = reader.descriptor().expect("a socket can be polled");
    loop {
        match reader.read_now() {
            Ok(Some(incoming)) => story.add(incoming),
            Ok(None) if reader.is_shut() => return None,
            Ok(None) => {
                let mut polled = [PollFd::from_borrowed_fd((*descriptor).as_fd(), PollFlags::IN)];
                if poll(&mut polled, Some(&Timespec::default())).expect("a poll that does not wait") == 0 {
                    return None;
                }
            }
            Err(error) => return Some(error.to_string()),
        }
    }
}
