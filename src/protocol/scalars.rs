//! How the plain types of the fields are read and written; the coercions are those of pydantic's lax mode for JSON.

use indexmap::IndexMap;
use jiter::JsonValue;
use serde_json::Value;

use super::enums::ExecutorClass;
use super::error::{Errors, Fault, LocItem};
use super::int::Int;
use super::json::{JsonMap, Writer, to_map, to_value};
use super::schema::Wire;

/// Text by text, in the order of the message: the order of `env` is part of what a job request signs.
pub type StrMap = IndexMap<String, String>;

/// How many executors of each class a miner offers, in the order of the message.
pub type Manifest = IndexMap<ExecutorClass, Int>;

/// Python refuses to read an integer of more digits.
const MAX_INT_DIGITS: usize = 4300;

impl Wire for String {
    fn decode(value: &JsonValue<'_>, errors: &mut Errors) -> Option<Self> {
        match value {
            JsonValue::Str(text) => Some(text.to_string()),
            _ => errors.fail(Fault::new("string_type", "Input should be a valid string"), value),
        }
    }

    fn encode(&self, out: &mut Writer) {
        out.string(self);
    }
}

impl Wire for bool {
    fn decode(value: &JsonValue<'_>, errors: &mut Errors) -> Option<Self> {
        let text = match value {
            JsonValue::Bool(flag) => return Some(*flag),
            JsonValue::Str(text) => text.to_ascii_lowercase(),
            JsonValue::Int(int) => int.to_string(),
            JsonValue::Float(float) => int_from_float(*float).map_or(String::new(), |int| int.to_string()),
            _ => String::new(),
        };
        match text.as_str() {
            "1" | "on" | "t" | "true" | "y" | "yes" => Some(true),
            "0" | "off" | "f" | "false" | "n" | "no" => Some(false),
            "" if !matches!(value, JsonValue::Str(_)) => {
                errors.fail(Fault::new("bool_type", "Input should be a valid boolean"), value)
            }
            _ => {
                let msg = "Input should be a valid boolean, unable to interpret input";
                errors.fail(Fault::new("bool_parsing", msg), value)
            }
        }
    }

    fn encode(&self, out: &mut Writer) {
        out.literal(if *self { "true" } else { "false" });
    }
}

impl Wire for Int {
    fn decode(value: &JsonValue<'_>, errors: &mut Errors) -> Option<Self> {
        let read = match value {
            JsonValue::Int(int) => Ok(Int::from(*int)),
            JsonValue::BigInt(int) => Ok(int.to_string().parse().expect("the digits of an integer are one")),
            JsonValue::Bool(flag) => Ok(Int::from(i64::from(*flag))),
            JsonValue::Float(float) => int_from_float(*float),
            JsonValue::Str(text) => int_from_text(text),
            _ => Err(Fault::new("int_type", "Input should be a valid integer")),
        };
        read.map_or_else(|fault| errors.fail(fault, value), Some)
    }

    fn encode(&self, out: &mut Writer) {
        out.literal(&self.to_string());
    }
}

fn too_large() -> Fault {
    Fault::new("int_parsing_size", "Unable to parse input string as an integer, exceeded maximum size")
}

fn int_from_float(float: f64) -> Result<Int, Fault> {
    if !float.is_finite() {
        return Err(Fault::new("finite_number", "Input should be a finite number"));
    }
    if float.fract() != 0.0 {
        let msg = "Input should be a valid integer, got a number with a fractional part";
        return Err(Fault::new("int_from_float", msg));
    }
    // Beyond 64 bits a float does not say which integer was meant; 2^63 itself rounds to just beyond them.
    if float.abs() >= i64::MAX as f64 {
        return Err(too_large());
    }
    Ok(Int::from(float as i64))
}

/// Reads ` 5 `, `+5`, `007`, `1_000` and `5.00`, as pydantic does.
fn int_from_text(text: &str) -> Result<Int, Fault> {
    if text.len() > MAX_INT_DIGITS {
        return Err(too_large());
    }
    let whole = text.trim();
    let whole = match whole.split_once('.') {
        Some((whole, zeros)) if !zeros.is_empty() && zeros.bytes().all(|b| b == b'0') => whole,
        _ => whole,
    };
    let digits = whole.strip_prefix(['+', '-']).unwrap_or(whole);
    let grouped = digits.split('_').all(|group| !group.is_empty() && group.bytes().all(|b| b.is_ascii_digit()));
    match whole.replace('_', "").parse() {
        Ok(int) if grouped => Ok(int),
        _ => {
            let msg = "Input should be a valid integer, unable to parse string as an integer";
            Err(Fault::new("int_parsing", msg))
        }
    }
}

