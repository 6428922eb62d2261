//! Which miner gets a job. Pure: `now` is an argument.
//!
//! What is known of a miner: how many executors of each class its last manifest named, how many of our jobs it runs,
//! and whether it is blacklisted. A miner whose manifest is not known yet is worth a try after those that are known to
//! have room, because asking it is how its manifest is learnt.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::identity::PublicKey;
use crate::protocol::ExecutorClass;

/// Where a miner listens, as the miners file says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MinerAddress {
    /// Its hotkey.
    pub hotkey: PublicKey,
    /// Host name or IP address.
    pub address: String,
    /// TCP port.
    pub port: u16,
    /// Whether it runs the jobs that ask for a trusted miner, and no others.
    pub trusted: bool,
    /// Whether it is dialled as `wss://`.
    pub tls: bool,
}

impl MinerAddress {
    /// Where a validator connects to it.
    pub fn url(&self, validator: &PublicKey) -> String {
        let Self { address, port, .. } = self;
        let scheme = if self.tls { "wss" } else { "ws" };
        let brackets = address.contains(':') && !address.starts_with('[');
        let (open, close) = if brackets { ("[", "]") } else { ("", "") };
        format!("{scheme}://{open}{address}{close}:{port}/v0.1/validator_interface/{validator}")
    }
}

/// After a miner declined as busy or could not be reached, how long others are preferred. After it offered no executor
/// of a class, how long it is not asked for one: then it may have some again.
pub const COOL_DOWN: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct MinerState {
    address: MinerAddress,
    /// With the time when it came.
    manifest: Option<(HashMap<ExecutorClass, i64>, Instant)>,
    running: HashMap<ExecutorClass, i64>,
    cooling_until: Option<Instant>,
    blacklisted_until: Option<Instant>,
}

impl MinerState {
    fn new(address: MinerAddress) -> Self {
        Self { address, manifest: None, running: HashMap::new(), cooling_until: None, blacklisted_until: None }
    }

    fn running(&self, class: ExecutorClass) -> i64 {
        self.running.get(&class).copied().unwrap_or(0)
    }

    /// Executors by its manifest; `None` if that is not known, or is too old to say that there are none.
    fn offered(&self, class: ExecutorClass, now: Instant) -> Option<i64> {
        let (manifest, at) = self.manifest.as_ref()?;
        let offered = manifest.get(&class).copied().unwrap_or(0);
        (offered > 0 || now < *at + COOL_DOWN).then_some(offered)
    }
}

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
    /// Breaks ties in turn, so that equal miners share the work.
    turn: usize,
}

impl Routing {
    /// A table of miners about which nothing is known.
    pub fn new(miners: Vec<MinerAddress>) -> Self {
        Self { miners: miners.into_iter().map(MinerState::new).collect(), turn: 0 }
    }

    /// Takes another table; what is known of the miners in both is kept.
    pub fn replace(&mut self, miners: Vec<MinerAddress>) {
        let mut known: HashMap<PublicKey, MinerState> =
            self.miners.drain(..).map(|miner| (miner.address.hotkey, miner)).collect();
        self.miners = miners
            .into_iter()
            .map(|address| match known.remove(&address.hotkey) {
                Some(miner) => MinerState { address, ..miner },
                None => MinerState::new(address),
            })
            .collect();
    }

