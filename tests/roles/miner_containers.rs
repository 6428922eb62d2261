//! Executors in containers whose engine or its client fails: they live on, and whoever watches them is not held up.

use std::fs;
use std::time::Instant;

use phalanx::base::shutdown::Shutdown;
use phalanx::base::thread::{Kick, spawn};
use phalanx::miner::executor_manager::{DockerBackend, ExecutorBackend, ExecutorError, ExecutorExit};
use phalanx::proc::docker::labels;
use rustix::process::{Pid, Signal, kill_process};

use crate::miner_backends::{Image, containers, image, join, spec, start};
use crate::testkit::engine::{StandIn, docker};
use crate::testkit::wait::{LONG, until};

/// A back end whose executors wait until they are told to end.
fn backend(image: &Image, stand_in: &StandIn) -> DockerBackend {
    let mut backend = DockerBackend::new(&image.0, "process");
    backend.docker.program = stand_in.program();
    backend.options = vec!["--env".to_owned(), "SLEEP=1000".to_owned()];
    backend
}

/// Removes the containers with this label, whatever has become of a test.
struct Removed(String);

impl Drop for Removed {
    fn drop(&mut self) {
        containers(&self.0).iter().for_each(|id| drop(docker(&["rm", "--force", id])));
    }
}

/// Has an executor of [`backend`] end, without the back end.
fn end(id: &str) {
    docker(&["kill", "--signal", "TERM", id]).unwrap();
}

/// The client of the engine that does this with the container.
fn client(command: &str, id: &str) -> Option<Pid> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is = |number: &i32| {
        // A process may end while it is looked at.
        let line = fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        let words: Vec<&str> = line.split('\0').collect();
        words.get(1) == Some(&command) && words.iter().any(|word| word.starts_with(id))
    };
    numbers.find(is).and_then(Pid::from_raw)
}

#[test]
fn an_executor_outlives_the_clients_that_watch_it_and_an_engine_that_refuses_to_answer() {
    let Some(image) = image() else { return };
    let stand_in = StandIn::new();
    for (command, times) in [("ps", 3), ("container-inspect", 1)] {
        let refuse = format!(
            "echo >>$folder/{command}; [ $(wc -l <$folder/{command}) -gt {times} ] && exec $real \"$@\"
             echo 'the engine is away' >&2; exit 1"
        );
        stand_in.say(command, &refuse);
    }
    let spec = spec();
    let ours = format!("{}={}", labels::EXECUTOR, spec.run);
    let _removed = Removed(ours.clone());
    let thread = start(backend(&image, &stand_in), &spec, &Shutdown::new());
    let running = || docker(&["ps", "--quiet", "--filter", &format!("label={ours}")]).unwrap();
    until("it runs", || !running().is_empty());
    let id = running();
    for command in ["start", "wait", "wait"] {
        // Found and killed in one go: a client that has done its part ends by itself.
        until("a client that watches it is killed", || {
            client(command, &id).is_some_and(|client| kill_process(client, Signal::KILL).is_ok())
        });
    }
    until("a client watches it again", || client("wait", &id).is_some());
    assert_eq!(running(), id);
    assert!(stand_in.calls("ps").len() > 3 && stand_in.calls("container inspect").len() == 1);
    end(&id);
    assert_eq!(join(thread).unwrap(), ExecutorExit::Code(9));
    assert_eq!(containers(&ours), Vec::<String>::new());
}

#[test]
fn an_executor_is_taken_back_although_the_engine_refuses_to_answer_at_first() {
    let Some(image) = image() else { return };
    let stand_in = StandIn::new();
    let refuse = "echo >>$folder/asked; [ $(wc -l <$folder/asked) -gt 3 ] && exec $real \"$@\"
        echo 'the engine is away' >&2; exit 1";
    stand_in.say("ps", refuse);
    let spec = spec();
    let ours = format!("{}={}", labels::EXECUTOR, spec.run);
    let _removed = Removed(ours.clone());
    let stage = format!("{}=executor", labels::STAGE);
    let args = ["run", "-d", "--network", "none", "--env", "SLEEP=1000", "--label", &ours, "--label", &stage, &image.0];
    let id = docker(&args).unwrap();
    let adopt = || {
        let (backend, spec, stop) = (backend(&image, &stand_in), spec.clone(), Shutdown::new());
        let kicked = stop.clone();
        let kick = Kick::new("stop", move || kicked.cancel());
        spawn("t-adopt", kick, move || backend.adopt(&spec, &stop))
    };
    let thread = adopt();
    until("a client watches it", || client("wait", &id).is_some());
    assert_eq!(stand_in.calls("ps").len(), 4);
    end(&id);
    assert_eq!(join(thread).unwrap(), ExecutorExit::Unknown);
    backend(&image, &stand_in).clean(&spec, true, &Shutdown::new()).unwrap();
    assert_eq!(containers(&ours), Vec::<String>::new());
    // Only an engine that answers says that there is none.
    fs::remove_file(stand_in.folder().join("asked")).unwrap();
    assert!(matches!(join(adopt()), Err(ExecutorError::Lost)));
    assert!(stand_in.file("asked").len() == 4);
}

#[test]
fn a_removal_that_hangs_ends_with_a_cancel() {
    let stand_in = StandIn::new();
    stand_in.say("ps", "touch $folder/hangs; exec sleep 1000");
    let (spec, stop) = (spec(), Shutdown::new());
    let clean = || {
        let (spec, stop, kicked) = (spec.clone(), stop.clone(), stop.clone());
        let mut backend = DockerBackend::new("image", "process");
        backend.docker.program = stand_in.program();
        spawn("t-clean", Kick::new("stop", move || kicked.cancel()), move || backend.clean(&spec, true, &stop))
    };
    let thread = clean();
    until("the engine hangs", || stand_in.folder().join("hangs").exists());
    stop.cancel();
    let left = thread.join_by(Instant::now() + LONG).unwrap().unwrap_err();
    assert!(left.text.contains("cancelled"), "{left}");
    // One that begins later is still tried, for a moment.
    let left = clean().join_by(Instant::now() + LONG).unwrap().unwrap_err();
    assert!(left.text.contains("deadline passed"), "{left}");
}
