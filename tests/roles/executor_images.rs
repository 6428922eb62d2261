//! How images get here and how they go, with a `docker` that plays the registry in front of the real one.

use crate::testkit::engine::{IMAGE, StandIn, docker, ready};
use crate::testkit::http::{Reply, Server};
use crate::testkit::miner::{CLASS, Pen};
use crate::testkit::roles::World;
use crate::testkit::threads::NoThreads;
use crate::testkit::wait::{LONG, far, until};
use std::sync::Arc;
use std::time::{Duration, Instant};

use phalanx::base::shutdown::Shutdown;
use phalanx::base::thread::{Kick, spawn};
use phalanx::executor::runner::docker::DockerRunner;
use phalanx::executor::runner::{ImageSettings, Prepared, PullPolicy, RunError, Runner};
use phalanx::miner::executor_manager::{ExecutorBackend, ExecutorEnd};
use phalanx::miner::images::{ImageCare, PrePulled};
use phalanx::miner::{ExecutorError, ExecutorSpec, Miner, MinerConfig};
use phalanx::ops::cause::{Cause, Fault};
use phalanx::proc::docker::Docker;
use phalanx::proc::image_store::{ImageBounds, ImageStore, Tally};

/// A runner whose registry is a script, with a book of images and names of its own.
struct Rig {
    engine: StandIn,
    folder: tempfile::TempDir,
    run: String,
    settings: ImageSettings,
    _threads: NoThreads,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Whatever this machine has free.
        let bounds = ImageBounds { free: 0, ..ImageSettings::default().bounds };
        let settings = ImageSettings { folder: Some(folder.path().join("images")), bounds, ..ImageSettings::default() };
        let run = uuid::Uuid::new_v4().to_string();
        Self { engine: StandIn::new(), folder, run, settings, _threads: NoThreads::expected() }
    }

    fn image(&self, name: &str) -> String {
        format!("phalanx-test-{}/{name}:1", self.run)
    }

    /// From now on a pull brings this machine's own image under the name that is asked for.
    fn registry(&self, first: &str) {
        self.engine.say("pull", &format!("{first}\nexec $real tag {IMAGE} $2"));
    }

    fn runner(&self) -> DockerRunner {
        DockerRunner { docker: self.engine.client(), images: self.settings.clone(), ..DockerRunner::default() }
    }

    fn prepare(&self, image: &str, deadline: Instant) -> Result<Prepared, RunError> {
        self.runner().prepare(image, &Shutdown::new(), deadline)
    }

    fn pulls(&self) -> usize {
        self.engine.calls("pull").len()
    }

    fn store(&self) -> ImageStore {
        let Self { engine, settings, .. } = self;
        ImageStore::open(engine.client(), settings.folder.clone().unwrap(), settings.bounds).unwrap()
    }

    /// A miner that keeps these images, and has no executors.
    fn miner(&self, pre_pull: &[&str]) -> (Miner, World) {
        let (world, pen) = (World::new(), Pen::new("//Alice"));
        let state = self.folder.path().join("state");
        let mut config = MinerConfig::new(pen.miner.clone(), state, Arc::new(NoExecutors));
        config.validators = vec![pen.key.public()];
        config.executors = vec![(CLASS, 1)];
        config.images = Some(ImageCare {
            docker: self.engine.client(),
            folder: self.settings.folder.clone().unwrap(),
            bounds: self.settings.bounds,
            pre_pull: pre_pull.iter().map(|image| (*image).to_owned()).collect(),
            silence: self.settings.silence,
        });
        let miner = Miner::start(config, Box::new(world.net.listener("miner")), world.timer()).unwrap();
        (miner, world)
    }

    fn here(&self, image: &str) -> bool {
        docker(&["image", "inspect", image]).is_ok()
    }
}

struct NoExecutors;

