//! What bounds the database: how much of each user is open, and how long jobs are kept that have ended.

use std::time::Duration;

use rusqlite::{OptionalExtension, params};

use super::{Batch, JobStore, NewJob};
use crate::store::StoreError;

/// Jobs that are forgotten in one transaction, and bytes of them: some tens of milliseconds of the disk.
const FORGET: (usize, u64) = (256, 32 << 20);

/// Free pages that are given back to the system in one go: 8 MiB.
const SHRINK_PAGES: u64 = 2048;

/// So many free pages stay, or an eighth of the file: new jobs need them again.
const SPARE_PAGES: u64 = 256;

/// How much of one user may be open: jobs that have not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Jobs at a time.
    pub jobs: u64,
    /// Bytes of their messages.
    pub bytes: u64,
}

impl Quota {
    /// No bound.
    pub const NONE: Self = Self { jobs: u64::MAX, bytes: u64::MAX };
}

/// What became of a job that was to be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InsertOutcome {
    /// It is there.
    Stored,
    /// Its user has as many open jobs as are allowed, or bytes of them: so many of each.
    OverQuota {
        /// Open jobs of the user.
        jobs: u64,
        /// Bytes of their messages.
        bytes: u64,
    },
}

/// How many of the jobs that have ended are kept; the oldest ends are forgotten first. Open jobs are always kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Jobs.
    pub jobs: u64,
    /// For how long after their end.
    pub time: Duration,
    /// Bytes of their messages and of what was reported of them.
    pub bytes: u64,
}

/// What was forgotten, and when there is more to forget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forgotten {
    /// Jobs.
    pub jobs: usize,
    /// When the next one is to be forgotten, in microseconds since 1970, unless more jobs end before; none if no job
    /// has ended.
    pub next: Option<i64>,
}

impl JobStore {
    /// Gives free pages of the file back to the system, 8 MiB at most; says whether there are more to give. Blocks on
    /// the disk.
    ///
    /// # Errors
    /// SQLite's.
    pub fn shrink(&mut self) -> Result<bool, StoreError> {
        let number = |name: &str| self.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let pages = |number: i64| u64::try_from(number).unwrap_or(0);
        let (free, all) = (pages(number("freelist_count")?), pages(number("page_count")?));
        let spare = SPARE_PAGES.max(all / 8);
        if free <= spare {
            return Ok(false);
        }
        let given = (free - spare / 2).min(SHRINK_PAGES);
        // It gives one page back for each step.
        let mut statement = self.connection.prepare(&format!("PRAGMA incremental_vacuum({given})"))?;
        let mut steps = statement.query([])?;
        while steps.next()?.is_some() {}
        Ok(free - given > spare)
    }
}

