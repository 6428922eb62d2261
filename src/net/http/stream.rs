//! Sends a body that is made while it is sent: in chunks, or with its length if all of it fits in one.

use std::io::{self, ErrorKind, Write};
use std::time::{Duration, Instant};

use super::message::HttpResponse;

/// Bytes of a chunk, and what is made before anything is sent: a body that is smaller leaves with its length.
const CHUNK_BYTES: usize = 64 << 10;

/// How many bytes a client takes in a second at the least. A page of 64 MiB may take a quarter of an hour, over a
/// line of half a megabit.
const PACE: u64 = 64 << 10;

/// What a response is sent with.
pub(super) struct Sending<'a> {
    /// Writes to the client until the moment.
    pub put: &'a dyn Fn(&[u8], Instant) -> io::Result<()>,
    pub date: &'a str,
    pub keep_alive: bool,
    /// Whether the client knows chunks (HTTP/1.1). For others the end of the connection is the end of the body.
    pub chunks: bool,
    /// How long the client may take for the first chunk, before it is held to its pace.
    pub write_time: Duration,
}

/// Sends the response, whose body `make` writes. Blocks on the client, and in what `make` blocks in.
///
/// # Errors
/// The client did not take it in time or has gone, or `make` failed. Unless all was well, the connection has to be
/// broken: the client sees that the body is not whole.
pub(super) fn send(
    response: &HttpResponse,
    make: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    sending: &Sending<'_>,
) -> io::Result<()> {
    let mut body = Body { response, sending, start: Instant::now(), sent: 0, begun: false, buffer: Vec::new() };
    make(&mut body)?;
    body.finish()
}

struct Body<'a> {
    response: &'a HttpResponse,
    sending: &'a Sending<'a>,
    start: Instant,
    sent: u64,
    /// The head has been sent.
    begun: bool,
    buffer: Vec<u8>,
}

impl Body<'_> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        let by_now = Duration::from_secs(self.sent / PACE);
        (self.sending.put)(bytes, self.start + self.sending.write_time + by_now)?;
        self.sent += bytes.len() as u64;
        Ok(())
    }

    /// Sends what is buffered as one chunk.
    fn chunk(&mut self) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(self.buffer.len() + 512);
        let Sending { date, keep_alive, chunks, .. } = *self.sending;
        if !self.begun {
            bytes.extend(self.response.head(date, keep_alive, chunks.then_some("chunked"), None));
            self.begun = true;
        }
        if chunks {
            write!(bytes, "{:x}\r\n", self.buffer.len())?;
        }
        bytes.append(&mut self.buffer);
        if chunks {
            bytes.extend(b"\r\n");
        }
        self.put(&bytes)
    }

    fn finish(mut self) -> io::Result<()> {
        let Sending { date, keep_alive, chunks, .. } = *self.sending;
        if !self.begun {
            let mut bytes = self.response.head(date, keep_alive, None, Some(self.buffer.len()));
            bytes.append(&mut self.buffer);
            return self.put(&bytes);
        }
        if !self.buffer.is_empty() {
            self.chunk()?;
        }
        if chunks { self.put(b"0\r\n\r\n") } else { Ok(()) }
    }
}

impl Write for Body<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = CHUNK_BYTES - self.buffer.len();
        let taken = &bytes[..bytes.len().min(room)];
        self.buffer.extend_from_slice(taken);
        if self.buffer.len() == CHUNK_BYTES {
            self.chunk()?;
        }
        if taken.is_empty() && !bytes.is_empty() { Err(ErrorKind::WriteZero.into()) } else { Ok(taken.len()) }
    }

    /// Does nothing: what is written leaves by the chunk.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn sent(chunks: bool, make: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> (io::Result<()>, String) {
        let out = RefCell::new(Vec::new());
        let put = |bytes: &[u8], _: Instant| {
            out.borrow_mut().extend_from_slice(bytes);
            Ok(())
        };
        let sending = Sending { put: &put, date: "D", keep_alive: chunks, chunks, write_time: Duration::ZERO };
        let done = send(&HttpResponse::text(200, ""), make, &sending);
        (done, String::from_utf8(out.into_inner()).unwrap())
    }

    #[test]
    fn a_small_body_has_a_length_and_a_large_one_comes_in_chunks() {
        let (done, small) = sent(true, |out| out.write_all(b"a").and_then(|()| out.write_all(b"bc")));
        done.unwrap();
        assert!(small.contains("\r\nContent-Length: 3\r\n") && small.ends_with("\r\n\r\nabc"), "{small}");
        let large = "x".repeat(CHUNK_BYTES + 5);
        let (done, text) = sent(true, |out| out.write_all(large.as_bytes()));
        done.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("\r\nTransfer-Encoding: chunked") && !head.contains("Content-Length"), "{head}");
        let (first, rest) = large.split_at(CHUNK_BYTES);
        assert_eq!(body, format!("10000\r\n{first}\r\n5\r\n{rest}\r\n0\r\n\r\n"));
        let (done, text) = sent(false, |out| out.write_all(large.as_bytes()));
        done.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with("Connection: close") && !head.contains("Length") && body == large, "{head}");
    }

    #[test]
    fn a_body_that_cannot_be_made_has_no_end() {
        let (done, text) = sent(true, |out| {
            out.write_all(&[b'x'; CHUNK_BYTES])?;
            Err(ErrorKind::TimedOut.into())
        });
        assert_eq!(done.unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(text.ends_with("x\r\n"), "the last chunk, which is empty, is missing");
        let (done, text) = sent(true, |_| Err(ErrorKind::TimedOut.into()));
        assert!(done.is_err() && text.is_empty());
    }
}
