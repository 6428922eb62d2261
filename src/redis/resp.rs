//! Redis's protocol (RESP2 and RESP3) read from a buffer, as far as it has arrived. Pure.
//!
//! The `redis` crate's parser keeps what it has read in a buffer of its own that nobody can look into, so that a thread
//! that waits for its socket would sleep over a message that is there already. This one takes whole tokens out of the
//! caller's buffer and goes on where it was when more has come: no reply is parsed twice, however small its pieces are.

use redis::{PushKind, Value, VerbatimFormat, parse_redis_value};

use crate::base::limits::{REDIS_LINE_BYTES, REDIS_REPLY_BYTES, REDIS_REPLY_DEPTH};

/// Room that is reserved on the word of a length alone.
const RESERVED_ITEMS: usize = 1024;

/// Bytes of something unexpected that are shown.
const SHOWN_BYTES: usize = 24;

/// What arrived is not Redis's protocol, or more than the limits allow; the text says what.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(pub String);

/// A reply that is being read.
#[derive(Debug)]
pub(super) struct Parser {
    open: Vec<Open>,
    bytes: usize,
    /// Bytes of the largest reply.
    limit: usize,
}

impl Default for Parser {
    fn default() -> Self {
        Self::limited(REDIS_REPLY_BYTES)
    }
}

/// An aggregate whose end has not come.
#[derive(Debug)]
struct Open {
    kind: Kind,
    left: usize,
    items: Vec<Value>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Array,
    Set,
    Map,
    Push,
    /// Says something about the reply that follows; nobody here asks for it, so it is dropped.
    Attribute,
}

/// What one token is.
enum Token {
    Value(Value),
    Open(Kind, usize),
}

impl Parser {
    /// One that takes replies of so many bytes at most.
    pub(super) fn limited(limit: usize) -> Self {
        Self { open: Vec::new(), bytes: 0, limit }
    }

    /// Takes what is complete off the front of `input`; the next reply or push, or `None` if more has to arrive first.
    ///
    /// # Errors
    /// [`Malformed`]; nothing that follows can be understood then.
    pub(super) fn next(&mut self, input: &mut &[u8]) -> Result<Option<Value>, Malformed> {
        while let Some((token, used)) = token(input, self.limit)? {
            *input = &input[used..];
            self.bytes += used;
            if self.bytes > self.limit {
                return Err(too_large(self.bytes, self.limit));
            }
            let done = match token {
                Token::Value(value) => self.close(value),
                Token::Open(Kind::Attribute, 0) => None,
                Token::Open(kind, 0) => finish(kind, Vec::new()).map(|value| self.close(value))?,
                Token::Open(kind, left) => {
                    if self.open.len() >= REDIS_REPLY_DEPTH {
                        return Err(Malformed(format!("a reply that nests deeper than {REDIS_REPLY_DEPTH}")));
                    }
                    self.open.push(Open { kind, left, items: Vec::with_capacity(left.min(RESERVED_ITEMS)) });
                    None
                }
            };
            let mut done = done;
            // Closing one aggregate may close those around it.
            while let Some(Done { kind, items }) = done {
                match kind {
                    None => {
                        self.bytes = 0;
                        return Ok(items.into_iter().next());
                    }
                    Some(Kind::Attribute) => done = None,
                    Some(kind) => done = self.close(finish(kind, items)?),
                }
            }
        }
        Ok(None)
    }

    /// Puts a value where it belongs; what became complete by it.
    fn close(&mut self, value: Value) -> Option<Done> {
        let Some(open) = self.open.last_mut() else { return Some(Done { kind: None, items: vec![value] }) };
        open.items.push(value);
        open.left -= 1;
        if open.left > 0 {
            return None;
        }
        self.open.pop().map(|open| Done { kind: Some(open.kind), items: open.items })
    }
}

/// An aggregate with all its items or, without a kind, a whole reply.
struct Done {
    kind: Option<Kind>,
    items: Vec<Value>,
}

fn finish(kind: Kind, items: Vec<Value>) -> Result<Value, Malformed> {
    Ok(match kind {
        Kind::Array => Value::Array(items),
        Kind::Set => Value::Set(items),
        Kind::Map | Kind::Attribute => {
            let mut items = items.into_iter();
            let mut pairs = Vec::with_capacity(items.len() / 2);
            while let (Some(key), Some(value)) = (items.next(), items.next()) {
                pairs.push((key, value));
            }
            Value::Map(pairs)
        }
        Kind::Push => {
            let mut items = items.into_iter();
            let kind = match items.next() {
                Some(Value::BulkString(name)) => push_kind(&String::from_utf8_lossy(&name)),
                Some(Value::SimpleString(name)) => push_kind(&name),
                _ => return Err(Malformed("a push message without a name".to_owned())),
            };
            Value::Push { kind, data: items.collect() }
        }
    })
}

