//! transport

pub mod http;
