//! Where a download that was broken goes on (RFC 9110, sections 13.1.5 and 14). Pure.
//!
//! It goes on only if the server says that the rest is of the same representation: never is a file made of two.

use crate::net::http::date::unix_seconds;
use crate::net::http::head::first;

/// What an answer said of the representation whose first bytes are in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Representation {
    /// What `If-Range` asks for: a strong `ETag`, or a `Last-Modified` that has been over for a second.
    validator: String,
    /// All its bytes, if they were announced.
    total: Option<u64>,
}

/// What an answer to a request for the rest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// The rest of the same: append it.
    Follows,
    /// All of it, from the first byte.
    Whole,
    /// Neither; ask anew for all.
    Useless,
    /// No content at all: a refusal, which leaves all as it is.
    No,
}

impl Representation {
    /// What the head of a whole answer tells; `None` if its rest could not be asked for.
    pub(super) fn of(headers: &[(String, String)], total: Option<u64>) -> Option<Self> {
        let field = |name| first(headers, name);
        if field("accept-ranges").is_some_and(|unit| unit.eq_ignore_ascii_case("none")) {
            return None;
        }
        let strong = field("etag").filter(|tag| tag.starts_with('"') && tag.len() > 2);
        let settled = || {
            let changed = field("last-modified")?;
            let is_over = unix_seconds(changed)? < unix_seconds(field("date")?)?;
            is_over.then_some(changed)
        };
        Some(Self { validator: strong.or_else(settled)?.to_owned(), total })
    }

    /// The fields that ask for what follows the first `have` bytes.
    pub(super) fn ask(&self, have: u64) -> [(&'static str, String); 3] {
        [
            ("range", format!("bytes={have}-")),
            ("if-range", self.validator.clone()),
            // A coded body would have other bytes at the same places.
            ("accept-encoding", "identity".to_owned()),
        ]
    }

    /// What the answer to that is.
    pub(super) fn judge(&self, status: u16, headers: &[(String, String)], have: u64) -> Rest {
        match status {
            206 => {
                let range = first(headers, "content-range").and_then(content_range);
                let follows = range.is_some_and(|(from, total)| {
                    from == have && (total.is_none() || self.total.is_none() || total == self.total)
                });
                let is_coded = first(headers, "content-encoding").is_some_and(|c| !c.eq_ignore_ascii_case("identity"));
                let other =
                    first(headers, "etag").is_some_and(|tag| self.validator.starts_with('"') && tag != self.validator);
                if follows && !is_coded && !other { Rest::Follows } else { Rest::Useless }
            }
            // The file has become shorter, or is complete already: its end cannot be told from here.
            416 => Rest::Useless,
            200..300 => Rest::Whole,
            _ => Rest::No,
        }
    }

    /// Whether so many bytes are fewer than were announced.
    pub(super) fn lacks(&self, have: u64) -> bool {
        self.total.is_some_and(|total| have < total)
    }
}

/// The first byte and the whole length in `bytes 5-9/10`; a length of `*` is not known.
fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (from, to) = range.trim().split_once('-')?;
    let (from, to): (u64, u64) = (from.parse().ok()?, to.parse().ok()?);
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    (from <= to && total.is_none_or(|total| to < total)).then_some((from, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&str, &str)]) -> Vec<(String, String)> {
        fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    const DATE: (&str, &str) = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");

    #[test]
    fn only_a_strong_validator_is_asked_with() {
        for (fields, validator) in [
            (&[("etag", "\"a\"")][..], Some("\"a\"")),
            (&[("etag", "W/\"a\"")], None),
            (&[("etag", "\"\"")], None),
            (&[("etag", "\"a\""), ("accept-ranges", "none")], None),
            (&[DATE, ("last-modified", "Sun, 06 Nov 1994 08:49:36 GMT")], Some("Sun, 06 Nov 1994 08:49:36 GMT")),
            (&[DATE, ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")], None),
            (&[("last-modified", "Sun, 06 Nov 1994 08:49:36 GMT")], None),
            (&[DATE, ("last-modified", "yesterday")], None),
            (
                &[("etag", "W/\"a\""), DATE, ("last-modified", "Sat, 05 Nov 1994 00:00:00 GMT")],
                Some("Sat, 05 Nov 1994 00:00:00 GMT"),
            ),
            (&[], None),
        ] {
            let found = Representation::of(&headers(fields), None);
            assert_eq!(found.map(|found| found.validator).as_deref(), validator, "{fields:?}");
        }
    }

    #[test]
    fn the_rest_is_appended_only_if_it_is_of_the_same_file_and_place() {
        let same = Representation::of(&headers(&[("etag", "\"a\"")]), Some(10)).unwrap();
        assert_eq!(same.ask(5)[0], ("range", "bytes=5-".to_owned()));
        assert_eq!(same.ask(5)[1], ("if-range", "\"a\"".to_owned()));
        for (status, fields, rest) in [
            (206, &[("content-range", "bytes 5-9/10"), ("etag", "\"a\"")][..], Rest::Follows),
            (206, &[("content-range", "bytes 5-9/*")], Rest::Follows),
            (206, &[("content-range", "bytes 5-7/10")], Rest::Follows),
            (206, &[("content-range", "bytes 4-9/10")], Rest::Useless),
            (206, &[("content-range", "bytes 5-9/11")], Rest::Useless),
            (206, &[("content-range", "bytes 5-9/10"), ("etag", "\"b\"")], Rest::Useless),
            (206, &[("content-range", "bytes 5-9/10"), ("content-encoding", "gzip")], Rest::Useless),
            (206, &[("content-range", "items 5-9/10")], Rest::Useless),
            (206, &[("content-range", "bytes 5-10/10")], Rest::Useless),
            (206, &[("content-type", "multipart/byteranges; boundary=x")], Rest::Useless),
            (416, &[("content-range", "bytes */3")], Rest::Useless),
            (200, &[("etag", "\"b\"")], Rest::Whole),
            (503, &[], Rest::No),
        ] {
            assert_eq!(same.judge(status, &headers(fields), 5), rest, "{status} {fields:?}");
        }
        assert!(same.lacks(9) && !same.lacks(10));
    }
}
