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

/// Silence after which the system probes a TCP connection: half of the 60 s after which many middle boxes forget one, so that
/// a probe may get lost.
pub const TCP_KEEPALIVE_IDLE: Duration = Duration::from_secs(30);

/// Time between two probes of a peer that does not answer.
pub const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Unanswered probes that end a connection: 30 s + 3 × 10 s is [`TCP_USER_TIMEOUT`], which Linux takes in their place.
pub const TCP_KEEPALIVE_COUNT: u32 = 3;

/// How long sent bytes may stay unacknowledged before the system ends the connection. Its own answer is some 15 minutes; less
/// than this would end connections whenever a router restarts.
pub const TCP_USER_TIMEOUT: Duration = Duration::from_secs(60);

/// How long an address has before the next one of the same name is tried beside it (RFC 8305, section 8).
pub const CONNECT_STAGGER: Duration = Duration::from_millis(250);

/// Addresses of one name that a dial tries, so sockets that it holds at most: 16 staggers are 4 s of [`DIAL_TIME`].
pub const ADDRESSES_TRIED: usize = 16;

/// Jobs whose uuid is remembered after their end: at some 300 bytes each in memory and on disk, 5 MiB, three times that
/// while the file is read. The facilitator repeats a request only while it is fresh (one copy for each of its open
/// connections).
pub const SEEN_JOBS: usize = 16_384;

/// Updates that were given up and are kept for the operator; a facilitator that refuses more is broken as a whole.
pub const DEAD_LETTERS: usize = 1024;

/// Bytes of the updates that were given up: 64 KiB for each of the letters, or a few results in full.
pub const DEAD_BYTES: usize = 64 << 20;

/// Job requests that wait for their signature check: at some 40 µs each alone, a sixth of a second of one core.
pub const UNCHECKED_REQUESTS: usize = 4096;

/// Bytes of the job requests that wait for their signature check: 64 of the largest.
pub const UNCHECKED_BYTES: usize = 64 * JOB_REQUEST_BYTES;

/// Miners whose newest machine specs may wait for the facilitator, about 4 KiB each.
pub const SPECS_MINERS: usize = 4096;

/// Bytes of one record of the journal: the largest status update, and as much again for what surrounds it.
pub const JOURNAL_BODY_BYTES: usize = 2 * FACILITATOR_LINK_MESSAGE_BYTES;
