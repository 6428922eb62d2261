//! What of a job outlives the miner's process, as it is on disk and back. Pure.
//!
//! Moments are on the wall clock, because the monotonic one begins anew with the machine: what was left of a limit is
//! left of it after a restart, and the time in between counts.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::executors::FINAL_MESSAGES;
use super::job::{JobKey, MinerJob, News, Phase, Placed};
use crate::base::limits::LONGEST_TIME;
use crate::base::now::Now;
use crate::miner::config::MinerLimits;
use crate::miner::host::HostName;
use crate::protocol::MinerToExecutor;
use crate::protocol::stages::{Stage, StageClock};
use crate::store::miner::JobRow;
use crate::transport::Utf8Bytes;

/// The `state` of a [`JobRow`]. The receipt is not in it: it is in a table of its own, and a job that was read back
/// excuses no refusal any more.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    token: String,
    run: String,
    /// Rows of earlier releases have none.
    #[serde(default = "local")]
    host: String,
    /// Of the process that has started the executor.
    epoch: u64,
    phase: SavedPhase,
    /// Whether anything of the executor may be there.
    executor: bool,
    ready_by_ms: u64,
    address: Option<String>,
    notified: Option<News>,
    /// The validator has sent its finished-receipt.
    answered: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SavedPhase {
    Starting,
    Ready(u64),
    Download(u64),
    StreamingStart(u64),
    Execution(u64),
    Upload(u64),
    FinalMessages(String),
    Over(u64),
}

/// A job that was read back.
#[derive(Debug)]
pub(super) struct Restored {
    pub(super) key: JobKey,
    pub(super) job: MinerJob,
    /// Whether anything of the executor may be there.
    pub(super) executor: bool,
    /// The address that the executor was connected from.
    pub(super) address: Option<String>,
}

fn local() -> String {
    HostName::LOCAL.to_string()
}

fn to_wall(at: Instant, now: Now) -> u64 {
    let left = at.saturating_duration_since(now.mono);
    let past = now.mono.saturating_duration_since(at);
    let wall = now.wall.saturating_add(left).saturating_sub(past);
    u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)
}

fn from_wall(ms: u64, now: Now) -> Instant {
    let at = Duration::from_millis(ms);
    let (left, past) = (at.saturating_sub(now.wall).min(LONGEST_TIME), now.wall.saturating_sub(at));
    // What passed before the machine was started is over now.
    now.mono.checked_sub(past).unwrap_or(now.mono) + left
}

impl MinerJob {
    /// The row of this job.
    pub(super) fn row(&self, key: &JobKey, now: Now) -> JobRow {
        let wall = |at: &Instant| to_wall(*at, now);
        let phase = match &self.phase {
            // On disk it has its receipt, so it is accepted.
            Phase::Storing(_) | Phase::Starting => SavedPhase::Starting,
            Phase::Ready(until) => SavedPhase::Ready(wall(until)),
            Phase::FinalMessages(_, how) => SavedPhase::FinalMessages(how.clone()),
            Phase::Running(Stage::Download, clock) => SavedPhase::Download(wall(&clock.deadline())),
            Phase::Running(Stage::StreamingStart, clock) => SavedPhase::StreamingStart(wall(&clock.deadline())),
            Phase::Running(Stage::Execution, clock) => SavedPhase::Execution(wall(&clock.deadline())),
            Phase::Running(Stage::Upload, clock) => SavedPhase::Upload(wall(&clock.deadline())),
            Phase::Over(until) => SavedPhase::Over(wall(until)),
        };
        let state = State {
            token: self.placed.token.clone(),
            run: self.placed.run.clone(),
            host: self.placed.host.to_string(),
            epoch: self.placed.epoch,
            phase,
            executor: self.executor.is_some() || self.unclean.is_some(),
            ready_by_ms: to_wall(self.placed.ready_by, now),
            address: self.executor.as_ref().and_then(|executor| executor.address.clone()),
            notified: self.notified,
            answered: self.answered,
        };
        let json = |value: serde_json::Result<String>| value.expect("texts and numbers are JSON");
        let initial = match self.initial_text.is_empty() {
            true => MinerToExecutor::from(self.initial.clone()).encode(),
            false => self.initial_text.to_string(),
        };
        let kept: Vec<(News, &str)> = self.kept.iter().map(|(news, text)| (*news, text.as_str())).collect();
        JobRow {
            validator: key.validator.clone(),
            uuid: key.uuid.clone(),
            state: json(serde_json::to_string(&state)),
            initial,
            request: self.request.as_ref().map(|text| text.to_string()),
            news: json(serde_json::to_string(&kept)),
        }
    }
}

/// Reads a job back; nothing of it has a slot or a connection yet.
///
/// # Errors
/// Why the row cannot be read, as one of another release.
pub(super) fn read(row: JobRow, limits: &MinerLimits, now: Now) -> Result<Restored, String> {
    let JobRow { validator, uuid, state, initial, request, news } = row;
    let state: State = serde_json::from_str(&state).map_err(|e| format!("its state: {e}"))?;
    let kept: Vec<(News, String)> = serde_json::from_str(&news).map_err(|e| format!("its news: {e}"))?;
    let MinerToExecutor::V0InitialJobRequest(request_of) =
        MinerToExecutor::decode(&initial).map_err(|e| format!("its initial request: {e}"))?
    else {
        return Err("its initial request is another message".to_owned());
    };
    let placed = Placed {
        token: state.token,
        run: state.run,
        host: state.host.parse().map_err(|e| format!("its host: {e}"))?,
        epoch: state.epoch,
        asked: now.mono,
        ready_by: from_wall(state.ready_by_ms, now),
    };
    let mut job = MinerJob::without_slot((request_of, initial.into()), placed);
    job.request = request.map(Utf8Bytes::from);
    job.kept = kept.into_iter().map(|(news, text)| (news, text.into())).collect();
    job.notified = state.notified;
    job.answered = state.answered;
    let timing = limits.timing(&job.initial);
    let running = |stage, until| Phase::Running(stage, StageClock::resumed(timing, from_wall(until, now)));
    match state.phase {
        SavedPhase::Starting => job.phase = Phase::Starting,
        SavedPhase::Ready(until) => job.ready(from_wall(until, now)),
        SavedPhase::Download(until) => job.phase = running(Stage::Download, until),
        SavedPhase::StreamingStart(until) => job.phase = running(Stage::StreamingStart, until),
        SavedPhase::Execution(until) => job.phase = running(Stage::Execution, until),
        SavedPhase::Upload(until) => job.phase = running(Stage::Upload, until),
        // What it could not say may be in the spool.
        SavedPhase::FinalMessages(how) => job.phase = Phase::FinalMessages(now.mono + FINAL_MESSAGES, how),
        SavedPhase::Over(until) => job.phase = Phase::Over(from_wall(until, now)),
    }
    Ok(Restored { key: JobKey { validator, uuid }, job, executor: state.executor, address: state.address })
}
