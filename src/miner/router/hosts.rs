//! What happens to the hosts that executors run on, and which of them takes a job. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::host::{Host, HostStatus, slots};
use super::io::{Action, HostPlan};
use super::job::JobKey;
use super::state::Router;
use crate::base::now::Now;
use crate::miner::check::{Room, Trials, UNKNOWN};
use crate::miner::executor_pool::{Busy, SlotCounts};
use crate::miner::host::HostName;
use crate::miner::placement::{Candidate, listed_name};
use crate::ops::errors::ErrorClass;
use crate::protocol::ExecutorClass;

/// Why no host takes a job.
#[derive(Debug)]
pub(super) enum NoHost {
    /// None that has executors of the class works, as the first of them for this reason.
    Down(String),
    /// Their slots are taken.
    Busy(Busy),
}

impl Router {
    /// At the start every host counts as one that works, until its first check says otherwise.
    pub(super) fn first_hosts(plans: Vec<HostPlan>) -> BTreeMap<HostName, Host> {
        plans.into_iter().map(|plan| (plan.name, Host::new(plan, Ok(String::new())))).collect()
    }

    /// From now on there are these hosts with these slots. What was removed drains; what is new, or has another engine
    /// now, has to answer first.
    pub(super) fn set_hosts(&mut self, plans: Vec<HostPlan>) {
        self.pool.declare(slots(&plans));
        self.hosts.values_mut().for_each(|host| host.removed = true);
        for plan in plans {
            match self.hosts.get_mut(&plan.name) {
                Some(host) if host.place == plan.engine => (host.address, host.removed) = (plan.address, false),
                _ => drop(self.hosts.insert(plan.name, Host::new(plan, Err(UNKNOWN.to_owned())))),
            }
        }
        for (name, host) in self.hosts.iter().filter(|(_, host)| host.removed) {
            log::info!("host {name} ({}) is not in the settings any more: it takes no new job", host.address);
        }
        self.release_drained();
    }

    /// Lets go of hosts that are not in the settings any more and have nothing left.
    pub(super) fn release_drained(&mut self) {
        let places: BTreeSet<HostName> = self.pool.places().map(|(host, _)| host).collect();
        self.hosts.retain(|name, host| {
            let stays = !host.removed || places.contains(name);
            if !stays {
                log::info!("host {name} ({}) has nothing left of this miner", host.address);
                self.out.push(Action::Release(*name));
            }
            stays
        });
    }

    /// How jobs run on each host that has answered.
    pub fn answering(&self) -> BTreeMap<HostName, String> {
        self.hosts.iter().filter_map(|(name, host)| Some((*name, host.engine.clone().ok()?))).collect()
    }

    /// A check of a host has ended; the next has to by `due`.
    pub(super) fn checked(&mut self, name: HostName, found: Result<String, String>, images: Vec<String>, due: Instant) {
        let Some(host) = self.hosts.get_mut(&name) else { return };
        if found != host.engine && found.is_ok() {
            // What the last jobs met may have been the same.
            (host.trouble, host.trials) = (None, Trials::default());
        }
        host.engine = found;
        host.images = images.iter().map(|image| listed_name(image)).collect();
        host.check_due = Some(due);
    }

    /// A look at what executors have left on a host has ended; the next has to by `due`.
    pub(super) fn reaped(&mut self, name: HostName, trouble: Option<String>, due: Instant) {
        if let Some(host) = self.hosts.get_mut(&name) {
            (host.reaper_trouble, host.reaper_due) = (trouble, Some(due));
        }
    }

    /// What should have reported by now and has not is in trouble.
    pub(super) fn expire_checks(&mut self, now: Now) {
        let is_due = |due: &mut Instant| *due <= now.mono;
        for (name, host) in &mut self.hosts {
            if host.check_due.take_if(is_due).is_some() {
                let what = format!("host {name}: its check does not end, so no job is taken there");
                self.out.push(Action::Error(ErrorClass::Reconnect, "host", Some(*name), what));
                host.engine = Err("its check does not end".to_owned());
            }
            if host.reaper_due.take_if(is_due).is_some() {
                host.reaper_trouble = Some("a look at what executors have left there does not end".to_owned());
            }
        }
    }

    /// When [`Router::expire_checks`] has something to do.
    pub(super) fn next_check_due(&self) -> Option<Instant> {
        self.hosts.values().flat_map(|host| [host.check_due, host.reaper_due]).flatten().min()
    }

