//! The commands of the binary, one file each: flags to configuration, results to stdout, problems to stderr.

#![allow(clippy::print_stdout, clippy::print_stderr)] // The commands are what talks to the terminal.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use self::mistakes::one_line;
use crate::app::logging::{self, LogFormat};
use crate::app::settings::{Settings, Source};
use crate::app::stderr::{self, Stderr};
use crate::app::{exit, init, parent, settings};

mod announce;
pub mod audit;
pub mod batch;
pub mod check;
pub mod config;
mod connections;
pub mod demo;
pub mod dev;
pub mod doctor;
mod ending;
pub mod executor;
mod executors;
pub mod facilitator;
pub mod generate;
mod images;
pub mod job;
mod job_files;
pub mod job_text;
pub mod jobs;
pub mod key;
mod layout;
pub mod manifests;
pub mod miner;
mod miner_list;
mod miner_status;
pub mod miners;
mod mistakes;
pub mod outbox;
mod outside;
pub mod pause;
mod print;
mod rates;
mod reload;
mod report;
pub mod schema;
mod security;
pub mod status;
pub mod submit;
mod tls;
pub mod top;
mod transfers;
mod tree;
pub mod validator;
pub mod values;
mod watch;
pub mod wire;
#[cfg(feature = "celery")]
pub mod worker;

/// The real-time layer of ComputeHorde: facilitator, validator, miner and executor in one binary.
#[derive(Debug, Parser)]
#[command(name = "phalanx", version, arg_required_else_help = true)]
pub struct Cli {
    /// Settings file (TOML), one table for each command with the names of its flags; flags and environment win
    #[arg(long, global = true, value_name = "FILE", env = "PHALANX_CONFIG")]
    config: Option<PathBuf>,
    /// How log lines look; RUST_LOG says which there are
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT", env = "PHALANX_LOG_FORMAT")]
    log_format: LogFormat,
    /// End by SIGTERM when this process, which has started it, ends
    #[arg(long, global = true, hide = true, value_name = "PID")]
    end_with: Option<i32>,
    /// What the lines on stderr are headed with, where several processes write there
    #[arg(long, global = true, hide = true, value_name = "NAME")]
    log_name: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run all four roles on loopback and real jobs through them
    Demo(demo::Args),
    /// Run facilitator, validator and miner on loopback, with their state in a folder, until a signal
    Dev(dev::Args),
    /// Serve validators and users: sessions, the job API, histories
    Facilitator(Box<facilitator::Args>),
    /// Take jobs from the facilitator and drive them on miners
    Validator(Box<validator::Args>),
    /// Run the jobs of validators that send them through Redis (--dispatch celery)
    #[cfg(feature = "celery")]
    Worker(Box<worker::Args>),
    /// Serve validators and manage executors
    Miner(Box<miner::Args>),
    /// Run one job for the miner that started this process
    Executor(Box<executor::Args>),
    /// Try the settings of a role, and what is outside, without starting it
    Check(check::Args),
    /// Show the settings of a role with their sources, or make a settings file
    Config(config::Args),
    /// Submit job files, follow them and print their results
    Submit(submit::Args),
    /// Show the status of a running role; exit 0 if it is ready, 1 if not
    Status(status::Args),
    /// Look at running roles again and again, on the whole terminal
    Top(top::Args),
    /// Have a running validator or miner take no new work for a while
    Pause(pause::PauseArgs),
    /// Have a paused validator or miner take work again
    Resume(pause::ResumeArgs),
    /// Put all that is known of running roles into one file, without secrets
    Doctor(doctor::Args),
    /// Show the miners of a running validator or worker, and why one is passed over
    Miners(miners::Args),
    /// Ask miners what they offer
    Manifests(manifests::Args),
    /// List, show and wait for your jobs at a facilitator, and print what they wrote
    Jobs(jobs::Args),
    /// Look at one job: its way through a miner
    Job(job::Args),
    /// Look at the updates that a validator keeps for the facilitator; send given-up ones again, or drop them
    Outbox(outbox::Args),
    /// Show what a facilitator has noted of its validators and of the jobs that it gave them
    Audit(audit::Args),
    /// Ask many miners for jobs at once and judge their answers: one synthetic batch
    Batch(Box<batch::Args>),
    /// Check messages against the wire protocol
    Wire(wire::Args),
    /// Measure, take over or remove what a job has left
    #[command(hide = true)]
    Tree(tree::Args),
    /// Make keys, show them, sign and verify
    Key(key::Args),
    /// Print the schema of what the program reads
    Schema(schema::Args),
    /// Print the completions of a shell
    Completions(generate::CompletionsArgs),
    /// Write the manual pages, one for each command
    Man(generate::ManArgs),
}

