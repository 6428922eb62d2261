//! `phalanx batch` as a process: real miners, the contract of its output, Ctrl-C, and kills at random moments.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use phalanx::base::rng::Rng;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::testkit::batch_miners::{BatchMiners, Kind, RIGHT};
use crate::testkit::http::{Reply, Server};
use crate::testkit::process::{Finished, Running, in_scratch, nothing_left, phalanx, run};
use crate::testkit::python;
use crate::testkit::roles::World;
use crate::testkit::wait::until;

/// How often it is killed; `PHALANX_TEST_KILLS` says otherwise.
const KILLS: usize = 20;

const ALICE: &str = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";

fn job(script: &str, expected: &str) -> String {
    let job = json!({
        "executor_class": "always_on.test", "docker_image": "none", "args": ["sh", "-c", script],
        "expected_stdout": expected,
    });
    format!("{job}\n")
}

/// A batch of the miners in `folder/miners.toml` and the jobs in `folder/jobs`.
fn batch(scratch: &Path, folder: &Path, arguments: &[&str]) -> Command {
    let mut command = phalanx(scratch);
    command.args(["batch", "--json", "--miners"]).arg(folder.join("miners.toml"));
    command.arg("--jobs").arg(folder.join("jobs")).args(arguments).env("PHALANX_KEY", "//Alice");
    command
}

/// The lines of jobs, and the summary.
fn output(finished: &Finished) -> (Vec<Value>, Value) {
    let mut lines: Vec<Value> = finished.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let summary = lines.pop().unwrap_or_else(|| panic!("no summary: {finished:?}"));
    (lines, summary["summary"].clone())
}

fn outcomes(lines: &[Value]) -> HashMap<&str, usize> {
    let mut counts = HashMap::new();
    for line in lines {
        *counts.entry(line["outcome"].as_str().unwrap()).or_default() += 1;
    }
    counts
}

/// A miner as a process, with its entry in a miners file.
fn real_miner(scratch: &Path, folder: &Path, key: &str, executors: usize) -> (Running, String) {
    let mut miner = phalanx(scratch);
    miner.args(["miner", "--listen", "127.0.0.1:0", "--validator", ALICE, "--executors"]);
    miner.arg(format!("always_on.test={executors}")).args(["--runner", "process", "--drain-time", "1s", "--state-dir"]);
    let mut miner = Running::start(miner.arg(folder.join(key.replace('/', ""))).env("PHALANX_KEY", key));
    let line: Value = serde_json::from_str(&miner.line()).unwrap();
    let port = line["listening"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
    let hotkey = phalanx::identity::KeyPair::from_uri(key).unwrap().ss58();
    (miner, format!("[[miner]]\nhotkey = \"{hotkey}\"\naddress = \"127.0.0.1\"\nport = {port}\n"))
}

#[test]
fn a_batch_runs_jobs_on_real_miners_and_judges_what_they_write() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = |name: &str| folder.path().join(name);
    let (mut miners, mut running) = (String::new(), Vec::new());
    for key in ["//Bob", "//Charlie"] {
        let (miner, entry) = real_miner(scratch.path(), folder.path(), key, 2);
        miners += &entry;
        running.push(miner);
    }
    std::fs::write(path("miners.toml"), &miners).unwrap();
    std::fs::write(path("jobs"), job("echo $((6 * 7))", "42\n")).unwrap();

    let planned = run(&mut batch(scratch.path(), folder.path(), &["--dry-run", "--seed", "3"]));
    let (lines, summary) = output(&planned);
    assert_eq!((planned.code, lines.len(), &summary["seed"], &summary["jobs"]), (Some(0), 4, &json!(3), &json!(4)));
    assert!(lines.iter().all(|line| line["outcome"].is_null() && line["job_uuid"].is_string()), "{lines:?}");

    let done = run(&mut batch(scratch.path(), folder.path(), &["--seed", "3"]));
    let (lines, summary) = output(&done);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_eq!(outcomes(&lines), HashMap::from([("completed", 4)]), "{done:?}");
    for line in &lines {
        assert_eq!((&line["scored"], &line["late"], &line["reason"]), (&json!(true), &json!(false), &Value::Null));
        assert!(line["seconds"].as_f64().unwrap() > 0.0 && line["class"] == "always_on.test", "{line}");
        let at = |key: &str| line[key].as_str().unwrap().to_owned();
        assert!([at("accepted_at"), at("ready_at"), at("sent_at"), at("answered_at")].is_sorted(), "{line}");
    }
    assert_eq!((&summary["jobs"], &summary["outcomes"]), (&json!(4), &json!({"completed": 4})));
    assert!(done.stderr.contains("seed 3"), "{}", done.stderr);

    // More are asked for than there are executors, and what they write is wrong.
    std::fs::write(path("jobs"), job("echo 41", "42\n")).unwrap();
    let done = run(&mut batch(scratch.path(), folder.path(), &["--per-miner", "3"]));
    let (lines, _) = output(&done);
    assert_eq!(outcomes(&lines), HashMap::from([("failed", 4), ("declined", 2)]), "{done:?}");
    let wrong = lines.iter().find(|line| line["outcome"] == "failed").unwrap();
    assert!(wrong["reason"].as_str().unwrap().starts_with("wrong answer: stdout begins with \"41\\n\""), "{wrong}");

    for miner in running {
        let stopped = miner.stop(Signal::TERM);
        assert_eq!(stopped.code, Some(0), "{}", stopped.stderr);
    }
    nothing_left(scratch.path());
}