impl ExecutorBackend for NoExecutors {
    fn run(&self, _: &ExecutorSpec, _: &Shutdown) -> ExecutorEnd {
        Err(ExecutorError::Lost)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let pattern = format!("reference=phalanx-test-{}/*", self.run);
        let names = docker(&["images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", &pattern]).unwrap();
        for name in names.lines() {
            docker(&["rmi", name]).unwrap();
        }
        let left = self.folder.path().join("images");
        assert!(std::thread::panicking() || std::fs::read_dir(left).map_or(0, Iterator::count) < 40);
    }
}

#[test]
fn what_passes_is_tried_again_and_the_rest_is_whose_fault_it_is_at_once() {
    if !ready() {
        return;
    }
    let rig = Rig::new();
    let twice = "n=$(cat $folder/n 2>/dev/null || echo 0); echo $((n + 1)) >$folder/n\n[ $n -lt 2 ] && { echo";
    for (number, text) in
        ["toomanyrequests: retry-after: 1.5ms, allowed: 1/minute", "StatusCode: 503, \\\"\\\"", "i/o timeout"]
            .into_iter()
            .enumerate()
    {
        let image = rig.image(&format!("passing-{number}"));
        rig.registry(&format!("{} \"{text}\" >&2; exit 1; }}", twice.replace("/n", &format!("/n{number}"))));
        let before = rig.pulls();
        rig.prepare(&image, far()).unwrap();
        assert_eq!((rig.pulls() - before, rig.here(&image)), (3, true), "{text}");
    }
    for (text, fault) in [
        ("failed to register layer: read-only file system", Fault::Operator),
        ("manifest unknown: manifest unknown", Fault::Job),
        ("pull access denied for x, repository does not exist", Fault::Job),
        ("received unexpected HTTP status: 404 Not Found", Fault::Job),
        ("x509: certificate has expired", Fault::Network),
    ] {
        rig.registry(&format!("echo \"{text}\" >&2; exit 1"));
        let (before, image) = (rig.pulls(), rig.image("lasting"));
        let error = rig.prepare(&image, far()).unwrap_err();
        let RunError::Engine { cause, text: told, .. } = &error else { panic!("{error}") };
        assert_eq!((cause.fault, told.as_str(), rig.pulls() - before), (fault, text, 1), "{error}");
        assert!(error.to_string().starts_with(&format!("cannot pull image {image}: ")), "{error}");
    }
    // What does not pass in time is told with the number of tries.
    rig.registry("echo 'Cannot connect to the Docker daemon' >&2; exit 1");
    let deadline = Instant::now() + Duration::from_secs(3);
    let error = rig.prepare(&rig.image("never"), deadline).unwrap_err();
    assert!(Instant::now() < deadline + LONG, "{error}");
    assert!(matches!(&error, RunError::Engine { cause: Cause::OPERATOR_PASSING, .. }), "{error}");
    assert!(error.to_string().ends_with(" tries)"), "{error}");
}

#[test]
fn a_registry_that_asks_for_a_longer_wait_than_there_is_is_not_waited_for() {
    if !ready() {
        return;
    }
    let rig = Rig::new();
    // The second is longer than the clock goes.
    for text in ["429 Too Many Requests (Retry-After: 86400)", "toomanyrequests: retry-after: 10000000000000000000"] {
        rig.registry(&format!("echo '{text}' >&2; exit 1"));
        let error = rig.prepare(&rig.image("later"), far()).unwrap_err();
        assert!(error.to_string().ends_with("(1 tries)"), "{error}");
    }
}

