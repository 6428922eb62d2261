//! Values as Python's `repr` shows them, for the answers that quote the input; never more than is asked for.

use std::fmt::Write as _;

use jiter::JsonValue;

use super::json::push_float;
use crate::base::text::{truncate, truncated};

/// pydantic shows at most this many bytes of an input…
const SHOWN: usize = 50;
/// …and of a longer one this many from its beginning…
const SHOWN_HEAD: usize = 25;
/// …and this many from its end.
const SHOWN_TAIL: usize = 24;

/// The Python type a JSON value is read as.
pub(super) fn type_name(value: &JsonValue<'_>) -> &'static str {
    match value {
        JsonValue::Null => "NoneType",
        JsonValue::Bool(_) => "bool",
        JsonValue::Int(_) | JsonValue::BigInt(_) => "int",
        JsonValue::Float(_) => "float",
        JsonValue::Str(_) => "str",
        JsonValue::Array(_) => "list",
        JsonValue::Object(_) => "dict",
    }
}

/// The repr, with its middle left out if it is long.
pub(super) fn shortened(value: &JsonValue<'_>) -> String {
    let mut whole = String::new();
    push(&mut whole, value, SHOWN);
    if whole.len() <= SHOWN {
        return whole;
    }
    let tail = tail(value, SHOWN_TAIL);
    let start = (tail.len() - SHOWN_TAIL..).find(|at| tail.is_char_boundary(*at));
    let start = start.expect("the end of a text is a boundary");
    format!("{}...{}", truncated(&whole, SHOWN_HEAD), &tail[start..])
}

/// The first `bytes` bytes of the repr, less a character that would be cut; all of it if it is shorter.
pub(super) fn head(value: &JsonValue<'_>, bytes: usize) -> String {
    let mut out = String::new();
    push(&mut out, value, bytes);
    truncate(&mut out, bytes);
    out
}

/// The repr of a string.
pub(super) fn string(text: &str) -> String {
    let mut out = String::new();
    push_str(&mut out, text, usize::MAX);
    out
}

/// Writes the repr, but starts nothing new once `out` holds more than `limit` bytes.
fn push(out: &mut String, value: &JsonValue<'_>, limit: usize) {
    if out.len() > limit {
        return;
    }
    match value {
        JsonValue::Null => out.push_str("None"),
        JsonValue::Bool(flag) => out.push_str(if *flag { "True" } else { "False" }),
        JsonValue::Int(int) => out.push_str(&int.to_string()),
        JsonValue::BigInt(int) => out.push_str(&int.to_string()),
        JsonValue::Float(float) if float.is_finite() => push_float(out, *float, true),
        JsonValue::Float(float) => out.push_str(&float.to_string().to_lowercase()),
        JsonValue::Str(text) => push_str(out, text, limit),
        JsonValue::Array(items) => {
            out.push('[');
            for (n, item) in items.iter().enumerate() {
                out.push_str(if n == 0 { "" } else { ", " });
                push(out, item, limit);
                if out.len() > limit {
                    return;
                }
            }
            out.push(']');
        }
        JsonValue::Object(entries) => {
            out.push('{');
            for (n, (key, item)) in entries.iter().enumerate() {
                out.push_str(if n == 0 { "" } else { ", " });
                push_str(out, key, limit);
                out.push_str(": ");
                push(out, item, limit);
                if out.len() > limit {
                    return;
                }
            }
            out.push('}');
        }
    }
}

fn push_str(out: &mut String, text: &str, limit: usize) {
    let quote = quote_of(text);
    out.push(quote);
    for c in text.chars() {
        if out.len() > limit {
            return;
        }
        push_char(out, c, quote);
    }
    out.push(quote);
}

/// At least the last `bytes` bytes of the repr, or all of it; walks backwards from the end.
fn tail(value: &JsonValue<'_>, bytes: usize) -> String {
    let (open, close, parts): (_, _, Box<dyn Iterator<Item = String> + '_>) = match value {
        JsonValue::Str(text) => {
            let quote = quote_of(text);
            let parts = text.chars().rev().map(move |c| {
                let mut part = String::new();
                push_char(&mut part, c, quote);
                part
            });
            (quote, quote, Box::new(parts))
        }
        JsonValue::Array(items) => {
            let parts = items.iter().enumerate().rev();
            ('[', ']', Box::new(parts.map(move |(n, item)| separator(n) + &tail(item, bytes))))
        }
        JsonValue::Object(entries) => {
            let parts = entries.iter().enumerate().rev().map(move |(n, (key, item))| {
                let key = JsonValue::Str(key.as_ref().into());
                format!("{}{}: {}", separator(n), tail(&key, bytes), tail(item, bytes))
            });
            ('{', '}', Box::new(parts))
        }
        _ => return head(value, usize::MAX),
    };
    let mut backwards = vec![close.to_string()];
    let mut length = 1;
    for part in parts {
        length += part.len();
        backwards.push(part);
        if length >= bytes {
            break;
        }
    }
    if length < bytes {
        backwards.push(open.to_string());
    }
    backwards.reverse();
    backwards.concat()
}

fn separator(n: usize) -> String {
    if n == 0 { String::new() } else { ", ".to_owned() }
}

/// Python prefers single quotes unless only double ones would need no escape.
fn quote_of(text: &str) -> char {
    if text.contains('\'') && !text.contains('"') { '"' } else { '\'' }
}

fn push_char(out: &mut String, c: char, quote: char) {
    match c {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\\' => out.push_str("\\\\"),
        _ if c == quote => out.extend(['\\', c]),
        // Rust and Python both take what is printable from Unicode's categories.
        _ if c == '\'' || c == '"' || c.escape_debug().len() == 1 => out.push(c),
        _ => match u32::from(c) {
            n @ 0..0x100 => write!(out, "\\x{n:02x}"),
            n @ 0x100..0x10000 => write!(out, "\\u{n:04x}"),
            n => write!(out, "\\U{n:08x}"),
        }
        .expect("writing to a String cannot fail"),
    }
}
