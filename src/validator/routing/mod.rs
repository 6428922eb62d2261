//! Which miner gets a job. Pure: `now` is an argument.
//!
//! What is known of a miner: how many executors of each class its last manifest named and when that came, how many of
//! our jobs it runs, how dependable it was ([`reliability`]), and whether it is blacklisted. By that some miners are
//! passed over ([`PassedOver`]); the others are compared by their [`Standing`], and the best gets the job. A miner that
//! is in trouble comes last and is not left out, so that a fault of our own leaves no job without a miner to ask. A
//! miner whose manifest is not known yet is worth a try after those that are as dependable and known to have room,
//! because asking it is how its manifest is learnt.

mod miner;
mod order;
pub mod reliability;
mod standing;
mod views;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use self::miner::MinerState;
pub use self::miner::{Ask, COOL_DOWN, MinerAddress};
use self::order::{Orders, Rank};
use self::reliability::Incident;
pub use self::reliability::{HALF_LIFE, ReliabilityNumbers, ShownIncident};
pub use self::standing::{PassedOver, Standing};
pub use self::views::{BreakerView, ClassView, ExplainedMiner, MinerView};
use crate::identity::PublicKey;
use crate::protocol::ExecutorClass;

/// Miners that are in no list any more of which something is remembered: as many as a batch may have. Each has some
/// 2 KiB, the words of its last incidents, 8 MiB in all.
const GONE_MINERS: usize = 4000;

/// Why no miner was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoMiner {
    /// No miner that may be asked has executors of the class.
    None,
    /// Some have, and all of them are at work for us.
    Busy,
    /// The job asks for a trusted miner, and none is in the table.
    NoTrusted,
}

/// The table of miners.
#[derive(Debug)]
pub struct Routing {
    miners: Vec<MinerState>,
    /// Where each is in that.
    places: HashMap<PublicKey, usize>,
    orders: Orders,
    /// Those that an earlier table named and that something is to be remembered of.
    gone: HashMap<PublicKey, MinerState>,
    half_life: Duration,
    /// Jobs that were given to miners so far.
    given: u64,
}

impl Routing {
    /// A table of miners about which nothing is known; what they do counts half after each `half_life`.
    pub fn new(miners: Vec<MinerAddress>, half_life: Duration) -> Self {
        let miners: Vec<_> = miners.into_iter().map(MinerState::new).collect();
        let (places, orders) = (places(&miners), Orders::default());
        Self { miners, places, orders, gone: HashMap::new(), half_life, given: 0 }
    }

    /// Takes another table; what is known of the miners in both is kept. Of those that are gone it is kept while one
    /// runs jobs, is blacklisted, or has incidents that count, because it may come back with the next table.
    pub fn replace(&mut self, miners: Vec<MinerAddress>, now: Instant) {
        let mut known = std::mem::take(&mut self.gone);
        known.extend(self.miners.drain(..).map(|miner| (miner.address.hotkey, miner)));
        self.miners = miners
            .into_iter()
            .map(|address| match known.remove(&address.hotkey) {
                Some(miner) => MinerState { address, ..miner },
                None => MinerState::new(address),
            })
            .collect();
        (self.places, self.orders) = (places(&self.miners), Orders::default());
        let half_life = self.half_life;
        let mut gone: Vec<MinerState> =
            known.into_values().filter(|miner| miner.is_remembered(half_life, now)).collect();
        if gone.len() > GONE_MINERS {
            gone.sort_by_key(|miner| std::cmp::Reverse(miner.weight_of_memory(half_life, now)));
            gone.truncate(GONE_MINERS);
        }
        self.gone = gone.into_iter().map(|miner| (miner.address.hotkey, miner)).collect();
    }

    /// Picks the miner with the best [`Standing`] (at once where most are well; all are looked at only where none is),
    /// of equals the one that was picked longest ago, and counts the job as
    /// running there until [`Routing::release`]. A job goes to a trusted miner if it asks for one, and to none of those
    /// if not.
    ///
    /// # Errors
    /// [`NoMiner`].
    pub fn reserve(&mut self, ask: &Ask<'_>, now: Instant) -> Result<MinerAddress, NoMiner> {
        let (mut busy, mut best) = (false, None::<Rank>);
        for place in self.orders.of(ask.class, ask.trusted, &self.miners) {
            // Nor can any behind it.
            if best.is_some_and(|best| best >= place.at_most()) {
                break;
            }
            let miner = &self.miners[place.index];
            match miner.standing(ask, self.half_life, now) {
                Err(PassedOver::Full { .. }) => busy = true,
                Err(_) => {}
                Ok(standing) => best = best.max(Some((standing, Reverse(miner.picked), Reverse(place.index)))),
            }
        }
        let (_, _, Reverse(index)) = best.ok_or_else(|| match busy {
            true => NoMiner::Busy,
            false if ask.trusted && !self.miners.iter().any(|miner| miner.address.trusted) => NoMiner::NoTrusted,
            false => NoMiner::None,
        })?;
        self.given += 1;
        self.orders.change(&mut self.miners, index, |miner| {
            miner.picked = self.given;
            *miner.running.entry(ask.class).or_default() += 1;
        });
        Ok(self.miners[index].address.clone())
    }

