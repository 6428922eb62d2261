//! The docker runner and an engine that goes away, or a client that dies, while a job runs: the real engine behind a
//! stand-in `docker`.

use crate::executor_docker::{assert_clean, bench, containers, run_until_ready_by, spec};
use crate::testkit::engine::{StandIn, docker, ready};
use crate::testkit::own_engine::OwnEngine;
use crate::testkit::wait::{far, until};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use phalanx::base::shutdown::Shutdown;
use phalanx::executor::runner::docker::DockerRunner;
use phalanx::executor::runner::{RunEnd, RunError, Runner};
use phalanx::proc::docker::labels;
use rustix::process::Signal;

/// Until there is a file `back`, the engine does not answer.
const AWAY: &str = r#"[ -e "$folder/back" ] && exec "$real" "$@"
    echo "Cannot connect to the Docker daemon at unix:///var/run/docker.sock." >&2; exit 1"#;

/// The client, and all of its process group, dies when there is a file `cut`; what it has shown until then is noted.
const CUT: &str = r#""$real" "$@" | tee "$folder/first" &
    until [ -e "$folder/cut" ]; do sleep 0.02; done
    kill -9 0"#;

const WORDS: &str = "the connection to the job's container was lost";

/// An engine whose client is cut and which then is away, and a runner on it.
fn away() -> (Arc<StandIn>, DockerRunner) {
    let stand_in = StandIn::new();
    stand_in.say("run", CUT);
    for command in ["container-inspect", "ps"] {
        stand_in.say(command, AWAY);
    }
    let runner = DockerRunner { docker: stand_in.client(), ..DockerRunner::default() };
    (Arc::new(stand_in), runner)
}

