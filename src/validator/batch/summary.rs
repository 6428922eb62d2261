//! What a batch comes to: counts, the spread of the send times, the slowest, what failed and why. Pure.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::line::{BatchOutcome, JobLine};
use super::state::Ending;
use crate::ops::redact::OneLine;

/// The slowest jobs that are named.
const SLOWEST: usize = 5;

/// Different reasons that are counted; what miners write may differ each time.
const REASONS: usize = 200;

/// Reasons that are shown.
const REASONS_SHOWN: usize = 12;

/// What the lines so far come to.
#[derive(Debug, Default)]
pub struct Tally {
    jobs: usize,
    /// Miners that got none.
    without: usize,
    scored: usize,
    late: usize,
    excused: usize,
    outcomes: BTreeMap<BatchOutcome, usize>,
    /// Microseconds after the gate.
    sends: Vec<u64>,
    /// Seconds, miner, job; the slowest first.
    slowest: Vec<(f64, String, String)>,
    reasons: BTreeMap<(BatchOutcome, String), usize>,
}

impl Tally {
    /// Counts a line.
    pub fn add(&mut self, line: &JobLine) {
        self.jobs += usize::from(line.job_uuid.is_some());
        self.without += usize::from(line.job_uuid.is_none());
        self.scored += usize::from(line.scored);
        self.late += usize::from(line.late);
        self.excused += usize::from(line.excused);
        self.sends.extend(line.sent_after_us);
        let Some(outcome) = line.outcome else { return };
        *self.outcomes.entry(outcome).or_default() += 1;
        if outcome != BatchOutcome::Completed && !line.excused {
            let reason = line.reason.clone().unwrap_or_default();
            let key = (outcome, reason);
            if self.reasons.len() < REASONS || self.reasons.contains_key(&key) {
                *self.reasons.entry(key).or_default() += 1;
            } else {
                *self.reasons.entry((outcome, "other reasons".to_owned())).or_default() += 1;
            }
        }
        if let (Some(seconds), Some(uuid)) = (line.seconds, &line.job_uuid) {
            let at = self.slowest.partition_point(|(other, ..)| *other >= seconds);
            if at < SLOWEST {
                self.slowest.insert(at, (seconds, line.miner.clone(), uuid.clone()));
                self.slowest.truncate(SLOWEST);
            }
        }
    }
}

/// A batch at its end.
#[derive(Debug)]
pub struct Summary {
    /// The seed with which it can be planned again.
    pub seed: u64,
    /// How it ended.
    pub ending: Ending,
    /// Lines with a job.
    pub jobs: usize,
    /// Jobs that count for their miners.
    pub scored: usize,
    /// All lines by outcome.
    pub outcomes: BTreeMap<BatchOutcome, usize>,
    /// How long after the gate's opening job requests had been sent: the median, the 99th percentile, the last.
    pub send_spread: [Duration; 3],
    /// How late the batch itself was at most.
    pub lag: Duration,
    /// How long it took.
    pub took: Duration,
    /// Why it is not to be trusted with milliseconds; empty if it is.
    pub flags: Vec<String>,
    tally: Tally,
}

impl Summary {
    /// Of all lines. Beyond `limits` (of the spread, of the lag) it is flagged.
    pub(super) fn new(
        seed: u64,
        ending: Ending,
        mut tally: Tally,
        (lag, took): (Duration, Duration),
        (max_spread, max_lag): (Duration, Duration),
    ) -> Self {
        tally.sends.sort_unstable();
        let first = tally.sends.first().copied().unwrap_or(0);
        let spread = [50, 99, 100].map(|percent| {
            let sends = &tally.sends;
            let index = (sends.len() * percent).div_ceil(100).saturating_sub(1);
            Duration::from_micros(sends.get(index).map_or(0, |at| at - first))
        });
        let mut flags = Vec::new();
        if spread[2] > max_spread {
            flags.push(format!("the job requests left within {:.1?}, not {max_spread:.1?}", spread[2]));
        }
        if lag > max_lag {
            flags.push(format!("the batch itself was late by {lag:.1?}, more than {max_lag:.1?}"));
        }
        let (jobs, scored, outcomes) = (tally.jobs, tally.scored, tally.outcomes.clone());
        Self { seed, ending, jobs, scored, outcomes, send_spread: spread, lag, took, flags, tally }
    }

    /// Whether its times are not to be trusted.
    pub fn is_flagged(&self) -> bool {
        !self.flags.is_empty()
    }

    /// The last line of the output, without the line's end.
    pub fn to_json(&self) -> String {
        let millis = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        let [p50, p99, max] = self.send_spread.map(millis);
        let outcomes: Map<String, Value> =
            self.outcomes.iter().map(|(outcome, count)| (outcome.as_str().to_owned(), json!(count))).collect();
        let summary = json!({
            "seed": self.seed,
            "jobs": self.jobs,
            "outcomes": outcomes,
            "send_spread_ms": {"p50": p50, "p99": p99, "max": max},
            "lag_ms": millis(self.lag),
            "seconds": self.took.as_secs_f64(),
            "flagged": self.is_flagged(),
            "ending": self.ending.as_str(),
        });
        json!({"summary": summary}).to_string()
    }

