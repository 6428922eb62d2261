//! What a batch keeps, as rows of its store and back; and a recorded batch judged again.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::config::BatchConfig;
use super::error::BatchError;
use super::job::{Judge, judged};
use super::kept::{KeptJob, KeptState, Place, PlannedRow};
use super::line::JobLine;
use super::state::Ending;
use super::summary::{Summary, Tally};
use crate::protocol::{FacilitatorToValidator, JobResultDetails, MinerToValidator, V0JobFinishedRequest, V2JobRequest};
use crate::store::batch::{BatchJobRow, BatchJobState, BatchRow, BatchStore, BatchWrite, NO_JOB};
use crate::validator::job_messages::outcome_of;
use crate::validator::status::Outcome;

/// Bytes of an answer that are kept, so that it can be judged again: two outputs of a million characters of a byte.
/// Longer ones are judged once.
pub const ANSWER_BYTES: usize = 4 << 20;

/// The requests of a batch by number; equal ones are one.
#[derive(Debug, Default)]
pub(super) struct Requests {
    by_id: HashMap<i64, Arc<V2JobRequest>>,
    /// By address: whoever makes jobs shares what is equal.
    ids: HashMap<usize, i64>,
}

impl Requests {
    fn put(&mut self, id: i64, request: Arc<V2JobRequest>) {
        self.ids.insert(Arc::as_ptr(&request) as usize, id);
        // Held, so that no other gets its address.
        self.by_id.insert(id, request);
    }

    /// The number of a request, and its write if it is new.
    pub(super) fn id_of(&mut self, request: &Arc<V2JobRequest>) -> (i64, Option<BatchWrite>) {
        if let Some(id) = self.ids.get(&(Arc::as_ptr(request) as usize)) {
            return (*id, None);
        }
        let id = i64::try_from(self.by_id.len()).unwrap_or(i64::MAX) + 1;
        let body = FacilitatorToValidator::from(V2JobRequest::clone(request)).encode();
        self.put(id, request.clone());
        (id, Some(BatchWrite::Request { id, body }))
    }

    fn load(store: &BatchStore) -> Result<Self, BatchError> {
        let mut requests = Self::default();
        for (id, body) in store.requests()? {
            match FacilitatorToValidator::decode(&body) {
                Ok(FacilitatorToValidator::V2JobRequest(request)) => requests.put(id, Arc::new(request)),
                Ok(_) => return Err(BatchError::Damaged(format!("request {id} is none"))),
                Err(error) => return Err(BatchError::Damaged(format!("request {id}: {error}"))),
            }
        }
        Ok(requests)
    }
}

/// An answer as it is kept; empty for what needs no judge, or is too long.
pub(super) fn answer_text(outcome: Option<&Outcome>) -> String {
    let Some(Outcome::Completed(result)) = outcome else { return String::new() };
    let JobResultDetails { docker_process_stdout, docker_process_stderr, artifacts, upload_results, .. } =
        result.clone();
    let job_uuid = String::new();
    let finished =
        V0JobFinishedRequest { job_uuid, docker_process_stdout, docker_process_stderr, artifacts, upload_results };
    let text = MinerToValidator::from(finished).encode();
    if text.len() > ANSWER_BYTES { String::new() } else { text }
}

/// What a batch is made of: whoever goes on with it must have the same.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct MadeOf {
    /// The validator (SS58), by whom everything is signed.
    validator: String,
    per_miner: Option<usize>,
    jobs: String,
}

impl MadeOf {
    fn of(config: &BatchConfig) -> Self {
        let BatchConfig { key, per_miner, made_of, .. } = config;
        Self { validator: key.ss58(), per_miner: *per_miner, jobs: made_of.clone() }
    }

