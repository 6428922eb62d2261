//! The pages that every role serves on `--http`: `/healthz`, `/readyz`, `/metrics`, `/status.json`.

use std::sync::Arc;

use serde_json::Value;

use super::health::Health;
use super::http::{HttpRequest, HttpResponse};
use super::metrics::{self, Metrics};

/// A part of a server's paths: `None` means "not mine".
pub type Routes = Arc<dyn Fn(&HttpRequest) -> Option<HttpResponse> + Send + Sync>;

/// The four pages. `status` gives the present state of the role as JSON; it must not block.
///
/// * `/healthz`: 200 `ok` while the process can answer at all.
/// * `/readyz`: 200 `ready`, or 503 with a line for each part that is down.
/// * `/metrics`: Prometheus text.
/// * `/status.json`: what `status` gives.
pub fn routes(health: Health, metrics: Metrics, status: impl Fn() -> Value + Send + Sync + 'static) -> Routes {
    Arc::new(move |request| {
        let page: &dyn Fn() -> HttpResponse = match request.path.as_str() {
            "/healthz" => &|| HttpResponse::text(200, "ok\n"),
            "/readyz" => &|| match health.problems() {
                problems if problems.is_empty() => HttpResponse::text(200, "ready\n"),
                problems => HttpResponse::text(503, problems.join("\n") + "\n"),
            },
            "/metrics" => &|| HttpResponse::new(200, metrics::CONTENT_TYPE, metrics.render()),
            "/status.json" => &|| HttpResponse::json(200, &status()),
            _ => return None,
        };
        Some(match request.method.as_str() {
            "GET" | "HEAD" => page(),
            _ => HttpResponse::text(405, "this page can only be read: use GET\n").with_header("Allow", "GET, HEAD"),
        })
    })
}