fn push_kind(name: &str) -> PushKind {
    match name {
        "invalidate" => PushKind::Invalidate,
        "message" => PushKind::Message,
        "pmessage" => PushKind::PMessage,
        "smessage" => PushKind::SMessage,
        "subscribe" => PushKind::Subscribe,
        "psubscribe" => PushKind::PSubscribe,
        "ssubscribe" => PushKind::SSubscribe,
        "unsubscribe" => PushKind::Unsubscribe,
        "punsubscribe" => PushKind::PUnsubscribe,
        "sunsubscribe" => PushKind::SUnsubscribe,
        other => PushKind::Other(other.to_owned()),
    }
}

/// The token at the front and its length, if it is all there.
fn token(input: &[u8], limit: usize) -> Result<Option<(Token, usize)>, Malformed> {
    let Some(&first) = input.first() else { return Ok(None) };
    if !b"+-:$*%~>_,#!=(|".contains(&first) {
        return Err(Malformed(format!("expected a reply of Redis, got {}", shown(input))));
    }
    let searched = &input[..input.len().min(REDIS_LINE_BYTES)];
    let Some(end) = searched.windows(2).position(|pair| pair == b"\r\n") else {
        if searched.len() == REDIS_LINE_BYTES {
            return Err(Malformed(format!("a line of more than {REDIS_LINE_BYTES} bytes: {}", shown(input))));
        }
        return Ok(None);
    };
    let (line, used) = (&input[1..end], end + 2);
    let value = match first {
        b'$' | b'!' | b'=' => {
            let Some(length) = length(line, limit)? else {
                return Ok(Some((Token::Value(Value::Nil), used)));
            };
            let Some(body) = input.get(used..used + length + 2) else { return Ok(None) };
            let (body, after) = body.split_at(length);
            if after != b"\r\n" {
                return Err(Malformed(format!("a string of {length} bytes that does not end there: {}", shown(after))));
            }
            let value = match first {
                b'$' => Value::BulkString(body.to_vec()),
                b'!' => server_error(body)?,
                _ => verbatim(body)?,
            };
            return Ok(Some((Token::Value(value), used + length + 2)));
        }
        b'*' | b'%' | b'~' | b'>' | b'|' => {
            let kind = match first {
                b'*' => Kind::Array,
                b'%' => Kind::Map,
                b'~' => Kind::Set,
                b'>' => Kind::Push,
                _ => Kind::Attribute,
            };
            // The smallest item has three bytes.
            let Some(count) = length(line, limit / 3)? else {
                return Ok(Some((Token::Value(Value::Nil), used)));
            };
            let items = if matches!(kind, Kind::Map | Kind::Attribute) { 2 * count } else { count };
            return Ok(Some((Token::Open(kind, items), used)));
        }
        b'+' if line == b"OK" => Value::Okay,
        b'+' => Value::SimpleString(text(line)?.to_owned()),
        b'-' => server_error(line)?,
        b':' => Value::Int(parsed(line, "a whole number")?),
        b'_' => Value::Nil,
        b',' => Value::Double(parsed(line, "a number")?),
        b'#' => match line {
            b"t" => Value::Boolean(true),
            b"f" => Value::Boolean(false),
            other => return Err(Malformed(format!("expected t or f, got {}", shown(other)))),
        },
        _ => Value::BigNumber(line.to_vec()),
    };
    Ok(Some((Token::Value(value), used)))
}

/// A length or a count; `None` for the −1 that RESP2 writes for nothing.
fn length(line: &[u8], limit: usize) -> Result<Option<usize>, Malformed> {
    let length: i64 = parsed(line, "a length")?;
    match usize::try_from(length) {
        Ok(length) if length <= limit => Ok(Some(length)),
        Ok(length) => Err(too_large(length, limit)),
        Err(_) if length == -1 => Ok(None),
        Err(_) => Err(Malformed(format!("a length of {length}"))),
    }
}

fn parsed<T: std::str::FromStr>(line: &[u8], what: &str) -> Result<T, Malformed> {
    text(line)?.parse().map_err(|_| Malformed(format!("expected {what}, got {}", shown(line))))
}

fn text(line: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(line).map_err(|_| Malformed(format!("a line that is not text: {}", shown(line))))
}

/// The crate's errors can only be made by its own parser.
fn server_error(text: &[u8]) -> Result<Value, Malformed> {
    let clean: String = String::from_utf8_lossy(text).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    parse_redis_value(format!("-{clean}\r\n").as_bytes()).map_err(|e| Malformed(format!("an error reply: {e}")))
}

fn verbatim(body: &[u8]) -> Result<Value, Malformed> {
    let text = String::from_utf8_lossy(body);
    let (format, text) =
        text.split_once(':').ok_or_else(|| Malformed(format!("a text without a format: {}", shown(body))))?;
    let format = match format {
        "txt" => VerbatimFormat::Text,
        "mkd" => VerbatimFormat::Markdown,
        other => VerbatimFormat::Unknown(other.to_owned()),
    };
    Ok(Value::VerbatimString { format, text: text.to_owned() })
}

fn too_large(bytes: usize, limit: usize) -> Malformed {
    Malformed(format!("a reply of {bytes} bytes or items is more than this program takes ({limit} bytes)"))
}

