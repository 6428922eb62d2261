//! The status pages of a miner.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use serde_json::{Map, Value, json};

use super::executors::Shown;
use crate::app::{status, supervise};
use crate::base::lock::lock;
use crate::miner::executor_pool::SlotCounts;
use crate::miner::images::{ImagesStatus, PrePulled};
use crate::miner::{HostState, HostStatus, Miner, MinerStatus};
use crate::net::http::{HttpRequest, HttpResponse, HttpServer};
use crate::ops::health::Health;
use crate::ops::metrics::{Metrics, label};
use crate::protocol::ExecutorClass;

/// Before a job's uuid in the path of its trace.
const TRACES: &str = "/traces/";

/// The metrics of connections.
const CONNECTIONS: (&str, &str) = ("phalanx_miner_connections", "phalanx_miner_refused_connections_total");

/// The metrics of hosts.
const SLOTS: &str = "phalanx_miner_slots";
const HOST_UP: &str = "phalanx_miner_host_up";

/// Serves the pages of a miner, and of what the sandboxes of its jobs are at present.
pub(super) fn serve(
    place: status::Place,
    miner: &Miner,
    (env, sandboxes): (&supervise::Env, Arc<Mutex<Shown>>),
) -> Result<HttpServer, String> {
    let observer = miner.observer();
    let (traces, board) = (observer.clone(), observer.board().clone());
    let trace = move |request: &HttpRequest| {
        let uuid = request.path.strip_prefix(TRACES)?;
        Some(HttpResponse::json(200, &json!({ "jobs": traces.trace(uuid) })))
    };
    let shown = Mutex::default();
    let look = move |health: &Health, metrics: &Metrics| {
        let now = observer.status();
        report(&now, observer.accept_trouble(), health);
        measure(&now, metrics, &mut lock(&shown));
        let sandboxes = lock(&sandboxes);
        let sandboxes = sandboxes.iter().map(|(class, sandbox)| (class.as_str().to_owned(), sandbox.as_str().into()));
        observer.places().measure(metrics, CONNECTIONS);
        observer.connections().measure(metrics, "phalanx_miner_round_trip_seconds");
        let mut shown = details(&now, &observer.images(), sandboxes.collect());
        shown["connections"] = observer.places().counts().json();
        shown
    };
    status::serve_more(("miner", "min"), place, env, &board, look, trace)
}

/// Has the service manager watch the miner.
pub(super) fn watch(miner: &Miner, env: &supervise::Env) {
    let observer = miner.observer();
    let health = observer.board().health.clone();
    let look = move |health: &Health| report(&observer.status(), observer.accept_trouble(), health);
    env.manager.watch(&health, &env.timer, look);
}

/// Brings the parts up to date.
fn report(now: &MinerStatus, accept_trouble: Option<String>, health: &Health) {
    let machine = now.machine_trouble.as_ref().map(|why| format!("the last job could not be run here: {why}"));
    for (part, trouble) in [
        ("accept", accept_trouble),
        ("engine", now.engine_trouble.clone()),
        ("machine", machine),
        ("slots", now.slot_trouble()),
        ("reaper", now.reaper_trouble()),
    ] {
        match trouble {
            None => health.up(part),
            Some(why) => health.down(part, why),
        }
    }
}

