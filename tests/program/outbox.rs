//! `phalanx outbox`: what a validator keeps for the facilitator is listed and shown, and what was given up goes again.

use crate::testkit::process;
use crate::testkit::roles;
use crate::testkit::wait::{LONG, until};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use phalanx::protocol::{JobStatus, V0JobStatusUpdate, ValidatorToFacilitator};
use phalanx::store::journal::{Change, Journal};
use phalanx::transport::ws::WsListener;
use phalanx::validator::ledger::record::{DeadLetter, JobRecord, Update};
use process::{Finished, Running, phalanx, run};
use roles::{FakeFacilitator, World, statuses};
use rustix::process::Signal;
use serde_json::Value;

use JobStatus as S;

/// A job whose second update was given up, and whose end waits.
const STUCK: &str = "11111111-0000-4000-8000-000000000001";
/// A job whose first update was given up, and whose end the facilitator has.
const OVER: &str = "22222222-0000-4000-8000-000000000002";
/// A job whose end was given up.
const UNHEARD: &str = "33333333-0000-4000-8000-000000000003";
/// A job of which all is stored.
const DONE: &str = "44444444-0000-4000-8000-000000000004";

/// The moment that is `minutes` ago, in milliseconds since 1970.
fn ago(minutes: u64) -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64 - minutes * 60_000
}

fn update(uuid: &str, status: JobStatus) -> Update {
    let message = V0JobStatusUpdate { uuid: uuid.to_owned(), status, metadata: None };
    let text = ValidatorToFacilitator::from(message).encode().into();
    Update { status, queued_at: ago(10), text, version: 0 }
}

fn dead(uuid: &str, status: JobStatus) -> DeadLetter {
    let reason = "refused 5 times, last: error\n\u{1b}[31m no such state".to_owned();
    DeadLetter { update: update(uuid, status), reason, at: ago(5) }
}

fn record(uuid: &str, updates: &[JobStatus], letters: &[JobStatus]) -> JobRecord {
    JobRecord {
        last: Some(S::Completed),
        ended: true,
        updates: updates.iter().map(|status| update(uuid, *status)).collect(),
        dead: letters.iter().map(|status| dead(uuid, *status)).collect(),
        ..JobRecord::new(uuid.into(), ago(20))
    }
}

/// A state folder as a validator leaves it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let records = [
            record(STUCK, &[S::ExecutionDone, S::Completed], &[S::Accepted]),
            record(OVER, &[], &[S::Received]),
            record(UNHEARD, &[], &[S::Completed]),
            record(DONE, &[], &[]),
        ];
        let rows: Vec<_> = (1..).zip(records.map(|record| record.encode())).collect();
        let (mut journal, _) = Journal::open(&folder.path().join("state")).unwrap();
        journal.write(rows.iter().map(|(id, body)| Change::Put { id: *id, body })).unwrap();
        journal.close().unwrap();
        Self(folder)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = phalanx(self.0.path());
        command.arg("outbox").args(arguments).arg("--state-dir").arg(self.0.path().join("state"));
        command
    }

    fn outbox(&self, arguments: &[&str]) -> Finished {
        run(&mut self.command(arguments))
    }

    /// The statuses that wait and those that were given up, by job.
    fn kept(&self) -> BTreeMap<String, (Vec<JobStatus>, Vec<JobStatus>)> {
        let records = Journal::read(&self.0.path().join("state")).unwrap().records;
        let records = records.iter().map(|(_, bytes)| JobRecord::decode(bytes).unwrap());
        let statuses = |record: JobRecord| {
            let waiting = record.updates.iter().map(|update| update.status).collect();
            (record.uuid.to_string(), (waiting, record.dead.iter().map(|letter| letter.update.status).collect()))
        };
        records.map(statuses).collect()
    }

    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let files = fs::read_dir(self.0.path().join("state")).unwrap().map(|file| file.unwrap().path());
        files.map(|path| (path.display().to_string(), fs::read(&path).unwrap())).collect()
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[test]
fn what_waits_and_what_was_given_up_is_listed() {
    let folder = Folder::new();
    let before = folder.files();
    let bytes = |status: JobStatus| update(STUCK, status).text.len().to_string();
    let listed = folder.outbox(&["ls"]);
    assert_eq!(listed.code, Some(0), "{}", listed.stderr);
    let lines: Vec<Vec<&str>> = listed.stdout.lines().map(words).collect();
    assert_eq!(lines.len(), 5, "{}", listed.stdout);
    let len = bytes(S::Accepted);
    let first = [STUCK, "accepted", "dead", &len, "B", "10", "min"];
    assert_eq!(lines[0][..first.len()], first);
    assert!(
        listed.stdout.lines().next().unwrap().ends_with("refused 5 times, last: error\\n\\u{1b}[31m no such state")
    );
    assert_eq!(lines[2][..4], [STUCK, "completed", "waiting", &bytes(S::Completed)]);
    let waiting = update(STUCK, S::ExecutionDone).text.len() + update(STUCK, S::Completed).text.len();
    assert!(listed.stderr.starts_with(&format!("depth 2, {waiting} bytes, oldest 10 min ")), "{}", listed.stderr);
    assert!(listed.stderr.ends_with(" s, dead 3\n"), "{}", listed.stderr);

    let dead = folder.outbox(&["ls", "--dead", "--json"]);
    let lines: Vec<Value> = dead.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let shown: Vec<_> = lines.iter().map(|line| (&line["uuid"], &line["status"], &line["state"])).collect();
    let (stuck, over, unheard): (Value, Value, Value) = (STUCK.into(), OVER.into(), UNHEARD.into());
    let (a, r, c, d): (Value, Value, Value, Value) =
        ("accepted".into(), "received".into(), "completed".into(), "dead".into());
    assert_eq!(shown, [(&stuck, &a, &d), (&over, &r, &d), (&unheard, &c, &d)]);
    assert!(
        lines[0]["age_seconds"].as_u64().unwrap() >= 600 && lines[0]["reason"].as_str().unwrap().contains("5 times")
    );
    assert!(dead.stderr.ends_with("dead 3\n") && dead.code == Some(0), "{}", dead.stderr);
    assert_eq!(folder.files(), before, "looking changes nothing");
}