#[test]
fn what_is_wrong_with_the_arguments_is_said_in_a_line() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("miners.toml"), format!("[[miner]]\nhotkey = \"{ALICE}\"\naddress = \"x\"\nport = 1\n"))
        .unwrap();
    std::fs::write(path("jobs"), job("true", "")).unwrap();
    let state = path("state").display().to_string();
    let file = path("jobs").display().to_string();
    let none = "the state folder holds no batch; give that of one, or begin one there\n";
    for (arguments, problem) in [
        (&["--per-miner", "0"][..], "error: 0 jobs for each miner; it should be at least 1\n"),
        (&["--max-fail", "101"], "error: more than 100 per cent may fail; it should be from 0 to 100\n"),
        (&["--resume", "--state-dir", &state], none),
        (&["--replay", "--state-dir", &state], none),
        (&["--state-dir", &file], "/jobs: File exists (os error 17)\n"),
    ] {
        let refused = run(&mut batch(scratch.path(), folder.path(), arguments));
        assert!(refused.stderr.ends_with(problem) && refused.stderr.starts_with("error: "), "{}", refused.stderr);
        assert_eq!((refused.stderr.lines().count(), refused.stdout.as_str()), (1, ""));
        assert_eq!(refused.code, Some(2));
    }
    assert!(!path("state").exists(), "a name that was mistyped makes no folder");
    let _held = phalanx::store::batch::BatchStore::open(&path("state")).unwrap();
    for more in [&[][..], &["--resume"], &["--replay"]] {
        let refused = run(batch(scratch.path(), folder.path(), &["--state-dir", &state]).args(more));
        let begins = format!("error: --state-dir {state}: the state folder {state} is in use by process ");
        assert!(refused.stderr.starts_with(&begins), "{}", refused.stderr);
        assert_eq!((refused.stderr.lines().count(), refused.code), (1, Some(2)));
    }
}

#[test]
fn after_ctrl_c_it_reports_what_there_is_and_says_so_with_its_code() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let world = World::new();
    let miners = BatchMiners::start(&world, &[(Kind::Good, 0), (Kind::Refusing, 0), (Kind::Good, 3_600_000)], 1);
    std::fs::write(folder.path().join("miners.toml"), miners.file()).unwrap();
    std::fs::write(folder.path().join("jobs"), job("true", RIGHT)).unwrap();
    let mut running = Running::start(&mut batch(scratch.path(), folder.path(), &[]));
    let first: Vec<String> = (0..2).map(|_| running.line()).collect();
    let stopped = running.stop(Signal::INT);
    let (lines, summary) = output(&stopped);
    assert_eq!((stopped.code, lines.len()), (Some(1), 2), "{stopped:?}");
    assert_eq!(stopped.stdout.lines().take(2).collect::<Vec<_>>(), first);
    assert_eq!(summary["outcomes"], json!({"completed": 1, "refused": 1}));
    until("all connections are closed", || miners.seen(|seen| seen.open == 0));
    miners.stop();
    nothing_left(scratch.path());
}

