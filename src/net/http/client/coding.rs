//! Content codings of answers (RFC 9110, section 8.4): which there are, and their undoing.

use std::io::{self, BufRead, BufReader, Cursor, Read};

use flate2::bufread::GzDecoder;
use flate2::{Decompress, FlushDecompress, Status};

/// What a request asks for.
pub(super) const ACCEPTED: &str = "gzip, deflate, identity";

/// Codings on top of one another that are undone; servers use one.
const CODINGS: usize = 4;

/// Bytes that are read of a coded body at a time.
const CHUNK: usize = 32 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    Deflate,
}

/// The codings of a body in the order in which they were applied, from the values of its `Content-Encoding` fields.
///
/// # Errors
/// What cannot be undone, in words.
pub(super) fn codings<'v>(values: impl Iterator<Item = &'v str>) -> Result<Vec<Coding>, String> {
    let mut codings = Vec::new();
    for name in values.flat_map(|value| value.split(',')).map(str::trim) {
        match name.to_ascii_lowercase().as_str() {
            "" | "identity" => {}
            "gzip" | "x-gzip" => codings.push(Coding::Gzip),
            "deflate" => codings.push(Coding::Deflate),
            _ => return Err(format!("its Content-Encoding is {name:?}, and only {ACCEPTED} can be undone")),
        }
    }
    if codings.len() > CODINGS {
        return Err(format!("it is coded {} times, at most {CODINGS} are undone", codings.len()));
    }
    Ok(codings)
}

/// The content of a body. Reading fails if a coding is broken or ends early.
pub(super) fn undone<'r>(body: impl Read + 'r, codings: &[Coding]) -> io::Result<Box<dyn Read + 'r>> {
    let mut reader: Box<dyn Read + 'r> = Box::new(body);
    for coding in codings.iter().rev() {
        let mut coded = BufReader::with_capacity(CHUNK, reader);
        let first = coded.fill_buf()?;
        // A body without a byte is what servers make of an empty file.
        reader = match (first.is_empty(), coding) {
            (true, _) => Box::new(io::empty()),
            (_, Coding::Gzip) => Box::new(Members(Some(GzDecoder::new(coded)))),
            (_, Coding::Deflate) => Box::new(Inflate::new(coded)?),
        };
    }
    Ok(reader)
}

/// The coding `gzip`: members one after the other. What follows them and is none is left out, as tools and Python do;
/// some servers fill up with zeros.
struct Members<R>(Option<GzDecoder<R>>);

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.0 {
            let n = member.read(out)?;
            if n > 0 || out.is_empty() {
                return Ok(n);
            }
            let Some(mut rest) = self.0.take().map(GzDecoder::into_inner) else { break };
            if rest.fill_buf()?.first() == Some(&0x1f) {
                self.0 = Some(GzDecoder::new(rest));
            }
        }
        Ok(0)
    }
}

/// The coding `deflate`: zlib's format, or the bare stream that some servers send under that name.
struct Inflate<R> {
    coded: io::Chain<Cursor<Vec<u8>>, R>,
    state: Decompress,
    ended: bool,
}

impl<R: BufRead> Inflate<R> {
    fn new(mut coded: R) -> io::Result<Self> {
        let mut head = Vec::new();
        coded.by_ref().take(2).read_to_end(&mut head)?;
        // The first byte names the method and a window; with the second it is a multiple of 31.
        let is_zlib = matches!(head[..], [a, b] if a & 0x0f == 8 && u16::from_be_bytes([a, b]).is_multiple_of(31));
        Ok(Self { coded: Cursor::new(head).chain(coded), state: Decompress::new(is_zlib), ended: false })
    }
}

impl<R: BufRead> Read for Inflate<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while !self.ended && !out.is_empty() {
            let input = self.coded.fill_buf()?;
            let at_end = input.is_empty();
            let (before_in, before_out) = (self.state.total_in(), self.state.total_out());
            let status = self.state.decompress(input, out, FlushDecompress::None)?;
            let used = (self.state.total_in() - before_in) as usize;
            let made = (self.state.total_out() - before_out) as usize;
            self.coded.consume(used);
            self.ended = status == Status::StreamEnd;
            if made > 0 {
                return Ok(made);
            }
            if at_end && !self.ended {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the deflate stream ends early"));
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn bare(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read(body: &[u8], named: &str) -> io::Result<Vec<u8>> {
        let codings = codings(std::iter::once(named)).unwrap();
        let mut out = Vec::new();
        undone(body, &codings)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn what_is_named_is_undone() {
        // Long enough for several chunks, and not to be compressed much.
        let noise: Vec<u8> = (0..200_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for bytes in [noise.as_slice(), b"hello", b""] {
            for (named, body) in [
                ("identity", bytes.to_vec()),
                ("", bytes.to_vec()),
                ("gzip", gzip(bytes)),
                ("X-GZip", gzip(bytes)),
                ("deflate", zlib(bytes)),
                ("deflate", bare(bytes)),
                ("gzip, identity ,deflate", zlib(&gzip(bytes))),
                ("gzip", [gzip(&bytes[..bytes.len() / 2]), gzip(&bytes[bytes.len() / 2..])].concat()),
            ] {
                assert!(read(&body, named).unwrap() == bytes, "{named}");
            }
        }
        assert_eq!(read(b"", "gzip").unwrap(), b"");
        for rest in [&[0; 512][..], b"some words"] {
            assert_eq!(read(&[&gzip(b"hello"), rest].concat(), "gzip").unwrap(), b"hello");
        }
    }

    #[test]
    fn what_ends_early_or_is_broken_fails() {
        let noise: Vec<u8> = (0..5_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for (named, body) in [("gzip", gzip(&noise)), ("deflate", zlib(&noise)), ("deflate", bare(&noise))] {
            for cut in [1, 2, 5, body.len() / 2, body.len() - 1] {
                assert!(read(&body[..cut], named).is_err(), "{named} after {cut} bytes");
            }
            assert!(read(b"no coding at all", named).is_err(), "{named}");
        }
        let mut wrong = gzip(&noise);
        let at = wrong.len() - 6;
        wrong[at] ^= 1;
        assert!(read(&wrong, "gzip").is_err(), "a wrong checksum");
        let second = gzip(b"more");
        let cut = [&gzip(b"hello"), &second[..second.len() / 2]].concat();
        assert!(read(&cut, "gzip").is_err(), "half a second member");
    }

    #[test]
    fn what_cannot_be_undone_is_named() {
        let refusal = |named: &'static str| codings(std::iter::once(named)).unwrap_err();
        assert!(refusal("br").contains("\"br\""));
        assert!(refusal("gzip, zorg").contains("\"zorg\""));
        assert!(refusal("gzip,gzip,gzip,gzip,gzip").contains("5 times"));
    }
}
