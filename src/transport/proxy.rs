//! A way through an HTTP proxy: a `CONNECT` tunnel, in which the connection is made as if there were none.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use tungstenite::http::StatusCode;
use tungstenite::http::uri::Authority;

use super::handshake::{Bounded, bounded};
use super::url::WsUrl;
use super::{TransportError, USER_AGENT};
use crate::base::shutdown::{Level, Shutdown};
use crate::net::dial::{DialError, dial};
use crate::net::http::head::{HeadText, Received, ResponseHead, receive_answer};
use crate::net::{address, percent};

/// An HTTP proxy. Neither its `Debug` nor any error shows user or password.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    /// `http://host:port`, for people.
    name: String,
    /// The value of `Proxy-Authorization`.
    authorization: Option<String>,
}

impl Proxy {
    /// Reads `http://[user:password@]host:port`; user and password may be percent-encoded.
    ///
    /// # Errors
    /// [`TransportError::Url`], which shows nothing before the last `@`.
    pub fn parse(url: &str) -> Result<Self, TransportError> {
        let shown = url.rsplit_once('@').map_or(url, |(_, behind)| behind);
        let bad = |problem: &str| TransportError::Url {
            url: shown.to_owned(),
            problem: format!("{problem}; expected http://[user:password@]host:port"),
        };
        let rest = url.strip_prefix("http://").ok_or_else(|| bad("the scheme of a proxy is not http"))?;
        let (user, address) = rest.rsplit_once('@').map_or((None, rest), |(user, address)| (Some(user), address));
        let authority: Authority = address
            .strip_suffix('/')
            .unwrap_or(address)
            .parse()
            .map_err(|_| bad("what should be host:port has other parts or characters"))?;
        let host = address::without_brackets(authority.host());
        if host.is_empty() {
            return Err(bad("the proxy has no host"));
        }
        let port = authority.port_u16().filter(|port| *port != 0).ok_or_else(|| bad("the proxy has no port"))?;
        let authorization = user.map(basic).transpose().map_err(bad)?;
        Ok(Self { host: host.to_owned(), port, name: format!("http://{authority}"), authorization })
    }

    /// A connection to the server of `url` by way of the proxy; `limit` bounds the proxy's answer, in bytes.
    pub(super) fn tunnel(
        &self,
        url: &WsUrl,
        limit: usize,
        deadline: Instant,
        shutdown: &Shutdown,
        level: Level,
    ) -> Result<Arc<TcpStream>, TransportError> {
        let peer = format!("proxy {}", self.name);
        let tcp = dial(&self.host, self.port, deadline, shutdown, level).map_err(|error| match error {
            DialError::Cancelled => TransportError::Stopped,
            DialError::Timeout { after, .. } => {
                TransportError::Timeout { doing: "connecting", peer: peer.clone(), after }
            }
            error => self.wrong(error.to_string()),
        })?;
        let tcp = Arc::new(tcp);
        bounded(&tcp, &peer, deadline, shutdown, level, |socket| self.ask(socket, &url.host_and_port(), limit))?;
        Ok(tcp)
    }

    fn ask(&self, socket: &mut Bounded<'_>, target: &str, limit: usize) -> Result<(), TransportError> {
        let mut request = HeadText::new(format_args!("CONNECT {target} HTTP/1.1"))
            .with("Host", target)
            .with("User-Agent", USER_AGENT);
        if let Some(authorization) = &self.authorization {
            request = request.with("Proxy-Authorization", authorization);
        }
        socket.write_all(request.end().as_bytes()).map_err(|source| self.broke(source))?;
        let is_http = |start: &[u8]| b"HTTP/1.".starts_with(&start[..start.len().min(7)]);
        let head = match receive_answer(&mut ByteByByte(socket), limit, is_http).map_err(|source| self.broke(source))? {
            Received::Whole { head, .. } => head,
            Received::TooLong => {
                return Err(self.wrong(format!("the head of its answer is over the limit of {limit} bytes")));
            }
            Received::Ended => return Err(self.wrong("it closed the connection instead of answering".to_owned())),
            Received::NotHttp => return Err(self.wrong("its answer is not HTTP/1".to_owned())),
        };
        let answer = ResponseHead::parse(&head).map_err(|e| self.wrong(format!("its answer is not HTTP/1: {e}")))?;
        match answer.status {
            200..=299 => Ok(()),
            407 if self.authorization.is_none() => Err(self
                .wrong("it wants a user and a password (status 407); give http://user:password@host:port".to_owned())),
            407 => Err(self.wrong("it refuses the user or the password (status 407)".to_owned())),
            status => {
                // Its own words might repeat what it was sent.
                let words = StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason());
                Err(self.wrong(format!("no tunnel to {target}: status {status} {}", words.unwrap_or("(unknown)"))))
            }
        }
    }

    fn wrong(&self, problem: String) -> TransportError {
        TransportError::Proxy { proxy: self.name.clone(), problem }
    }

    /// A time-out stays one, because [`bounded`] tells of it.
    fn broke(&self, source: io::Error) -> TransportError {
        match source.kind() {
            io::ErrorKind::TimedOut => TransportError::Io { doing: "proxy", source },
            _ => self.wrong(source.to_string()),
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Proxy").field(&self.name).finish()
    }
}

/// Takes one byte at a time, so that nothing behind the proxy's answer is taken from the tunnel.
struct ByteByByte<'s, 't>(&'s mut Bounded<'t>);

impl Read for ByteByByte<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let one = buffer.len().min(1);
        self.0.read(&mut buffer[..one])
    }
}

/// The header for `user[:password]`, percent-encoded.
fn basic(user: &str) -> Result<String, &'static str> {
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    let decoded = |text| percent::decode(text).ok_or("the user or the password has a % without two hex digits");
    let mut plain = decoded(user)?;
    plain.push(b':');
    plain.extend(decoded(password)?);
    Ok(format!("Basic {}", BASE64.encode(plain)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts() {
        let proxy = Proxy::parse("http://10.0.0.1:3128").unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port, proxy.authorization), ("10.0.0.1", 3128, None));
        let proxy = Proxy::parse("http://us%65r:p%40ss%3A/@w@[::1]:8080/").unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port), ("::1", 8080));
        let expected = format!("Basic {}", BASE64.encode("user:p@ss:/@w"));
        assert_eq!(proxy.authorization.as_deref(), Some(expected.as_str()));
        assert_eq!(format!("{proxy:?}"), "Proxy(\"http://[::1]:8080\")");
        assert_eq!(
            Proxy::parse("http://me@h:1").unwrap().authorization,
            Some(format!("Basic {}", BASE64.encode("me:")))
        );
    }

    #[test]
    fn what_is_wrong_is_reported_without_the_password() {
        for (url, says) in [
            ("socks5://me:secret@h:1080", "not http"),
            ("me:secret@h:1080", "not http"),
            ("https://me:secret@h:443", "not http"),
            ("http://me:secret@h", "no port"),
            ("http://me:secret@h:0", "no port"),
            ("http://me:secret@h:99999", "no port"),
            ("http://me:secret@:3128", "no host"),
            ("http://me:secret@", "has other parts"),
            ("http://me:secret@h:1/path", "has other parts"),
            ("http://me:secret@h h:1", "has other parts"),
            ("http://me:secret%4@h:1", "% without two hex digits"),
            ("http://me:secret%\u{e9}\u{e9}@h:1", "% without two hex digits"),
        ] {
            let error = Proxy::parse(url).unwrap_err().to_string();
            assert!(
                error.contains(says) && error.contains("expected http://[user:password@]host:port"),
                "{url}: {error}"
            );
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
