//! The journal under damage, kills and lost page caches: each record is there byte for byte, or it is the one that was
//! hit.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use phalanx::base::limits::JOURNAL_BODY_BYTES;
use phalanx::base::rng::Rng;
use phalanx::base::thread::{Kick, spawn};
use phalanx::store::StoreError;
use phalanx::store::journal::{Change, ID_MAX, Journal, Recovered};
use tempfile::TempDir;

type Map = BTreeMap<u64, Vec<u8>>;

/// Damage to every bit and a cut at every byte instead of some thousand of them.
fn full_sweep() -> bool {
    std::env::var_os("PHALANX_TEST_FULL_SWEEP").is_some()
}

fn seeded() -> Rng {
    let seed = std::env::var("PHALANX_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| Rng::from_entropy().next_u64());
    eprintln!("PHALANX_TEST_SEED={seed}");
    Rng::new(seed)
}

/// In memory where there is such a folder: thousands of journals are made, and none needs the disk.
fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn below(rng: &mut Rng, n: usize) -> usize {
    (rng.next_u64() % n as u64) as usize
}

fn bytes(rng: &mut Rng, count: usize) -> Vec<u8> {
    (0..count.div_ceil(8)).flat_map(|_| rng.next_u64().to_le_bytes()).take(count).collect()
}

/// The two files of a journal.
#[derive(Clone, Default)]
struct Files {
    database: Vec<u8>,
    log: Vec<u8>,
}

impl Files {
    fn of(folder: &Path) -> Self {
        let log = fs::read(folder.join("journal.db-wal")).unwrap_or_default();
        Self { database: fs::read(folder.join("journal.db")).unwrap(), log }
    }

    fn put(&self, folder: &Path) {
        fs::write(folder.join("journal.db"), &self.database).unwrap();
        if !self.log.is_empty() {
            fs::write(folder.join("journal.db-wal"), &self.log).unwrap();
        }
    }

    fn file(&mut self, log: bool) -> &mut Vec<u8> {
        if log { &mut self.log } else { &mut self.database }
    }

    /// What a journal finds in them. With `open` it repairs them, and what the next start finds must be the same.
    fn recover(&self, open: bool) -> Recovered {
        let folder = folder();
        self.put(folder.path());
        if !open {
            return Journal::read(folder.path()).unwrap();
        }
        let (mut journal, found) = Journal::open(folder.path()).unwrap();
        if let Some(damage) = &found.damage {
            let name = damage.kept_aside.to_str().unwrap();
            assert!(name.ends_with("journal.db.damaged-1"), "{name}");
            assert_eq!(fs::read(name).unwrap(), self.database);
            assert_eq!(fs::read(format!("{name}-wal")).unwrap_or_default(), self.log);
        }
        journal.write([Change::Put { id: ID_MAX, body: b"new" }]).unwrap();
        journal.close().unwrap();
        let (_journal, again) = Journal::open(folder.path()).unwrap();
        assert!(again.damage.is_none(), "{:?} after {:?}", again.damage, found.damage);
        assert_eq!(again.records.split_last().unwrap(), (&(ID_MAX, b"new".to_vec()), found.records.as_slice()));
        found
    }
}

/// A journal with a history.
struct Sample {
    files: Files,
    /// What it held after each commit.
    states: Vec<Map>,
    /// All bodies that each record ever had.
    bodies: BTreeMap<u64, Vec<Vec<u8>>>,
}

impl Sample {
    /// About 40 records of 20 bytes to 30 KiB, most of them small; some were overwritten and some deleted. `logged` is
    /// how much of that is still in the log: all, the second half, or nothing after a clean end.
    fn new(rng: &mut Rng, logged: Logged) -> Self {
        let folder = folder();
        let (mut journal, _) = Journal::open(folder.path()).unwrap();
        let (mut state, mut states, mut bodies) = (Map::new(), vec![Map::new()], BTreeMap::<u64, Vec<Vec<u8>>>::new());
        for step in 0..14 {
            let mut changes = Vec::new();
            for id in step * 3..step * 3 + 3 {
                changes.push((id, Some(below(rng, 12))));
            }
            if step > 3 {
                changes.push((below(rng, step as usize * 3) as u64, Some(below(rng, 8))));
                changes.push((below(rng, step as usize * 3) as u64, None));
            }
            let changes: Vec<_> = changes
                .into_iter()
                .map(|(id, size)| {
                    let body = size.map(|size| 20 + below(rng, 15 << size));
                    (id, body.map(|size| bytes(rng, size)))
                })
                .collect();
            journal.write(changes.iter().map(|(id, body)| change(*id, body.as_deref()))).unwrap();
            for (id, body) in changes {
                match body {
                    Some(body) => {
                        bodies.entry(id).or_default().push(body.clone());
                        state.insert(id, body);
                    }
                    None => drop(state.remove(&id)),
                }
            }
            states.push(state.clone());
            if logged == Logged::Half && step == 7 {
                journal.close().unwrap();
                (journal, _) = Journal::open(folder.path()).unwrap();
                states = vec![state.clone()];
            }
        }
        assert!(state.len() > 25);
        if logged == Logged::Nothing {
            journal.close().unwrap();
            assert!(!folder.path().join("journal.db-wal").exists());
        }
        let files = Files::of(folder.path());
        let whole = files.recover(true);
        assert!(whole.damage.is_none(), "{:?}", whole.damage);
        assert_eq!(map(whole), state);
        Self { files, states, bodies }
    }

    fn state(&self) -> &Map {
        self.states.last().unwrap()
    }

    /// Nothing is there that was never written, and what is deleted or old only after damage that is reported. Gives
    /// the records that are gone or old.
    fn missing(&self, found: Recovered) -> Vec<u64> {
        let damage = found.damage.as_ref().map(|damage| (damage.lost, damage.what.clone()));
        let found = map(found);
        for (id, body) in &found {
            let known = self.bodies.get(id).is_some_and(|bodies| bodies.contains(body));
            assert!(known, "record {id} was never {} bytes like these: {damage:?}", body.len());
        }
        let missing: Vec<u64> =
            self.state().iter().filter(|(id, body)| found.get(id) != Some(body)).map(|(id, _)| *id).collect();
        assert!(found == *self.state() || damage.is_some(), "{missing:?} are missing, and no damage was found");
        missing
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Logged {
    Nothing,
    Half,
    All,
}

fn change(id: u64, body: Option<&[u8]>) -> Change<'_> {
    body.map_or(Change::Delete { id }, |body| Change::Put { id, body })
}

fn map(found: Recovered) -> Map {
    found.records.into_iter().collect()
}

/// A frame as the layout in the documentation of `journal/frame.rs` says: where it is, of which record, version and
/// part.
fn frames(file: &[u8]) -> Vec<(Range<usize>, u64, u64, u16)> {
    let number = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap());
    let short = |at: usize| u16::from_le_bytes(file[at..at + 2].try_into().unwrap());
    let (mut found, mut at) = (Vec::new(), 0);
    while at + 34 <= file.len() {
        if file[at..].starts_with(b"PhJ\x01") {
            let end = at + 34 + usize::from(short(at + 12));
            found.push((at..end, number(at + 18), number(at + 26), short(at + 14)));
            at = end;
        } else {
            at += 1;
        }
    }
    found
}

/// The positions to damage: all, or about `count` of them.
fn positions(rng: &mut Rng, length: usize, count: usize) -> Vec<usize> {
    let step = if full_sweep() { 1 } else { (length / count).max(1) };
    // Each step has its own offset, and the headers at the beginning get more than their share.
    let spread: Vec<usize> = (0..length / step).map(|n| n * step + below(rng, step)).collect();
    (0..30.min(length)).map(|_| below(rng, length.min(120))).chain(spread).collect()
}

#[test]
fn a_flipped_bit_costs_at_most_the_record_it_hits() {
    let mut rng = seeded();
    let (mut flips, mut hits, mut back) = (0, 0, 0);
    for logged in [Logged::Nothing, Logged::Half, Logged::All] {
        let sample = Sample::new(&mut rng, logged);
        for log in [false, true] {
            let mut files = sample.files.clone();
            let places = frames(files.file(log));
            for at in positions(&mut rng, files.file(log).len(), 150) {
                let bits = if full_sweep() { (0..8).collect() } else { vec![below(&mut rng, 8)] };
                for bit in bits {
                    files.file(log)[at] ^= 1 << bit;
                    let found = files.recover(flips % 16 == 0);
                    files.file(log)[at] ^= 1 << bit;
                    back += found.records.iter().filter(|(id, _)| !sample.state().contains_key(id)).count();
                    let lost = found.damage.as_ref().map_or(0, |damage| damage.lost);
                    let missing = sample.missing(found);
                    let hit: Vec<u64> =
                        places.iter().filter(|place| place.0.contains(&at)).map(|place| place.1).collect();
                    let wrong = missing.iter().any(|id| !hit.contains(id)) || (logged == Logged::Nothing && lost > 1);
                    assert!(
                        !wrong,
                        "{logged:?}, log {log}, byte {at}, bit {bit}: {missing:?} for {hit:?}, {lost} reported"
                    );
                    flips += 1;
                    hits += missing.len();
                }
            }
        }
    }
    eprintln!("{flips} flips: {hits} records lost or old, {back} deleted ones came back");
    assert!(hits > 0);
}

#[test]
fn a_truncated_file_keeps_what_is_before_its_end() {
    let mut rng = seeded();
    for logged in [Logged::Nothing, Logged::Half, Logged::All] {
        let sample = Sample::new(&mut rng, logged);
        let (database, log) = (frames(&sample.files.database), frames(&sample.files.log));
        for (n, at) in positions(&mut rng, sample.files.database.len(), 60).into_iter().enumerate() {
            let mut files = sample.files.clone();
            files.database.truncate(at);
            let missing = sample.missing(files.recover(n % 8 == 0));
            let left = || database.iter().filter(|place| place.0.end <= at).chain(&log);
            for id in missing {
                let newest =
                    database.iter().chain(&log).filter(|place| place.1 == id).map(|place| place.2).max().unwrap();
                let parts = sample.state()[&id].len().div_ceil(4022).max(1) as u16;
                let whole =
                    (0..parts).all(|part| left().any(|(_, i, version, p)| (*i, *version, *p) == (id, newest, part)));
                assert!(!whole, "{logged:?}, cut at {at}: record {id} is gone, though its bytes are there");
            }
        }
        // What is cut off a log looks as if it had not been written yet.
        for (n, at) in positions(&mut rng, sample.files.log.len(), 60).into_iter().enumerate() {
            let mut files = sample.files.clone();
            files.log.truncate(at);
            let found = files.recover(n % 8 == 0);
            assert!(found.damage.is_none(), "{logged:?}, log cut at {at}: {:?}", found.damage);
            let found = map(found);
            assert!(sample.states.contains(&found), "{logged:?}, log cut at {at}");
        }
    }
}

#[test]
fn any_garbage_is_survived_and_nothing_is_made_up() {
    let mut rng = seeded();
    for logged in [Logged::Nothing, Logged::Half, Logged::All] {
        let sample = Sample::new(&mut rng, logged);
        for _ in 0..if full_sweep() { 20_000 } else { 60 } {
            let mut files = sample.files.clone();
            for _ in 0..=below(&mut rng, 6) {
                let log = !files.log.is_empty() && rng.one_in(2);
                let file = files.file(log);
                let from = below(&mut rng, file.len());
                let to = file.len().min(from + 1 + below(&mut rng, 6000));
                match below(&mut rng, 4) {
                    0 => file[from..to].fill(0),
                    1 => file[from..to].copy_from_slice(&bytes(&mut rng, to - from)),
                    2 => file.copy_within(from..to, 0),
                    _ => drop(file.drain(from..to)),
                }
                if file.is_empty() {
                    break;
                }
            }
            // No damage found is right when only free space was hit.
            let found = files.recover(true);
            let hurt = found.damage.is_some();
            if hurt || logged == Logged::Nothing {
                sample.missing(found);
            } else {
                assert!(sample.states.contains(&map(found)) || hurt);
            }
        }
    }
}

/// Written before a sync: there, whatever of the later writes got to the disk before the power went.
#[test]
fn what_was_synced_survives_a_lost_page_cache() {
    let mut rng = seeded();
    let folder = folder();
    let (mut journal, _) = Journal::open(folder.path()).unwrap();
    let body = |n: u64, id: u64| [n.to_le_bytes().as_slice(), &vec![id as u8; 900]].concat();
    let mut write = |n: u64| {
        let bodies: Vec<_> = (0..20).map(|id| body(n, id)).collect();
        journal.write(bodies.iter().zip(0..).map(|(body, id)| Change::Put { id, body })).unwrap();
        if n == 5 {
            journal.sync().unwrap();
        }
    };
    (0..=5).for_each(&mut write);
    let synced = Files::of(folder.path());
    (6..30).for_each(&mut write);
    let later = Files::of(folder.path());
    assert_eq!(synced.database, later.database, "the sample is to have no checkpoint");
    for _ in 0..60 {
        let mut log = synced.log.clone();
        let length = synced.log.len() + below(&mut rng, later.log.len() - synced.log.len());
        log.resize(length, 0);
        for (block, late) in log.chunks_mut(4096).zip(later.log.chunks(4096)) {
            if rng.one_in(2) {
                let length = block.len();
                block.copy_from_slice(&late[..length]);
            }
        }
        let found = map(Files { database: synced.database.clone(), log }.recover(true));
        assert_eq!(found.len(), 20);
        for (id, found) in found {
            assert!((5..30).any(|n| found == body(n, id)), "record {id} is older than the sync");
        }
    }
}

/// This program as the child of the test below: writes numbered records, prints each number once `write` has returned.
fn write_until_killed(folder: &Path) -> ! {
    let (mut journal, found) = Journal::open(folder).unwrap();
    let mut next = found.records.last().map_or(0, |(id, _)| id + 1);
    loop {
        let batch = 1 + next % 9;
        let bodies: Vec<_> = (next..next + batch).map(|id| (id, numbered(id))).collect();
        let deletes = bodies.iter().filter_map(|(id, _)| Some(Change::Delete { id: id.checked_sub(200)? }));
        journal.write(bodies.iter().map(|(id, body)| Change::Put { id: *id, body }).chain(deletes)).unwrap();
        next += batch;
        println!("{}", next - 1);
    }
}

fn numbered(id: u64) -> Vec<u8> {
    vec![id as u8; 20 + (id as usize * 7919) % 6000]
}

#[test]
fn what_was_written_survives_kill_9() {
    if let Some(folder) = std::env::var_os("PHALANX_TEST_JOURNAL_CHILD") {
        write_until_killed(Path::new(&folder));
    }
    let mut rng = seeded();
    let folder = folder();
    for round in 0..30 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "journal::what_was_written_survives_kill_9", "--nocapture"])
            .env("PHALANX_TEST_JOURNAL_CHILD", folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut written = (&mut lines).filter_map(|line| line.unwrap().parse::<u64>().ok());
        written.nth(below(&mut rng, 120)).expect("the child, which is this test, writes until it is killed");
        if round == 0 {
            let error = Journal::open(folder.path()).unwrap_err().to_string();
            let expected = format!("in use by process {}: stop that one", child.id());
            assert!(matches!(error.split_once(&expected), Some((_, rest)) if !rest.contains('\n')), "{error}");
            let seen = Journal::read(folder.path()).unwrap();
            assert!(seen.damage.is_none() && !seen.records.is_empty(), "{:?}", seen.damage);
        }
        child.kill().unwrap();
        let last = written.last();
        child.wait().unwrap();
        let (_journal, found) = Journal::open(folder.path()).unwrap();
        assert!(found.damage.is_none(), "{:?}", found.damage);
        let found = map(found);
        // The last batch may be there without having been printed; batches are whole, and each deletes what is 200
        // older.
        let newest = *found.keys().next_back().unwrap();
        assert!(
            last.is_none_or(|last| (last..=last + 9).contains(&newest)),
            "round {round}: {newest}, printed {last:?}"
        );
        assert!(
            found.keys().copied().eq((newest + 1).saturating_sub(200)..=newest),
            "round {round}: {:?}",
            found.keys()
        );
        assert!(found.iter().all(|(id, body)| *body == numbered(*id)));
    }
}

