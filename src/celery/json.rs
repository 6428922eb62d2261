//! JSON as Python's `json` writes and reads it. Beside JSON, that is `NaN`, `Infinity`, `-Infinity` and texts with lone
//! surrogates, as Python holds a file name that is not UTF-8. Pure.
//!
//! A [`Value`] can hold neither, so they are in it as [`super::value::typed`] has them, and written as
//! Python had them: what is only passed on is not changed.

use serde_json::{Map, Value};

use super::value::{self, Odd, Python};
use crate::base::limits::CELERY_JSON_LEVELS;

/// What is wrong with a text that is not JSON, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at}")]
pub struct JsonError {
    what: String,
    at: usize,
}

/// Reads a text, nested [`CELERY_JSON_LEVELS`] levels at most.
///
/// # Errors
/// [`JsonError`].
pub fn read(text: &[u8]) -> Result<Value, JsonError> {
    // Nearly everything is JSON, which is read faster so.
    if let Ok(value) = serde_json::from_slice(text) {
        return Ok(value);
    }
    let text = std::str::from_utf8(text)
        .map_err(|error| JsonError { what: "it is not UTF-8".to_owned(), at: error.valid_up_to() })?;
    let mut reader = Reader { text, at: 0, levels: 0 };
    let value = reader.value()?;
    reader.space();
    if reader.at < text.len() { Err(reader.wrong("something follows the value")) } else { Ok(value) }
}

/// Writes a value without spaces.
pub fn write(value: &Value) -> String {
    let text = value.to_string();
    if !text.contains(value::MARK) {
        return text;
    }
    let mut text = String::with_capacity(text.len());
    write_value(value, &mut text);
    text
}

fn write_value(value: &Value, text: &mut String) {
    match (value::python(value), value) {
        (Some(Python::Float(name)), _) => text.push_str(name),
        (Some(Python::Text(odd)), _) => write_odd(odd, text),
        (Some(Python::Mapping(pairs)), _) => write_all('{', pairs, '}', text, |pair, text| {
            write_value(&pair[0], text);
            text.push(':');
            write_value(&pair[1], text);
        }),
        (None, Value::Object(map)) => write_all('{', map, '}', text, |(key, value), text| {
            text.push_str(&Value::from(key.as_str()).to_string());
            text.push(':');
            write_value(value, text);
        }),
        (None, Value::Array(items)) => write_all('[', items, ']', text, write_value),
        (None, leaf) => text.push_str(&leaf.to_string()),
    }
}

fn write_all<T>(
    open: char,
    items: impl IntoIterator<Item = T>,
    close: char,
    text: &mut String,
    write: impl Fn(T, &mut String),
) {
    text.push(open);
    for (at, item) in items.into_iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        write(item, text);
    }
    text.push(close);
}

fn write_odd(odd: Odd<'_>, text: &mut String) {
    text.push('"');
    for part in odd.parts() {
        match part {
            Ok(plain) => {
                let quoted = Value::from(plain.to_string()).to_string();
                text.push_str(&quoted[1..quoted.len() - 1]);
            }
            Err(surrogate) => text.push_str(&format!("\\u{surrogate:04x}")),
        }
    }
    text.push('"');
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    levels: usize,
}

impl<'a> Reader<'a> {
    fn wrong(&self, what: impl Into<String>) -> JsonError {
        JsonError { what: what.into(), at: self.at }
    }

