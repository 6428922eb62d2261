//! An HTTP proxy: its address, which addresses go through it, and the `CONNECT` by which it opens a tunnel.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use tungstenite::http::StatusCode;
use tungstenite::http::uri::Authority;

use super::http::head::{HeadText, Received, ResponseHead, receive_answer};
use super::reach::Network;
use super::{USER_AGENT, address, percent};

/// An HTTP proxy. Neither its `Debug` nor any error shows user or password.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Without the brackets of an IPv6 address.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// `http://host:port`, for people.
    pub(crate) name: String,
    /// The value of `Proxy-Authorization`.
    pub(crate) authorization: Option<String>,
}

/// A text is no address of a proxy. Trying again does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad url {url:?}: {problem}; expected http://[user:password@]host:port")]
pub struct ProxyError {
    /// As given, without what is before the last `@`.
    pub url: String,
    /// What is wrong with it.
    pub problem: String,
}

/// Why a proxy opens no tunnel.
#[derive(Debug)]
pub(crate) enum TunnelError {
    /// The connection to it broke.
    Io(io::Error),
    /// It says no, or what is no HTTP.
    Answer(String),
}

impl From<io::Error> for TunnelError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Proxy {
    /// Reads `http://[user:password@]host:port`; user and password may be percent-encoded.
    ///
    /// # Errors
    /// [`ProxyError`], which shows nothing before the last `@`.
    pub fn parse(url: &str) -> Result<Self, ProxyError> {
        let shown = url.rsplit_once('@').map_or(url, |(_, behind)| behind);
        let bad = |problem: &str| ProxyError { url: shown.to_owned(), problem: problem.to_owned() };
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

    /// Asks for a tunnel to `target`, a host and a port, on a connection to the proxy; `limit` bounds its answer, in
    /// bytes. Blocks as the connection does.
    pub(crate) fn open_tunnel(
        &self,
        socket: &mut (impl Read + Write),
        target: &str,
        limit: usize,
    ) -> Result<(), TunnelError> {
        let mut request = HeadText::new(format_args!("CONNECT {target} HTTP/1.1"))
            .with("Host", target)
            .with("User-Agent", USER_AGENT);
        if let Some(authorization) = &self.authorization {
            request = request.with("Proxy-Authorization", authorization);
        }
        socket.write_all(request.end().as_bytes())?;
        let wrong = |problem: String| Err(TunnelError::Answer(problem));
        let is_http = |start: &[u8]| b"HTTP/1.".starts_with(&start[..start.len().min(7)]);
        let head = match receive_answer(&mut ByteByByte(socket), limit, is_http)? {
            Received::Whole { head, .. } => head,
            Received::TooLong => return wrong(format!("the head of its answer is over the limit of {limit} bytes")),
            Received::Ended => return wrong("it closed the connection instead of answering".to_owned()),
            Received::NotHttp(_) => return wrong("its answer is not HTTP/1".to_owned()),
        };
        let answer = match ResponseHead::parse(&head) {
            Ok(answer) => answer,
            Err(problem) => return wrong(format!("its answer is not HTTP/1: {problem}")),
        };
        match answer.status {
            200..=299 => Ok(()),
            407 if self.authorization.is_none() => {
                wrong("it wants a user and a password (status 407); give http://user:password@host:port".to_owned())
            }
            407 => wrong("it refuses the user or the password (status 407)".to_owned()),
            status => {
                // Its own words might repeat what it was sent.
                let words = StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason());
                wrong(format!("no tunnel to {target}: status {status} {}", words.unwrap_or("(unknown)")))
            }
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Proxy").field(&self.name).finish()
    }
}

/// Takes one byte at a time, so that nothing behind the proxy's answer is taken from the tunnel.
struct ByteByByte<'s, S>(&'s mut S);

impl<S: Read> Read for ByteByByte<'_, S> {
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

/// By which proxy which address is asked. By default none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    except: Vec<Exception>,
}

/// An entry of `NO_PROXY`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    /// `*`
    All,
    /// A host, and all below it; with a port, that one.
    Host(String, Option<u16>),
    /// An address or a network.
    Network(Network),
}

impl Proxies {
    /// None.
    pub fn none() -> Self {
        Self::default()
    }

    /// This one for all addresses.
    pub fn all(proxy: Proxy) -> Self {
        Self { http: Some(proxy.clone()), https: Some(proxy), except: Vec::new() }
    }

