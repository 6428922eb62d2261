//! Why a frame was refused, in the terms of the Python peers: a type, a place, a sentence and the input.

use std::borrow::Cow;
use std::fmt;

use jiter::JsonValue;
use serde_json::Value;

use super::json::{JsonMap, ParseError, to_value};
use super::repr;
use crate::ops::redact::OneLine;

/// The text is none of the members of a set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a member of {set}: {found:?} should be one of {expected}")]
pub struct UnknownName {
    pub(super) set: &'static str,
    pub(super) found: String,
    pub(super) expected: String,
}

/// The page that pydantic names for each error type; the version is the one of the peers we were compared with.
pub const ERROR_URL_PREFIX: &str = "https://errors.pydantic.dev/2.14/v/";

/// How many errors of one frame are kept; a frame of 50 MiB can hold millions, and an answer must stay small.
pub const MAX_ERRORS: usize = 50;

/// How many bytes of JSON are kept of the input that an error quotes; 50 of them stay far below the 1 MiB that the
/// Python validator accepts as a frame, even where every byte is escaped as six.
pub const MAX_ECHO_BYTES: usize = 1024;

/// How much of a key, a tag or a value is quoted inside the sentence of an error, in characters or, of a repr, in
/// bytes.
pub(super) const MAX_QUOTE: usize = 256;

/// One step of the way from the frame to what was wrong in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocItem {
    /// A field, a key or the tag of a union member.
    Key(Cow<'static, str>),
    /// A place in a list, from 0.
    Index(usize),
}

impl From<&'static str> for LocItem {
    fn from(field: &'static str) -> Self {
        LocItem::Key(Cow::Borrowed(field))
    }
}

impl From<usize> for LocItem {
    fn from(index: usize) -> Self {
        LocItem::Index(index)
    }
}

impl LocItem {
    /// A key that came from the peer, truncated to a quotable length.
    pub(super) fn from_input(key: &str) -> Self {
        LocItem::Key(Cow::Owned(quote(key).into_owned()))
    }
}

impl fmt::Display for LocItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LocItem::Key(key) => f.write_str(key),
            LocItem::Index(index) => index.fmt(f),
        }
    }
}

/// One thing that is wrong in a frame.
#[derive(Debug, Clone, PartialEq)]
pub struct ErrorDetail {
    /// The error type of pydantic, such as `missing` or `string_type`.
    pub kind: &'static str,
    /// The way from the frame to the place.
    pub loc: Vec<LocItem>,
    /// What is wrong, as a sentence.
    pub msg: String,
    /// What stood at the place; truncated text if it is longer than [`MAX_ECHO_BYTES`].
    pub input: Value,
    /// What the sentence is made of.
    pub ctx: JsonMap,
    /// The input as Python would show it, in at most 52 bytes.
    pub(super) input_repr: String,
    /// The Python type of the input.
    pub(super) input_type: &'static str,
}

impl ErrorDetail {
    /// The page that explains the error type.
    pub fn url(&self) -> String {
        format!("{ERROR_URL_PREFIX}{}", self.kind)
    }

    /// The place as one word, with dots between its steps; empty for the frame itself.
    pub fn path(&self) -> String {
        self.loc.iter().map(LocItem::to_string).collect::<Vec<_>>().join(".")
    }
}

impl fmt::Display for ErrorDetail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.loc.is_empty() { "the frame".to_owned() } else { self.path() };
        // Keys and values of the peer may hold line breaks, and a log line must stay one line; a tab parts its fields.
        let line = format!("{} at {place}: {}", self.kind, self.msg).replace('\t', "\\t");
        write!(f, "{}", OneLine(&line))
    }
}