#[test]
fn a_reader_beside_the_owner_sees_a_state_that_was() {
    let folder = folder();
    let (mut journal, _) = Journal::open(folder.path()).unwrap();
    let write = |journal: &mut Journal, n: u64| {
        let body = [n.to_le_bytes().as_slice(), &[7; 3000]].concat();
        journal.write((0..30).map(|id| Change::Put { id, body: &body })).unwrap();
    };
    write(&mut journal, 0);
    let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
    let writer = spawn("t-writer", Kick::dropped("its channel"), move || {
        let mut n = 0;
        while stopped.try_recv() == Err(crossbeam_channel::TryRecvError::Empty) {
            n += 1;
            write(&mut journal, n);
        }
        n
    });
    let mut last = 0;
    let mut seen = 0;
    while seen < 50 || last < 200 {
        let found = match Journal::read(folder.path()) {
            Err(StoreError::Busy { .. }) => continue,
            found => found.unwrap(),
        };
        assert!(found.damage.is_none(), "{:?}", found.damage);
        assert_eq!(found.records.len(), 30);
        assert!(found.records.iter().all(|(_, body)| *body == found.records[0].1));
        let n = u64::from_le_bytes(found.records[0].1[..8].try_into().unwrap());
        assert!(n >= last);
        (last, seen) = (n, seen + 1);
    }
    drop(stop);
    assert!(writer.join_by(Instant::now() + Duration::from_secs(60)).unwrap() >= last);
}

