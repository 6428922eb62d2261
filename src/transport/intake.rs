//! What one connection may send at present: little as long as it is a stranger's, and of large messages what there is
//! memory for. Whoever reads a connection asks here before it takes more.
//!
//! A thread that reads one connection waits here, on a condition; what it waits for, a kick, and the verdict that it is
//! to go wake it. Whoever reads many connections does not wait but is woken, see [`Intake::on_change`].

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};

use super::TransportError;
use super::receiving::{Grant, Receiving};
use crate::base::limits::{STRANGER_BYTES, STRANGER_MESSAGE_BYTES};
use crate::base::lock::{lock, wait};
use crate::base::waits::waiting;

/// Bytes of a message that each connection may hold beside the memory that all have together.
const OWN_BYTES: usize = 64 << 10;

/// In which pieces that memory is taken.
const PIECE_BYTES: usize = 256 << 10;

/// What a stranger may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntakeLimits {
    /// Bytes of one message; behind a first one that is not larger, a larger one waits until the stranger is known.
    pub message_bytes: usize,
    /// Bytes of all its messages, and of control frames; more waits.
    pub bytes: usize,
}

impl IntakeLimits {
    /// 4 KiB, 64 KiB.
    pub const DEFAULT: Self = Self { message_bytes: STRANGER_MESSAGE_BYTES, bytes: STRANGER_BYTES };
}

/// Memory for the messages that all connections of a server have begun and not ended; clones are the same.
#[derive(Clone)]
pub struct ReceivingMemory(Arc<Shared>);

struct Shared {
    state: Mutex<Memory>,
    ids: AtomicU64,
}

struct Memory {
    receiving: Receiving,
    /// Connections that have memory, or wait for some.
    asked: HashMap<u64, Weak<Intake>>,
}

impl ReceivingMemory {
    /// So many bytes. A connection whose message needs more than there is makes the one of the oldest such message go.
    pub fn new(bytes: usize) -> Self {
        let memory = Memory { receiving: Receiving::new(bytes), asked: HashMap::new() };
        Self(Arc::new(Shared { state: Mutex::new(memory), ids: AtomicU64::new(0) }))
    }

    /// What becomes of it, and the connection that is to go for it.
    fn ask(&self, id: u64, age: &mut Option<u64>, bytes: usize, by: &Arc<Intake>) -> (Grant, Option<Arc<Intake>>) {
        let mut memory = lock(&self.0.state);
        memory.asked.entry(id).or_insert_with(|| Arc::downgrade(by));
        let grant = memory.receiving.ask(id, age, bytes);
        let goes = match grant {
            Grant::After(oldest) => memory.asked.get(&oldest).and_then(Weak::upgrade),
            _ => None,
        };
        (grant, goes)
    }

    /// A message has ended, or the connection has; those who wait ask again.
    fn end(&self, id: u64, age: Option<u64>) {
        let mut memory = lock(&self.0.state);
        memory.asked.remove(&id);
        let Some(age) = age else { return };
        memory.receiving.end(age);
        let others: Vec<_> = memory.asked.values().filter_map(Weak::upgrade).collect();
        drop(memory);
        others.iter().for_each(|other| other.change(|_| {}));
    }

    /// Bytes that are taken.
    pub fn used(&self) -> usize {
        lock(&self.0.state).receiving.used()
    }
}

impl fmt::Debug for ReceivingMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReceivingMemory({} bytes)", self.used())
    }
}

type OnChange = Arc<dyn Fn() + Send + Sync>;

/// What one connection may send at present. Its owner holds it beside the halves.
pub struct Intake {
    state: Mutex<IntakeState>,
    changed: Condvar,
}

#[derive(Default)]
struct IntakeState {
    stranger: Option<IntakeLimits>,
    memory: Option<(ReceivingMemory, u64)>,
    /// Of its present message, if it has memory for it.
    age: Option<u64>,
    granted: usize,
    /// It has asked for some since it had none.
    asked: bool,
    /// Its memory is needed by others.
    goes: bool,
    kicked: bool,
    on_go: Option<OnChange>,
    on_change: Option<OnChange>,
}

/// Whether more may be taken.
#[derive(Debug)]
pub(super) enum Room {
    Yes,
    /// Not now.
    Wait,
}

impl fmt::Debug for Intake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let IntakeState { stranger, granted, goes, .. } = &*lock(&self.state);
        write!(f, "Intake(stranger: {}, {granted} bytes, goes: {goes})", stranger.is_some())
    }
}

