//! Answers as servers send them, below `ureq`, which is stricter.
//!
//! * Interim answers (RFC 9110, section 15.2) may come before the answer proper, with any fields: they are passed over.
//! * The text of a refusal is an extra: it may take [`REFUSAL_TIME`].
//! * A server may refuse before it has read the body, and close (RFC 9112, section 9.6): that a write fails then is no
//!   reason not to read why.

use std::io;
use std::time::{Duration, Instant};

use ureq::Error;
use ureq::Timeout;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

use crate::net::http::head::is_interim;

/// Stands on top of a chain of connectors.
#[derive(Debug)]
pub(super) struct AnswerConnector;

impl<In: Transport> Connector<In> for AnswerConnector {
    type Out = Answers<In>;

    fn connect(&self, _: &ConnectionDetails, chained: Option<In>) -> Result<Option<Answers<In>>, Error> {
        Ok(chained.map(|inner| Answers { inner, answered: false, refused_until: None, unsent: None }))
    }
}

/// A connection for one request.
#[derive(Debug)]
pub(super) struct Answers<T> {
    inner: T,
    /// The answer proper has begun.
    answered: bool,
    /// Of a refusal: until when its text may come.
    refused_until: Option<Instant>,
    /// Why the rest of the request could not be sent.
    unsent: Option<io::Error>,
}

/// How long a server may take for the text of a refusal after its status. What it says by that counts without.
const REFUSAL_TIME: Duration = Duration::from_secs(2);

impl<T: Transport> Transport for Answers<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        if self.unsent.is_some() {
            return Ok(());
        }
        match self.inner.transmit_output(amount, timeout) {
            Err(Error::Io(error)) if is_closed(&error) => {
                self.unsent = Some(error);
                Ok(())
            }
            sent => sent,
        }
    }

    fn await_input(&mut self, mut timeout: NextTimeout) -> Result<bool, Error> {
        if let Some(until) = self.refused_until {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Timeout(timeout.reason));
            }
            timeout.after = timeout.after.min(left.into());
        }
        // Once each time, because only the caller knows what is left of the deadline.
        let more = self.inner.await_input(timeout);
        if !self.answered
            && matches!(more, Ok(false) | Err(Error::Io(_)))
            && let Some(error) = self.unsent.take()
        {
            return Err(error.into());
        }
        let mut more = more?;
        // The caller waits for the word to go on, and reads it itself.
        let awaits_100 = timeout.reason == Timeout::Await100;
        while !self.answered {
            let buffers = self.inner.buffers();
            match begins(buffers.input()) {
                Begins::Interim(_) if awaits_100 && buffers.input().get(9..12) == Some(b"100") => break,
                Begins::Interim(length) => {
                    buffers.input_consume(length);
                    if awaits_100 && buffers.input().is_empty() {
                        more = self.inner.await_input(timeout)?;
                    }
                }
                Begins::Unknown => break,
                Begins::Answer => {
                    self.answered = true;
                    if matches!(buffers.input().get(9), Some(b'4' | b'5')) {
                        self.refused_until = Some(Instant::now() + REFUSAL_TIME);
                    }
                    // What was not sent was not taken, whatever the server says.
                    if let Some(error) = self.unsent.take_if(|_| buffers.input().get(9) == Some(&b'2')) {
                        return Err(error.into());
                    }
                }
            }
        }
        Ok(more)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// What is first in what a server has sent.
#[derive(Debug, PartialEq, Eq)]
enum Begins {
    /// A whole interim answer of so many bytes.
    Interim(usize),
    /// That takes more bytes.
    Unknown,
    /// The answer, or no HTTP at all.
    Answer,
}

fn begins(input: &[u8]) -> Begins {
    const VERSION: &[u8] = b"HTTP/1.";
    let known = input.len().min(VERSION.len());
    match (input[..known] == VERSION[..known], input.get(9..12)) {
        (false, _) => Begins::Answer,
        (true, None) => Begins::Unknown,
        (true, Some(_)) if is_interim(input) => {
            let ends = |at: &usize| input[*at] == b'\n' && matches!(input[at + 1..], [b'\n', ..] | [b'\r', b'\n', ..]);
            match (0..input.len()).find(ends) {
                Some(at) => Begins::Interim(at + if input[at + 1] == b'\r' { 3 } else { 2 }),
                None => Begins::Unknown,
            }
        }
        (true, Some(_)) => Begins::Answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interim_answers_are_told_from_the_answer_at_every_byte() {
        for (head, is_interim) in [
            ("HTTP/1.1 100 Continue\r\n\r\n", true),
            ("HTTP/1.1 100 Continue\r\nServer: x\r\nDate: y\r\n\r\n", true),
            ("HTTP/1.0 103 \nlink: x\n\n", true),
            ("HTTP/1.1 101 Switching Protocols\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\n\r\n", false),
            ("HTTP/2 100\r\n\r\n", false),
            ("nonsense", false),
        ] {
            let with_more = format!("{head}HTTP/1.1 200 OK\r\n");
            let expected = if is_interim { Begins::Interim(head.len()) } else { Begins::Answer };
            assert_eq!(begins(with_more.as_bytes()), expected, "{head}");
            for cut in 0..head.len() {
                let found = begins(&head.as_bytes()[..cut]);
                assert!(found == Begins::Unknown || (!is_interim && found == Begins::Answer), "{head} {cut}");
            }
        }
    }
}
