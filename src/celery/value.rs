//! Values that JSON has no type for, as `{"__type__": …, "__value__": …}`. kombu writes times, decimals, UUIDs and
//! bytes so. What Python's `json` writes although it is not JSON is so in memory alone: [`json`](super::json) reads and
//! writes it. Pure.

use std::collections::VecDeque;

use serde_json::{Map, Value};

/// The types that kombu 5 registers.
pub const TYPES: [&str; 7] = ["datetime", "date", "time", "decimal", "uuid", "bytes", "base64"];

/// The type of a number that JSON has not; its value is one of [`FLOATS`].
pub const FLOAT: &str = "python.float";

/// The type of a text with lone surrogates. In its value these stand as `\udce9`, and a backslash as `\\`.
pub const TEXT: &str = "python.text";

/// The type of a mapping of which a name has lone surrogates; its value is the list of its pairs.
pub const MAPPING: &str = "python.mapping";

/// The numbers that JSON has not, as Python writes them.
pub const FLOATS: [&str; 3] = ["NaN", "Infinity", "-Infinity"];

/// What a written value has if there is one of [`FLOAT`], [`TEXT`] and [`MAPPING`] in it.
pub(super) const MARK: &str = r#""__type__":"python."#;

/// A value marked with a type. A UUID's value is `{"hex": "…"}`, that of most others a text.
pub fn typed(kind: &str, value: Value) -> Value {
    let mut map = Map::new();
    map.insert("__type__".to_owned(), kind.into());
    map.insert("__value__".to_owned(), value);
    Value::Object(map)
}

/// A number, also one that JSON has not: `json!` and [`Value::from`] make those `null`.
pub fn float(number: f64) -> Value {
    match number {
        _ if number.is_nan() => typed(FLOAT, FLOATS[0].into()),
        f64::INFINITY => typed(FLOAT, FLOATS[1].into()),
        f64::NEG_INFINITY => typed(FLOAT, FLOATS[2].into()),
        number => number.into(),
    }
}

/// The type and the value of a marked value.
pub fn as_typed(value: &Value) -> Option<(&str, &Value)> {
    let map = value.as_object().filter(|map| map.len() == 2)?;
    Some((map.get("__type__")?.as_str()?, map.get("__value__")?))
}