    /// Counts a job as running on the miner that has it already, whatever room it has left; `None` if it is not in the
    /// table.
    pub fn reserve_again(&mut self, hotkey: &PublicKey, class: ExecutorClass) -> Option<MinerAddress> {
        let index = *self.places.get(hotkey)?;
        self.orders.change(&mut self.miners, index, |miner| *miner.running.entry(class).or_default() += 1);
        Some(self.miners[index].address.clone())
    }

    /// The job of [`Routing::reserve`] has ended there, or never began.
    pub fn release(&mut self, hotkey: &PublicKey, class: ExecutorClass) {
        self.change(hotkey, |miner| {
            if let Some(running) = miner.running.get_mut(&class) {
                *running = (*running - 1).max(0);
            }
        });
    }

    /// A miner reported what it has.
    pub fn manifest(&mut self, hotkey: &PublicKey, manifest: HashMap<ExecutorClass, i64>, now: Instant) {
        self.change(hotkey, |miner| miner.manifest = Some((manifest, now)));
    }

    /// All miners of the table.
    pub fn addresses(&self) -> Vec<MinerAddress> {
        self.miners.iter().map(|miner| miner.address.clone()).collect()
    }

    /// A miner declined or could not be reached: others are preferred for [`COOL_DOWN`]. Its last manifest is kept.
    pub fn cool_down(&mut self, hotkey: &PublicKey, now: Instant) {
        if let Some(miner) = self.find(hotkey) {
            miner.cooling_until = Some(now + COOL_DOWN);
        }
    }

    /// A miner completed a job.
    pub fn completed(&mut self, hotkey: &PublicKey, now: Instant) {
        let half_life = self.half_life;
        if let Some(miner) = self.find(hotkey) {
            miner.reliability.completed(now, half_life);
        }
    }

    /// A miner did something wrong; why, in words, of which the beginning is kept.
    pub fn incident(&mut self, hotkey: &PublicKey, incident: Incident, why: &str, now: Instant) {
        let half_life = self.half_life;
        if let Some(miner) = self.find(hotkey) {
            miner.reliability.incident(incident, why, now, half_life);
        }
    }

    /// A miner cheated: it gets no job for `time`, also if it is in the table only later. Saying it again does not
    /// prolong it, and a trusted miner is not touched by it.
    pub fn blacklist(&mut self, hotkey: &PublicKey, now: Instant, time: Duration) {
        if self.find(hotkey).is_none() && self.gone.len() < GONE_MINERS {
            self.gone.insert(*hotkey, MinerState::new(MinerAddress::unknown(*hotkey)));
        }
        if let Some(miner) = self.find(hotkey)
            && !miner.address.trusted
            && miner.blacklisted_until.is_none_or(|until| until <= now)
        {
            miner.blacklisted_until = Some(now + time);
        }
    }

    /// Not to change its manifest or its jobs by.
    fn find(&mut self, hotkey: &PublicKey) -> Option<&mut MinerState> {
        match self.places.get(hotkey) {
            Some(index) => self.miners.get_mut(*index),
            None => self.gone.get_mut(hotkey),
        }
    }

    fn change(&mut self, hotkey: &PublicKey, change: impl FnOnce(&mut MinerState)) {
        match self.places.get(hotkey) {
            Some(index) => self.orders.change(&mut self.miners, *index, change),
            None => drop(self.gone.get_mut(hotkey).map(change)),
        }
    }
}

/// Where each miner is; of two with one hotkey the first.
fn places(miners: &[MinerState]) -> HashMap<PublicKey, usize> {
    let mut places = HashMap::with_capacity(miners.len());
    miners.iter().enumerate().for_each(|(index, miner)| {
        places.entry(miner.address.hotkey).or_insert(index);
    });
    places
}

#[cfg(test)]
mod tests;
