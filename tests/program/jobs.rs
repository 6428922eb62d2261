//! `phalanx jobs`, `phalanx submit -`, and what the program makes of itself: schema, completions, manual pages.

use std::io::Write;
use std::process::{Command, Stdio};

use phalanx::protocol::JobStatus as S;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::testkit::facilitator::{Fixture, alice, completed};
use crate::testkit::process::{Finished, Running, phalanx, run};
use crate::testkit::wait::{far, until};

/// What a terminal would obey.
const HOSTILE: &str = "x\u{1b}[2J\u{9b}31m\u{202e}\nsecond\n";

struct Field {
    fix: Fixture,
    scratch: tempfile::TempDir,
}

impl Field {
    fn new() -> Self {
        Self { fix: Fixture::new(), scratch: tempfile::tempdir().unwrap() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = phalanx(self.scratch.path());
        command.args(arguments).args(["--facilitator", &format!("http://{}", self.fix.running().http_addr())]);
        command.args(["--key", "//Dave"]).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Finished {
        run(&mut self.command(arguments))
    }

    /// Submits jobs of that image by stdin; their uuids.
    fn submit(&self, images: &[&str], more: &[&str]) -> Vec<String> {
        let text: String = images.iter().map(|image| job(image).to_string() + "\n").collect();
        let mut command = self.command(&["submit", "-", "--json", "--target", &alice().ss58()]);
        let finished = with_stdin(command.args(more), &text);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        finished.stdout.lines().map(|line| parsed(line)["uuid"].as_str().unwrap().to_owned()).collect()
    }
}

fn job(image: &str) -> Value {
    json!({"executor_class": "always_on.test", "docker_image": image, "args": ["echo", "a b"]})
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn with_stdin(command: &mut Command, text: &str) -> Finished {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may have ended, having read enough.
    let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Finished { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn is_escaped(text: &str) -> bool {
    !text.contains(|c: char| c != '\n' && c.is_control() || c == '\u{202e}')
}

#[test]
fn jobs_are_listed_shown_waited_for_and_read() {
    let field = Field::new();
    let (kick, validator) = field.fix.validator(&alice()).serve(|job| match job.docker_image.as_str() {
        "bad" => {
            let details = json!({"job_rejection_details": {"rejected_by": "validator", "reason": "busy",
                "message": "no miner is free\u{1b}"}});
            vec![(S::Received, None), (S::Rejected, Some(details))]
        }
        "open" => vec![(S::Received, None)],
        _ => completed(HOSTILE),
    });
    let uuids = field.submit(&["good", "bad"], &["--tag", "nightly\u{9b} build that has a very long name"]);
    let open = field.submit(&["open"], &[]).remove(0);

    let waited = field.run(&["jobs", "wait", "--json", &uuids[0]]);
    assert_eq!((waited.code, parsed(&waited.stdout)["status"].as_str()), (Some(0), Some("completed")), "{waited:?}");
    let waited = field.run(&["jobs", "wait", &uuids[0], &uuids[1]]);
    assert_eq!(waited.code, Some(1), "{waited:?}");
    assert!(waited.stdout.contains("busy: no miner is free\\u{1b}") && is_escaped(&waited.stdout), "{waited:?}");

    let listed = field.run(&["jobs", "ls"]);
    assert_eq!(listed.code, Some(0), "{listed:?}");
    assert!(listed.stdout.lines().all(|line| line.chars().count() <= 80) && is_escaped(&listed.stdout), "{listed:?}");
    let lines: Vec<&str> = listed.stdout.lines().collect();
    assert!(
        lines[0].starts_with("JOB ") && lines[1].starts_with(&open) && lines[3].starts_with(&uuids[0]),
        "{lines:?}"
    );
    assert!(lines[1].ends_with("s  open") && lines[2].contains("rejected") && lines[2].contains("nightly\\u{9b} bui"));
    let of = |arguments: &[&str]| {
        let listed = field.run(&[&["jobs", "ls", "--json"], arguments].concat());
        assert_eq!(listed.code, Some(0), "{listed:?}");
        assert!(is_escaped(&listed.stdout), "{listed:?}");
        listed.stdout.lines().map(|line| parsed(line)["uuid"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(of(&["--limit", "2"]), [open.clone(), uuids[1].clone()]);
    assert_eq!(of(&["--status", "completed,rejected"]), [uuids[1].clone(), uuids[0].clone()]);
    assert_eq!(
        of(&["--tag", "nightly\u{9b} build that has a very long name", "--status", "completed"]),
        [uuids[0].clone()]
    );
    let none = field.run(&["jobs", "ls", "--tag", "other"]);
    assert_eq!((none.code, none.stdout.as_str(), none.stderr.trim_end()), (Some(0), "", "there are no such jobs"));

    let shown = field.run(&["jobs", "show", &uuids[0]]);
    assert_eq!(shown.code, Some(0), "{shown:?}");
    for part in [
        "status     completed after ",
        "image      good\n",
        "command    echo a b\n",
        "history\n",
        "  received\n",
        "    | x\\u{1b}[2J\\u{9b}31m\\u{202e}\n",
        "    artifact /artifacts/a.bin, 2 bytes\n",
        "exit code  0\n",
    ] {
        assert!(shown.stdout.contains(part), "{part:?}: {}", shown.stdout);
    }
    assert!(is_escaped(&shown.stdout), "{shown:?}");
    let shown = field.run(&["jobs", "show", "--json", &uuids[1]]);
    assert_eq!(parsed(&shown.stdout)["error"], "busy: no miner is free\u{1b}");

    let logs = field.run(&["jobs", "logs", &uuids[0]]);
    assert_eq!((logs.code, logs.stdout.as_str()), (Some(0), "x\\u{1b}[2J\\u{9b}31m\\u{202e}\nsecond\n"), "{logs:?}");
    assert_eq!(field.run(&["jobs", "logs", "--raw", &uuids[0]]).stdout, HOSTILE);
    assert_eq!(field.run(&["jobs", "logs", "--only", "stderr", &uuids[0]]).stdout, "");
    for (arguments, code, why) in [
        (&["jobs", "logs", &open][..], 1, "is received: what it writes comes with its end"),
        (&["jobs", "show", "00000000-0000-0000-0000-000000000000"], 1, "you have no job"),
        (&["jobs", "wait", "x"], 2, "invalid value 'x'"),
        (&["jobs", "ls", "--status", "lost"], 2, "lost"),
        (&["jobs", "ls", "--limit", "0"], 2, "0 is not in 1..=1000"),
        (&["jobs", "show", &uuids[0], "--output", "/dev/null"], 2, "--output /dev/null: "),
    ] {
        let refused = field.run(arguments);
        assert_eq!((refused.code, refused.stderr.contains(why)), (Some(code), true), "{arguments:?}: {refused:?}");
    }
    kick.kick();
    validator.join_by(far()).unwrap();
}

/// Whether the process has a thread that follows a job; by then it knows what to do with signals.
fn follows(process: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten();
    let name = |task: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(task.ok()?.path().join("comm")).ok();
    tasks.filter_map(name).any(|name| name.trim() == "submit-1")
}

#[test]
fn an_interrupted_wait_names_the_command_that_goes_on() {
    let field = Field::new();
    let (kick, validator) = field.fix.validator(&alice()).serve(|_| vec![(S::Received, None)]);
    let file = field.scratch.path().join("job.json");
    std::fs::write(&file, job("x").to_string()).unwrap();
    let target = alice().ss58();
    let mut submit = field.command(&["submit", file.to_str().unwrap(), "--wait", "--target", &target]);
    let mut waits = vec![Running::start(&mut submit)];
    let mut uuid = String::new();
    for _ in 0..2 {
        let running = waits.remove(0);
        until("it is followed", || follows(running.id()));
        let finished = running.stop(Signal::INT);
        assert_eq!(finished.code, Some(1), "{finished:?}");
        let (_, command) = finished.stderr.rsplit_once("to wait again: phalanx ").expect("a command");
        let words: Vec<&str> = command.split_whitespace().collect();
        let [jobs, wait, "--facilitator", url, "--key", "//Dave", named] = words[..] else { panic!("{words:?}") };
        assert_eq!([jobs, wait, url], ["jobs", "wait", &format!("http://{}", field.fix.running().http_addr())]);
        assert!(uuid.is_empty() || uuid == named, "the same job");
        uuid = named.to_owned();
        // The command that was told does the same again.
        waits.push(Running::start(phalanx(field.scratch.path()).args(&words)));
    }
    let last = waits.remove(0);
    until("it is followed", || follows(last.id()));
    assert_eq!(last.stop(Signal::INT).code, Some(1));
    kick.kick();
    validator.join_by(far()).unwrap();
}

#[test]
fn jobs_on_stdin_are_all_checked_before_any_is_sent() {
    let field = Field::new();
    let submit = |text: &str| with_stdin(&mut field.command(&["submit", "-", "--target", &alice().ss58()]), text);
    let good = job("x").to_string();
    for (text, why) in [
        (String::new(), "stdin: there is no job"),
        ("nonsense".to_owned(), "stdin:1: it is not JSON"),
        (format!("{good}{{}}"), "stdin:2: "),
        (format!("{good} {{\"executor_clas\": 1}} {good}"), "unknown key \"executor_clas\""),
        (format!("{good}\n{{"), "stdin:2: it is not JSON"),
    ] {
        let refused = submit(&text);
        assert_eq!((refused.code, refused.stderr.contains(why)), (Some(2), true), "{why}: {refused:?}");
    }
    let listed = field.run(&["jobs", "ls"]);
    assert_eq!(listed.stdout, "", "{listed:?}");
    assert_eq!(submit(&format!("{good}{good}")).stdout.matches("stdin:").count(), 2);
}

#[test]
fn the_program_makes_its_schema_completions_and_manual_pages() {
    let scratch = tempfile::tempdir().unwrap();
    let schema = run(phalanx(scratch.path()).args(["schema", "job"]));
    assert_eq!((schema.code, &parsed(&schema.stdout)["title"]), (Some(0), &json!("A job file of phalanx")));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let made = run(phalanx(scratch.path()).args(["completions", shell]));
        assert_eq!(made.code, Some(0), "{made:?}");
        assert!(made.stdout.contains("keep-jobs-for") && made.stdout.contains("jobs"), "{shell}");
    }
    let bash = run(phalanx(scratch.path()).args(["completions", "bash"])).stdout;
    let script =
        format!("{bash}\nCOMP_WORDS=(phalanx jobs l); COMP_CWORD=2; _phalanx phalanx l jobs; echo ${{COMPREPLY[*]}}");
    let file = scratch.path().join("completions");
    std::fs::write(&file, script).unwrap();
    let completed = run(Command::new("bash").arg(file));
    assert_eq!(completed.stdout.trim(), "ls logs", "{completed:?}");
    let folder = scratch.path().join("man/man1");
    let made = run(phalanx(scratch.path()).arg("man").arg(&folder));
    assert_eq!((made.code, made.stdout.as_str()), (Some(0), ""), "{made:?}");
    for page in ["phalanx", "phalanx-facilitator", "phalanx-jobs", "phalanx-jobs-wait", "phalanx-key-generate"] {
        let text = std::fs::read_to_string(folder.join(format!("{page}.1"))).unwrap();
        assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{page}");
    }
    let refused = run(phalanx(scratch.path()).args(["man", "/dev/null/x"]));
    assert_eq!((refused.code, refused.stderr.contains("cannot write the pages")), (Some(1), true), "{refused:?}");
}
