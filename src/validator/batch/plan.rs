//! Which miner gets which jobs: from its manifest, the number asked for and the seed. Pure.
//!
//! Each miner has a random sequence of its own, made of the seed and its hotkey, so its jobs do not depend on when its
//! manifest came. The uuids come from the number of the batch, not from the seed: a miner takes a uuid once.

use std::sync::Arc;

use crate::base::limits::EXECUTORS_MAX;
use crate::base::rng::Rng;
use crate::identity::PublicKey;
use crate::protocol::{ExecutorClass, V2JobRequest};

/// Jobs of one miner, whatever its manifest says.
pub const JOBS_PER_MINER: usize = EXECUTORS_MAX as usize;

/// Jobs of one batch; at some 2 KiB each 128 MiB. They are shared out evenly between its miners.
pub const JOBS_PER_BATCH: usize = 65_536;

/// Makes the jobs of a batch.
pub trait JobMaker: Send {
    /// A job for one miner; `None` if there is none of the class. Its uuid and signature do not count. What is equal
    /// should be one [`Arc`], because it is kept once. With the same seed `rng` gives the same for the same miner. Runs
    /// on the batch's thread, so it must be quick.
    fn make(&mut self, miner: &PublicKey, class: ExecutorClass, rng: &mut Rng) -> Option<Arc<V2JobRequest>>;
}

impl<F> JobMaker for F
where
    F: FnMut(&PublicKey, ExecutorClass, &mut Rng) -> Option<Arc<V2JobRequest>> + Send,
{
    fn make(&mut self, miner: &PublicKey, class: ExecutorClass, rng: &mut Rng) -> Option<Arc<V2JobRequest>> {
        self(miner, class, rng)
    }
}

/// A job that is to be asked for.
#[derive(Debug, Clone)]
pub(super) struct PlannedJob {
    pub(super) class: ExecutorClass,
    pub(super) request: Arc<V2JobRequest>,
}

/// Jobs that a miner may have, so that none takes another's: all have the same, and it does not depend on whose
/// manifest comes first. Of a batch that goes on, `kept` jobs are there already and `new` of the miners have none yet.
pub(super) fn share(kept: usize, miners: usize, new: usize) -> usize {
    let even = JOBS_PER_BATCH / miners.max(1);
    even.min(JOBS_PER_BATCH.saturating_sub(kept) / new.max(1)).min(JOBS_PER_MINER)
}

