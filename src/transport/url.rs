//! The URL of a WebSocket server, taken apart.

use tungstenite::http::Uri;

use super::TransportError;
use crate::net::address;
use crate::ops::redact;

/// `ws://host[:port][/path]` or `wss://…`, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WsUrl {
    pub(super) tls: bool,
    /// Without the brackets of an IPv6 address.
    pub(super) host: String,
    pub(super) port: u16,
    /// As in the `Host` header: with the port only if the URL names it.
    pub(super) authority: String,
    /// Path and query.
    pub(super) path: String,
}

impl WsUrl {
    pub(super) fn parse(url: &str) -> Result<Self, TransportError> {
        let bad = |problem: String| TransportError::Url { url: redact::secrets(url).into_owned(), problem };
        let uri: Uri = url.parse().map_err(|e| bad(format!("{e}; expected ws://host:port/path or wss://…")))?;
        let tls = match uri.scheme_str() {
            Some("ws") => false,
            Some("wss") => true,
            Some(other) => return Err(bad(format!("scheme {other}, expected ws or wss"))),
            None => return Err(bad("no scheme, expected ws:// or wss:// before the host".to_owned())),
        };
        let authority = uri.authority().map_or("", |a| a.as_str());
        if authority.contains('@') {
            return Err(bad("a user name in the url is never sent; take it out".to_owned()));
        }
        let host = address::without_brackets(uri.host().unwrap_or(""));
        if host.is_empty() {
            return Err(bad("no host".to_owned()));
        }
        let named_port = authority.rsplit_once(']').map_or(authority, |(_, port)| port).contains(':');
        if named_port && uri.port_u16().is_none_or(|port| port == 0) {
            return Err(bad("the port is not a number from 1 to 65535".to_owned()));
        }
        Ok(Self {
            tls,
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            authority: authority.to_owned(),
            path: match uri.path_and_query().map(|p| p.as_str()) {
                None | Some("") => "/".to_owned(),
                Some(path) if path.starts_with('?') => format!("/{path}"),
                Some(path) => path.to_owned(),
            },
        })
    }

    /// Both, also the port that the scheme implies.
    pub(super) fn host_and_port(&self) -> String {
        address::join(&self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts() {
        let url = WsUrl::parse("ws://example.org:8000/ws/v0/?a=b").unwrap();
        assert_eq!((url.tls, url.host.as_str(), url.port), (false, "example.org", 8000));
        assert_eq!((url.authority.as_str(), url.path.as_str()), ("example.org:8000", "/ws/v0/?a=b"));
        let url = WsUrl::parse("wss://[::1]").unwrap();
        assert_eq!((url.tls, url.host.as_str(), url.port, url.path.as_str()), (true, "::1", 443, "/"));
        assert_eq!(url.host_and_port(), "[::1]:443");
        assert_eq!(WsUrl::parse("ws://h/").unwrap().host_and_port(), "h:80");
        assert_eq!(WsUrl::parse("ws://h?q").unwrap().path, "/?q");
    }

    #[test]
    fn what_is_wrong_is_reported() {
        for (url, says) in [
            ("http://h/", "scheme http, expected ws or wss"),
            ("h:80", "no scheme"),
            ("/path", "no scheme"),
            ("ws://", "bad url"),
            ("ws://u:p@h/", "user name"),
            ("ws://h:0/", "1 to 65535"),
            ("ws://h:99999/", "bad url"),
            ("ws://a b/", "bad url"),
        ] {
            let error = WsUrl::parse(url).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("bad url"), "{url}: {error}");
        }
    }
}
