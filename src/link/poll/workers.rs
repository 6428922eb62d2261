//! The threads that call the role with the events of polled connections, and take their handshakes on.
//!
//! Owner: the poll thread. Blocks in: their queue; in the role's sink. Kick: the queue closes. Ends: when it is closed
//! and empty. A panic of the role costs the worker, which is replaced, and its connection, which is broken.

use std::sync::Arc;
use std::time::Duration;

use super::inbox::Next;
use super::peer::Served;
use super::shared::{PollShared, Run, Shaking};
use crate::base::lock::lock;
use crate::link::events::{HandshakeCheck, ServerSink};
use crate::ops::health::Beat;
use crate::transport::HandshakeRequest;

/// Events of one connection that a worker handles before others have their turn.
const TURN_EVENTS: usize = 16;

/// What a worker calls.
#[derive(Clone)]
pub(super) struct Role {
    pub(super) check: HandshakeCheck,
    pub(super) sink: ServerSink,
}

/// What a worker does until the queue is closed and empty.
pub(super) fn work(shared: &PollShared, role: &Role, beat: &Beat) {
    while let Some(run) = shared.runs.next(|| beat.come_round()) {
        let broken = Broken { shared, number: run.number() };
        match run {
            Run::Events(served) => handle(shared, served, role),
            Run::Shake(number, shaking) => shake(shared, number, shaking, role),
        }
        std::mem::forget(broken);
    }
}

/// How long a worker may take to come round once it is asked: a turn's worth of events, each of which may wait for room
/// in the queue of a role that is behind.
pub(super) const ROUND_TIME: Duration = Duration::from_secs(60);

/// Calls the role with a turn's worth of events.
fn handle(shared: &PollShared, served: Arc<Served>, role: &Role) {
    for _ in 0..TURN_EVENTS {
        let next = lock(&served.inbox).next();
        match next {
            Next::Event { event, resume } => {
                (role.sink)(event);
                if resume {
                    shared.news.tell(|news| news.resumed.push(served.number));
                }
            }
            Next::Idle => return,
        }
    }
    shared.runs.push(Run::Events(served));
}

fn shake(shared: &PollShared, number: u64, mut shaking: Shaking, role: &Role) {
    let mut check = |request: &HandshakeRequest| match &shaking.refusal {
        Some(refusal) => Err(refusal.clone()),
        None => (role.check)(request),
    };
    let advanced = shaking.polled.advance(&mut check);
    shared.news.tell(|news| news.advanced.push((number, shaking, advanced)));
}

/// Dropped by a panic only.
struct Broken<'a> {
    shared: &'a PollShared,
    number: u64,
}

impl Drop for Broken<'_> {
    fn drop(&mut self) {
        self.shared.news.tell(|news| news.panicked.push(self.number));
    }
}
