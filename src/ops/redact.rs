//! Takes out of what the process says what it must not say: passwords, and what a terminal would obey. Pure.

use std::borrow::Cow;
use std::fmt::{self, Write};

/// The text with `…` for what stands between the `://` and the `@` of an address.
///
/// It looks for the last `@` before a space or a quote, so that a password that should have been escaped is hidden as a
/// whole; of an address with an `@` in its path that hides more than it must.
pub fn passwords(text: &str) -> Cow<'_, str> {
    let Some(first) = text.find("://") else { return Cow::Borrowed(text) };
    if !text[first..].contains('@') {
        return Cow::Borrowed(text);
    }
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`')).unwrap_or(after.len());
        let secret = after[..end].rfind('@');
        if secret.is_some() {
            out.push('…');
        }
        rest = &after[secret.unwrap_or(0)..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// A text of somebody else's, shown with its line ends and other control characters escaped.
#[derive(Debug, Clone, Copy)]
pub struct OneLine<'a>(pub &'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\t' => f.write_char(c),
            c if c.is_control() => write!(f, "{}", c.escape_default()),
            c => f.write_char(c),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_passwords_of_addresses_are_hidden() {
        for (said, shown) in [
            ("bad url \"ws://u:p@h:1/x\": no", "bad url \"ws://…@h:1/x\": no"),
            ("wss://u@h", "wss://…@h"),
            ("http://u:p@ss/w@rd@h/ and http://a:b@c", "http://…@h/ and http://…@c"),
            ("http://u:p@h,http://a:b@c", "http://…@c"),
            ("ws://h:1/ws/v0/ mail me@h", "ws://h:1/ws/v0/ mail me@h"),
            ("mail me@h", "mail me@h"),
            ("ws://@", "ws://…@"),
            ("://", "://"),
            ("http://ü:ö@ä", "http://…@ä"),
        ] {
            assert_eq!(passwords(said), shown);
        }
    }
}
