//! A disk: what is written is there after a crash of the process once the system has it, and after a loss of power once
//! it was flushed.

/// What is written in turn, many together. `W` is one change.
#[derive(Debug)]
pub struct Disk<W> {
    waiting: Vec<W>,
    writing: Vec<W>,
}

impl<W> Default for Disk<W> {
    fn default() -> Self {
        Self { waiting: Vec::new(), writing: Vec::new() }
    }
}

/// Changes of one transaction.
const BATCH: usize = 256;

impl<W> Disk<W> {
    pub fn put(&mut self, change: W) {
        self.waiting.push(change);
    }

    /// Begins the next transaction; says whether there is one.
    pub fn begin(&mut self) -> bool {
        if !self.writing.is_empty() || self.waiting.is_empty() {
            return false;
        }
        let rest = self.waiting.split_off(self.waiting.len().min(BATCH));
        self.writing = std::mem::replace(&mut self.waiting, rest);
        true
    }

    /// The transaction that was begun is durable.
    pub fn done(&mut self) -> Vec<W> {
        std::mem::take(&mut self.writing)
    }

    /// What was not begun is gone; what was may be on the disk or not.
    pub fn crash(&mut self) -> (Vec<W>, Vec<W>) {
        (std::mem::take(&mut self.writing), std::mem::take(&mut self.waiting))
    }
}
