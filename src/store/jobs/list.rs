//! What a user can ask of the jobs: one, a page of them by filters, and how large each is before it is read.

use rusqlite::types::Value;
use rusqlite::{OptionalExtension, params, params_from_iter};

use super::{Batch, JobRow, StatusRow, job};
use crate::store::StoreError;

/// The status that the list sorts a job by: its last one that is no late one and known.
const NEWEST: &str = "(SELECT status FROM statuses WHERE job = uuid AND late = 0 AND status <> 'unknown'
                       ORDER BY rowid DESC LIMIT 1)";

/// A job with its size: that of its message and of what was reported of it.
const WITH_BYTES: &str = "uuid, octet_length(request)
                          + (SELECT total(octet_length(metadata)) FROM statuses WHERE job = uuid)";

/// Which jobs of a user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobQuery {
    /// Whose (SS58).
    pub user: String,
    /// Only that one.
    pub uuid: Option<String>,
    /// Only those with that tag.
    pub tag: Option<String>,
    /// Only those whose newest status is one of these; all if there is none.
    pub statuses: Vec<String>,
    /// The newest first, not last.
    pub newest_first: bool,
    /// The page, from 0.
    pub page: u64,
    /// Jobs of a page.
    pub page_size: u64,
}

/// A page of jobs, still unread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobList {
    /// Jobs of all pages.
    pub count: u64,
    /// The uuid of each and its bytes: of its message and of what was reported of it.
    pub jobs: Vec<(String, u64)>,
}

/// What is known of a job before it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobHead {
    /// Its bytes: of its message and of what was reported of it.
    pub bytes: u64,
    /// Its statuses that are not late and known.
    pub listed: u64,
    /// Its user has reported it as cheated.
    pub reported: bool,
}

