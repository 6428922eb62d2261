//! The thread that writes the audit log: which validator came and went when, and which job was given to whom.
//!
//! Owner: [`super::Facilitator`]. Blocks in: its queue, and on the disk. Kick: the end of the router's thread, which
//! has the only sender. Ends: with that, after what was queued is written.
//!
//! The router never waits for it: what has no room in its queue is left out, and the next line says how much that was.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use serde::Serialize;

use super::router::{AuditEvent, Note};
use crate::base::now::Now;
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::waits::waiting;
use crate::ops::errors::ErrorClass;
use crate::ops::metrics::Counter;
use crate::ops::status::Board;
use crate::ops::throttle::Throttle;
use crate::protocol::DateTime;
use crate::store::audit::AuditLog;

/// Notes that wait for the disk: all that a facilitator with as many waiting jobs as it takes (4,096) says of them when
/// their validators come back. At some 400 bytes each, 1.6 MiB.
const QUEUE: usize = 4096;

/// Notes that are written at once: some 50 KiB.
const BATCH: usize = 256;

/// Longest that they may take; a disk that takes longer hangs.
const BATCH_TIME: Duration = Duration::from_secs(10);

/// What the router's thread holds of it.
#[derive(Debug)]
pub(super) struct Audit {
    queue: Sender<(Now, Note)>,
    lost: Arc<Lost>,
    refused: Throttle,
    failed: Throttle,
}

/// What is not in the log.
#[derive(Debug)]
struct Lost {
    /// Not told yet.
    untold: AtomicU64,
    all: Counter,
}

impl Lost {
    fn add(&self, count: u64) {
        self.untold.fetch_add(count, Ordering::Relaxed);
        self.all.add(count);
    }
}

/// A line of the log.
#[derive(Serialize)]
struct Line<'a> {
    at: String,
    #[serde(flatten)]
    note: &'a Note,
}

impl Audit {
    /// Has a line written, at once or never. Of what anybody can cause by connecting there is one line in ten seconds,
    /// so that nobody can push the others out of the log.
    pub(super) fn note(&mut self, now: Now, mut note: Note) {
        let throttle = match note.event {
            AuditEvent::AuthenticationFailed => Some(&mut self.refused),
            AuditEvent::MessageFailed => Some(&mut self.failed),
            _ => None,
        };
        if let Some(throttle) = throttle {
            match throttle.admit(now.mono) {
                Some(more) => note.more = more,
                None => return,
            }
        }
        if self.queue.try_send((now, note)).is_err() {
            self.lost.add(1);
        }
    }
}

/// Starts the thread.
pub(super) fn start(log: AuditLog, board: &Board) -> (Audit, Thread<()>) {
    let (queue, notes) = bounded(QUEUE);
    let help = "Lines that the audit log does not have: they came faster than the disk takes them, or it failed.";
    let all = board.metrics.counter("phalanx_facilitator_audit_lost_total", help, &[]);
    let lost = Arc::new(Lost { untold: AtomicU64::new(0), all });
    let audit = Audit { queue, lost: lost.clone(), refused: Throttle::default(), failed: Throttle::default() };
    let board = board.clone();
    let thread = spawn("fac-audit", Kick::dropped("the router"), move || run(log, &notes, &lost, &board));
    (audit, thread)
}

fn run(mut log: AuditLog, notes: &Receiver<(Now, Note)>, lost: &Lost, board: &Board) {
    let (pulse, probed) = board.health.pulse_and_probe("audit", BATCH_TIME);
    loop {
        pulse.done();
        let waits = notes.is_empty().then(|| waiting("something to note", None));
        let first = select! {
            recv(notes) -> first => first,
            recv(probed) -> _ => continue,
        };
        drop(waits);
        let Ok(first) = first else { return };
        pulse.begin(Instant::now() + BATCH_TIME);
        let at = first.0.wall;
        let batch: Vec<_> = std::iter::once(first).chain(notes.try_iter().take(BATCH - 1)).collect();
        let untold = lost.untold.swap(0, Ordering::Relaxed);
        let told = (untold > 0).then(|| Note { more: untold, ..Note::new(AuditEvent::Lost) });
        let lines: String = told
            .iter()
            .map(|note| line(at, note))
            .chain(batch.iter().map(|(now, note)| line(now.wall, note)))
            .collect();
        if let Err(error) = log.write(&lines, at) {
            lost.untold.fetch_add(untold, Ordering::Relaxed);
            lost.add(batch.len() as u64);
            let what = format_args!("it is not written: {error}");
            board.errors.report(ErrorClass::Rejected, "audit-log", &what);
        }
    }
}

fn line(at: Duration, note: &Note) -> String {
    let micros = i64::try_from(at.as_micros()).unwrap_or(i64::MAX);
    let line = Line { at: DateTime::from_unix_micros(micros).to_string(), note };
    serde_json::to_string(&line).expect("texts and numbers are JSON") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::now;
    use crate::base::wait::far;
    use crate::store::audit::read;

    fn lines(folder: &std::path::Path) -> Vec<String> {
        let mut lines = Vec::new();
        read(folder, Duration::ZERO, |line| {
            lines.push(line.split_once(',').unwrap().1.to_owned());
            true
        })
        .unwrap();
        lines
    }

    #[test]
    fn what_was_noted_is_on_the_disk_when_the_router_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let (mut audit, thread) = start(AuditLog::open(folder.path()).unwrap(), &Board::new());
        for n in 0..3 {
            audit.note(now(), Note::new(AuditEvent::JobSent).job(&n.to_string()).why("a\u{9b}\"b"));
        }
        drop(audit);
        thread.join_by(far()).unwrap();
        let expected = [0, 1, 2].map(|n| format!("\"event\":\"job_sent\",\"job\":\"{n}\",\"why\":\"a\u{9b}\\\"b\"}}"));
        assert_eq!(lines(folder.path()), expected);
    }

    #[test]
    fn what_anybody_can_cause_is_a_line_in_ten_seconds_and_what_has_no_room_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let board = Board::new();
        let metrics = board.metrics.clone();
        let (queue, notes) = bounded(2);
        let lost = Arc::new(Lost { untold: AtomicU64::new(0), all: metrics.counter("phalanx_lost_total", "L.", &[]) });
        let mut audit = Audit { queue, lost: lost.clone(), refused: Throttle::default(), failed: Throttle::default() };
        let start = now();
        for _ in 0..3 {
            audit.note(start, Note::new(AuditEvent::AuthenticationFailed));
        }
        audit.note(start + Duration::from_secs(10), Note::new(AuditEvent::AuthenticationFailed));
        audit.note(start, Note::new(AuditEvent::Started));
        audit.note(start, Note::new(AuditEvent::Started));
        assert_eq!(lost.all.get(), 2);
        drop(audit);
        run(AuditLog::open(folder.path()).unwrap(), &notes, &lost, &board);
        let lost = "\"event\":\"lost\",\"more\":2}";
        let refused = ["\"event\":\"authentication_failed\"}", "\"event\":\"authentication_failed\",\"more\":2}"];
        assert_eq!(lines(folder.path()), [lost, refused[0], refused[1]]);
    }
}
