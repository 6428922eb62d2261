//! The log lines that wait to be written: so many and no more; what does not fit is dropped and told of. Pure.

use std::collections::VecDeque;

/// Lines that wait at most: those of a second in which all of 1,000 connections say something, four times over.
const LINES: usize = 4096;

/// Bytes that wait at most: 512 bytes for each of [`LINES`], which are 100 to 300 as a rule, and 256 of the longest.
const BYTES: usize = 2 << 20;

/// Bytes of one write. A pipe that can be written to at all takes so many at once (`PIPE_BUF`).
pub(super) const WRITE_BYTES: usize = 4096;

/// Log lines in their order. Once one has found no room, all are dropped until half of it is free again, so that a
/// slow reader gets whole stretches of the log and few gaps. Where lines are missing, one line says how many.
#[derive(Debug, Default)]
pub(super) struct LogQueue {
    lines: VecDeque<Batch>,
    bytes: usize,
    is_dropping: bool,
    dropped: u64,
}

/// What is written at once.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    /// How many lines are lost if it is not written: those it has, and those it tells of.
    pub(super) lines: u64,
}

impl LogQueue {
    /// Takes a line, and says whether there was room for it. `notice` makes the line that tells of those dropped.
    pub(super) fn push(&mut self, line: Vec<u8>, notice: &dyn Fn(u64) -> Vec<u8>) -> bool {
        let is_full = self.lines.len() >= LINES || self.bytes + line.len() > BYTES;
        let has_room = self.lines.len() <= LINES / 2 && self.bytes <= BYTES / 2;
        if is_full || (self.is_dropping && !has_room) {
            self.is_dropping = true;
            self.dropped += 1;
            return false;
        }
        self.is_dropping = false;
        self.tell(notice);
        self.add(Batch { bytes: line, lines: 1 });
        true
    }

    /// The next lines to be written, as many as fit into one write, or one that is longer.
    pub(super) fn take(&mut self, notice: &dyn Fn(u64) -> Vec<u8>) -> Option<Batch> {
        if self.lines.is_empty() && self.is_dropping {
            self.is_dropping = false;
            self.tell(notice);
        }
        let mut batch = Batch::default();
        while let Some(line) = self.lines.front()
            && (batch.bytes.is_empty() || batch.bytes.len() + line.bytes.len() <= WRITE_BYTES)
            && let Some(line) = self.lines.pop_front()
        {
            self.bytes -= line.bytes.len();
            batch.bytes.extend_from_slice(&line.bytes);
            batch.lines += line.lines;
        }
        (batch.lines > 0).then_some(batch)
    }

    /// So many lines could not be written; that is told with the next one.
    pub(super) fn lost(&mut self, lines: u64) {
        self.dropped += lines;
    }

    /// Whether [`LogQueue::take`] has nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty() && !self.is_dropping
    }

    fn tell(&mut self, notice: &dyn Fn(u64) -> Vec<u8>) {
        let lines = std::mem::take(&mut self.dropped);
        if lines > 0 {
            self.add(Batch { bytes: notice(lines), lines });
        }
    }

    fn add(&mut self, line: Batch) {
        self.bytes += line.bytes.len();
        self.lines.push_back(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(lines: u64) -> Vec<u8> {
        format!("{lines} lost\n").into_bytes()
    }

    fn push(queue: &mut LogQueue, line: &str) -> bool {
        queue.push(line.as_bytes().to_vec(), &notice)
    }

    /// All that is left, as text.
    fn rest(queue: &mut LogQueue) -> String {
        let batches = std::iter::from_fn(|| queue.take(&notice));
        batches.map(|batch| String::from_utf8(batch.bytes).unwrap()).collect()
    }

    #[test]
    fn lines_are_written_in_their_order_many_at_once() {
        let mut queue = LogQueue::default();
        assert!(queue.is_empty() && queue.take(&notice).is_none());
        (0..1000).for_each(|n| assert!(push(&mut queue, &format!("line {n}\n"))));
        let first = queue.take(&notice).unwrap();
        assert!(first.bytes.len() <= WRITE_BYTES && first.bytes.ends_with(b"\n") && first.lines > 300, "{first:?}");
        let text = String::from_utf8(first.bytes).unwrap() + &rest(&mut queue);
        assert_eq!(text, (0..1000).map(|n| format!("line {n}\n")).collect::<String>());
        assert!(queue.is_empty() && queue.bytes == 0);
        let long = "x".repeat(3 * WRITE_BYTES);
        assert!(push(&mut queue, "short\n") && push(&mut queue, &long) && push(&mut queue, "short\n"));
        assert_eq!(queue.take(&notice).unwrap().lines, 1);
        assert_eq!(queue.take(&notice).unwrap().bytes, long.as_bytes());
    }

    #[test]
    fn what_finds_no_room_is_told_of_where_it_is_missing() {
        let mut queue = LogQueue::default();
        (0..LINES).for_each(|_| assert!(push(&mut queue, "first\n")));
        (0..7).for_each(|_| assert!(!push(&mut queue, "lost\n")));
        let taken = queue.take(&notice).unwrap().lines;
        assert!(taken > 1 && !push(&mut queue, "lost\n"), "it goes on dropping until half of the room is free");
        while queue.lines.len() > LINES / 2 {
            queue.take(&notice);
        }
        assert!(push(&mut queue, "second\n"));
        let text = rest(&mut queue);
        assert!(text.ends_with("first\n8 lost\nsecond\n"), "{}", &text[text.len() - 100..]);
        assert_eq!(text.matches("lost").count(), 1);
    }

    #[test]
    fn without_another_line_those_dropped_are_told_of_in_the_end() {
        let mut queue = LogQueue::default();
        assert_eq!((0..2 * LINES).filter(|_| push(&mut queue, "x\n")).count(), LINES);
        assert!(rest(&mut queue).ends_with(&format!("x\n{LINES} lost\n")));
        assert!(queue.is_empty());
    }

    #[test]
    fn bytes_are_bounded_too() {
        let mut queue = LogQueue::default();
        let long = "x".repeat(8 << 10);
        let taken = (0..LINES).filter(|_| push(&mut queue, &long)).count();
        assert_eq!((taken, queue.bytes), (BYTES / (8 << 10), BYTES));
    }

    #[test]
    fn lines_that_could_not_be_written_are_told_of_with_the_next_one_and_not_before() {
        let mut queue = LogQueue::default();
        assert!(push(&mut queue, "a\n") && push(&mut queue, "b\n"));
        let batch = queue.take(&notice).unwrap();
        queue.lost(batch.lines);
        assert!(queue.is_empty() && queue.take(&notice).is_none(), "nothing is tried again by itself");
        assert!(push(&mut queue, "c\n"));
        let batch = queue.take(&notice).unwrap();
        assert_eq!((batch.bytes.as_slice(), batch.lines), (b"2 lost\nc\n".as_slice(), 3));
        queue.lost(batch.lines);
        assert!(push(&mut queue, "d\n"));
        assert_eq!(rest(&mut queue), "3 lost\nd\n");
    }
}
