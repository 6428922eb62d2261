//! `phalanx outbox`: the status updates that a validator keeps under its state folder: those that wait for the
//! facilitator, and those that were given up (dead letters).

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::status::ago;
use crate::app::exit;
use crate::base::clock::now;
use crate::ops::redact::{self, OneLine};
use crate::store::StoreError;
use crate::store::journal::{Change, Damage, Journal, Recovered};
use crate::validator::ledger::record::{JobRecord, Update};

/// The arguments of `phalanx outbox`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The validator's state folder
    #[arg(long, global = true, value_name = "DIR", env = "PHALANX_STATE_DIR")]
    state_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A line for each update that waits or was given up; also beside a running validator
    Ls {
        /// Only those that were given up
        #[arg(long)]
        dead: bool,
        /// One JSON object a line
        #[arg(long, env = "PHALANX_JSON")]
        json: bool,
    },
    /// All that is kept of one job, with the texts of its messages; also beside a running validator
    Show {
        /// The job
        uuid: String,
        /// One JSON object
        #[arg(long, env = "PHALANX_JSON")]
        json: bool,
    },
    /// Let updates that were given up wait again: the validator's next start sends them, in their job's order. Those of
    /// a job whose end the facilitator has already are left, since they would move the job backwards. Stop the
    /// validator first
    Retry {
        #[command(flatten)]
        which: Retried,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove updates that were given up, for good. The job stays known, so that it is not run again. Stop the
    /// validator first
    Drop {
        #[command(flatten)]
        which: Dropped,
        /// Also remove the updates of these jobs that wait. Dangerous: the facilitator never gets them, and if a
        /// job's end is among them, it takes the job to run for ever
        #[arg(long, conflicts_with = "all_dead")]
        waiting: bool,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, clap::Args)]
#[group(required = true)]
struct Retried {
    /// The jobs
    #[arg(value_name = "UUID")]
    uuids: Vec<String>,
    /// All jobs
    #[arg(long, conflicts_with = "uuids")]
    all: bool,
}

#[derive(Debug, clap::Args)]
#[group(required = true)]
struct Dropped {
    /// The jobs
    #[arg(value_name = "UUID")]
    uuids: Vec<String>,
    /// Those of all jobs
    #[arg(long, conflicts_with = "uuids")]
    all_dead: bool,
}

/// Runs the command: exit 0 done, 1 if a job is not known, has nothing to retry or drop, or the folder is in use, 2 if
/// it is no state folder.
///
/// Blocks on the disk only; ended at any moment, it has done all or nothing.
pub fn run(args: Args) -> ExitCode {
    let Some(folder) = args.state_dir else {
        return exit::usage("--state-dir is missing; name the validator's state folder");
    };
    if !Journal::is_in(&folder) {
        let folder = folder.display();
        return exit::usage(format!("{folder} has no journal; --state-dir should be the state folder of a validator"));
    }
    let done = match args.command {
        Command::Ls { dead, json } => ls(&folder, dead, json),
        Command::Show { uuid, json } => show(&folder, &uuid, json),
        Command::Retry { which, dry_run } => retry(&folder, &which.uuids, dry_run),
        Command::Drop { which, waiting, dry_run } => drop_updates(&folder, &which.uuids, waiting, dry_run),
    };
    let (out, code) = match done {
        Ok(done) => done,
        Err(StoreError::InUse { folder, pid }) => {
            let folder = folder.display();
            return exit::failed(format!(
                "process {pid} uses {folder}: stop that validator first, nothing was changed"
            ));
        }
        Err(error) => return exit::failed(error),
    };
    match std::io::stdout().write_all(out.as_bytes()) {
        // A reader that has seen enough is no failure.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => exit::failed(format!("cannot write to stdout: {error}")),
        _ => ExitCode::from(code),
    }
}

/// What goes to stdout, and the exit code.
type Done = Result<(String, u8), StoreError>;

/// An update, as it is shown.
struct Item<'a> {
    update: &'a Update,
    /// Why and when it was given up.
    death: Option<(&'a str, u64)>,
}