    /// As `HTTPS_PROXY`, `HTTP_PROXY` and `ALL_PROXY` say, or the same in lower case, which count more; but not for
    /// what `NO_PROXY` lists: hosts (with all below them), addresses, networks, `*`. A proxy without a scheme or a port
    /// is `http://` and port 80.
    ///
    /// # Errors
    /// The name of the variable, and what is wrong with it.
    pub fn of_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let value = |name: &str| {
            let names = [name.to_ascii_lowercase(), name.to_owned()];
            names
                .into_iter()
                .find_map(|name| variable(&name).filter(|value| !value.is_empty()).map(|value| (name, value)))
        };
        // Behind a web server `HTTP_PROXY` is what a client has sent as the field `Proxy`.
        let is_cgi = variable("REQUEST_METHOD").is_some();
        let proxy = |name: &str| -> Result<Option<Proxy>, String> {
            let found =
                value(name).filter(|(name, _)| !(is_cgi && name == "HTTP_PROXY")).or_else(|| value("ALL_PROXY"));
            let Some((name, url)) = found else { return Ok(None) };
            Proxy::parse(&with_defaults(&url)).map(Some).map_err(|error| format!("{name}: {error}"))
        };
        let except = value("NO_PROXY").map(|(_, list)| exceptions(&list)).unwrap_or_default();
        Ok(Self { http: proxy("HTTP_PROXY")?, https: proxy("HTTPS_PROXY")?, except })
    }

    /// The proxy for an address of this scheme, host and port.
    pub(crate) fn of(&self, with_tls: bool, host: &str, port: u16) -> Option<&Proxy> {
        let proxy = if with_tls { &self.https } else { &self.http };
        let host = address::without_brackets(host).trim_end_matches('.').to_ascii_lowercase();
        let literal: Option<IpAddr> = host.parse().ok();
        let is_excepted = self.except.iter().any(|entry| match entry {
            Exception::All => true,
            Exception::Host(suffix, of_port) => {
                let fits = host == *suffix || host.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.'));
                fits && of_port.is_none_or(|of_port| of_port == port)
            }
            Exception::Network(network) => literal.is_some_and(|address| network.contains(address)),
        });
        proxy.as_ref().filter(|_| !is_excepted)
    }
}

/// `proxy:3128` and `http://proxy` are what other programs take as well.
fn with_defaults(url: &str) -> String {
    let url = url.trim();
    let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let authority = url.rsplit_once('@').map_or_else(|| url.trim_start_matches("http://"), |(_, behind)| behind);
    let has_port = authority.rsplit_once(']').map_or(authority, |(_, port)| port).contains(':');
    match has_port || !url.starts_with("http://") {
        true => url,
        false => format!("{}:80", url.trim_end_matches('/')),
    }
}

fn exceptions(list: &str) -> Vec<Exception> {
    let entries = list.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            if entry == "*" {
                return Exception::All;
            }
            if let Ok(network) = address::without_brackets(entry).parse() {
                return Exception::Network(network);
            }
            let (host, port) = match entry.rsplit_once(':') {
                Some((host, port)) if port.parse::<u16>().is_ok() => (host, port.parse().ok()),
                _ => (entry, None),
            };
            let host = host.trim_start_matches('*').trim_start_matches('.').trim_end_matches('.');
            Exception::Host(host.to_ascii_lowercase(), port)
        })
        .collect()
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

    fn proxies(variables: &[(&str, &str)]) -> Result<Proxies, String> {
        let of =
            |wanted: &str| variables.iter().find(|(name, _)| *name == wanted).map(|(_, value)| (*value).to_owned());
        Proxies::of_variables(of)
    }

    fn name(proxies: &Proxies, with_tls: bool, host: &str) -> Option<String> {
        proxies.of(with_tls, host, if with_tls { 443 } else { 80 }).map(|proxy| proxy.name.clone())
    }

    #[test]
    fn the_variables_of_other_programs_are_followed() {
        let both =
            proxies(&[("HTTP_PROXY", "http://a:1"), ("https_proxy", "b:2"), ("HTTPS_PROXY", "http://c:3")]).unwrap();
        assert_eq!(name(&both, false, "h").as_deref(), Some("http://a:1"));
        assert_eq!(name(&both, true, "h").as_deref(), Some("http://b:2"));
        let all = proxies(&[("ALL_PROXY", "http://me:secret@proxy.example/"), ("http_proxy", "")]).unwrap();
        assert_eq!(name(&all, false, "h").as_deref(), Some("http://proxy.example:80"));
        let behind_a_server = proxies(&[("HTTP_PROXY", "http://a:1"), ("REQUEST_METHOD", "GET")]).unwrap();
        assert_eq!(name(&behind_a_server, false, "h"), None);
        assert_eq!(name(&proxies(&[]).unwrap(), true, "h"), None);
        let error = proxies(&[("https_proxy", "socks5://me:secret@h:1")]).unwrap_err();
        assert!(error.starts_with("https_proxy: bad url \"h:1\"") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn what_no_proxy_lists_is_asked_directly() {
        let except = |list| proxies(&[("ALL_PROXY", "p:1"), ("NO_PROXY", list)]).unwrap();
        for (list, host, direct) in [
            ("localhost,127.0.0.1", "localhost", true),
            ("localhost,127.0.0.1", "127.0.0.1", true),
            ("localhost, 127.0.0.1", "127.0.0.2", false),
            (".corp.example", "files.corp.example", true),
            ("corp.example", "files.CORP.example.", true),
            ("*.corp.example", "corp.example", true),
            ("corp.example", "notcorp.example", false),
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.0.0.0/8", "11.1.2.3", false),
            ("fd00::/8", "[fd00::1]", true),
            ("[::1]", "::1", true),
            ("h:80", "h", true),
            ("h:81", "h", false),
            ("*", "anything", true),
            ("", "h", false),
        ] {
            assert_eq!(name(&except(list), false, host).is_none(), direct, "{list} {host}");
        }
    }
}
