//! Hosts and ports as texts, with the brackets of IPv6 addresses. Pure.

/// `host:port`, with brackets around an IPv6 address.
pub(crate) fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// A host without the brackets of an IPv6 address.
pub(crate) fn without_brackets(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Takes `host[:port]` apart: the host without brackets, and what stands after the colon. `None` if a bracket is not
/// closed, or if something else follows it.
pub(crate) fn split(text: &str) -> Option<(&str, &str)> {
    match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']')? {
            (host, "") => Some((host, "")),
            (host, port) => Some((host, port.strip_prefix(':')?)),
        },
        None => Some(text.split_once(':').unwrap_or((text, ""))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_six_has_its_brackets_in_the_text_only() {
        for (text, host, port) in [("h:80", "h", 80), ("[::1]:443", "::1", 443), ("10.0.0.1:1", "10.0.0.1", 1)] {
            assert_eq!(join(host, port), text);
            assert_eq!(split(text), Some((host, port.to_string().as_str())), "{text}");
        }
        assert_eq!((split("h"), split("[::1]"), split("")), (Some(("h", "")), Some(("::1", "")), Some(("", ""))));
        assert_eq!((split("[::1"), split("[::1]80"), split("a:b:c")), (None, None, Some(("a", "b:c"))));
        assert_eq!((without_brackets("[::1]"), without_brackets("h")), ("::1", "h"));
    }
}
