//! Every capacity and time limit that is not a setting, with its unit and its reason.

use std::time::Duration;

// Threads and waits.

/// A lock of this crate is held for microseconds; who waits longer than this for one waits for a thread that hangs.
pub const LOCK_TIME: Duration = Duration::from_secs(1);

/// A hundred years, in place of times that are too long to be added to a moment.
pub const LONGEST_TIME: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// How far a wait may be over its deadline before it is shown as late: a busy machine wakes nobody this late.
pub const WAIT_LATE: Duration = Duration::from_secs(5);

/// Name look-ups that may hang at a time; the system's resolver cannot be interrupted, so a hung one keeps its thread.
pub const LOOKUPS_AT_ONCE: usize = 8;

// Connections.

/// Silence after which the system probes a TCP connection: half of the 60 s after which many middle boxes forget one,
/// so that a probe may get lost.
pub const TCP_KEEPALIVE_IDLE: Duration = Duration::from_secs(30);

/// Time between two probes of a peer that does not answer.
pub const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Unanswered probes that end a connection: 30 s + 3 × 10 s is [`TCP_USER_TIMEOUT`], which Linux takes in their place.
pub const TCP_KEEPALIVE_COUNT: u32 = 3;

/// How long sent bytes may stay unacknowledged before the system ends the connection. Its own answer is some 15
/// minutes; less than this would end connections whenever a router restarts.
pub const TCP_USER_TIMEOUT: Duration = Duration::from_secs(60);

/// One deadline over look-up, TCP, TLS, upgrade and authentication of an outgoing connection.
pub const DIAL_TIME: Duration = Duration::from_secs(15);

/// How long an address has before the next one of the same name is tried beside it (RFC 8305, section 8).
pub const CONNECT_STAGGER: Duration = Duration::from_millis(250);

/// Addresses of one name that a dial tries, so sockets that it holds at most: 16 staggers are 4 s of [`DIAL_TIME`].
pub const ADDRESSES_TRIED: usize = 16;

/// Bytes of a WebSocket handshake, either way: request line or status and all headers.
pub const HANDSHAKE_BYTES: usize = 16 << 10;

/// Time for TCP accept to finished handshake on a server, so that a silent peer holds a thread no longer.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// Size of a connection's read buffer. tungstenite's default of 128 KiB would be 128 MiB at 1,000 connections.
pub const READ_BUFFER_BYTES: usize = 8 << 10;

/// Connections that a server accepts. The first 64 have two threads each, the others none; each takes a descriptor, of
/// which most systems give a program many more.
pub const SERVER_CONNECTIONS: usize = 10_000;

/// Of those, connections of which it is not known whose they are: an honest one is that for some milliseconds, so this
/// many are a thousand new ones a second at a quarter of a second each. The other places are kept for those who are
/// known.
pub const STRANGERS: usize = 256;

/// Time from a connection's acceptance until it has to be known whose it is. An authentication is one message, which a
/// peer sends as soon as the handshake is over.
pub const STRANGER_TIME: Duration = Duration::from_secs(10);

/// Of those, connections of one address: half, so that one address alone shuts nobody out, and all executors of a
/// machine, or all validators behind one proxy, may come back at once within some tries.
pub const STRANGERS_OF_ADDRESS: usize = STRANGERS / 2;

/// Bytes of one message of a connection of which it is not known whose it is: an authentication has less than 1 KiB.
pub const STRANGER_MESSAGE_BYTES: usize = 4 << 10;

/// Bytes of all that such a connection sends: [`PRE_AUTH_MESSAGES`] of the largest.
pub const STRANGER_BYTES: usize = PRE_AUTH_MESSAGES * STRANGER_MESSAGE_BYTES;

/// Bytes that wait in the outbox of such a connection: the answers to what it sent that could not be read.
pub const STRANGER_OUTBOX_BYTES: usize = 64 << 10;

/// Handshakes of one address with a server, so many in ten seconds: all connections of a miner with 1,000 executors may
/// come, be lost and come again at once. A handshake costs a thread for some milliseconds.
pub const HANDSHAKES: (u32, Duration) = (4000, Duration::from_secs(10));

