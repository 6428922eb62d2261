//! Messages that nobody works on: where they go back to, and with which marks. Pure.

use serde_json::Value;

use crate::celery::keys::{SEPARATOR, queue_key};

/// A message as it goes back to its queue.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Back {
    /// The message, marked as delivered before.
    pub message: String,
    /// Where it was sent to.
    pub exchange: String,
    /// Under which key.
    pub routing_key: String,
    /// Its priority, from 0 to 9.
    pub priority: u8,
}

/// What a worker has recorded of a message: `[message, exchange, routing key]`; `None` if it is something else.
pub(super) fn recorded(entry: &[u8]) -> Option<Back> {
    let Ok(Value::Array(parts)) = serde_json::from_slice(entry) else { return None };
    let [mut message, exchange, routing_key] = <[Value; 3]>::try_from(parts).ok()?;
    if !message.is_object() {
        return None;
    }
    mark(&mut message);
    let priority = message.pointer("/properties/priority").and_then(Value::as_i64).unwrap_or(0).clamp(0, 9) as u8;
    Some(Back {
        message: message.to_string(),
        exchange: exchange.as_str()?.to_owned(),
        routing_key: routing_key.as_str()?.to_owned(),
        priority,
    })
}

/// A message with the marks of one that was delivered before; `None` if it is no JSON object.
pub(super) fn marked(message: &[u8]) -> Option<String> {
    let mut message: Value = serde_json::from_slice(message).ok().filter(Value::is_object)?;
    mark(&mut message);
    Some(message.to_string())
}

/// The marks that kombu sets.
fn mark(message: &mut Value) {
    for place in ["/headers", "/properties/delivery_info"] {
        if let Some(Value::Object(map)) = message.pointer_mut(place) {
            map.insert("redelivered".to_owned(), true.into());
        }
    }
}

impl Back {
    /// The list that the message goes back to, by the bindings of its exchange (empty for the exchange without a name);
    /// `None` if no queue is bound to it.
    pub(super) fn list(&self, bindings: &[String]) -> Option<String> {
        if self.exchange.is_empty() {
            return (!self.routing_key.is_empty()).then(|| queue_key(&self.routing_key, self.priority));
        }
        let bound = bindings.iter().find_map(|binding| {
            let mut parts = binding.split(SEPARATOR);
            let (routing_key, _pattern, queue) = (parts.next()?, parts.next()?, parts.next()?);
            (routing_key == self.routing_key).then_some(queue)
        });
        bound.map(|queue| queue_key(queue, self.priority))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_message_goes_back_marked_to_the_list_of_its_priority() {
        let message =
            json!({"body": "x", "headers": {"id": "1"}, "properties": {"priority": 7, "delivery_info": {"a": 1}}});
        let mut back = recorded(json!([message, "", "q"]).to_string().as_bytes()).unwrap();
        let marked: Value = serde_json::from_str(&back.message).unwrap();
        assert_eq!(marked["headers"], json!({"id": "1", "redelivered": true}));
        assert_eq!(marked["properties"]["delivery_info"], json!({"a": 1, "redelivered": true}));
        assert_eq!(back.list(&[]).unwrap(), "q\u{6}\u{16}6");
        back.exchange = "e".to_owned();
        let bindings = ["k\u{6}\u{16}\u{6}\u{16}other".to_owned(), "q\u{6}\u{16}\u{6}\u{16}work".to_owned()];
        assert_eq!(back.list(&bindings).unwrap(), "work\u{6}\u{16}6");
        assert_eq!(back.list(&bindings[..1]), None);
    }

    #[test]
    fn what_is_not_a_record_is_left_alone() {
        for bad in ["", "{}", "[]", "[1,\"\",\"q\"]", "[{},1,\"q\"]", "[{},\"\",\"q\",1]"] {
            assert_eq!(recorded(bad.as_bytes()), None, "{bad}");
        }
        assert!(recorded(b"[{},\"\",\"q\"]").is_some(), "marks need not be there");
    }
}