#[test]
fn a_pull_that_shows_no_progress_is_given_up_and_tried_again() {
    if !ready() {
        return;
    }
    let mut rig = Rig::new();
    rig.settings.silence = Some(Duration::from_secs(1));
    let image = rig.image("silent");
    rig.registry("[ -e $folder/once ] || { touch $folder/once; echo pulling; exec sleep 1000; }");
    rig.prepare(&image, far()).unwrap();
    assert_eq!((rig.pulls(), rig.here(&image)), (2, true));
    // One that goes on is not disturbed, however long it takes.
    let slow = rig.image("slow");
    rig.registry("for i in 1 2 3 4 5 6; do echo $i; sleep 0.4; done");
    rig.prepare(&slow, far()).unwrap();
    assert_eq!(rig.pulls(), 3);
    rig.registry("exec sleep 1000");
    let error = rig.prepare(&rig.image("late"), Instant::now() + Duration::from_millis(200)).unwrap_err();
    assert!(matches!(error, RunError::PullTimedOut(_)), "{error}");
    // What a try before has shown tells more than the deadline of the next.
    rig.settings.silence = None;
    rig.registry("[ -e $folder/busy ] || { touch $folder/busy; echo '503 busy' >&2; exit 1; }; exec sleep 1000");
    let error = rig.prepare(&rig.image("busy"), Instant::now() + Duration::from_secs(5)).unwrap_err();
    assert!(matches!(&error, RunError::Engine { text, .. } if text == "503 busy (1 tries)"), "{error}");
}

#[test]
fn a_tag_that_has_moved_is_followed_unless_the_policy_says_otherwise() {
    if !ready() {
        return;
    }
    let mut rig = Rig::new();
    let image = rig.image("app");
    let (first, second) = (rig.image("v1"), rig.image("v2"));
    docker(&["tag", IMAGE, &first]).unwrap();
    let made = docker(&["create", &first, "true"]).unwrap();
    docker(&["commit", "--change", "ENV V=2", &made, &second]).unwrap();
    docker(&["rm", &made]).unwrap();
    docker(&["tag", &first, &image]).unwrap();
    let id = |name: &str| docker(&["image", "inspect", "--format", "{{.Id}}", name]).unwrap();
    rig.engine.say("pull", &format!("exec $real tag {second} $2"));

    for (policy, pulls) in [(PullPolicy::Never, 0), (PullPolicy::Missing, 0), (PullPolicy::Always, 1)] {
        rig.settings.policy = policy;
        rig.prepare(&image, far()).unwrap();
        assert_eq!(rig.pulls(), pulls, "{policy:?}");
    }
    assert_eq!(id(&image), id(&second));

    // Neither a registry that is away nor one that does not know it takes away what the operator has brought.
    for (text, tries) in [("dial tcp: lookup r: no such host", 1), ("denied: no", 1), ("503 Service Unavailable", 3)] {
        rig.registry(&format!("echo '{text}' >&2; exit 1"));
        let before = rig.pulls();
        rig.prepare(&image, far()).unwrap();
        assert_eq!(rig.pulls() - before, tries, "{text}");
    }
    // A digest never moves; here it is one that the engine knows as a name of ours.
    rig.engine.say("image-inspect", "echo sha256:0 1");
    let before = rig.pulls();
    rig.prepare(&format!("app@sha256:{}", "0".repeat(64)), far()).unwrap();
    assert_eq!(rig.pulls(), before);
    rig.engine.relent("image-inspect");

    rig.settings.policy = PullPolicy::Never;
    let error = rig.prepare(&rig.image("absent"), far()).unwrap_err();
    assert!(error.to_string().contains("none is pulled (--pull never)"), "{error}");
}

#[test]
fn only_allowed_images_are_prepared() {
    if !ready() {
        return;
    }
    let mut rig = Rig::new();
    rig.settings.allowed =
        vec![format!("phalanx-test-{}/good*", rig.run).parse().unwrap(), "busybox:1".parse().unwrap()];
    rig.registry("true");
    rig.prepare(&rig.image("good"), far()).unwrap();
    let error = rig.prepare(&rig.image("other"), far()).unwrap_err();
    assert!(
        matches!(&error, RunError::Spec(text) if text.contains("is not allowed here; allowed are ")
        && text.ends_with("/good*, busybox:1")),
        "{error}"
    );
    assert_eq!(rig.pulls(), 1);
    // A number is no name, whatever the pattern; it may look like one.
    rig.settings.allowed = vec!["docker.io/*".parse().unwrap()];
    let number = docker(&["image", "inspect", "--format", "{{.Id}}", IMAGE]).unwrap();
    let digits = number.strip_prefix("sha256:").unwrap();
    for image in [&number, digits, &digits[..12]] {
        let error = rig.prepare(image, far()).unwrap_err();
        assert!(matches!(&error, RunError::Spec(text) if text.contains("is the number of an image")), "{error}");
    }
    rig.engine.say("image-inspect", "echo sha256:cafe00 1");
    rig.engine.say("pull", "true");
    rig.prepare("cafe", far()).unwrap();
    assert_eq!(rig.pulls(), 2);
}

