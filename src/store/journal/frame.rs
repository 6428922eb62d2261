//! How a part of a record lies on the disk: a frame tells by itself whose part it is and whether it is whole, so it can
//! be found in a damaged file without the database around it.
//!
//! | bytes | what (little endian) |
//! | --- | --- |
//! | 4 | magic, the last byte is the version of this layout |
//! | 4 | CRC-32 of all that follows |
//! | 4 | salt of the journal |
//! | 2 | bytes of data |
//! | 2, 2 | number of this part, and of how many |
//! | 8, 8 | id of the record, version of the record |
//! | | data |

/// Bytes of a database page.
pub(super) const PAGE_BYTES: usize = 4096;

/// Bytes before the data.
const HEADER_BYTES: usize = 34;

/// What SQLite leaves of a page to one row without spilling it to other pages (all but 35 bytes), less 5 for the row's
/// own header: so a frame is always in one piece.
pub(super) const DATA_BYTES_MAX: usize = PAGE_BYTES - 35 - 5 - HEADER_BYTES;

const MAGIC: [u8; 4] = *b"PhJ\x01";

/// A part of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    /// The same in all frames of a journal, so that bytes of another one are not taken for its own: a record may hold a
    /// frame.
    pub salt: u32,
    /// The record.
    pub id: u64,
    /// Grows with every write, so the higher one is the newer.
    pub version: u64,
    /// Which part, from 0.
    pub part: u16,
    /// How many parts there are.
    pub parts: u16,
    /// The bytes of the part.
    pub data: &'a [u8],
}

/// Why bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoFrame {
    /// They do not begin like one.
    Other,
    /// They begin like one, but are not what was written. The fields may be wrong.
    Broken {
        /// The salt as read.
        salt: u32,
        /// The id as read.
        id: u64,
        /// The version as read.
        version: u64,
    },
}

impl<'a> Frame<'a> {
    /// Puts the frame's bytes in place of what `into` holds.
    pub(super) fn encode(&self, into: &mut Vec<u8>) {
        into.clear();
        into.extend_from_slice(&MAGIC);
        into.extend_from_slice(&[0; 4]);
        into.extend_from_slice(&self.salt.to_le_bytes());
        into.extend_from_slice(&(self.data.len() as u16).to_le_bytes());
        into.extend_from_slice(&self.part.to_le_bytes());
        into.extend_from_slice(&self.parts.to_le_bytes());
        into.extend_from_slice(&self.id.to_le_bytes());
        into.extend_from_slice(&self.version.to_le_bytes());
        into.extend_from_slice(self.data);
        let crc = crc32fast::hash(&into[8..]);
        into[4..8].copy_from_slice(&crc.to_le_bytes());
    }

    /// The frame that `bytes` begin with, and how many of them it takes.
    pub(super) fn decode(bytes: &'a [u8]) -> Result<(Self, usize), NoFrame> {
        if !bytes.starts_with(&MAGIC) || bytes.len() < HEADER_BYTES {
            return Err(NoFrame::Other);
        }
        let salt = u32::from_le_bytes(array(bytes, 8));
        let end = HEADER_BYTES + usize::from(u16::from_le_bytes(array(bytes, 12)));
        let (id, version) = (u64::from_le_bytes(array(bytes, 18)), u64::from_le_bytes(array(bytes, 26)));
        match bytes.get(8..end) {
            Some(rest) if crc32fast::hash(rest) == u32::from_le_bytes(array(bytes, 4)) => {
                let part = u16::from_le_bytes(array(bytes, 14));
                let parts = u16::from_le_bytes(array(bytes, 16));
                Ok((Self { salt, id, version, part, parts, data: &bytes[HEADER_BYTES..end] }, end))
            }
            _ => Err(NoFrame::Broken { salt, id, version }),
        }
    }
}

/// `N` bytes of a slice that is known to be long enough.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|n| bytes[at + n])
}

/// Whole frames and broken ones in `bytes`, wherever they begin; what a whole frame holds is not looked into.
pub(super) fn scan<'a>(bytes: &'a [u8], mut each: impl FnMut(Result<Frame<'a>, NoFrame>)) {
    let mut at = 0;
    while let Some(skip) = bytes[at..].iter().position(|byte| *byte == MAGIC[0]) {
        at += skip;
        match Frame::decode(&bytes[at..]) {
            Ok((frame, length)) => {
                each(Ok(frame));
                at += length;
            }
            Err(broken) => {
                if broken != NoFrame::Other {
                    each(Err(broken));
                }
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_seen() {
        let frame = Frame { salt: 7, id: 8, version: 9, part: 0, parts: 1, data: b"a body" };
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        assert_eq!(Frame::decode(&bytes), Ok((frame, bytes.len())));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::decode(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        for length in 0..bytes.len() {
            assert!(Frame::decode(&bytes[..length]).is_err(), "truncated at {length}");
        }
    }

    #[test]
    fn a_scan_finds_frames_between_other_bytes_but_not_within_a_frame() {
        let (mut inner, mut outer) = (Vec::new(), Vec::new());
        Frame { salt: 1, id: 1, version: 1, part: 0, parts: 1, data: b"inner" }.encode(&mut inner);
        Frame { salt: 1, id: 2, version: 1, part: 0, parts: 1, data: &inner }.encode(&mut outer);
        let mut broken = outer.clone();
        broken[40] ^= 1; // within the inner frame's CRC
        let bytes = [b"PP Ph".as_slice(), &outer, b"PhJ", &broken, &inner, b"PhJ\x01"].concat();
        let mut found = Vec::new();
        scan(&bytes, |frame| found.push(frame.map(|frame| frame.id)));
        let bad = |id| Err(NoFrame::Broken { salt: 1, id, version: 1 });
        assert_eq!(found, [Ok(2), bad(2), bad(1), Ok(1)]);
    }
}