#[test]
fn records_of_all_sizes_come_back_and_shrink_and_grow() {
    let mut rng = seeded();
    let folder = folder();
    let (mut journal, found) = Journal::open(folder.path()).unwrap();
    assert!(found.records.is_empty() && found.damage.is_none());
    let mut expected = Map::new();
    for round in 0..2 {
        for size in [0, 1, 4021, 4022, 4023, 8044, 8045, 100_000, JOURNAL_BODY_BYTES] {
            for id in [ID_MAX, ID_MAX - 1, 0, 1] {
                if size == JOURNAL_BODY_BYTES && (id, round) != (ID_MAX, 0) {
                    continue; // The largest once, then replaced by the smallest.
                }
                let body = bytes(&mut rng, size);
                journal.write([Change::Put { id, body: &body }]).unwrap();
                expected.insert(id, body);
            }
        }
        journal.write([Change::Delete { id: 1 }, Change::Delete { id: 77 }]).unwrap();
        expected.remove(&1);
        let seen = Journal::read(folder.path()).unwrap();
        assert!(seen.damage.is_none(), "{:?}", seen.damage);
        assert!(map(seen) == expected, "read, round {round}");
        journal.close().unwrap();
        let found;
        (journal, found) = Journal::open(folder.path()).unwrap();
        assert!(map(found) == expected, "open, round {round}");
    }
}