/// Why there is no command to run.
enum NoCommand {
    /// The settings file cannot be used.
    Settings(String),
    /// A mistake in the arguments, or a question for help.
    Arguments(clap::Error),
}

/// Reads environment and settings file for the command of this line.
fn read_settings(command: &clap::Command, arguments: Vec<OsString>) -> Settings {
    // The network's own name for the facilitator's URL counts as environment, too.
    let uri = std::env::var_os("FACILITATOR_URI");
    let env = |name: &OsStr| match std::env::var_os(name) {
        None if name == "PHALANX_FACILITATOR" => uri.clone(),
        value => value,
    };
    let mut settings = settings::read(command, arguments, env);
    if let Some(uri) = &uri
        && settings.sources.of("facilitator") == Source::Variable("PHALANX_FACILITATOR".to_owned())
        && std::env::var_os("PHALANX_FACILITATOR").is_none()
    {
        settings.add_variable("facilitator", "FACILITATOR_URI", uri);
    }
    settings
}

/// Reads arguments, environment and settings file.
fn parse() -> Result<Cli, NoCommand> {
    let command = Cli::command();
    let Settings { arguments, sources, problems } = read_settings(&command, std::env::args_os().collect());
    settings::remember(sources);
    if !problems.is_empty() {
        return Err(NoCommand::Settings(problems.join("; ")));
    }
    let parsed = command.try_get_matches_from(arguments).and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.map_err(NoCommand::Arguments)
}

/// Runs `check ROLE`, `config show ROLE` and `config init ROLE`, whose line is that of the role.
fn of_role() -> Option<ExitCode> {
    let command = Cli::command();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let at = settings::positional(&command, &arguments)?;
    let word = |at: usize| arguments.get(at).and_then(|word| word.to_str());
    let (what, words) = match (word(at)?, word(at + 1)?) {
        ("check", role) if !role.starts_with('-') && role != "help" => (None, 1),
        ("config", "show") => (Some(config::What::Show), 2),
        ("config", "init") => (Some(config::What::Init), 2),
        _ => return None,
    };
    if word(at + words).is_none_or(|role| role.starts_with('-')) {
        return None;
    }
    let (arguments, role) = check::line_of_role(arguments, at, words);
    let settings = read_settings(&command, arguments);
    Some(match what {
        None => check_role(&command, settings, role.as_deref()),
        Some(what) => config::run(what, &command, settings, role.as_deref()),
    })
}

/// Checks the role that the line names.
fn check_role(command: &clap::Command, settings: Settings, role: Option<&str>) -> ExitCode {
    let Some(role) = role.filter(|role| check::ROLES.contains(role)) else {
        return exit::usage(format!("check: name the role after it: {}", check::ROLES.join(", ")));
    };
    let mut report = check::begin(&settings);
    let matches = match mistakes::parse(command, settings.arguments, role, &mut report) {
        Ok(matches) => matches,
        Err(help) => return help,
    };
    match matches.and_then(|matches| Cli::from_arg_matches(&matches).ok()).map(|cli| cli.command) {
        Some(Command::Facilitator(args)) => facilitator::check(*args, &mut report),
        Some(Command::Validator(args)) => validator::check(*args, &mut report),
        Some(Command::Miner(args)) => miner::check(*args, &mut report),
        #[cfg(feature = "celery")]
        Some(Command::Worker(args)) => worker::check(*args, &mut report),
        _ => {}
    }
    check::end(&report)
}

/// Reads those of a running command again: what the settings file says may have changed.
///
/// # Errors
/// What is wrong with it, in one line.
fn again() -> Result<Command, String> {
    match parse().map(|cli| cli.command) {
        Ok(command) => Ok(command),
        Err(NoCommand::Settings(problem)) => Err(problem),
        Err(NoCommand::Arguments(mistake)) => Err(one_line(&mistake)),
    }
}

