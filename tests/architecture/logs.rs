//! Who logs errors: the error handler of the role, and the places that have a reason to do it by themselves.

use std::collections::BTreeMap;

/// The process around the roles, and what runs without one: nobody would be shown what a handler counts there.
const PROCESS: &[&str] = &["app/", "cli/", "miner/killed_host.rs", "miner/watch.rs"];

/// What is below the roles and gives its errors to them; what it logs is what it cannot give to anybody.
const BELOW: &[&str] = &["base/", "pool/", "proc/", "store/", "tasks/"];

/// The others: how many lines, and why.
const THEMSELVES: &[(&str, usize, &str)] = &[
    ("executor/workspace/mod.rs", 1, "a drop, of what its clean-up step has told of already"),
    ("facilitator/api/view.rs", 2, "pure: what another release has stored is left out of a page"),
    ("net/http/connection.rs", 2, "a panic of a handler, which is answered with 500"),
    ("net/tls/live.rs", 1, "settings that are read again, as by the process"),
    ("ops/expiry.rs", 1, "a warning of what is to come, with a metric of its own"),
    ("ops/throttle.rs", 1, "the line of a kind that is not counted"),
    ("transport/idle.rs", 1, "kept connections go on without their watch"),
    ("validator/client/job.rs", 2, "a panic of a handler, and what a program that embeds us may replace"),
    ("validator/ledger/queue/mod.rs", 1, "pure, at the start: what an earlier release has kept too large"),
    ("validator/manifests/fetch.rs", 1, "a panic, which is the miner's outcome"),
];

/// How many lines of each file, given without its tests, are at warn or error by a macro of `log`.
pub fn lines(files: &[(String, String)]) -> BTreeMap<&str, usize> {
    let is_log = |line: &&str| {
        let code = line.trim_start();
        !code.starts_with("//") && ["log::warn!", "log::error!"].iter().any(|name| code.contains(name))
    };
    let counted = files.iter().map(|(name, text)| (name.as_str(), text.lines().filter(is_log).count()));
    counted.filter(|(_, count)| *count > 0).collect()
}

/// Where that is not as it should be.
pub fn differences(found: &BTreeMap<&str, usize>) -> Vec<String> {
    let is_in = |name: &str, list: &[&str]| list.iter().any(|beginning| name.starts_with(beginning));
    let mut wrong = Vec::new();
    for (name, count) in found {
        let allowed = THEMSELVES.iter().find(|(file, ..)| file == name).map_or(0, |(_, allowed, _)| *allowed);
        if *count > allowed && !is_in(name, PROCESS) && !is_in(name, BELOW) {
            let right = "tell `ops::errors::ErrorHandler`";
            wrong.push(format!("{name} logs {count} errors by itself, not {allowed}: {right}"));
        }
    }
    for (name, allowed, _) in THEMSELVES {
        let count = found.get(name).copied().unwrap_or_default();
        if count < *allowed {
            wrong.push(format!("{name} logs {count} errors by itself, not {allowed} any more: correct the list"));
        }
    }
    wrong
}
