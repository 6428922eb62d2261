//! What the journal's files hold: read as a database if they are whole, else frame by frame out of their raw bytes.

use std::collections::BTreeMap;
use std::io::Read;

use rusqlite::Connection;

use super::frame::{Frame, NoFrame, scan};
use super::image::{Image, overlay};
use super::rows::{SCHEMA, key_of, record_of};

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The newest whole version of each record, by id.
    pub records: BTreeMap<u64, Record>,
    /// The salt of the frames.
    pub salt: u32,
    /// The highest version of a frame.
    pub version: u64,
    /// Records of which the newest version is not whole, and what was wrong.
    pub damage: Option<(usize, String)>,
}

/// A whole record.
#[derive(Debug)]
pub(super) struct Record {
    /// Its version.
    pub version: u64,
    /// Its number of parts.
    pub parts: u16,
    /// Its bytes.
    pub body: Vec<u8>,
}

/// Reads the bytes of the two files.
pub(super) fn read(database: Vec<u8>, log: &[u8]) -> Found {
    let mut image = overlay(database, log);
    let why = match image.fault.take().map_or_else(|| rows(&image.pages), Err) {
        Ok((rows, salt)) => {
            let what = rows.unreadable.keys().next().map(|id| format!("record {id} does not match its checksum"));
            return rows.finish(salt, what);
        }
        Err(why) => why,
    };
    let (parts, salt) = raw(&image);
    parts.finish(salt, Some(why))
}

/// Frames as they come, in any order and number of copies.
#[derive(Debug, Default)]
struct RecordParts {
    /// RecordParts by id and version.
    whole: BTreeMap<(u64, u64), Vec<Option<Vec<u8>>>>,
    /// The newest version of each id of which a frame is broken.
    unreadable: BTreeMap<u64, u64>,
    newest: u64,
}

impl RecordParts {
    fn add(&mut self, frame: Frame<'_>) {
        self.newest = self.newest.max(frame.version);
        let parts = self.whole.entry((frame.id, frame.version)).or_default();
        parts.resize(parts.len().max(frame.parts.into()), None);
        if let Some(part @ None) = parts.get_mut(usize::from(frame.part)) {
            *part = Some(frame.data.to_vec());
        }
    }

    fn add_unreadable(&mut self, id: u64, version: u64) {
        let newest = self.unreadable.entry(id).or_default();
        *newest = version.max(*newest);
    }

    /// Puts the records together. Something is lost or wrong only if `what` says so or a record is not whole.
    fn finish(self, salt: u32, what: Option<String>) -> Found {
        let mut newest = self.unreadable;
        let mut records = BTreeMap::new();
        for ((id, version), parts) in self.whole {
            let last = newest.entry(id).or_default();
            *last = version.max(*last);
            let count = parts.len() as u16;
            if let Some(parts) = parts.into_iter().collect::<Option<Vec<_>>>() {
                records.insert(id, Record { version, parts: count, body: parts.concat() });
            }
        }
        let lost: Vec<u64> = newest
            .into_iter()
            .filter(|(id, version)| records.get(id).is_none_or(|record| record.version < *version))
            .map(|(id, _)| id)
            .collect();
        let what = what.or_else(|| lost.first().map(|id| format!("record {id} lacks a part")));
        Found { records, salt, version: self.newest, damage: what.map(|what| (lost.len(), what)) }
    }
}

/// Reads the pages as a database. A row whose frame is broken is one record less; anything else that is wrong is an
/// error.
fn rows(pages: &[u8]) -> Result<(RecordParts, u32), String> {
    let text = |error: rusqlite::Error| error.to_string();
    let mut connection = Connection::open_in_memory().map_err(text)?;
    // In memory there is no log, so the header must not ask for one: bytes 18 and 19 are the versions for writing and
    // reading.
    let whole = (&pages[..18]).chain([1, 1].as_slice()).chain(&pages[20..]);
    connection.deserialize_read_exact("main", whole, pages.len(), true).map_err(text)?;
    let check: String = connection.pragma_query_value(None, "quick_check", |row| row.get(0)).map_err(text)?;
    if check != "ok" {
        // A broken page has a finding for each of its rows, under a title.
        return Err(check.lines().find(|line| !line.starts_with("***")).unwrap_or_default().to_owned());
    }
    let schema: String =
        connection.query_row("SELECT group_concat(sql) FROM sqlite_schema", [], |row| row.get(0)).map_err(text)?;
    if schema != SCHEMA {
        return Err(format!("the table is not the journal's: {schema}"));
    }
    let salt: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(text)?;
    let (salt, mut parts) = (salt as u32, RecordParts::default());
    let mut statement = connection.prepare("SELECT key, frame FROM frames ORDER BY key").map_err(text)?;
    let mut rows = statement.query([]).map_err(text)?;
    while let Some(row) = rows.next().map_err(text)? {
        let key: i64 = row.get(0).map_err(text)?;
        let bytes = row.get_ref(1).and_then(|value| Ok(value.as_blob()?)).map_err(text)?;
        match Frame::decode(bytes) {
            Ok((frame, length)) if length == bytes.len() => {
                if frame.salt != salt || key_of(frame.id, frame.part) != key {
                    return Err(format!("row {key} holds a part of record {}", frame.id));
                }
                parts.add(frame);
            }
            _ => parts.add_unreadable(record_of(key), u64::MAX),
        }
    }
    Ok((parts, salt))
}

/// Looks for frames in all bytes there are.
fn raw(image: &Image<'_>) -> (RecordParts, u32) {
    let (mut whole, mut broken) = (Vec::new(), Vec::new());
    for bytes in image.loose.iter().copied().chain([image.pages.as_slice()]) {
        scan(bytes, |frame| match frame {
            Ok(frame) => whole.push(frame),
            Err(NoFrame::Broken { salt, id, version }) => broken.push((salt, id, version)),
            Err(NoFrame::Other) => {}
        });
    }
    let salt = salt(&image.pages, &whole);
    let mut parts = RecordParts::default();
    whole.into_iter().filter(|frame| frame.salt == salt).for_each(|frame| parts.add(frame));
    broken.retain(|(other, ..)| *other == salt);
    broken.into_iter().for_each(|(_, id, version)| parts.add_unreadable(id, version));
    (parts, salt)
}

/// The salt that the database's header names (`application_id`); if no frame has it, the most common one.
fn salt(pages: &[u8], frames: &[Frame<'_>]) -> u32 {
    let named = pages.get(68..72).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
    let mut counts = BTreeMap::<u32, usize>::new();
    frames.iter().for_each(|frame| *counts.entry(frame.salt).or_default() += 1);
    if counts.contains_key(&named) {
        return named;
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map_or(named, |(salt, _)| salt)
}
