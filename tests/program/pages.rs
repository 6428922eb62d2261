//! The pages of real roles in a real browser.

use crate::testkit::browser::Browser;
use crate::testkit::network::{ALICE, BOB, NO_OP, Network};
use crate::testkit::wait::until_some;
use serde_json::{Value, json};

/// Where the pictures of the docs are; they are made anew with `PHALANX_TEST_PICTURES=1`.
const PICTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/pages");

/// Something that runs if it is taken for a part of the page, and something that turns the writing round.
const HOSTILE: &str = "<script>document.title='hacked'</script><img src=x onerror=document.title='hacked'>\u{202e}end";

fn picture(browser: &mut Browser, name: &str) {
    if std::env::var_os("PHALANX_TEST_PICTURES").is_some() {
        let picture = browser.picture(false);
        std::fs::create_dir_all(PICTURES).unwrap();
        std::fs::write(format!("{PICTURES}/{name}.png"), picture).unwrap();
    }
}

/// The text of the page as it is shown now.
fn text(browser: &mut Browser) -> String {
    browser.eval("document.body.innerText").as_str().unwrap().to_owned()
}

/// What is wider than the window, or would scroll sideways.
const TOO_WIDE: &str = "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > \
    document.documentElement.clientWidth + 1).map(e => e.outerHTML.slice(0, 200)).concat(\
    document.documentElement.scrollWidth > document.documentElement.clientWidth ? ['the page'] : [])";

#[test]
fn each_role_is_read_in_a_browser_on_a_desk_and_on_a_phone() {
    let Some(mut browser) = Browser::start() else { return };
    let network = Network::start("info", "text");
    let mut job: Value = serde_json::from_str(NO_OP).unwrap();
    job["job_namespace"] = json!(HOSTILE);
    let (uuid, _) = network.job(&job.to_string());
    let failed = network.end_of(&json!({"executor_class": "always_on.test", "docker_image": "x", "args": ["false"]}));
    assert_eq!(failed["status"], "failed", "{failed}");
    for (role, _, pages) in &network.roles {
        // The end of a job reaches one role after the other.
        let url = format!("http://{pages}/");
        browser.resize(1280, 900);
        let own: &[&str] = match *role {
            "facilitator" => &[ALICE, "sessions", "heartbeat", "always_on.test"],
            "validator" => &[BOB, "miners", "unsent", "connections"],
            _ => &[ALICE, "executors", "hosts", "local", "2 of 2 free"],
        };
        let parts = [own, &[role, "ready", &uuid, "completed", "failed", "history", "process", "2 in all"]].concat();
        let mut shown = String::new();
        until_some("all that there is to show", || {
            browser.open(&url);
            shown = text(&mut browser);
            let missing: Vec<_> = parts.iter().filter(|part| !shown.contains(**part)).collect();
            println!("{role}: missing {missing:?}");
            missing.is_empty().then_some(())
        });
        if *role != "miner" {
            // What the user files it under is seen as it was written, but for what turns it round.
            assert!(shown.contains("<script>document.title='hacked'</script><img src=x onerror"), "{role}:\n{shown}");
            assert!(!shown.contains('\u{202e}'), "{role}:\n{shown}");
        }
        for secret in ["docker_image", "\"echo\"", "done\n"] {
            assert!(!shown.contains(secret), "{role}: {secret} in\n{shown}");
        }
        picture(&mut browser, role);
        assert_eq!(browser.eval("document.title"), format!("{role}: ready"));
        assert_eq!(browser.eval("document.images.length + document.querySelectorAll('script').length"), 1);
        assert_eq!(browser.eval(TOO_WIDE), json!([]), "{role}");
        browser.resize(360, 740);
        assert_eq!(browser.eval("innerWidth"), 360, "it is laid out for the phone's width");
        assert_eq!(browser.eval(TOO_WIDE), json!([]), "{role} on a phone");
        picture(&mut browser, &format!("{role}-phone"));
        assert_eq!(browser.complaints, Vec::<String>::new(), "{role}");
    }
    drop(browser);
    network.stop();
}

#[test]
fn a_page_renews_itself_and_says_so_when_nobody_answers() {
    let Some(mut browser) = Browser::start() else { return };
    let network = Network::start("info", "text");
    let url = format!("http://{}/", network.pages("facilitator"));
    browser.open(&url);
    // The same document all the time: what changes was changed by the script.
    browser.eval("window.same = true");
    let (uuid, _) = network.job(NO_OP);
    until_some("the job on the page", || text(&mut browser).contains(&uuid).then_some(()));
    assert_eq!(browser.eval("window.same"), true);
    assert_eq!(browser.eval("document.getElementById('lost').hidden"), true);
    assert_eq!(browser.complaints, Vec::<String>::new());
    // The policy lets nothing in that is not the server's.
    let allowed = browser.eval(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.inline = 1'; \
         document.body.append(s); document.body.insertAdjacentHTML('beforeend', \
         '<img src=x onerror=\"window.inline = 1\" style=\"width: 3px\">'); return window.inline === undefined; })()",
    );
    assert_eq!(allowed, true);
    network.stop();
    until_some("the page says that nobody answers", || {
        (browser.eval("document.getElementById('lost').hidden") == false).then_some(())
    });
    assert!(text(&mut browser).contains(&uuid), "what was known is still shown");
}