// Messages and queues of the links.

/// Bytes of one WebSocket message on the miner links: 50 MiB is legal there (inline volumes, job output), plus the
/// envelope.
pub const MINER_LINK_MESSAGE_BYTES: usize = 52 << 20;

/// Bytes of one WebSocket message on the facilitator link, where Python validators refuse more than 1 MiB from the
/// facilitator; upwards a result with two outputs of a million characters (up to 4 bytes each, escaped) must fit.
pub const FACILITATOR_LINK_MESSAGE_BYTES: usize = 32 << 20;

/// Bytes that a facilitator sends to a validator in one message: the Python validator's own limit.
pub const JOB_REQUEST_BYTES: usize = 1 << 20;

/// Values in the JSON of one message of a link, as commas and brackets that open. The largest honest one is a miner's
/// refusal with a receipt for each of 10,000 executors, of 12 each. Parsed and kept, a value takes some 150 bytes, so
/// these some 20 MB, where 50 MiB of zeros in a list would be 3.5 GB.
pub const MESSAGE_VALUES: usize = 128 << 10;

/// Bytes of what a miner answers to the authentication: its manifest, or why not. A manifest that names all classes has
/// less than 1 KiB.
pub const FIRST_MESSAGE_BYTES: usize = 64 << 10;

/// Messages between a session's reader and its role: the reader waits beyond that, so TCP slows the peer. 256 small
/// messages are about 256 KiB; the byte bound of a link is its message limit times this, never met in practice because
/// a role's loop does not block.
pub const INBOUND_MESSAGES: usize = 256;

/// Messages that wait in one session's outbox: at 16 bytes of envelope and 1 KiB typical, 1 MiB.
pub const OUTBOX_MESSAGES: usize = 1024;

/// Bytes that wait in one session's outbox: one largest message and as much again.
pub const OUTBOX_BYTES: usize = 2 * MINER_LINK_MESSAGE_BYTES;

// Roles.

/// Status updates that a validator keeps while the facilitator is away: 8 updates a job, 8,192 jobs; about 64 MiB at 1
/// KiB.
pub const STATUS_MESSAGES: usize = 65_536;

/// Bytes that a validator keeps while the facilitator is away; results of up to 8 MiB each are in there.
pub const STATUS_BYTES: usize = 256 << 20;

/// Messages that may wait for a validator's authentication on a miner, where the Python peer would queue without limit.
pub const PRE_AUTH_MESSAGES: usize = 16;

/// Outcomes that a miner keeps for validators that have not confirmed them.
pub const MINER_KEPT_JOBS: usize = 4096;

/// Bytes of those: 256 results of a mebibyte.
pub const MINER_KEPT_BYTES: usize = 256 << 20;

/// Executors that one miner may offer: each has a thread of its own and a connection of two.
pub const EXECUTORS_MAX: u32 = 1000;

/// Files in a spool folder: what each executor of a miner could not tell, and what as many before them could not.
pub const SPOOL_FILES: usize = 2 * EXECUTORS_MAX as usize;

/// Bytes of those: for each executor a result with two outputs of a million characters of a byte.
pub const SPOOL_BYTES: u64 = EXECUTORS_MAX as u64 * (2 << 20);

/// Bytes of one of those, which is read as a whole: eight results of the largest size.
pub const SPOOL_FILE_BYTES: u64 = 256 << 20;

/// Characters of stdout and of stderr that a result carries; the first and last half million of a longer output.
pub const OUTPUT_CHARS: usize = 1_000_000;

/// Bytes of a certificate of a streaming job, in PEM, either side's: one of RSA 4096 has some 2 KiB, a chain of four 8.
pub const STREAMING_CERTIFICATE_BYTES: usize = 16 << 10;

/// Bytes of the address at which a streaming job is served: the longest host name has 253.
pub const STREAMING_ADDRESS_BYTES: usize = 256;