/// A number for a miner: the first bytes of its hotkey, which are as good as random.
fn number_of(miner: &PublicKey) -> u64 {
    miner.as_bytes().iter().take(8).fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

/// Puts them into an order that the seed decides.
pub(super) fn shuffle<T>(items: &mut [T], rng: &mut Rng) {
    for n in (1..items.len()).rev() {
        let other = (rng.next_u64() % (n as u64 + 1)) as usize;
        items.swap(n, other);
    }
}

/// The jobs of one miner: `per_miner` of the classes in its manifest, or as many as it declares; none of classes for
/// which there are no jobs.
pub(super) fn plan(
    seed: u64,
    miner: &PublicKey,
    manifest: &[(ExecutorClass, i64)],
    per_miner: Option<usize>,
    maker: &mut dyn JobMaker,
) -> Vec<PlannedJob> {
    let mut rng = Rng::new(seed ^ number_of(miner));
    let mut slots: Vec<ExecutorClass> = manifest
        .iter()
        .flat_map(|(class, count)| {
            let count = usize::try_from(*count).unwrap_or(0).min(JOBS_PER_MINER);
            std::iter::repeat_n(*class, count)
        })
        .take(JOBS_PER_MINER)
        .collect();
    shuffle(&mut slots, &mut rng);
    let wanted = per_miner.unwrap_or(slots.len()).min(JOBS_PER_MINER);
    let mut jobs = Vec::with_capacity(wanted);
    let mut turn = 0;
    while jobs.len() < wanted && !slots.is_empty() && (per_miner.is_some() || turn < slots.len()) {
        let class = slots[turn % slots.len()];
        match maker.make(miner, class, &mut rng) {
            Some(request) => {
                jobs.push(PlannedJob { class, request });
                turn += 1;
            }
            None => {
                // What stands before was asked for already; the same number of turns is left of the other classes.
                let before = slots[..turn % slots.len()].iter().filter(|other| **other == class).count();
                turn = turn % slots.len() - before;
                slots.retain(|other| *other != class);
            }
        }
    }
    jobs
}

/// The uuid of a job: of the batch's number, the miner, its place and the attempt.
pub(super) fn uuid_of(batch: u64, miner: &PublicKey, place: usize, attempt: u32) -> String {
    let mut rng = Rng::new(batch ^ number_of(miner).rotate_left(17));
    let first = rng.next_u64() ^ ((place as u64) << 8) ^ u64::from(attempt);
    let mut rng = Rng::new(first);
    let bits = (u128::from(rng.next_u64()) << 64) | u128::from(rng.next_u64());
    uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid().to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::validator::batch::config::BATCH_MINERS;
    use crate::validator::batch::tests::request;

    const TEST: ExecutorClass = ExecutorClass::AlwaysOnTest;
    const LLM: ExecutorClass = ExecutorClass::AlwaysOnLlmA6000;

    fn classes(seed: u64, manifest: &[(ExecutorClass, i64)], per_miner: Option<usize>) -> Vec<ExecutorClass> {
        let miner = PublicKey::from_bytes([7; 32]);
        // There are no jobs for the third class.
        let mut maker = |_: &PublicKey, class: ExecutorClass, _: &mut Rng| {
            (class != ExecutorClass::AlwaysOnGpu24gb).then(|| Arc::new(request()))
        };
        plan(seed, &miner, manifest, per_miner, &mut maker).into_iter().map(|job| job.class).collect()
    }

    #[test]
    fn a_miner_is_asked_for_what_it_declares_or_for_the_number_given() {
        for (manifest, per_miner, tests, llms) in [
            (vec![(TEST, 3)], None, 3, 0),
            (vec![(TEST, 3)], Some(1), 1, 0),
            (vec![(TEST, 1)], Some(4), 4, 0),
            (vec![(TEST, 2), (LLM, 1)], None, 2, 1),
            (vec![(TEST, 2), (LLM, 1)], Some(6), 4, 2),
            (vec![(TEST, 2), (ExecutorClass::AlwaysOnGpu24gb, 5)], None, 2, 0),
            (vec![(TEST, 1), (ExecutorClass::AlwaysOnGpu24gb, 5)], Some(3), 3, 0),
            (vec![(ExecutorClass::AlwaysOnGpu24gb, 5)], Some(3), 0, 0),
            (vec![(TEST, 0), (LLM, -3)], Some(3), 0, 0),
            (vec![], None, 0, 0),
            (vec![(TEST, i64::MAX)], None, JOBS_PER_MINER, 0),
        ] {
            for seed in 0..20 {
                let jobs = classes(seed, &manifest, per_miner);
                let count = |class| jobs.iter().filter(|other| **other == class).count();
                assert_eq!((count(TEST), count(LLM)), (tests, llms), "{manifest:?} {per_miner:?} seed {seed}");
                assert_eq!(jobs.len(), tests + llms);
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_jobs_and_another_another_order() {
        let manifest = [(TEST, 8), (LLM, 8)];
        assert_eq!(classes(1, &manifest, None), classes(1, &manifest, None));
        assert!((2..9).any(|seed| classes(seed, &manifest, None) != classes(1, &manifest, None)));
    }

    #[test]
    fn every_miner_has_the_same_share_and_all_together_have_room() {
        assert_eq!((share(0, 1, 1), share(0, 65, 65)), (JOBS_PER_MINER, JOBS_PER_MINER));
        for miners in [66, 100, 1000, BATCH_MINERS] {
            let each = share(0, miners, miners);
            assert!(each > 0 && each < JOBS_PER_MINER && each * miners <= JOBS_PER_BATCH, "{miners}: {each}");
            // Half of them are there already: the others get as much, or what is left.
            assert_eq!(share(each * miners / 2, miners, miners - miners / 2), each);
        }
        // A batch of few that goes on with many more.
        let rest = share(65 * JOBS_PER_MINER, BATCH_MINERS, BATCH_MINERS - 65);
        assert!(65 * JOBS_PER_MINER + rest * (BATCH_MINERS - 65) <= JOBS_PER_BATCH, "{rest}");
    }

    #[test]
    fn uuids_are_canonical_and_differ() {
        let miners = [[1; 32], [2; 32]].map(PublicKey::from_bytes);
        let mut seen = HashSet::new();
        for (batch, miner, place, attempt) in
            (0..400).map(|n| (n as u64 % 2, miners[n / 2 % 2], n / 4 % 50, (n / 200) as u32))
        {
            let text = uuid_of(batch, &miner, place, attempt);
            assert_eq!(uuid::Uuid::try_parse(&text).unwrap().to_string(), text);
            assert!(seen.insert(text), "{batch} {miner} {place} {attempt}");
        }
    }
}
