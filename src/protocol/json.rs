//! JSON text as the Python peers write it: compact as pydantic emits it, or as Python's `json.dumps` does.
//!
//! Signatures cover exact bytes, so spacing, escapes, the layout of floats and the order of keys all count.

use std::borrow::Cow;
use std::fmt::Write as _;

use indexmap::IndexMap;
use jiter::JsonValue;
use serde_json::{Map, Number, Value};

use crate::base::limits::MESSAGE_VALUES;

/// A JSON object that keeps the order of its keys.
pub type JsonMap = Map<String, Value>;

/// Why the text of a peer was not parsed.
#[derive(Debug)]
pub(super) enum ParseError {
    /// It is not JSON, or nests too deep.
    Json(jiter::JsonError),
    /// It has more than [`MESSAGE_VALUES`].
    TooMany,
    /// Parsed it would take more than [`parsed_limit`].
    TooDense,
}

impl ParseError {
    /// In words, of the text that was refused.
    pub(super) fn description(&self, text: &str) -> String {
        match self {
            Self::Json(error) => error.description(text.as_bytes()),
            Self::TooMany => format!("more than {MESSAGE_VALUES} values"),
            Self::TooDense => format!(
                "so many small values in {} bytes that they would take more than {PARSED_TIMES} times as many and \
                 {PARSED_FREE_BYTES}",
                text.len()
            ),
        }
    }
}

/// Parses what a peer sent. It is looked through first, because a value of two bytes takes more than a hundred parsed.
pub(super) fn parse(text: &str) -> Result<JsonValue<'_>, ParseError> {
    check_size(text)?;
    JsonValue::parse(text.as_bytes(), true).map_err(ParseError::Json)
}

/// Bytes that a value behind a comma takes at most when it is parsed: a key and a value are 56, and the list that they
/// are in may have room for twice as many.
const COMMA_BYTES: usize = 112;

/// Bytes that a list or an object takes at most beside that: its head, and room for four entries.
const BRACKET_BYTES: usize = 320;

/// Bytes that a parsed text may take however small it is: more than the parsed tree of any usual message.
const PARSED_FREE_BYTES: usize = 1 << 20;

/// How many times as many bytes as its own a parsed text may take beyond [`PARSED_FREE_BYTES`]: a text with a comma in
/// 7 bytes, or a bracket in 20, all the way through. A list of receipts, the message with the most values, has a comma
/// in 40.
const PARSED_TIMES: usize = 16;

/// Bytes that the parsed tree of a text of so many bytes may take.
fn parsed_limit(bytes: usize) -> usize {
    PARSED_FREE_BYTES + PARSED_TIMES * bytes
}

/// Whether a text may be parsed: it has not more than [`MESSAGE_VALUES`], and the tree does not take too much memory
/// for the number of its bytes. Both are counted without parsing, so that a text is refused for the cost of reading it.
fn check_size(text: &str) -> Result<(), ParseError> {
    let Separators { commas, brackets } = separators(text, MESSAGE_VALUES);
    if commas + brackets > MESSAGE_VALUES {
        return Err(ParseError::TooMany);
    }
    if COMMA_BYTES * commas + BRACKET_BYTES * brackets > parsed_limit(text.len()) {
        return Err(ParseError::TooDense);
    }
    Ok(())
}

/// Why a text of somebody else is not to be parsed, by whatever parser, if that is so: it has more than
/// [`MESSAGE_VALUES`] commas and brackets that open outside of its strings, or would take more than 1 MiB and 16 times
/// its bytes.
pub fn too_much(text: &str) -> Option<String> {
    check_size(text).err().map(|error| error.description(text))
}

/// What of a text says how many values it has.
#[derive(Default)]
struct Separators {
    commas: usize,
    brackets: usize,
}

/// How deep the parser follows, and some more: what is deeper it refuses when it comes there.
const DEEPER_THAN_PARSED: usize = 256;