impl Item<'_> {
    fn state(&self) -> &'static str {
        if self.death.is_some() { "dead" } else { "waiting" }
    }

    fn reason(&self) -> &str {
        self.death.map_or("", |(reason, _)| reason)
    }

    fn json(&self, now: u64) -> Value {
        json!({
            "status": self.update.status.as_str(),
            "state": self.state(),
            "bytes": self.update.text.len(),
            "age_seconds": seconds(now, self.update.queued_at),
            "queued_at": self.update.queued_at,
            "dead_at": self.death.map(|(_, at)| at),
            "reason": self.death.map(|(reason, _)| reason),
        })
    }
}

/// The updates of a job: first the dead, since all that waits came after them.
fn items(record: &JobRecord) -> impl Iterator<Item = Item<'_>> {
    let dead = record.dead.iter().map(|letter| (&letter.update, Some((letter.reason.as_str(), letter.at))));
    let waiting = record.updates.iter().map(|update| (update, None));
    dead.chain(waiting).map(|(update, death)| Item { update, death })
}

fn ls(folder: &Path, only_dead: bool, json: bool) -> Done {
    let (records, now) = (read(folder)?, now().unix_millis());
    let mut out = String::new();
    let (mut depth, mut bytes, mut dead, mut oldest) = (0_usize, 0, 0_usize, None);
    for (record, item) in records.iter().flat_map(|(_, record)| items(record).map(move |item| (record, item))) {
        let Update { status, queued_at, text, .. } = item.update;
        if item.death.is_some() {
            dead += 1;
        } else {
            depth += 1;
            bytes += text.len();
            oldest = Some(oldest.map_or(*queued_at, |at: u64| at.min(*queued_at)));
            if only_dead {
                continue;
            }
        }
        if json {
            let mut line = json!({"uuid": &*record.uuid});
            merge(&mut line, item.json(now));
            put(&mut out, format_args!("{line}"));
        } else {
            let (uuid, state, len) = (&record.uuid, item.state(), text.len());
            let (status, age) = (status.as_str(), ago(seconds(now, *queued_at)));
            put(&mut out, format_args!("{uuid:<36} {status:<15} {state:<7} {len:>9} B {age:>12}  {}", item.reason()));
        }
    }
    let oldest = oldest.map_or("-".to_owned(), |at| ago(seconds(now, at)));
    eprintln!("depth {depth}, {bytes} bytes, oldest {oldest}, dead {dead}");
    Ok((out, exit::DONE))
}

fn show(folder: &Path, uuid: &str, json: bool) -> Done {
    let (records, now) = (read(folder)?, now().unix_millis());
    let Some((_, record)) = records.iter().find(|(_, record)| *record.uuid == *uuid) else {
        complain("error", &unknown(folder, uuid));
        return Ok((String::new(), exit::FAILED));
    };
    let last = record.last.map(|status| status.as_str());
    let miner = record.miner.map(|miner| miner.to_string());
    let mut out = String::new();
    if json {
        let updates: Vec<Value> = items(record)
            .map(|item| {
                let mut update = item.json(now);
                merge(&mut update, json!({"text": item.update.text.as_str()}));
                update
            })
            .collect();
        let job = json!({
            "uuid": &*record.uuid, "taken_at": record.taken_at, "miner": miner, "cheated_at": record.cheated_at,
            "last": last, "ended": record.ended, "updates": updates,
        });
        put(&mut out, format_args!("{job}"));
        return Ok((out, exit::DONE));
    }
    let since = |at| ago(seconds(now, at));
    put(&mut out, format_args!("job     {}", record.uuid));
    put(&mut out, format_args!("taken   {} ago", since(record.taken_at)));
    put(&mut out, format_args!("miner   {}", miner.as_deref().unwrap_or("-")));
    let ended = if record.ended { "ended" } else { "not ended" };
    put(&mut out, format_args!("status  {}, {ended}", last.unwrap_or("-")));
    if let Some(at) = record.cheated_at {
        put(&mut out, format_args!("cheated reported {} ago", since(at)));
    }
    for item in items(record) {
        let Update { status, queued_at, text, .. } = item.update;
        let (state, age) = (item.state(), since(*queued_at));
        out.push('\n');
        put(&mut out, format_args!("{} ({state}, {} bytes, from {age} ago)", status.as_str(), text.len()));
        if let Some((reason, at)) = item.death {
            put(&mut out, format_args!("  given up {} ago: {reason}", since(at)));
        }
        put(&mut out, format_args!("  {text}"));
    }
    Ok((out, exit::DONE))
}

