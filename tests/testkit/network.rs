//! The roles as processes of their own: what a test sees of them are their pages, their exit codes and their stderr.

use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use super::process::{Finished, Running, nothing_left, phalanx, run};

pub const ALICE: &str = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
pub const BOB: &str = "5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty";
pub const CHARLIE: &str = "5FLSigC9HGRKVhB9FiEo4Y3koPsNmBmLJbpXg2mp1hXcS59Y";

pub const NO_OP: &str = r#"{"executor_class": "always_on.test", "docker_image": "x", "args": ["echo", "done"]}"#;

/// The roles that serve pages, each with its address; executors come with the jobs.
pub struct Network {
    pub roles: [(&'static str, Running, String); 3],
    pub folder: tempfile::TempDir,
    pub scratch: tempfile::TempDir,
}

impl Network {
    pub fn start(log_filter: &str, log_format: &str) -> Self {
        Self::start_with(log_filter, log_format, |miner| {
            miner.args(["--runner", "process"]);
        })
    }

    /// The same with further settings of the miner.
    pub fn start_with(log_filter: &str, log_format: &str, miner_settings: impl Fn(&mut Command)) -> Self {
        Self::start_by(log_filter, log_format, miner_settings, Running::start)
    }

    /// The same, each role started by `run`.
    pub fn start_by(
        log_filter: &str,
        log_format: &str,
        miner_settings: impl Fn(&mut Command),
        run: impl Fn(&mut Command) -> Running,
    ) -> Self {
        let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let start = |role: &str, key: &str, arguments: &[&str]| {
            let mut command = phalanx(scratch.path());
            command.args([role, "--http", "127.0.0.1:0", "--state-dir"]).arg(folder.path().join(role));
            if role == "miner" {
                command.env("PHALANX_LISTEN", "127.0.0.1:0");
                miner_settings(&mut command);
            }
            command.args(arguments).env("RUST_LOG", log_filter).env("PHALANX_LOG_FORMAT", log_format);
            command.env("PHALANX_HTTP_HOST", "pages.example,roles.example");
            if !key.is_empty() {
                command.env("PHALANX_KEY", key);
            }
            let mut running = run(&mut command);
            let line: Value = serde_json::from_str(&running.line()).unwrap();
            let address = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
            (running, address("http"), address("listening"))
        };
        let listen = ["--listen", "127.0.0.1:0", "--validator", ALICE];
        let (facilitator, users, validators) = start("facilitator", "", &[&listen[..], &["--user", CHARLIE]].concat());
        let executors = ["--validator", ALICE, "--executors", "always_on.test=2", "--drain-time", "1s"];
        let (miner, miner_pages, dialled) = start("miner", "//Bob", &executors);
        let port = dialled.rsplit(':').next().unwrap();
        let miners = format!("[[miner]]\nhotkey = \"{BOB}\"\naddress = \"127.0.0.1\"\nport = {port}\n");
        let file = folder.path().join("miners.toml");
        std::fs::write(&file, miners).unwrap();
        let url = format!("ws://{validators}/ws/v0/");
        let arguments = ["--facilitator", &url, "--trusted-signer", CHARLIE, "--drain-time", "1s", "--miners"];
        let arguments = [&arguments[..], &[file.to_str().unwrap()]].concat();
        let (validator, validator_pages, _) = start("validator", "//Alice", &arguments);
        let roles = [
            ("validator", validator, validator_pages),
            ("miner", miner, miner_pages),
            ("facilitator", facilitator, users),
        ];
        Self { roles, folder, scratch }
    }

    pub fn pages(&self, role: &str) -> &str {
        &self.roles.iter().find(|(name, _, _)| *name == role).unwrap().2
    }

    /// Runs a job to its end, logging all; its uuid, and its stderr.
    pub fn job(&self, job: &str) -> (String, String) {
        let finished = self.submit(job);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        let result: Value = serde_json::from_str(&finished.stdout).unwrap();
        (result["uuid"].as_str().unwrap().to_owned(), finished.stderr)
    }

    /// Runs a job to whatever end; what `submit --json` says of it.
    pub fn end_of(&self, job: &Value) -> Value {
        let finished = self.submit(&job.to_string());
        serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished:?}"))
    }

    fn submit(&self, job: &str) -> Finished {
        let file = self.folder.path().join("job.json");
        std::fs::write(&file, job).unwrap();
        let mut command = phalanx(self.scratch.path());
        command.arg("submit").arg(file).args(["--facilitator", &format!("http://{}", self.pages("facilitator"))]);
        run(command.args(["--target", ALICE, "--key", "//Charlie", "--wait", "--json"]).env("RUST_LOG", "trace"))
    }

    /// Stops the roles; the stderr of each.
    pub fn stop(self) -> [(&'static str, String); 3] {
        let Self { roles, scratch, folder: _folder } = self;
        let reported = roles.map(|(name, running, _)| {
            let finished = running.stop(Signal::TERM);
            assert_eq!(finished.code, Some(0), "{name}: {finished:?}");
            (name, finished.stderr)
        });
        nothing_left(scratch.path());
        reported
    }
}
