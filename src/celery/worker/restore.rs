//! Messages that nobody works on, with the marks with which they go back. Pure.

use serde_json::Value;

use crate::celery::json;

/// A message as it goes back to its queue.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Back {
    /// The message, marked as delivered before.
    pub message: String,
    /// Its priority, from 0 to 9.
    pub priority: u8,
}

/// What a worker has recorded of a message: `[message, exchange, routing key]`; `None` if it is something else.
pub(super) fn recorded(entry: &[u8]) -> Option<Back> {
    let Ok(Value::Array(parts)) = json::read(entry) else { return None };
    let [mut message, exchange, routing_key] = <[Value; 3]>::try_from(parts).ok()?;
    if !(message.is_object() && exchange.is_string() && routing_key.is_string()) {
        return None;
    }
    mark(&mut message);
    let priority = message.pointer("/properties/priority").and_then(Value::as_i64).unwrap_or(0).clamp(0, 9) as u8;
    Some(Back { message: json::write(&message), priority })
}

/// A message with the marks of one that was delivered before; `None` if it is no JSON object.
pub(super) fn marked(message: &[u8]) -> Option<String> {
    let mut message = json::read(message).ok().filter(Value::is_object)?;
    mark(&mut message);
    Some(json::write(&message))
}

/// The marks that kombu sets.
fn mark(message: &mut Value) {
    for place in ["/headers", "/properties/delivery_info"] {
        if let Some(Value::Object(map)) = message.pointer_mut(place) {
            map.insert("redelivered".to_owned(), true.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_goes_back_marked_and_otherwise_as_it_was() {
        let message = r#"{"body":"x","headers":{"id":"1","score":NaN,"file":"caf\udce9"},"properties":{"priority":7,
            "delivery_info":{"a":1}}}"#;
        let back = recorded(format!("[{message}, \"\", \"q\"]").as_bytes()).unwrap();
        let marked_up = r#"{"body":"x","headers":{"id":"1","score":NaN,"file":"caf\udce9","redelivered":true},"#;
        assert!(back.message.starts_with(marked_up), "{}", back.message);
        assert!(back.message.ends_with(r#""delivery_info":{"a":1,"redelivered":true}}}"#), "{}", back.message);
        assert_eq!((back.priority, marked(message.as_bytes())), (7, Some(back.message)));
    }

    #[test]
    fn what_is_not_a_record_is_left_alone() {
        for bad in ["", "{}", "[]", "[1,\"\",\"q\"]", "[{},1,\"q\"]", "[{},\"\",\"q\",1]"] {
            assert_eq!(recorded(bad.as_bytes()), None, "{bad}");
        }
        assert!(recorded(b"[{},\"\",\"q\"]").is_some(), "marks need not be there");
    }
}