fn retry(folder: &Path, uuids: &[String], dry_run: bool) -> Done {
    change(folder, uuids, dry_run, "will be sent at the validator's next start", |record| {
        if record.dead.is_empty() {
            return Err("has no update that was given up");
        }
        match record.revive() {
            0 => Err("is left: the facilitator has its end, and an earlier status would move it backwards"),
            revived => Ok(revived),
        }
    })
}

fn drop_updates(folder: &Path, uuids: &[String], waiting: bool, dry_run: bool) -> Done {
    change(folder, uuids, dry_run, "dropped", |record| {
        let mut dropped = record.dead.drain(..).count();
        if waiting {
            dropped += record.updates.drain(..).count();
        }
        match dropped {
            0 if waiting => Err("has no update"),
            0 => Err("has no update that was given up"),
            dropped => Ok(dropped),
        }
    })
}

/// Changes the records of the named jobs, or of all that have dead letters, in one transaction. `edit` gives how many
/// updates it has changed, or why none.
fn change(
    folder: &Path,
    uuids: &[String],
    dry_run: bool,
    what: &str,
    edit: impl Fn(&mut JobRecord) -> Result<usize, &'static str>,
) -> Done {
    let (journal, mut records) = if dry_run {
        (None, read(folder)?)
    } else {
        let (journal, recovered) = Journal::open(folder)?;
        (Some(journal), decode(recovered, "it was repaired, the damaged files are kept"))
    };
    let mut code = exit::DONE;
    if uuids.is_empty() {
        records.retain(|(_, record)| !record.dead.is_empty());
    } else {
        let named: HashSet<&str> = uuids.iter().map(String::as_str).collect();
        records.retain(|(_, record)| named.contains(&*record.uuid));
        let found: HashSet<&str> = records.iter().map(|(_, record)| &*record.uuid).collect();
        for uuid in uuids.iter().filter(|uuid| !found.contains(uuid.as_str())) {
            complain("error", &unknown(folder, uuid));
            code = exit::FAILED;
        }
    }
    let (mut updates, mut rows) = (0, Vec::new());
    for (number, record) in &mut records {
        match edit(record) {
            Ok(edited) => {
                updates += edited;
                rows.push((*number, record.encode()));
            }
            Err(why) if uuids.is_empty() => complain("warning", &format!("job {} {why}", record.uuid)),
            Err(why) => {
                complain("error", &format!("job {} {why}", record.uuid));
                code = exit::FAILED;
            }
        }
    }
    if let Some(mut journal) = journal {
        journal.write(rows.iter().map(|(id, body)| Change::Put { id: *id, body }))?;
        journal.sync()?;
        journal.close()?;
    }
    let dry = if dry_run { "dry run, nothing is changed: " } else { "" };
    Ok((format!("{dry}{updates} updates of {} jobs {what}\n", rows.len()), code))
}

/// The jobs by number, with every job that cannot be read named on stderr.
fn read(folder: &Path) -> Result<Vec<(u64, JobRecord)>, StoreError> {
    Ok(decode(Journal::read(folder)?, "the validator's next start repairs it"))
}

fn decode(recovered: Recovered, mended: &str) -> Vec<(u64, JobRecord)> {
    if let Some(Damage { lost, kept_aside, what }) = &recovered.damage {
        let file = kept_aside.display();
        complain("warning", &format!("damage: {what}; at least {lost} records are lost; {mended}: {file}"));
    }
    let records = recovered.records.into_iter().filter_map(|(number, bytes)| match JobRecord::decode(&bytes) {
        Ok(record) => Some((number, record)),
        Err(error) => {
            complain("warning", &format!("record {number} is ignored: {error}"));
            None
        }
    });
    records.collect()
}

fn unknown(folder: &Path, uuid: &str) -> String {
    format!("no job {uuid} in {}", folder.display())
}

fn complain(how: &str, problem: &str) {
    eprintln!("{how}: {}", OneLine(&redact::secrets(problem)));
}

/// A line, in which what somebody else wrote begins no other one and colours no terminal.
fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(out, "{}", OneLine(text.to_string().trim_end())).expect("writing to a String cannot fail");
}

/// Adds the fields of one JSON object to another.
fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

/// The seconds between two times in milliseconds.
fn seconds(now: u64, then: u64) -> u64 {
    now.saturating_sub(then) / 1000
}
