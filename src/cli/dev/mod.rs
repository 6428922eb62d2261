//! `phalanx dev`: facilitator, validator and miner as they run for real, each a process of its own on loopback, with
//! their state in a folder, until a signal.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use self::folder::{Folder, Places};
use self::role::RoleProcess;
use super::demo::LocalRunner;
use crate::app::output::Output;
use crate::app::{exit, logging, stderr, supervise};
use crate::base::shutdown::{Level, Shutdown};
use crate::base::stop::Stopping;
use crate::executor::RunnerKind;
use crate::proc::docker::Docker;

mod folder;
mod role;

/// The first of the ports, unless another one is given.
const PORT: u16 = 8100;

/// How long an engine may take to say that it is there.
const ENGINE_TIME: Duration = Duration::from_secs(20);

/// How long the stop of one role may take; its own budget is shorter, and ends it.
const ROLE_TIME: Duration = Duration::from_secs(90);

/// The same of one that was told to hurry: each step of its own stop has five seconds then, and it has some six.
const HURRIED_TIME: Duration = Duration::from_secs(40);

/// In the order of the start.
const ROLES: [&str; 3] = ["facilitator", "miner", "validator"];

/// The arguments of `phalanx dev`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the keys, the settings and the state of all roles; made if it is not there
    #[arg(long, value_name = "DIR", default_value = "phalanx-dev", env = "PHALANX_STATE_DIR")]
    state_dir: PathBuf,
    /// The first of five ports on 127.0.0.1; with 0 the system chooses
    #[arg(long, value_name = "PORT", default_value_t = PORT, env = "PHALANX_PORT",
          value_parser = clap::value_parser!(u16).range(0..=i64::from(u16::MAX) - 4))]
    port: u16,
    /// How jobs run: containers if a Docker Engine is at hand, else plain processes
    #[arg(long, value_enum, default_value_t, env = "PHALANX_RUNNER")]
    runner: LocalRunner,
}

/// Runs the command until a signal ends it, or a role ends by itself, which is exit code 1.
pub fn run(args: Args) -> ExitCode {
    supervise::with_env(|env| dev(&args, env).unwrap_or_else(|code| code))
}

fn dev(args: &Args, env: &supervise::Env) -> Result<ExitCode, ExitCode> {
    let folder = Folder::take(&args.state_dir).map_err(exit::usage)?;
    let places = Places::find(args.port).map_err(exit::usage)?;
    let (runner, how) = choose_runner(args.runner, &env.shutdown).map_err(exit::usage)?;
    let config = folder.write(&places, runner).map_err(exit::failed)?;
    // Set by a signal, and when a role ends.
    let over = env.shutdown.child();
    let mut roles = Vec::new();
    let started = start(&mut roles, &config, &over).and_then(|()| {
        if over.is_set() {
            return Ok(());
        }
        let text = folder.in_words(&places, &how);
        let said = Output::until(&over, Level::Drain).and_then(|mut out| out.write_all(text.as_bytes()));
        // Nobody has to read it.
        said.or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })
            .map_err(|error| format!("cannot write to stdout: {error}"))
    });
    if started.is_ok() {
        let processes: Vec<_> = roles.iter().map(RoleProcess::process).collect();
        env.reload.set(move || {
            logging::say(log::Level::Info, format_args!("SIGHUP: passed on to all roles"));
            processes.iter().for_each(role::Process::reload);
        });
        // Nothing is ever sent.
        let _ = over.drain_receiver().recv();
    }
    let is_asked = env.shutdown.is_set();
    let ended = roles.iter().filter(|_| !is_asked).find_map(|role| Some((role.name, role.how_ended()?)));
    if let Some((name, how)) = &ended {
        log::error!("the {name} has ended with {how}; the others are stopped now");
        // Before what they say of that.
        stderr::flush(stderr::FLUSH_TIME);
    }
    let ended = ended.map(|(name, _)| name);
    let budget = ROLE_TIME * u32::try_from(roles.len()).unwrap_or(u32::MAX);
    let mut is_good = true;
    let code = supervise::stop_within(env, budget, |stopping| {
        stopping.step("roles", budget, |_| is_good = stop(roles, ended, &env.shutdown));
    });
    drop(folder);
    match (started, ended) {
        (_, Some(name)) => Err(exit::failed(format!("the {name} has ended, and with it the others"))),
        (Err(problem), None) => Err(exit::failed(problem)),
        (Ok(()), None) if !is_good => Err(ExitCode::from(exit::FAILED)),
        (Ok(()), None) => Ok(code),
    }
}

/// Starts the roles, each when the one before is ready.
fn start(roles: &mut Vec<RoleProcess>, config: &std::path::Path, over: &Shutdown) -> Result<(), String> {
    for name in ROLES {
        if over.is_set() {
            break;
        }
        let role = RoleProcess::start(name, config, over).map_err(|e| format!("the {name} cannot be started: {e}"))?;
        role.wait_until_ready(over);
        roles.push(role);
    }
    Ok(())
}

/// Stops the last that was started first; says whether all have ended well. At a cancel the one whose turn it is gets a
/// signal more, and each after it both in its turn: a role that goes before another one is done is missed by that.
fn stop(roles: Vec<RoleProcess>, ended: Option<&str>, shutdown: &Shutdown) -> bool {
    let mut stopping = Stopping::new(shutdown).with_cancel_budget(HURRIED_TIME);
    let mut is_good = true;
    for role in roles.into_iter().rev() {
        let process = role.process();
        process.terminate();
        let _hurry = shutdown.on(Level::Cancel, move || process.hurry());
        let (name, thread) = role.into_thread();
        match stopping.step(name, ROLE_TIME, |step| step.join(thread)) {
            Some(Ok(status)) if status.success() => {}
            // That was said.
            Some(Ok(_)) if ended == Some(name) => is_good = false,
            Some(Ok(status)) => {
                is_good = false;
                log::warn!("the {name} has ended with {status}");
            }
            Some(Err(error)) => {
                is_good = false;
                log::warn!("how the {name} has ended is not known: {error}");
            }
            None => {
                is_good = false;
                log::error!("the {name} has not ended");
            }
        }
    }
    is_good
}

/// How jobs run, as a setting and in words.
fn choose_runner(wanted: LocalRunner, shutdown: &Shutdown) -> Result<(RunnerKind, String), String> {
    let how = "jobs are plain processes, which nothing isolates, and their images are not looked at";
    let plain = (RunnerKind::Process, how.to_owned());
    let engine = match wanted {
        LocalRunner::Process => return Ok(plain),
        LocalRunner::Docker | LocalRunner::Auto => {
            let stop = shutdown.child();
            let cancel = stop.clone();
            let _signal = shutdown.on(Level::Drain, move || cancel.cancel());
            Docker::default().version(&stop, Instant::now() + ENGINE_TIME)
        }
    };
    match (engine, wanted) {
        (Ok(_), _) => Ok((RunnerKind::Docker, "jobs run in containers".to_owned())),
        (Err(why), LocalRunner::Docker) => Err(format!("--runner docker: {why}")),
        (Err(why), _) => {
            let (runner, plain) = plain;
            Ok((runner, format!("{plain}; with a Docker Engine they would run in containers ({why})")))
        }
    }
}
