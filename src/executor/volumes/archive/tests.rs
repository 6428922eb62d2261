use super::*;
use crate::base::shutdown::Shutdown;
use crate::ops::errors::ErrorHandler;
use std::io::{Cursor, Write};
use std::time::{Duration, Instant};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Makes an archive; a name that ends with `/` is a folder.
fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in entries {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn unpack_with(bytes: &[u8], limits: ArchiveLimits) -> (Result<(), ArchiveError>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let token = Shutdown::new();
    let bounds =
        Bounds { token: &token, deadline: Instant::now() + Duration::from_secs(60), errors: &ErrorHandler::default() };
    let into = folder.path().join("in");
    let space = &mut Space::new(u64::MAX);
    let result = unpack(Cursor::new(bytes), bytes.len() as u64, &into, (limits, space), bounds);
    (result, folder)
}

fn refusal(bytes: &[u8], limits: ArchiveLimits) -> String {
    let (result, folder) = unpack_with(bytes, limits);
    let error = result.unwrap_err().to_string();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "something was written: {error}");
    error
}

#[test]
fn files_and_folders_come_out() {
    let bytes = archive(&[("a.txt", b"a"), ("d/e/b.bin", b"\0\xff"), ("empty/", b""), ("./c", b"c")]);
    let (result, folder) = unpack_with(&bytes, ArchiveLimits::default());
    result.unwrap();
    let into = folder.path().join("in");
    assert_eq!(fs::read(into.join("a.txt")).unwrap(), b"a");
    assert_eq!(fs::read(into.join("d/e/b.bin")).unwrap(), b"\0\xff");
    assert_eq!(fs::read(into.join("c")).unwrap(), b"c");
    assert!(into.join("empty").is_dir());
}

#[test]
fn what_would_leave_its_folder_is_refused_by_name() {
    for name in ["../x", "a/../../x", "..", "a/..", "/../x", "a/..\0b"] {
        let error = refusal(&archive(&[("fine", b""), (name, b"x")]), ArchiveLimits::default());
        assert!(error.contains(&format!("{name:?}")) && error.contains("climbs"), "{error}");
    }
}

