//! The layer that reads and writes messages by their fields, as pydantic does with JSON input in its lax mode.
//!
//! [`message!`] turns a list of fields into a struct with its decoder and encoder, [`tagged_union!`] does the same for
//! an enum that a tag field tells apart, [`wire_enum!`] for a set of strings. A reader that fails records what is wrong
//! and goes on, so that one pass reports every error; nothing is built for errors until there is one.

use std::borrow::Cow;

use jiter::JsonValue;

use super::error::{DecodeError, Errors, Fault, LocItem, MAX_QUOTE, invalid_json, quote};
use super::json::{self, Style, Writer, unique};
use super::repr;

/// The entries of a parsed object, in the order of the text; a key may occur again.
pub(super) type Entries<'j> = [(Cow<'j, str>, JsonValue<'j>)];

/// Something that stands in a message.
pub(super) trait Wire: Sized {
    /// Reads the value, or records what is wrong with it and gives `None`.
    fn decode(value: &JsonValue<'_>, errors: &mut Errors) -> Option<Self>;

    /// Writes the value.
    fn encode(&self, out: &mut Writer);
}

/// What a message does with keys that are none of its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extra {
    /// Each is an error.
    Forbid,
    /// They are dropped.
    Ignore,
    /// They are kept and written behind the fields.
    Allow,
}

/// Reads a whole frame; `expected` names what it should be.
pub(super) fn decode_frame<T: Wire>(text: &str, expected: impl FnOnce() -> String) -> Result<T, DecodeError> {
    let value = match json::parse(text) {
        Ok(value) => value,
        Err(error) => return Err(invalid_json(text, &error, expected())),
    };
    let mut errors = Errors::default();
    T::decode(&value, &mut errors).ok_or_else(|| errors.into_error(expected()))
}

/// Writes a whole frame as pydantic does.
pub(super) fn encode_compact(message: &impl Wire) -> String {
    encode(message, Style::COMPACT)
}

/// Writes a whole frame in the given style.
pub(super) fn encode(message: &impl Wire, style: Style) -> String {
    let mut out = Writer::new(style);
    message.encode(&mut out);
    out.into_string()
}

/// The value of a key; of a repeated one the last.
pub(super) fn lookup<'v, 'j>(entries: &'v Entries<'j>, key: &str) -> Option<&'v JsonValue<'j>> {
    entries.iter().rev().find(|(k, _)| k == key).map(|(_, value)| value)
}

/// The entries of a message, or the error that says the value is none.
pub(super) fn entries<'v, 'j>(
    value: &'v JsonValue<'j>,
    class: &'static str,
    errors: &mut Errors,
) -> Option<&'v Entries<'j>> {
    match value {
        JsonValue::Object(entries) => Some(entries),
        _ => errors.fail(Fault::new("model_type", "Input should be an object").with("class_name", class), value),
    }
}

/// Reads a field by its name or an alias, the first that is there; `default` stands in for a missing one.
pub(super) fn field<T>(
    object: &JsonValue<'_>,
    entries: &Entries<'_>,
    names: &[&'static str],
    default: Option<fn() -> T>,
    read: fn(&JsonValue<'_>, &mut Errors) -> Option<T>,
    errors: &mut Errors,
) -> Option<T> {
    for name in names {
        if let Some(value) = lookup(entries, name) {
            return errors.at(*name, |errors| read(value, errors));
        }
    }
    match default {
        Some(default) => Some(default()),
        None => errors.at(names[0], |errors| errors.fail(Fault::new("missing", "Field required"), object)),
    }
}

/// Records every key that is none of the fields.
pub(super) fn forbid_extra(entries: &Entries<'_>, known: &[&str], errors: &mut Errors) {
    if entries.iter().all(|(key, _)| known.contains(&key.as_ref())) {
        return;
    }
    for (key, value) in unique(entries).into_iter().filter(|(key, _)| !known.contains(key)) {
        errors.at(LocItem::from_input(key), |errors| {
            errors.fail::<()>(Fault::new("extra_forbidden", "Extra inputs are not permitted"), value)
        });
    }
}

/// A constant that a field must hold if it is there: a string or the member of a string enum.
pub(super) trait Literal {
    /// The text on the wire.
    fn text(&self) -> &'static str;

    /// The constant as Python shows it in an error.
    fn shown(&self) -> String;

    /// Checks the field; a missing one is read as the constant.
    fn check(&self, entries: &Entries<'_>, field: &'static str, errors: &mut Errors) {
        match lookup(entries, field) {
            None => {}
            Some(JsonValue::Str(text)) if text == self.text() => {}
            Some(value) => {
                let shown = self.shown();
                let fault = Fault::new("literal_error", format!("Input should be {shown}"));
                let fault = fault.with("expected", shown);
                errors.at(field, |errors| errors.fail::<()>(fault, value));
            }
        }
    }
}

impl Literal for &'static str {
    fn text(&self) -> &'static str {
        self
    }

    fn shown(&self) -> String {
        format!("'{self}'")
    }
}

