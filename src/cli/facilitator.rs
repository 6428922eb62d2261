//! `phalanx facilitator`: validators on `--listen`, users, health and metrics on `--http`.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use super::announce::announce;
use super::connections::ConnectionsArg;
use super::rates::RateArgs;
use super::reload::Fixed;
use super::report::Report;
use super::tls;
use super::values::{Problems, duration, listen_address, one_address, rate};
use crate::app::exit::NotStarted;
use crate::app::{exit, supervise};
use crate::base::limits::SERVER_CONNECTIONS;
use crate::base::size::byte_size;
use crate::facilitator::{Facilitator, FacilitatorConfig, Operators};
use crate::identity::PublicKey;
use crate::link::Rate;
use crate::net::http::HttpListener;
use crate::net::tls::ClientCertificates;
use crate::ops::status::Board;
use crate::store;
use crate::store::jobs::{Keep, Quota};
use crate::transport::TransportError;

/// The arguments of `phalanx facilitator`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address for validators, as 127.0.0.1:8001; port 0 lets the system choose
    #[arg(long, value_name = "ADDR", value_parser = listen_address, env = "PHALANX_LISTEN")]
    listen: SocketAddr,
    /// Address of the job API, health, metrics and status
    #[arg(long, value_name = "ADDR", value_parser = listen_address, env = "PHALANX_HTTP")]
    http: SocketAddr,
    #[command(flatten)]
    http_args: tls::HttpArgs,
    /// Who may connect as a validator; may be repeated
    #[arg(long, value_name = "SS58", required = true, env = "PHALANX_VALIDATOR", value_delimiter = ',')]
    validator: Vec<PublicKey>,
    /// Who may submit jobs; may be repeated
    #[arg(long, value_name = "SS58", required = true, env = "PHALANX_USER", value_delimiter = ',')]
    user: Vec<PublicKey>,
    /// Folder of the database and of the secret of the tokens
    #[arg(long, value_name = "DIR", env = "PHALANX_STATE_DIR")]
    state_dir: PathBuf,
    #[command(flatten)]
    users: UserArgs,
    #[command(flatten)]
    rates: RateArgs,
    #[command(flatten)]
    tls: tls::ServerArgs,
    #[command(flatten)]
    connections: ConnectionsArg,
}

/// What users may have of a facilitator.
#[derive(Debug, clap::Args)]
struct UserArgs {
    /// Take jobs also for validators that are not connected: they wait for up to a minute
    #[arg(long, env = "PHALANX_HOLD_JOBS")]
    hold_jobs: bool,
    /// Jobs of one user that may be open at a time
    #[arg(long, value_name = "N", default_value_t = 2048, env = "PHALANX_USER_JOBS")]
    user_jobs: u64,
    /// Size of one user's open jobs, as the messages that validators get
    #[arg(long, value_name = "SIZE", default_value = "128MiB", value_parser = byte_size, env = "PHALANX_USER_SIZE")]
    user_size: u64,
    /// Networks from which operators ask, who see the jobs of all users on the pages without a token, or none; whoever
    /// else asks sees the own jobs with a token, and numbers without
    #[arg(long, value_name = "CIDR,…", default_value_t, env = "PHALANX_OPERATORS")]
    operators: Operators,
    /// How often one user may ask, as N/TIME: N at once, and over time N in that time
    #[arg(long, value_name = "RATE", default_value = "2000/10s", value_parser = rate, env = "PHALANX_USER_RATE")]
    user_rate: Rate,
    /// Jobs that are kept after their end; the oldest are forgotten first
    #[arg(long, value_name = "N", default_value_t = 100_000, env = "PHALANX_KEEP_JOBS")]
    keep_jobs: u64,
    /// How long a job is kept after its end
    #[arg(long, value_name = "DUR", default_value = "720h", value_parser = duration, env = "PHALANX_KEEP_JOBS_FOR")]
    keep_jobs_for: Duration,
    /// Size of the jobs that are kept after their end, with what was reported of them
    #[arg(long, value_name = "SIZE", default_value = "8GiB", value_parser = byte_size, env = "PHALANX_KEEP_JOBS_SIZE")]
    keep_jobs_size: u64,
}

impl UserArgs {
    fn into_config(self, config: FacilitatorConfig) -> FacilitatorConfig {
        let Self { hold_jobs, user_jobs, user_size, operators, user_rate, keep_jobs, keep_jobs_for, keep_jobs_size } =
            self;
        FacilitatorConfig {
            hold_jobs,
            user_quota: Quota { jobs: user_jobs, bytes: user_size },
            operators,
            user_rate,
            keep: Keep { jobs: keep_jobs, time: keep_jobs_for, bytes: keep_jobs_size },
            ..config
        }
    }
}

