//! What an archive's entries are, and where each goes: all of it is known before the first is written.

use std::collections::HashMap;
use std::io::{Read, Seek};
use std::path::PathBuf;

use zip::read::ZipFile;
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::error::ArchiveError;
use crate::base::text::truncate;
use crate::executor::transfer::Bounds;
use crate::executor::workspace::{PART_BYTES, PATH_BYTES};

/// Bytes of memory that LZMA may ask for to unpack one file; the strongest preset of the usual tools asks for 64 MiB.
const LZMA_BYTES: u32 = 256 << 20;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Planned {
    pub(super) path: PathBuf,
    pub(super) is_dir: bool,
    pub(super) index: usize,
}

/// Looks at every entry before anything is written; gives what to write, folders before what is in them, and the bytes
/// that the entries announce.
pub(super) fn plan<R: Read + Seek>(
    archive: &mut ZipArchive<R>,
    entries: usize,
    bounds: Bounds,
) -> Result<(Vec<Planned>, u64), ArchiveError> {
    if archive.len() > entries {
        return Err(too_many(archive.len(), entries));
    }
    let mut plan: HashMap<(PathBuf, bool), usize> = HashMap::new();
    let mut announced = 0u64;
    for index in 0..archive.len() {
        let name = archive.name_for_index(index).unwrap_or_default().to_owned();
        bounds.check().map_err(|source| ArchiveError::Io { entry: name.clone(), source })?;
        let bad = |why| ArchiveError::Entry { entry: shortened(&name), why };
        let path = taken(&name).map_err(bad)?;
        let entry = archive.by_index_raw(index).map_err(|error| refused(&name, &error))?;
        let is_dir = entry.is_dir();
        announced = announced.saturating_add(entry.size());
        check(entry).map_err(bad)?;
        if !path.as_os_str().is_empty() {
            // Of two files with one name the later counts, as in Python.
            plan.insert((path, is_dir), index);
        } else if !is_dir {
            return Err(bad("it has no file name".to_owned()));
        }
    }
    let mut plan: Vec<_> = plan.into_iter().map(|((path, is_dir), index)| Planned { path, is_dir, index }).collect();
    // Part by part, so that whatever is below a path follows it.
    plan.sort_unstable();
    let mut made = 0;
    let mut before: Option<&Planned> = None;
    for planned in &plan {
        if let Some(file) = before.filter(|before| !before.is_dir && planned.path.starts_with(&before.path)) {
            let entry = shortened(archive.name_for_index(planned.index).unwrap_or_default());
            let why = format!("it needs a folder where {:?} is a file", file.path);
            return Err(ArchiveError::Entry { entry, why });
        }
        let pairs = before.iter().flat_map(|before| before.path.components().zip(planned.path.components()));
        let shared = pairs.take_while(|(a, b)| a == b).count();
        made += planned.path.components().count().saturating_sub(shared);
        before = Some(planned);
    }
    if made > entries { Err(too_many(made, entries)) } else { Ok((plan, announced)) }
}

/// Where an entry goes, as Python's `zipfile` has it: its name ends at a NUL, a leading slash and empty parts do not
/// count, backslashes and colons are letters. What would climb out is refused.
fn taken(name: &str) -> Result<PathBuf, String> {
    let name = name.split('\0').next().unwrap_or_default();
    if name.len() > PATH_BYTES {
        return Err(format!("its name has {} bytes, at most {PATH_BYTES} are possible", name.len()));
    }
    let mut path = PathBuf::new();
    for part in name.split('/').filter(|part| !matches!(*part, "" | ".")) {
        if part == ".." {
            return Err("it climbs with ..".to_owned());
        }
        if part.len() > PART_BYTES {
            return Err(format!("a part of its name has {} bytes, at most {PART_BYTES} are possible", part.len()));
        }
        path.push(part);
    }
    Ok(path)
}

/// Whether the content of an entry can be had.
fn check<R: Read>(mut entry: ZipFile<'_, R>) -> Result<(), String> {
    match entry.unix_mode().unwrap_or(0) & 0o170_000 {
        0 | 0o100_000 | 0o040_000 => {}
        0o120_000 => return Err("it is a symbolic link; only files and folders are unpacked".to_owned()),
        _ => return Err("it is a special file; only files and folders are unpacked".to_owned()),
    }
    if entry.encrypted() {
        return Err("it is encrypted; pack it without a password".to_owned());
    }
    match entry.compression() {
        CompressionMethod::Stored | CompressionMethod::Deflated | CompressionMethod::Bzip2 => Ok(()),
        CompressionMethod::Lzma => {
            // Version, size of the properties, properties: the last four bytes are those of the dictionary.
            let mut head = [0; 9];
            entry.read_exact(&mut head).map_err(|error| format!("its LZMA header cannot be read: {error}"))?;
            let [.., a, b, c, d] = head;
            match u32::from_le_bytes([a, b, c, d]) {
                0..=LZMA_BYTES => Ok(()),
                bytes => Err(format!("to unpack it takes {bytes} bytes of memory, at most {LZMA_BYTES} are given")),
            }
        }
        #[expect(deprecated, reason = "there is no other way to its number")]
        other => {
            let number = other.to_u16();
            let name = method_name(number);
            Err(format!("its method is {name} (number {number}), which cannot be unpacked; use deflate, bzip2 or lzma"))
        }
    }
}

/// The name of a compression method (APPNOTE 4.4.5).
fn method_name(number: u16) -> &'static str {
    match number {
        10 => "PKWARE implode",
        16 => "IBM CMPSC",
        18 => "IBM TERSE",
        19 => "IBM LZ77",
        20 => "Zstd",
        94 => "MP3",
        96 => "JPEG",
        97 => "WavPack",
        known => CompressionMethod::name_from_u16(known),
    }
}

/// A name for a text.
fn shortened(name: &str) -> String {
    let mut name = name.to_owned();
    if name.len() > PART_BYTES {
        truncate(&mut name, PART_BYTES);
        name.push('…');
    }
    name
}

fn too_many(entries: usize, allowed: usize) -> ArchiveError {
    ArchiveError::TooLarge(format!("it has {entries} entries and folders, more than the allowed {allowed}"))
}

pub(super) fn refused(entry: &str, error: &ZipError) -> ArchiveError {
    ArchiveError::Entry { entry: shortened(entry), why: error.to_string() }
}
