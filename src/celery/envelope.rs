//! A message as kombu puts it in a Redis list: JSON around a body in base64. Pure.
//!
//! Headers and properties are kept as they were read, in their order, so nothing is lost when a message is written
//! again.

use std::borrow::Cow;
use std::io::{Read, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use flate2::write::ZlibEncoder;
use serde_json::{Map, Value};

use super::json;
use super::keys::{JSON, PRIORITY_MAX};
use crate::base::limits::{CELERY_BODY_BYTES, CELERY_MESSAGE_BYTES, CELERY_REVOKED_ID_BYTES};
use crate::ops::errors::ErrorClass;

/// Why a message cannot be read. The queue flows on after each of them: the message is kept aside.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// More bytes than are read; also of a compressed body, which is not unpacked any further.
    #[error("{what} has more than {limit} bytes")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// It is not the JSON of a kombu message.
    #[error("not a kombu message: {0}")]
    NotAMessage(String),
    /// Its body is in a format other than JSON, as pickle or YAML.
    #[error("content of type {kind:?} is refused; only application/json is read{}", signed(.0), kind = .0)]
    ContentType(String),
    /// Its body is packed in a way other than gzip or zlib.
    #[error("compression {0:?} is not known; gzip and zlib are")]
    Compression(String),
    /// Its body does not decode.
    #[error("the body does not decode: {0}")]
    Body(String),
    /// It is a message, but no task of Celery's protocol 2.
    #[error("not a task of protocol 2: {0}")]
    NotATask(String),
}

/// What Celery's serializer `auth` calls its content.
const SIGNED: &str = "application/data";

fn signed(content_type: &str) -> &'static str {
    match content_type {
        SIGNED => ". It is that of the serializer auth: signed messages are not supported",
        _ => "",
    }
}

impl MessageError {
    /// Always [`ErrorClass::Rejected`]: reading it again does not help.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Rejected
    }
}

/// How a body is packed. Celery writes zlib under the name of gzip; both are distinguished by their first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// What Celery writes for `compression='gzip'` or `'zlib'`.
    Zlib,
}

impl Compression {
    /// The value of the header `compression`.
    pub const HEADER: &'static str = "application/x-gzip";

    /// Packs a body as Celery does.
    pub fn pack(self, body: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(body).and_then(|()| encoder.finish()).expect("a vector takes every write")
    }
}

/// Unpacks gzip or zlib, `limit` bytes at most; `method` is the name that the sender gave it.
pub(super) fn unpack(packed: &[u8], method: &str, limit: usize) -> Result<Vec<u8>, MessageError> {
    let known = [Compression::HEADER, "application/gzip", "application/zlib", "gzip", "zlib"];
    if !known.contains(&method) {
        return Err(MessageError::Compression(method.chars().take(64).collect()));
    }
    let mut body = Vec::new();
    let bytes = limit as u64 + 1;
    let read = match packed.starts_with(&[0x1f, 0x8b]) {
        true => MultiGzDecoder::new(packed).take(bytes).read_to_end(&mut body),
        false => ZlibDecoder::new(packed).take(bytes).read_to_end(&mut body),
    };
    // What was unpacked before an error counts first: a bomb may also be broken.
    if body.len() > limit {
        return Err(MessageError::TooLarge { what: "the unpacked body", limit });
    }
    read.map_err(|error| MessageError::Body(error.to_string()))?;
    Ok(body)
}

/// A message of kombu.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    /// The body out of its base64, still packed if the header `compression` says so.
    pub body: Vec<u8>,
    /// The format of the body, as `application/json`.
    pub content_type: String,
    /// The character set of the body, as `utf-8`.
    pub content_encoding: String,
    /// Celery's part.
    pub headers: Map<String, Value>,
    /// kombu's part.
    pub properties: Map<String, Value>,
    /// Whatever else stood beside these.
    pub other: Map<String, Value>,
}

impl Envelope {
    /// A message with a JSON body and without headers and properties.
    pub fn json(body: &Value) -> Self {
        Self {
            body: json::write(body).into_bytes(),
            content_type: JSON.to_owned(),
            content_encoding: "utf-8".to_owned(),
            headers: Map::new(),
            properties: Map::new(),
            other: Map::new(),
        }
    }

