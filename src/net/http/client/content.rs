//! What a request sends: bytes or a file, as they are or in a form.

use std::fs::File;
use std::io::{self, Read, Seek};

/// What is sent; its length is known, so nothing is sent in chunks (object stores refuse those).
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// The first `len` bytes of a file, wherever its cursor stands.
    File {
        /// The file, open for reading.
        file: &'a File,
        /// Bytes to send; the request fails if the file has fewer by then.
        len: u64,
    },
}

impl<'a> Content<'a> {
    pub(super) fn len(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::File { len, .. } => *len,
        }
    }

    pub(super) fn reader(self) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Content::Bytes(bytes) => Box::new(bytes),
            Content::File { mut file, len } => {
                file.rewind()?;
                Box::new(Exactly { file, left: len })
            }
        })
    }
}

/// The file has fewer bytes than were announced.
#[derive(Debug, thiserror::Error)]
#[error("the file became shorter while it was sent")]
pub(super) struct Shortened;

/// A file as long as it was announced to be.
struct Exactly<'a> {
    file: &'a File,
    left: u64,
}

impl Read for Exactly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.take(self.left).read(buffer)?;
        if n == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::Error::other(Shortened));
        }
        self.left -= n as u64;
        Ok(n)
    }
}

/// The file of a form.
#[derive(Debug, Clone, Copy)]
pub struct FilePart<'a> {
    /// The name of the form's field.
    pub field: &'a str,
    /// The name of the file.
    pub file_name: &'a str,
    /// Its media type.
    pub content_type: &'a str,
    /// Its content.
    pub content: Content<'a>,
}

/// What stands before and after the file's content in a form (RFC 7578).
pub(super) fn form_around<'f>(
    boundary: &str,
    fields: impl IntoIterator<Item = (&'f String, &'f String)>,
    file: &FilePart,
) -> (Vec<u8>, Vec<u8>) {
    let mut head = String::new();
    for (name, value) in fields {
        let name = quoted(name);
        head += &format!("--{boundary}\r\ncontent-disposition: form-data; name={name}\r\n\r\n{value}\r\n");
    }
    let (field, name, kind) = (quoted(file.field), quoted(file.file_name), file.content_type);
    head += &format!("--{boundary}\r\ncontent-disposition: form-data; name={field}; filename={name}\r\n");
    head += &format!("content-type: {kind}\r\n\r\n");
    (head.into_bytes(), format!("\r\n--{boundary}--\r\n").into_bytes())
}

/// The boundary that the given fields name in a `Content-Type` of a form; it is then the one to use.
pub(super) fn boundary_of(headers: &[(String, String)]) -> Option<&str> {
    let (_, kind) = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-type"))?;
    let mut parts = kind.split(';').map(str::trim);
    if !parts.next()?.eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let named = parts.find_map(|part| {
        let (name, value) = part.split_once('=')?;
        name.trim().eq_ignore_ascii_case("boundary").then_some(value.trim().trim_matches('"'))
    })?;
    // What RFC 2046 allows, so that it cannot end its line.
    let allowed = |c: char| c.is_ascii_alphanumeric() || "'()+_,-./:=? ".contains(c);
    ((1..=70).contains(&named.len()) && named.chars().all(allowed)).then_some(named)
}

/// A name in a form, with what would end it escaped as browsers do.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "%22").replace('\r', "%0D").replace('\n', "%0A"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_a_form_cannot_end_their_line() {
        assert_eq!(quoted("a\"b\r\nc: d"), "\"a%22b%0D%0Ac: d\"");
    }

    #[test]
    fn a_given_boundary_is_used_if_it_can_be() {
        for (kind, boundary) in [
            ("multipart/form-data; boundary=abc", Some("abc")),
            ("Multipart/Form-Data; charset=utf-8; Boundary=\"a b\"", Some("a b")),
            ("multipart/form-data", None),
            ("text/plain; boundary=abc", None),
            ("multipart/form-data; boundary=", None),
            ("multipart/form-data; boundary=a\r\nb", None),
        ] {
            let headers = [("CONTENT-type".to_owned(), kind.to_owned())];
            assert_eq!(boundary_of(&headers), boundary, "{kind}");
        }
        assert_eq!(boundary_of(&[]), None);
    }
}