/// A frame that could not be read as a message of its link.
///
/// Nothing was consumed: the caller may answer (see [`super::answer`]) and go on with the next frame.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub struct DecodeError {
    /// What is wrong, in the order in which pydantic reports it; at most [`MAX_ERRORS`].
    pub errors: Vec<ErrorDetail>,
    /// How many errors there are, counting those that were not kept.
    pub total: usize,
    /// What was expected, as pydantic names it: `tagged-union[…]`.
    pub(super) expected: String,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, error) in self.errors.iter().enumerate() {
            write!(f, "{}{error}", if n == 0 { "" } else { "; " })?;
        }
        match self.total - self.errors.len() {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

/// What is wrong with one value, before it is known where it stands.
#[derive(Debug)]
pub(super) struct Fault {
    pub kind: &'static str,
    pub msg: Cow<'static, str>,
    pub ctx: Vec<(&'static str, Value)>,
}

impl Fault {
    pub(super) fn new(kind: &'static str, msg: impl Into<Cow<'static, str>>) -> Self {
        Fault { kind, msg: msg.into(), ctx: Vec::new() }
    }

    pub(super) fn with(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        self.ctx.push((key, value.into()));
        self
    }

    /// A rule that the type alone does not express; the sentence quotes nothing longer than a path or a name.
    pub(super) fn value(why: String) -> Self {
        let why = quote(&why).into_owned();
        Fault::new("value_error", format!("Value error, {why}")).with("error", why)
    }
}

/// Collects the errors of one frame while it is read.
#[derive(Debug, Default)]
pub(super) struct Errors {
    kept: Vec<ErrorDetail>,
    total: usize,
}

impl Errors {
    /// Records a fault of `input` and gives the `None` that reading it results in.
    pub(super) fn fail<T>(&mut self, fault: Fault, input: &JsonValue<'_>) -> Option<T> {
        self.total += 1;
        if self.kept.len() < MAX_ERRORS {
            self.kept.push(ErrorDetail {
                kind: fault.kind,
                loc: Vec::new(),
                msg: fault.msg.into_owned(),
                input: echo(input),
                ctx: fault.ctx.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
                input_repr: repr::shortened(input),
                input_type: repr::type_name(input),
            });
        }
        None
    }

    /// Reads something that stands at `loc`; costs nothing unless it fails.
    pub(super) fn at<T>(&mut self, loc: impl Into<LocItem>, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let before = self.kept.len();
        let result = read(self);
        if self.kept.len() > before {
            let loc = loc.into();
            self.kept[before..].iter_mut().for_each(|error| error.loc.insert(0, loc.clone()));
        }
        result
    }

    /// A mark to go back to with [`Errors::forget`].
    pub(super) fn mark(&self) -> (usize, usize) {
        (self.kept.len(), self.total)
    }

    /// Drops what was recorded since the mark: another member of the union did fit.
    pub(super) fn forget(&mut self, (kept, total): (usize, usize)) {
        self.kept.truncate(kept);
        self.total = total;
    }

    pub(super) fn into_error(self, expected: String) -> DecodeError {
        DecodeError { errors: self.kept, total: self.total, expected }
    }
}

/// The error of a frame that is not JSON at all, or has too many values.
pub(super) fn invalid_json(text: &str, error: &ParseError, expected: String) -> DecodeError {
    let why = error.description(text);
    let fault = Fault::new("json_invalid", format!("Invalid JSON: {why}")).with("error", why);
    let mut errors = Errors::default();
    errors.fail::<()>(fault, &JsonValue::Str(Cow::Borrowed(text)));
    errors.into_error(expected)
}

/// The text, truncated to what a sentence may quote.
pub(super) fn quote(text: &str) -> Cow<'_, str> {
    truncate(text, MAX_QUOTE)
}

/// The text, truncated after `chars` characters with a remark that says so.
pub(super) fn truncate(text: &str, chars: usize) -> Cow<'_, str> {
    match text.char_indices().nth(chars) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}… (truncated, {} bytes in all)", &text[..end], text.len())),
    }
}

/// The value as an answer may quote it: itself if it is small, else the beginning of its text.
fn echo(input: &JsonValue<'_>) -> Value {
    if let JsonValue::Str(text) = input {
        return Value::String(truncate(text, MAX_ECHO_BYTES).into_owned());
    }
    let mut budget = MAX_ECHO_BYTES;
    if fits(input, &mut budget) {
        to_value(input)
    } else {
        Value::String(format!("{}… (truncated, too long to quote)", repr::head(input, MAX_ECHO_BYTES)))
    }
}

/// Whether the value takes no more than about `budget` bytes of JSON; looks no further than that.
fn fits(value: &JsonValue<'_>, budget: &mut usize) -> bool {
    let cost = match value {
        JsonValue::Str(text) => text.len() + 3,
        JsonValue::BigInt(int) => int.bits() as usize / 3,
        JsonValue::Float(_) | JsonValue::Int(_) => 24,
        // More than they take, so that of levels, too, only so many are quoted that the peer can read the answer.
        JsonValue::Array(_) => 8,
        _ => 5,
    };
    let Some(rest) = budget.checked_sub(cost) else {
        return false;
    };
    *budget = rest;
    match value {
        JsonValue::Array(items) => items.iter().all(|item| fits(item, budget)),
        JsonValue::Object(entries) => entries.iter().all(|(key, item)| {
            let rest = budget.checked_sub(key.len() + 4);
            *budget = rest.unwrap_or(0);
            rest.is_some() && fits(item, budget)
        }),
        _ => true,
    }
}