/// As [`again`], for a miner.
fn miner_again() -> Result<miner::Args, String> {
    match again()? {
        Command::Miner(args) => Ok(*args),
        _ => Err("they are not those of a miner".to_owned()),
    }
}

/// As [`again`], for a facilitator.
fn facilitator_again() -> Result<facilitator::Args, String> {
    match again()? {
        Command::Facilitator(args) => Ok(*args),
        _ => Err("they are not those of a facilitator".to_owned()),
    }
}

/// Runs the binary: reads arguments, environment and settings file, and runs the command.
pub fn main() -> ExitCode {
    let stderr = match Stderr::start(logging::lost_lines) {
        Ok(stderr) => stderr,
        Err(error) => return exit::failed(format!("no descriptor is left: {error}")),
    };
    let code = run();
    // Waits for the last lines.
    drop(stderr);
    code
}

fn run() -> ExitCode {
    if let Some(code) = of_role() {
        return code;
    }
    let cli = match parse() {
        Ok(cli) => cli,
        Err(NoCommand::Settings(problem)) => return exit::usage(problem),
        Err(NoCommand::Arguments(help))
            if !help.use_stderr() || help.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
        {
            // Help and version; a closed pipe is not worth a word.
            let _ = help.print();
            return ExitCode::from(if help.use_stderr() { exit::USAGE } else { exit::DONE });
        }
        Err(NoCommand::Arguments(mistake)) => return exit::usage(one_line(&mistake)),
    };
    if let Some(name) = cli.log_name {
        logging::name(name);
    }
    if let Some(process) = cli.end_with
        && let Err(error) = parent::end_with(process)
    {
        return exit::failed(format!("{} {process}: {error}", parent::FLAG));
    }
    // Those that start other programs, whose children may lose their parents.
    let starts_programs =
        matches!(cli.command, Command::Miner(_) | Command::Executor(_) | Command::Demo(_) | Command::Dev(_));
    if starts_programs && init::is_needed() {
        return init::run();
    }
    let default_filter = match &cli.command {
        Command::Facilitator(_) | Command::Validator(_) | Command::Miner(_) => "info",
        #[cfg(feature = "celery")]
        Command::Worker(_) => "info",
        Command::Demo(_) => "error",
        // And how its job has ended.
        Command::Executor(_) => "warn,phalanx::executor::stages=info",
        _ => "warn",
    };
    if default_filter == "info" {
        stderr::hold();
    }
    logging::init(cli.log_format, default_filter);
    match cli.command {
        Command::Demo(args) => demo::run(args),
        Command::Dev(args) => dev::run(args),
        Command::Facilitator(args) => facilitator::run(*args, facilitator_again),
        Command::Validator(args) => validator::run(*args),
        #[cfg(feature = "celery")]
        Command::Worker(args) => worker::run(*args),
        Command::Miner(args) => miner::run(*args, miner_again),
        Command::Executor(args) => executor::run(*args),
        // With a role after them they are not parsed as commands, see `of_role`.
        Command::Check(_) | Command::Config(_) => exit::usage("name a role: facilitator, validator, miner or worker"),
        Command::Submit(args) => submit::run(args),
        Command::Status(args) => status::run(args),
        Command::Top(args) => top::run(args),
        Command::Pause(args) => pause::pause(args),
        Command::Resume(args) => pause::resume(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Miners(args) => miners::run(args),
        Command::Manifests(args) => manifests::run(args),
        Command::Jobs(args) => jobs::run(args),
        Command::Job(args) => job::run(args),
        Command::Outbox(args) => outbox::run(args),
        Command::Audit(args) => audit::run(args),
        Command::Batch(args) => batch::run(*args),
        Command::Wire(args) => wire::run(args),
        Command::Tree(args) => tree::run(args),
        Command::Key(args) => key::run(args),
        Command::Schema(args) => schema::run(args),
        Command::Completions(args) => generate::completions(args, Cli::command()),
        Command::Man(args) => generate::man(args, Cli::command()),
    }
}
