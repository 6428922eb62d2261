//! The status server of a role that has no other HTTP: `/healthz`, `/readyz`, `/metrics`, `/status.json` on `--http`.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use serde_json::Value;

use crate::ops::health::Health;
use crate::ops::http::{HttpLimits, HttpResponse, HttpServer};
use crate::ops::metrics::Metrics;
use crate::ops::status;

/// Serves the four pages on `address`. For each request `look` brings health and metrics up to date and gives the state
/// for `/status.json`; it must not block.
///
/// # Errors
/// One line that names the address.
pub fn serve(
    name: &'static str,
    address: SocketAddr,
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
    let start = || {
        let listener = TcpListener::bind(address)?;
        HttpServer::start(name, listener, Arc::new(handler), HttpLimits::default())
    };
    start().map_err(|e| format!("--http {address}: {e}"))
}
