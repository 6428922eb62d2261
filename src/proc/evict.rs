//! Which images go when there are too many. Pure.

use std::time::SystemTime;

/// An image that a job has brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub name: String,
    pub bytes: u64,
    pub last_use: SystemTime,
}

/// What is kept of images that jobs have brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageBounds {
    /// How many.
    pub count: usize,
    /// Their sizes together. What images share is counted for each of them.
    pub bytes: u64,
    /// Bytes of the engine's disk that stay free, if it is a disk of this machine; 0: none.
    pub free: u64,
}

impl ImageBounds {
    /// Nothing is kept: what is not in use goes.
    pub const NONE: Self = Self { count: 0, bytes: 0, free: 0 };
}

/// The images in the order in which they go: those that were not used for the longest time come first, as many as
/// bring the rest within the bounds if each of them can go. The caller goes on with the next for one that cannot.
pub(super) fn oldest_first(mut kept: Vec<Kept>) -> Vec<Kept> {
    kept.sort_by(|a, b| a.last_use.cmp(&b.last_use).then_with(|| a.name.cmp(&b.name)));
    kept
}

/// Whether so many images of so many bytes, on a disk that has so much free if that is known, are more than the bounds
/// allow.
pub(super) fn exceeds(bounds: ImageBounds, (count, bytes): (usize, u64), free: Option<u64>) -> bool {
    count > bounds.count || bytes > bounds.bytes || free.is_some_and(|free| free < bounds.free)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn kept(name: &str, bytes: u64, age: u64) -> Kept {
        let last_use = SystemTime::UNIX_EPOCH + Duration::from_secs(1000 - age);
        Kept { name: name.to_owned(), bytes, last_use }
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let order = oldest_first(vec![kept("b", 1, 5), kept("c", 1, 9), kept("a", 1, 5)]);
        assert_eq!(order.iter().map(|image| image.name.as_str()).collect::<Vec<_>>(), ["c", "a", "b"]);
    }

    #[test]
    fn each_bound_counts() {
        let bounds = ImageBounds { count: 2, bytes: 100, free: 50 };
        for (held, free, too_much) in [
            ((2, 100), None, false),
            ((3, 3), None, true),
            ((1, 101), None, true),
            ((0, 0), None, false),
            ((2, 100), Some(50), false),
            ((1, 1), Some(49), true),
        ] {
            assert_eq!(exceeds(bounds, held, free), too_much, "{held:?} with {free:?} free");
        }
        assert!(exceeds(ImageBounds::NONE, (1, 1), None) && !exceeds(ImageBounds::NONE, (0, 0), Some(0)));
    }
}
