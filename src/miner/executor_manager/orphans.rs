//! Which of the things that carry a miner's marks nobody answers for. Pure.

use std::collections::BTreeSet;

use super::backend::Marked;

/// What was seen before.
#[derive(Debug)]
pub struct Orphans {
    epoch: u64,
    seen: BTreeSet<Marked>,
}

impl Orphans {
    /// For the miner's process of this epoch.
    pub fn new(epoch: u64) -> Self {
        Self { epoch, seen: BTreeSet::new() }
    }

    /// What is to be removed of what was `found`, in order. What is `living` was asked for after it was found.
    ///
    /// What an earlier process has made goes at once: that process is dead, because it had the state folder. What is of
    /// this process goes when it was an orphan the last time already: it may be in the making. What a later process has
    /// made is its own.
    pub fn of(&mut self, found: Vec<Marked>, living: &BTreeSet<String>) -> Vec<Marked> {
        let orphans: BTreeSet<Marked> = found.into_iter().filter(|marked| !living.contains(&marked.run)).collect();
        let gone =
            |marked: &&Marked| marked.epoch < self.epoch || marked.epoch == self.epoch && self.seen.contains(*marked);
        let remove = orphans.iter().filter(gone).cloned().collect();
        self.seen = orphans;
        remove
    }
}

#[cfg(test)]
mod tests {
    use super::super::backend::LeftoverKind;
    use super::*;

    #[test]
    fn what_nobody_answers_for_goes_at_once_if_its_process_is_dead_and_later_if_it_may_be_in_the_making() {
        let marked = |kind, run: &str, epoch| Marked { kind, id: format!("{run}'s"), run: run.to_owned(), epoch };
        use LeftoverKind::{Container, Folder, Network};
        let found = vec![
            marked(Folder, "dead", 2),
            marked(Network, "dead", 2),
            marked(Container, "dead", 2),
            marked(Container, "adopted", 2),
            marked(Container, "ours", 3),
            marked(Container, "in the making", 3),
            marked(Container, "of a later process", 4),
        ];
        let living: BTreeSet<String> = ["adopted", "ours"].map(str::to_owned).into();
        let mut orphans = Orphans::new(3);
        let kinds = [Container, Network, Folder].map(|kind| marked(kind, "dead", 2));
        assert_eq!(orphans.of(found.clone(), &living), kinds);
        let all: Vec<_> = [marked(Container, "in the making", 3)].into_iter().chain(kinds).collect();
        let mut again = orphans.of(found.clone(), &living);
        again.sort_by_key(|marked| marked.epoch != 3);
        assert_eq!(again, all);
        // One that is answered for in between begins anew.
        let mut orphans = Orphans::new(3);
        let making = vec![marked(Container, "in the making", 3)];
        assert_eq!(orphans.of(making.clone(), &living), []);
        assert_eq!(orphans.of(making.clone(), &["in the making".to_owned()].into()), []);
        assert_eq!(orphans.of(making.clone(), &living), []);
        assert_eq!(orphans.of(making.clone(), &living), making);
    }
}