#[test]
fn the_least_recently_used_of_what_jobs_brought_goes_and_nothing_else() {
    if !ready() {
        return;
    }
    let mut rig = Rig::new();
    rig.settings.bounds = ImageBounds { count: 2, bytes: u64::MAX, free: 0 };
    rig.registry("true");
    let operators = rig.image("operators");
    docker(&["tag", IMAGE, &operators]).unwrap();
    drop(rig.prepare(&operators, far()).unwrap());
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| rig.image(name));
    drop(rig.prepare(&a, far()).unwrap());
    let in_use = rig.prepare(&b, far()).unwrap();
    drop(rig.prepare(&a, far()).unwrap());
    drop(rig.prepare(&c, far()).unwrap());
    // `b` was not used for longest, but is in use.
    assert_eq!([&a, &b, &c].map(|image| rig.here(image)), [false, true, true]);
    drop(in_use);
    drop(rig.prepare(&d, far()).unwrap());
    assert_eq!([&b, &c, &d, &operators].map(|image| rig.here(image)), [false, true, true, true]);
    // Bytes count as well, and one that is in use stays even if it alone is too large.
    rig.settings.bounds = ImageBounds { count: 9, bytes: 1, free: 0 };
    let in_use = rig.prepare(&d, far()).unwrap();
    assert_eq!([&c, &d, &operators].map(|image| rig.here(image)), [false, true, true]);
    drop(in_use);
    // What the registry takes back is no longer a job's to have, unlike what the operator has brought.
    rig.registry("echo 'pull access denied' >&2; exit 1");
    rig.prepare(&d, far()).unwrap_err();
    rig.prepare(&operators, far()).unwrap();
}

#[test]
fn nobody_waits_for_room_after_a_deadline_or_a_cancel() {
    if !ready() {
        return;
    }
    let mut rig = Rig::new();
    rig.settings.bounds = ImageBounds { count: 1, bytes: u64::MAX, free: 0 };
    rig.registry("true");
    drop(rig.prepare(&rig.image("a"), far()).unwrap());
    let program = rig.engine.program();
    let docker = Docker { program, time: Duration::from_secs(1000), ..Docker::default() };
    let runner = DockerRunner { docker, images: rig.settings.clone(), ..DockerRunner::default() };
    let token = Shutdown::new();
    rig.engine.say("image-rm", "touch $folder/removing; exec sleep 1000");
    // The image is here, so the job goes on.
    drop(runner.prepare(&rig.image("b"), &token, Instant::now() + Duration::from_secs(5)).unwrap());
    assert_eq!(rig.engine.calls("image rm").len(), 1);
    let (image, kicked) = (rig.image("c"), token.clone());
    let preparing = spawn("t-pull", Kick::new("cancel", move || kicked.cancel()), move || {
        runner.prepare(&image, &token, far()).map(drop).map_err(|error| error.to_string())
    });
    until("another image is removed", || rig.engine.calls("image rm").len() == 2);
    preparing.kick();
    assert_eq!(preparing.join_by(far()).unwrap(), Ok(()));
}

