//! The real binary: processes, signals, exit codes.

#[path = "../testkit/mod.rs"]
mod testkit;

mod batch;
mod certificates;
mod chaos;
mod check;
mod containers;
mod demo;
mod descriptors;
mod dev;
mod dispatch_chaos;
mod documents;
mod elsewhere;
mod engine;
mod executor;
mod facilitator_kill;
mod facilitator_reload;
mod facilitators;
mod foreign;
mod init;
mod jobs;
mod logs;
mod maintenance;
mod manifests;
mod miner_restart;
mod miners;
mod outbox;
mod packaging;
mod pages;
mod pages_memory;
mod process;
mod python_executor;
mod sandbox;
mod sdk;
mod secrets;
mod security;
mod service;
mod status;
mod strangers;
mod streaming;
mod top;
mod tree;
mod watch;
mod zone;
