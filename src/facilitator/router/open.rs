//! Jobs that a validator has taken up and that have not ended: when each was last heard of, and when that is too long
//! ago.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::identity::PublicKey;

/// The jobs, by uuid.
#[derive(Debug, Default)]
pub(super) struct OpenJobs {
    jobs: HashMap<String, OpenJob>,
    /// The deadline of each.
    due: BTreeSet<(Instant, String)>,
}

#[derive(Debug)]
struct OpenJob {
    validator: PublicKey,
    /// How long nothing may be heard of it.
    limit: Duration,
    due: Instant,
}

impl OpenJobs {
    /// A job that may be silent for `limit`, the first time until `due`.
    pub(super) fn insert(&mut self, uuid: String, validator: PublicKey, limit: Duration, due: Instant) {
        self.ended(&uuid);
        self.due.insert((due, uuid.clone()));
        self.jobs.insert(uuid, OpenJob { validator, limit, due });
    }

    /// The validator has reported on a job; about another's it has nothing to report.
    pub(super) fn reported_on(&mut self, now: Instant, uuid: &str, validator: PublicKey) {
        if let Some(job) = self.jobs.get(uuid)
            && job.validator == validator
        {
            let limit = job.limit;
            self.insert(uuid.to_owned(), validator, limit, now + limit);
        }
    }

    /// A job has ended, and the store knows it.
    pub(super) fn ended(&mut self, uuid: &str) {
        if let Some(job) = self.jobs.remove(uuid) {
            self.due.remove(&(job.due, uuid.to_owned()));
        }
    }

    /// Jobs that have been silent for too long, with the limit of each. They stay, with a new deadline, until the store
    /// knows of their end: so what it could not store is tried again.
    pub(super) fn take_silent(&mut self, now: Instant) -> Vec<(String, PublicKey, Duration)> {
        let due = self.due.iter().take_while(|(due, _)| *due <= now);
        let silent: Vec<_> = due
            .filter_map(|(_, uuid)| self.jobs.get(uuid).map(|job| (uuid.clone(), job.validator, job.limit)))
            .collect();
        for (uuid, validator, limit) in &silent {
            self.insert(uuid.clone(), *validator, *limit, now + *limit);
        }
        silent
    }

    /// When the next job has been silent for too long.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }
}