impl Args {
    /// With the connections that there is room for.
    fn into_config(self, board: Board, connections: usize) -> FacilitatorConfig {
        FacilitatorConfig {
            connections,
            validators: self.validator,
            users: self.user,
            http_names: self.http_args.names(),
            board,
            rates: self.rates.of_peers(),
            connects: self.rates.handshake_rate,
            http_requests: self.http_args.requests(),
            ..self.users.into_config(FacilitatorConfig::new(self.state_dir))
        }
    }
}

/// Checks the settings and what is outside, without starting anything.
pub(super) fn check(args: Args, report: &mut Report) {
    let (listen, http, state_dir) = (args.listen, args.http, args.state_dir.clone());
    let mut problems = Problems::default();
    problems.take(args.tls.load(ClientCertificates::Required));
    problems.take(args.http_args.tls(None));
    args.tls.tell(report);
    args.http_args.tell(report);
    let connections = problems.take(args.connections.places(SERVER_CONNECTIONS)).unwrap_or(SERVER_CONNECTIONS);
    problems.add(one_address(listen, http).filter(|_| report.has("listen") && report.has("http")));
    let is_one = one_address(listen, http).is_some();
    problems.0.extend(args.into_config(Board::new(), connections).validate());
    report.all_wrong(&problems.0);
    if report.has("state-dir") && report.folder(&state_dir, store::jobs::LOCK) {
        return;
    }
    report.port("listen", listen, |source| {
        format!("--listen: {}", TransportError::Bind { address: format!("{listen:?}"), source })
    });
    if !is_one {
        report.port("http", http, |e| format!("--http {http}: {e}"));
    }
}

/// The flags that take a restart.
fn fixed(args: &Args) -> Fixed {
    let mut flags = vec![
        ("--listen", args.listen.to_string()),
        ("--http", args.http.to_string()),
        ("--state-dir", args.state_dir.display().to_string()),
    ];
    flags.extend(args.tls.flags());
    flags.extend(args.http_args.flags());
    flags.extend(args.rates.flags());
    flags.push(args.connections.flag());
    let UserArgs { hold_jobs, user_jobs, user_size, operators, user_rate, keep_jobs, keep_jobs_for, keep_jobs_size } =
        &args.users;
    flags.extend([
        ("--hold-jobs", hold_jobs.to_string()),
        ("--user-jobs", user_jobs.to_string()),
        ("--user-size", user_size.to_string()),
        ("--operators", operators.to_string()),
        ("--user-rate", format!("{user_rate:?}")),
        ("--keep-jobs", keep_jobs.to_string()),
        ("--keep-jobs-for", format!("{keep_jobs_for:?}")),
        ("--keep-jobs-size", keep_jobs_size.to_string()),
    ]);
    Fixed(flags)
}

/// Runs the command until a signal stops it; SIGHUP asks `again` for its arguments.
pub fn run(args: Args, again: fn() -> Result<Args, String>) -> ExitCode {
    let start = |env: &supervise::Env| {
        let then = fixed(&args);
        let (listen, http) = (args.listen, args.http);
        let (tls_args, http_args) = (args.tls.clone(), args.http_args.clone());
        let board = Board::new();
        let connections = args.connections.places(SERVER_CONNECTIONS).map_err(exit::usage)?;
        env.flight.keep_in(&args.state_dir);
        let config = args.into_config(board.clone(), connections);
        let mut problems = config.validate();
        problems.extend(one_address(listen, http));
        if !problems.is_empty() {
            return Err(exit::usage(problems.join("; ")));
        }
        let follow = Some((env, &board));
        let listener = tls_args.listen(listen, ClientCertificates::Required, follow).map_err(exit::not_started)?;
        let tls = http_args.tls(follow).map_err(exit::usage)?;
        let http = TcpListener::bind(http)
            .map_err(|e| exit::not_started(NotStarted::of_io(format!("--http {http}: {e}"), &e)))?;
        let facilitator =
            Facilitator::start(config, Box::new(listener), HttpListener::new(http, tls), env.timer.clone())
                .map_err(|e| exit::not_started(NotStarted::new(&e, e.may_pass())))?;
        env.manager.watch(facilitator.health(), &env.timer, |_| {});
        let reloader = facilitator.reloader();
        let reload = move || {
            let args = again()?;
            then.changed(&fixed(&args)).for_each(|(flag, _, _)| Fixed::warn(flag));
            let read = format!("{} validators, {} users", args.validator.len(), args.user.len());
            reloader.reload(args.validator, args.user).map(|()| read).map_err(|problem| problem.to_string())
        };
        env.reload.set(move || match reload() {
            Ok(read) => log::info!("SIGHUP: the settings were read again: {read}"),
            Err(problem) => log::error!("SIGHUP: the settings stay as they are: {problem}"),
        });
        announce(facilitator.ws_addr(), Some(facilitator.http_addr()), &env.shutdown);
        Ok(facilitator)
    };
    supervise::serve(Facilitator::STOP_BUDGET, start, |facilitator, stopping| facilitator.stop_in(stopping))
}
