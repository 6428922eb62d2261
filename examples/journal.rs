//! What the journal costs: commits per second and their time with and without sync, bytes written, CPU per job,
//! recovery.
//!
//! `cargo run --release --example journal [FOLDER]`; the folder's disk is what is measured, so it must not be in
//! memory.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use phalanx::store::journal::{Change, Journal};

const BODY: [u8; 300] = [b'x'; 300];

fn quantile(sorted: &[Duration], q: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * q).round() as usize].as_secs_f64() * 1e6
}

/// The value of a line of a file in /proc/self.
fn proc(file: &str, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// CPU time of this thread so far.
fn cpu() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0))
}

fn size(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).expect("the folder is there");
    files.map(|file| file.and_then(|file| file.metadata()).map_or(0, |data| data.len())).sum()
}

fn commits(root: &Path, batch: u64, sync: bool) {
    let folder = tempfile::tempdir_in(root).expect("the folder can be written");
    let (mut journal, _) = Journal::open(folder.path()).expect("a new journal");
    let written = proc("io", "write_bytes:");
    let (begin, mut times, mut id) = (Instant::now(), Vec::new(), 0);
    while begin.elapsed() < Duration::from_secs(2) && id < 400_000 {
        let started = Instant::now();
        let puts = (id..id + batch).map(|id| Change::Put { id, body: &BODY });
        // Of 10,000 records the oldest go.
        let deletes = (id..id + batch).filter_map(|id| Some(Change::Delete { id: id.checked_sub(10_000)? }));
        journal.write(puts.chain(deletes)).expect("a write");
        if sync {
            journal.sync().expect("a sync");
        }
        times.push(started.elapsed());
        id += batch;
    }
    let took = begin.elapsed().as_secs_f64();
    let written = proc("io", "write_bytes:") - written;
    times.sort_unstable();
    println!(
        "batch {batch:3} sync {sync:5}: {:7.0} commits/s {:8.0} records/s  p50 {:7.1} µs  p99 {:8.1} µs  \
         max {:8.0} µs  {:6} bytes written a record",
        times.len() as f64 / took,
        id as f64 / took,
        quantile(&times, 0.5),
        quantile(&times, 0.99),
        quantile(&times, 1.0),
        written / id,
    );
}

/// The hot path of a validator: two versions of each job's record, and an old one goes.
fn jobs(root: &Path, batch: u64) {
    let folder = tempfile::tempdir_in(root).expect("the folder can be written");
    let (mut journal, _) = Journal::open(folder.path()).expect("a new journal");
    let (request, end) = ([b'r'; 1024], [b'e'; 100]);
    let jobs = 60_000 / batch * batch;
    let (begin, before) = (Instant::now(), cpu());
    for first in (0..jobs).step_by(batch as usize) {
        journal.write((first..first + batch).map(|id| Change::Put { id, body: &request })).expect("a write");
        let ended = first.saturating_sub(batch);
        journal.write((ended..ended + batch).map(|id| Change::Put { id, body: &end })).expect("a write");
        let old = first.saturating_sub(1000);
        journal.write((old..old + batch).map(|id| Change::Delete { id })).expect("a write");
    }
    let (took, cpu) = (begin.elapsed(), cpu() - before);
    println!(
        "jobs, batch {batch:3}: {:6.1} µs CPU a job ({:.1} µs wall), files {} KiB, resident {} KiB",
        cpu.as_secs_f64() * 1e6 / jobs as f64,
        took.as_secs_f64() * 1e6 / jobs as f64,
        size(folder.path()) >> 10,
        proc("status", "VmRSS:"),
    );
}

/// 10,000 records of 1 KiB; the files as a kill leaves them, then damaged.
fn recovery(root: &Path) {
    let folder = tempfile::tempdir_in(root).expect("the folder can be written");
    let (mut journal, _) = Journal::open(folder.path()).expect("a new journal");
    journal.write((0..10_000).map(|id| Change::Put { id, body: &[b'r'; 1024] })).expect("a write");
    journal.close().expect("a clean end");
    for (what, at) in
        [("whole", None), ("a broken page", Some(4096 * 100 + 3)), ("a broken record", Some(4096 * 100 + 2000))]
    {
        let path = folder.path().join("journal.db");
        if let Some(at) = at {
            let mut bytes = fs::read(&path).expect("the database");
            bytes[at] ^= 1;
            fs::write(&path, bytes).expect("the database");
        }
        let begin = Instant::now();
        let (journal, found) = Journal::open(folder.path()).expect("recovery");
        let took = begin.elapsed();
        println!(
            "open, {what}: {} records in {took:.0?}, {:?}",
            found.records.len(),
            found.damage.map(|d| (d.lost, d.what))
        );
        drop(found.records);
        println!("    resident {} KiB, at most {} KiB", proc("status", "VmRSS:"), proc("status", "VmHWM:"));
        drop(journal);
    }
}

fn main() {
    let root = std::env::args_os().nth(1).unwrap_or_else(|| "target".into());
    let root = Path::new(&root);
    for batch in [1, 64] {
        jobs(root, batch);
    }
    for sync in [false, true] {
        for batch in [1, 8, 64, 512] {
            commits(root, batch, sync);
        }
    }
    recovery(root);
}
