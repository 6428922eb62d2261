//! Takes out of what the process says what it must not say: passwords and tokens, and what a terminal would obey. Pure.

use std::borrow::Cow;
use std::fmt::{self, Write};

/// Before the token of an executor, in the address that it dials.
const TOKEN_PATH: &str = "/executor_interface/";

/// The text with `…` for what stands between the `://` and the `@` of an address, and for an executor's token in one.
///
/// Of an address it looks for the last `@` before a space or a quote, so that a password that should have been escaped
/// is hidden as a whole; with an `@` in its path that hides more than it must.
pub fn secrets(text: &str) -> Cow<'_, str> {
    match hide(text, "://", |word| word.rfind('@').unwrap_or(0)) {
        Cow::Borrowed(text) => hide(text, TOKEN_PATH, str::len),
        Cow::Owned(text) => Cow::Owned(hide(&text, TOKEN_PATH, str::len).into_owned()),
    }
}

/// Puts `…` for the first `secret` bytes of each word that follows `marker`.
fn hide<'a>(text: &'a str, marker: &str, secret: impl Fn(&str) -> usize) -> Cow<'a, str> {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(marker) {
        let (before, after) = rest.split_at(at + marker.len());
        let end = after.find(|c: char| c.is_whitespace() || "\"'`".contains(c)).unwrap_or(after.len());
        let hidden = secret(&after[..end]);
        out.push_str(before);
        out.push_str(if hidden > 0 { "…" } else { "" });
        rest = &after[hidden..];
    }
    if out.is_empty() { Cow::Borrowed(text) } else { Cow::Owned(out + rest) }
}

/// A text of somebody else's, shown with its line ends, other control characters, and what turns the direction of
/// writing round escaped.
#[derive(Debug, Clone, Copy)]
pub struct OneLine<'a>(pub &'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\t' => f.write_char(c),
            c if c.is_control() || is_format(c) => write!(f, "{}", c.escape_default()),
            c => f.write_char(c),
        })
    }
}

/// Line and paragraph ends of Unicode, and what a terminal shows a text in another order by.
fn is_format(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_escaped_and_other_letters_are_not() {
        assert_eq!(OneLine("a\tb ä 中 \u{200d}😀").to_string(), "a\tb ä 中 \u{200d}😀");
        let edges =
            "\u{1b}[2J\r\n\u{7f}\u{80}\u{9f}\u{61c}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202e}\u{2066}\u{2069}";
        let escaped: String = edges
            .chars()
            .map(|c| if c.is_ascii_graphic() { c.to_string() } else { c.escape_default().to_string() })
            .collect();
        assert_eq!(OneLine(edges).to_string(), escaped);
        assert!(escaped.is_ascii(), "{escaped}");
    }

    #[test]
    fn passwords_and_tokens_of_addresses_are_hidden() {
        for (text, shown) in [
            ("bad url \"ws://u:p@h:1/x\": no", "bad url \"ws://…@h:1/x\": no"),
            ("wss://u@h", "wss://…@h"),
            ("http://u:p@ss/w@rd@h/ and http://a:b@c", "http://…@h/ and http://…@c"),
            ("http://u:p@h,http://a:b@c", "http://…@c"),
            ("ws://h:1/ws/v0/ mail me@h", "ws://h:1/ws/v0/ mail me@h"),
            ("mail me@h", "mail me@h"),
            ("\"ws://u:p@h/v0.1/executor_interface/t-1\": no", "\"ws://…@h/v0.1/executor_interface/…\": no"),
            ("ws://h/v0.1/executor_interface/", "ws://h/v0.1/executor_interface/"),
            ("", ""),
            ("ws://@", "ws://@"),
            ("://", "://"),
            ("http://ü:ö@ä", "http://…@ä"),
        ] {
            assert_eq!(secrets(text), shown);
        }
    }
}
