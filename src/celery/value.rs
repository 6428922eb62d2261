//! Values that JSON has no type for, as `{"__type__": …, "__value__": …}`. kombu writes times, decimals, UUIDs and
//! bytes so. What Python's `json` writes although it is not JSON is so in memory alone: [`json`](super::json) reads and
//! writes it. Pure.

use std::collections::VecDeque;

use serde::Deserialize;
use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{Deserializer, Error as _, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;
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

/// A number, also one that JSON has not: [`serde_json`] alone makes those `null`.
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

/// A value as a type of the program. A number that JSON has not is one for `f64` and `f32`.
///
/// # Errors
/// What does not fit; of a text with lone surrogates, that it is not UTF-8.
pub fn read<'a, T: Deserialize<'a>>(value: &'a Value) -> Result<T, serde_json::Error> {
    if not_json(value).is_some() { T::deserialize(Lenient(value)) } else { T::deserialize(value) }
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
            let is_key = |key: &Value| key.is_string() || matches!(python(key), Some(Python::Text(_)));
            let is_pair = |pair: &Value| pair.as_array().is_some_and(|pair| pair.len() == 2 && is_key(&pair[0]));
            pairs.as_array().filter(|pairs| pairs.iter().all(is_pair)).map(|pairs| Python::Mapping(pairs))
        }
        _ => None,
    }
}

/// A text with lone surrogates, as the value of a [`TEXT`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Odd<'a>(&'a str);

impl<'a> Odd<'a> {
    fn is_right(&self) -> bool {
        let mut rest = self.0;
        while let Some(at) = rest.find('\\') {
            rest = &rest[at + 1..];
            if rest.starts_with('\\') {
                rest = &rest[1..];
            } else {
                let Some(digits) = rest.strip_prefix('u').and_then(|rest| rest.get(..4)) else { return false };
                let is_lone = |unit: u16| (0xd800..0xe000).contains(&unit);
                if !u16::from_str_radix(digits, 16).is_ok_and(is_lone) {
                    return false;
                }
                rest = &rest[5..];
            }
        }
        true
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

    fn complaint(self) -> String {
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

/// Gives a value to serde with what is not JSON in it, where the program asks for a number or a text.
#[derive(Clone, Copy)]
struct Lenient<'de>(&'de Value);

impl<'de> IntoDeserializer<'de, serde_json::Error> for Lenient<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! only_json {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
            match python(self.0) {
                Some(Python::Text(odd)) => Err(Self::Error::custom(odd.complaint())),
                Some(Python::Float(name)) => Err(Self::Error::custom(format!("{name} is not JSON"))),
                _ => self.0.$method(visitor),
            }
        }
    )*};
}

macro_rules! floats {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
            match python(self.0) {
                Some(Python::Float("NaN")) => visitor.visit_f64(f64::NAN),
                Some(Python::Float("Infinity")) => visitor.visit_f64(f64::INFINITY),
                Some(Python::Float(_)) => visitor.visit_f64(f64::NEG_INFINITY),
                _ => self.0.$method(visitor),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Lenient<'de> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Array(items) => {
                let mut items = SeqDeserializer::new(items.iter().map(Lenient));
                let read = visitor.visit_seq(&mut items)?;
                items.end().map(|()| read)
            }
            Value::Object(map) => {
                let mut fields = MapDeserializer::new(map.iter().map(|(key, value)| (key.as_str(), Lenient(value))));
                let read = visitor.visit_map(&mut fields)?;
                fields.end().map(|()| read)
            }
            leaf => leaf.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    floats! { deserialize_f32 deserialize_f64 }

    only_json! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128 deserialize_u8 deserialize_u16
        deserialize_u32 deserialize_u64 deserialize_u128 deserialize_bool deserialize_char deserialize_str
        deserialize_string deserialize_bytes deserialize_byte_buf
    }

    forward_to_deserialize_any! { unit unit_struct seq tuple tuple_struct map struct identifier ignored_any }
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
    fn a_program_gets_what_fits_and_is_told_what_does_not() {
        #[derive(Debug, PartialEq, Deserialize)]
        struct Job {
            score: f64,
            name: Option<String>,
            more: Vec<f32>,
        }
        let value = json::read(br#"{"score": -Infinity, "name": "x", "more": [Infinity, 1]}"#).unwrap();
        let read_job: Job = read(&value).unwrap();
        let expected = Job { score: f64::NEG_INFINITY, name: Some("x".to_owned()), more: vec![f32::INFINITY, 1.0] };
        assert_eq!(read_job, expected);
        assert!(read::<f64>(&float(f64::NAN)).unwrap().is_nan());
        let value = json::read(br#"{"score": NaN, "name": "caf\udce9", "more": []}"#).unwrap();
        let error = read::<Job>(&value).unwrap_err().to_string();
        assert_eq!(error, r"a text with a lone surrogate, 'caf\udce9', is not UTF-8");
        assert_eq!(read::<u8>(&float(f64::NAN)).unwrap_err().to_string(), "NaN is not JSON");
        assert_eq!(read::<Value>(&value).unwrap(), value, "what is passed on stays");
    }

    #[test]
    fn the_place_of_what_is_not_json_is_named() {
        let value = json::read(br#"{"a": 1, "env": {"FILE": ["x", "caf\udce9"]}}"#).unwrap();
        let problem = not_json(&value).unwrap();
        assert_eq!(problem, r"env.FILE.1: a text with a lone surrogate, 'caf\udce9', is not UTF-8");
        assert_eq!(not_json(&float(f64::NAN)).unwrap(), "NaN is not JSON");
        assert_eq!(not_json(&json!({"a": [1, {}]})), None);
        // Whoever writes such a mark himself gets it back.
        for left in [typed(FLOAT, json!("nan")), typed(TEXT, json!("\\x")), typed(MAPPING, json!([[1, 2]]))] {
            assert_eq!((json::write(&left), not_json(&left)), (left.to_string(), None));
        }
    }
}
