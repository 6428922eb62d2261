//! How a request and its answer look on a channel. Pure.
//!
//! A line of text and then the payload, whatever its bytes are. Request: `phalanx-request-1 <reply channel> <id>
//! <milliseconds that are left>`. Answer: `phalanx-answer-1 <id> <ok|failed|busy>`, with the text of the failure for a
//! payload.

use std::time::Duration;

const REQUEST: &str = "phalanx-request-1";
const ANSWER: &str = "phalanx-answer-1";

/// Bytes in which the first line has to end.
const LINE_BYTES: usize = 512;

/// A request as it arrives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question<'a> {
    pub reply_to: &'a str,
    pub id: u64,
    pub left: Duration,
    pub payload: &'a [u8],
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply<'a> {
    Ok(&'a [u8]),
    Failed(String),
    Busy,
}

impl Question<'_> {
    pub(super) fn write(&self) -> Vec<u8> {
        let left = self.left.as_millis();
        joined(&format!("{REQUEST} {} {} {left}\n", self.reply_to, self.id), self.payload)
    }

    /// `None` for what is no request.
    pub(super) fn read(message: &[u8]) -> Option<Question<'_>> {
        let (mut words, payload) = line(message)?;
        let (REQUEST, Some(reply_to), Some(id), Some(left), None) =
            (words.next()?, words.next(), words.next(), words.next(), words.next())
        else {
            return None;
        };
        let (id, left) = (id.parse().ok()?, Duration::from_millis(left.parse().ok()?));
        Some(Question { reply_to, id, left, payload })
    }
}

impl Reply<'_> {
    pub(super) fn write(&self, id: u64) -> Vec<u8> {
        let (word, payload) = match self {
            Self::Ok(payload) => ("ok", *payload),
            Self::Failed(text) => ("failed", text.as_bytes()),
            Self::Busy => ("busy", &b""[..]),
        };
        joined(&format!("{ANSWER} {id} {word}\n"), payload)
    }

    /// `None` for what is no answer.
    pub(super) fn read(message: &[u8]) -> Option<(u64, Reply<'_>)> {
        let (mut words, payload) = line(message)?;
        let (ANSWER, Some(id), Some(word), None) = (words.next()?, words.next(), words.next(), words.next()) else {
            return None;
        };
        let reply = match word {
            "ok" => Reply::Ok(payload),
            "failed" => Reply::Failed(String::from_utf8_lossy(payload).into_owned()),
            "busy" => Reply::Busy,
            _ => return None,
        };
        Some((id.parse().ok()?, reply))
    }
}

fn joined(line: &str, payload: &[u8]) -> Vec<u8> {
    [line.as_bytes(), payload].concat()
}

fn line(message: &[u8]) -> Option<(std::str::Split<'_, char>, &[u8])> {
    let end = message.iter().take(LINE_BYTES).position(|b| *b == b'\n')?;
    Some((std::str::from_utf8(&message[..end]).ok()?.split(' '), &message[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let question = Question { reply_to: "r", id: 7, left: Duration::from_millis(1500), payload: b"a\nb\xff" };
        assert_eq!(question.write(), b"phalanx-request-1 r 7 1500\na\nb\xff");
        assert_eq!(Question::read(&question.write()), Some(question));
        for reply in [Reply::Ok(b"\n\0"), Reply::Failed("no".to_owned()), Reply::Busy] {
            assert_eq!(Reply::read(&reply.write(9)), Some((9, reply)));
        }
    }

    #[test]
    fn what_is_neither_is_passed_over() {
        for other in [
            &b""[..],
            b"hello",
            b"\n",
            b"phalanx-request-1 r 7\n",
            b"phalanx-request-1 r x 1\n",
            b"phalanx-request-2 r 7 1\n",
            b"phalanx-request-1 r 7 1 2\n",
            b"phalanx-answer-1 7 maybe\n",
            b"phalanx-request-1 \xff 7 1\n",
        ] {
            assert!(Question::read(other).is_none() && Reply::read(other).is_none(), "{}", other.escape_ascii());
        }
        assert!(Question::read(&[b'x'; 1000]).is_none());
    }
}