#[test]
fn ctrl_c_tells_miners_that_nobody_waits_and_what_goes_on_is_asked_under_other_uuids() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let world = World::new();
    let miners = BatchMiners::start(&world, &[(Kind::Silent, 0), (Kind::Refusing, 0)], 3);
    std::fs::write(folder.path().join("miners.toml"), miners.file()).unwrap();
    std::fs::write(folder.path().join("jobs"), job("true", RIGHT)).unwrap();
    let state = folder.path().join("state").display().to_string();
    for (asked, more) in [(3, None), (6, Some("--resume"))] {
        let mut command = batch(scratch.path(), folder.path(), &["--state-dir", &state]);
        let running = Running::start(command.args(more));
        until("all that has not left is asked for", || miners.seen(|seen| seen.asked.len() == asked));
        let stopped = running.stop(Signal::INT);
        assert_eq!(stopped.code, Some(1), "{stopped:?}");
        let told = miners.seen(|seen| seen.asked.keys().all(|uuid| seen.receipts.contains(uuid)));
        assert!(told, "before the process ends");
    }
    miners.seen(|seen| assert!(seen.asked.values().all(|count| *count == 1), "{:?}", seen.asked));
    miners.stop();
    nothing_left(scratch.path());
}

#[test]
fn a_real_miner_that_was_told_of_ctrl_c_has_its_executor_for_the_batch_that_goes_on() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let world = World::new();
    // Holds the gate, until it is late.
    let silent = BatchMiners::start(&world, &[(Kind::Silent, 0)], 1);
    let (miner, entry) = real_miner(scratch.path(), folder.path(), "//Bob", 1);
    std::fs::write(folder.path().join("miners.toml"), silent.file() + &entry).unwrap();
    std::fs::write(folder.path().join("jobs"), job("echo 42", RIGHT)).unwrap();
    let state = folder.path().join("state").display().to_string();
    let running = Running::start(&mut batch(scratch.path(), folder.path(), &["--state-dir", &state]));
    until("its executor is reserved", || miner.stderr().contains(": accepted from validator"));
    let stopped = running.stop(Signal::INT);
    assert_eq!((stopped.code, output(&stopped).0.len()), (Some(1), 0), "{stopped:?}");
    let resumed = run(&mut batch(scratch.path(), folder.path(), &["--state-dir", &state, "--resume"]));
    let (lines, _) = output(&resumed);
    assert_eq!(outcomes(&lines), HashMap::from([("completed", 1), ("timeout", 1)]), "{resumed:?}");
    let stopped = miner.stop(Signal::TERM);
    assert!(stopped.code == Some(0) && stopped.stderr.contains("given it up before it was to run"), "{stopped:?}");
    silent.stop();
    nothing_left(scratch.path());
}

#[test]
fn a_batch_that_was_late_before_a_kill_is_flagged_when_it_has_gone_on() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let world = World::new();
    let miners = BatchMiners::start(&world, &[(Kind::Good, 3_600_000), (Kind::Good, 3_000)], 1);
    std::fs::write(folder.path().join("miners.toml"), miners.file()).unwrap();
    std::fs::write(folder.path().join("jobs"), job("true", RIGHT)).unwrap();
    let state = folder.path().join("state").display().to_string();
    let mut running = Running::start(&mut batch(scratch.path(), folder.path(), &["--state-dir", &state]));
    until("both have their jobs", || miners.seen(|seen| seen.requests.len() == 2));
    running.signal(Signal::STOP);
    assert!(!running.ended_within(Duration::from_millis(700)), "it stands still");
    running.signal(Signal::CONT);
    // What is shown then is behind the lag on disk.
    let line = running.line();
    assert!(line.contains("\"completed\""), "{line}");
    running.stop(Signal::KILL);
    let resumed = run(&mut batch(scratch.path(), folder.path(), &["--state-dir", &state, "--resume"]));
    let (lines, summary) = output(&resumed);
    assert_eq!((resumed.code, lines.len()), (Some(0), 2), "{resumed:?}");
    assert!(summary["flagged"] == true && summary["lag_ms"].as_f64().unwrap() > 500.0, "{summary}");
    miners.stop();
}

