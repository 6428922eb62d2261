//! What is kept of a job's stdout or stderr: head and tail in memory, everything (up to a cap) in a file.
//!
//! Bytes come in as the pipe gives them, so a character may be split between two reads; it is put together here.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use super::runner::run::Captured;
use crate::base::limits::OUTPUT_CHARS;

/// Bytes of one stream that go to its file: 1 GiB, so that a job that prints for ever does not fill the disk of its
/// host. Of a longer stream the file has the beginning and a last line that says so; the job is not failed for it.
pub(super) const OUTPUT_FILE_BYTES: u64 = 1 << 30;

/// Names of the whole streams inside the output folder, as the Python executor writes them.
pub(super) const STDOUT_FILE: &str = "stdout.txt";
/// See [`STDOUT_FILE`].
pub(super) const STDERR_FILE: &str = "stderr.txt";

const HALF_CHARS: usize = OUTPUT_CHARS / 2;

/// Collects one stream; its memory is bounded whatever the job writes.
#[derive(Debug)]
pub(super) struct Capture {
    text: HeadAndTail,
    decoder: Utf8Decoder,
    bytes: u64,
    file: Option<OutputFile>,
}

impl Capture {
    /// Keeps head and tail only.
    pub(super) fn in_memory() -> Self {
        Self { text: HeadAndTail::default(), decoder: Utf8Decoder::default(), bytes: 0, file: None }
    }

    /// Also writes every byte to a new file at `path`, up to `file_bytes`.
    ///
    /// # Errors
    /// If the file exists or cannot be created.
    pub(super) fn to_file(path: &Path, file_bytes: u64) -> io::Result<Self> {
        let file = File::create_new(path)?;
        Ok(Self {
            file: Some(OutputFile { file, left: file_bytes, truncated: false, error: None }),
            ..Self::in_memory()
        })
    }

    /// Takes the next bytes of the stream. Never fails: what the disk refuses is reported by [`Capture::finish`],
    /// because the job must not block on a full pipe meanwhile.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        if let Some(file) = &mut self.file {
            file.push(bytes);
        }
        self.decoder.push(bytes, &mut self.text);
    }

    /// The stream has ended.
    ///
    /// # Errors
    /// The first error of writing to the file.
    pub(super) fn finish(mut self) -> io::Result<Captured> {
        self.decoder.finish(&mut self.text);
        let file_truncated = match self.file {
            Some(file) => file.finish()?,
            None => false,
        };
        let (text, truncated) = self.text.finish();
        Ok(Captured { text, bytes: self.bytes, truncated, file_truncated })
    }
}

#[derive(Debug)]
struct OutputFile {
    file: File,
    left: u64,
    truncated: bool,
    error: Option<io::Error>,
}

impl OutputFile {
    fn push(&mut self, bytes: &[u8]) {
        let fits = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= fits as u64;
        self.truncated |= fits < bytes.len();
        if self.error.is_none() {
            self.error = self.file.write_all(&bytes[..fits]).err();
        }
    }

    fn finish(mut self) -> io::Result<bool> {
        if let Some(error) = self.error {
            return Err(error);
        }
        if self.truncated {
            self.file.write_all(b"\n[phalanx: the rest of this output was not kept]\n")?;
        }
        Ok(self.truncated)
    }
}

/// Turns a stream of byte chunks into text, also where a character is split by a chunk's end.
#[derive(Debug, Default)]
struct Utf8Decoder {
    /// The beginning of a character whose rest has not come yet: at most three bytes.
    pending: Vec<u8>,
}

impl Utf8Decoder {
    fn push(&mut self, bytes: &[u8], to: &mut HeadAndTail) {
        let joined;
        let mut rest = bytes;
        if !self.pending.is_empty() {
            self.pending.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.pending);
            rest = &joined;
        }
        while !rest.is_empty() {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    to.push(text);
                    return;
                }
                Err(error) => {
                    let (valid, bad) = rest.split_at(error.valid_up_to());
                    to.push(std::str::from_utf8(valid).expect("the decoder has just checked this part"));
                    let Some(len) = error.error_len() else {
                        self.pending = bad.to_vec();
                        return;
                    };
                    to.push("\u{FFFD}");
                    rest = &bad[len..];
                }
            }
        }
    }

    fn finish(&mut self, to: &mut HeadAndTail) {
        if !std::mem::take(&mut self.pending).is_empty() {
            to.push("\u{FFFD}");
        }
    }
}

/// The first and the last [`HALF_CHARS`] characters of a text; holds at most three times that number.
#[derive(Debug, Default)]
struct HeadAndTail {
    head: String,
    head_chars: usize,
    tail: String,
    tail_chars: usize,
    truncated: bool,
}