    /// Picks the miner with the most free executors of `class`, not one of `tried`, and counts the job as running there
    /// until [`Routing::release`]. A job goes to a trusted miner if it asks for one, and to none of those if not.
    ///
    /// # Errors
    /// [`NoMiner`].
    pub fn reserve(
        &mut self,
        class: ExecutorClass,
        trusted: bool,
        tried: &[PublicKey],
        now: Instant,
    ) -> Result<MinerAddress, NoMiner> {
        let count = self.miners.len();
        let turn = self.turn;
        self.turn = self.turn.wrapping_add(1);
        let mut busy = false;
        let mut best: Option<((bool, bool, i64), usize)> = None;
        for step in 0..count {
            let index = (turn.wrapping_add(step)) % count;
            let miner = &self.miners[index];
            let excluded = tried.contains(&miner.address.hotkey)
                || miner.blacklisted_until.is_some_and(|until| now < until)
                || trusted != miner.address.trusted;
            let offered = miner.offered(class, now);
            if excluded || offered.is_some_and(|offered| offered <= 0) {
                continue;
            }
            let free = offered.map(|offered| offered - miner.running(class));
            if free.is_some_and(|free| free <= 0) {
                busy = true;
                continue;
            }
            let cool = miner.cooling_until.is_none_or(|until| until <= now);
            let rank = (cool, free.is_some(), free.unwrap_or(-miner.running(class)));
            if best.is_none_or(|(other, _)| rank > other) {
                best = Some((rank, index));
            }
        }
        let (_, index) = best.ok_or_else(|| match busy {
            true => NoMiner::Busy,
            false if trusted && !self.miners.iter().any(|miner| miner.address.trusted) => NoMiner::NoTrusted,
            false => NoMiner::None,
        })?;
        let miner = &mut self.miners[index];
        *miner.running.entry(class).or_default() += 1;
        Ok(miner.address.clone())
    }

    /// Counts a job as running on the miner that has it already, whatever room it has left; `None` if it is not in the
    /// table.
    pub fn reserve_again(&mut self, hotkey: &PublicKey, class: ExecutorClass) -> Option<MinerAddress> {
        let miner = self.find(hotkey)?;
        *miner.running.entry(class).or_default() += 1;
        Some(miner.address.clone())
    }

    /// The job of [`Routing::reserve`] has ended there, or never began.
    pub fn release(&mut self, hotkey: &PublicKey, class: ExecutorClass) {
        if let Some(running) = self.find(hotkey).and_then(|m| m.running.get_mut(&class)) {
            *running = (*running - 1).max(0);
        }
    }

    /// A miner reported what it has.
    pub fn manifest(&mut self, hotkey: &PublicKey, manifest: HashMap<ExecutorClass, i64>, now: Instant) {
        if let Some(miner) = self.find(hotkey) {
            miner.manifest = Some((manifest, now));
        }
    }

    /// A miner declined or could not be reached: others are preferred for [`COOL_DOWN`], and its manifest is forgotten,
    /// because it did not keep to it.
    pub fn cool_down(&mut self, hotkey: &PublicKey, now: Instant) {
        if let Some(miner) = self.find(hotkey) {
            miner.cooling_until = Some(now + COOL_DOWN);
            miner.manifest = None;
        }
    }

    /// A miner cheated: it gets no job for `time`. Saying it again does not prolong it, and a trusted miner is not
    /// touched by it.
    pub fn blacklist(&mut self, hotkey: &PublicKey, now: Instant, time: Duration) {
        if let Some(miner) = self.find(hotkey)
            && !miner.address.trusted
            && miner.blacklisted_until.is_none_or(|until| until <= now)
        {
            miner.blacklisted_until = Some(now + time);
        }
    }

