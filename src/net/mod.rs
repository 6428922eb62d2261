//! What strangers are reached through: dialling and the HTTP server.

pub mod dial;
pub mod http;
