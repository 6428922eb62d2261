//! What is shown of the miners, and why one is passed over: the same comparison that chooses, in words and numbers.
//! Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Routing;
use super::miner::{Ask, MinerState};
use super::reliability::{ReliabilityNumbers, ShownIncident};
use super::standing::Standing;
use crate::identity::PublicKey;
use crate::protocol::ExecutorClass;

/// How the breaker of a miner is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerView {
    /// Whether the miner is left alone.
    pub is_open: bool,
    /// In words with the numbers.
    pub line: String,
}

/// One miner.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MinerView {
    /// Its hotkey, SS58.
    pub hotkey: String,
    /// Its host name or IP address.
    pub address: String,
    /// TCP port.
    pub port: u16,
    /// Whether it is dialled with TLS.
    pub tls: bool,
    /// Whether it gets the jobs that ask for a trusted miner, and no others.
    pub trusted: bool,
    /// Executors by class, of its last manifest; `None` if that is not known.
    pub manifest: Option<BTreeMap<&'static str, i64>>,
    /// How old that is.
    pub manifest_age_seconds: Option<u64>,
    /// Our jobs there, by class.
    pub running: BTreeMap<&'static str, i64>,
    /// How dependable it was.
    #[serde(flatten)]
    pub numbers: ReliabilityNumbers,
    /// Its breaker; `None` if it was never called.
    pub breaker: Option<String>,
    /// How long others are still preferred after it declined or could not be reached.
    pub cooling_seconds: Option<u64>,
    /// How long it still gets no job after a report of cheating.
    pub blacklisted_seconds: Option<u64>,
    /// Its last incident.
    pub last_error: Option<ShownIncident>,
}

/// What a miner is to jobs of one class.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassView {
    /// The class.
    pub class: &'static str,
    /// After how many others it would be asked; `None` if it is passed over.
    pub after: Option<usize>,
    /// Miners that can be asked.
    pub of: usize,
    /// Why it is passed over, or what decides for the first; `None` if it is the first.
    pub why: Option<String>,
    /// The numbers that are compared, in their order.
    pub compared: Option<String>,
    /// The miner that would be asked first.
    pub first: Option<String>,
}

/// One miner with all that decides about it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExplainedMiner {
    /// The miner.
    pub miner: MinerView,
    /// Its last incidents, the newest first.
    pub incidents: Vec<ShownIncident>,
    /// What it is to jobs of each class; of a trusted miner, to those that ask for one.
    pub classes: Vec<ClassView>,
}

impl Routing {
    /// All miners, in the order of the list that names them.
    pub fn miners(&self, breaker: &dyn Fn(&PublicKey) -> Option<BreakerView>, now: Instant) -> Vec<MinerView> {
        self.miners.iter().map(|miner| miner.view(breaker, self.half_life, now)).collect()
    }

    /// One miner, and what it is to jobs of each class; `None` if it is not in the table.
    pub fn explain(
        &self,
        hotkey: &PublicKey,
        breaker: &dyn Fn(&PublicKey) -> Option<BreakerView>,
        now: Instant,
    ) -> Option<ExplainedMiner> {
        let miner = self.miners.iter().find(|miner| miner.address.hotkey == *hotkey)?;
        let classes = ExecutorClass::ALL.iter().map(|class| self.class_view(miner, *class, breaker, now)).collect();
        Some(ExplainedMiner {
            miner: miner.view(breaker, self.half_life, now),
            incidents: miner.reliability.shown(now, self.half_life),
            classes,
        })
    }

    fn class_view(
        &self,
        miner: &MinerState,
        class: ExecutorClass,
        breaker: &dyn Fn(&PublicKey) -> Option<BreakerView>,
        now: Instant,
    ) -> ClassView {
        let is_open = |hotkey: &PublicKey| breaker(hotkey).is_some_and(|breaker| breaker.is_open);
        let ask = Ask { class, trusted: miner.address.trusted, tried: &[], is_open: &is_open };
        let standing = |miner: &MinerState| miner.standing(&ask, self.half_life, now);
        let others: Vec<(Standing, &MinerState)> =
            self.miners.iter().filter_map(|other| Some((standing(other).ok()?, other))).collect();
        let best = others.iter().max_by_key(|(standing, _)| *standing);
        let mut view = ClassView {
            class: class.as_str(),
            after: None,
            of: others.len(),
            why: None,
            compared: None,
            first: best.map(|(_, first)| first.address.hotkey.to_ss58()),
        };
        match standing(miner) {
            Err(passed_over) => view.why = Some(passed_over.to_string()),
            Ok(mine) => {
                let after = others.iter().filter(|(other, _)| *other > mine).count();
                view.after = Some(after);
                view.compared = Some(mine.to_string());
                view.why = best.filter(|_| after > 0).map(|(first, _)| mine.behind(first));
                if after == 0 {
                    view.first = Some(miner.address.hotkey.to_ss58());
                }
            }
        }
        view
    }
}

impl MinerState {
    fn view(
        &self,
        breaker: &dyn Fn(&PublicKey) -> Option<BreakerView>,
        half_life: Duration,
        now: Instant,
    ) -> MinerView {
        let left = |until: Option<Instant>| Some(until?.checked_duration_since(now)?.as_secs());
        let by_name = |counts: &std::collections::HashMap<ExecutorClass, i64>| {
            counts.iter().filter(|(_, count)| **count != 0).map(|(class, count)| (class.as_str(), *count)).collect()
        };
        let super::miner::MinerAddress { hotkey, address, port, trusted, tls } = &self.address;
        MinerView {
            hotkey: hotkey.to_ss58(),
            address: address.clone(),
            port: *port,
            tls: *tls,
            trusted: *trusted,
            manifest: self.manifest.as_ref().map(|(manifest, _)| by_name(manifest)),
            manifest_age_seconds: self.manifest.as_ref().map(|(_, at)| now.saturating_duration_since(*at).as_secs()),
            running: by_name(&self.running),
            numbers: self.reliability.numbers(now, half_life),
            breaker: breaker(hotkey).map(|breaker| breaker.line),
            cooling_seconds: left(self.cooling_until),
            blacklisted_seconds: self.blacklisted(now).map(|left| left.as_secs()),
            last_error: self.reliability.shown(now, half_life).into_iter().next(),
        }
    }
}

impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { answers, rested, reliability_tenths, known, running, fresh_tenths } = *self;
        let yes = |yes| if yes { "yes" } else { "no" };
        write!(
            f,
            "answers {}, rested {}, reliability {:.1}, manifest known {}, running {}, manifest {:.1} by its age",
            yes(answers),
            yes(rested),
            f64::from(reliability_tenths) / 10.0,
            yes(known),
            running.0,
            f64::from(fresh_tenths) / 10.0
        )
    }
}
