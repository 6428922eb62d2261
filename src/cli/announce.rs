//! What a role says on stdout when it has started.

use std::io::{self, Write};
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::app::output::Output;
use crate::app::stderr;
use crate::base::shutdown::{Level, Shutdown};

/// Says on stdout, in one line of JSON, where a role listens: for whoever started it with port 0. Waits until the line
/// has a reader or `stop` is set; log lines come after it.
pub(super) fn announce(listening: &str, http: Option<SocketAddr>, stop: &Shutdown) {
    say(&json!({"listening": listening, "http": http.map(|http| http.to_string())}), stop);
}

/// As [`announce`], for a role that only serves its status.
pub(super) fn announce_http(http: SocketAddr, stop: &Shutdown) {
    say(&json!({"http": http.to_string()}), stop);
}

fn say(what: &Value, stop: &Shutdown) {
    let line = format!("{what}\n");
    let said = Output::until(stop, Level::Drain).and_then(|mut output: Output| output.write_all(line.as_bytes()));
    stderr::release();
    if let Err(error) = said {
        warn(what, &error);
    }
}

fn warn(what: &Value, error: &io::Error) {
    log::warn!("stdout did not take the line {what}: {error}");
}