    /// Reads what lies in a Redis list.
    ///
    /// # Errors
    /// [`MessageError`], except for what concerns the content of the body.
    pub fn read(text: &[u8]) -> Result<Self, MessageError> {
        if text.len() > CELERY_MESSAGE_BYTES {
            return Err(MessageError::TooLarge { what: "the message", limit: CELERY_MESSAGE_BYTES });
        }
        let not = |why: &str| MessageError::NotAMessage(why.to_owned());
        let value = json::read(text).map_err(|error| MessageError::NotAMessage(error.to_string()))?;
        let Value::Object(mut other) = value else { return Err(not("not a JSON object")) };
        let headers = map(other.shift_remove("headers")).ok_or_else(|| not("headers are not an object"))?;
        let properties = map(other.shift_remove("properties")).ok_or_else(|| not("properties are not an object"))?;
        let text_of = |value: Option<Value>| value.as_ref().and_then(Value::as_str).unwrap_or("").to_owned();
        let content_type = text_of(other.shift_remove("content-type"));
        let content_encoding = text_of(other.shift_remove("content-encoding"));
        let body = match other.shift_remove("body") {
            Some(Value::String(body)) => body,
            None | Some(Value::Null) => String::new(),
            Some(_) => return Err(not("the body is not a text")),
        };
        let body = match properties.get("body_encoding").and_then(Value::as_str) {
            Some("base64") => STANDARD.decode(&body).map_err(|error| MessageError::Body(error.to_string()))?,
            None | Some("utf-8" | "UTF-8" | "") => body.into_bytes(),
            Some(encoding) => {
                return Err(MessageError::Body(format!("it is in {:?}", encoding.get(..32).unwrap_or(encoding))));
            }
        };
        Ok(Self { body, content_type, content_encoding, headers, properties, other })
    }

    /// Writes it as kombu does, with the body in base64.
    pub fn write(&self) -> String {
        let mut properties = self.properties.clone();
        properties.insert("body_encoding".to_owned(), "base64".into());
        let mut message = Map::new();
        message.insert("body".to_owned(), STANDARD.encode(&self.body).into());
        message.insert("content-encoding".to_owned(), self.content_encoding.clone().into());
        message.insert("content-type".to_owned(), self.content_type.clone().into());
        message.insert("headers".to_owned(), Value::Object(self.headers.clone()));
        message.insert("properties".to_owned(), Value::Object(properties));
        message.extend(self.other.clone());
        json::write(&Value::Object(message))
    }

    /// The body's JSON, unpacked.
    ///
    /// # Errors
    /// [`MessageError::ContentType`], [`MessageError::Compression`], [`MessageError::Body`] or, for a bomb,
    /// [`MessageError::TooLarge`].
    pub fn payload(&self) -> Result<Value, MessageError> {
        if self.content_type != JSON {
            return Err(MessageError::ContentType(self.content_type.chars().take(64).collect()));
        }
        let body = self.unpacked()?;
        json::read(&body).map_err(|error| MessageError::Body(error.to_string()))
    }

    /// The body's bytes, unpacked.
    ///
    /// # Errors
    /// As [`Envelope::payload`], but for the content type.
    pub fn unpacked(&self) -> Result<Cow<'_, [u8]>, MessageError> {
        match self.headers.get("compression").and_then(Value::as_str).filter(|method| !method.is_empty()) {
            Some(method) => unpack(&self.body, method, CELERY_BODY_BYTES).map(Cow::Owned),
            None => Ok(Cow::Borrowed(&self.body)),
        }
    }

    /// The id of the task, also of one whose body does not decode.
    pub fn task_id(&self) -> Option<&str> {
        self.headers.get("id").and_then(Value::as_str)
    }

    /// The name of the task, also of one whose body does not decode.
    pub fn task_name(&self) -> Option<&str> {
        self.headers.get("task").and_then(Value::as_str)
    }

    /// What tells this delivery from every other.
    pub fn delivery_tag(&self) -> Option<&str> {
        self.properties.get("delivery_tag").and_then(Value::as_str)
    }

    /// The exchange it was sent to; empty for a message sent straight to a queue.
    pub fn exchange(&self) -> &str {
        self.delivery_info("exchange").and_then(Value::as_str).unwrap_or("")
    }

    /// Its routing key; the queue's name if the exchange is empty.
    pub fn routing_key(&self) -> &str {
        self.delivery_info("routing_key").and_then(Value::as_str).unwrap_or("")
    }

    /// Its priority, from 0 (first) to 9; what is no number is 0.
    pub fn priority(&self) -> u8 {
        let priority = self.properties.get("priority").and_then(Value::as_i64).unwrap_or(0);
        priority.clamp(0, i64::from(PRIORITY_MAX)) as u8
    }

    /// Whether it was delivered before and not acknowledged.
    pub fn is_redelivered(&self) -> bool {
        let set = |value: Option<&Value>| value.and_then(Value::as_bool).unwrap_or(false);
        set(self.delivery_info("redelivered")) || set(self.headers.get("redelivered"))
    }

    fn delivery_info(&self, key: &str) -> Option<&Value> {
        self.properties.get("delivery_info")?.get(key)
    }
}

