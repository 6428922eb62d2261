//! Before the receiving codec: what the peer's [`Intake`] does not admit yet is not passed on, and not received.

use std::io::{self, Read, Write};
use std::sync::Arc;

use super::scan::{Judgement, Scan, Scanned};
use super::socket::{Asking, Inbound};
use crate::transport::TransportError;
use crate::transport::intake::{Intake, Room};

/// The stream of the codec.
pub(super) struct Gate {
    inbound: Inbound,
    intake: Arc<Intake>,
    scan: Scan,
    /// Received and not admitted: at most what was received in one go.
    held: Vec<u8>,
    /// Bytes of the present message.
    message: usize,
    /// A message was passed on whole. Its memory counts until the codec asks for more: then it has been dealt with.
    has_ended: bool,
    asking: Asking,
    /// More was wanted, and is not admitted at present.
    is_shut: bool,
}

/// Why nothing more is admitted at present.
enum Shut {
    Stranger,
    Memory,
}

impl Gate {
    /// `tail`: what was received together with the handshake.
    pub(super) fn new(inbound: Inbound, intake: Arc<Intake>, tail: Vec<u8>) -> Self {
        Self {
            inbound,
            intake,
            scan: Scan::default(),
            held: tail,
            message: 0,
            has_ended: false,
            asking: Asking::Waits,
            is_shut: false,
        }
    }

    /// See [`Inbound::set_asking`].
    pub(super) fn set_asking(&mut self, asking: Asking) {
        self.asking = asking;
        self.inbound.set_asking(asking);
    }

    /// Whether the last reading ended because nothing more is there, or admitted, without waiting.
    pub(super) fn is_dry(&self) -> bool {
        self.is_shut || self.inbound.is_dry()
    }

    /// Whether the last reading ended because nothing more is admitted at present.
    pub(super) fn is_shut(&self) -> bool {
        self.is_shut
    }

    /// How many of these bytes are admitted, and why not more.
    fn admit(&mut self, bytes: &[u8]) -> (usize, Option<Result<Shut, TransportError>>) {
        let stranger = self.intake.stranger_limits();
        let mut passed = 0;
        while passed < bytes.len() {
            let rest = &bytes[passed..];
            let payload = self.scan.payload_in(rest);
            if payload > 0 {
                match self.intake.room(self.message + payload, self.asking == Asking::Waits && passed == 0) {
                    Ok(Room::Yes) => self.message += payload,
                    Ok(Room::Wait) => return (passed, Some(Ok(Shut::Memory))),
                    Err(error) => return (passed, Some(Err(error))),
                }
            }
            match self.scan.next(rest, stranger.as_ref()) {
                Scanned::Frame(n) | Scanned::Payload(n) => passed += n,
                Scanned::Stopped(Judgement::Refuse(error)) => return (passed, Some(Err(error))),
                Scanned::Stopped(Judgement::Pass | Judgement::Wait) => return (passed, Some(Ok(Shut::Stranger))),
            }
            if self.message > 0 && self.scan.is_between_messages() {
                self.message = 0;
                self.has_ended = true;
            }
        }
        (passed, None)
    }

    /// Nothing was admitted: waits if that is allowed.
    fn shut(&mut self, why: Result<Shut, TransportError>) -> io::Result<()> {
        let why = why.map_err(io::Error::other)?;
        if self.intake.is_kicked() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if self.asking != Asking::Waits {
            self.is_shut = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let goes_on = match why {
            Shut::Stranger => self.intake.wait_until_known(),
            // It has waited already, and was kicked.
            Shut::Memory => false,
        };
        if goes_on { Ok(()) } else { Err(io::ErrorKind::ConnectionAborted.into()) }
    }
}

impl Read for Gate {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.is_shut = false;
        if std::mem::take(&mut self.has_ended) {
            self.intake.message_ends();
        }
        loop {
            if self.intake.goes() {
                return Err(io::Error::other(TransportError::Crowded));
            }
            let (passed, why) = if self.held.is_empty() {
                let received = self.inbound.read(buf)?;
                if received == 0 && !self.intake.goes() {
                    return Ok(0);
                }
                let (passed, why) = self.admit(&buf[..received]);
                self.held.extend_from_slice(&buf[passed..received]);
                (passed, why)
            } else {
                let held = std::mem::take(&mut self.held);
                let given = held.len().min(buf.len());
                let (passed, why) = self.admit(&held[..given]);
                buf[..passed].copy_from_slice(&held[..passed]);
                self.held.extend_from_slice(&held[passed..]);
                (passed, why)
            };
            if passed > 0 {
                return Ok(passed);
            }
            if let Some(why) = why {
                self.shut(why)?;
            }
        }
    }
}

impl Write for Gate {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.inbound.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inbound.flush()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.intake.message_ends();
    }
}
