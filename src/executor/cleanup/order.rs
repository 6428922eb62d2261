//! The order in which what was made for a job is undone: the last first. Pure.

/// Names a step, for as long as it is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// Steps that are still to be done.
#[derive(Debug)]
pub(super) struct Order<T> {
    steps: Vec<(Ticket, T)>,
    next: u64,
}

impl<T> Order<T> {
    pub(super) fn new() -> Self {
        Self { steps: Vec::new(), next: 0 }
    }

    /// One more, to be done before all that are there.
    pub(super) fn push(&mut self, step: T) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.steps.push((ticket, step));
        ticket
    }

    /// Takes the next step that is to be done, down to that of `last`.
    pub(super) fn pop(&mut self, last: Option<Ticket>) -> Option<T> {
        let next = self.steps.pop_if(|(ticket, _)| last.is_none_or(|last| *ticket >= last));
        next.map(|(_, step)| step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_last_is_undone_first_and_each_once() {
        let mut order = Order::new();
        let tickets: Vec<Ticket> = ["folder", "hook", "network", "container"].map(|step| order.push(step)).into();
        let mut undo = |last: Option<usize>| {
            let last = last.map(|n| tickets[n]);
            std::iter::from_fn(|| order.pop(last)).collect::<Vec<_>>()
        };
        assert_eq!(undo(Some(3)), ["container"]);
        assert_eq!(undo(Some(3)), [""; 0], "it was done");
        assert_eq!(undo(Some(1)), ["network", "hook"], "with what was made after it");
        let later = order.push("later");
        assert_eq!(order.pop(Some(later)), Some("later"));
        assert_eq!([order.pop(None), order.pop(None)], [Some("folder"), None]);
    }
}
