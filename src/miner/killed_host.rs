//! The looks of a miner's watcher at one host of the miner that was killed: what that has left there goes, unless it is
//! of an executor that lives.
//!
//! Owner: [`watch`](super::watch()), with a thread `watch-n` for each host, so that one that does not answer holds up
//! no other. Blocks in: the tools of the back ends, each with a limit of its own, and the pauses between two looks.
//! Kick: the watcher's stop signal, for both. Ends: when nothing is left, or could not be removed for too long, or with
//! the kick.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use super::config::HostConfig;
use super::executor_manager::orphans::Orphans;
use super::executor_manager::{ExecutorBackend, Marked, Owner, living_processes};
use super::host::HostName;
use super::rounds::{Look, Rounds};
use crate::base::shutdown::Shutdown;
use crate::proc::docker::EngineAddress;

type Backend = Arc<dyn ExecutorBackend>;

/// A host of a miner that was killed, as one of its settings had it.
pub(super) struct KilledHost {
    owner: Owner,
    name: HostName,
    engine: EngineAddress,
    /// By which it had executors there, by any of its settings.
    backends: Vec<Backend>,
    /// That may know beside these which executors live, because their containers may be in the same engine.
    others: Vec<Backend>,
    /// Troubles that were told.
    told: BTreeSet<String>,
}