impl Batch<'_> {
    /// Adds a job, with the status [`SENT`](super::SENT), if its user's quota allows it.
    ///
    /// # Errors
    /// SQLite's, also when there is a job of that uuid.
    pub fn insert(&self, job: &NewJob, quota: Quota) -> Result<InsertOutcome, StoreError> {
        let NewJob { uuid, user, validator, request, tag, created_at } = job;
        let open: Option<(i64, i64)> = self
            .0
            .prepare_cached("SELECT jobs, bytes FROM open_jobs WHERE user = ?")?
            .query_row(params![user], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let (jobs, bytes) = open.unwrap_or_default();
        let (jobs, bytes) = (u64::try_from(jobs).unwrap_or(0), u64::try_from(bytes).unwrap_or(0));
        if jobs >= quota.jobs || bytes.saturating_add(request.len() as u64) > quota.bytes {
            return Ok(InsertOutcome::OverQuota { jobs, bytes });
        }
        self.0
            .prepare_cached(
                "INSERT INTO jobs (uuid, user, validator, request, tag, created_at) VALUES (?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![uuid, user, validator, request, tag, created_at])?;
        self.0.prepare_cached("INSERT INTO statuses (job, status, at, late) VALUES (?, ?, ?, 0)")?.execute(params![
            uuid,
            super::SENT,
            created_at
        ])?;
        Ok(InsertOutcome::Stored)
    }

    /// Notes that the user of a job has reported it as cheated; `false` if that is noted already.
    ///
    /// # Errors
    /// SQLite's.
    pub fn report_cheat(&self, job: &str, trusted_job: &str, at: i64) -> Result<bool, StoreError> {
        let added = self
            .0
            .prepare_cached("INSERT INTO cheats (job, trusted_job, at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")?
            .execute(params![job, trusted_job, at])?;
        Ok(added > 0)
    }

    /// Forgets jobs that have ended and are not to be kept at `now` (microseconds since 1970): so many as one
    /// transaction can do away with. If it forgot any there may be more.
    ///
    /// # Errors
    /// SQLite's.
    pub fn forget(&self, keep: &Keep, now: i64) -> Result<Forgotten, StoreError> {
        let (mut jobs, mut bytes): (u64, u64) = self
            .0
            .prepare_cached("SELECT count(*), total(bytes) FROM ended")?
            .query_row([], |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, f64>(1)? as u64)))?;
        let keep_micros = i64::try_from(keep.time.as_micros()).unwrap_or(i64::MAX);
        let mut statement = self.0.prepare_cached("SELECT job, at, bytes FROM ended ORDER BY at, job LIMIT ?")?;
        let oldest = statement.query_map(params![FORGET.0 as i64 + 1], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)? as u64))
        })?;
        let (mut gone, mut gone_bytes) = (Vec::new(), 0);
        let mut next = None;
        for row in oldest {
            let (job, at, of_job) = row?;
            let until = at.saturating_add(keep_micros);
            let is_over = jobs > keep.jobs || bytes > keep.bytes || until <= now;
            if !is_over || gone.len() == FORGET.0 || gone_bytes >= FORGET.1 {
                next = Some(until);
                break;
            }
            (jobs, bytes, gone_bytes) = (jobs - 1, bytes.saturating_sub(of_job), gone_bytes + of_job);
            gone.push(job);
        }
        for table in ["statuses WHERE job", "cheats WHERE job", "ended WHERE job", "jobs WHERE uuid"] {
            let mut delete = self.0.prepare_cached(&format!("DELETE FROM {table} = ?"))?;
            for job in &gone {
                delete.execute(params![job])?;
            }
        }
        Ok(Forgotten { jobs: gone.len(), next })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{new_job, status};
    use super::*;
    use crate::store::jobs::NewStatus;

    const ALL: Keep = Keep { jobs: u64::MAX, time: Duration::MAX, bytes: u64::MAX };

    /// Ten jobs, the first nine of which have ended, at 100, 101, …
    fn ten(store: &mut JobStore, request: &str) {
        let batch = store.begin().unwrap();
        for n in 0..10 {
            let uuid = n.to_string();
            let request = request.to_owned();
            batch.insert(&NewJob { request, ..new_job(&uuid, "user", n) }, Quota::NONE).unwrap();
            if n < 9 {
                batch.add_status(&NewStatus { at: 100 + n, ..status(&uuid, "completed", true) }).unwrap();
            }
        }
        batch.commit().unwrap();
    }

    fn left(store: &mut JobStore) -> Vec<String> {
        let query = super::super::JobQuery { user: "user".to_owned(), page_size: 100, ..Default::default() };
        store.begin().unwrap().jobs(&query).unwrap().jobs.into_iter().map(|(uuid, _)| uuid).collect()
    }

    fn forget(store: &mut JobStore, keep: &Keep, now: i64) -> Forgotten {
        let batch = store.begin().unwrap();
        let forgotten = batch.forget(keep, now).unwrap();
        batch.commit().unwrap();
        forgotten
    }

    #[test]
    fn the_oldest_ends_are_forgotten_by_number_time_and_bytes_and_open_jobs_never() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = JobStore::open(folder.path()).unwrap();
        ten(&mut store, "{}");
        assert_eq!(forget(&mut store, &ALL, i64::MAX - 1), Forgotten { jobs: 0, next: Some(i64::MAX) });
        let micros = Duration::from_micros;
        let time = Keep { time: micros(10), ..ALL };
        assert_eq!(forget(&mut store, &time, 111), Forgotten { jobs: 2, next: Some(112) });
        assert_eq!(left(&mut store), ["2", "3", "4", "5", "6", "7", "8", "9"]);
        assert_eq!(forget(&mut store, &Keep { jobs: 5, ..ALL }, 0).jobs, 2);
        let each = "{}".len() as u64 + status("", "", true).metadata.unwrap().len() as u64;
        assert_eq!(forget(&mut store, &Keep { bytes: 3 * each, ..ALL }, 0).jobs, 2);
        assert_eq!(left(&mut store), ["6", "7", "8", "9"]);
        assert_eq!(forget(&mut store, &Keep { jobs: 0, ..ALL }, 0), Forgotten { jobs: 3, next: None });
        assert_eq!(left(&mut store), ["9"]);
        let left: i64 = store.connection.query_row("SELECT count(*) FROM statuses", [], |row| row.get(0)).unwrap();
        assert_eq!(left, 1, "statuses of forgotten jobs");
    }

    #[test]
    fn the_file_shrinks_and_keeps_some_room() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = JobStore::open(folder.path()).unwrap();
        ten(&mut store, &"x".repeat(1 << 20));
        let size = |store: &JobStore| {
            // What is in the log goes into the file.
            store.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
            std::fs::metadata(folder.path().join("facilitator.db")).unwrap().len()
        };
        let full = size(&store);
        assert!(full > 10 << 20, "{full}");
        assert!(!store.shrink().unwrap(), "nothing is free");
        forget(&mut store, &Keep { jobs: 0, ..ALL }, 0);
        while store.shrink().unwrap() {}
        let less = size(&store);
        assert!(less < 3 << 20, "{less}");
        assert_eq!(left(&mut store), ["9"]);
    }

    #[test]
    fn a_users_open_jobs_are_counted_and_ended_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = JobStore::open(folder.path()).unwrap();
        let quota = Quota { jobs: 2, bytes: 10 };
        let batch = store.begin().unwrap();
        let add = |uuid: &str, user: &str, request: &str| {
            batch.insert(&NewJob { request: request.to_owned(), ..new_job(uuid, user, 1) }, quota).unwrap()
        };
        assert_eq!(add("a", "user", "12345"), InsertOutcome::Stored);
        assert_eq!(add("b", "user", "123456"), InsertOutcome::OverQuota { jobs: 1, bytes: 5 });
        assert_eq!(add("b", "user", "12345"), InsertOutcome::Stored);
        assert_eq!(add("c", "user", ""), InsertOutcome::OverQuota { jobs: 2, bytes: 10 });
        assert_eq!(add("c", "other", "1234567890"), InsertOutcome::Stored);
        batch.add_status(&status("a", "failed", true)).unwrap();
        batch.add_status(&status("a", "completed", true)).unwrap();
        assert_eq!(add("d", "user", ""), InsertOutcome::Stored);
        assert_eq!(add("e", "user", ""), InsertOutcome::OverQuota { jobs: 2, bytes: 5 });
        batch.commit().unwrap();
        forget(&mut store, &Keep { jobs: 0, ..ALL }, 0);
        drop(store);
        let mut store = JobStore::open(folder.path()).unwrap();
        let batch = store.begin().unwrap();
        let more = batch.insert(&new_job("e", "user", 1), quota).unwrap();
        assert_eq!(more, InsertOutcome::OverQuota { jobs: 2, bytes: 5 });
    }
}