#[test]
fn a_job_is_shown_with_its_messages() {
    let folder = Folder::new();
    let shown = folder.outbox(&["show", STUCK]);
    assert_eq!((shown.code, shown.stderr.as_str()), (Some(0), ""));
    for part in [STUCK, "completed, ended", "accepted (dead", "given up 5 min", &update(STUCK, S::Completed).text] {
        assert!(shown.stdout.contains(part), "{part}:\n{}", shown.stdout);
    }
    assert!(!shown.stdout.contains('\u{1b}'), "a reason colours no terminal");
    let job: Value = serde_json::from_str(&folder.outbox(&["show", "--json", STUCK]).stdout).unwrap();
    assert_eq!((job["uuid"].as_str(), job["ended"].as_bool()), (Some(STUCK), Some(true)));
    let texts: Vec<_> = job["updates"].as_array().unwrap().iter().map(|u| u["text"].as_str().unwrap()).collect();
    assert_eq!(
        texts,
        [S::Accepted, S::ExecutionDone, S::Completed].map(|status| update(STUCK, status).text.to_string())
    );
    let unknown = folder.outbox(&["show", "nobody"]);
    assert_eq!((unknown.code, unknown.stdout.as_str()), (Some(1), ""));
    assert!(unknown.stderr.starts_with("error: no job nobody in ") && unknown.stderr.lines().count() == 1);
}

#[test]
fn mistakes_are_named_in_a_line() {
    let folder = Folder::new();
    let empty = tempfile::tempdir().unwrap();
    let without_key = |arguments: &[&str]| run(phalanx(empty.path()).arg("outbox").args(arguments));
    let empty_folder = empty.path().to_str().unwrap().to_owned();
    for (finished, code, reported) in [
        (without_key(&["ls"]), 2, "--state-dir is missing"),
        (without_key(&["ls", "--state-dir", &empty_folder]), 2, "has no journal"),
        (without_key(&["retry", "--all", "--state-dir", &empty_folder]), 2, "has no journal"),
        (folder.outbox(&["retry"]), 2, "required arguments were not provided"),
        (folder.outbox(&["retry", STUCK, "--all"]), 2, "cannot be used with"),
        (folder.outbox(&["drop", "--all-dead", "--waiting"]), 2, "cannot be used with"),
        (folder.outbox(&["retry", "nobody"]), 1, "no job nobody in "),
        (folder.outbox(&["retry", DONE]), 1, "has no update that was given up"),
        (folder.outbox(&["retry", OVER]), 1, "the facilitator has its end"),
        (folder.outbox(&["drop", DONE]), 1, "has no update that was given up"),
        (folder.outbox(&["drop", DONE, "--waiting"]), 1, "has no update"),
    ] {
        assert_eq!(finished.code, Some(code), "{reported}: {}", finished.stderr);
        assert!(
            finished.stderr.contains(reported) && finished.stderr.lines().count() == 1,
            "{reported}: {}",
            finished.stderr
        );
    }
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0, "no journal was made");
}

