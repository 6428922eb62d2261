//! One client's requests as they come over its connection: heads, and bodies once somebody wants them.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use super::budget::{Budget, Charge};
use super::limits::HttpLimits;
use super::message::BodyError;
use super::request::{self, Framing, Refused, Request};
use super::socket::Socket;

/// Bytes read at a time.
const READ_BYTES: usize = 16 << 10;

/// After an answer to a request that was not read to its end, how long and how much is still read, so that the unread
/// bytes do not reset the connection under the answer: one body of the largest size.
const LINGER: (Duration, usize) = (Duration::from_secs(2), 2 << 20);

/// Why a request could not be read.
pub(super) enum NoRequest {
    /// The client has gone, was idle for too long, or the server stops: nothing to say.
    Over,
    /// The client gets the reason, and the connection is closed.
    Refused(Refused),
}

impl From<Refused> for NoRequest {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

/// What is left on the wire of the body of the present request.
enum Left {
    Nothing,
    All {
        framing: Framing,
        expects_continue: bool,
    },
    /// It is not known where the next request begins.
    Astray,
    /// Nothing: the client has gone within it.
    Gone,
}

/// One connection's socket, and what was read from it and not yet used.
pub(super) struct Wire {
    socket: Socket,
    buffer: Vec<u8>,
    limits: HttpLimits,
    left: Left,
}

impl Wire {
    pub(super) fn new(socket: Socket, limits: HttpLimits) -> Self {
        Self { socket, buffer: Vec::new(), limits, left: Left::Nothing }
    }

    /// The next request; its body stays where it is. Blocks until its head is there, or a deadline.
    pub(super) fn request(&mut self) -> Result<Request, NoRequest> {
        let idle_until = Instant::now() + self.limits.idle_time;
        self.buffer.shrink_to(READ_BYTES);
        loop {
            // An empty line after a body is not the beginning of a request (RFC 9112, section 2.2).
            let empty = 2 * self.buffer.chunks(2).take_while(|line| line == b"\r\n").count();
            self.buffer.drain(..empty);
            if !self.buffer.is_empty() {
                break;
            }
            if !matches!(self.fill(idle_until), Ok(true)) {
                return Err(NoRequest::Over);
            }
        }
        let deadline = Instant::now() + self.limits.head_time;
        let head = loop {
            if let Some((head, length)) = request::head(&self.buffer)? {
                self.buffer.drain(..length);
                break head;
            }
            let most = self.limits.head_bytes;
            if self.buffer.len() > most {
                return Err(Refused::new(431, format!("a request's head has at most {most} bytes")).into());
            }
            self.more(deadline, "head")?;
        };
        self.left = match head.framing {
            Framing::Length(0) => Left::Nothing,
            framing => Left::All { framing, expects_continue: head.expects_continue },
        };
        Ok(head)
    }

    /// Whether the client has gone within the body of the present request.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.left, Left::Gone)
    }

    /// Whether the present request has a body that was not read.
    pub(super) fn has_body(&self) -> bool {
        !matches!(self.left, Left::Nothing)
    }

    /// The body of the present request, whose bytes are charged to `budget` before they are read; empty if it has none
    /// or was read. Blocks until it is there, or `deadline`.
    ///
    /// # Errors
    /// What the client is answered; then the connection is to be closed.
    pub(super) fn body(
        &mut self,
        limit: usize,
        deadline: Instant,
        budget: &Budget,
    ) -> Result<(Vec<u8>, Option<Charge>), BodyError> {
        let left = std::mem::replace(&mut self.left, Left::Astray);
        let Left::All { framing, expects_continue } = left else {
            self.left = left;
            return Ok((Vec::new(), None));
        };
        let limit = limit.min(self.limits.body_bytes);
        let first = match framing {
            Framing::Length(length) if length > limit as u64 => return Err(too_large(limit)),
            Framing::Length(length) => length as usize,
            Framing::Chunked => 0,
        };
        let mut charge = budget.take(first).ok_or_else(busy)?;
        // A client that has begun to send its body does not wait for this.
        if expects_continue && self.buffer.is_empty() {
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n", deadline, &mut || {}).map_err(|_| gone())?;
        }
        let body = match framing {
            Framing::Length(length) => self.take(length as usize, deadline)?,
            Framing::Chunked => self.chunks(limit, deadline, &mut charge)?,
        };
        self.left = Left::Nothing;
        Ok((body, Some(charge)))
    }