#[test]
fn a_write_that_fails_changes_nothing() {
    let folder = folder();
    let (mut journal, _) = Journal::open(folder.path()).unwrap();
    let (long, short) = (vec![1; 50_000], [2; 10]);
    journal.write([Change::Put { id: 1, body: &long }]).unwrap();
    let bad = Change::Put { id: ID_MAX + 1, body: b"" };
    let error = journal.write([Change::Put { id: 1, body: &short }, bad]).unwrap_err();
    assert_eq!(error.to_string(), format!("record {} of the journal: the highest number is {ID_MAX}", ID_MAX + 1));
    let huge = vec![0; JOURNAL_BODY_BYTES + 1];
    let error = journal.write([Change::Delete { id: 1 }, Change::Put { id: 2, body: &huge }]).unwrap_err();
    let expected = format!("has {} bytes: at most {JOURNAL_BODY_BYTES} are kept", huge.len());
    assert!(error.to_string().contains(&expected), "{error}");
    let seen = || map(Journal::read(folder.path()).unwrap());
    assert_eq!(seen(), Map::from([(1, long)]));
    // The parts of the long body, which was nearly replaced, are not forgotten.
    journal.write([Change::Put { id: 1, body: &short }]).unwrap();
    assert_eq!(seen(), Map::from([(1, short.to_vec())]));
}