/// Those outside the strings of a text, up to one more than `most`, and up to where it is too deep anyway.
fn separators(text: &str, most: usize) -> Separators {
    let (mut rest, mut found, mut depth) = (text.as_bytes().iter(), Separators::default(), 0_usize);
    while let Some(byte) = rest.next() {
        match byte {
            b',' => found.commas += 1,
            b'[' | b'{' => {
                found.brackets += 1;
                depth += 1;
            }
            b']' | b'}' => {
                depth = depth.saturating_sub(1);
                continue;
            }
            b'"' => {
                while rest.find(|byte| matches!(byte, b'"' | b'\\')) == Some(&b'\\') && rest.next().is_some() {}
                continue;
            }
            _ => continue,
        }
        if found.commas + found.brackets > most || depth > DEEPER_THAN_PARSED {
            break;
        }
    }
    found
}

/// How JSON text is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// A space after `,` and `:`.
    spaced: bool,
    /// Everything outside printable ASCII as `\uXXXX`.
    ascii: bool,
    /// Floats as Python's `repr` (`1e-07`), not as pydantic (`1e-7`, and `null` where no number can stand).
    python_floats: bool,
}

impl Style {
    /// What pydantic's `model_dump_json` emits.
    pub const COMPACT: Style = Style { spaced: false, ascii: false, python_floats: false };
    /// What Python's `json.dumps` emits by default.
    pub const PYTHON: Style = Style { spaced: true, ascii: true, python_floats: true };
    /// What Python's `json.dumps` emits with `separators=(",", ":")`.
    pub const PYTHON_TIGHT: Style = Style { spaced: false, ascii: true, python_floats: true };
}

/// Writes one JSON text piece by piece; the caller keeps the pieces in a legal order.
#[derive(Debug)]
pub struct Writer {
    out: String,
    style: Style,
    /// Whether the next item of the current container needs a comma before it.
    comma: bool,
}

impl Writer {
    /// An empty text in the given style.
    pub fn new(style: Style) -> Self {
        Writer { out: String::with_capacity(256), style, comma: false }
    }

    /// The text written so far.
    pub fn into_string(self) -> String {
        self.out
    }

    /// Takes the text written since the last call: for a text that is sent while it is written.
    pub fn take(&mut self) -> String {
        std::mem::take(&mut self.out)
    }

    fn item(&mut self) {
        if self.comma {
            self.out.push_str(if self.style.spaced { ", " } else { "," });
        }
        self.comma = true;
    }

    /// Opens an object or an array (`{` or `[`).
    pub fn open(&mut self, bracket: char) {
        self.item();
        self.out.push(bracket);
        self.comma = false;
    }

    /// Closes what [`Writer::open`] opened (`}` or `]`).
    pub fn close(&mut self, bracket: char) {
        self.out.push(bracket);
        self.comma = true;
    }

    /// Writes the key of the value that follows.
    pub fn key(&mut self, key: &str) {
        self.item();
        push_string(&mut self.out, key, self.style.ascii);
        self.out.push_str(if self.style.spaced { ": " } else { ":" });
        self.comma = false;
    }

    /// Writes a string.
    pub fn string(&mut self, text: &str) {
        self.item();
        push_string(&mut self.out, text, self.style.ascii);
    }

    /// Writes text that already is JSON: an integer, `true`, `false` or `null`.
    pub fn literal(&mut self, text: &str) {
        self.item();
        self.out.push_str(text);
    }

    /// Writes a float.
    pub fn float(&mut self, value: f64) {
        self.item();
        push_float(&mut self.out, value, self.style.python_floats);
    }

    /// Writes a free-form value.
    pub fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.literal("null"),
            Value::Bool(true) => self.literal("true"),
            Value::Bool(false) => self.literal("false"),
            Value::Number(number) => self.number(number),
            Value::String(text) => self.string(text),
            Value::Array(items) => {
                self.open('[');
                items.iter().for_each(|item| self.value(item));
                self.close(']');
            }
            Value::Object(map) => self.map(map),
        }
    }

    /// Writes a free-form object.
    pub fn map(&mut self, map: &JsonMap) {
        self.open('{');
        for (key, value) in map {
            self.key(key);
            self.value(value);
        }
        self.close('}');
    }

    fn number(&mut self, number: &Number) {
        let text = number.as_str();
        if text == "-0" {
            // Python reads the integer -0 as 0.
            self.literal("0");
        } else if text.bytes().all(|b| b == b'-' || b.is_ascii_digit()) {
            self.literal(text);
        } else {
            self.float(text.parse().expect("serde_json keeps only text that is a JSON number"));
        }
    }

    /// Writes a parsed value with the keys of every object sorted, a repeated key with its last value.
    fn sorted(&mut self, value: &JsonValue<'_>) {
        match value {
            JsonValue::Null => self.literal("null"),
            JsonValue::Bool(true) => self.literal("true"),
            JsonValue::Bool(false) => self.literal("false"),
            JsonValue::Int(int) => self.literal(&int.to_string()),
            JsonValue::BigInt(int) => self.literal(&int.to_string()),
            JsonValue::Float(float) => self.float(*float),
            JsonValue::Str(text) => self.string(text),
            JsonValue::Array(items) => {
                self.open('[');
                items.iter().for_each(|item| self.sorted(item));
                self.close(']');
            }
            JsonValue::Object(entries) => self.sorted_entries(unique(entries)),
        }
    }

    fn sorted_entries(&mut self, mut entries: IndexMap<&str, &JsonValue<'_>>) {
        // Bytes of UTF-8 sort as code points do, which is how Python sorts.
        entries.sort_unstable_keys();
        self.open('{');
        for (key, value) in entries {
            self.key(key);
            self.sorted(value);
        }
        self.close('}');
    }
}

