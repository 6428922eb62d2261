//! The kind of a message from its text alone, without reading the rest. Pure.

use crate::base::text::truncated;

/// The field that names it; an escaped one in a text is none.
const FIELD: &str = "\"message_type\"";

/// Bytes of a text that are looked at, from its beginning and from its end: what may be longer, as a volume or what a
/// job wrote, stands between.
const NEAR: usize = 1024;

/// The value of the first field `message_type` that is near the beginning of a message, or near its end; `None` if
/// there is none. What it says is as the peer wrote it.
pub fn kind_of(text: &str) -> Option<&str> {
    let end = (text.len().saturating_sub(NEAR)..=text.len()).find(|at| text.is_char_boundary(*at))?;
    value(truncated(text, NEAR)).or_else(|| value(&text[end..]))
}

fn value(part: &str) -> Option<&str> {
    let (before, after) = part.split_once(FIELD)?;
    let after = after.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
    (!before.ends_with('\\')).then(|| after.split('"').next()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_is_found_at_either_end_of_a_message_and_not_in_what_it_quotes() {
        let long = "ä".repeat(10_000);
        assert_eq!(kind_of(r#"{"message_type": "V0Heartbeat"}"#), Some("V0Heartbeat"));
        assert_eq!(kind_of(&format!(r#"{{"message_type":"V2JobRequest","x":"{long}"}}"#)), Some("V2JobRequest"));
        assert_eq!(kind_of(&format!(r#"{{"x":"{long}","message_type":"V0JobRequest"}}"#)), Some("V0JobRequest"));
        for none in
            ["", "PING", r#"{"status":"success"}"#, r#"{"x":"\"message_type\":\"y\""}"#, r#"{"message_type":3}"#]
        {
            assert_eq!(kind_of(none), None, "{none}");
        }
    }
}
