//! A text that a peer, a job or a server wrote, as a type of its own: it is escaped wherever it is shown. Pure.

use std::fmt;

use serde::Deserialize;
use serde_json::Value;

use super::redact::OneLine;

/// A text of somebody else's.
///
/// `Display` shows it on one line with control characters and what turns the direction of writing round escaped, and
/// with a precision, as `{:.200}`, so many characters of it; `Debug` escapes too. It cannot be written as JSON: a
/// document is made of [`Foreign::as_written`] and shown by [`JsonText`](super::redact::JsonText).
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(transparent)]
pub struct Foreign(String);

impl Foreign {
    /// What a field of somebody's JSON says: its text, `-` for nothing, else its JSON.
    pub fn of(value: &Value) -> Self {
        match value {
            Value::Null => Self::from("-"),
            Value::String(text) => Self::from(text.as_str()),
            other => Self(other.to_string()),
        }
    }

    /// As it was written: to compare, to keep, for a JSON document. Not for a terminal or a log, unless somebody has
    /// asked for that.
    pub fn as_written(&self) -> &str {
        &self.0
    }

    /// Its lines, each to be shown by itself.
    pub fn lines(&self) -> impl Iterator<Item = OneLine<'_>> {
        self.0.lines().map(OneLine)
    }
}

impl From<String> for Foreign {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Foreign {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&OneLine(&self.0), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nothing_that_a_terminal_obeys_is_shown() {
        let text: Foreign = serde_json::from_value(json!("a\u{1b}[2J\u{9b}\n\u{202e}ä")).unwrap();
        assert_eq!(text.to_string(), "a\\u{1b}[2J\\u{9b}\\n\\u{202e}ä");
        assert_eq!(format!("{text:.1}"), "a…");
        assert_eq!(text.lines().map(|line| line.to_string()).collect::<Vec<_>>(), ["a\\u{1b}[2J\\u{9b}", "\\u{202e}ä"]);
        assert!(!format!("{text:?}").contains(['\u{1b}', '\u{9b}', '\n', '\u{202e}']), "{text:?}");
        assert_eq!(text.as_written(), "a\u{1b}[2J\u{9b}\n\u{202e}ä");
    }

    #[test]
    fn a_field_of_any_kind_is_shown() {
        for (value, shown) in
            [(json!("a\u{9b}"), "a\\u{9b}"), (json!(null), "-"), (json!(3), "3"), (json!(["\u{9b}"]), "[\"\\u{9b}\"]")]
        {
            assert_eq!(Foreign::of(&value).to_string(), shown);
        }
    }
}