/// The value with each marked value in it, however deep, replaced by its text: a time in ISO 8601, a decimal's digits,
/// a UUID with its hyphens, bytes as text or in base64, `NaN`, and � for a lone surrogate. What is marked with an
/// unknown type is left as it is.
pub fn plain(value: Value) -> Value {
    match python(&value) {
        Some(Python::Float(name)) => return name.into(),
        Some(Python::Text(odd)) => return odd.lossy().into(),
        Some(Python::Mapping(pairs)) => {
            let key = |key: &Value| match plain(key.clone()) {
                Value::String(key) => key,
                other => other.to_string(),
            };
            return Value::Object(pairs.iter().map(|pair| (key(&pair[0]), plain(pair[1].clone()))).collect());
        }
        None => {}
    }
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

/// What is not JSON in a value, with its place in front, as `env.FILE: …`; the first of it.
pub fn not_json(value: &Value) -> Option<String> {
    let (place, problem) = first_odd(value)?;
    Some(if place.is_empty() { problem } else { format!("{}: {problem}", Vec::from(place).join(".")) })
}

/// The names that lead to it, and what it is.
fn first_odd(value: &Value) -> Option<(VecDeque<String>, String)> {
    let within = |name: String, inner: &Value| {
        let (mut place, problem) = first_odd(inner)?;
        place.push_front(name);
        Some((place, problem))
    };
    match (python(value), value) {
        (Some(Python::Float(name)), _) => Some((VecDeque::new(), format!("{name} is not JSON"))),
        (Some(Python::Text(odd)), _) => Some((VecDeque::new(), odd.complaint())),
        (Some(Python::Mapping(pairs)), _) => pairs.iter().find_map(|pair| first_odd(&pair[0])),
        (None, Value::Array(items)) => items.iter().enumerate().find_map(|(at, item)| within(at.to_string(), item)),
        (None, Value::Object(map)) => map.iter().find_map(|(key, value)| within(key.escape_debug().to_string(), value)),
        _ => None,
    }
}

/// What Python writes although it is not JSON.
#[derive(Debug, Clone, Copy)]
pub(super) enum Python<'a> {
    Float(&'static str),
    Text(Odd<'a>),
    /// Each has a key, a text or a [`TEXT`], and a value.
    Mapping(&'a [Value]),
}

/// What the value stands for, if it is marked so and is well-formed.
pub(super) fn python(value: &Value) -> Option<Python<'_>> {
    match as_typed(value)? {
        (FLOAT, name) => FLOATS.into_iter().find(|float| name == float).map(Python::Float),
        (TEXT, text) => Some(Odd(text.as_str()?)).filter(Odd::is_right).map(Python::Text),
        (MAPPING, pairs) => {
            let is_odd = |key: &Value| matches!(python(key), Some(Python::Text(_)));
            let key_of = |pair: &Value| pair.as_array().filter(|pair| pair.len() == 2).map(|pair| pair[0].clone());
            let keys: Vec<Value> = pairs.as_array()?.iter().map(key_of).collect::<Option<_>>()?;
            let is_right = keys.iter().all(|key| key.is_string() || is_odd(key)) && keys.iter().any(is_odd);
            pairs.as_array().filter(|_| is_right).map(|pairs| Python::Mapping(pairs))
        }
        _ => None,
    }
}

/// A text with lone surrogates, as the value of a [`TEXT`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Odd<'a>(&'a str);

impl<'a> Odd<'a> {
    /// Whether it is what a text is read as: it has a lone surrogate, and none that is one with the next.
    fn is_right(&self) -> bool {
        let (mut rest, mut is_odd, mut after_high) = (self.0, false, false);
        while let Some(at) = rest.find('\\') {
            after_high &= at == 0;
            rest = &rest[at + 1..];
            if rest.starts_with('\\') {
                (rest, after_high) = (&rest[1..], false);
                continue;
            }
            let Some(digits) = rest.strip_prefix('u').and_then(|rest| rest.get(..4)) else { return false };
            let is_written_so = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            let Some(unit) = u16::from_str_radix(digits, 16).ok().filter(|_| is_written_so) else { return false };
            match unit {
                0xd800..0xdc00 => after_high = true,
                0xdc00..0xe000 if !after_high => {}
                _ => return false,
            }
            (rest, is_odd) = (&rest[5..], true);
        }
        is_odd
    }

    /// Its characters, and its surrogates.
    pub(super) fn parts(self) -> impl Iterator<Item = Result<char, u16>> + use<'a> {
        let mut chars = self.0.chars();
        std::iter::from_fn(move || match chars.next()? {
            '\\' if chars.next()? == 'u' => {
                let digits: String = chars.by_ref().take(4).collect();
                u16::from_str_radix(&digits, 16).ok().map(Err)
            }
            c => Some(Ok(c)),
        })
    }

    /// As Python's `repr` shows it, without the quotes.
    pub(super) fn shown(self) -> &'a str {
        self.0
    }

    fn lossy(self) -> String {
        self.parts().map(|part| part.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
    }

    pub(super) fn complaint(self) -> String {
        let shown: String = self.0.chars().take(64).collect();
        format!("a text with a lone surrogate, '{shown}', is not UTF-8")
    }
}

/// A character more for a text, or for the value of a [`TEXT`].
pub(super) fn push_odd(text: &mut String, c: char, is_odd: bool) {
    text.push(c);
    if is_odd && c == '\\' {
        text.push(c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::celery::json;
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
        let odd = json::read(br#"{"\udce9": [NaN, "a\udce9\\"]}"#).unwrap();
        assert_eq!(plain(odd), json!({"\u{fffd}": ["NaN", "a\u{fffd}\\"]}));
    }

    #[test]
    fn the_place_of_what_is_not_json_is_named() {
        let value = json::read(br#"{"a": 1, "env": {"FILE": ["x", "caf\udce9"]}}"#).unwrap();
        let problem = not_json(&value).unwrap();
        assert_eq!(problem, r"env.FILE.1: a text with a lone surrogate, 'caf\udce9', is not UTF-8");
        assert_eq!(not_json(&float(f64::NAN)).unwrap(), "NaN is not JSON");
        assert_eq!(not_json(&json!({"a": [1, {}]})), None);
        // Whoever writes such a mark himself gets it back.
        let texts = ["x", "\\x", "\\u0041", "\\uDCE9", "\\ud83d\\ude00", "\\udce"].map(|text| typed(TEXT, json!(text)));
        let others = [typed(FLOAT, json!("nan")), typed(MAPPING, json!([[1, 2]])), typed(MAPPING, json!([["a", 2]]))];
        for left in texts.into_iter().chain(others) {
            assert_eq!((json::write(&left), not_json(&left)), (left.to_string(), None));
        }
        let apart = typed(TEXT, json!("\\ud83d \\ude00\\ud83d\\\\\\ude00"));
        assert_eq!(json::read(json::write(&apart).as_bytes()), Ok(apart));
    }
}