    fn find(&mut self, hotkey: &PublicKey) -> Option<&mut MinerState> {
        self.miners.iter_mut().find(|m| m.address.hotkey == *hotkey)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASS: ExecutorClass = ExecutorClass::AlwaysOnTest;

    const TRUSTED: u8 = 9;

    fn key(n: u8) -> PublicKey {
        PublicKey::from_bytes([n; 32])
    }

    fn miner(n: u8) -> MinerAddress {
        MinerAddress { hotkey: key(n), address: "127.0.0.1".into(), port: 1, trusted: n == TRUSTED, tls: false }
    }

    fn table(n: u8) -> Routing {
        Routing::new((1..=n).map(miner).collect())
    }

    fn has(count: i64) -> HashMap<ExecutorClass, i64> {
        HashMap::from([(CLASS, count)])
    }

    fn pick(routing: &mut Routing, tried: &[PublicKey], now: Instant) -> Result<PublicKey, NoMiner> {
        routing.reserve(CLASS, false, tried, now).map(|m| m.hotkey)
    }

    #[test]
    fn the_miner_with_most_room_comes_first_and_fills_up() {
        let (mut routing, now) = (table(2), Instant::now());
        routing.manifest(&key(1), has(1), now);
        routing.manifest(&key(2), has(3), now);
        let picks: Vec<_> = (0..4).map(|_| pick(&mut routing, &[], now).unwrap()).collect();
        assert_eq!(picks.iter().filter(|k| **k == key(2)).count(), 3);
        assert_eq!(picks[0], key(2));
        assert_eq!(pick(&mut routing, &[], now), Err(NoMiner::Busy));
        routing.release(&key(1), CLASS);
        assert_eq!(pick(&mut routing, &[], now), Ok(key(1)));
    }

    #[test]
    fn an_unknown_miner_is_asked_when_the_known_ones_are_full() {
        let (mut routing, now) = (table(2), Instant::now());
        routing.manifest(&key(1), has(1), now);
        assert_eq!(pick(&mut routing, &[], now), Ok(key(1)));
        assert_eq!(pick(&mut routing, &[], now), Ok(key(2)));
    }

    #[test]
    fn a_class_that_nobody_has_is_no_miner_not_busy() {
        let (mut routing, now) = (table(1), Instant::now());
        routing.manifest(&key(1), HashMap::new(), now);
        assert_eq!(pick(&mut routing, &[], now), Err(NoMiner::None));
        assert_eq!(pick(&mut table(0), &[], now), Err(NoMiner::None));
        // It may have some again, so it is asked after a while.
        assert_eq!(pick(&mut routing, &[], now + COOL_DOWN), Ok(key(1)));
    }

    #[test]
    fn tried_and_blacklisted_miners_are_left_out() {
        let (mut routing, now) = (table(2), Instant::now());
        assert_eq!(pick(&mut routing, &[key(1)], now), Ok(key(2)));
        routing.blacklist(&key(2), now, Duration::from_secs(60));
        routing.blacklist(&key(2), now + Duration::from_secs(30), Duration::from_secs(60));
        assert_eq!(pick(&mut routing, &[key(1)], now + Duration::from_secs(59)), Err(NoMiner::None));
        assert_eq!(pick(&mut routing, &[key(1)], now + Duration::from_secs(60)), Ok(key(2)));
    }

    #[test]
    fn a_trusted_miner_gets_the_jobs_that_ask_for_one_and_no_others() {
        let now = Instant::now();
        let reserve = |routing: &mut Routing, trusted| routing.reserve(CLASS, trusted, &[], now).map(|m| m.hotkey);
        let mut routing = Routing::new(vec![miner(TRUSTED)]);
        assert_eq!(reserve(&mut routing, false), Err(NoMiner::None));
        assert_eq!(reserve(&mut routing, true), Ok(key(TRUSTED)));
        routing.manifest(&key(TRUSTED), has(1), now);
        assert_eq!(reserve(&mut routing, true), Err(NoMiner::Busy));
        routing.manifest(&key(TRUSTED), has(2), now);
        routing.blacklist(&key(TRUSTED), now, Duration::from_secs(60));
        assert_eq!(reserve(&mut routing, true), Ok(key(TRUSTED)), "a report of cheating does not reach it");
        assert_eq!(reserve(&mut table(2), true), Err(NoMiner::NoTrusted));
    }

    #[test]
    fn another_table_keeps_what_is_known_of_the_miners_in_both() {
        let now = Instant::now();
        let mut routing = table(2);
        routing.blacklist(&miner(1).hotkey, now, Duration::from_secs(60));
        routing.replace(vec![MinerAddress { port: 9, ..miner(1) }, miner(3)]);
        assert_eq!(pick(&mut routing, &[], now), Ok(key(3)));
        assert_eq!(pick(&mut routing, &[key(3)], now), Err(NoMiner::None), "1 cheated, 2 is gone");
        let later = now + Duration::from_secs(61);
        assert_eq!(routing.reserve(CLASS, false, &[key(3)], later).map(|m| m.port), Ok(9));
    }

    #[test]
    fn a_cooling_miner_is_the_last_choice_but_a_choice() {
        let (mut routing, now) = (table(2), Instant::now());
        routing.manifest(&key(1), has(9), now);
        routing.cool_down(&key(1), now);
        assert_eq!(pick(&mut routing, &[], now), Ok(key(2)));
        assert_eq!(pick(&mut routing, &[key(2)], now), Ok(key(1)));
    }
}