#[test]
fn a_full_disk_makes_room_of_what_jobs_brought_and_tries_once_more() {
    if !ready() {
        return;
    }
    let rig = Rig::new();
    let [a, b] = ["a", "b"].map(|name| rig.image(name));
    rig.registry("true");
    drop(rig.prepare(&a, far()).unwrap());
    rig.registry(&format!(
        "$real image inspect {a} >/dev/null 2>&1 && {{ echo 'no space left on device' >&2; exit 1; }}"
    ));
    drop(rig.prepare(&b, far()).unwrap());
    assert_eq!([&a, &b].map(|image| rig.here(image)), [false, true]);
    assert_eq!(rig.pulls(), 3);
}

#[test]
fn a_registry_that_speaks_of_a_full_disk_is_not_believed() {
    if !ready() {
        return;
    }
    let rig = Rig::new();
    let a = rig.image("a");
    rig.registry("true");
    drop(rig.prepare(&a, far()).unwrap());
    // Engines take a registry on this machine without TLS.
    rig.engine.relent("pull");
    for (code, status, fault) in [
        ("DENIED", 403, Fault::Job),
        ("UNAUTHORIZED", 400, Fault::Job),
        ("MANIFEST_UNKNOWN", 404, Fault::Job),
        ("TOOMANYREQUESTS", 429, Fault::Network),
        ("OF_ITS_OWN", 400, Fault::Network),
    ] {
        let text = r#"{"errors":[{"code":"CODE","message":"no space left on device"}]}"#.replace("CODE", code);
        let registry = Server::start(move |request| match request.path.as_str() {
            "/v2/" => Reply::ok(""),
            _ => Reply::Answer(status, vec![("content-type", "application/json".to_owned())], text.clone().into()),
        });
        let address = registry.url("");
        let image = format!("{}/acme/app:1", address.trim_start_matches("http://").trim_end_matches('/'));
        let error = rig.prepare(&image, Instant::now() + Duration::from_secs(3)).unwrap_err();
        let RunError::Engine { text, cause, .. } = &error else { panic!("{error}") };
        assert!(text.contains("no space left on device"), "{text}");
        assert_eq!(cause.fault, fault, "{text}");
        assert!(rig.here(&a), "{code}");
    }
}

#[test]
fn an_image_is_pulled_once_at_a_time_and_those_who_waited_use_it() {
    if !ready() {
        return;
    }
    let rig = Rig::new();
    let image = rig.image("shared");
    rig.registry("touch $folder/begun; while [ ! -e $folder/go ]; do sleep 0.05; done");
    let prepare = || {
        let (runner, image, token) = (rig.runner(), image.clone(), Shutdown::new());
        let kicked = token.clone();
        spawn("t-pull", Kick::new("cancel", move || kicked.cancel()), move || {
            runner.prepare(&image, &token, far()).map(drop).map_err(|error| error.to_string())
        })
    };
    let first = prepare();
    let begun = || rig.engine.calls("pull").len() == 1;
    until("the first pulls", begun);
    let others = [prepare(), prepare()];
    until("the others wait", || {
        let waits = "another process to be done with a file";
        phalanx::base::thread::live().iter().filter(|thread| thread.to_string().contains(waits)).count() >= 2
    });
    rig.engine.keep("go", "");
    for thread in [first].into_iter().chain(others) {
        assert_eq!(thread.join_by(far()).unwrap(), Ok(()));
    }
    assert_eq!(rig.pulls(), 1);
}

#[test]
fn who_waits_for_long_for_an_image_that_is_here_uses_that() {
    if !ready() {
        return;
    }
    let rig = Rig::new();
    let [here, absent] = ["here", "absent"].map(|name| rig.image(name));
    docker(&["tag", IMAGE, &here]).unwrap();
    // Somebody pulls both, and is not done in time.
    let pulling = [&here, &absent].map(|image| rig.store().prepare(image, &Shutdown::new(), far()).unwrap());
    let soon = || Instant::now() + Duration::from_secs(6);
    drop(rig.prepare(&here, soon()).unwrap());
    let late = rig.prepare(&absent, soon()).unwrap_err();
    assert!(matches!(late, RunError::PullTimedOut(_)), "{late}");
    assert_eq!(rig.pulls(), 0);
    drop(pulling);
    // It is still the operator's.
    assert_eq!(rig.store().empty(&Shutdown::new(), far()).unwrap(), [""; 0]);
    assert!(rig.here(&here));
}

