//! A small HTTP/1.1 server on our own threads (RFC 9110 and 9112): one accepts, one for each connection.
//!
//! Keep-alive, pipelining, `Content-Length` and chunked request bodies, `Expect: 100-continue`, `HEAD`. Every read and write
//! has a deadline and a size limit, so a slow or hostile client costs one thread for a bounded time. No TLS: a proxy does that.
//!
//! * [`message`]: requests and responses as values. Pure.
//! * `parse`: bytes to a request's head. Pure.
//! * [`server`]: the threads.

mod date;
pub mod message;
mod parse;
pub mod server;

pub use message::{HttpRequest, HttpResponse};
pub use server::{Handler, HttpLimits, HttpServer};
