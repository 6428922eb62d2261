//! `phalanx facilitator`: validators on `--listen`, users, health and metrics on `--http`.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;

use super::announce::announce;
use super::tls;
use super::values::listen_address;
use crate::app::{exit, supervise};
use crate::facilitator::{Facilitator, FacilitatorConfig};
use crate::identity::PublicKey;
use crate::net::http::HttpListener;
use crate::net::tls::ClientCertificates;
use crate::ops::status::Board;

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
    tls: tls::ServerArgs,
}

/// Runs the command until a signal stops it.
pub fn run(args: Args) -> ExitCode {
    let start = |env: &supervise::Env| {
        let board = Board::new();
        let follow = Some((env, &board));
        let listener = args.tls.listen(args.listen, ClientCertificates::Required, follow).map_err(exit::usage)?;
        let tls = args.http_args.tls(follow).map_err(exit::usage)?;
        let http = TcpListener::bind(args.http).map_err(|e| exit::usage(format!("--http {}: {e}", args.http)))?;
        let config = FacilitatorConfig {
            validators: args.validator,
            users: args.user,
            http_names: args.http_args.names(),
            board,
            ..FacilitatorConfig::new(args.state_dir)
        };
        let facilitator =
            Facilitator::start(config, Box::new(listener), HttpListener::new(http, tls), env.timer.clone())
                .map_err(exit::usage)?;
        announce(facilitator.ws_addr(), Some(facilitator.http_addr()), &env.shutdown);
        Ok(facilitator)
    };
    supervise::serve(Facilitator::STOP_BUDGET, start, |facilitator, stopping| facilitator.stop(stopping))
}
