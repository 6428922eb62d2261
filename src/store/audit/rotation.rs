//! When the audit log begins a new file, and which ones are removed. Pure.

use std::time::Duration;

/// Bytes of one file: some 40,000 lines of 200 bytes, read in a moment.
pub(super) const FILE_BYTES: u64 = 8 << 20;

/// Files that are kept, the present one included.
const FILES: usize = 8;

/// Bytes of all of them: some 300,000 lines. A job has two or three.
pub const BYTES: u64 = FILE_BYTES * FILES as u64;

/// After which time a file is followed by a new one, however small it is.
pub(super) const FILE_AGE: Duration = Duration::from_secs(4 * 24 * 3600);

/// How old a line may be when a file is begun; one that is older is removed with the file that it is in.
pub const AGE: Duration = Duration::from_secs(31 * 24 * 3600);

/// Bytes of a line that is read. What is written has less than 2 KiB.
pub(super) const LINE_BYTES: u64 = 64 << 10;

/// Whether a file that was begun at that second, and would have so many bytes, is to be followed by a new one. A clock
/// that was set back makes no file older.
pub(super) fn begins_anew(begun: u64, bytes: u64, now: u64) -> bool {
    bytes > FILE_BYTES || now.saturating_sub(begun) >= FILE_AGE.as_secs()
}

/// The number of a new file: the second, but always more than that of the last one.
pub(super) fn number_after(last: Option<u64>, now: u64) -> u64 {
    last.map_or(now, |last| now.max(last.saturating_add(1)))
}

/// How many of the oldest files are to be removed, of files begun at these seconds in order. The last line of a file is
/// older than the file that follows it.
pub(super) fn outdated(begun: &[u64], now: u64) -> usize {
    let too_many = begun.len().saturating_sub(FILES);
    let followers = begun.iter().skip(1);
    let too_old = followers.take_while(|next| now.saturating_sub(**next) >= AGE.as_secs()).count();
    too_many.max(too_old)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600;

    #[test]
    fn a_file_is_followed_by_a_new_one_when_it_is_large_or_old() {
        let begun = 100 * DAY;
        assert!(!begins_anew(begun, FILE_BYTES, begun + 4 * DAY - 1));
        assert!(begins_anew(begun, FILE_BYTES + 1, begun));
        assert!(begins_anew(begun, 0, begun + 4 * DAY));
        assert!(!begins_anew(begun, 0, 0), "the clock was set back");
        assert_eq!([number_after(None, 5), number_after(Some(5), 5), number_after(Some(9), 5)], [5, 6, 10]);
    }

    #[test]
    fn the_oldest_files_go_when_they_are_too_many_or_their_last_line_is_too_old() {
        let days = |days: &[u64]| days.iter().map(|day| day * DAY).collect::<Vec<_>>();
        assert_eq!(outdated(&[], 0), 0);
        assert_eq!(outdated(&days(&[1, 2, 3, 4, 5, 6, 7, 8]), 9 * DAY), 0);
        assert_eq!(outdated(&days(&[1, 2, 3, 4, 5, 6, 7, 8, 9]), 9 * DAY), 1);
        let now = 100 * DAY;
        assert_eq!(outdated(&days(&[1]), now), 0, "the present one stays");
        assert_eq!(outdated(&days(&[1, 70]), now), 0, "what the first ends with may be 30 days old");
        assert_eq!(outdated(&days(&[1, 69]), now), 1);
        assert_eq!(outdated(&days(&[1, 69, 99]), now), 1);
        assert_eq!(outdated(&days(&[1, 40, 69, 99]), now), 2);
    }
}
