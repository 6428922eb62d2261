//! The status server of a role that has no other HTTP: `/`, `/healthz`, `/readyz`, `/metrics`, `/status.json` on
//! `--http`.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use super::exit::NotStarted;
use super::supervise::Env;
use crate::link::recorder;
use crate::net::http::pages::pages;
use crate::net::http::{HostNames, HttpLimits, HttpListener, HttpRequest, HttpResponse, HttpServer, guarded};
use crate::net::rate::Rate;
use crate::net::tls::ServerTls;
use crate::ops::health::Health;
use crate::ops::metrics::Metrics;
use crate::ops::status::{Board, Frame};

/// Where a status server listens, and by which names it may be asked.
#[derive(Debug)]
pub struct Place {
    listener: HttpListener,
    names: HostNames,
    requests: Rate,
}

/// Takes the address, before the role starts, so that a wrong one starts nothing; with TLS if there is a certificate.
/// One address may ask as often as `requests` says.
///
/// # Errors
/// One line that names the address, and whether that may pass.
pub fn bind(
    address: SocketAddr,
    names: HostNames,
    tls: Option<ServerTls>,
    requests: Rate,
) -> Result<Place, NotStarted> {
    let bound = TcpListener::bind(address);
    let listener = bound.map_err(|e| NotStarted::of_io(format!("--http {address}: {e}"), &e))?;
    Ok(Place { listener: HttpListener::new(listener, tls), names, requests })
}

/// Serves the pages of `role`, whose threads report to `board`, at `place`; `short` begins the names of the
/// server's threads. For each page `look` brings health and metrics up to date and gives what only this role has; it
/// must not block.
///
/// # Errors
/// If the listener has no address.
pub fn serve(
    role: &'static str,
    short: &'static str,
    place: Place,
    env: &Env,
    board: &Board,
    look: impl Fn(&Health, &Metrics) -> Value + Send + Sync + 'static,
) -> Result<HttpServer, String> {
    serve_more((role, short), place, env, board, look, |_| None)
}

/// As [`serve`], with pages that only this role has; `None` means "not mine".
///
/// # Errors
/// If the listener has no address.
pub fn serve_more(
    (role, short): (&'static str, &'static str),
    Place { listener, names, requests }: Place,
    env: &Env,
    board: &Board,
    look: impl Fn(&Health, &Metrics) -> Value + Send + Sync + 'static,
    more: impl Fn(&HttpRequest) -> Option<HttpResponse> + Send + Sync + 'static,
) -> Result<HttpServer, String> {
    let frame = Frame {
        role,
        since: Instant::now(),
        board: board.clone(),
        stop: env.shutdown.clone(),
        timer: env.timer.clone(),
        look: Box::new(look),
    };
    let pages = pages(frame);
    let handler = move |request: &HttpRequest| {
        pages(request).or_else(|| recorder::page(request)).or_else(|| more(request)).unwrap_or_else(|| {
            HttpResponse::text(404, "there is /, /healthz, /readyz, /metrics, /status.json, /links.json\n")
        })
    };
    let handler = guarded(names, Arc::new(handler));
    let limits = HttpLimits { requests, ..HttpLimits::default() };
    HttpServer::start(short, listener, handler, limits, board).map_err(|e| format!("--http: {e}"))
}