fn shown(bytes: &[u8]) -> String {
    let dots = if bytes.len() > SHOWN_BYTES { "…" } else { "" };
    format!("\"{}\"{dots}", bytes[..bytes.len().min(SHOWN_BYTES)].escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    fn all(mut bytes: &[u8]) -> Result<Vec<Value>, Malformed> {
        let (mut parser, mut found) = (Parser::default(), Vec::new());
        while let Some(value) = parser.next(&mut bytes)? {
            found.push(value);
        }
        Ok(found)
    }

    /// A random reply as Redis would write it.
    fn reply(rng: &mut Rng, depth: usize, out: &mut Vec<u8>) {
        let pick = rng.next_u64() % if depth == 0 { 8 } else { 12 };
        let small = rng.next_u64() % 5;
        match pick {
            0 => out.extend(format!("+{}\r\n", ["OK", "PONG", "", "QUEUED"][(small % 4) as usize]).bytes()),
            1 => out.extend(b"-WRONGTYPE not that kind\r\n"),
            2 => out.extend(format!(":{}\r\n", rng.next_u64() as i64).bytes()),
            3 => out.extend(b"$-1\r\n"),
            4 => out.extend(b"_\r\n"),
            5 => out.extend(format!(",{}\r\n", rng.unit()).bytes()),
            6 => out.extend(b"#t\r\n"),
            7 => {
                let body: Vec<u8> = (0..rng.next_u64() % 300).map(|_| rng.next_u64() as u8).collect();
                out.extend(format!("${}\r\n", body.len()).bytes());
                out.extend(body);
                out.extend(b"\r\n");
            }
            8 | 9 => {
                out.extend(format!("{}{small}\r\n", if pick == 8 { '*' } else { '~' }).bytes());
                (0..small).for_each(|_| reply(rng, depth - 1, out));
            }
            10 => {
                out.extend(format!("%{small}\r\n").bytes());
                (0..2 * small).for_each(|_| reply(rng, depth - 1, out));
            }
            _ => {
                out.extend(format!(">{}\r\n$7\r\nmessage\r\n", small + 1).bytes());
                (0..small).for_each(|_| reply(rng, depth - 1, out));
            }
        }
    }

    #[test]
    fn in_any_pieces_it_reads_what_the_crate_reads() {
        let seed = Rng::from_entropy().next_u64();
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        for _ in 0..2000 {
            let (mut bytes, mut theirs) = (Vec::new(), Vec::new());
            for _ in 0..1 + rng.next_u64() % 4 {
                let start = bytes.len();
                reply(&mut rng, 4, &mut bytes);
                theirs.push(parse_redis_value(&bytes[start..]).unwrap());
            }
            let (mut parser, mut ours, mut buffer, mut at) = (Parser::default(), Vec::new(), Vec::new(), 0);
            while at < bytes.len() {
                let next = (at + 1 + (rng.next_u64() % 40) as usize).min(bytes.len());
                buffer.extend_from_slice(&bytes[at..next]);
                at = next;
                let mut input = &buffer[..];
                while let Some(value) = parser.next(&mut input).unwrap() {
                    ours.push(value);
                }
                let used = buffer.len() - input.len();
                buffer.drain(..used);
            }
            assert!(buffer.is_empty() && parser.open.is_empty());
            assert_eq!(format!("{ours:?}"), format!("{theirs:?}"), "seed {seed}");
        }
    }

    #[test]
    fn a_peer_that_is_no_redis_is_recognised_by_its_first_bytes() {
        let reported = all(b"HTTP/1.1 400 Bad Request\r\n").unwrap_err().to_string();
        assert_eq!(reported, "expected a reply of Redis, got \"HTTP/1.1 400 Bad Request\"…");
        for bad in [
            &b"$5\r\nhello!\r\n"[..],
            b":12a\r\n",
            b"*-2\r\n",
            b"$999999999999\r\n",
            b"*999999999\r\n",
            b"#x\r\n",
            b">1\r\n:1\r\n",
            b"$\xff\r\n",
        ] {
            assert!(all(bad).is_err(), "{}", bad.escape_ascii());
        }
        assert!(all(&vec![b'+'; REDIS_LINE_BYTES]).is_err());
        assert!(all(&b"*1\r\n".repeat(REDIS_REPLY_DEPTH + 1)).is_err());
        assert_eq!(all(&b"*1\r\n".repeat(REDIS_REPLY_DEPTH)), Ok(vec![]));
    }

    #[test]
    fn the_attributes_of_a_reply_are_skipped() {
        let read =
            all(b"|1\r\n+ttl\r\n:3600\r\n*2\r\n|0\r\n:1\r\n|1\r\n+a\r\n*0\r\n:2\r\n*-1\r\n=7\r\ntxt:abc\r\n").unwrap();
        let text = Value::VerbatimString { format: VerbatimFormat::Text, text: "abc".to_owned() };
        assert_eq!(read, [Value::Array(vec![Value::Int(1), Value::Int(2)]), Value::Nil, text]);
    }
}