    /// The host for a job of the class.
    pub(super) fn place(
        &mut self,
        class: ExecutorClass,
        image: Option<&str>,
        now: Instant,
    ) -> Result<HostName, NoHost> {
        let counts = self.pool.all_counts();
        let (mut candidates, mut of_class, mut down) = (Vec::new(), SlotCounts::default(), None);
        let image = image.map(listed_name);
        let mut all = BTreeMap::<HostName, SlotCounts>::new();
        counts.iter().for_each(|((name, _), slots)| *all.entry(*name).or_default() += *slots);
        let mut works = false;
        for ((name, _), slots) in counts.iter().filter(|((_, of), _)| *of == class) {
            let Some(host) = self.hosts.get(name) else { continue };
            if host.room(now) == Room::Nothing {
                down = down.or_else(|| host.why().map(|why| format!("{name}: {why}")));
                continue;
            }
            works = true;
            of_class += *slots;
            if slots.free > 0 {
                let of_host = all.get(name).copied().unwrap_or_default();
                candidates.push(Candidate {
                    host: *name,
                    taken: of_host.leased() + of_host.quarantined,
                    slots: of_host.declared + of_host.draining,
                    has_image: image.as_ref().is_some_and(|image| host.images.contains(image)),
                });
            }
        }
        match (self.placement.choose(candidates), down) {
            (Some(host), _) => Ok(host),
            (None, Some(why)) if !works => Err(NoHost::Down(why)),
            (None, _) => Err(NoHost::Busy(Busy { class, counts: of_class })),
        }
    }

    /// How the slots of a class are used on the hosts that work.
    pub(super) fn usable(&self, class: ExecutorClass, now: Instant) -> SlotCounts {
        let mut usable = SlotCounts::default();
        for ((name, of), slots) in self.pool.all_counts() {
            if of == class && self.hosts.get(&name).is_some_and(|host| host.room(now) > Room::Nothing) {
                usable += slots;
            }
        }
        usable
    }

    /// The classes on offer and how many executors of each: all that work, busy or not; none while paused.
    pub(super) fn offered(&self, now: Instant) -> BTreeMap<ExecutorClass, usize> {
        let mut offered = BTreeMap::new();
        if self.paused.is_some() {
            return offered;
        }
        for ((name, class), slots) in self.pool.all_counts() {
            let room = self.hosts.get(&name).map_or(Room::Nothing, |host| host.room(now));
            let count = match room {
                Room::Nothing => continue,
                Room::OneJob => slots.offered().min(1),
                Room::AllSlots => slots.offered(),
            };
            *offered.entry(class).or_default() += count;
        }
        offered
    }

    /// A job was given to the host.
    pub(super) fn host_begins(&mut self, name: HostName, now: Now) {
        if let Some(host) = self.hosts.get_mut(&name) {
            host.trials.begun(now.mono);
        }
    }

    /// A job has come as far as a host that works lets it come.
    pub(super) fn host_worked(&mut self, key: &JobKey) {
        let name = self.jobs.get(key).map(|job| job.placed.host);
        let Some((name, host)) = name.and_then(|name| Some((name, self.hosts.get_mut(&name)?))) else { return };
        if host.trials.why().is_some() {
            log::info!("host {name} works again");
        }
        host.trials.worked();
        host.trouble = None;
    }

    /// A host itself has failed a job.
    pub(super) fn host_failed(&mut self, name: HostName, why: &str, now: Now) {
        let Some(host) = self.hosts.get_mut(&name) else { return };
        if host.trials.failed(why, now.mono) {
            let what = format!("host {name} gets no job for a while: {}", host.trials.why().unwrap_or_default());
            self.out.push(Action::Error(ErrorClass::Reconnect, "host", Some(name), what));
        }
    }

    /// The machine of a job could not do its part.
    pub(super) fn machine_failed(&mut self, name: HostName, key: &JobKey, why: &str, now: Now) {
        let what = format!("job {}: host {name} could not do its part: {why}", key.uuid);
        self.out.push(Action::Error(ErrorClass::Fatal, "host", Some(name), what));
        if let Some(host) = self.hosts.get_mut(&name) {
            host.trouble = Some(why.to_owned());
        }
        self.host_failed(name, why, now);
    }

    /// All hosts, for people.
    pub(super) fn host_statuses(&self) -> Vec<HostStatus> {
        let counts = self.pool.all_counts();
        let status = |(name, host): (&HostName, &Host)| HostStatus {
            name: *name,
            address: host.address.clone(),
            state: host.state(),
            why: host.why().map(str::to_owned),
            jobs_run: host.engine.clone().unwrap_or_default(),
            trouble: host.trouble.clone(),
            reaper_trouble: host.reaper_trouble.clone(),
            executors: counts.iter().filter(|((of, _), _)| of == name).map(|((_, class), s)| (*class, *s)).collect(),
        };
        self.hosts.iter().map(status).collect()
    }
}