#[test]
fn the_engine_s_client_has_none_of_the_operator_s_log_ins_unless_a_setting_says_so() {
    if !ready() {
        return;
    }
    let rig = Rig::new();
    rig.registry("cat $DOCKER_CONFIG/config.json >$folder/config; env >$folder/env");
    for (registry_login, has_own) in [(false, true), (true, false)] {
        let images = ImageSettings { registry_login, ..rig.settings.clone() };
        let mut runner = DockerRunner::new(Default::default(), images).unwrap();
        runner.docker.program = rig.engine.program();
        runner.prepare(&rig.image("login"), &Shutdown::new(), far()).unwrap();
        assert_eq!(runner.docker.config.is_some(), has_own);
        let env = rig.engine.file("env");
        assert_eq!(env.contains("REGISTRY_AUTH_FILE="), has_own, "{env}");
        assert!(!env.lines().any(|line| line.starts_with("CARGO")), "the environment of the tests is in {env}");
    }
}

#[test]
fn images_that_jobs_brought_make_room_before_a_pull_when_the_disk_is_short_of_it() {
    if !ready() {
        return;
    }
    let mut rig = Rig::new();
    rig.registry("true");
    let operators = rig.image("operators");
    docker(&["tag", IMAGE, &operators]).unwrap();
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| rig.image(name));
    drop(rig.prepare(&a, far()).unwrap());
    let in_use = rig.prepare(&b, far()).unwrap();
    // No disk has so much free.
    rig.settings.bounds.free = u64::MAX;
    rig.registry(&format!("if $real image inspect {a} >/dev/null 2>&1; then echo manifest unknown >&2; exit 1; fi"));
    drop(rig.prepare(&c, far()).unwrap());
    assert_eq!([&a, &b, &c, &operators].map(|image| rig.here(image)), [false, true, true, true]);
    assert_eq!(rig.store().tally().unwrap(), Tally { pulled: 3, failed: 0, evicted: 1 });
    // What is free on the disk of another machine is not known, so nothing goes for it.
    rig.engine.say("info", "echo '{\"Name\": \"elsewhere\", \"DockerRootDir\": \"/\"}'");
    drop(rig.prepare(&d, far()).unwrap());
    // Nor if the engine does not tell: the pull goes on.
    rig.engine.say("info", "echo no >&2; exit 1");
    drop(rig.prepare(&d, far()).unwrap());
    drop(in_use);
    assert_eq!([&b, &c, &d].map(|image| rig.here(image)), [true; 3]);
    rig.engine.relent("info");
    let gone = rig.store().make_room_if_short(&Shutdown::new(), far()).unwrap();
    assert_eq!(gone, [b, c, d]);
    assert_eq!(rig.store().tally().unwrap(), Tally { pulled: 5, failed: 0, evicted: 4 });
}

#[test]
fn an_image_that_has_got_another_name_is_not_removed_by_its_number() {
    if !ready() {
        return;
    }
    let rig = Rig::new();
    let [moved, own, first, second] = ["moved", "own", "first", "second"].map(|name| rig.image(name));
    for (name, change) in [(&first, "ENV V=1"), (&second, "ENV V=2")] {
        let made = docker(&["create", IMAGE, "true"]).unwrap();
        docker(&["commit", "--change", change, &made, name]).unwrap();
        docker(&["rm", &made]).unwrap();
    }
    rig.engine.say("pull", &format!("exec $real tag {first} $2"));
    drop(rig.prepare(&moved, far()).unwrap());
    // The operator likes it, and then its name moves on.
    docker(&["tag", &first, &own]).unwrap();
    docker(&["rmi", &first]).unwrap();
    rig.engine.say("pull", &format!("exec $real tag {second} $2"));
    drop(rig.prepare(&moved, far()).unwrap());
    let gone = rig.store().empty(&Shutdown::new(), far()).unwrap();
    assert_eq!((gone, rig.here(&own)), (vec![moved], true));
}

