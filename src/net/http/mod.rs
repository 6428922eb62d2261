//! HTTP/1.1 on our own threads (RFC 9110 and 9112): what every end of it shares, a small server, a client.
//!
//! The server: keep-alive, pipelining, `Content-Length` and chunked request bodies, `Expect: 100-continue`, `HEAD`.
//! Every read and write has a deadline and a size limit, so a slow or hostile client costs one thread for a bounded
//! time; who waits for something goes first when others come; a body is read when its handler asks for it. With a
//! certificate it speaks TLS.
//!
//! * `head`: the head of a message, read and written; also for the WebSocket upgrade and the `CONNECT` of a proxy.
//! * [`message`]: requests and responses of the server as values.
//! * `limits`: the bounds of the server. Pure.
//! * `request`: what a request's head asks of the server. Pure.
//! * `names`: by which names it may be asked. Pure.
//! * `socket`: one connection of it, plain or TLS.
//! * `wire`: the requests that come over it. `budget`: what all requests share.
//! * `refusals`: what it refuses, counted.
//! * `connection`: request after request on its thread.
//! * [`server`]: its threads.
//! * `stream`: a body that is made while it is sent.
//! * `latest`: what many ask for at the same time.
//! * [`pages`]: what every role serves of itself; `page`: the one for people, as HTML. Pure.
//! * `excerpt`: what of a refusal goes into an error. Pure.
//! * [`client`]: blocking requests.
//! * `fuzzed`: what a fuzzer gives them. With the feature `test-util`.

mod budget;
#[cfg(feature = "roles")]
pub mod client;
mod connection;
pub(crate) mod date;
#[cfg(feature = "client")]
pub(crate) mod excerpt;
#[cfg(all(feature = "test-util", feature = "client"))]
pub mod fuzzed;
pub(crate) mod head;
mod latest;
mod limits;
pub mod message;
mod names;
mod page;
pub mod pages;
mod refusals;
mod request;
pub mod server;
mod socket;
mod stream;
mod wire;

#[cfg(feature = "roles")]
pub use client::{HttpClient, HttpError};
pub use limits::HttpLimits;
pub use message::{BodyError, Handler, HttpRequest, HttpResponse};
pub use names::HostNames;
pub use server::{HttpListener, HttpServer, guarded};
