//! A test leaves no thread behind.

use phalanx::base::thread::Group;

/// Entered first by each test: when it is dropped, none of the test's threads may live.
pub struct NoThreads(Group);

impl NoThreads {
    pub fn expected() -> Self {
        Self(Group::enter())
    }
}

impl Drop for NoThreads {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let live: Vec<_> = self.0.live().into_iter().map(|t| t.name).collect();
            assert!(live.is_empty(), "threads left behind: {live:?}");
        }
    }
}
