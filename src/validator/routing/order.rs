//! In which order miners are looked at for a job, so that few are: the best that each can be, whatever the time and its
//! past make of it, comes from what only an event changes. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use super::miner::MinerState;
use super::standing::Standing;
use crate::protocol::ExecutorClass;

/// The best that a miner can be for jobs of a class, the smaller the better; of equals the one that was picked longest
/// ago, and of those that were never picked the first in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    is_unknown: bool,
    running: i64,
    picked: u64,
    /// In the table.
    pub(super) index: usize,
}

/// A standing with what decides between equals.
pub(super) type Rank = (Standing, Reverse<u64>, Reverse<usize>);

impl Place {
    fn of(class: ExecutorClass, index: usize, miner: &MinerState) -> Self {
        let offered = miner.manifest.as_ref().and_then(|(manifest, _)| manifest.get(&class).copied()).unwrap_or(0);
        Self { is_unknown: offered <= 0, running: miner.running(class), picked: miner.picked, index }
    }

    /// Its standing is at most this.
    pub(super) fn at_most(&self) -> Rank {
        let standing = Standing {
            answers: true,
            rested: true,
            reliability_tenths: 10,
            known: !self.is_unknown,
            running: Reverse(self.running),
            fresh_tenths: 10,
        };
        (standing, Reverse(self.picked), Reverse(self.index))
    }
}

/// The orders of the classes that were asked for, those of trusted miners apart.
#[derive(Debug, Default)]
pub(super) struct Orders(HashMap<(ExecutorClass, bool), BTreeSet<Place>>);

impl Orders {
    /// The order for jobs of a class.
    pub(super) fn of(&mut self, class: ExecutorClass, trusted: bool, miners: &[MinerState]) -> &BTreeSet<Place> {
        let all = || miners.iter().enumerate().filter(|(_, miner)| miner.address.trusted == trusted);
        let places = || all().map(|(index, miner)| Place::of(class, index, miner)).collect();
        self.0.entry((class, trusted)).or_insert_with(places)
    }

    /// Changes a miner of the table, and its places with it.
    pub(super) fn change(&mut self, miners: &mut [MinerState], index: usize, change: impl FnOnce(&mut MinerState)) {
        let Some(miner) = miners.get_mut(index) else { return };
        let trusted = miner.address.trusted;
        let mut orders: Vec<_> = self.0.iter_mut().filter(|((_, of), _)| *of == trusted).collect();
        for ((class, _), order) in &mut orders {
            order.remove(&Place::of(*class, index, miner));
        }
        change(miner);
        for ((class, _), order) in &mut orders {
            order.insert(Place::of(*class, index, miner));
        }
    }
}