    /// For people, several lines.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let how = match self.ending {
            Ending::Complete => "",
            Ending::Cancelled => "CANCELLED before its end; ",
            Ending::Aborted => "ABORTED, because too many miners failed; ",
        };
        let without = self.tally.without;
        let took = self.took.as_secs_f64();
        // Writing to a text cannot fail.
        let _ = writeln!(
            text,
            "{how}{} jobs, {} scored, {} late, {} excused, {without} miners without a job, {took:.1} s, seed {}",
            self.jobs, self.scored, self.tally.late, self.tally.excused, self.seed
        );
        for outcome in BatchOutcome::ALL {
            if let Some(count) = self.outcomes.get(&outcome) {
                let _ = writeln!(text, "  {:<14} {count:>6}", outcome.as_str());
            }
        }
        let [p50, p99, max] = self.send_spread;
        let _ = writeln!(text, "send times after the first: p50 {p50:.1?}, p99 {p99:.1?}, last {max:.1?}");
        let _ = writeln!(text, "own lag: {:.1?}", self.lag);
        for flag in &self.flags {
            let _ = writeln!(text, "FLAGGED: {flag}");
        }
        if !self.tally.slowest.is_empty() {
            let _ = writeln!(text, "slowest:");
        }
        for (seconds, miner, uuid) in &self.tally.slowest {
            let _ = writeln!(text, "  {seconds:>8.3} s  {}  {}", OneLine(miner), OneLine(uuid));
        }
        let mut reasons: Vec<_> = self.tally.reasons.iter().collect();
        reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        if !reasons.is_empty() {
            let _ = writeln!(text, "what failed:");
        }
        for ((outcome, reason), count) in reasons.iter().take(REASONS_SHOWN) {
            let _ = writeln!(text, "  {count:>6}  {}  {}", outcome.as_str(), OneLine(reason));
        }
        if reasons.len() > REASONS_SHOWN {
            let _ = writeln!(text, "  … and {} other reasons", reasons.len() - REASONS_SHOWN);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(n: u64) -> JobLine {
        let mut line = JobLine::of_miner("5F".to_owned(), BatchOutcome::Completed, "");
        line.job_uuid = Some(format!("job-{n}"));
        line.reason = None;
        line.seconds = Some(n as f64);
        line.sent_after_us = Some(1000 + n * 100);
        line.scored = true;
        line
    }

    fn summary(lines: &[JobLine], lag: u64) -> Summary {
        let mut tally = Tally::default();
        lines.iter().for_each(|line| tally.add(line));
        let millis = Duration::from_millis;
        Summary::new(7, Ending::Complete, tally, (millis(lag), millis(1500)), (millis(10), millis(500)))
    }

    #[test]
    fn the_spread_is_measured_from_the_first_and_a_wide_one_or_a_lag_is_flagged() {
        let lines: Vec<JobLine> = (0..100).map(line).collect();
        let good = summary(&lines, 3);
        assert_eq!(good.send_spread.map(|d| d.as_micros()), [4900, 9800, 9900]);
        assert!(!good.is_flagged());
        assert!(summary(&lines, 501).is_flagged());
        assert!(summary(&[line(0), line(101)], 3).is_flagged());
        assert_eq!(summary(&[], 0).send_spread, [Duration::ZERO; 3]);
    }

    #[test]
    fn the_json_is_the_contract_s_and_counts_every_line() {
        let refused = JobLine::of_miner("5G".to_owned(), BatchOutcome::Refused, "nobody there");
        let summary = summary(&[line(1), line(2), refused], 3);
        let json: Value = serde_json::from_str(&summary.to_json()).unwrap();
        let keys: Vec<&str> = json["summary"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys.join(" "), "seed jobs outcomes send_spread_ms lag_ms seconds flagged ending");
        assert_eq!(json["summary"]["ending"], "complete");
        assert_eq!(json["summary"]["outcomes"], json!({"completed": 2, "refused": 1}));
        assert_eq!(json["summary"]["send_spread_ms"], json!({"p50": 0.0, "p99": 0.1, "max": 0.1}));
        assert_eq!((&json["summary"]["jobs"], &json["summary"]["lag_ms"]), (&json!(2), &json!(3.0)));
    }

    #[test]
    fn the_table_names_the_slowest_and_what_failed() {
        let mut lines: Vec<JobLine> = (0..9).map(line).collect();
        for n in 0..300 {
            lines.push(JobLine::of_miner("5G".to_owned(), BatchOutcome::Refused, &format!("reason {n}")));
        }
        lines.push(JobLine::of_miner("5H".to_owned(), BatchOutcome::Timeout, "reason 1"));
        lines[0].excused = true;
        let table = summary(&lines, 700).table();
        let slowest: Vec<&str> = table.lines().filter_map(|line| line.split("job-").nth(1)).collect();
        assert_eq!(slowest, ["8", "7", "6", "5", "4"], "{table}");
        assert!(
            table.contains("9 jobs, 9 scored, 0 late, 1 excused, 301 miners without a job, 1.5 s, seed 7"),
            "{table}"
        );
        assert!(table.contains("FLAGGED: the batch itself was late by 700.0ms"), "{table}");
        assert!(table.contains("100  refused  other reasons"), "{table}");
    }
}
