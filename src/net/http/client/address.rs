//! The address of a request as people write it, and where a redirect leads (RFC 3986, section 5.2). Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use url::Url;

use crate::net::percent;

/// Reads an address: blanks and letters that an address may not have are percent-encoded as UTF-8, what is encoded
/// already stays.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn read(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| error.to_string()).and_then(http_only);
    url.map_err(|why| format!("{why}; give an address as in https://host/path"))
}

/// Where a redirect of `from` with this `Location` leads.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn redirected(from: &Url, location: Option<&str>) -> Result<Url, String> {
    let location = location.ok_or("it has no Location")?;
    let to = from.join(location).map_err(|error| error.to_string()).and_then(http_only);
    to.map_err(|why| format!("its Location {:?}: {why}", shown(location)))
}

fn http_only(mut url: Url) -> Result<Url, String> {
    match url.scheme() {
        "http" | "https" => {
            url.set_fragment(None);
            Ok(url)
        }
        other => Err(format!("its scheme is {other}, not http or https")),
    }
}

/// Whether what was secret for `from` may go to `to`: the same server, perhaps by TLS now.
pub(super) fn same_server(from: &Url, to: &Url) -> bool {
    let port = |url: &Url| url.port_or_known_default();
    let with_tls = from.scheme() == "http" && to.scheme() == "https" && port(from) == Some(80) && port(to) == Some(443);
    from.host() == to.host() && (with_tls || (from.scheme() == to.scheme() && port(from) == port(to)))
}

/// An address without what is often secret: user, password, query and fragment.
pub(super) fn shown(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let url = &url[..end];
    let Some((scheme, rest)) = url.split_once("//") else { return url.to_owned() };
    let host_end = rest.find('/').unwrap_or(rest.len());
    let from = rest[..host_end].rfind('@').map_or(0, |at| at + 1);
    format!("{scheme}//{}", &rest[from..])
}

/// The user and the password of an address as a field's value.
pub(super) fn credentials(url: &Url) -> Option<String> {
    let password = url.password().unwrap_or_default();
    if url.username().is_empty() && password.is_empty() {
        return None;
    }
    let plain = |text: &str| percent::decode(text).unwrap_or_else(|| text.as_bytes().to_vec());
    let pair = [plain(url.username()), b":".to_vec(), plain(password)].concat();
    Some(format!("Basic {}", STANDARD.encode(pair)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_an_address_are_not_shown() {
        for (url, shown_as) in [
            ("https://h/p?X-Amz-Signature=1#f", "https://h/p"),
            ("https://h/p", "https://h/p"),
            ("https://user:pass@h:1/p@q", "https://h:1/p@q"),
            ("//user@h", "//h"),
            ("/p?x", "/p"),
        ] {
            assert_eq!(shown(url), shown_as);
        }
    }

    #[test]
    fn what_people_paste_is_encoded_and_what_is_encoded_stays() {
        for (text, url) in [
            ("http://h/my data.txt", "http://h/my%20data.txt"),
            ("http://h/café.txt", "http://h/caf%C3%A9.txt"),
            ("http://h/my%20data.txt", "http://h/my%20data.txt"),
            ("http://h/%e9%2F?a=b%20c d", "http://h/%e9%2F?a=b%20c%20d"),
            ("http://h/p?q=ż&r=\"<>\"", "http://h/p?q=%C5%BC&r=%22%3C%3E%22"),
            ("http://h/p?X-Sig=a%2Fb+c/d~e'", "http://h/p?X-Sig=a%2Fb+c/d~e%27"),
            ("HTTP://H.Example/P", "http://h.example/P"),
            ("  http://h/p#part \n", "http://h/p"),
            ("http://h", "http://h/"),
            ("http://h?q", "http://h/?q"),
            ("http://h:80/", "http://h/"),
            ("http://h/a/./b/../c", "http://h/a/c"),
            ("http://ż.example/", "http://xn--hha.example/"),
            ("http://h/{a}|`", "http://h/%7Ba%7D|%60"),
        ] {
            assert_eq!(read(text).as_ref().map(Url::as_str), Ok(url), "{text}");
        }
        for bad in
            ["", "host/path", "/p", "ftp://host/x", "file:///etc/passwd", "http://", "http://a b/", "http://h:x/"]
        {
            let error = read(bad).unwrap_err();
            assert!(error.ends_with("; give an address as in https://host/path"), "{bad}: {error}");
        }
    }

    #[test]
    fn references_are_resolved_as_in_the_rfc() {
        let from = read("http://a/b/c/d;p?q").unwrap();
        for (location, to) in [
            ("g", "http://a/b/c/g"),
            ("./g", "http://a/b/c/g"),
            ("g/", "http://a/b/c/g/"),
            ("/g", "http://a/g"),
            ("//g", "http://g/"),
            ("?y", "http://a/b/c/d;p?y"),
            ("g?y", "http://a/b/c/g?y"),
            ("#s", "http://a/b/c/d;p?q"),
            (";x", "http://a/b/c/;x"),
            ("", "http://a/b/c/d;p?q"),
            (".", "http://a/b/c/"),
            ("..", "http://a/b/"),
            ("../../../g", "http://a/g"),
            ("/./g", "http://a/g"),
            ("g?y/../x", "http://a/b/c/g?y/../x"),
            ("https://other/x", "https://other/x"),
            ("HTTPS://Other/x#part", "https://other/x"),
            ("/my data.txt", "http://a/my%20data.txt"),
            ("/café.txt", "http://a/caf%C3%A9.txt"),
        ] {
            assert_eq!(redirected(&from, Some(location)).as_ref().map(Url::as_str), Ok(to), "{location}");
        }
        for (location, why) in [
            (None, "it has no Location"),
            (Some("ftp://h/x"), "its scheme is ftp"),
            (Some("mailto:a@b"), "its scheme is mailto"),
            (Some("http://"), "empty host"),
        ] {
            let error = redirected(&from, location).unwrap_err();
            assert!(error.contains(why), "{location:?}: {error}");
        }
    }

    #[test]
    fn secrets_stay_with_their_server() {
        for (from, to, same) in [
            ("http://h/a", "http://h/b", true),
            ("http://h/a", "https://h/b", true),
            ("https://h/a", "http://h/b", false),
            ("http://h:8080/a", "https://h:8080/b", false),
            ("http://h/a", "http://h:8080/b", false),
            ("http://h/a", "http://sub.h/b", false),
            ("http://127.0.0.1/a", "http://localhost/b", false),
        ] {
            assert_eq!(same_server(&read(from).unwrap(), &read(to).unwrap()), same, "{from} {to}");
        }
    }
}
