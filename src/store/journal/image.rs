//! The pages of a database as its two files give them, without SQLite: it would end its write-ahead log silently at the
//! first frame that fails its checksum, and remove the log with all later frames at the next close.
//!
//! The log's layout is SQLite's documented file format: a header of 32 bytes, then frames of 24 bytes and a page each.
//! A frame belongs to the log if it has the header's two salts, and its checksum goes on from that of the frame before.

use std::collections::BTreeMap;

use super::frame::PAGE_BYTES;

const LOG_HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
const LOG_FORMAT: u32 = 3_007_000;

/// The first 24 bytes of every database that a journal writes: name, page size, WAL for writing and reading, no
/// reserved bytes, and the three fixed fractions.
const PROLOGUE: [u8; 24] = *b"SQLite format 3\0\x10\x00\x02\x02\x00\x40\x20\x20";

/// Where the header of a database tells how many pages it has.
const PAGE_COUNT_AT: usize = 28;

/// The files taken together.
#[derive(Debug, Default)]
pub(super) struct Image<'a> {
    /// The database as of the last commit.
    pub pages: Vec<u8>,
    /// Pages of the log that may or may not be part of it: damaged, of an unknown number, or of no known commit.
    pub loose: Vec<&'a [u8]>,
    /// What is wrong, the first finding.
    pub fault: Option<String>,
}

/// Takes a database file and its write-ahead log together.
pub(super) fn overlay<'a>(database: Vec<u8>, log: &'a [u8]) -> Image<'a> {
    let log = Log::parse(log, database.len());
    let mut fault = log.fault;
    let mut image = Image { pages: database, loose: log.loose, fault: None };
    if !image.pages.starts_with(&PROLOGUE) {
        fault.get_or_insert("the database does not begin like one".to_owned());
    }
    let there = image.pages.len();
    for (&number, page) in &log.pages {
        let at = (number as usize - 1) * PAGE_BYTES;
        if image.pages.len() < at + PAGE_BYTES {
            image.pages.resize(at + PAGE_BYTES, 0);
        }
        image.pages[at..at + PAGE_BYTES].copy_from_slice(page);
    }
    let short = (there / PAGE_BYTES + 1..=image.pages.len() / PAGE_BYTES).any(|n| !log.pages.contains_key(&(n as u32)));
    let counted = image.pages.get(PAGE_COUNT_AT..PAGE_COUNT_AT + 4).map_or(0, |bytes| word(bytes, 0, true));
    if short || counted as usize * PAGE_BYTES != image.pages.len() {
        fault.get_or_insert(format!("the database file has {there} bytes, which does not fit its {counted} pages"));
    } else if !image.pages.starts_with(&PROLOGUE) {
        fault.get_or_insert("the database's first page does not begin like one".to_owned());
    }
    image.fault = fault;
    image
}

/// A write-ahead log.
#[derive(Debug, Default)]
struct Log<'a> {
    /// The newest committed content of each page, by number from 1.
    pages: BTreeMap<u32, &'a [u8]>,
    loose: Vec<&'a [u8]>,
    fault: Option<String>,
}

impl<'a> Log<'a> {
    fn parse(log: &'a [u8], database_bytes: usize) -> Self {
        let mut parsed = Self::default();
        let Some((header, frames)) = log.split_at_checked(LOG_HEADER_BYTES) else { return parsed };
        let big = word(header, 0, true) & 1 == 1;
        let mut sum = (word(header, 24, true), word(header, 28, true));
        let mut salts = header[16..24].to_vec();
        let known = word(header, 0, true) >> 1 == 0x377f_0682 >> 1 && word(header, 4, true) == LOG_FORMAT;
        if !known || word(header, 8, true) as usize != PAGE_BYTES || checksum((0, 0), &header[..24], big) != sum {
            parsed.fault = Some("the header of the log is damaged".to_owned());
            salts = frames.get(8..16).unwrap_or_default().to_vec();
        }
        let most_pages = (database_bytes + log.len()) / PAGE_BYTES; // Pages are added one by one, without gaps.
        let mut uncommitted = Vec::new();
        for (n, frame) in frames.chunks(FRAME_HEADER_BYTES + PAGE_BYTES).enumerate() {
            let Some((head, page)) = frame.split_at_checked(FRAME_HEADER_BYTES) else { break };
            let expected = checksum(checksum(sum, &head[..8], big), page, big);
            // Going on from what is stored, not from what was found, lets the frames after a damaged one be checked.
            sum = (word(head, 16, true), word(head, 20, true));
            if head[8..12] != salts[..4] && head[12..16] != salts[4..] {
                continue; // Space that the system had added, but not written, when the power went.
            }
            if page.len() < PAGE_BYTES {
                parsed.loose.push(page); // A write that was interrupted, so it was never committed.
                break;
            }
            let (number, pages_after) = (word(head, 0, true), word(head, 4, true));
            if head[8..16] != salts || expected != sum || number == 0 || number as usize > most_pages {
                // A journal only appends to its log, so an interrupted write ends with the file and never looks like
                // this.
                parsed.fault.get_or_insert(format!("frame {n} of the log does not match its checksum"));
                parsed.loose.push(page);
                continue;
            }
            uncommitted.push((number, page));
            if pages_after != 0 {
                parsed.pages.extend(uncommitted.drain(..));
            }
        }
        parsed.loose.extend(uncommitted.into_iter().map(|(_, page)| page));
        parsed
    }
}

/// SQLite's checksum of an even number of words, going on from `sum`.
fn checksum((mut a, mut b): (u32, u32), bytes: &[u8], big: bool) -> (u32, u32) {
    for pair in bytes.chunks_exact(8) {
        a = a.wrapping_add(word(pair, 0, big)).wrapping_add(b);
        b = b.wrapping_add(word(pair, 4, big)).wrapping_add(a);
    }
    (a, b)
}

fn word(bytes: &[u8], at: usize, big: bool) -> u32 {
    let bytes = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    if big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
}