#[test]
fn one_folder_has_one_owner() {
    let folder = folder();
    let (journal, _) = Journal::open(folder.path()).unwrap();
    let error = Journal::open(folder.path()).unwrap_err();
    assert!(matches!(&error, StoreError::InUse { pid, .. } if *pid == std::process::id().to_string()), "{error}");
    drop(journal);
    Journal::open(folder.path()).unwrap();
}

/// A record that holds a frame, as a copy of a journal would: it does not get out when the record around it is damaged.
#[test]
fn a_frame_within_a_record_is_no_record() {
    let (inner, outer) = (folder(), folder());
    let (mut journal, _) = Journal::open(inner.path()).unwrap();
    journal.write((0..9).map(|id| Change::Put { id, body: b"of another journal" })).unwrap();
    journal.close().unwrap();
    let copy = Files::of(inner.path()).database;
    let (mut journal, _) = Journal::open(outer.path()).unwrap();
    journal.write([Change::Put { id: 5, body: &copy }, Change::Put { id: 6, body: b"small" }]).unwrap();
    let mut files = Files::of(outer.path());
    assert_eq!(map(files.recover(true)).len(), 2);
    for (place, ..) in frames(&files.log.clone()).into_iter().filter(|(_, id, ..)| *id == 5) {
        files.log[place.start + 20] ^= 1;
    }
    let found = files.recover(true);
    assert!(found.damage.is_some());
    assert_eq!(map(found), Map::from([(6, b"small".to_vec())]));
}