#[test]
fn what_is_not_the_batch_in_the_folder_is_refused_by_what_differs() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = |name: &str| folder.path().join(name);
    let world = World::new();
    let miners = BatchMiners::start(&world, &[(Kind::Refusing, 0)], 1);
    std::fs::write(path("miners.toml"), miners.file()).unwrap();
    let with_file = job("true", "").replace("\"args\"", "\"files\": {\"in\": {\"path\": \"input\"}}, \"args\"");
    std::fs::write(path("jobs"), with_file).unwrap();
    std::fs::write(path("input"), "1").unwrap();
    let state = path("state").display().to_string();
    assert_eq!(run(&mut batch(scratch.path(), folder.path(), &["--state-dir", &state])).code, Some(0));
    let resume = |key: &str, more: &[&str]| {
        let mut command = batch(scratch.path(), folder.path(), &["--state-dir", &state, "--resume"]);
        run(command.args(more).env("PHALANX_KEY", key))
    };
    let is_refused = |finished: Finished, why: &str| {
        let line = format!("error: --state-dir {state}: the state folder holds another batch: {why}");
        assert!(finished.stderr.starts_with(&line) && finished.stderr.lines().count() == 1, "{finished:?}");
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(2), ""));
    };
    is_refused(resume("//Bob", &[]), &format!("it was begun with the key of {ALICE}, not of 5FHneW46"));
    is_refused(
        resume("//Alice", &["--per-miner", "2"]),
        "it was begun with as many jobs as each miner declares, not 2",
    );
    is_refused(resume("//Alice", &["--seed", "3"]), "its seed is ");
    std::fs::write(path("input"), "2").unwrap();
    is_refused(resume("//Alice", &[]), "its jobs were others: they, or files that they name, have changed");
    std::fs::write(path("input"), "1").unwrap();
    assert_eq!(resume("//Alice", &[]).code, Some(0));
    miners.stop();
    nothing_left(scratch.path());
}

#[test]
fn what_a_miner_repeats_is_told_once_in_ten_seconds() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let world = World::new();
    let miners = BatchMiners::start(&world, &[(Kind::Doubling, 0)], 64);
    std::fs::write(folder.path().join("miners.toml"), miners.file()).unwrap();
    std::fs::write(folder.path().join("jobs"), job("true", RIGHT)).unwrap();
    let done = run(batch(scratch.path(), folder.path(), &[]).env("RUST_LOG", "info"));
    let (lines, _) = output(&done);
    assert_eq!(outcomes(&lines), HashMap::from([("completed", 64)]), "{done:?}");
    assert_eq!(done.stderr.matches("counts for nothing").count(), 1, "{}", done.stderr);
    miners.stop();
}

#[test]
fn a_replay_scores_what_the_batch_s_jobs_expect_and_nothing_else() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let world = World::new();
    let miners = BatchMiners::start(&world, &[(Kind::Wrong, 0)], 1);
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("miners.toml", &miners.file());
    write("jobs", &job("true", RIGHT));
    let state = folder.path().join("state").display().to_string();
    let done = run(&mut batch(scratch.path(), folder.path(), &["--state-dir", &state]));
    assert_eq!(done.code, Some(0), "{done:?}");
    let again = |jobs: Option<&str>| {
        let mut command = phalanx(scratch.path());
        command.args(["batch", "--json", "--replay", "--state-dir", &state]);
        if let Some(text) = jobs {
            write("others", text);
            command.arg("--jobs").arg(folder.path().join("others"));
        }
        run(&mut command)
    };
    for jobs in [None, Some(job("true", RIGHT))] {
        assert_eq!(output(&again(jobs.as_deref())).0, output(&done).0, "as it was judged");
    }
    let refused = again(Some(&job("false", RIGHT)));
    assert!(refused.stderr.contains("the state folder holds another batch: its jobs are others"), "{refused:?}");
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(2), ""));
    let (lines, _) = output(&again(Some(&job("true", "13\n"))));
    assert_eq!((&lines[0]["outcome"], &lines[0]["scored"]), (&json!("completed"), &json!(true)));
    assert_eq!(lines[0]["reason"], Value::Null, "the reason went with its verdict");
    miners.stop();
}

