//! What of a refusal's body goes into the text of an error. Pure.

use serde_json::Value;

use crate::base::text::truncated;
use crate::ops::redact::OneLine;

/// Bytes of JSON that are parsed for a reason, which is short.
const JSON_BYTES: usize = 16 << 10;

/// What a body says, in one line of at most `bytes` bytes before they are escaped: the reason, if it is JSON as APIs
/// refuse with (`{"detail": …}`, `{"error": …}`); that it is a page for people, if it is one, because its head says
/// nothing; else its beginning. Empty if there is nothing.
pub(crate) fn said(body: &[u8], bytes: usize) -> String {
    let value = if body.len() <= JSON_BYTES { serde_json::from_slice(body).ok() } else { None };
    if let Some(reason) = value.as_ref().and_then(reason) {
        return cut(reason.trim(), bytes);
    }
    let text = String::from_utf8_lossy(&body[..body.len().min(bytes.saturating_add(1))]);
    let text = text.trim();
    let begins = |with: &str| text.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    if begins("<!doctype") || begins("<html") {
        return "a page for people, as HTML".to_owned();
    }
    cut(text, bytes)
}

fn reason(value: &Value) -> Option<&str> {
    ["detail", "error", "message"].iter().find_map(|key| value[key].as_str())
}

fn cut(text: &str, bytes: usize) -> String {
    let start = truncated(text, bytes);
    format!("{}{}", OneLine(start), if start.len() < text.len() { "…" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_quoted_by_what_it_says() {
        let long = format!("{{\"detail\": \"{}\"}}", "x".repeat(90));
        for (body, shown) in [
            (r#"{"detail": "No such job\n", "code": 4}"#, "No such job".to_owned()),
            (r#"{"error": "gone"}"#, "gone".to_owned()),
            (r#"{"target": ["is wrong"]}"#, r#"{"target": ["is wrong"]}"#.to_owned()),
            (" <!DOCTYPE html>\n<html><head><style>", "a page for people, as HTML".to_owned()),
            ("<HTML>", "a page for people, as HTML".to_owned()),
            ("<Error><Code>AccessDenied", "<Error><Code>AccessDenied".to_owned()),
            (" no\r\n\u{1b}[2J ", "no\\r\\n\\u{1b}[2J".to_owned()),
            (long.as_str(), format!("{}…", "x".repeat(40))),
            (&"ä".repeat(21), format!("{}…", "ä".repeat(20))),
            (&"y".repeat(40), "y".repeat(40)),
            ("", String::new()),
        ] {
            assert_eq!(said(body.as_bytes(), 40), shown, "{body}");
        }
        assert_eq!(said(b"a\xff", 40), "a\u{fffd}");
    }
}