#[test]
fn space_is_used_again_and_the_log_goes_at_a_clean_end() {
    let folder = folder();
    let (mut journal, _) = Journal::open(folder.path()).unwrap();
    for first in (0..20_000).step_by(50) {
        journal.write((first..first + 50).map(|id| Change::Put { id, body: &[3; 1024] })).unwrap();
        journal.write((first..first + 50).map(|id| Change::Put { id, body: &[4; 100] })).unwrap();
        journal.write((first..first + 50).filter_map(|id| Some(Change::Delete { id: id.checked_sub(500)? }))).unwrap();
        let Files { database, log } = Files::of(folder.path());
        // Of 550 records 3 are in a page, as they were when they had 1 KiB; 1,000 pages, and what a commit adds, are
        // 4.5 MiB.
        assert!(database.len() < 800 << 10 && log.len() < 9 << 19, "{} and {} bytes", database.len(), log.len());
    }
    journal.close().unwrap();
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert!(names.len() == 2 && names.iter().all(|name| name == "journal.db" || name == "journal.lock"), "{names:?}");
}

/// A repair that is killed between any two of its steps is finished by the next start.
#[test]
fn an_interrupted_repair_goes_on() {
    let mut rng = seeded();
    let sample = Sample::new(&mut rng, Logged::Half);
    let done = folder();
    sample.files.put(done.path());
    drop(Journal::open(done.path()).unwrap());
    let built = Files::of(done.path()).database;
    let damaged = Files { database: b"anything".to_vec(), log: b"of no use".to_vec() };
    for step in 0..3 {
        let folder = folder();
        damaged.put(folder.path());
        let path = |name: &str| folder.path().join(name);
        fs::write(path("journal.db.building"), b"half").unwrap();
        fs::write(path("journal.db.new"), &built).unwrap();
        if step > 0 {
            fs::rename(path("journal.db-wal"), path("journal.db.damaged-1-wal")).unwrap();
        }
        if step > 1 {
            fs::rename(path("journal.db"), path("journal.db.damaged-1")).unwrap();
        }
        assert_eq!(map(Journal::read(folder.path()).unwrap()), *sample.state());
        let (_journal, found) = Journal::open(folder.path()).unwrap();
        assert!(found.damage.is_none(), "step {step}: {:?}", found.damage);
        assert_eq!(map(found), *sample.state());
        assert!(!path("journal.db.new").exists());
    }
}

#[test]
fn a_file_that_is_no_journal_is_kept_aside() {
    let folder = folder();
    let text = b"notes, not a database".repeat(500);
    fs::write(folder.path().join("journal.db"), &text).unwrap();
    let (_journal, found) = Journal::open(folder.path()).unwrap();
    let damage = found.damage.unwrap();
    assert_eq!((found.records.len(), damage.what.as_str()), (0, "the database does not begin like one"));
    assert_eq!(fs::read(damage.kept_aside).unwrap(), text);
    assert!(Journal::read(Path::new("/nowhere/at/all")).unwrap().records.is_empty());
}