impl HeadAndTail {
    fn push(&mut self, mut text: &str) {
        if self.head_chars < HALF_CHARS {
            let (head, rest) = split_chars(text, HALF_CHARS - self.head_chars);
            self.head_chars += head.chars().count();
            self.head.push_str(head);
            text = rest;
        }
        self.tail_chars += text.chars().count();
        self.tail.push_str(text);
        // Only at twice the length, so that each character is moved once on average.
        if self.tail_chars > 2 * HALF_CHARS {
            self.trim();
        }
    }

    fn trim(&mut self) {
        if self.tail_chars > HALF_CHARS {
            let from = split_chars(&self.tail, self.tail_chars - HALF_CHARS).0.len();
            self.tail.drain(..from);
            self.tail_chars = HALF_CHARS;
            self.truncated = true;
        }
    }

    fn finish(mut self) -> (String, bool) {
        self.trim();
        self.head.push_str(&self.tail);
        (self.head, self.truncated)
    }
}

/// Splits after `chars` characters, or at the end of a shorter text.
fn split_chars(text: &str, chars: usize) -> (&str, &str) {
    // A text of so few bytes cannot have more characters; the common case, and no scan.
    if text.len() <= chars {
        return (text, "");
    }
    text.split_at(text.char_indices().nth(chars).map_or(text.len(), |(at, _)| at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captured(chunks: impl IntoIterator<Item = Vec<u8>>) -> Captured {
        let mut capture = Capture::in_memory();
        chunks.into_iter().for_each(|chunk| capture.push(&chunk));
        capture.finish().unwrap()
    }

    #[test]
    fn a_character_may_come_in_pieces() {
        let text = "zażółć 日本語 🚀 é";
        for size in 1..text.len() {
            let got = captured(text.as_bytes().chunks(size).map(<[u8]>::to_vec));
            assert_eq!(got.text, text, "in pieces of {size}");
            assert_eq!(got.bytes, text.len() as u64);
            assert!(!got.truncated);
        }
    }

    #[test]
    fn bad_bytes_are_replaced_as_the_standard_library_replaces_them() {
        let bytes = b"a\xff\xfeb\xf0\x9f\x9ac\xe2\x82";
        for size in 1..=bytes.len() {
            let got = captured(bytes.chunks(size).map(<[u8]>::to_vec));
            assert_eq!(got.text, String::from_utf8_lossy(bytes), "in pieces of {size}");
        }
    }

    #[test]
    fn exactly_the_limit_is_whole_and_one_more_is_cut() {
        let whole: String = "é".repeat(OUTPUT_CHARS);
        let got = captured([whole.clone().into_bytes()]);
        assert_eq!((got.text == whole, got.truncated), (true, false));
        let got = captured([whole.into_bytes(), b"x".to_vec()]);
        assert!(got.truncated);
        assert_eq!(got.text.chars().count(), OUTPUT_CHARS);
        assert!(got.text.ends_with("éx"));
    }

    #[test]
    fn a_long_stream_keeps_both_ends_in_bounded_memory() {
        let mut capture = Capture::in_memory();
        let mut all = String::new();
        for line in 0..400_000 {
            let line = format!("line {line}\n");
            all.push_str(&line);
            capture.push(line.as_bytes());
            assert!(capture.text.tail_chars <= 2 * HALF_CHARS);
        }
        let got = capture.finish().unwrap();
        assert!(got.truncated);
        assert_eq!(got.text[..HALF_CHARS], all[..HALF_CHARS]);
        assert_eq!(got.text[HALF_CHARS..], all[all.len() - HALF_CHARS..]);
    }

    #[test]
    fn the_file_is_whole_up_to_its_cap_and_says_when_it_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(STDOUT_FILE);
        let mut capture = Capture::to_file(&path, 10).unwrap();
        capture.push(b"0123");
        capture.push(b"4567");
        assert_eq!(std::fs::read(&path).unwrap(), b"01234567");
        capture.push(b"89ab");
        let got = capture.finish().unwrap();
        assert_eq!((got.text.as_str(), got.file_truncated, got.truncated), ("0123456789ab", true, false));
        assert!(std::fs::read_to_string(&path).unwrap().starts_with("0123456789\n[phalanx: the rest"));
        assert!(Capture::to_file(&path, 10).is_err(), "an existing file is never written over");
    }

    #[test]
    fn a_full_disk_is_reported_at_the_end_and_the_text_is_still_counted() {
        let mut capture = Capture::in_memory();
        let file = File::options().write(true).open("/dev/full").unwrap();
        capture.file = Some(OutputFile { file, left: 100, truncated: false, error: None });
        capture.push(b"one");
        capture.push(b"two");
        assert_eq!(capture.bytes, 6);
        assert_eq!(capture.finish().unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