/// Brings the metrics up to date; `shown` are the hosts that they have.
fn measure(now: &MinerStatus, metrics: &Metrics, shown: &mut BTreeSet<&'static str>) {
    let runs = metrics.gauge("phalanx_miner_engine_up", "Whether what jobs run on answers, on any host.", &[]);
    runs.set(usize::from(now.engine_trouble.is_none()));
    metrics.gauge("phalanx_miner_jobs", "Jobs that have not ended.", &[]).set(now.jobs);
    metrics.gauge("phalanx_miner_validators", "Authenticated validator connections.", &[]).set(now.validators);
    let help =
        "By how much the clock of the validator that differs most is ahead of ours; less than 0 if it is behind.";
    metrics.gauge("phalanx_miner_clock_skew_seconds", help, &[]).set_to(now.clock_skew as f64);
    metrics.gauge("phalanx_miner_connected_executors", "Connected executors.", &[]).set(now.connected_executors);
    // Anew: a class or a host may have gone.
    shown.iter().for_each(|host| [SLOTS, HOST_UP].into_iter().for_each(|name| metrics.forget(name, ("host", host))));
    shown.clear();
    for HostStatus { name, state, executors, .. } in &now.hosts {
        let host = label(name.as_str());
        shown.insert(host);
        let up = metrics.gauge(HOST_UP, "Whether jobs can run on the host.", &[("host", host)]);
        up.set(usize::from(*state == HostState::Up));
        for (class, slots) in executors {
            let SlotCounts { declared: _, draining, free, reserved, busy, ending, quarantined } = slots;
            for (state, count) in [
                ("free", free),
                ("reserved", reserved),
                ("busy", busy),
                ("ending", ending),
                ("quarantined", quarantined),
                // Of those before, as many as go when they come back.
                ("draining", draining),
            ] {
                let labels = [("host", host), ("class", class.as_str()), ("state", state)];
                metrics.gauge(SLOTS, "Slots by what they are doing.", &labels).set(*count);
            }
        }
    }
}

/// What only a miner knows.
fn details(now: &MinerStatus, images: &ImagesStatus, sandboxes: Map<String, Value>) -> Value {
    let free = images.disk.as_ref().map(|disk| json!({"folder": disk.folder, "free_bytes": disk.bytes}));
    let pre_pulled = |pulled: &PrePulled| {
        let PrePulled { image, is_here, trouble } = pulled;
        json!({"image": image, "is_here": is_here, "trouble": trouble})
    };
    let pre_pulled: Vec<_> = images.pre_pull.iter().map(pre_pulled).collect();
    let quarantined = now.quarantined.iter().map(|slot| {
        json!({
            "host": slot.host.as_str(), "class": slot.class.as_str(), "what": slot.what, "reason": slot.reason,
        })
    });
    json!({
        "instance": now.instance,
        "epoch": now.epoch,
        "jobs": now.jobs,
        "validator_connections": now.validators,
        "clock_skew_seconds": now.clock_skew,
        "connected_executors": now.connected_executors,
        "executors": slots(&now.executors),
        "hosts": now.hosts.iter().map(host).collect::<Vec<_>>(),
        "jobs_run": now.jobs_run,
        "quarantined": quarantined.collect::<Vec<_>>(),
        "slot_breach": now.breach,
        "image_disk": free,
        "pre_pull": pre_pulled,
        "sandbox": sandboxes,
    })
}

fn host(host: &HostStatus) -> Value {
    let HostStatus { name, address, state, why, jobs_run, trouble, reaper_trouble, executors } = host;
    let mut shown = Map::new();
    let texts = [
        ("name", Some(name.as_str())),
        ("state", Some(state.as_str())),
        ("why", why.as_deref()),
        ("address", Some(address.as_str())),
        ("jobs_run", Some(jobs_run.as_str()).filter(|text| !text.is_empty())),
        ("trouble", trouble.as_deref()),
        ("reaper", reaper_trouble.as_deref()),
    ];
    shown.extend(texts.into_iter().filter_map(|(key, text)| Some((key.to_owned(), text?.into()))));
    shown.insert("executors".to_owned(), slots(executors));
    shown.into()
}

fn slots(executors: &[(ExecutorClass, SlotCounts)]) -> Value {
    let counts = |(class, slots): &(ExecutorClass, SlotCounts)| {
        let SlotCounts { declared, draining, free, reserved, busy, ending, quarantined } = slots;
        let counts = json!({
            "declared": declared, "free": free, "reserved": reserved, "busy": busy, "ending": ending,
            "quarantined": quarantined, "draining": draining,
        });
        (class.as_str().to_owned(), counts)
    };
    executors.iter().map(counts).collect::<Map<_, _>>().into()
}
