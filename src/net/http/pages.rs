//! The pages that every role serves of itself, made from its snapshot: `/` for people, `/healthz`, `/readyz`,
//! `/metrics`, `/status.json`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::select;
use serde_json::json;

use super::latest::Latest;
use super::message::{HttpRequest, HttpResponse};
use super::page;
use crate::base::clock;
use crate::base::shutdown::Shutdown;
use crate::ops::health::Health;
use crate::ops::jobs::Viewer;
use crate::ops::metrics;
use crate::ops::overview::overview;
use crate::ops::redact::JsonText;
use crate::ops::status::{Frame, watch_timer};

/// How long `/healthz` waits for the loops of a role: those that are idle answer within milliseconds.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// A part of a server's paths: `None` means "not mine".
pub type Pages = Arc<dyn Fn(&HttpRequest) -> Option<HttpResponse> + Send + Sync>;

/// Who asks, as far as it matters for what is shown; an answer if nobody is to see anything.
pub type Viewers = Box<dyn Fn(&HttpRequest) -> Result<Viewer, HttpResponse> + Send + Sync>;

/// [`pages_for`] operators: whoever asks sees all.
pub fn pages(frame: Frame) -> Pages {
    pages_for(frame, Box::new(|_| Ok(Viewer::Operator)))
}

/// The pages of a role, each from a snapshot of its own; those who ask for one at the same time share it.
///
/// * `/`: the role as people read it, as HTML; with `/page.css`, `/page.js` and `/page.svg`, which it asks for.
/// * `/healthz`: is it alive? 200 `ok`, or 503 with a line for each part that is stuck. It asks all loops of the role
///   for a sign of life and waits for it, at most 5 s or until the server stops; orchestrators restart a process that
///   is not alive.
/// * `/readyz`: may it be given work? 200 `ready`, or 503 with a line for each reason.
/// * `/metrics`: Prometheus text.
/// * `/status.json`: the [`Snapshot`](crate::ops::status::Snapshot).
///
/// `viewers` decides whose jobs are listed on `/` and in `/status.json`.
pub fn pages_for(frame: Frame, viewers: Viewers) -> Pages {
    let timer = watch_timer(&frame.board.health, &frame.timer);
    let (problems, measured) = (Latest::new(), Latest::new());
    // For operators, and for those who see no jobs. A page for one user is made for that one alone.
    let [status, html] = [(); 2].map(|()| [Latest::new(), Latest::new()]);
    let status_of = |frame: &Frame, viewer: &Viewer| {
        JsonText(&json!(frame.snapshot_for(viewer)).to_string()).to_string().into_bytes()
    };
    let html_of = |frame: &Frame, viewer: &Viewer| {
        page::html(&overview(&frame.snapshot_for(viewer)), clock::now().wall.as_secs_f64()).into_bytes()
    };
    Arc::new(move |request| {
        // Watched as long as there are pages.
        let _timer = &timer;
        let file = page::FILES.into_iter().find(|(path, ..)| *path == request.path);
        let page: &dyn Fn() -> HttpResponse = match request.path.as_str() {
            "/healthz" => &|| {
                ask(&frame.board.health, &request.shutdown);
                verdict("ok\n", frame.snapshot().stuck())
            },
            "/readyz" => &|| verdict("ready\n", problems.get(|| frame.snapshot().problems()).to_vec()),
            "/metrics" => &|| {
                let text = measured.get(|| {
                    frame.snapshot().measure(&frame.board.metrics);
                    frame.board.metrics.render().into_bytes()
                });
                HttpResponse::shared(200, metrics::CONTENT_TYPE, text)
            },
            "/status.json" => &|| match viewers(request) {
                Ok(viewer) => {
                    let text = shared(&status, &viewer, || status_of(&frame, &viewer));
                    HttpResponse::shared(200, "application/json", text)
                }
                Err(answer) => answer,
            },
            "/" => &|| match viewers(request) {
                Ok(viewer) => {
                    let text = shared(&html, &viewer, || html_of(&frame, &viewer));
                    HttpResponse::shared(200, "text/html; charset=utf-8", text)
                        .with_header("Content-Security-Policy", page::POLICY)
                        .with_header("Referrer-Policy", "no-referrer")
                }
                Err(answer) => answer,
            },
            _ => {
                let (_, media_type, text) = file?;
                &move || HttpResponse::new(200, media_type, text)
            }
        };
        Some(match request.method.as_str() {
            "GET" | "HEAD" => page(),
            _ => HttpResponse::text(405, "this page can only be read: use GET\n").with_header("Allow", "GET, HEAD"),
        })
    })
}

/// What is made for all who see the same, or for this one.
fn shared(latest: &[Latest<Vec<u8>>; 2], viewer: &Viewer, make: impl FnOnce() -> Vec<u8>) -> Arc<Vec<u8>> {
    match viewer {
        Viewer::Operator => latest[0].get(make),
        Viewer::Nobody => latest[1].get(make),
        Viewer::User(_) => Arc::new(make()),
    }
}

fn verdict(good: &str, problems: Vec<String>) -> HttpResponse {
    if problems.is_empty() {
        HttpResponse::text(200, good)
    } else {
        HttpResponse::text(503, problems.join("\n") + "\n")
    }
}

/// Asks all loops for a sign of life: only now that somebody wants to know, so that an idle process is not woken.
fn ask(health: &Health, stop: &Shutdown) {
    let asked = health.probe(Instant::now());
    select! {
        recv(asked) -> _ => {}
        // Nobody is to wait longer for a server that stops.
        recv(stop.drain_receiver()) -> _ => {}
        default(ANSWER_TIME) => {}
    }
}