/// The text with the keys of every object sorted, as `json.dumps(json.loads(text), sort_keys=True)` gives it.
///
/// `without` names one key of the outermost object to leave out. Fails when the text is not JSON.
pub fn sort_keys(text: &str, style: Style, without: Option<&str>) -> Result<String, jiter::JsonError> {
    Ok(sorted(&JsonValue::parse(text.as_bytes(), true)?, style, without))
}

/// As [`sort_keys`], of a text that has been parsed.
pub(super) fn sorted(value: &JsonValue<'_>, style: Style, without: Option<&str>) -> String {
    let mut out = Writer::new(style);
    match (value, without) {
        (JsonValue::Object(entries), Some(key)) => {
            let mut entries = unique(entries);
            entries.shift_remove(key);
            out.sorted_entries(entries);
        }
        _ => out.sorted(value),
    }
    out.into_string()
}

/// The entries of an object as Python's `dict` holds them: a repeated key keeps its first place and its last value.
pub(super) fn unique<'v, 'j>(entries: &'v [(Cow<'j, str>, JsonValue<'j>)]) -> IndexMap<&'v str, &'v JsonValue<'j>> {
    entries.iter().map(|(key, value)| (key.as_ref(), value)).collect()
}

/// A parsed value as an owned one; floats that JSON cannot spell become null, as pydantic would re-emit them.
pub(super) fn to_value(value: &JsonValue<'_>) -> Value {
    match value {
        JsonValue::Null => Value::Null,
        JsonValue::Bool(flag) => Value::Bool(*flag),
        JsonValue::Int(int) => Value::from(*int),
        JsonValue::BigInt(int) => {
            Value::Number(int.to_string().parse().expect("the digits of an integer are a JSON number"))
        }
        JsonValue::Float(float) => Number::from_f64(*float).map_or(Value::Null, Value::Number),
        JsonValue::Str(text) => Value::String(text.to_string()),
        JsonValue::Array(items) => Value::Array(items.iter().map(to_value).collect()),
        JsonValue::Object(entries) => Value::Object(to_map(entries)),
    }
}

/// The entries of a parsed object as an owned map.
pub(super) fn to_map(entries: &[(Cow<'_, str>, JsonValue<'_>)]) -> JsonMap {
    entries.iter().map(|(key, value)| (key.to_string(), to_value(value))).collect()
}

/// What an object holds beside the known keys.
pub(super) fn to_map_without(entries: &[(Cow<'_, str>, JsonValue<'_>)], known: &[&str]) -> JsonMap {
    let extra = entries.iter().filter(|(key, _)| !known.contains(&key.as_ref()));
    extra.map(|(key, value)| (key.to_string(), to_value(value))).collect()
}

fn push_string(out: &mut String, text: &str, ascii: bool) {
    // Bytes are looked through faster than characters, and most texts are taken as they are.
    let special = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..0x20) || (ascii && *byte >= 0x7f);
    out.push('"');
    let mut rest = text;
    while let Some(at) = rest.as_bytes().iter().position(special) {
        let (plain, from) = rest.split_at(at);
        let c = from.chars().next().expect("a special byte begins a character");
        rest = &from[c.len_utf8()..];
        out.push_str(plain);
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}").expect("writing to a String cannot fail");
                }
            }
        }
    }
    out.push_str(rest);
    out.push('"');
}