impl Batch<'_> {
    /// What is known of a user's job without reading it.
    ///
    /// # Errors
    /// SQLite's.
    pub fn head(&self, user: &str, uuid: &str) -> Result<Option<JobHead>, StoreError> {
        let sql = format!(
            "SELECT {WITH_BYTES}, (SELECT count(*) FROM statuses WHERE job = uuid AND late = 0 AND status <> 'unknown'),
             EXISTS (SELECT 1 FROM cheats WHERE cheats.job = uuid) FROM jobs WHERE uuid = ? AND user = ?"
        );
        let head = self.0.prepare_cached(&sql)?.query_row(params![uuid, user], |row| {
            Ok(JobHead { bytes: size(row.get(1)?), listed: count(row.get(2)?), reported: row.get(3)? })
        });
        Ok(head.optional()?)
    }

    /// One job of a user, with or without the details of its statuses; another user's is not there.
    ///
    /// # Errors
    /// SQLite's.
    pub fn job(&self, user: &str, uuid: &str, details: bool) -> Result<Option<JobRow>, StoreError> {
        let found = self
            .0
            .prepare_cached(
                "SELECT uuid, user, validator, request, created_at, tag FROM jobs WHERE uuid = ? AND user = ?",
            )?
            .query_row(params![uuid, user], job)
            .optional()?;
        let Some(job) = found else { return Ok(None) };
        let statuses = self.statuses(&job.uuid, details)?;
        Ok(Some(JobRow { job, statuses, details_omitted: !details }))
    }

    /// A page of a user's jobs: their uuids, and how large each is.
    ///
    /// # Errors
    /// SQLite's.
    pub fn jobs(&self, query: &JobQuery) -> Result<JobList, StoreError> {
        let JobQuery { user, uuid, tag, statuses, newest_first, page, page_size } = query;
        let mut filter = "user = ?".to_owned();
        let mut values = vec![Value::Text(user.clone())];
        for (column, value) in [("uuid", uuid), ("tag", tag)] {
            if let Some(value) = value {
                filter += &format!(" AND {column} = ?");
                values.push(Value::Text(value.clone()));
            }
        }
        if !statuses.is_empty() {
            filter += &format!(" AND coalesce(ended, {NEWEST}) IN ({})", vec!["?"; statuses.len()].join(", "));
            values.extend(statuses.iter().cloned().map(Value::Text));
        }
        let total: i64 = self
            .0
            .prepare_cached(&format!("SELECT count(*) FROM jobs WHERE {filter}"))?
            .query_row(params_from_iter(&values), |row| row.get(0))?;
        let order = if *newest_first { "DESC" } else { "ASC" };
        let sql = format!(
            "SELECT {WITH_BYTES} FROM jobs WHERE {filter} ORDER BY created_at {order}, rowid {order} LIMIT ? OFFSET ?"
        );
        let offset = page.saturating_mul(*page_size);
        values.extend([*page_size, offset].map(|n| Value::Integer(i64::try_from(n).unwrap_or(i64::MAX))));
        let mut statement = self.0.prepare_cached(&sql)?;
        let jobs = statement.query_map(params_from_iter(&values), |row| Ok((row.get(0)?, size(row.get(1)?))))?;
        Ok(JobList { count: count(total), jobs: jobs.collect::<Result<_, _>>()? })
    }

    fn statuses(&self, uuid: &str, details: bool) -> Result<Vec<StatusRow>, StoreError> {
        let mut statement = self.0.prepare_cached(
            "SELECT status, CASE WHEN ? THEN metadata END, at, late FROM statuses WHERE job = ? ORDER BY rowid",
        )?;
        let rows = statement.query_map(params![details, uuid], |row| {
            Ok(StatusRow { status: row.get(0)?, metadata: row.get(1)?, at: row.get(2)?, late: row.get(3)? })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

/// What SQLite's `total` gives, and its sums with that.
fn size(bytes: f64) -> u64 {
    bytes as u64
}

fn count(rows: i64) -> u64 {
    u64::try_from(rows).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{new_job, status};
    use super::*;
    use crate::store::jobs::{JobStore, NewJob, NewStatus, Quota};

    fn uuids(batch: &Batch<'_>, change: impl FnOnce(&mut JobQuery)) -> (u64, Vec<String>) {
        let mut query = JobQuery { user: "user".to_owned(), page_size: 2, ..JobQuery::default() };
        change(&mut query);
        let list = batch.jobs(&query).unwrap();
        (list.count, list.jobs.into_iter().map(|(uuid, _)| uuid).collect())
    }

    #[test]
    fn pages_are_newest_last_and_only_ones_own() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = JobStore::open(folder.path()).unwrap();
        let batch = store.begin().unwrap();
        for n in 0..5 {
            let tag = if n % 2 == 0 { "even" } else { "" }.to_owned();
            batch.insert(&NewJob { tag, ..new_job(&n.to_string(), "user", n) }, Quota::NONE).unwrap();
        }
        batch.insert(&new_job("x", "other", 9), Quota::NONE).unwrap();
        batch.add_status(&status("3", "received", false)).unwrap();
        batch.add_status(&status("4", "failed", true)).unwrap();
        batch.add_status(&NewStatus { at: 9, ..status("4", "completed", true) }).unwrap();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(uuids(&batch, |_| {}), (5, names(&["0", "1"])));
        assert_eq!(uuids(&batch, |query| query.page = 2), (5, names(&["4"])));
        assert_eq!(uuids(&batch, |query| query.page = 3), (5, names(&[])));
        assert_eq!(uuids(&batch, |query| query.page = u64::MAX), (5, names(&[])));
        assert_eq!(uuids(&batch, |query| query.newest_first = true), (5, names(&["4", "3"])));
        assert_eq!(uuids(&batch, |query| query.tag = Some("even".to_owned())), (3, names(&["0", "2"])));
        assert_eq!(uuids(&batch, |query| query.uuid = Some("x".to_owned())), (0, names(&[])));
        for (statuses, found) in
            [(&["sent"][..], &["0", "1", "2"][..]), (&["received", "failed"], &["3", "4"]), (&["completed"], &[])]
        {
            let filter = |query: &mut JobQuery| {
                query.statuses = names(statuses);
                query.page_size = 9;
            };
            assert_eq!(uuids(&batch, filter), (found.len() as u64, names(found)), "{statuses:?}");
        }
        assert_eq!(batch.job("other", "0", true).unwrap(), None);
        assert_eq!(batch.head("other", "0").unwrap(), None);
    }

    #[test]
    fn a_job_says_how_large_it_is_before_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = JobStore::open(folder.path()).unwrap();
        let batch = store.begin().unwrap();
        let request = "ż".repeat(5000);
        batch.insert(&NewJob { request, ..new_job("a", "user", 1) }, Quota::NONE).unwrap();
        assert_eq!(batch.head("user", "a").unwrap().unwrap(), JobHead { bytes: 10_000, listed: 1, reported: false });
        let update = status("a", "completed", true);
        let bytes = 10_000 + update.metadata.as_ref().unwrap().len() as u64;
        batch.add_status(&update).unwrap();
        batch.add_status(&status("a", "failed", true)).unwrap();
        batch.add_status(&status("a", "unknown", false)).unwrap();
        assert!(batch.report_cheat("a", "b", 7).unwrap() && !batch.report_cheat("a", "c", 7).unwrap());
        let head = batch.head("user", "a").unwrap().unwrap();
        assert_eq!((head.listed, head.reported), (2, true));
        assert!(head.bytes > bytes, "what came late counts, too");
        let listed = batch.jobs(&JobQuery { user: "user".to_owned(), page_size: 1, ..JobQuery::default() }).unwrap();
        assert_eq!(listed.jobs, [("a".to_owned(), head.bytes)]);
        let whole = batch.job("user", "a", true).unwrap().unwrap();
        assert!(!whole.details_omitted && whole.statuses[1].metadata.is_some());
        let short = batch.job("user", "a", false).unwrap().unwrap();
        assert!(short.details_omitted && short.statuses.iter().all(|status| status.metadata.is_none()));
    }
}