#[test]
fn a_page_is_whole_without_scripts() {
    let Some(mut browser) = Browser::start() else { return };
    let network = Network::start("info", "text");
    browser.scripts(false);
    browser.open(&format!("http://{}/", network.pages("miner")));
    let shown = text(&mut browser);
    assert!(shown.contains("hosts") && shown.contains("2 of 2 free"), "{shown}");
    assert_eq!(browser.eval("document.querySelector('meta[http-equiv=refresh]').content"), "5");
    drop(browser);
    network.stop();
}

/// A worker's jobs are those of a validator elsewhere, with a Redis between them.
#[cfg(feature = "celery")]
#[test]
fn a_worker_shows_its_jobs_too() {
    use crate::testkit::network::CHARLIE;
    use crate::testkit::process::{Running, nothing_left, phalanx, run};
    use crate::testkit::redis::RedisServer;
    use phalanx::ops::status::Snapshot;
    use rustix::process::Signal;

    let Some(redis) = RedisServer::start() else { return };
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let state = |role: &str| folder.path().join(role).display().to_string();
    let start = |arguments: &[&str]| {
        let mut running = Running::start(phalanx(scratch.path()).args(arguments).args(["--http", "127.0.0.1:0"]));
        let line: Value = serde_json::from_str(&running.line()).unwrap();
        let address = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        (running, address("http"), address("listening"))
    };
    let (of_facilitator, of_validator, url) = (state("f"), state("v"), redis.url());
    let (facilitator, users, validators) = start(&[
        "facilitator",
        "--listen",
        "127.0.0.1:0",
        "--state-dir",
        &of_facilitator,
        "--validator",
        ALICE,
        "--user",
        CHARLIE,
    ]);
    let link = format!("ws://{validators}/ws/v0/");
    let of_both = ["--key", "//Alice", "--trusted-signer", CHARLIE, "--redis", &url, "--drain-time", "1s"];
    let of_validator = ["validator", "--facilitator", &link, "--dispatch", "celery", "--state-dir", &of_validator];
    let (validator, _, _) = start(&[&of_validator[..], &of_both].concat());
    let (worker, pages, _) = start(&[&["worker", "--stub-time", "1ms"][..], &of_both].concat());
    let job = folder.path().join("job.json");
    std::fs::write(&job, NO_OP).unwrap();
    // The facilitator refuses a job until the validator is there.
    let submitted = until_some("a job that is taken", || {
        let mut command = phalanx(scratch.path());
        command.arg("submit").arg(&job).args(["--facilitator", &format!("http://{users}"), "--target", ALICE]);
        let finished = run(command.args(["--key", "//Charlie", "--wait", "--json"]));
        serde_json::from_str::<Value>(&finished.stdout).ok()
    });
    assert_eq!(submitted["status"], "completed", "{submitted}");
    let uuid = submitted["uuid"].as_str().unwrap();
    let status = |more: &[&str]| run(phalanx(scratch.path()).args(["status", "--http", &pages]).args(more)).stdout;
    let snapshot: Snapshot = serde_json::from_str(&status(&["--json"])).unwrap();
    let [job] = &snapshot.jobs.ended_jobs[..] else { panic!("{snapshot:?}") };
    assert_eq!((job.uuid.as_str(), snapshot.jobs.ended["completed"]), (uuid, 1));
    let stages: Vec<_> = job.history.iter().map(|stage| stage.stage.as_str()).collect();
    let all = ["taken", "accepted", "executor_ready", "volumes_ready", "execution_done", "completed"];
    assert_eq!(stages, all);
    let shown = status(&[]);
    assert!(shown.starts_with("worker ") && shown.contains(uuid) && shown.contains("  tasks "), "{shown}");
    if let Some(mut browser) = Browser::start() {
        browser.resize(360, 740);
        browser.open(&format!("http://{pages}/"));
        let shown = text(&mut browser);
        let parts = ["worker 0.1.0", "ready", uuid, "tasks", "consuming"];
        assert!(parts.iter().all(|part| shown.contains(part)), "{shown}");
        assert_eq!(browser.eval(TOO_WIDE), json!([]));
        assert_eq!(browser.complaints, Vec::<String>::new());
    }
    for role in [worker, validator, facilitator] {
        let finished = role.stop(Signal::TERM);
        assert_eq!(finished.code, Some(0), "{finished:?}");
    }
    nothing_left(scratch.path());
}
