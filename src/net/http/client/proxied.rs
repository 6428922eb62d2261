//! Requests by way of a proxy: a tunnel for `https://`, the whole address in the request line for `http://` (RFC 9112,
//! section 3.2.2), and what of the reach holds when somebody else looks the names up.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::time::Instant;

use ureq::Timeout;

use crate::base::limits::HANDSHAKE_BYTES;
use crate::base::waits::waiting;
use crate::net::address::without_brackets;
use crate::net::deadline::by;
use crate::net::dial::DialError;
use crate::net::proxy::{Proxy, TunnelError};
use crate::net::reach::Reach;

/// A proxy cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("proxy {name}: {problem}")]
pub(super) struct ProxyFailed {
    /// Its address without user and password.
    name: String,
    problem: String,
}

pub(super) fn failed(proxy: &Proxy, problem: String) -> ureq::Error {
    io::Error::other(ProxyFailed { name: proxy.name.clone(), problem }).into()
}

/// Whether a host may be asked for: an address must be within the reach, and so must loopback, whose names every
/// machine knows. What another name leads to, the proxy knows, and whoever runs it has decided what it reaches.
pub(super) fn check_reach(reach: &Reach, host: &str) -> Result<(), DialError> {
    let name = without_brackets(host).trim_end_matches('.').to_ascii_lowercase();
    let is_loopback = name == "localhost" || name.ends_with(".localhost");
    let address = name.parse().ok().or(is_loopback.then_some(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    match address {
        Some(address) if !reach.allows(address) => Err(DialError::OutOfReach { host: host.to_owned() }),
        _ => Ok(()),
    }
}

/// Has the proxy connect to `target`. Blocks until its answer, or the deadline.
pub(super) fn open_tunnel(proxy: &Proxy, stream: &TcpStream, target: &str, end: Instant) -> Result<(), ureq::Error> {
    proxy.open_tunnel(&mut Timed { stream, end }, target, HANDSHAKE_BYTES).map_err(|error| match error {
        TunnelError::Io(error) if error.kind() == ErrorKind::TimedOut => ureq::Error::Timeout(Timeout::Connect),
        TunnelError::Io(error) => failed(proxy, error.to_string()),
        TunnelError::Answer(problem) => failed(proxy, problem),
    })
}

struct Timed<'a> {
    stream: &'a TcpStream,
    end: Instant,
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        by(self.end, |left| {
            self.stream.set_read_timeout(Some(left))?;
            let _waiting = waiting("a proxy's answer", Some(self.end));
            (&mut &*self.stream).read(buffer)
        })
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        by(self.end, |left| {
            self.stream.set_write_timeout(Some(left))?;
            let _waiting = waiting("a proxy to read", Some(self.end));
            (&mut &*self.stream).write(bytes)
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a request to a proxy has that one to a server has not.
pub(super) struct RequestLine {
    before_path: String,
    field: String,
}

impl fmt::Debug for RequestLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RequestLine").field(&self.before_path).finish()
    }
}

impl RequestLine {
    pub(super) fn new(proxy: &Proxy, authority: &str) -> Self {
        let field = proxy.authorization.as_ref().map(|value| format!("Proxy-Authorization: {value}\r\n"));
        Self { before_path: format!("http://{authority}"), field: field.unwrap_or_default() }
    }

    /// The beginning of a request, with the whole address in its first line, and the proxy's field behind that.
    pub(super) fn rewrite(self, request: &[u8]) -> io::Result<Vec<u8>> {
        let path_at = request.iter().position(|byte| *byte == b' ').map(|at| at + 1);
        let fields_at = request.windows(2).position(|two| two == b"\r\n").map(|at| at + 2);
        let (Some(path_at), Some(fields_at)) = (path_at, fields_at.filter(|at| Some(*at) > path_at)) else {
            return Err(io::Error::new(ErrorKind::InvalidInput, "the address is too long for a proxy"));
        };
        let parts = [
            &request[..path_at],
            self.before_path.as_bytes(),
            &request[path_at..fields_at],
            self.field.as_bytes(),
            &request[fields_at..],
        ];
        Ok(parts.concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_gets_the_whole_address_and_its_password() {
        let proxy = Proxy::parse("http://me:secret@p:3128").unwrap();
        let line = RequestLine::new(&proxy, "h:8080");
        assert!(!format!("{line:?}").contains("secret"));
        let sent = line.rewrite(b"GET /a?b HTTP/1.1\r\nHost: h:8080\r\n\r\nbody").unwrap();
        let sent = String::from_utf8(sent).unwrap();
        assert!(sent.starts_with("GET http://h:8080/a?b HTTP/1.1\r\nProxy-Authorization: Basic "), "{sent}");
        assert!(sent.ends_with("\r\nHost: h:8080\r\n\r\nbody"), "{sent}");
        let open = RequestLine::new(&Proxy::parse("http://p:3128").unwrap(), "h");
        assert_eq!(open.rewrite(b"PUT / HTTP/1.1\r\n").unwrap(), b"PUT http://h/ HTTP/1.1\r\n");
        for cut in [&b"GET /a"[..], b"", b"\r\n "] {
            assert!(RequestLine::new(&proxy, "h").rewrite(cut).is_err());
        }
    }

    #[test]
    fn addresses_and_loopback_are_judged_and_other_names_are_the_proxy_s() {
        let reach = Reach::default();
        for (host, ok) in [
            ("files.example", true),
            ("8.8.8.8", true),
            ("127.0.0.1", false),
            ("[::1]", false),
            ("169.254.169.254", false),
            ("LOCALHOST", false),
            ("a.localhost.", false),
        ] {
            assert_eq!(check_reach(&reach, host).is_ok(), ok, "{host}");
        }
        assert!(check_reach(&Reach::Everywhere, "localhost").is_ok());
    }
}