#[test]
fn names_are_taken_as_python_takes_them() {
    for (name, is) in [
        ("/etc/x", "etc/x"),
        ("//a//./b", "a/b"),
        ("a\\..\\x", "a\\..\\x"),
        ("C:x", "C:x"),
        ("..a/b..", "..a/b.."),
        (" a ", " a "),
        ("a\0b", "a"),
        ("ż ą", "ż ą"),
    ] {
        let (result, folder) = unpack_with(&archive(&[(name, b"x")]), ArchiveLimits::default());
        result.unwrap_or_else(|error| panic!("{name:?}: {error}"));
        assert_eq!(fs::read(folder.path().join("in").join(is)).unwrap(), b"x", "{name:?}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
    for name in ["\0", ".", "./."] {
        let error = refusal(&archive(&[(name, b"x")]), ArchiveLimits::default());
        assert!(error.contains("no file name"), "{name:?}: {error}");
    }
}

#[test]
fn of_two_files_with_one_name_the_later_counts() {
    let (result, folder) = unpack_with(&archive(&[("./a", b"1"), ("b", b""), ("a", b"2")]), ArchiveLimits::default());
    result.unwrap();
    assert_eq!(fs::read(folder.path().join("in/a")).unwrap(), b"2");
}

#[test]
fn links_and_special_files_are_refused() {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    zip.add_symlink("link", "/etc/passwd", SimpleFileOptions::default()).unwrap();
    let error = refusal(&zip.finish().unwrap().into_inner(), ArchiveLimits::default());
    assert!(error.contains("\"link\"") && error.contains("symbolic link"), "{error}");

    for (kind, name) in [(0o010_000u32, "fifo"), (0o020_000, "device"), (0o140_000, "socket")] {
        let mut bytes = archive(&[(name, b"")]);
        // The upper half of the external attributes in the central directory, whose signature is PK 1 2.
        let at = bytes.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
        bytes[at + 40..at + 42].copy_from_slice(&((kind | 0o644) as u16).to_le_bytes());
        let error = refusal(&bytes, ArchiveLimits::default());
        assert!(error.contains(&format!("{name:?}")) && error.contains("special file"), "{error}");
    }
}

#[test]
fn a_path_cannot_be_file_and_folder() {
    for (entries, bad) in [
        ([("a", b"1".as_slice()), ("a/b", b"2")], "a/b"),
        ([("a/b", b"2"), ("a", b"1")], "a/b"),
        ([("a", b"1"), ("a/", b"")], "a/"),
        ([("a/b/", b""), ("a", b"1")], "a/b/"),
    ] {
        let error = refusal(&archive(&entries), ArchiveLimits::default());
        assert!(error.contains(&format!("zip entry {bad:?}")), "{error}");
    }
}

#[test]
fn bombs_are_refused_before_anything_is_written() {
    let limits = ArchiveLimits { bytes: 1_000_000, entries: 3, ratio: 100, ratio_from: 10_000 };
    let zeros = vec![0; 900_000];
    let error = refusal(&archive(&[("zeros", &zeros)]), limits);
    assert!(error.contains("too large"), "ratio: {error}");
    let noise: Vec<u8> = (0..600_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let error = refusal(&archive(&[("a", &noise), ("b", &noise)]), limits);
    assert!(error.contains("1000000 bytes"), "total: {error}");
    let error = refusal(&archive(&[("a", b""), ("b", b""), ("c", b""), ("d", b"")]), limits);
    assert!(error.contains("4 entries"), "entries: {error}");
    assert!(unpack_with(&archive(&[("zeros", &zeros[..9_000])]), limits).0.is_ok(), "a few zeros are no bomb");
}

#[test]
fn a_size_that_is_a_lie_does_not_help() {
    let limits = ArchiveLimits { bytes: 100_000, entries: 3, ratio: 1_000, ratio_from: 1_000 };
    let mut bytes = archive(&[("zeros", &vec![0; 900_000])]);
    for (signature, offset) in [(b"PK\x01\x02", 24), (b"PK\x03\x04", 22)] {
        let at = bytes.windows(4).position(|window| window == signature).unwrap() + offset;
        bytes[at..at + 4].copy_from_slice(&10u32.to_le_bytes());
    }
    let (result, folder) = unpack_with(&bytes, limits);
    assert!(result.is_err());
    let written = fs::metadata(folder.path().join("in/zeros")).map_or(0, |file| file.len());
    assert!(written <= 100_001, "{written}");
}

#[test]
fn an_archive_that_is_nothing_but_directory_ends_early() {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let long = "x".repeat(60_000);
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for n in 0..600 {
        zip.start_file(format!("{n}-{long}"), stored).unwrap();
    }
    let error = refusal(&zip.finish().unwrap().into_inner(), ArchiveLimits::default());
    assert!(error.starts_with("not a readable zip"), "{error}");
}

/// An archive of one LZMA member `b.txt`, as Python's `zipfile` writes it: `lzma ` a hundred times.
const LZMA: &str = "\
    UEsDBD8AAgAOAAAAISgVQjMOHAAAAPQBAAAFAAAAYi50eHQJBAUAXQAAgAAANh6J3X1OvriFkIItr//+0SAAUEsBAj8DPwACAA4A\
    AAAhKBVCMw4cAAAA9AEAAAUAAAAAAAAAAAAAAIABAAAAAGIudHh0UEsFBgAAAAABAAEAMwAAAD8AAAAAAA==";

/// Overwrites two bytes at an offset in the local header and in the central one.
fn patched(mut bytes: Vec<u8>, offset: usize, value: u16) -> Vec<u8> {
    for (signature, offset) in [(b"PK\x03\x04", offset), (b"PK\x01\x02", offset + 2)] {
        let at = bytes.windows(4).position(|window| window == signature).unwrap() + offset;
        bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

fn lzma() -> Vec<u8> {
    base64::Engine::decode(&base64::engine::general_purpose::STANDARD, LZMA).unwrap()
}

#[test]
fn every_method_that_python_reads_is_undone() {
    let text = b"some text, some text, some text".repeat(1000);
    for method in [CompressionMethod::Stored, CompressionMethod::Deflated, CompressionMethod::Bzip2] {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        zip.start_file("a", SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(&text).unwrap();
        let (result, folder) = unpack_with(&zip.finish().unwrap().into_inner(), ArchiveLimits::default());
        result.unwrap();
        assert!(fs::read(folder.path().join("in/a")).unwrap() == text, "{method}");
    }
    let (result, folder) = unpack_with(&lzma(), ArchiveLimits::default());
    result.unwrap();
    assert_eq!(fs::read(folder.path().join("in/b.txt")).unwrap(), b"lzma ".repeat(100));
}

#[test]
fn other_methods_are_named_before_anything_is_written() {
    let bytes = archive(&[("a", b"some content")]);
    for (number, name) in [
        (1, "Shrink"),
        (6, "Implode"),
        (9, "Deflate64"),
        (93, "Zstd"),
        (95, "Xz"),
        (97, "WavPack"),
        (98, "Ppmd"),
        (77, "Unknown"),
    ] {
        let error = refusal(&patched(bytes.clone(), 8, number), ArchiveLimits::default());
        let expected =
            format!("zip entry \"a\": its method is {name} (number {number}), which cannot be unpacked; use");
        assert!(error.starts_with(&expected), "{error}");
    }
    // The bit that says encrypted.
    let error = refusal(&patched(bytes, 6, 1), ArchiveLimits::default());
    assert!(error.contains("it is encrypted"), "{error}");
    // The size of the dictionary, behind the header with its name, and four bytes and one.
    let mut greedy = lzma();
    let at = 30 + "b.txt".len() + 5;
    greedy[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = refusal(&greedy, ArchiveLimits::default());
    assert!(error.contains("4294967295 bytes of memory"), "{error}");
}

#[test]
fn names_that_cost_time_are_refused_soon() {
    let start = Instant::now();
    let deep = "a/".repeat(30_000);
    let error = refusal(&archive(&[(&deep, b"")]), ArchiveLimits::default());
    assert!(error.contains("its name has 60000 bytes") && error.len() < 500, "{error}");
    let error = refusal(&archive(&[(&"x".repeat(256), b"")]), ArchiveLimits::default());
    assert!(error.contains("a part of its name has 256 bytes"), "{error}");
    // Few entries that stand for many folders.
    let names: Vec<String> = (0..100).map(|n| format!("{n}/{}", "a/".repeat(1999))).collect();
    let entries: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), b"".as_slice())).collect();
    let error = refusal(&archive(&entries), ArchiveLimits::default());
    assert!(error.contains("200000 entries and folders"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[test]
fn what_the_job_has_no_room_for_is_not_written() {
    let bytes = archive(&[("a", &[7; 600]), ("b", &[7; 600])]);
    let folder = tempfile::tempdir().unwrap();
    let token = Shutdown::new();
    let bounds =
        Bounds { token: &token, deadline: Instant::now() + Duration::from_secs(60), errors: &ErrorHandler::default() };
    let mut space = Space::new(2_000);
    let mut unpack = |name: &str| {
        let room = (ArchiveLimits::default(), &mut space);
        unpack(Cursor::new(&bytes), bytes.len() as u64, &folder.path().join(name), room, bounds)
    };
    unpack("one").unwrap();
    let error = unpack("two").unwrap_err();
    assert_eq!(
        error.to_string(),
        "all volumes of the job together have more than the 2000 bytes that there is room for"
    );
    assert!(!folder.path().join("two").exists());
}

#[test]
fn broken_archives_are_told() {
    let error = refusal(b"UEsFBg==", ArchiveLimits::default());
    assert!(error.starts_with("not a readable zip archive"), "{error}");
    let mut bytes = archive(&[("a", b"some content that is stored and then changed")]);
    bytes[40] ^= 0xff;
    let (result, _folder) = unpack_with(&bytes, ArchiveLimits::default());
    assert!(result.unwrap_err().to_string().contains("\"a\""));
}

#[test]
fn deadline_and_cancel_end_it() {
    let bytes = archive(&[("a", b"a")]);
    let folder = tempfile::tempdir().unwrap();
    let token = Shutdown::new();
    let run = |deadline| {
        let bounds = Bounds { token: &token, deadline, errors: &ErrorHandler::default() };
        let room = (ArchiveLimits::default(), &mut Space::new(u64::MAX));
        unpack(Cursor::new(&bytes), 100, folder.path(), room, bounds).unwrap_err()
    };
    let error = run(Instant::now());
    assert!(matches!(&error, ArchiveError::Io { source, .. } if source.kind() == io::ErrorKind::TimedOut), "{error}");
    token.cancel();
    let error = run(Instant::now() + Duration::from_secs(60));
    assert!(
        matches!(&error, ArchiveError::Io { source, .. } if source.kind() == io::ErrorKind::Interrupted),
        "{error}"
    );
}
