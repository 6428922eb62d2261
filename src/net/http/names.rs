//! By which names a server may be asked, so that no web page makes a reader's browser ask it. Pure.
//!
//! The browser tells such a page in two ways. A name of the page's own that leads to this machine (DNS rebinding) is in
//! `Host`. A page of another site is in `Origin`, which programs do not send.

use std::net::IpAddr;

use super::head::{Headers, first};
use crate::base::text::truncated;
use crate::net::address;

/// Bytes of a field that a refusal quotes: names are no longer.
const QUOTED_BYTES: usize = 253;

/// The names of a server besides IP addresses, which no page can make lead elsewhere, and loopback names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNames {
    names: Vec<String>,
    /// The setting that a refusal names.
    flag: &'static str,
}

impl Default for HostNames {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl HostNames {
    /// These names, without ports, in any case, as `--http-host` has them.
    pub fn new(names: Vec<String>) -> Self {
        Self { names, flag: "--http-host" }
    }

    /// The same of a port for WebSockets, as `--listen-host` has them.
    pub fn of_websockets(names: Vec<String>) -> Self {
        Self { names, flag: "--listen-host" }
    }

    /// Reads one name.
    ///
    /// # Errors
    /// What would be right, in words.
    pub fn parse(text: &str) -> Result<String, String> {
        let is_name = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        if text.is_empty() || !is_name {
            return Err("it should be a name without scheme and port, as phalanx.example".to_owned());
        }
        Ok(text.to_owned())
    }

    /// As [`HostNames::refusal`], for a request that pages make and programs are free to make by any name: without
    /// `Origin` there is none.
    pub(crate) fn refusal_of_page(&self, headers: &Headers) -> Option<(u16, String)> {
        first(headers, "origin").and_then(|_| self.refusal(headers))
    }

    /// The status and the text of a refusal, if a request with these headers is to have one. A client of HTTP/1.0 may
    /// leave `Host` out, and any client may send an empty one; a browser does neither.
    pub(super) fn refusal(&self, headers: &Headers) -> Option<(u16, String)> {
        let flag = self.flag;
        let quoted = |value: &str| format!("{:?}", truncated(value, QUOTED_BYTES));
        let host_field = first(headers, "host").unwrap_or_default();
        let host = host_of(host_field);
        if !host.is_empty() && !self.has(host) && address_of(host).is_none() {
            let why = format!("this server is not {}; {flag} NAME adds a name", quoted(host_field));
            return Some((421, why));
        }
        let origin = first(headers, "origin")?;
        let of_page = origin.split_once("://").map_or("", |(_, authority)| host_of(authority));
        let is_ours = !of_page.is_empty()
            && (of_page.eq_ignore_ascii_case(host)
                || self.has(of_page)
                || address_of(of_page).is_some_and(|address| address.to_canonical().is_loopback()));
        (!is_ours)
            .then(|| (403, format!("a page of {} may not ask this server; {flag} NAME adds a name", quoted(origin))))
    }

    /// Whether it is one of the names, or one of loopback.
    fn has(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name);
        let last = name.rsplit('.').next().unwrap_or(name);
        // Nobody can own a name of this zone (RFC 6761, section 6.3).
        last.eq_ignore_ascii_case("localhost") || self.names.iter().any(|own| own.eq_ignore_ascii_case(name))
    }
}

/// The host of `host[:port]`, without brackets; empty if it is none.
fn host_of(authority: &str) -> &str {
    address::split(authority).map_or("", |(host, _)| host)
}

/// The address that a host is, without its zone.
fn address_of(host: &str) -> Option<IpAddr> {
    host.split('%').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(host: Option<&str>, origin: Option<&str>) -> Option<u16> {
        let fields = [("Host", host), ("origin", origin)];
        let headers = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
        let names = HostNames::new(vec!["Pha-lanx.example".to_owned()]);
        names.refusal(&headers.collect()).map(|(status, _)| status)
    }

    #[test]
    fn a_name_that_is_not_the_servers_is_refused() {
        for host in [
            "",
            "localhost",
            "LOCALHOST:8080",
            "localhost.",
            "a.localhost:1",
            "127.0.0.1",
            "10.1.2.3:8080",
            "[::1]:8080",
            "[fe80::1%25eth0]",
            "pha-lanx.EXAMPLE:443",
            "pha-lanx.example.",
        ] {
            assert_eq!(status(Some(host), None), None, "{host}");
        }
        assert_eq!(status(None, None), None);
        for host in ["evil.example:8080", "notlocalhost", "localhost.evil.example", "127.0.0.1.evil.example"] {
            assert_eq!(status(Some(host), None), Some(421), "{host}");
        }
        let long = "x".repeat(10_000);
        let (_, why) = HostNames::default().refusal(&vec![("host".to_owned(), long)]).unwrap();
        assert!(why.len() < 400 && why.contains("--http-host"), "{why}");
    }

    #[test]
    fn a_page_of_another_site_is_refused() {
        for (host, origin) in [
            ("127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("10.1.2.3:8080", "http://10.1.2.3:8080"),
            ("127.0.0.1:8080", "http://localhost:3000"),
            ("127.0.0.1:8080", "http://[::1]:3000"),
            ("127.0.0.1:8080", "https://pha-lanx.example"),
            ("pha-lanx.example", "https://Pha-lanx.example:8443"),
        ] {
            assert_eq!(status(Some(host), Some(origin)), None, "{host} {origin}");
        }
        for origin in ["null", "", "http://", "https://evil.example", "http://10.1.2.4", "http://localhost.evil"] {
            assert_eq!(status(Some("10.1.2.3:8080"), Some(origin)), Some(403), "{origin}");
        }
        assert_eq!(status(None, Some("http://evil.example")), Some(403));
    }

    #[test]
    fn a_program_may_ask_by_any_name_and_a_page_by_one_of_the_servers_only() {
        let names = HostNames::of_websockets(vec!["own.example".to_owned()]);
        let refusal = |host: &str, origin: Option<&str>| {
            let fields = [("Host", Some(host)), ("Origin", origin)];
            let headers = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
            names.refusal_of_page(&headers.collect())
        };
        for (host, origin) in [
            ("other.example", None),
            ("own.example", Some("https://own.example")),
            ("10.0.0.1:8001", Some("http://10.0.0.1:8001")),
        ] {
            assert_eq!(refusal(host, origin), None, "{host} {origin:?}");
        }
        // The second has made its own name lead here.
        for (host, origin) in [("own.example", "https://evil.example"), ("evil.example", "http://evil.example")] {
            let (_, why) = refusal(host, Some(origin)).unwrap();
            assert!(why.contains("--listen-host NAME"), "{why}");
        }
    }

    #[test]
    fn names_of_flags() {
        assert_eq!(HostNames::parse("a_b-1.example"), Ok("a_b-1.example".to_owned()));
        for bad in ["", "a:1", "http://a", "*", "a b", "[::1]"] {
            assert!(HostNames::parse(bad).unwrap_err().contains("without scheme and port"), "{bad}");
        }
    }
}
