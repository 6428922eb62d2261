//! Everything that runs in one process over memory or loopback: transport, link, the four roles, their parts.

#[path = "../testkit/mod.rs"]
mod testkit;

mod cuts;
mod embedding;
mod engine_elsewhere;
mod executor;
mod executor_docker;
mod executor_engine;
mod executor_http;
mod executor_images;
mod executor_process;
mod executor_stages;
mod executor_streaming;
mod executor_uploads;
mod executor_volumes;
mod facilitator;
mod facilitator_api;
mod facilitator_client;
mod facilitator_router;
mod facilitator_sdk;
mod facilitator_stop;
mod journal;
mod link;
mod miner;
mod miner_backends;
mod miner_hosts;
mod miner_limits;
mod miner_python;
mod miner_router;
mod miner_transcripts;
mod ops_http;
mod submit;
mod transport_client_tls;
mod transport_deadline;
mod transport_frames;
mod transport_handshake;
mod transport_kick;
mod transport_limits;
mod transport_memory;
mod transport_proxy;
mod transport_python;
mod transport_tls;
mod transport_ws;
mod validator;
mod validator_drive;