#[test]
fn the_miners_of_a_batch_may_be_at_an_address() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let world = World::new();
    let miners = BatchMiners::start(&world, &[(Kind::Good, 0); 2], 1);
    let entries: Vec<Value> = miners
        .addresses
        .iter()
        .map(|miner| json!({"hotkey": miner.hotkey.to_ss58(), "address": miner.address, "port": miner.port}))
        .collect();
    let list = json!({ "miner": entries }).to_string();
    let server = Server::start(move |_| Reply::ok(list.clone()));
    std::fs::write(folder.path().join("jobs"), job("true", RIGHT)).unwrap();
    let mut command = phalanx(scratch.path());
    command.args(["batch", "--key", "//Alice", "--json", "--miners", &server.url("/miners.json"), "--jobs"]);
    let done = run(command.arg(folder.path().join("jobs")));
    let (lines, _) = output(&done);
    assert_eq!((done.code, outcomes(&lines)), (Some(0), HashMap::from([("completed", 2)])), "{done:?}");
    let missing =
        run(phalanx(scratch.path()).args(["batch", "--key", "//Alice", "--jobs"]).arg(folder.path().join("jobs")));
    assert!(missing.code == Some(2) && missing.stderr.starts_with("error: --miners is missing"), "{missing:?}");
    miners.stop();
    nothing_left(scratch.path());
}

#[test]
fn on_a_terminal_a_bar_shows_how_far_it_is() {
    let Some(terminal) = python::script("on_terminal.py", "pty") else { return };
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let world = World::new();
    let miners = BatchMiners::start(&world, &[(Kind::Good, 0), (Kind::Good, 3_000), (Kind::Refusing, 0)], 1);
    std::fs::write(folder.path().join("miners.toml"), miners.file()).unwrap();
    std::fs::write(folder.path().join("jobs"), job("true", RIGHT)).unwrap();
    let command = batch(scratch.path(), folder.path(), &["--seed", "7"]);
    let mut on_terminal = in_scratch(terminal, scratch.path());
    on_terminal.arg(command.get_program()).args(command.get_args());
    let shown = run(on_terminal.env("PHALANX_KEY", "//Alice").env("TERM", "xterm"));
    assert_eq!(shown.code, Some(0), "{shown:?}");
    let text = shown.stdout;
    // Drawn over and over in one line, and taken away for each result and at the end.
    let bars: Vec<&str> = text.split(['\r', '\n']).filter(|part| part.contains("3 of 3 miners asked")).collect();
    let is_at = |at: &str| bars.iter().any(|bar| bar.contains(at) && bar.contains('█') && bar.contains(" left"));
    assert!(is_at(" 2/3 "), "{text:?}");
    assert!(text.contains("seed 7") && !text.contains(" of 3 ended"), "no lines beside it: {text:?}");
    let rows = text.split(['\r', '\n']).map(|row| row.trim_start_matches("\u{1b}[2K"));
    let results: Vec<Value> = rows.filter_map(|row| serde_json::from_str(row).ok()).collect();
    assert_eq!(results.len(), 4, "each result has a row of its own: {text:?}");
    miners.stop();
    nothing_left(scratch.path());
}