impl Intake {
    /// Without limits of its own; `on_go` interrupts the reading of one that is to go, and must not block.
    pub(super) fn new(on_go: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        let state = IntakeState { on_go: Some(Arc::new(on_go)), ..IntakeState::default() };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() })
    }

    /// From now on these limits count, until [`Intake::known`].
    pub fn stranger(&self, limits: IntakeLimits) {
        lock(&self.state).stranger = Some(limits);
    }

    /// It is known whose the connection is: what waited for that goes on.
    pub fn known(&self) {
        self.change(|state| state.stranger = None);
    }

    /// Large messages take their memory from there.
    pub fn take_from(&self, memory: &ReceivingMemory) {
        let id = memory.0.ids.fetch_add(1, Ordering::Relaxed);
        lock(&self.state).memory = Some((memory.clone(), id));
    }

    /// Has `action` called whenever what was refused may be asked for again. It must not block.
    pub fn on_change(&self, action: impl Fn() + Send + Sync + 'static) {
        lock(&self.state).on_change = Some(Arc::new(action));
    }

    /// The connection was kicked: nobody waits here any more.
    pub(super) fn kick(&self) {
        self.change(|state| state.kicked = true);
    }

    /// Whether the connection was kicked: then nothing is waited for any more.
    pub(super) fn is_kicked(&self) -> bool {
        lock(&self.state).kicked
    }

    pub(super) fn stranger_limits(&self) -> Option<IntakeLimits> {
        lock(&self.state).stranger
    }

    /// Whether its memory is needed by others.
    pub(super) fn goes(&self) -> bool {
        lock(&self.state).goes
    }

    /// Waits until it is known whose the connection is; false if it is kicked, or to go, instead.
    pub(super) fn wait_until_known(&self) -> bool {
        let _waiting = waiting("the peer to be known", None);
        let mut state = lock(&self.state);
        while state.stranger.is_some() && !state.kicked && !state.goes {
            state = wait(&self.changed, state);
        }
        state.stranger.is_none()
    }

    /// Asks for the memory of a message that has `bytes` now. With `patient` it waits for it; the kick ends that.
    ///
    /// # Errors
    /// [`TransportError::Crowded`] if the connection is to go.
    pub(super) fn room(self: &Arc<Self>, bytes: usize, patient: bool) -> Result<Room, TransportError> {
        let mut state = lock(&self.state);
        loop {
            if state.goes {
                return Err(TransportError::Crowded);
            }
            let missing = bytes.saturating_sub(OWN_BYTES + state.granted);
            let Some((memory, id)) = state.memory.clone().filter(|_| missing > 0) else { return Ok(Room::Yes) };
            if state.kicked {
                return Ok(Room::Wait);
            }
            let (mut age, piece) = (state.age, missing.next_multiple_of(PIECE_BYTES));
            let (grant, oldest) = memory.ask(id, &mut age, piece, self);
            state.age = age;
            state.asked = true;
            match (grant, oldest) {
                (Grant::Given, _) => state.granted += piece,
                (Grant::Go, _) => state.goes = true,
                // It takes its own lock, and may be looking for ours.
                (_, Some(oldest)) => {
                    drop(state);
                    oldest.go();
                    drop(oldest);
                    state = lock(&self.state);
                }
                (_, None) if !patient => return Ok(Room::Wait),
                (_, None) => {
                    let _waiting = waiting("memory for a message", None);
                    state = wait(&self.changed, state);
                }
            }
        }
    }

    /// The present message has ended.
    pub(super) fn message_ends(&self) {
        let mut state = lock(&self.state);
        if !std::mem::take(&mut state.asked) {
            return;
        }
        state.granted = 0;
        let (age, memory) = (state.age.take(), state.memory.clone());
        drop(state);
        if let Some((memory, id)) = memory {
            memory.end(id, age);
        }
    }

    fn change(&self, change: impl FnOnce(&mut IntakeState)) {
        let mut state = lock(&self.state);
        change(&mut state);
        let then = state.on_change.clone();
        drop(state);
        self.changed.notify_all();
        if let Some(then) = then {
            then();
        }
    }

    /// Others need its memory.
    fn go(&self) {
        self.change(|state| state.goes = true);
        let then = lock(&self.state).on_go.clone();
        if let Some(then) = then {
            then();
        }
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        self.message_ends();
    }
}