/// Bytes of the specs of a machine, as JSON: some 4 KiB are usual, and the lists of a machine with eight GPUs fit.
pub const MACHINE_SPECS_BYTES: usize = 256 << 10;

/// Bytes of a status update that is not the end of a job: of those, one tells of a streaming server, with a certificate
/// of [`STREAMING_CERTIFICATE_BYTES`] that may be six times as long when it is escaped.
pub const STATUS_STEP_BYTES: usize = 128 << 10;

/// Bytes of the uuid of a job, as the facilitator writes it: 36, and room for another spelling.
pub const JOB_UUID_BYTES: usize = 128;

/// Bytes of one artifact, as on the Python executor.
pub const ARTIFACT_BYTES: u64 = 1_000_000;

/// Events that wait for a role's loop: 4 for each of 256 sessions.
pub const ROLE_EVENTS: usize = 1024;

/// Jobs that are remembered for their signatures until those are too old to be taken, whatever [`SEEN_JOBS`] says: 72
/// jobs a second, all hour long. At some 450 bytes each in memory and on disk, 113 MiB.
pub const SIGNED_JOBS: usize = 262_144;

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

// Redis.

/// Bytes of one reply of Redis: four of the largest messages of a miner link, so that a take of several fits.
pub const REDIS_REPLY_BYTES: usize = 4 * MINER_LINK_MESSAGE_BYTES;

/// How deep the replies of Redis may nest; its own go to about 8.
pub const REDIS_REPLY_DEPTH: usize = 32;

/// Bytes of one line of a reply, which is a number, a status or an error; Redis cuts its own errors far earlier.
pub const REDIS_LINE_BYTES: usize = 64 << 10;

/// Requests that one commander holds, waiting or sent: at some 300 bytes each beside their own, 5 MiB.
pub const REDIS_REQUESTS: usize = 16_384;

/// Bytes of the requests that one commander holds: two of the largest messages.
pub const REDIS_REQUEST_BYTES: usize = 2 * MINER_LINK_MESSAGE_BYTES;

/// Bytes after which a commander packs no further request into one write: a system call then costs little beside the
/// copy, and what was not written yet can still wait when the connection is lost.
pub const REDIS_WRITE_BYTES: usize = 256 << 10;

/// Bytes that are asked of a socket to Redis at a time.
pub const REDIS_READ_BYTES: usize = 64 << 10;

/// Push messages that arrive while a reply is awaited and are kept for later: 4,096 of 1 KiB are 4 MiB.
pub const REDIS_PUSHES: usize = 4096;

/// Callers that wait at a time for a subscription to prove itself; one proof answers all of them.
pub const REDIS_PROOFS: usize = 1024;

/// Messages that wait for one reader of a subscription: 1,024 of 1 KiB are 1 MiB.
pub const REDIS_INBOX_MESSAGES: usize = 1024;

/// Bytes that wait for one reader of a subscription: one largest message.
pub const REDIS_INBOX_BYTES: usize = MINER_LINK_MESSAGE_BYTES;

/// Requests of ours to other programs that wait for their answers, some 200 bytes each.
pub const REDIS_ASKED: usize = 4096;

/// Messages that one read of a stream takes: at 1 KiB each, a reply of 64 KiB.
pub const REDIS_STREAM_READ: usize = 64;

/// Messages that may wait in a stream unless its sender is configured otherwise: 64 MiB of Redis's memory at 1 KiB
/// each.
pub const REDIS_STREAM_MESSAGES: usize = 65_536;

// Celery.

/// Bytes of one Celery message as it lies in Redis: the largest body in base64 (four bytes for three) and 1 MiB of
/// headers.
pub const CELERY_MESSAGE_BYTES: usize = CELERY_BODY_BYTES / 3 * 4 + (1 << 20);

/// Bytes of the unpacked body of a Celery message: 24 of the largest job requests. Celery itself knows no limit, and
/// one that takes 64 messages at a time with four copies of each on the way needs 6 GiB at worst.
pub const CELERY_BODY_BYTES: usize = 24 << 20;