    /// What of it is another in the batch to go on with.
    fn differs_from(&self, kept: &str) -> Option<String> {
        let Ok(kept) = serde_json::from_str::<Self>(kept) else {
            return Some("it was begun by another version of this program".to_owned());
        };
        let number = |per_miner: Option<usize>| match per_miner {
            Some(jobs) => format!("{jobs} jobs for each miner"),
            None => "as many jobs as each miner declares".to_owned(),
        };
        if kept.validator != self.validator {
            Some(format!("it was begun with the key of {}, not of {}; give it that", kept.validator, self.validator))
        } else if kept.per_miner != self.per_miner {
            let (before, now) = (number(kept.per_miner), number(self.per_miner));
            Some(format!("it was begun with {before}, not {now}; give it that number"))
        } else if kept.jobs != self.jobs {
            Some("its jobs were others: they, or files that they name, have changed; give it those".to_owned())
        } else {
            None
        }
    }
}

/// Opened for a batch.
pub(super) struct Opened {
    pub(super) store: BatchStore,
    pub(super) number: u64,
    pub(super) requests: Requests,
    pub(super) kept: Vec<KeptJob>,
    /// How late it was before, at most, and how long it took.
    pub(super) lag: Duration,
    pub(super) took: Duration,
}

/// Opens the folder of a batch that begins, or goes on. `miners` are the hotkeys in their order. Blocks on the disk.
pub(super) fn open(folder: &Path, config: &BatchConfig, number: u64, miners: &[String]) -> Result<Opened, BatchError> {
    let (mut store, there) = match config.resume {
        true => there(folder).map(|(store, batch)| (store, Some(batch)))?,
        false => {
            let store = BatchStore::open(folder)?;
            let there = store.batch()?;
            (store, there)
        }
    };
    let made_of = MadeOf::of(config);
    if !config.resume {
        if let Some(batch) = there.filter(|batch| !batch.ended) {
            return Err(BatchError::Unfinished { seed: batch.seed });
        }
        let made_of = serde_json::to_string(&made_of).expect("texts and a number can be written as JSON");
        store.begin(&BatchRow { number, seed: config.seed, made_of, lag_us: 0, took_us: 0, ended: false })?;
        let (requests, kept, zero) = (Requests::default(), Vec::new(), Duration::ZERO);
        return Ok(Opened { store, number, requests, kept, lag: zero, took: zero });
    }
    let batch = there.ok_or(BatchError::NoBatch)?;
    if batch.seed != config.seed {
        return Err(BatchError::Another(format!("its seed is {}, not {}", batch.seed, config.seed)));
    }
    if let Some(why) = made_of.differs_from(&batch.made_of) {
        return Err(BatchError::Another(why));
    }
    let requests = Requests::load(&store)?;
    let by_name: HashMap<&str, usize> = miners.iter().enumerate().map(|(n, name)| (name.as_str(), n)).collect();
    let (mut kept, mut problem) = (Vec::new(), None);
    store.jobs(false, |row| match kept_job(row, &by_name, &requests) {
        Ok(job) => kept.push(job),
        Err(error) => problem = Some(error),
    })?;
    match problem {
        Some(problem) => Err(problem),
        None => {
            let [lag, took] = [batch.lag_us, batch.took_us].map(duration);
            Ok(Opened { store, number: batch.number, requests, kept, lag, took })
        }
    }
}

fn duration(micros: i64) -> Duration {
    Duration::from_micros(micros.unsigned_abs())
}

/// The seed of the batch in a folder, for whoever goes on with it. Blocks on the disk.
///
/// # Errors
/// [`BatchError`], also if there is none.
pub fn kept_seed(folder: &Path) -> Result<u64, BatchError> {
    there(folder).map(|(_, batch)| batch.seed)
}

/// The batch in a folder; nothing is made.
fn there(folder: &Path) -> Result<(BatchStore, BatchRow), BatchError> {
    let store = BatchStore::open_there(folder)?.ok_or(BatchError::NoBatch)?;
    let batch = store.batch()?.ok_or(BatchError::NoBatch)?;
    Ok((store, batch))
}

