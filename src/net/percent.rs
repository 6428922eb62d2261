//! Percent-encoded texts. Pure.

use percent_encoding::percent_decode_str;

/// The bytes of a percent-encoded text; `None` if a `%` is not followed by two hex digits.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    let is_whole = |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    text.split('%').skip(1).all(is_whole).then(|| percent_decode_str(text).collect())
}

/// As [`decode`]; `None` also if the bytes are not UTF-8.
pub(crate) fn decode_text(text: &str) -> Option<String> {
    String::from_utf8(decode(text)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_broken_is_refused_and_never_guessed_at() {
        assert_eq!(decode_text("a%20b%C5%BC+%2b").unwrap(), "a bż++");
        assert_eq!(decode("%ff").unwrap(), [0xff]);
        assert_eq!(decode_text("%ff"), None);
        for broken in ["%", "%4", "a%zz", "%+f", "%%41", "%\u{e9}\u{e9}"] {
            assert_eq!(decode(broken), None, "{broken}");
        }
    }
}
