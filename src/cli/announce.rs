//! What a role says on stdout when it has started.

use std::net::SocketAddr;

/// Says on stdout, in one line of JSON, where a role listens: for whoever started it with port 0.
pub(super) fn announce(listening: &str, http: Option<SocketAddr>) {
    println!("{}", serde_json::json!({"listening": listening, "http": http.map(|http| http.to_string())}));
}

/// As [`announce`], for a role that only serves its status.
pub(super) fn announce_http(http: SocketAddr) {
    println!("{}", serde_json::json!({"http": http.to_string()}));
}
