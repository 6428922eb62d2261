//! Values that JSON has no type for, as kombu writes them: `{"__type__": "datetime", "__value__": "…"}`. Pure.

use serde_json::{Map, Value};

/// The types that kombu 5 registers.
pub const TYPES: [&str; 7] = ["datetime", "date", "time", "decimal", "uuid", "bytes", "base64"];

/// A value marked with one of [`TYPES`], as kombu writes it. A UUID's value is `{"hex": "…"}`, any other's is a text.
pub fn typed(kind: &str, value: Value) -> Value {
    let mut map = Map::new();
    map.insert("__type__".to_owned(), kind.into());
    map.insert("__value__".to_owned(), value);
    Value::Object(map)
}

/// The type and the value of a marked value.
pub fn as_typed(value: &Value) -> Option<(&str, &Value)> {
    let map = value.as_object().filter(|map| map.len() == 2)?;
    Some((map.get("__type__")?.as_str()?, map.get("__value__")?))
}

/// The value with each marked value in it, however deep, replaced by its text: a time in ISO 8601, a decimal's digits,
/// a UUID with its hyphens, bytes as text or in base64. What is marked with an unknown type is left as it is.
pub fn plain(value: Value) -> Value {
    if let Some(text) = as_typed(&value).and_then(|(kind, value)| text_of(kind, value)) {
        return Value::String(text);
    }
    match value {
        Value::Array(items) => Value::Array(items.into_iter().map(plain).collect()),
        Value::Object(map) => Value::Object(map.into_iter().map(|(key, value)| (key, plain(value))).collect()),
        value => value,
    }
}

fn text_of(kind: &str, value: &Value) -> Option<String> {
    match kind {
        "uuid" => Some(uuid::Uuid::parse_str(value.get("hex")?.as_str()?).ok()?.to_string()),
        kind if TYPES.contains(&kind) => Some(value.as_str()?.to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn marked_values_become_their_text_at_any_depth() {
        let value = json!({"a": [{"__type__": "datetime", "__value__": "2026-11-21T12:00:00"}], "b": 1,
            "u": typed("uuid", json!({"hex": "0123456789abcdef0123456789abcdef"}))});
        let expected = json!({"a": ["2026-11-21T12:00:00"], "b": 1, "u": "01234567-89ab-cdef-0123-456789abcdef"});
        assert_eq!(plain(value), expected);
        for left in [typed("complex", json!("1j")), typed("uuid", json!("x")), json!({"__type__": "date"})] {
            assert_eq!(plain(left.clone()), left);
        }
    }
}
