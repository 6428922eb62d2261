//! Takes out of what the process says what it must not say: passwords and tokens, and what a terminal would obey. Pure.

use std::borrow::Cow;
use std::fmt::{self, Write};

/// Before the token of an executor, in the address that it dials.
const TOKEN_PATH: &str = "/executor_interface/";

/// The text with `…` for what stands between the `://` and the `@` of an address, for its query, and for an executor's
/// token in one.
///
/// Of an address it looks for the last `@` before a space or a quote, so that a password that should have been escaped
/// is hidden as a whole; with an `@` in its path that hides more than it must.
pub fn secrets(text: &str) -> Cow<'_, str> {
    let token = |word: &str| (!word.is_empty()).then(|| "…".to_owned());
    match hide(text, "://", address) {
        Cow::Borrowed(text) => hide(text, TOKEN_PATH, token),
        Cow::Owned(text) => Cow::Owned(hide(&text, TOKEN_PATH, token).into_owned()),
    }
}

/// What follows the `://` of an address, without user, password and query; `None` if it has none of them.
fn address(word: &str) -> Option<String> {
    // As a usage text shows the form: `[user:password@]host`.
    let is_form = |at: usize| word.starts_with('[') && word[at..].starts_with("@]");
    let at = word.rfind('@').filter(|at| *at > 0 && !is_form(*at));
    let rest = at.map_or(word, |at| &word[at..]);
    let query = rest.find('?').map(|query| {
        // What ends a sentence is not of the address.
        let end = rest.trim_end_matches([':', ';', ',', '.', ')', ']', '}', '>']).len();
        (query + 1, end.max(query + 1))
    });
    let query = query.filter(|(from, end)| from < end);
    if at.is_none() && query.is_none() {
        return None;
    }
    let start = if at.is_some() { "…" } else { "" };
    Some(match query {
        Some((from, end)) => format!("{start}{}…{}", &rest[..from], &rest[end..]),
        None => format!("{start}{rest}"),
    })
}

/// Puts what `shown` gives for each word that follows `marker`.
fn hide<'a>(text: &'a str, marker: &str, shown: impl Fn(&str) -> Option<String>) -> Cow<'a, str> {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(marker) {
        let (before, after) = rest.split_at(at + marker.len());
        let end = after.find(|c: char| c.is_whitespace() || "\"'`".contains(c)).unwrap_or(after.len());
        out.push_str(before);
        // Other addresses in an unchanged word are looked at as well.
        rest = match shown(&after[..end]) {
            Some(word) => {
                out.push_str(&word);
                &after[end..]
            }
            None => after,
        };
    }
    if out.is_empty() { Cow::Borrowed(text) } else { Cow::Owned(out + rest) }
}

/// A text of somebody else's, shown with its line ends, other control characters, and what turns the direction of
/// writing round escaped. With a precision, as `{:.200}`, so many of its characters are shown, and `…` for the others.
#[derive(Debug, Clone, Copy)]
pub struct OneLine<'a>(pub &'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cut = f.precision().and_then(|chars| self.0.char_indices().nth(chars)).map(|(at, _)| at);
        self.0[..cut.unwrap_or(self.0.len())].chars().try_for_each(|c| match c {
            '\t' => f.write_char(c),
            c if is_obeyed(c) => write!(f, "{}", c.escape_default()),
            c => f.write_char(c),
        })?;
        f.write_str(cut.map_or("", |_| "…"))
    }
}

/// A JSON text that has what others wrote in it, shown with what a terminal obeys as `\u` escapes: whoever reads it as
/// JSON gets the same values.
#[derive(Debug, Clone, Copy)]
pub struct JsonText<'a>(pub &'a str);

impl fmt::Display for JsonText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            // In JSON these stand between values only. A terminal begins its line again at the last.
            '\t' | '\n' => f.write_char(c),
            '\r' => f.write_char(' '),
            // All of them have four digits.
            c if is_obeyed(c) => write!(f, "\\u{:04x}", u32::from(c)),
            c => f.write_char(c),
        })
    }
}

/// Whether a terminal does something else with it than to show it where it stands.
fn is_obeyed(c: char) -> bool {
    c.is_control() || is_format(c)
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
    fn a_precision_cuts_between_two_characters_and_says_so() {
        assert_eq!(format!("{:.2}", OneLine("äöü")), "äö…");
        assert_eq!(format!("{:.3}", OneLine("äöü")), "äöü");
        assert_eq!(format!("{:.1}", OneLine("\u{1b}[2J")), "\\u{1b}…");
        assert_eq!(format!("{:.0}", OneLine("")), "");
    }

    #[test]
    fn json_means_the_same_and_has_nothing_that_a_terminal_obeys() {
        let text =
            "a\u{1b}[2J\r\n\t\u{7f}\u{80}\u{9b}\u{9f}\u{61c}\u{200e}\u{2028}\u{202e}\u{2069} ä 中 \u{200d}😀\\\"";
        let value = serde_json::json!({ text: [text] });
        let shown = JsonText(&value.to_string()).to_string();
        assert!(!shown.chars().any(is_obeyed), "{shown}");
        assert!(shown.contains("\\u009b") && shown.contains("ä 中 \u{200d}😀"), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        assert_eq!(JsonText("{\r\n\t\"a\": 1\u{9b}}").to_string(), "{ \n\t\"a\": 1\\u009b}");
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
            ("http://h/f?X-Amz-Signature=s3cret: refused", "http://h/f?…: refused"),
            ("(see https://u:p@h/f?token=a&b=c#d).", "(see https://…@h/f?…)."),
            ("at http://h/? or http://h?a", "at http://h/? or http://h?…"),
            ("expected http://[user:password@]host:port", "expected http://[user:password@]host:port"),
            ("redis://[user:password@]host[:port][/database]", "redis://[user:password@]host[:port][/database]"),
            ("://", "://"),
            ("http://ü:ö@ä", "http://…@ä"),
        ] {
            assert_eq!(secrets(text), shown);
        }
    }
}