    fn rest(&self) -> &'a [u8] {
        &self.text.as_bytes()[self.at..]
    }

    fn space(&mut self) {
        self.at += self.rest().iter().take_while(|byte| b" \t\n\r".contains(byte)).count();
    }

    /// Skips spaces and then this text, if it is there.
    fn skip(&mut self, text: &str) -> bool {
        self.space();
        let found = self.rest().starts_with(text.as_bytes());
        self.at += if found { text.len() } else { 0 };
        found
    }

    fn value(&mut self) -> Result<Value, JsonError> {
        for (text, value) in [("null", Value::Null), ("true", true.into()), ("false", false.into())] {
            if self.skip(text) {
                return Ok(value);
            }
        }
        for name in value::FLOATS {
            if self.skip(name) {
                return Ok(value::typed(value::FLOAT, name.into()));
            }
        }
        match self.rest().first() {
            None => Err(self.wrong("a value is missing")),
            Some(b'"') => self.string(),
            Some(b'[') => self.nested(Self::list),
            Some(b'{') => self.nested(Self::mapping),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(_) => Err(self.wrong("no value begins like this")),
        }
    }

    fn nested(&mut self, read: impl FnOnce(&mut Self) -> Result<Value, JsonError>) -> Result<Value, JsonError> {
        if self.levels == CELERY_JSON_LEVELS {
            return Err(self.wrong(format!("it is nested deeper than {CELERY_JSON_LEVELS} levels")));
        }
        self.levels += 1;
        self.at += 1;
        let value = read(self)?;
        self.levels -= 1;
        Ok(value)
    }

    fn list(&mut self) -> Result<Value, JsonError> {
        let mut items = Vec::new();
        if self.skip("]") {
            return Ok(items.into());
        }
        loop {
            items.push(self.value()?);
            if self.skip("]") {
                return Ok(items.into());
            }
            if !self.skip(",") {
                return Err(self.wrong("a list goes on without a comma"));
            }
        }
    }

    fn mapping(&mut self) -> Result<Value, JsonError> {
        let mut pairs: Vec<(Value, Value)> = Vec::new();
        let mut more = !self.skip("}");
        while more {
            self.space();
            if self.rest().first() != Some(&b'"') {
                return Err(self.wrong("a name in quotes is missing"));
            }
            let key = self.string()?;
            if !self.skip(":") {
                return Err(self.wrong("a name goes on without a colon"));
            }
            pairs.push((key, self.value()?));
            more = !self.skip("}");
            if more && !self.skip(",") {
                return Err(self.wrong("a mapping goes on without a comma"));
            }
        }
        if pairs.iter().all(|(key, _)| key.is_string()) {
            let named = pairs.into_iter().filter_map(|(key, value)| match key {
                Value::String(key) => Some((key, value)),
                _ => None,
            });
            return Ok(Value::Object(named.collect::<Map<_, _>>()));
        }
        let pairs = pairs.into_iter().map(|(key, value)| Value::Array(vec![key, value]));
        Ok(value::typed(value::MAPPING, Value::Array(pairs.collect())))
    }

    fn number(&mut self) -> Result<Value, JsonError> {
        let length = self.rest().iter().take_while(|byte| b"+-.0123456789eE".contains(byte)).count();
        let number = self.text[self.at..self.at + length].parse::<serde_json::Number>();
        let number = number.map_err(|_| self.wrong("no number is written like this"))?;
        self.at += length;
        Ok(number.into())
    }

    /// A text as it is, or with lone surrogates as [`value::TEXT`] has it.
    fn string(&mut self) -> Result<Value, JsonError> {
        self.at += 1;
        let (mut text, mut is_odd) = (String::new(), false);
        loop {
            let plain = self.rest().iter().take_while(|byte| !matches!(byte, b'"' | b'\\' | 0..=0x1f)).count();
            text.push_str(&self.text[self.at..self.at + plain]);
            self.at += plain;
            match self.rest() {
                [b'"', ..] => {
                    self.at += 1;
                    return Ok(if is_odd { value::typed(value::TEXT, text.into()) } else { text.into() });
                }
                [b'\\', b'u', ..] => match self.unicode()? {
                    Ok(c) => value::push_odd(&mut text, c, is_odd),
                    Err(surrogate) => {
                        if !is_odd {
                            (text, is_odd) = (text.replace('\\', "\\\\"), true);
                        }
                        text.push_str(&format!("\\u{surrogate:04x}"));
                    }
                },
                [b'\\', escaped, ..] => {
                    let names = b"\"\\/bfnrt".iter().zip("\"\\/\u{8}\u{c}\n\r\t".chars());
                    let Some((_, c)) = names.into_iter().find(|(name, _)| *name == escaped) else {
                        return Err(self.wrong("no escape is written like this"));
                    };
                    value::push_odd(&mut text, c, is_odd);
                    self.at += 2;
                }
                [] | [b'\\'] => return Err(self.wrong("a text does not end")),
                _ => return Err(self.wrong("a control character stands in a text")),
            }
        }
    }

    /// The character of `\uXXXX`, or of two of them, or a surrogate that is alone.
    fn unicode(&mut self) -> Result<Result<char, u16>, JsonError> {
        let unit = |at: usize| {
            let digits = self.text.get(at + 2..at + 6).filter(|_| self.text[at..].starts_with("\\u"))?;
            let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            u16::from_str_radix(digits, 16).ok().filter(|_| is_hex)
        };
        let Some(first) = unit(self.at) else { return Err(self.wrong("four hexadecimal digits are missing")) };
        let pair = unit(self.at + 6).map(|second| [first, second]);
        // A pair is one character, as Python reads it.
        if let Some(Ok(c)) = pair.and_then(|pair| char::decode_utf16(pair).next()).filter(|c| c.is_ok())
            && c > '\u{ffff}'
        {
            self.at += 12;
            return Ok(Ok(c));
        }
        self.at += 6;
        Ok(char::from_u32(first.into()).ok_or(first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Read and written again, a text is the same.
    fn same(text: &str) -> Value {
        let value = read(text.as_bytes()).unwrap();
        assert_eq!(write(&value), text);
        value
    }

    #[test]
    fn what_python_writes_and_json_has_no_form_for_is_passed_on_unchanged() {
        for text in [
            r#"[NaN,Infinity,-Infinity,1.5,null,"x"]"#,
            r#"{"a":"caf\udce9 \\udce9 \" \n ü 😀","b":["\ud800","\\"]}"#,
            r#"{"\udce9":{"x":[NaN]},"plain":1}"#,
            r#"{"\udce9":{}}"#,
            "[18446744073709551616000,-1e+400]",
        ] {
            same(text);
        }
        assert_eq!(same("[NaN]"), json!([value::typed(value::FLOAT, json!("NaN"))]));
        assert_eq!(same(r#"["\\\udce9"]"#), json!([value::typed(value::TEXT, json!("\\\\\\udce9"))]));
    }

    #[test]
    fn what_is_json_is_read_as_json() {
        let text = " { \"a\" : [ 1 , -2.5e3 , \"\\ud83d\\ude00\\u00e9\\/\\t\" , true , { } , [ ] ] } ";
        let mut reader = Reader { text, at: 0, levels: 0 };
        assert_eq!(reader.value().unwrap(), serde_json::from_str::<Value>(text).unwrap());
        // A surrogate before a pair is alone; the pair is not.
        assert_eq!(write(&read(br#"["\ud83d\ud83d\ude00"]"#).unwrap()), "[\"\\ud83d😀\"]");
    }

    #[test]
    fn it_is_nested_as_deep_as_is_said_and_no_deeper() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        same(&nested(CELERY_JSON_LEVELS));
        let error = read(nested(CELERY_JSON_LEVELS + 1).as_bytes()).unwrap_err().to_string();
        assert!(error.contains(&format!("deeper than {CELERY_JSON_LEVELS} levels")), "{error}");
        let mixed = format!("{}NaN{}", "{\"a\":[".repeat(50), "]}".repeat(50));
        same(&mixed);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (bad, error) in [
            ("", "a value is missing at byte 0"),
            ("[1,", "a value is missing at byte 3"),
            ("[1 2]", "a list goes on without a comma at byte 3"),
            ("{\"a\" 1}", "a name goes on without a colon at byte 5"),
            ("{a: 1}", "a name in quotes is missing at byte 1"),
            ("[nan]", "no value begins like this at byte 1"),
            ("[01]", "no number is written like this at byte 1"),
            ("\"a", "a text does not end at byte 2"),
            ("\"\\u12\"", "four hexadecimal digits are missing at byte 1"),
            ("\"\\x\"", "no escape is written like this at byte 1"),
            ("\"\t\"", "a control character stands in a text at byte 1"),
            ("NaN NaN", "something follows the value at byte 4"),
        ] {
            assert_eq!(read(bad.as_bytes()).unwrap_err().to_string(), error, "{bad}");
        }
        assert_eq!(read(b"[\"\xff\"]").unwrap_err().to_string(), "it is not UTF-8 at byte 2");
    }
}