/// The error of a value that is none of a fixed set of strings.
pub(super) fn not_a_member(kind: &'static str, members: impl Iterator<Item = &'static str>) -> Fault {
    let mut shown: Vec<String> = members.map(|member| format!("'{member}'")).collect();
    let last = shown.pop().expect("a set of strings has members");
    let expected = if shown.is_empty() { last } else { format!("{} or {last}", shown.join(", ")) };
    Fault::new(kind, format!("Input should be {expected}")).with("expected", expected)
}

/// The entries and the tag of a union member, or the error that says why there is none.
///
/// A tag that is no string is read as the text Python would show for it, which no member has.
pub(super) fn tagged<'v, 'j>(value: &'v JsonValue<'j>, by: &'static str, errors: &mut Errors) -> Option<Cow<'v, str>> {
    let JsonValue::Object(entries) = value else {
        return errors.fail(Fault::new("dict_type", "Input should be an object"), value);
    };
    match lookup(entries, by) {
        Some(JsonValue::Str(tag)) => Some(Cow::Borrowed(tag)),
        Some(other) => Some(Cow::Owned(repr::head(other, MAX_QUOTE))),
        None => {
            let msg = format!("Unable to extract tag using discriminator '{by}'");
            let fault = Fault::new("union_tag_not_found", msg).with("discriminator", format!("'{by}'"));
            errors.fail(fault, value)
        }
    }
}

/// The error of a tag that no member of the union has.
pub(super) fn unknown_tag(tag: &str, by: &'static str, tags: &[String]) -> Fault {
    let tag = quote(tag);
    let expected = tags.join(", ");
    let msg = format!("Input tag '{tag}' found using '{by}' does not match any of the expected tags: {expected}");
    Fault::new("union_tag_invalid", msg)
        .with("discriminator", format!("'{by}'"))
        .with("tag", tag.as_ref())
        .with("expected_tags", expected)
}

/// Defines a message, or a part of one, by its fields.
///
/// `Forbid`, `Ignore` or `Allow` says what happens to other keys (`Allow` needs `..extra` at the end). `@"name" =
/// constant` is a field with a fixed value that is written but not stored. A field is `name: Type`, and may be called
/// something else on the wire (`name as "wire_name"`), be known by another name too (`name | alias`), have a reader of
/// its own (`Type [reader]`) and a default (`= default`), without which it is required.
macro_rules! message {
    (
        $(#[$meta:meta])*
        $policy:ident struct $name:ident {
            $(
                $(@ $tag:literal = $text:expr,)*
                $(#[$doc:meta])*
                $field:ident $(as $wire:literal)? $(| $alias:ident)* : $ty:ty $([ $read:path ])? $(= $default:expr)?,
            )*
            $(.. $(#[$extra_doc:meta])* $extra:ident)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name {
            $( $(#[$doc])* pub $field: $ty, )*
            $( $(#[$extra_doc])* pub $extra: $crate::protocol::json::JsonMap, )?
        }

        impl $crate::protocol::schema::Wire for $name {
            fn decode(
                value: &jiter::JsonValue<'_>,
                errors: &mut $crate::protocol::error::Errors,
            ) -> Option<Self> {
                use $crate::protocol::schema;
                const KNOWN: &[&str] = &[$(
                    $($tag,)* schema::message!(@name $field $($wire)?), $(stringify!($alias),)*
                )*];
                let entries = schema::entries(value, stringify!($name), errors)?;
                let before = errors.mark();
                $(
                    $( schema::Literal::check(&$text, entries, $tag, errors); )*
                    let $field = schema::field::<$ty>(
                        value,
                        entries,
                        &[schema::message!(@name $field $($wire)?) $(, stringify!($alias))*],
                        schema::message!(@default $($default)?),
                        schema::message!(@read $($read)?),
                        errors,
                    );
                )*
                if schema::Extra::$policy == schema::Extra::Forbid {
                    schema::forbid_extra(entries, KNOWN, errors);
                }
                // Only now, so that the errors of all fields are recorded.
                if errors.mark() != before {
                    return None;
                }
                Some($name {
                    $( $field: $field?, )*
                    $( $extra: $crate::protocol::json::to_map_without(entries, KNOWN), )?
                })
            }

            fn encode(&self, out: &mut $crate::protocol::json::Writer) {
                use $crate::protocol::schema;
                out.open('{');
                $(
                    $( out.key($tag); out.string(schema::Literal::text(&$text)); )*
                    out.key(schema::message!(@name $field $($wire)?));
                    schema::Wire::encode(&self.$field, out);
                )*
                $(
                    for (key, value) in &self.$extra {
                        out.key(key);
                        out.value(value);
                    }
                )?
                out.close('}');
            }
        }
    };
    (@name $field:ident) => { stringify!($field) };
    (@name $field:ident $wire:literal) => { $wire };
    (@default) => { None };
    (@default $default:expr) => { Some(|| $default) };
    (@read) => { $crate::protocol::schema::Wire::decode };
    (@read $read:path) => { $read };
}
pub(super) use message;

/// Defines an enum whose members a tag field tells apart: `by "field" { tag => Variant(Struct), … }`.
macro_rules! tagged_union {
    (
        $(#[$meta:meta])*
        pub enum $name:ident by $by:literal {
            $( $tag:expr => $(#[$doc:meta])* $variant:ident($ty:ty) ),* $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        // A message is moved once or twice on its way; a box for the large ones would burden every match.
        #[allow(clippy::large_enum_variant)]
        pub enum $name {
            $( $(#[$doc])* $variant($ty), )*
        }

        impl $name {
            /// The tags as Python shows them in an error.
            pub(super) fn shown_tags() -> Vec<String> {
                vec![$( $crate::protocol::schema::Literal::shown(&$tag) ),*]
            }
        }

        impl $crate::protocol::schema::Wire for $name {
            fn decode(
                value: &jiter::JsonValue<'_>,
                errors: &mut $crate::protocol::error::Errors,
            ) -> Option<Self> {
                use $crate::protocol::schema::{Literal, Wire, tagged, unknown_tag};
                let tag = tagged(value, $by, errors)?;
                $(
                    if tag == Literal::text(&$tag) {
                        return errors.at(Literal::text(&$tag), |errors| <$ty as Wire>::decode(value, errors))
                            .map(Self::$variant);
                    }
                )*
                errors.fail(unknown_tag(&tag, $by, &Self::shown_tags()), value)
            }

            fn encode(&self, out: &mut $crate::protocol::json::Writer) {
                match self {
                    $( Self::$variant(member) => $crate::protocol::schema::Wire::encode(member, out), )*
                }
            }
        }

        $(
            impl From<$ty> for $name {
                fn from(member: $ty) -> Self {
                    Self::$variant(member)
                }
            }
        )*
    };
}
pub(super) use tagged_union;

/// Defines every message of one direction of a link, distinguished by `message_type`.
macro_rules! direction {
    ( $(#[$meta:meta])* pub enum $name:ident { $( $variant:ident ),* $(,)? } ) => {
        $crate::protocol::schema::tagged_union! {
            $(#[$meta])*
            pub enum $name by "message_type" {
                $(
                    stringify!($variant) =>
                    #[doc = concat!("See [`", stringify!($variant), "`].")] $variant($variant)
                ),*
            }
        }

        impl $name {
            /// The `message_type` of each.
            pub const TYPES: &[&str] = &[$( stringify!($variant) ),*];

            /// Reads one text frame.
            pub fn decode(text: &str) -> Result<Self, $crate::protocol::error::DecodeError> {
                $crate::protocol::schema::decode_frame(text, || {
                    format!("tagged-union[{}]", [$( stringify!($variant) ),*].join(","))
                })
            }

            /// Writes the text frame, byte for byte as the Python peer does.
            pub fn encode(&self) -> String {
                $crate::protocol::schema::encode_compact(self)
            }
        }
    };
}
pub(super) use direction;

/// Defines a set of strings. `Lenient` reads everything else as `Unknown`, `Enum` and `Literal` refuse it, each with
/// the error of its kind in Python.
macro_rules! wire_enum {
    (
        $(#[$meta:meta])*
        $policy:ident enum $name:ident { $( $(#[$doc:meta])* $variant:ident = $text:literal ),* $(,)? }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $( $(#[$doc])* $variant, )*
        }

        impl $name {
            /// Every member.
            pub const ALL: &[$name] = &[$( $name::$variant ),*];

            /// The text on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $( $name::$variant => $text, )* }
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::protocol::error::UnknownName;

            /// Reads exactly the text of a member; what else is on the wire is for the message to judge.
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $( $text => Ok($name::$variant), )*
                    _ => Err($crate::protocol::error::UnknownName {
                        set: stringify!($name),
                        found: text.to_owned(),
                        expected: [$( $text ),*].join(", "),
                    }),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl $crate::protocol::schema::Wire for $name {
            fn decode(
                value: &jiter::JsonValue<'_>,
                errors: &mut $crate::protocol::error::Errors,
            ) -> Option<Self> {
                let known = match value {
                    jiter::JsonValue::Str(text) => match text.as_ref() {
                        $( $text => Some($name::$variant), )*
                        _ => None,
                    },
                    _ => None,
                };
                known.or_else(|| $crate::protocol::schema::wire_enum!(@$policy $name value errors))
            }

            fn encode(&self, out: &mut $crate::protocol::json::Writer) {
                out.string(self.as_str());
            }
        }
    };
    (@Lenient $name:ident $value:ident $errors:ident) => {{
        // Nothing can be wrong here, but every reader is given the place to say so.
        let _ = $errors;
        Some($name::Unknown)
    }};
    (@Enum $name:ident $value:ident $errors:ident) => {
        $crate::protocol::schema::wire_enum!(@refuse "enum", $name $value $errors)
    };
    (@Literal $name:ident $value:ident $errors:ident) => {
        $crate::protocol::schema::wire_enum!(@refuse "literal_error", $name $value $errors)
    };
    (@refuse $kind:literal, $name:ident $value:ident $errors:ident) => {{
        let members = $name::ALL.iter().map(|member| member.as_str());
        $errors.fail($crate::protocol::schema::not_a_member($kind, members), $value)
    }};
}
pub(super) use wire_enum;