/// The id of the task that a message is about, from whatever of it can be read: its headers, its properties, its body
/// (protocol 1), and else the bytes themselves, which may be cut.
pub fn find_id(raw: &[u8]) -> Option<String> {
    let Ok(envelope) = Envelope::read(raw) else {
        let headers = find(raw, b"\"headers\"").map_or(raw, |at| &raw[at..]);
        return text_after(headers, "id")
            .or_else(|| text_after(raw, "correlation_id"))
            .or_else(|| text_after(raw, "id"));
    };
    let property = |name: &str| envelope.properties.get(name).and_then(Value::as_str);
    let said = envelope.task_id().filter(|id| !id.is_empty()).or_else(|| property("correlation_id"));
    match said.filter(|id| is_id(id)) {
        Some(id) => Some(id.to_owned()),
        None => text_after(&envelope.unpacked().ok()?, "id"),
    }
}

fn is_id(id: &str) -> bool {
    (1..=CELERY_REVOKED_ID_BYTES).contains(&id.len()) && !id.chars().any(char::is_control)
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

/// The first id that stands in these bytes as `"name": "…"`.
fn text_after(bytes: &[u8], name: &str) -> Option<String> {
    let (name, mut rest) = (format!("\"{name}\""), bytes);
    while let Some(at) = find(rest, name.as_bytes()) {
        rest = &rest[at + name.len()..];
        let value = rest.trim_ascii_start().strip_prefix(b":").map(<[u8]>::trim_ascii_start);
        let text = value.and_then(|value| value.strip_prefix(b"\""));
        let length = text.and_then(|text| text.iter().position(|byte| matches!(byte, b'"' | b'\\')));
        // An id has nothing to escape.
        if let (Some(text), Some(length)) = (text, length)
            && text[length] == b'"'
            && let Some(id) = std::str::from_utf8(&text[..length]).ok().filter(|id| is_id(id))
        {
            return Some(id.to_owned());
        }
    }
    None
}

/// An object, an absent one as empty; `None` for anything else.
fn map(value: Option<Value>) -> Option<Map<String, Value>> {
    match value {
        None | Some(Value::Null) => Some(Map::new()),
        Some(Value::Object(map)) => Some(map),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn packed(body: &[u8]) -> Envelope {
        let mut envelope = Envelope::json(&Value::Null);
        envelope.body = body.to_vec();
        envelope.headers.insert("compression".to_owned(), Compression::HEADER.into());
        envelope
    }

    #[test]
    fn gzip_and_zlib_are_distinguished_by_their_first_bytes() {
        let text = json!(["a", 1]).to_string().into_bytes();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&text).unwrap();
        for body in [Compression::Zlib.pack(&text), gzip.finish().unwrap()] {
            assert_eq!(packed(&body).payload().unwrap(), json!(["a", 1]));
            let cut = packed(&body[..body.len() - 3]).payload().unwrap_err();
            assert!(matches!(cut, MessageError::Body(_)), "{cut}");
        }
        let mut other = packed(b"BZh9");
        other.headers.insert("compression".to_owned(), "application/x-bz2".into());
        assert_eq!(other.payload().unwrap_err(), MessageError::Compression("application/x-bz2".to_owned()));
    }

    #[test]
    fn a_bomb_is_refused_at_the_limit_whole_or_broken() {
        let bomb = Compression::Zlib.pack(&vec![b' '; CELERY_BODY_BYTES + 1]);
        assert!(bomb.len() < 1 << 20, "{}", bomb.len());
        let too_large = MessageError::TooLarge { what: "the unpacked body", limit: CELERY_BODY_BYTES };
        assert_eq!(packed(&bomb).payload().unwrap_err(), too_large);
        assert_eq!(unpack(&Compression::Zlib.pack(&[b' '; 100]), "gzip", 100).unwrap().len(), 100);
        assert!(unpack(&Compression::Zlib.pack(&[b' '; 101]), "gzip", 100).is_err());
    }

    #[test]
    fn an_id_is_found_in_what_cannot_be_read() {
        let of = |text: &str| find_id(text.as_bytes());
        let message = r#"{"body": "{\"id\": 1}", "headers": {"task": "t", "id": "right"}, "properties": {}"#;
        assert_eq!(of(message).as_deref(), Some("right"), "it is cut");
        assert_eq!(of(&format!("{message}}}")).as_deref(), Some("right"));
        assert_eq!(of(&message[30..]).as_deref(), Some("right"), "its beginning is missing");
        let cut = r#"{"properties": {"correlation_id": "right", "headers": {"ids": ["x"], "id": null, "id": "a\"b"#;
        assert_eq!(of(cut).as_deref(), Some("right"));
        assert_eq!(of(r#"{"headers": {}, "properties": {"correlation_id": "right"}}"#).as_deref(), Some("right"));
        let first = r#"{"headers": {}, "body": "{\"task\": \"t\", \"id\": \"right\", \"args\": []}"}"#;
        assert_eq!(of(first).as_deref(), Some("right"), "protocol 1 has it in its body");
        for none in ["", "x", "{}", r#"{"headers": {"id": 5}}"#, r#"{"id": ""#, r#"{"id": "a\u0007"}"#] {
            assert_eq!(of(none), None, "{none}");
        }
    }

    #[test]
    fn only_json_is_read() {
        let mut envelope = Envelope::json(&json!([]));
        envelope.content_type = "application/x-python-serialize".to_owned();
        let error = envelope.payload().unwrap_err().to_string();
        assert!(error.contains("application/x-python-serialize") && error.contains("application/json"), "{error}");
    }

    #[test]
    fn what_is_no_message_is_refused_with_a_reason() {
        for bad in ["", "x", "[]", "1", r#"{"headers": []}"#, r#"{"properties": 1}"#, r#"{"body": {}}"#] {
            assert!(matches!(Envelope::read(bad.as_bytes()), Err(MessageError::NotAMessage(_))), "{bad}");
        }
        for bad in
            [r#"{"body": "?", "properties": {"body_encoding": "base64"}}"#, r#"{"properties": {"body_encoding": "x"}}"#]
        {
            assert!(matches!(Envelope::read(bad.as_bytes()), Err(MessageError::Body(_))), "{bad}");
        }
        let long = vec![b' '; CELERY_MESSAGE_BYTES + 1];
        assert!(matches!(Envelope::read(&long), Err(MessageError::TooLarge { .. })));
    }

    #[test]
    fn what_it_does_not_know_survives_and_either_mark_of_a_redelivery_counts() {
        let mut text = json!({"body": "W10=", "content-type": JSON, "content-encoding": "utf-8", "new": [1],
            "headers": {"x": {"y": 12345678901234567890_u64}},
            "properties": {"body_encoding": "base64", "delivery_info": {"z": null}, "w": 1.50}});
        let read = |text: &Value| Envelope::read(text.to_string().as_bytes()).unwrap();
        let envelope = read(&text);
        assert_eq!(serde_json::from_str::<Value>(&envelope.write()).unwrap(), text);
        assert_eq!((envelope.is_redelivered(), envelope.payload().unwrap()), (false, json!([])));
        text["headers"]["redelivered"] = json!(true);
        assert!(read(&text).is_redelivered());
        text["headers"]["redelivered"] = json!(false);
        text["properties"]["delivery_info"]["redelivered"] = json!(true);
        assert!(read(&text).is_redelivered());
    }
}
