//! What an operator does with workers beside looking at them: a pause, and workers that stop by themselves.

use crate::remote::{Scene, jobs, stopped, until};
use crate::testkit::process::{phalanx, run};
use crate::testkit::redis as redis_server;
use crate::testkit::scripted_facilitator::GOOD;
use crate::testkit::threads::NoThreads;
use crate::testkit::wait;

use serde_json::json;

#[test]
fn a_paused_worker_takes_no_job_until_it_is_resumed_and_one_stops_by_itself() {
    let _none = NoThreads::expected();
    let Some(scene) = Scene::set() else { return };
    let (scratch, state) = (scene.scratch.path(), tempfile::tempdir().unwrap());
    let folder = state.path().join("worker");
    let folder = folder.to_str().unwrap();
    let front = scene.front(&["--queue-time", "5m"]);
    let pages = format!("127.0.0.1:{}", redis_server::free_port());
    let flags = ["--stub-time", "0s", "--state-dir", folder, "--http", &pages];
    let worker = scene.worker("w@here", &flags);
    let told = |words: &[&str]| run(phalanx(scratch).args(words).args(["--state-dir", folder]));
    let paused = told(&["pause", "--note", "new disk", "--for", "1h"]);
    assert!(paused.code == Some(0) && paused.stdout.contains("is told"), "{paused:?}");
    let status = until(scratch, &pages, |status| status["state"] == "paused");
    let why = status["paused"].as_str().unwrap();
    assert!(why.starts_with("paused for another ") && why.ends_with(": new disk"), "{status:#}");
    assert_eq!((&status["ready"], &status["details"]["consuming"]), (&json!(false), &json!(true)), "{status:#}");
    let job = jobs(1).remove(0);
    scene.facilitator.submit(job.clone());
    wait::until("the job waits", || scene.redis.cli::<usize>(&["LLEN", "phalanx"]) == 1);
    // It is paused also after a restart.
    assert!(stopped(worker).contains("new disk"));
    let worker = scene.worker("w@here", &flags);
    until(scratch, &pages, |status| status["details"]["consuming"] == true);
    assert_eq!(scene.redis.cli::<usize>(&["LLEN", "phalanx"]), 1);
    assert_eq!(told(&["resume"]).code, Some(0));
    assert_eq!(scene.facilitator.history(&job.uuid), GOOD);
    // The folder is one worker's, and no front's.
    for (folder, why) in
        [(folder, "is in use"), (scene.state.path().to_str().unwrap(), "another has it (journal.lock)")]
    {
        let mut second = phalanx(scratch);
        second.args(["worker", "--stub-time", "0s", "--name", "x@here", "--state-dir", folder]);
        second.env("PHALANX_KEY", "//Validator").env("PHALANX_REDIS", scene.redis.url());
        let refused = run(&mut second);
        assert!(refused.code == Some(2) && refused.stderr.contains(why), "{refused:?}");
    }
    stopped(worker);

    for (flag, said) in [("--stop-after-uptime", "--stop-after-uptime 1s is over"), ("--stop-when-idle", "is over")] {
        let finished = scene.worker("w@here", &["--stub-time", "0s", flag, "1s"]).finish();
        assert!(finished.code == Some(0) && finished.stderr.contains(said), "{finished:?}");
    }
    // Two jobs wait; one is run.
    let jobs = jobs(2);
    jobs.iter().for_each(|job| scene.facilitator.submit(job.clone()));
    wait::until("both wait", || scene.redis.cli::<usize>(&["LLEN", "phalanx"]) == 2);
    let finished = scene.worker("w@here", &["--stub-time", "0s", "--run-one-job"]).finish();
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(scene.redis.cli::<usize>(&["LLEN", "phalanx"]), 1, "{finished:?}");
    let worker = scene.worker("w@here", &["--stub-time", "0s"]);
    for job in &jobs {
        assert_eq!(scene.facilitator.history(&job.uuid), GOOD);
    }
    for running in [front, worker] {
        stopped(running);
    }
    scene.end();
}