fn kept_job(row: BatchJobRow, miners: &HashMap<&str, usize>, requests: &Requests) -> Result<KeptJob, BatchError> {
    let Some(miner) = miners.get(row.miner.as_str()) else {
        return Err(BatchError::Another(format!("miner {} of it is not among these miners; add it", row.miner)));
    };
    let job = if row.place == NO_JOB { Place::NO_JOB } else { usize::try_from(row.place).unwrap_or(Place::NO_JOB) };
    let place = Place { miner: *miner, job };
    let state = match row.state {
        BatchJobState::Planned => {
            let damaged = |what| BatchError::Damaged(format!("job {}: {what}", row.uuid));
            let class = row.class.parse().map_err(|_| damaged("its class is not known"))?;
            let request = requests.by_id.get(&row.request).ok_or_else(|| damaged("its request is missing"))?.clone();
            KeptState::Planned(Box::new(PlannedRow { place, uuid: row.uuid, class, request, attempts: row.attempts }))
        }
        BatchJobState::Sent => KeptState::Sent(Box::new(line_of(&row)?)),
        BatchJobState::Ended => KeptState::Ended(Box::new(line_of(&row)?)),
    };
    Ok(KeptJob { place, state })
}

fn line_of(row: &BatchJobRow) -> Result<JobLine, BatchError> {
    serde_json::from_str(&row.line)
        .map_err(|error| BatchError::Damaged(format!("the end of job {:?} of miner {}: {error}", row.uuid, row.miner)))
}

/// Judges the answers of a recorded batch again, without a network, and gives its lines to `each`. An answer that came
/// late, or is too long to be kept, stays as it was judged, and without a judge all do. Blocks on the disk.
///
/// # Errors
/// [`BatchError`], as of a folder without a batch, or if the judge does not know a job of it.
pub fn replay(
    folder: &Path,
    mut judge: Option<&mut dyn Judge>,
    limits: (Duration, Duration),
    mut each: impl FnMut(&JobLine),
) -> Result<Summary, BatchError> {
    let (store, batch) = there(folder)?;
    let requests = Requests::load(&store)?;
    if let Some(judge) = &judge
        && requests.by_id.values().any(|request| !judge.knows(request))
    {
        return Err(BatchError::Another("its jobs are others; give it those".to_owned()));
    }
    let (mut tally, mut problem) = (Tally::default(), None);
    store.jobs(true, |row| match judge_again(&row, &requests, judge.as_deref_mut()) {
        Ok(Some(line)) => {
            tally.add(&line);
            each(&line);
        }
        Ok(None) => {}
        Err(error) => problem = Some(error),
    })?;
    if let Some(problem) = problem {
        return Err(problem);
    }
    let ending = if batch.ended { Ending::Complete } else { Ending::Cancelled };
    Ok(Summary::new(batch.seed, ending, tally, (duration(batch.lag_us), duration(batch.took_us)), limits))
}

fn judge_again(
    row: &BatchJobRow,
    requests: &Requests,
    judge: Option<&mut (dyn Judge + '_)>,
) -> Result<Option<JobLine>, BatchError> {
    if row.state != BatchJobState::Ended {
        return Ok(None);
    }
    let mut line = line_of(row)?;
    let Some(judge) = judge.filter(|_| !row.answer.is_empty() && !line.late) else { return Ok(Some(line)) };
    let damaged = |what: String| BatchError::Damaged(format!("the answer of job {}: {what}", row.uuid));
    let message = MinerToValidator::decode(&row.answer).map_err(|error| damaged(error.to_string()))?;
    let outcome = outcome_of(message).ok_or_else(|| damaged("it is none".to_owned()))?;
    let request = requests.by_id.get(&row.request).ok_or_else(|| damaged("its request is missing".to_owned()))?;
    let (outcome, reason) = judged(&outcome, request, judge);
    line.scored = outcome == super::line::BatchOutcome::Completed;
    // The reason of a verdict goes with it; that of an answer that was taken is a remark on how it came.
    let is_same = line.outcome == Some(outcome);
    line.outcome = Some(outcome);
    line.reason = reason.or(line.reason.filter(|_| is_same && line.scored));
    Ok(Some(line))
}