/// Writes the shortest digits that read back as `value`, laid out as pydantic or as Python's `repr` does.
///
/// The digits come from the library that pydantic takes them from: where two texts are equally short and near, the
/// standard library picks another one.
pub(super) fn push_float(out: &mut String, value: f64, python: bool) {
    let Some(number) = Number::from_f64(value) else {
        out.push_str(match (python, value) {
            (false, _) => "null",
            (true, v) if v.is_nan() => "NaN",
            (true, v) if v > 0.0 => "Infinity",
            (true, _) => "-Infinity",
        });
        return;
    };
    let text = number.as_str();
    let (minus, magnitude) = text.strip_prefix('-').map_or(("", text), |rest| ("-", rest));
    let layout = match (magnitude.split_once('e'), magnitude.strip_prefix("0.0000")) {
        // Python writes at least two digits of an exponent, pydantic at least one.
        (Some((digits, exponent)), _) if python => {
            let (sign, exponent) = exponent.split_at(1);
            write!(out, "{minus}{digits}e{sign}{exponent:0>2}")
        }
        // Python writes an exponent below 1e-4, pydantic below 1e-5.
        (None, Some(digits)) if python => match digits.split_at(1) {
            (first, "") => write!(out, "{minus}{first}e-05"),
            (first, rest) => write!(out, "{minus}{first}.{rest}e-05"),
        },
        _ => out.write_str(text),
    };
    layout.expect("writing to a String cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of a parsed tree, all that it has reserved.
    fn tree_bytes(value: &JsonValue<'_>) -> usize {
        const HEAD: usize = 16 + size_of::<Vec<()>>();
        match value {
            JsonValue::Array(items) if !items.is_empty() => {
                let room = items.capacity() * size_of::<JsonValue<'_>>();
                HEAD + room + items.iter().map(tree_bytes).sum::<usize>()
            }
            JsonValue::Object(entries) if !entries.is_empty() => {
                let room = entries.capacity() * size_of::<(Cow<'_, str>, JsonValue<'_>)>();
                HEAD + room + entries.iter().map(|(_, value)| tree_bytes(value)).sum::<usize>()
            }
            _ => 0,
        }
    }

    #[test]
    fn a_parsed_tree_takes_no_more_than_was_counted_and_no_more_than_its_limit() {
        let nested = |open: &str, close: &str| format!("{}1{},", open.repeat(150), close.repeat(150));
        let parts = ["[],", "[1],", "[[[1]]],", "{},", r#"{"a":1},"#, r#"{"a":{},"b":[2]},"#, "0,", r#""","#, "null,"];
        let mut refused = 0;
        for part in parts.map(str::to_owned).into_iter().chain([nested("[", "]"), nested(r#"{"":"#, "}")]) {
            for times in [1, 10, 1000, 9000, 40_000].into_iter().filter(|times| part.len() * times < 8 << 20) {
                let text = format!("[{}0]", part.repeat(times));
                let Separators { commas, brackets } = separators(&text, usize::MAX);
                let Ok(value) = parse(&text) else {
                    refused += 1;
                    continue;
                };
                let (bytes, counted) = (tree_bytes(&value), COMMA_BYTES * commas + BRACKET_BYTES * brackets);
                assert!(bytes <= counted.min(parsed_limit(text.len())), "{part} {times}: {bytes}, counted {counted}");
            }
        }
        assert!(refused >= 10, "{refused}");
        // What is honest and large passes: a refusal with a receipt for each of 10,000 executors.
        let hotkey = "x".repeat(48);
        let receipt = format!(r#"{{"payload":{{"job_uuid":"{hotkey}","b":1}},"signature":"{hotkey}{hotkey}"}},"#);
        assert!(parse(&format!("[{}0]", receipt.repeat(10_000))).is_ok());
        let text = format!("[{}0]", "[],".repeat(40_000));
        let why = parse(&text).unwrap_err().description(&text);
        assert!(why.contains("more than 16 times as many and 1048576"), "{why}");
    }

    #[test]
    fn values_are_counted_outside_strings() {
        for (text, values) in [
            ("[1,2,3]", 3),
            (r#"{"a":{},"b":[[]]}"#, 5),
            (r#"["[,,,{",","]"#, 2),
            (r#"["\",,,","\\",1,2]"#, 4),
            (r#"["never closed,,,,"#, 1),
            (r#"["\"#, 1),
            ("1234567890", 0),
        ] {
            let Separators { commas, brackets } = separators(text, usize::MAX);
            assert_eq!(commas + brackets, values, "{text}");
        }
    }

    fn float(value: f64, python: bool) -> String {
        let mut out = String::new();
        push_float(&mut out, value, python);
        out
    }

    #[test]
    fn floats_are_laid_out_as_by_pydantic_and_by_python() {
        // Each row was printed by pydantic 2.14.3 and Python 3.11.
        let rows = [
            (0.0, "0.0", "0.0"),
            (-0.0, "-0.0", "-0.0"),
            (100.0, "100.0", "100.0"),
            (0.1, "0.1", "0.1"),
            (1e15, "1000000000000000.0", "1000000000000000.0"),
            (-1e16, "-1e+16", "-1e+16"),
            (123456789012345680.0, "1.2345678901234568e+17", "1.2345678901234568e+17"),
            (
                // Exactly between two texts that are equally short.
                200_124_075_352_477.0 + 0.125,
                "200124075352477.12",
                "200124075352477.12",
            ),
            (0.0001, "0.0001", "0.0001"),
            (0.00001, "0.00001", "1e-05"),
            (-0.00001234, "-0.00001234", "-1.234e-05"),
            (1e-7, "1e-7", "1e-07"),
            (5e-324, "5e-324", "5e-324"),
            (f64::MAX, "1.7976931348623157e+308", "1.7976931348623157e+308"),
            (f64::NAN, "null", "NaN"),
            (f64::INFINITY, "null", "Infinity"),
            (f64::NEG_INFINITY, "null", "-Infinity"),
        ];
        for (value, pydantic, python) in rows {
            assert_eq!((float(value, false), float(value, true)), (pydantic.into(), python.into()));
        }
    }

    #[test]
    fn strings_are_escaped_as_the_style_says() {
        let text = "ż🚀\u{7f}\u{2028}\"\\/\u{8}\u{c}\n\r\t\u{1f}";
        let written = |style| {
            let mut out = Writer::new(style);
            out.string(text);
            out.into_string()
        };
        let compact = "\"ż🚀\u{7f}\u{2028}\\\"\\\\/\\b\\f\\n\\r\\t\\u001f\"";
        assert_eq!(written(Style::COMPACT), compact);
        let ascii = r#""\u017c\ud83d\ude80\u007f\u2028\"\\/\b\f\n\r\t\u001f""#;
        assert_eq!(written(Style::PYTHON), ascii);
        assert_eq!(written(Style::PYTHON_TIGHT), ascii);
    }

    #[test]
    fn keys_are_sorted_by_code_point_at_every_depth() {
        let text = r#"{"b":[{"y":1,"x":2,"y":3}],"ż":0,"a":{},"B":[],"🚀":1E2,"":-0}"#;
        let sorted = sort_keys(text, Style::PYTHON, Some("a")).unwrap();
        let expected = r#"{"": 0, "B": [], "b": [{"x": 2, "y": 3}], "\u017c": 0, "\ud83d\ude80": 100.0}"#;
        assert_eq!(sorted, expected);
        assert_eq!(sort_keys("[1, 2]", Style::PYTHON_TIGHT, Some("a")).unwrap(), "[1,2]");
        assert!(sort_keys("{", Style::PYTHON, None).is_err());
    }

    #[test]
    fn values_keep_their_numbers() {
        let text = r#"{"big":18446744073709551617,"f":0.1,"neg":-0.0,"e":[1e-7,1e+16,{}],"n":null}"#;
        let value = to_value(&JsonValue::parse(text.as_bytes(), true).unwrap());
        let mut out = Writer::new(Style::COMPACT);
        out.value(&value);
        assert_eq!(out.into_string(), text);
        // A value that did not come through our parser may spell its numbers otherwise.
        let foreign: Value = serde_json::from_str("[-0,1E5,12.50]").unwrap();
        let mut out = Writer::new(Style::PYTHON);
        out.value(&foreign);
        assert_eq!(out.into_string(), "[0, 100000.0, 12.5]");
    }
}
