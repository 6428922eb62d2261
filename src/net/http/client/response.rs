//! What is received: a whole answer, and a body that is on its way.

use std::io::{self, Read};

use ureq::http::HeaderValue;

use super::error::HttpError;
use crate::base::clock::now;
use crate::base::text::truncated;
use crate::net::http::date::longest_wait;
use crate::net::http::excerpt::said;
use crate::net::http::head::first;
use crate::ops::redact::OneLine;

/// Bytes of an answer that is kept in memory: 10 MiB, the limit of the Python uploader.
pub const ANSWER_BYTES: u64 = 10 << 20;

/// Bytes of a refusal's body that are looked at for its error's text.
const EXCERPT_BYTES: usize = 500;

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// Headers in order, names in lower case; a name may occur more than once.
    pub headers: Vec<(String, String)>,
    /// The body, at most [`ANSWER_BYTES`]; as it came if its coding is not known.
    pub body: Vec<u8>,
    pub(super) url: String,
}

impl Response {
    /// This answer if its status is 2xx.
    ///
    /// # Errors
    /// [`HttpError::Status`] with the beginning of the body.
    pub fn ok(self) -> Result<Self, HttpError> {
        match self.status {
            200..300 => Ok(self),
            _ => Err(self.refused()),
        }
    }

    /// The error that this answer is.
    pub(super) fn refused(self) -> HttpError {
        let Self { status, headers, body, url } = self;
        if let (301 | 302 | 303 | 307 | 308, Some(to)) = (status, first(&headers, "location")) {
            let to = OneLine(truncated(to, EXCERPT_BYTES));
            let why = format!("it leads to \"{to}\"; give that address, if it is right");
            return HttpError::Redirect { url, status, why };
        }
        let retry_after = longest_wait(&headers, now().wall.as_secs());
        HttpError::Status { status, excerpt: excerpt(&body), retry_after, url }
    }

    /// The body as text; what is not UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body read as JSON.
    ///
    /// # Errors
    /// [`HttpError::Answer`] if it is not.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, HttpError> {
        serde_json::from_slice(&self.body)
            .map_err(|error| HttpError::Answer { url: self.url.clone(), why: format!("bad JSON: {error}") })
    }
}

fn excerpt(body: &[u8]) -> String {
    match said(body, EXCERPT_BYTES) {
        said if said.is_empty() => said,
        said => format!(": {said}"),
    }
}

/// The body as it comes from the connection; its errors are told from those of the coding above it.
pub(super) struct Received<R>(pub(super) R);

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Below(pub(super) io::Error);

impl<R: Read> Read for Received<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| io::Error::new(error.kind(), Below(error)))
    }
}

/// A field's value as text: of UTF-8, or else of Latin-1, as HTTP once had it.
pub(super) fn text_of(value: &HeaderValue) -> String {
    match std::str::from_utf8(value.as_bytes()) {
        Ok(text) => text.to_owned(),
        Err(_) => value.as_bytes().iter().copied().map(char::from).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_that_is_not_followed_names_its_target() {
        let moved = |headers: &[(&str, &str)]| Response {
            status: 308,
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            body: b"gone".to_vec(),
            url: "http://old/".to_owned(),
        };
        let error = moved(&[("location", "https://new.example/\u{202e}x")]).ok().unwrap_err().to_string();
        assert!(error.contains("answered 308") && error.contains("\"https://new.example/\\u{202e}x\""), "{error}");
        assert_eq!(moved(&[]).ok().unwrap_err().to_string(), "http://old/ answered 308: gone");
    }

    #[test]
    fn what_a_server_says_is_quoted_in_one_line() {
        assert_eq!(excerpt(b" no\r\n\x1b[2J\xe2\x80\xae "), ": no\\r\\n\\u{1b}[2J\\u{202e}");
        assert_eq!(excerpt(b"\n"), "");
    }
}
