//! The examples of embedding run, and leave no thread.

#[path = "../../examples/client.rs"]
mod client;
#[path = "../../examples/embed.rs"]
mod embed;
#[path = "../../examples/parts.rs"]
mod parts;

use std::sync::Arc;
use std::time::Duration;

use phalanx::app::jobfile;
use phalanx::app::local::{LocalConfig, LocalNetwork, ThreadBackend};
use phalanx::base::shutdown::Shutdown;
use phalanx::base::stop::Stopping;
use phalanx::base::thread::Group;
use phalanx::cli::job_text::Form;
use phalanx::cli::submit::{Plan, User, submit};
use phalanx::executor::RunnerKind;
use phalanx::protocol::JobStatus;
use phalanx::transport::ws::WsListener;

use serde_json::{Value, json};

use crate::testkit::engine::ready;
use crate::testkit::http::{Reply, Server, loopback};
use crate::testkit::roles::{World, job};
use crate::testkit::scripted_facilitator::{Plan as ScriptedPlan, ScriptedFacilitator, key};

#[test]
fn the_embedding_example_runs_and_leaves_no_thread() {
    let group = Group::enter();
    assert_eq!(embed::run().unwrap(), "Epaminondas\nIphicrates\nLeonidas\n");
    let left: Vec<_> = group.live().into_iter().map(|t| t.name).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_example_of_the_parts_runs_and_leaves_no_thread() {
    let group = Group::enter();
    let lines = parts::run().unwrap();
    let cancelled = "the task was cancelled on request: nobody wants it";
    assert_eq!(lines[0], format!("squares 1 4 9; {cancelled}; 0 left"));
    assert_eq!(lines[1..], ["echo one two; 0 left", "hello, Leonidas; 0 left"]);
    let left: Vec<_> = group.live().into_iter().map(|t| t.name).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_example_of_a_client_does_a_job_and_leaves_no_thread() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let listener = WsListener::bind("127.0.0.1:0", None).unwrap();
    let facilitator = ScriptedFacilitator::start(listener, world.timer(), ScriptedPlan::default());
    let job = job(&key("//Validator"));
    facilitator.submit(job.clone());
    let done = || assert_eq!(facilitator.history(&job.uuid).last(), Some(&JobStatus::Completed));
    let report = client::run(&facilitator.url, key("//Validator"), folder.path(), done).unwrap();
    assert!(report.is_clean(), "{report}");
    facilitator.stop();
}

/// A network whose jobs may reach loopback.
fn network(world: &World, folder: &tempfile::TempDir, runner: RunnerKind) -> LocalNetwork {
    let mut backend = ThreadBackend::new(runner, world.timer());
    backend.reach = loopback();
    let config = LocalConfig {
        state_dir: folder.path().to_owned(),
        executors: 1,
        backend: Arc::new(backend),
        drain_time: Duration::from_secs(1),
    };
    LocalNetwork::start(config, &world.timer()).unwrap()
}

/// Submits a job file to a local network; gives what `submit --json` prints.
fn run(runner: RunnerKind, script: &str, more: &[(&str, Value)]) -> Value {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let network = network(&world, &folder, runner);
    let mut job = json!({"executor_class": "always_on.test", "docker_image": "none", "args": ["sh", "-c", script]});
    for (key, value) in more {
        job[*key] = value.clone();
    }
    let jobs = vec![("job".to_owned(), jobfile::parse_text("job", &job.to_string()).unwrap())];
    let plan = Plan {
        user: User::new(format!("http://{}", network.http_addr()), network.user().clone()),
        target: network.target(),
        tag: String::new(),
        wait: true,
        at_once: None,
        form: Form::Json,
        output: None,
    };
    let mut out = Vec::new();
    let _done = submit(&plan, jobs, &Shutdown::new(), &mut out).unwrap();
    let mut stopping = Stopping::alone();
    network.stop_in(&mut stopping);
    stopping.finish();
    serde_json::from_slice(&out).unwrap()
}

#[test]
fn a_job_file_s_zip_of_the_output_arrives() {
    let server = Server::start(|_| Reply::ok(""));
    let upload = json!({"output_upload_type": "zip_and_http_put", "url": server.url("/zip")});
    let script = "echo a >\"$PHALANX_OUTPUT_DIR/a\"; touch -d '1999-12-31 23:59:58 UTC' \"$PHALANX_OUTPUT_DIR/a\"";
    let done = run(RunnerKind::Process, script, &[("output_upload", upload)]);
    assert_eq!(done["status"], "completed", "{done}");
    let seen = server.seen();
    let mut zip = zip::ZipArchive::new(std::io::Cursor::new(&seen[0].body)).unwrap();
    let file = zip.by_name("a").unwrap();
    assert_eq!((seen[0].path.as_str(), file.size()), ("/zip", 2));
    assert_eq!(file.last_modified().unwrap().to_string(), "1999-12-31 23:59:58");
}

#[test]
fn an_image_whose_registry_is_out_of_reach_is_the_job_s_failure_and_the_engine_is_not_asked() {
    if !ready() {
        return;
    }
    // Loopback is open in these tests, so that what the engine says of it shows that it is asked there.
    for (image, says) in [
        ("10.255.255.1:1/x", "image 10.255.255.1:1/x: jobs may not reach 10.255.255.1: "),
        ("[::1]:1/x", "image [::1]:1/x: jobs may not reach ::1: "),
        ("127.0.0.1:1/x", "127.0.0.1:1"),
    ] {
        let done =
            run(RunnerKind::Docker, "true", &[("docker_image", image.into()), ("download_time_limit", 20.into())]);
        let error = done["error"].as_str().unwrap();
        assert!(error.contains(says) && error.contains("--reach") == says.starts_with("image "), "{image}: {done}");
    }
}

#[test]
fn a_server_s_fault_is_the_network_s_and_the_job_s_own_is_the_job_s() {
    for (status, end) in [(501, "horde_failed"), (404, "failed")] {
        let server = Server::start(move |_| Reply::status(status));
        let volume = json!({"volume_type": "single_file", "url": server.url("/f"), "relative_path": "f"});
        let done = run(RunnerKind::Process, "true", &[("volume", volume)]);
        assert_eq!((&done["status"], server.seen().len()), (&end.into(), 1), "{done}");
    }
}

#[test]
fn dropping_a_local_network_stops_it() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    drop(network(&world, &folder, RunnerKind::Process));
    // The world now finds no thread left.
}