#[test]
fn a_miner_pulls_images_before_jobs_ask_for_them_and_they_stay() {
    if !ready() {
        return;
    }
    let mut rig = Rig::new();
    let [wanted, missing, absent, other] = ["wanted", "missing", "absent", "other"].map(|name| rig.image(name));
    // A job has brought it, so it was to go.
    rig.registry("true");
    drop(rig.prepare(&wanted, far()).unwrap());
    rig.settings.bounds = ImageBounds::NONE;
    let pull = format!(
        "[ $2 = {missing} ] && {{ echo 'manifest unknown' >&2; exit 1; }}\n\
         name=${{2##*/}}; while [ ! -e $folder/go-${{name%:1}} ]; do sleep 0.05; done"
    );
    rig.registry(&pull);
    let (miner, _world) = rig.miner(&[&wanted, &missing, &absent]);
    let observer = miner.observer();
    until("the miner pulls", || rig.engine.calls("pull").len() == 2);
    // It is here, so no job that is content with that waits for the miner.
    rig.settings.policy = PullPolicy::Missing;
    drop(rig.prepare(&wanted, far()).unwrap());
    rig.engine.keep("go-wanted", "");
    // One that is not is waited for, and then has come for the job, too.
    until("the miner pulls the last one", || rig.engine.calls("pull").len() == 4);
    let (runner, image, token) = (rig.runner(), absent.clone(), Shutdown::new());
    let kicked = token.clone();
    let job = spawn("t-pull", Kick::new("cancel", move || kicked.cancel()), move || {
        runner.prepare(&image, &token, far()).map(drop).map_err(|error| error.to_string())
    });
    until("the job waits", || {
        let waits = "another process to be done with a file";
        phalanx::base::thread::live().iter().any(|thread| thread.to_string().contains(waits))
    });
    rig.engine.keep("go-absent", "");
    assert_eq!(job.join_by(far()).unwrap(), Ok(()));
    until("all were tried", || observer.images().pre_pull.iter().all(|image| image.is_here || image.trouble.is_some()));
    let [first, second, third] = &observer.images().pre_pull[..] else { panic!("{:?}", observer.images()) };
    assert_eq!(first, &PrePulled { image: wanted.clone(), is_here: true, trouble: None });
    assert!(!second.is_here && second.trouble.as_ref().unwrap().ends_with("manifest unknown"), "{second:?}");
    assert_eq!(third, &PrePulled { image: absent.clone(), is_here: true, trouble: None });
    assert_eq!(rig.engine.calls(&format!("pull {absent}")).len(), 1);
    rig.settings.policy = PullPolicy::Always;
    // Whatever a job brings goes with the next one; this stays.
    rig.registry("true");
    drop(rig.prepare(&other, far()).unwrap());
    rig.store().empty(&Shutdown::new(), far()).unwrap();
    assert_eq!([&wanted, &absent, &other].map(|image| rig.here(image)), [true, true, false]);
    let metrics = observer.board().metrics.render();
    for line in ["pre_pulls_total{result=\"pulled\"} 2", "pre_pulls_total{result=\"failed\"} 1"] {
        assert!(metrics.contains(&format!("phalanx_miner_{line}\n")), "{line} is not in {metrics}");
    }
    drop(miner);
}

#[test]
fn a_pull_that_lasts_does_not_hold_up_the_stop_of_a_miner() {
    if !ready() {
        return;
    }
    let rig = Rig::new();
    let image = rig.image("slow");
    rig.registry("touch $folder/begun; exec sleep 1000");
    let (miner, _world) = rig.miner(&[&image]);
    until("the miner pulls", || rig.pulls() == 1);
    let began = Instant::now();
    drop(miner);
    assert!(began.elapsed() < LONG, "{:?}", began.elapsed());
    assert!(!rig.here(&image));
}