    /// Ends the present request. Whether another one can follow it: nothing of its body is still to come.
    pub(super) fn end_request(&mut self) -> bool {
        match std::mem::replace(&mut self.left, Left::Nothing) {
            Left::Nothing => true,
            Left::All { framing: Framing::Length(length), .. } if length <= self.buffer.len() as u64 => {
                self.buffer.drain(..length as usize);
                true
            }
            Left::All { .. } | Left::Astray | Left::Gone => false,
        }
    }

    fn take(&mut self, length: usize, deadline: Instant) -> Result<Vec<u8>, NoRequest> {
        while self.buffer.len() < length {
            self.more(deadline, "body")?;
        }
        let rest = self.buffer.split_off(length);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    fn chunks(&mut self, limit: usize, deadline: Instant, charge: &mut Charge) -> Result<Vec<u8>, BodyError> {
        let mut body = Vec::new();
        loop {
            let (line, size) = loop {
                match request::chunk_size(&self.buffer).map_err(NoRequest::from)? {
                    Some(found) => break found,
                    None => self.more(deadline, "body")?,
                }
            };
            self.buffer.drain(..line);
            if size == 0 {
                break;
            }
            if size > (limit - body.len()) as u64 {
                return Err(too_large(limit));
            }
            if !charge.grow(size as usize) {
                return Err(busy());
            }
            body.extend_from_slice(&self.take(size as usize, deadline)?);
            if self.take(2, deadline)? != b"\r\n" {
                return Err(BodyError { status: 400, why: "a chunk ends with CR LF".to_owned() });
            }
        }
        // Trailers, which nobody uses, up to the empty line.
        let mut trailers = 0;
        loop {
            match self.buffer.iter().position(|b| *b == b'\n') {
                Some(at) => {
                    let line = self.take(at + 1, deadline)?;
                    if line == b"\r\n" || line == b"\n" {
                        return Ok(body);
                    }
                    trailers += line.len();
                }
                None => self.more(deadline, "body")?,
            }
            if trailers + self.buffer.len() > self.limits.head_bytes {
                return Err(BodyError { status: 431, why: "too many trailers".to_owned() });
            }
        }
    }

    /// Reads more of a request that has begun.
    fn more(&mut self, deadline: Instant, what: &str) -> Result<(), NoRequest> {
        match self.fill(deadline) {
            Ok(true) => Ok(()),
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                Err(Refused::new(408, format!("the request's {what} did not come in time")).into())
            }
            Ok(false) | Err(_) => {
                self.left = Left::Gone;
                Err(NoRequest::Over)
            }
        }
    }

    /// Reads once; `false` at the end of the stream, [`ErrorKind::TimedOut`] at the deadline.
    fn fill(&mut self, deadline: Instant) -> io::Result<bool> {
        let old = self.buffer.len();
        self.buffer.resize(old + READ_BYTES, 0);
        let outcome = self.socket.read(&mut self.buffer[old..], deadline);
        self.buffer.truncate(old + outcome.as_ref().copied().unwrap_or(0));
        Ok(outcome? > 0)
    }

    /// Sends all of `bytes`. Blocks while the client does not take them, at most until `deadline`; when it is slow to,
    /// `stalls` is called.
    pub(super) fn send(&mut self, bytes: &[u8], deadline: Instant, stalls: &mut dyn FnMut()) -> io::Result<()> {
        self.socket.send(bytes, deadline, self.limits.stall_time, stalls)
    }

    /// Lets the client read its last answer.
    pub(super) fn linger(&mut self) {
        let (time, bytes) = LINGER;
        let deadline = Instant::now() + time;
        let mut seen = 0;
        if self.socket.half_close(deadline).is_err() {
            return;
        }
        while seen < bytes {
            self.buffer.clear();
            match self.fill(deadline) {
                Ok(true) => seen += self.buffer.len(),
                Ok(false) | Err(_) => return,
            }
        }
    }
}

impl From<NoRequest> for BodyError {
    fn from(none: NoRequest) -> Self {
        match none {
            NoRequest::Over => gone(),
            NoRequest::Refused(Refused { status, why }) => Self { status, why },
        }
    }
}

/// Nobody reads this.
fn gone() -> BodyError {
    BodyError { status: 400, why: "the request ended within its body".to_owned() }
}

fn too_large(limit: usize) -> BodyError {
    BodyError { status: 413, why: format!("the body of this request has at most {limit} bytes") }
}

fn busy() -> BodyError {
    BodyError { status: 503, why: "too many large requests at a time, try again later".to_owned() }
}