/// Levels of nesting in the headers and the body of a Celery message and in a result: the 200 of a frame, for a job
/// among the arguments, and eight for what is around it.
pub const CELERY_JSON_LEVELS: usize = 208;

/// Bytes of a task's stored result, packed or not: as much as a status update of the facilitator link may have.
pub const CELERY_RESULT_BYTES: usize = FACILITATOR_LINK_MESSAGE_BYTES;

/// Tasks of one canvas: at 1 KiB each 64 MiB, and one script of some 100 ms for those that begin.
pub const CELERY_CANVAS_TASKS: usize = 65_536;

/// Levels of canvases in one another: each is four levels of JSON.
pub const CELERY_CANVAS_LEVELS: usize = CELERY_JSON_LEVELS / 4;

/// Canvases that one task calls; each may be a group.
pub const CELERY_CALLS: usize = 1024;

/// Bytes of all messages that begin one canvas: two of the largest, or 1 KiB for each of the most tasks.
pub const CELERY_CANVAS_BYTES: usize = 64 << 20;

/// Messages that a Celery worker holds at a time whose time has come: at 2 KiB each 8 MiB, and a renewal of all of them
/// is one script of some 10 ms.
pub const CELERY_PREFETCH: usize = 4096;

/// Messages that a Celery worker holds whose time has not come; at 2 KiB each 20 MiB. Celery has no limit here.
pub const CELERY_SCHEDULED: usize = 10_000;

/// Messages that are taken in one script: at 40 µs each, Redis is busy for 4 ms.
pub const CELERY_TAKEN_AT_ONCE: usize = 100;

/// Bytes of messages after which no further is taken in one script: some of ordinary size, or one of the largest.
pub const CELERY_TAKEN_BYTES: usize = 4 << 20;

/// Deliveries whose end a Celery worker remembers: 16 seconds' worth at 1,000 a second, and a Redis that writes its
/// file each second loses two; 100 bytes each, twice.
pub const CELERY_SETTLED: usize = 16_384;

/// Revoked task ids that a Celery worker remembers, as many as Celery; some 100 bytes each, twice.
pub const CELERY_REVOKED: usize = 50_000;

/// Bytes of such an id, or it is not remembered: a uuid has 36, Celery's tables of results have room for 255. At most
/// 100 MiB in all, twice 50,000 of these.
pub const CELERY_REVOKED_ID_BYTES: usize = 1024;

/// Messages of a dead worker that are put back at a time; the rest follows with the next look, a third of the time to
/// live later, or at once if this many were found.
pub const CELERY_RESTORED_AT_ONCE: usize = 100;

/// Messages that are kept aside in Redis for the operator, by all workers together.
pub const CELERY_ASIDE: usize = 1000;

/// Bytes that are kept of a message that is put aside: [`CELERY_ASIDE`] of them are 256 MiB.
pub const CELERY_ASIDE_BYTES: usize = 256 << 10;

/// Queues that a Celery worker takes from when remote control adds some: each is four keys in every look for tasks.
pub const CELERY_QUEUES: usize = 256;

/// Threads of a Celery worker when remote control asks for more: at 64 KiB of stack that is used, 64 MiB.
pub const CELERY_THREADS: usize = 1024;

/// Bytes of events about tasks that wait to be published: some 4,000 at 250 bytes. When Redis takes longer, further
/// ones are dropped.
pub const CELERY_EVENT_BYTES: usize = 1 << 20;

/// Bytes of events after which no further goes into the same message: some 250 of them.
pub const CELERY_EVENTS_AT_ONCE: usize = 64 << 10;

/// Results of Celery tasks that one client waits for: at some 1 KiB each with its subscription, 64 MiB.
pub const CELERY_PENDING: usize = 65_536;

/// Results that are looked for in one request: at 100 bytes a command, 25 KiB.
pub const CELERY_LOOKS: usize = 256;

/// For how long Redis remembers the last message of a producer that sends nothing: twice the longest that a message may
/// be on its way.
pub const CELERY_PRODUCER_TIME: Duration = Duration::from_secs(3600);