#[test]
fn a_retried_update_arrives_in_its_place_and_a_running_validator_is_left_alone() {
    let folder = Folder::new();
    let before = folder.files();
    let dry = folder.outbox(&["retry", "--all", "--dry-run"]);
    let done = "2 updates of 2 jobs will be sent at the validator's next start\n";
    assert_eq!((dry.code, dry.stdout), (Some(0), format!("dry run, nothing is changed: {done}")));
    assert_eq!(folder.files(), before);
    let retried = folder.outbox(&["retry", "--all"]);
    assert_eq!((retried.code, retried.stdout.as_str()), (Some(0), done));
    assert!(retried.stderr.contains(&format!("job {OVER} is left")), "{}", retried.stderr);
    assert_eq!(folder.kept()[STUCK], (vec![S::Accepted, S::ExecutionDone, S::Completed], vec![]));
    assert_eq!(folder.kept()[OVER], (vec![], vec![S::Received]));

    let world = World::new();
    let listener = WsListener::bind("127.0.0.1:0", None).unwrap();
    let url = format!("ws://{}/ws/v0/", listener.local_addr());
    let facilitator = FakeFacilitator::start_on(&world, Box::new(listener));
    let mut validator = phalanx(folder.0.path());
    validator.args(["validator", "--dispatch", "stub", "--facilitator", &url, "--http", "127.0.0.1:0", "--state-dir"]);
    let mut validator = Running::start(validator.arg(folder.0.path().join("state")).env("PHALANX_KEY", "//Alice"));
    validator.line();
    let history: Vec<_> = (0..4).map(|_| facilitator.updates.recv_timeout(LONG).unwrap()).collect();
    let of =
        |uuid: &str| -> Vec<_> { statuses(&history.iter().filter(|u| u.uuid == uuid).cloned().collect::<Vec<_>>()) };
    assert_eq!(of(STUCK), [S::Accepted, S::ExecutionDone, S::Completed]);
    assert_eq!(of(UNHEARD), [S::Completed]);

    // The validator writes the facilitator's answers after it has them.
    until("one dead letter", || folder.outbox(&["ls"]).stderr == "depth 0, 0 bytes, oldest -, dead 1\n");
    for refused in [&["retry", "--all"][..], &["drop", "--all-dead"], &["drop", "--waiting", DONE]] {
        let refused = folder.outbox(refused);
        assert_eq!(refused.code, Some(1));
        let pid = format!("error: process {} uses ", validator.id());
        assert!(refused.stderr.starts_with(&pid), "{}", refused.stderr);
        assert!(refused.stderr.ends_with("stop that validator first, nothing was changed\n"), "{}", refused.stderr);
    }
    let finished = validator.stop(Signal::TERM);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert!(facilitator.updates.try_recv().is_err(), "nothing was sent twice");
    facilitator.stop();
}

#[test]
fn dropped_updates_are_gone_and_their_jobs_stay_known() {
    let folder = Folder::new();
    let dropped = folder.outbox(&["drop", UNHEARD]);
    assert_eq!((dropped.code, dropped.stdout.as_str()), (Some(0), "1 updates of 1 jobs dropped\n"));
    let dry = folder.outbox(&["drop", "--all-dead", "--dry-run"]);
    assert_eq!(dry.stdout, "dry run, nothing is changed: 2 updates of 2 jobs dropped\n");
    assert_eq!(folder.kept()[OVER].1, [S::Received]);
    let dropped = folder.outbox(&["drop", "--all-dead"]);
    assert_eq!((dropped.code, dropped.stdout.as_str()), (Some(0), "2 updates of 2 jobs dropped\n"));
    assert_eq!(folder.kept()[STUCK], (vec![S::ExecutionDone, S::Completed], vec![]));
    // One that is not known is no reason not to drop the others.
    let dropped = folder.outbox(&["drop", "nobody", STUCK, "--waiting"]);
    assert_eq!((dropped.code, dropped.stdout.as_str()), (Some(1), "2 updates of 1 jobs dropped\n"));
    let kept = folder.kept();
    assert_eq!(kept.keys().collect::<Vec<_>>(), [STUCK, OVER, UNHEARD, DONE]);
    assert!(kept.values().all(|(waiting, dead)| waiting.is_empty() && dead.is_empty()), "{kept:?}");
}

#[test]
fn damage_is_reported_and_the_rest_is_there() {
    let folder = Folder::new();
    let path = folder.0.path().join("state/journal.db");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(OVER.len()).position(|window| window == OVER.as_bytes()).unwrap();
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    let before = folder.files();
    let listed = folder.outbox(&["ls"]);
    assert_eq!((listed.code, listed.stdout.lines().count()), (Some(0), 4), "{}", listed.stdout);
    let warning = listed.stderr.lines().next().unwrap();
    assert!(warning.starts_with("warning: damage: ") && warning.contains("at least 1 records are lost"), "{warning}");
    assert_eq!(folder.files(), before);
    let retried = folder.outbox(&["retry", STUCK]);
    assert_eq!((retried.code, retried.stdout.lines().count()), (Some(0), 1), "{}", retried.stderr);
    assert!(retried.stderr.contains("it was repaired") && retried.stderr.contains(".damaged-1"), "{}", retried.stderr);
    assert_eq!(folder.outbox(&["ls"]).stderr.lines().count(), 1, "the damage is mended");
    assert_eq!(folder.kept().into_keys().collect::<Vec<_>>(), [STUCK, UNHEARD, DONE]);
}

#[test]
fn the_path_of_the_folder_may_come_from_the_settings_file() {
    let folder = Folder::new();
    let (state, file) = (folder.0.path().join("state"), folder.0.path().join("phalanx.toml"));
    fs::write(&file, format!("[outbox]\nstate_dir = {:?}\n", state.display().to_string())).unwrap();
    let listed = run(phalanx(Path::new(folder.0.path())).args(["outbox", "ls", "--config"]).arg(&file));
    assert_eq!((listed.code, listed.stdout.lines().count()), (Some(0), 5), "{}", listed.stderr);
}
