//! Every capacity and time limit that is not a setting, with its unit and its reason.

use std::time::Duration;

/// Bytes of one WebSocket message on the miner links: 50 MiB is legal there (inline volumes, job output), plus the envelope.
pub const MINER_LINK_MESSAGE_BYTES: usize = 52 << 20;

/// Bytes of one WebSocket message on the facilitator link, where Python validators refuse more than 1 MiB from the
/// facilitator; upwards a result with two outputs of a million characters (up to 4 bytes each, escaped) must fit.
pub const FACILITATOR_LINK_MESSAGE_BYTES: usize = 32 << 20;

/// Bytes that a facilitator sends to a validator in one message: the Python validator's own limit.
pub const JOB_REQUEST_BYTES: usize = 1 << 20;

/// Bytes of a WebSocket handshake, either way: request line or status and all headers.
pub const HANDSHAKE_BYTES: usize = 16 << 10;

/// Time for TCP accept to finished handshake on a server, so that a silent peer holds a thread no longer.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// One deadline over look-up, TCP, TLS, upgrade and authentication of an outgoing connection.
pub const DIAL_TIME: Duration = Duration::from_secs(15);

/// Size of a connection's read buffer. tungstenite's default of 128 KiB would be 128 MiB at 1,000 connections.
pub const READ_BUFFER_BYTES: usize = 8 << 10;

/// Connections that a two-threads-each server accepts: 2,000 threads are 8,000 of the system's 65,530 memory maps, and a
/// process that runs out of maps aborts.
pub const SERVER_CONNECTIONS: usize = 1000;

/// Name look-ups that may hang at a time; the system's resolver cannot be interrupted, so a hung one keeps its thread.
pub const LOOKUPS_AT_ONCE: usize = 8;

/// Messages between a session's reader and its role: the reader waits beyond that, so TCP slows the peer.
/// 256 small messages are about 256 KiB; the byte bound of a link is its message limit times this, never met in practice
/// because a role's loop does not block.
pub const INBOUND_MESSAGES: usize = 256;

/// Messages that wait in one session's outbox: at 16 bytes of envelope and 1 KiB typical, 1 MiB.
pub const OUTBOX_MESSAGES: usize = 1024;

/// Bytes that wait in one session's outbox: one largest message and as much again.
pub const OUTBOX_BYTES: usize = 2 * MINER_LINK_MESSAGE_BYTES;

/// Status updates that a validator keeps while the facilitator is away: 8 updates a job, 8,192 jobs; about 64 MiB at 1 KiB.
pub const STATUS_MESSAGES: usize = 65_536;

/// Bytes that a validator keeps while the facilitator is away; results of up to 8 MiB each are in there.
pub const STATUS_BYTES: usize = 256 << 20;

/// Messages that may wait for a validator's authentication on a miner, where the Python peer would queue without limit.
pub const PRE_AUTH_MESSAGES: usize = 16;

/// Characters of stdout and of stderr that a result carries; the first and last half million of a longer output.
pub const OUTPUT_CHARS: usize = 1_000_000;

/// Bytes of one artifact, as on the Python executor.
pub const ARTIFACT_BYTES: u64 = 1_000_000;

/// Events that wait for a role's loop: 4 for each of 256 sessions.
pub const ROLE_EVENTS: usize = 1024;

/// Bytes of one record of the journal: a result of 8 MiB, and as much again for what surrounds it.
pub const JOURNAL_BODY_BYTES: usize = 16 << 20;
