//! The header fields of a request: those of the caller before ours, each name once. Pure.

use url::Url;

/// Fields that belong to the connection or frame the message (RFC 9110, section 7.6.1; RFC 9112, sections 6 and 9).
/// They are this client's; with a second framing beside the length, proxies would not agree on where the message ends.
const OURS: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The fields of one request to `url` whose body has `length` bytes: `given` as they are, then those of `ours` whose
/// names were not given, then the length.
///
/// # Errors
/// In words: a field that may not be set, one that is there twice, one that says something false.
pub(super) fn fields(
    given: &[(String, String)],
    ours: &[(&str, String)],
    url: &Url,
    length: Option<u64>,
) -> Result<Vec<(String, String)>, String> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for (name, value) in given {
        let value = value.trim_matches([' ', '\t']);
        let lower = name.to_ascii_lowercase();
        if OURS.contains(&lower.as_str()) {
            return Err(format!("the field {name} may not be set, because it is the connection's; leave it out"));
        }
        match (lower.as_str(), length) {
            ("content-length", Some(length)) if number(value) != Some(length) => {
                return Err(format!(
                    "the field {name} is given as {value:?} and the body has {length} bytes; a signature over another \
                     length cannot fit"
                ));
            }
            ("content-length", None) => return Err(format!("the field {name} is given and there is no body")),
            ("host", _) if !names_host(value, url) => {
                let host = url.host_str().unwrap_or_default();
                return Err(format!("the field {name} is given as {value:?} and the address is at {host}"));
            }
            _ => {}
        }
        match fields.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)) {
            None => fields.push((name.clone(), value.to_owned())),
            Some((_, other)) if other == value => {}
            Some(_) => return Err(format!("the field {name} is given twice with different values; give one")),
        }
    }
    let length = length.map(|length| ("content-length", length.to_string()));
    for (name, value) in ours.iter().chain(&length) {
        if !fields.iter().any(|(given, _)| given.eq_ignore_ascii_case(name)) {
            fields.push(((*name).to_owned(), value.clone()));
        }
    }
    Ok(fields)
}

/// A number without sign.
fn number(value: &str) -> Option<u64> {
    value.parse().ok().filter(|_| value.starts_with(|c: char| c.is_ascii_digit()))
}

/// Whether the value of a `Host` field is the host and the port of the address.
fn names_host(value: &str, url: &Url) -> bool {
    let Ok(named) = Url::parse(&format!("{}://{value}/", url.scheme())) else { return false };
    named.path() == "/"
        && named.username().is_empty()
        && named.password().is_none()
        && (named.host(), named.port_or_known_default()) == (url.host(), url.port_or_known_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(given: &[(&str, &str)], url: &str, length: Option<u64>) -> Result<Vec<(String, String)>, String> {
        let given: Vec<_> = given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        fields(&given, &[("content-type", "ours".to_owned())], &Url::parse(url).unwrap(), length)
    }

    fn texts(fields: &[(String, String)]) -> Vec<String> {
        fields.iter().map(|(name, value)| format!("{name}: {value}")).collect()
    }

    #[test]
    fn what_is_given_wins_and_each_name_goes_once() {
        for (given, expected) in [
            (&[][..], &["content-type: ours", "content-length: 5"][..]),
            (&[("Content-Length", "5"), ("X-A", " b ")], &["Content-Length: 5", "X-A: b", "content-type: ours"]),
            (&[("content-LENGTH", "5"), ("CONTENT-TYPE", "x")], &["content-LENGTH: 5", "CONTENT-TYPE: x"]),
            (&[("A", "1"), ("a", "1")], &["A: 1", "content-type: ours", "content-length: 5"]),
            (&[("Host", "H.example:443")], &["Host: H.example:443", "content-type: ours", "content-length: 5"]),
            (&[("host", "h.example")], &["host: h.example", "content-type: ours", "content-length: 5"]),
        ] {
            assert_eq!(texts(&sent(given, "https://h.example/p", Some(5)).unwrap()), expected);
        }
        assert_eq!(texts(&sent(&[], "http://h/", None).unwrap()), ["content-type: ours"]);
        for host in ["[::1]:8080", "[0:0::1]:8080"] {
            assert!(sent(&[("Host", host)], "http://[::1]:8080/", None).is_ok(), "{host}");
        }
    }

    #[test]
    fn what_is_false_or_the_connection_s_is_refused_by_name() {
        for (given, says) in [
            (&[("Content-Length", "6")][..], "Content-Length is given as \"6\" and the body has 5 bytes"),
            (&[("content-length", "5, 5")], "content-length is given as \"5, 5\""),
            (&[("content-length", "+5")], "content-length is given as \"+5\""),
            (&[("content-length", "")], "content-length is given as \"\""),
            (&[("Transfer-Encoding", "chunked")], "Transfer-Encoding may not be set"),
            (&[("connection", "close")], "connection may not be set"),
            (&[("Keep-Alive", "1")], "Keep-Alive may not be set"),
            (&[("Upgrade", "x")], "Upgrade may not be set"),
            (&[("Host", "other.example")], "Host is given as \"other.example\" and the address is at h.example"),
            (&[("Host", "h.example:81")], "Host is given as"),
            (&[("Host", "user@h.example")], "Host is given as"),
            (&[("Host", "h.example/x")], "Host is given as"),
            (&[("Host", "")], "Host is given as"),
            (&[("A", "1"), ("a", "2")], "a is given twice"),
        ] {
            let error = sent(given, "http://h.example/p", Some(5)).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        assert!(sent(&[("Content-Length", "0")], "http://h/", None).unwrap_err().contains("no body"));
    }
}
