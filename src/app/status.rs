//! The status server of a role that has no other HTTP: `/healthz`, `/readyz`, `/metrics`, `/status.json` on `--http`.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use serde_json::Value;

use crate::ops::health::Health;
use crate::ops::http::{HttpLimits, HttpResponse, HttpServer};
use crate::ops::metrics::Metrics;
use crate::ops::status;

/// Takes the address, before the role starts, so that a wrong one starts nothing.
///
/// # Errors
/// One line that names the address.
pub fn bind(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).map_err(|e| format!("--http {address}: {e}"))
}

/// Serves the four pages on `listener`. For each request `look` brings health and metrics up to date and gives the state
/// for `/status.json`; it must not block.
///
/// # Errors
/// If the listener has no address.
pub fn serve(
    name: &'static str,
    listener: TcpListener,
    look: impl Fn(&Health, &Metrics) -> Value + Send + Sync + 'static,
) -> Result<HttpServer, String> {
    let (health, metrics) = (Health::new(), Metrics::new());
    let look = Arc::new(look);
    let pages = {
        let (look, health, metrics) = (look.clone(), health.clone(), metrics.clone());
        status::routes(health.clone(), metrics.clone(), move || look(&health, &metrics))
    };
    let handler = move |request: &crate::ops::http::HttpRequest| {
        look(&health, &metrics);
        pages(request)
            .unwrap_or_else(|| HttpResponse::text(404, "there is /healthz, /readyz, /metrics, /status.json\n"))
    };
    HttpServer::start(name, listener, Arc::new(handler), HttpLimits::default()).map_err(|e| format!("--http: {e}"))
}