#[test]
fn killed_at_random_moments_and_resumed_it_loses_no_end_and_scores_nothing_twice() {
    let kills = std::env::var("PHALANX_TEST_KILLS").map_or(KILLS, |n| n.parse().expect("PHALANX_TEST_KILLS: a number"));
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let state = folder.path().join("state").display().to_string();
    let world = World::new();
    // They answer one after the other, some before they are asked to run anything.
    let mut kinds: Vec<_> = (0..10).map(|n| (Kind::Good, 40 * n)).collect();
    let others = [Kind::Lying, Kind::Lying, Kind::Stranger, Kind::Refusing, Kind::Wrong];
    kinds.extend(others.map(|kind| (kind, 0)));
    let miners = BatchMiners::start(&world, &kinds, 2);
    std::fs::write(folder.path().join("miners.toml"), miners.file()).unwrap();
    std::fs::write(folder.path().join("jobs"), job("true", RIGHT)).unwrap();
    let jobs = 2 * 13 + 2;
    let key = |line: &Value| (line["miner"].to_string(), line["job_uuid"].to_string());
    // What each batch has shown so far.
    let mut shown: HashMap<(String, String), String> = HashMap::new();
    let (mut in_work, mut killed, mut batches, mut kept, mut interrupted) = (false, 0, 0, 0, 0);
    loop {
        let more: &[&str] = if in_work { &["--resume"] } else { &[] };
        let mut command = batch(scratch.path(), folder.path(), &["--state-dir", &state, "--late", "0s"]);
        let running = Running::start(command.args(more));
        let last = killed == kills;
        if !last {
            // Between the first word of a miner and the last: 3 messages before the gate, and 1 after, for each job.
            let moment = miners.seen(|seen| seen.messages) + 1 + (rng.next_u64() % (5 * jobs)) as usize;
            let mut over = false;
            until("the moment of a kill", || {
                over = running.ended_within(Duration::from_millis(1));
                over || miners.seen(|seen| seen.messages) >= moment
            });
            if !over {
                running.signal(Signal::KILL);
                killed += 1;
            }
        }
        let finished = running.finish();
        assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
        let complete: Vec<&str> = finished.stdout.split_inclusive('\n').filter(|line| line.ends_with('\n')).collect();
        let mut lines: Vec<Value> = complete.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let summary = lines.last().filter(|line| line.get("summary").is_some()).cloned();
        if summary.is_some() {
            lines.pop();
        }
        let mut now: HashMap<(String, String), String> = HashMap::new();
        for line in &lines {
            let twice = now.insert(key(line), line.to_string());
            assert_eq!(twice, None, "two lines of one job, seed {seed}");
            if let Some(before) = shown.get(&key(line)) {
                assert_eq!(*before, line.to_string(), "an end has changed, seed {seed}");
            }
        }
        let began = !finished.stderr.contains("holds no batch");
        shown.extend(now.clone());
        match (finished.code, summary) {
            (Some(0), Some(summary)) => {
                // All that any run of it has shown is in the last.
                assert_eq!(now.len(), shown.len(), "an end is lost, seed {seed}");
                assert_eq!(now.len(), jobs as usize, "seed {seed}: {}", finished.stdout);
                assert_eq!(summary["summary"]["jobs"], json!(26));
                kept += shown.len();
                interrupted += lines.iter().filter(|line| line["outcome"] == "horde_failed").count();
                batches += 1;
                shown.clear();
                in_work = false;
                if last {
                    break;
                }
            }
            // Killed before it had begun anything there is nothing to resume.
            (Some(2), None) if in_work && !began => in_work = false,
            (None, _) => in_work = true,
            (code, summary) => panic!("{code:?} {summary:?} {}", finished.stderr),
        }
    }
    println!("{killed} kills in {batches} batches: {kept} ends, {interrupted} jobs had left when it was killed");
    miners.seen(|seen| {
        let most = seen.requests.values().max();
        assert_eq!(most, Some(&1), "a job's request came twice, seed {seed}");
    });
    assert!(kills < 10 || interrupted > 0, "no kill hit a job that had left");
    until("all connections are closed", || miners.seen(|seen| seen.open == 0));
    miners.stop();
    nothing_left(scratch.path());
}