/// Reads an integer between two bounds, both included.
pub(super) fn int_within(value: &JsonValue<'_>, least: i64, most: i64, errors: &mut Errors) -> Option<i64> {
    let int = Int::decode(value, errors)?.saturating_i64();
    if int < least {
        let msg = format!("Input should be greater than or equal to {least}");
        return errors.fail(Fault::new("greater_than_equal", msg).with("ge", least), value);
    }
    if int > most {
        let msg = format!("Input should be less than or equal to {most}");
        return errors.fail(Fault::new("less_than_equal", msg).with("le", most), value);
    }
    Some(int)
}

impl Wire for i64 {
    /// For fields whose bounds lie within 64 bits; they are read by [`int_within`].
    fn decode(value: &JsonValue<'_>, errors: &mut Errors) -> Option<Self> {
        int_within(value, i64::MIN, i64::MAX, errors)
    }

    fn encode(&self, out: &mut Writer) {
        out.literal(&self.to_string());
    }
}

impl<T: Wire> Wire for Option<T> {
    fn decode(value: &JsonValue<'_>, errors: &mut Errors) -> Option<Self> {
        match value {
            JsonValue::Null => Some(None),
            _ => T::decode(value, errors).map(Some),
        }
    }

    fn encode(&self, out: &mut Writer) {
        match self {
            Some(value) => value.encode(out),
            None => out.literal("null"),
        }
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn decode(value: &JsonValue<'_>, errors: &mut Errors) -> Option<Self> {
        list_of(value, T::decode, errors)
    }

    fn encode(&self, out: &mut Writer) {
        out.open('[');
        self.iter().for_each(|item| item.encode(out));
        out.close(']');
    }
}

/// Reads a list; every item is looked at, so that all errors are recorded.
pub(super) fn list_of<T>(
    value: &JsonValue<'_>,
    read: fn(&JsonValue<'_>, &mut Errors) -> Option<T>,
    errors: &mut Errors,
) -> Option<Vec<T>> {
    let JsonValue::Array(items) = value else {
        return errors.fail(Fault::new("list_type", "Input should be a valid array"), value);
    };
    let mut list = Vec::with_capacity(items.len());
    for (n, item) in items.iter().enumerate() {
        list.extend(errors.at(n, |errors| read(item, errors)));
    }
    (list.len() == items.len()).then_some(list)
}

/// Reads a dict. Of a repeated key every value must be right, the first place counts and the last value, as in Python.
fn dict_of<K: std::hash::Hash + Eq, V>(
    value: &JsonValue<'_>,
    read: fn(&str, &JsonValue<'_>, &mut Errors) -> Option<(K, V)>,
    errors: &mut Errors,
) -> Option<IndexMap<K, V>> {
    let JsonValue::Object(entries) = value else {
        return errors.fail(Fault::new("dict_type", "Input should be an object"), value);
    };
    let before = errors.mark();
    let mut map = IndexMap::with_capacity(entries.len());
    for (key, item) in entries.iter() {
        map.extend(errors.at(LocItem::from_input(key), |errors| read(key, item, errors)));
    }
    (errors.mark() == before).then_some(map)
}

impl Wire for StrMap {
    fn decode(value: &JsonValue<'_>, errors: &mut Errors) -> Option<Self> {
        let read = |key: &str, item: &JsonValue<'_>, errors: &mut Errors| {
            Some((key.to_owned(), String::decode(item, errors)?))
        };
        dict_of(value, read, errors)
    }

    fn encode(&self, out: &mut Writer) {
        out.open('{');
        for (key, text) in self {
            out.key(key);
            out.string(text);
        }
        out.close('}');
    }
}

impl Wire for Manifest {
    fn decode(value: &JsonValue<'_>, errors: &mut Errors) -> Option<Self> {
        let read = |key: &str, item: &JsonValue<'_>, errors: &mut Errors| {
            let name = JsonValue::Str(key.into());
            let class = errors.at("[key]", |errors| ExecutorClass::decode(&name, errors));
            // Both are read before either `?`, so that both errors are recorded.
            let amount = Int::decode(item, errors);
            Some((class?, amount?))
        };
        dict_of(value, read, errors)
    }

    fn encode(&self, out: &mut Writer) {
        out.open('{');
        for (class, amount) in self {
            out.key(class.as_str());
            amount.encode(out);
        }
        out.close('}');
    }
}

impl Wire for Value {
    fn decode(value: &JsonValue<'_>, _: &mut Errors) -> Option<Self> {
        Some(to_value(value))
    }

    fn encode(&self, out: &mut Writer) {
        out.value(self);
    }
}

impl Wire for JsonMap {
    fn decode(value: &JsonValue<'_>, errors: &mut Errors) -> Option<Self> {
        match value {
            JsonValue::Object(entries) => Some(to_map(entries)),
            _ => errors.fail(Fault::new("dict_type", "Input should be an object"), value),
        }
    }

    fn encode(&self, out: &mut Writer) {
        out.map(self);
    }
}
