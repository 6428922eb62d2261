//! Remote control: the messages in which Celery's tools ask, and those in which a worker answers. Pure.

use regex::bytes::RegexBuilder;
use serde_json::{Map, Value, json};

use crate::base::glob;
use crate::celery::envelope::{Envelope, MessageError};

/// Bytes of a regular expression that is looked at: names of workers have some tens.
const PATTERN_BYTES: usize = 1024;

/// Bytes that it may need: many times what such a pattern needs that is no attack.
const REGEX_BYTES: usize = 1 << 20;

/// A command that is meant for this worker.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Command {
    /// What is asked.
    pub method: String,
    /// With which arguments.
    pub arguments: Map<String, Value>,
    /// Where the answer is waited for, if it is.
    pub reply: Option<ReplyTo>,
    /// The sender's logical clock.
    pub clock: u64,
}

/// Where an answer goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReplyTo {
    /// The exchange.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
    /// What the asker knows its answers by.
    pub ticket: String,
}

/// Reads a command; `None` if it is for others.
///
/// # Errors
/// [`MessageError`] if it is none.
pub(super) fn read(text: &[u8], hostname: &str) -> Result<Option<Command>, MessageError> {
    let envelope = Envelope::read(text)?;
    let clock = envelope.headers.get("clock").and_then(Value::as_u64).unwrap_or(0);
    let mut body = envelope.payload()?;
    if !is_for(&body, hostname) {
        return Ok(None);
    }
    let text_of = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let method = text_of(body.get("method"))
        .ok_or_else(|| MessageError::NotAMessage("a command without a method".to_owned()))?;
    let reply = body.get("reply_to").filter(|to| to.is_object()).and_then(|to| {
        Some(ReplyTo {
            exchange: text_of(to.get("exchange"))?,
            routing_key: text_of(to.get("routing_key"))?,
            ticket: text_of(body.get("ticket"))?,
        })
    });
    let arguments = match body.get_mut("arguments").map(Value::take) {
        Some(Value::Object(arguments)) => arguments,
        _ => Map::new(),
    };
    Ok(Some(Command { method, arguments, reply, clock }))
}

fn is_for(body: &Value, hostname: &str) -> bool {
    let text = |key: &str| body.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    match (body.get("destination"), text("pattern"), text("matcher")) {
        (Some(Value::Array(names)), ..) if !names.is_empty() => names.iter().any(|name| name == hostname),
        (Some(Value::String(names)), ..) if !names.is_empty() => names.contains(hostname),
        (_, Some(pattern), Some("glob")) => glob::matches(pattern, hostname),
        (_, Some(pattern), Some("pcre")) => matches_regex(pattern, hostname),
        // Another kind of pattern is not understood, and a command for others is worse than none.
        (_, Some(_), Some(_)) => false,
        _ => true,
    }
}

/// Whether a name begins with what the pattern stands for, as Python's `re.match` says, in the time of both lengths
/// multiplied at most. One that looks around or back is not understood.
fn matches_regex(pattern: &str, hostname: &str) -> bool {
    if pattern.len() > PATTERN_BYTES {
        return false;
    }
    // Names of hosts are ASCII, and the tables of Unicode are large.
    let regex = RegexBuilder::new(&format!("^(?:{pattern})")).unicode(false).size_limit(REGEX_BYTES).build();
    regex.is_ok_and(|regex| regex.is_match(hostname.as_bytes()))
}

/// The message that carries an answer.
pub(super) fn reply(hostname: &str, answer: Value, to: &ReplyTo, clock: u64, tag: &str) -> String {
    let mut envelope = Envelope::json(&json!({ hostname: answer }));
    envelope.headers.insert("ticket".to_owned(), to.ticket.clone().into());
    envelope.headers.insert("clock".to_owned(), clock.into());
    let properties = json!({
        "delivery_mode": 1, "priority": 0, "delivery_tag": tag,
        "delivery_info": {"exchange": to.exchange, "routing_key": to.routing_key},
    });
    if let Value::Object(properties) = properties {
        envelope.properties = properties;
    }
    envelope.write()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(more: Value) -> Option<Command> {
        let mut body =
            json!({"method": "ping", "arguments": {}, "destination": null, "pattern": null, "matcher": null});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        read(Envelope::json(&body).write().as_bytes(), "phalanx@here").unwrap()
    }

    #[test]
    fn a_command_is_for_all_for_the_named_or_for_those_of_a_pattern() {
        assert_eq!(command(json!({})).unwrap().method, "ping");
        assert!(command(json!({"destination": ["phalanx@here", "x"]})).is_some());
        assert!(command(json!({"destination": ["x"]})).is_none());
        assert!(command(json!({"pattern": "pha*@h?r[a-e]", "matcher": "glob"})).is_some());
        assert!(command(json!({"pattern": "x*", "matcher": "glob"})).is_none());
        assert!(command(json!({"pattern": r"pha\w+@he", "matcher": "pcre"})).is_some(), "the beginning is enough");
        assert!(command(json!({"pattern": r"hal", "matcher": "pcre"})).is_none());
        assert!(command(json!({"pattern": r"(?=pha)", "matcher": "pcre"})).is_none(), "not understood");
        assert!(command(json!({"pattern": ".*", "matcher": "fuzzy"})).is_none());
        let asked = command(json!({"ticket": "t", "reply_to": {"exchange": "e", "routing_key": "k"}})).unwrap();
        assert_eq!(asked.reply.unwrap(), ReplyTo { exchange: "e".into(), routing_key: "k".into(), ticket: "t".into() });
        assert!(read(b"x", "h").is_err() && read(Envelope::json(&json!({})).write().as_bytes(), "h").is_err());
    }

    #[test]
    fn a_pattern_of_a_stranger_costs_no_time() {
        let names = |pattern: &str, matcher: &str| {
            let body = json!({"method": "ping", "pattern": pattern, "matcher": matcher});
            read(Envelope::json(&body).write().as_bytes(), &"a".repeat(200)).unwrap().is_some()
        };
        assert!(!names(&format!("{}b", "*a".repeat(300_000)), "glob"));
        assert!(!names(&format!("({}b", "a*)*".repeat(100)), "pcre"));
        assert!(!names("(a*)*(a|aa)+b", "pcre") && names("(a*)*(a|aa)+", "pcre"));
        assert!(!names("((a{100}){100}){100}", "pcre"), "it would need gigabytes");
        assert!(!names(&".".repeat(PATTERN_BYTES + 1), "pcre"), "longer than any that is meant");
    }
}