impl KilledHost {
    /// The hosts of all these settings, this machine first. One that has another engine by other settings is another
    /// host: what the miner has left in the first engine is still there.
    pub(super) fn all(owner: &Owner, hosts: Vec<HostConfig>) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for HostConfig { name, engine, backend, .. } in hosts {
            match all.iter_mut().find(|known| known.name == name && known.engine == engine) {
                Some(known) => known.backends.push(backend),
                None => {
                    let (owner, backends) = (owner.clone(), vec![backend]);
                    all.push(Self { owner, name, engine, backends, others: Vec::new(), told: BTreeSet::new() });
                }
            }
        }
        all.sort_by_key(|host| host.name != HostName::LOCAL);
        let local: Vec<_> =
            all.iter().filter(|host| host.name == HostName::LOCAL).flat_map(|host| host.backends.clone()).collect();
        let here = |host: &&mut Self| host.name != HostName::LOCAL && host.engine.is_on_this_machine();
        all.iter_mut().filter(here).for_each(|host| host.others.clone_from(&local));
        all
    }

    /// Looks and removes until nothing is left there.
    pub(super) fn run(mut self, stop: &Shutdown) {
        let mut rounds = Rounds::new(Instant::now());
        // All that it and earlier ones have made is of the dead; what a later process makes is its own.
        let mut orphans = Orphans::new(self.owner.epoch + 1);
        while let Some(pause) = rounds.next(Instant::now()) {
            if stop.wait(pause) {
                return;
            }
            let seen = self.look(&mut orphans, stop);
            rounds.looked(seen, Instant::now());
        }
        log::info!("host {}: the watcher has done: {}", self.name, rounds.conclusion());
    }

    /// Looks once and removes what is to go.
    fn look(&mut self, orphans: &mut Orphans, stop: &Shutdown) -> Look {
        let (found, mut all_found) = self.find(stop);
        // Asked for after it was found: what begins to live meanwhile is not removed. No answer is no leave to remove.
        let living = match self.living(stop) {
            Ok(living) => living,
            Err(why) => {
                self.tell(stop, format!("it is not known which executors live, so nothing is removed: {why}"));
                return Look::Left;
            }
        };
        let lives = found.keys().any(|marked| living.contains(&marked.run));
        let empty = found.is_empty();
        for orphan in orphans.of(found.keys().cloned().collect(), &living) {
            if stop.is_set() {
                return Look::Left;
            }
            let Marked { kind, id, run, .. } = &orphan;
            let (name, kind) = (self.name, kind.as_str());
            match found[&orphan].remove(&orphan, stop) {
                Ok(()) => log::info!("host {name}: {kind} {id} of executor {run}: removed"),
                Err(left) => {
                    self.tell(stop, format!("{kind} {id} of executor {run} cannot be removed: {left}"));
                    all_found = false;
                }
            }
        }
        match (lives, all_found, empty) {
            (true, ..) => Look::Living,
            (_, false, _) => Look::Left,
            (_, _, true) => Look::Nothing,
            (..) => Look::Removed,
        }
    }

    /// What the miner has left there, with the back end that has found it; and whether all of them have answered.
    fn find(&mut self, stop: &Shutdown) -> (BTreeMap<Marked, Backend>, bool) {
        let (mut found, mut all) = (BTreeMap::new(), true);
        for backend in self.backends.clone() {
            match backend.find(&self.owner, stop) {
                Ok(of_it) => {
                    for marked in of_it.into_iter().filter(|marked| marked.epoch <= self.owner.epoch) {
                        found.entry(marked).or_insert_with(|| backend.clone());
                    }
                }
                Err(why) => {
                    self.tell(stop, format!("what is left is not known: {why}"));
                    all = false;
                }
            }
        }
        (found, all)
    }

    /// The executors that live by anybody who can tell.
    fn living(&self, stop: &Shutdown) -> Result<BTreeSet<String>, String> {
        // Whatever the settings say by now, executors may have been processes, with containers in any engine.
        let mut living = living_processes(&self.owner)?;
        for backend in self.backends.iter().chain(&self.others) {
            living.extend(backend.living(&self.owner, stop)?);
        }
        Ok(living)
    }

    /// Tells each trouble once; what a stop has cut short is none.
    fn tell(&mut self, stop: &Shutdown, text: String) {
        if !stop.is_set() && !self.told.contains(&text) {
            log::warn!("host {}: {text}", self.name);
            self.told.insert(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::base::lock::lock;
    use crate::miner::executor_manager::{ExecutorEnd, ExecutorError, ExecutorSpec, Leftover, LeftoverKind};
    use crate::proc::docker::SshPlace;

    /// Says what it was given.
    #[derive(Default)]
    struct Says {
        found: Vec<&'static str>,
        living: Vec<&'static str>,
        /// Whether it says who lives.
        silent: bool,
        removed: Mutex<Vec<String>>,
    }

    impl ExecutorBackend for Says {
        fn run(&self, _: &ExecutorSpec, _: &Shutdown) -> ExecutorEnd {
            Err(ExecutorError::Lost)
        }

        fn find(&self, _: &Owner, _: &Shutdown) -> Result<Vec<Marked>, String> {
            let marked = |run: &&str| Marked {
                kind: LeftoverKind::Container,
                id: format!("{run}'s"),
                run: (*run).to_owned(),
                epoch: if *run == "of the next" { 4 } else { 3 },
            };
            Ok(self.found.iter().map(marked).collect())
        }

        fn living(&self, _: &Owner, _: &Shutdown) -> Result<BTreeSet<String>, String> {
            match self.silent {
                true => Err("no answer".to_owned()),
                false => Ok(self.living.iter().map(|run| (*run).to_owned()).collect()),
            }
        }

        fn remove(&self, marked: &Marked, _: &Shutdown) -> Result<(), Leftover> {
            lock(&self.removed).push(marked.run.clone());
            Ok(())
        }
    }

    fn host(name: &str, engine: &str, backend: &Arc<Says>) -> HostConfig {
        HostConfig {
            name: name.parse().unwrap(),
            address: String::new(),
            engine: EngineAddress::parse(engine, None, &SshPlace::below("/nonexistent")).unwrap(),
            executors: vec![],
            backend: backend.clone(),
        }
    }

    fn owner() -> Owner {
        Owner::watched("5a:3").unwrap()
    }

    /// Looks once at each host.
    fn looks(hosts: Vec<HostConfig>) -> Vec<(String, Look)> {
        let look = |mut host: KilledHost| (host.name.to_string(), host.look(&mut Orphans::new(4), &Shutdown::new()));
        KilledHost::all(&owner(), hosts).into_iter().map(look).collect()
    }

    fn removed(backend: &Says) -> Vec<String> {
        lock(&backend.removed).clone()
    }

    #[test]
    fn what_lives_by_the_settings_of_the_start_stays_whatever_the_settings_are_now() {
        // Executors were processes, whose jobs' containers the engine of the present settings has.
        let then = Arc::new(Says { living: vec!["a"], ..Says::default() });
        let now = Arc::new(Says { found: vec!["a", "b", "of the next"], ..Says::default() });
        let seen = looks(vec![host("local", "local", &then), host("local", "local", &now)]);
        assert_eq!((seen, removed(&now)), (vec![("local".to_owned(), Look::Living)], vec!["b".to_owned()]));
    }

    #[test]
    fn nothing_is_removed_where_one_that_could_tell_does_not_say_who_lives() {
        let silent = || Arc::new(Says { silent: true, ..Says::default() });
        let finds = || Arc::new(Says { found: vec!["a"], ..Says::default() });
        let (here, there, own) = (finds(), finds(), finds());
        let left = |name: &str| (name.to_owned(), Look::Left);
        let hosts = vec![
            host("far", "unix:///run/far.sock", &there),
            host("local", "local", &here),
            host("local", "local", &silent()),
        ];
        assert_eq!(looks(hosts), [left("local"), left("far")], "another engine of this machine may be the same");
        assert!(removed(&here).is_empty() && removed(&there).is_empty());
        // But one host that does not answer is no reason to leave what is on another.
        let hosts = vec![host("far", "unix:///run/far.sock", &silent()), host("local", "local", &own)];
        assert_eq!(looks(hosts), [("local".to_owned(), Look::Removed), left("far")]);
        assert_eq!(removed(&own), ["a"]);
    }

    #[test]
    fn a_host_that_is_gone_or_elsewhere_now_is_looked_at_where_it_was() {
        let backends: Vec<_> = (0..4).map(|_| Arc::new(Says { found: vec!["a"], ..Says::default() })).collect();
        let (at_start, now) = (
            [host("gone", "unix:///g.sock", &backends[0]), host("moved", "unix:///1.sock", &backends[1])],
            [host("moved", "unix:///2.sock", &backends[2]), host("local", "local", &backends[3])],
        );
        let seen = looks(at_start.into_iter().chain(now).collect());
        let names: Vec<_> = seen.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["local", "gone", "moved", "moved"]);
        assert!(backends.iter().all(|backend| removed(backend) == ["a"]));
    }
}