#[test]
fn a_job_goes_on_while_its_engine_is_away_and_its_client_has_died() {
    if !ready() {
        return;
    }
    let (bench, id) = bench();
    let (engine, runner) = away();
    // The one that is connected again; what it shows is noted.
    engine.say("attach", r#""$real" "$@" | tee "$folder/seen""#);
    let script =
        "echo begun; echo ready > /output/ready; while [ ! -e /bin/stop ]; do echo after; sleep 0.1; done; exit 5";
    let (client, job) = (engine.clone(), id.clone());
    let outcome = run_until_ready_by(&runner, far(), &spec(&bench, &id, script), &bench, move |_| {
        until("it has shown what was written", || client.file("first").contains("begun"));
        client.keep("cut", "");
        until("it is looked for again and again", || client.calls("container inspect").len() > 3);
        assert!(client.calls("attach").is_empty());
        client.keep("back", "");
        until("it is connected again", || client.file("seen").contains("after"));
        docker(&["exec", &containers(&job), "touch", "/bin/stop"]).unwrap();
    });
    let outcome = outcome.unwrap();
    assert_eq!(outcome.end, RunEnd::Exited(5), "{outcome:?}");
    assert!(outcome.stdout.text.starts_with("begun\n") && outcome.stdout.text.ends_with("after\n"), "{outcome:?}");
    assert!(outcome.stderr.text.contains(WORDS), "{outcome:?}");
    assert_clean(bench, &id);
}

/// The one container of a job on an engine of the test's own.
fn container_on(engine: &OwnEngine, job: &str) -> String {
    engine.docker(&["ps", "--all", "--quiet", "--filter", &format!("label={}={job}", labels::JOB)]).unwrap()
}

/// A job may say that it is ready before its engine knows that it has started.
fn until_started(engine: &OwnEngine, job: &str) {
    let running = || {
        let format = "{{.State.Running}} {{.State.StartedAt}}";
        engine.docker(&["inspect", "--format", format, &container_on(engine, job)])
    };
    until("the engine knows that it runs", || running().is_ok_and(|state| state.starts_with("true 2")));
}

#[test]
fn a_job_goes_on_through_a_real_restart_of_an_engine_that_restores_its_containers() {
    for signal in [Signal::TERM, Signal::KILL] {
        let Some(engine) = OwnEngine::start(true) else { return };
        let (bench, id) = bench();
        let stand_in = Arc::new(engine.stand_in());
        let runner = DockerRunner { docker: stand_in.client(), ..DockerRunner::default() };
        let script =
            "echo begun; echo ready > /output/ready; while [ ! -e /bin/stop ]; do echo after; sleep 0.1; done; exit 5";
        let engine = Arc::new(Mutex::new(engine));
        let (restarted, client, job) = (engine.clone(), stand_in.clone(), id.clone());
        let outcome = run_until_ready_by(&runner, far(), &spec(&bench, &id, script), &bench, move |_| {
            let mut engine = restarted.lock().unwrap();
            until_started(&engine, &job);
            engine.end(signal);
            until("it is looked for", || !client.calls("container inspect").is_empty());
            engine.start_again();
            until("it is connected again", || !client.calls("attach").is_empty());
            engine.docker(&["exec", &container_on(&engine, &job), "touch", "/bin/stop"]).unwrap();
        });
        let outcome = outcome.unwrap();
        assert_eq!(outcome.end, RunEnd::Exited(5), "{signal:?}: {outcome:?}");
        assert!(outcome.stdout.text.starts_with("begun\n"), "{signal:?}: {outcome:?}");
        assert!(outcome.stderr.text.contains(WORDS), "{signal:?}: {outcome:?}");
        assert_eq!(container_on(&engine.lock().unwrap(), &id), "");
        bench.assert_clean();
    }
}

#[test]
fn a_job_whose_engine_takes_it_along_is_nobody_s_failure_but_the_engine_s() {
    for signal in [Signal::TERM, Signal::KILL] {
        let Some(engine) = OwnEngine::start(false) else { return };
        let (bench, id) = bench();
        let stand_in = Arc::new(engine.stand_in());
        let runner = DockerRunner { docker: stand_in.client(), ..DockerRunner::default() };
        let engine = Arc::new(Mutex::new(engine));
        let (restarted, client, job) = (engine.clone(), stand_in.clone(), id.clone());
        let script = "echo ready > /output/ready; exec sleep 1000";
        let ran = run_until_ready_by(&runner, far(), &spec(&bench, &id, script), &bench, move |_| {
            let mut engine = restarted.lock().unwrap();
            until_started(&engine, &job);
            engine.end(signal);
            until("it is looked for", || !client.calls("container inspect").is_empty());
            engine.start_again();
        });
        match ran {
            Err(error @ RunError::EngineLost { .. }) => {
                assert!(error.to_string().contains("while the connection to it was lost"), "{signal:?}: {error}");
            }
            ran => panic!("{signal:?}: {ran:?}"),
        }
        assert_eq!(container_on(&engine.lock().unwrap(), &id), "");
        bench.assert_clean();
    }
}

#[test]
fn a_job_that_ends_while_its_engine_is_away_has_its_exit_code_unless_the_engine_ended_it() {
    if !ready() {
        return;
    }
    for killed in [false, true] {
        let (bench, id) = bench();
        let (engine, runner) = away();
        let script = "echo ready > /output/ready; while [ ! -e /bin/stop ]; do sleep 0.02; done; exit 5";
        let (client, job) = (engine.clone(), id.clone());
        let ran = run_until_ready_by(&runner, far(), &spec(&bench, &id, script), &bench, move |_| {
            client.keep("cut", "");
            until("it is looked for", || !client.calls("container inspect").is_empty());
            let container = containers(&job);
            match killed {
                true => docker(&["kill", &container]).map(drop),
                false => docker(&["exec", &container, "touch", "/bin/stop"]).map(drop),
            }
            .unwrap();
            docker(&["wait", &container]).unwrap();
            client.keep("back", "");
        });
        match ran {
            Ok(outcome) if !killed => {
                assert_eq!(outcome.end, RunEnd::Exited(5));
                assert!(outcome.stderr.text.contains(WORDS), "{outcome:?}");
            }
            Err(error @ RunError::EngineLost { .. }) if killed => {
                assert!(error.to_string().contains("signal 9 while the connection to it was lost"), "{error}");
            }
            ran => panic!("{killed}: {ran:?}"),
        }
        assert!(engine.calls("attach").is_empty());
        assert_clean(bench, &id);
    }
}

#[test]
fn an_engine_that_does_not_come_back_before_the_deadline_is_lost() {
    if !ready() {
        return;
    }
    let (bench, id) = bench();
    let (engine, runner) = away();
    // The client dies when the container has started.
    engine.say("run", r#"shift; "$real" run --detach "$@"; kill -9 0"#);
    engine.relent("ps");
    let deadline = Instant::now() + Duration::from_secs(6);
    let error = runner.run(&spec(&bench, &id, "sleep 1000"), &bench.workspace(), &Shutdown::new(), deadline);
    let error = error.unwrap_err();
    assert!(matches!(error, RunError::EngineLost { .. }), "{error}");
    assert!(error.to_string().contains("Cannot connect to the Docker daemon"), "{error}");
    assert!(Instant::now() >= deadline && engine.calls("container inspect").len() > 2, "it is asked until then");
    assert_clean(bench, &id);
}

#[test]
fn a_cancel_while_the_engine_is_away_is_a_cancel() {
    if !ready() {
        return;
    }
    let (bench, id) = bench();
    let (engine, runner) = away();
    engine.relent("ps");
    let client = engine.clone();
    let spec = spec(&bench, &id, "echo ready > /output/ready; sleep 1000");
    let outcome = run_until_ready_by(&runner, far(), &spec, &bench, move |stop| {
        client.keep("cut", "");
        until("it is looked for", || !client.calls("container inspect").is_empty());
        stop.cancel();
    });
    assert_eq!(outcome.unwrap().end, RunEnd::Cancelled);
    assert_clean(bench, &id);
}

#[test]
fn a_cancelled_job_gets_sigterm_first_and_one_that_a_signal_ends_says_which() {
    if !ready() {
        return;
    }
    let (bench, id) = bench();
    let engine = StandIn::new();
    let runner = DockerRunner { docker: engine.client(), ..DockerRunner::default() };
    let script = "trap 'echo last words; exit 0' TERM; echo ready > /output/ready; sleep 1000 & wait";
    let cancel: fn(&Shutdown) = Shutdown::cancel;
    let outcome = run_until_ready_by(&runner, far(), &spec(&bench, &id, script), &bench, cancel).unwrap();
    assert_eq!(outcome.end, RunEnd::Cancelled);
    let kills = engine.calls("kill");
    assert!(kills.len() == 1 && kills[0].starts_with("kill --signal TERM "), "{kills:?}");
    let killed = runner.run(&spec(&bench, &id, "kill -9 $$"), &bench.workspace(), &Shutdown::new(), far()).unwrap();
    assert_eq!((killed.end, killed.exit_code()), (RunEnd::Signalled(9), Some(137)));
    assert_clean(bench, &id);
}

#[test]
fn a_signal_to_the_client_of_a_job_does_not_reach_the_job() {
    if !ready() {
        return;
    }
    let (bench, id) = bench();
    let engine = StandIn::new();
    engine.say("run", r#"echo $$ >"$folder/client"; exec "$real" "$@""#);
    let runner = DockerRunner { docker: engine.client(), ..DockerRunner::default() };
    let script = "trap 'echo signalled' TERM; echo ready > /output/ready
        while [ ! -e /bin/stop ]; do sleep 0.05; done; sleep 0.5; echo after; exit 5";
    let engine = Arc::new(engine);
    let (client, job) = (engine.clone(), id.clone());
    let outcome = run_until_ready_by(&runner, far(), &spec(&bench, &id, script), &bench, move |_| {
        let client: i32 = client.file("client").trim().parse().unwrap();
        let client = rustix::process::Pid::from_raw(client).unwrap();
        rustix::process::kill_process(client, rustix::process::Signal::TERM).unwrap();
        docker(&["exec", &containers(&job), "touch", "/bin/stop"]).unwrap();
    });
    let outcome = outcome.unwrap();
    assert_eq!(outcome.end, RunEnd::Exited(5), "{outcome:?}");
    assert!(outcome.stdout.text.ends_with("after\n"), "{outcome:?}");
    assert!(!outcome.stdout.text.contains("signalled"), "the job got the signal of its client: {outcome:?}");
    drop(engine);
    assert_clean(bench, &id);
}

#[test]
fn a_container_that_could_not_be_made_is_the_engine_s_answer() {
    if !ready() {
        return;
    }
    let (bench, id) = bench();
    let engine = StandIn::new();
    let answer = "Error response from daemon: no space left on device.";
    engine.say(
        "run",
        &format!("printf \"docker: {answer}\\n\\nRun 'docker run --help' for more information\\n\" >&2; exit 125"),
    );
    let runner = DockerRunner { docker: engine.client(), ..DockerRunner::default() };
    let error = runner.run(&spec(&bench, &id, "true"), &bench.workspace(), &Shutdown::new(), far()).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot create the container: {answer}"));
    assert!(matches!(error, RunError::Engine { .. }), "{error:?}");
    assert_clean(bench, &id);
}

#[test]
fn a_client_that_is_signalled_while_its_container_is_being_made_fails_no_job() {
    if !ready() {
        return;
    }
    // One that dies of it, and one that gives up by itself.
    for end in ["kill -TERM $$", "exit 143"] {
        let (bench, id) = bench();
        let engine = StandIn::new();
        // The engine makes it nevertheless, under its name.
        let first = r#"[ -e "$folder/first" ] && exec "$real" "$@"
            : >"$folder/first"; echo 'of the client' >&2; shift 2
            "$real" create "$@" >/dev/null"#;
        engine.say(
            "run",
            &format!("{first}\nfor arg; do [ \"$last\" = --cidfile ] && rm -f \"$arg\"; last=$arg; done\n{end}"),
        );
        let runner = DockerRunner { docker: engine.client(), ..DockerRunner::default() };
        let spec = spec(&bench, &id, "echo once; echo err >&2; exit 5");
        let outcome = runner.run(&spec, &bench.workspace(), &Shutdown::new(), far()).unwrap();
        assert_eq!(outcome.end, RunEnd::Exited(5), "{end}: {outcome:?}");
        assert_eq!((outcome.stdout.text.as_str(), outcome.stderr.text.as_str()), ("once\n", "err\n"), "{end}");
        assert_eq!(engine.calls("run").len(), 2);
        assert_clean(bench, &id);
    }
}

#[test]
fn a_client_that_is_signalled_just_before_the_job_s_deadline_makes_the_job_late() {
    if !ready() {
        return;
    }
    let (bench, id) = bench();
    let engine = StandIn::new();
    // Too little time is left for the second one.
    engine.say("run", r#"[ -e "$folder/first" ] && exec sleep 1000; : >"$folder/first"; kill -TERM $$"#);
    let runner = DockerRunner { docker: engine.client(), ..DockerRunner::default() };
    let soon = Instant::now() + Duration::from_secs(3);
    let late = runner.run(&spec(&bench, &id, "true"), &bench.workspace(), &Shutdown::new(), soon).unwrap_err();
    assert!(matches!(late, RunError::Late("create the container")), "{late}");
    assert_clean(bench, &id);
}

#[test]
fn clients_that_die_while_their_container_is_being_made_leave_none_behind() {
    if !ready() {
        return;
    }
    let (bench, id) = bench();
    let engine = StandIn::new();
    // The engine goes on for a moment after the client has died, which has not heard of the container.
    engine.say(
        "run",
        r#"[ "$7" = --label ] || exit 1
        export real folder label="$8" begun="$folder/begun.$$"
        setsid sh -c ': >"$begun"; sleep 0.3
            exec "$real" create --label "$label" phalanx-test-busybox:1 true' >>"$folder/made" 2>&1 &
        until [ -e "$begun" ]; do sleep 0.02; done
        kill -9 $$"#,
    );
    let runner = DockerRunner { docker: engine.client(), ..DockerRunner::default() };
    let error = runner.run(&spec(&bench, &id, "true"), &bench.workspace(), &Shutdown::new(), far()).unwrap_err();
    assert!(error.to_string().contains("was ended by signal 9 and said nothing"), "{error}");
    let made = engine.file("made");
    assert_eq!(made.lines().count(), 2, "{made}");
    for made in made.lines() {
        assert_eq!(made.len(), 64, "{made}");
        assert!(docker(&["container", "inspect", made]).is_err(), "it is left behind");
    }
    assert_clean(bench, &id);
}
