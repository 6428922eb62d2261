//! The only table of a journal and the numbers of its rows. Pure.

/// The highest id: a row's key is the id and 15 bits for the number of a part, in SQLite's 63.
pub const ID_MAX: u64 = (1 << (63 - PART_BITS)) - 1;

/// Bits for the number of a part.
const PART_BITS: u32 = 15;

/// The highest number of a part.
pub(super) const PART_MAX: u16 = (1 << PART_BITS) - 1;

/// The only table; compared with what a file has, letter by letter.
pub(super) const SCHEMA: &str = "CREATE TABLE frames (key INTEGER PRIMARY KEY, frame BLOB NOT NULL)";

/// The row of a part of a record.
pub(super) fn key_of(id: u64, part: u16) -> i64 {
    (id << PART_BITS) as i64 + i64::from(part)
}

/// The record of a row.
pub(super) fn record_of(key: i64) -> u64 {
    key as u64 >> PART_BITS
}
