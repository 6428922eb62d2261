//! How a miner compares with the others for a job, or why it is passed over. Pure.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use super::miner::{Ask, COOL_DOWN, MinerState};
use super::reliability::faded;
use crate::protocol::ExecutorClass;

/// For so long a manifest counts in full.
const FRESH: Duration = Duration::from_secs(600);

/// After [`FRESH`] what a manifest counts is halved after each such time.
const FRESH_HALF_LIFE: Duration = Duration::from_secs(1800);

/// Older than this a manifest says nothing any more, as for the Python validator.
const MANIFEST_KEPT: Duration = Duration::from_secs(4 * 3600);

/// Why a miner is not asked at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassedOver {
    /// The job asks for a trusted miner, and it is none.
    NotTrusted,
    /// It is a trusted miner, and the job does not ask for one.
    Trusted,
    /// It was asked before, or cheated.
    Tried,
    /// It was reported for cheating.
    Blacklisted {
        /// For how long it still gets no job.
        left: Duration,
    },
    /// It has said just now that it has none of the class.
    NoExecutors,
    /// As many of our jobs run there as it has executors.
    Full {
        /// The executors of its manifest.
        offered: i64,
        /// Our jobs of the class.
        running: i64,
    },
}

/// How a miner compares with others, the greater the better; the first difference decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Standing {
    /// It is not left alone for not answering.
    pub answers: bool,
    /// It has not declined just now.
    pub rested: bool,
    /// Its reliability in tenths. Before what it says itself, so that one that fails all jobs is not asked first for
    /// ever where no other has been asked yet.
    pub reliability_tenths: u8,
    /// Its manifest is known.
    pub known: bool,
    /// Our jobs that run there, the fewer the better. How many executors it claims to have counts for nothing but
    /// whether it is full: nobody checks that.
    pub running: Reverse<i64>,
    /// What its manifest counts by its age, in tenths; none without one.
    pub fresh_tenths: u8,
}

impl MinerState {
    /// Executors by its manifest, and how much that counts by its age; `None` if it is not known, or is too old to say
    /// that there are none. A miner whose manifest is empty cannot run jobs at present, which may be over:
    /// it is asked where no other is left, so that a job learns whose trouble it is.
    pub(super) fn offered(&self, class: ExecutorClass, now: Instant) -> Option<(i64, f64)> {
        let (manifest, at) = self.manifest.as_ref().filter(|(manifest, _)| !manifest.is_empty())?;
        let age = now.saturating_duration_since(*at);
        let offered = manifest.get(&class).copied().unwrap_or(0);
        let counts = if offered > 0 { age < MANIFEST_KEPT } else { age < COOL_DOWN };
        counts.then(|| (offered, faded(age.saturating_sub(FRESH), FRESH_HALF_LIFE)))
    }

    /// How it compares for a job.
    ///
    /// # Errors
    /// [`PassedOver`].
    pub(super) fn standing(&self, ask: &Ask<'_>, half_life: Duration, now: Instant) -> Result<Standing, PassedOver> {
        match (ask.trusted, self.address.trusted) {
            (true, false) => return Err(PassedOver::NotTrusted),
            (false, true) => return Err(PassedOver::Trusted),
            _ => {}
        }
        if ask.tried.contains(&self.address.hotkey) {
            return Err(PassedOver::Tried);
        }
        if let Some(left) = self.blacklisted(now) {
            return Err(PassedOver::Blacklisted { left });
        }
        let running = self.running(ask.class);
        let offered = self.offered(ask.class, now);
        let fresh = match offered {
            Some((..=0, _)) => return Err(PassedOver::NoExecutors),
            Some((offered, _)) if offered <= running => return Err(PassedOver::Full { offered, running }),
            Some((_, counts)) => counts,
            None => 0.0,
        };
        Ok(Standing {
            answers: !(ask.is_open)(&self.address.hotkey),
            rested: self.cooling_until.is_none_or(|until| until <= now),
            reliability_tenths: self.reliability.numbers(now, half_life).tenths(),
            known: offered.is_some(),
            running: Reverse(running),
            // It is between 0 and 1.
            fresh_tenths: (fresh * 10.0).round() as u8,
        })
    }
}

impl Standing {
    /// What decides for `other`, which is not worse: the first difference, in words with the numbers.
    pub(super) fn behind(&self, other: &Standing) -> String {
        let tenths = |n: u8| f64::from(n) / 10.0;
        if self.answers != other.answers {
            return "its breaker is open".to_owned();
        }
        if self.rested != other.rested {
            return format!("it declined, or could not be reached, within the last {} s", COOL_DOWN.as_secs());
        }
        if self.reliability_tenths != other.reliability_tenths {
            let [mine, others] = [self, other].map(|s| tenths(s.reliability_tenths));
            return format!("its reliability is {mine:.1}, that of the first {others:.1}");
        }
        if self.known != other.known {
            return "its manifest is not known".to_owned();
        }
        if self.running != other.running {
            let [Reverse(mine), Reverse(others)] = [self.running, other.running];
            return format!("it runs {mine} of our jobs, the first {others}");
        }
        if self.fresh_tenths != other.fresh_tenths {
            let [mine, others] = [self, other].map(|s| tenths(s.fresh_tenths));
            return format!("its manifest counts {mine:.1} by its age, that of the first {others:.1}");
        }
        "it is as good as the first: they take turns".to_owned()
    }
}

impl std::fmt::Display for PassedOver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotTrusted => f.write_str("it is no trusted miner"),
            Self::Trusted => f.write_str("it is a trusted miner, and the job does not ask for one"),
            Self::Tried => f.write_str("it was asked before"),
            Self::Blacklisted { left } => {
                write!(f, "it was reported for cheating and is blacklisted for {} s more", left.as_secs())
            }
            Self::NoExecutors => f.write_str("it has just said that it has no executor of the class"),
            Self::Full { offered, running } => {
                write!(f, "it is full: {running} of our jobs run there, it has {offered} executors of the class")
            }
        }
    }
}
