//! The sessions: who each is, when it last beat, which answers it is owed. Pure.
//!
//! At most one session of a validator has its place: the one that authenticated last.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::types::{CloseWhy, SessionInfo};
use crate::base::ids::SessionId;
use crate::base::limits::LONGEST_TIME;
use crate::identity::PublicKey;

/// One connection.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) peer: Arc<str>,
    version: Arc<str>,
    opened: Instant,
    pub(super) validator: Option<PublicKey>,
    /// Its last heartbeat, or its authentication.
    heartbeat: Instant,
    /// A close was asked for: what still comes is not looked at, and nothing more is sent.
    pub(super) closing: bool,
    /// Answers in their order; `None` waits for the store.
    answers: VecDeque<Option<String>>,
    /// Its entry in [`Sessions::due`].
    due: Option<Instant>,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Sessions {
    /// Without a heartbeat for longer a session gets no jobs.
    heartbeat_limit: Duration,
    auth_limit: Duration,
    ghost_limit: Duration,
    all: BTreeMap<SessionId, Session>,
    /// The session of each validator that is not closing.
    of: HashMap<PublicKey, SessionId>,
    /// When to look at a session: its authentication, or its heartbeat, may be overdue then. At most one for each.
    due: BTreeSet<(Instant, SessionId)>,
    /// When the last session of a validator that has none now was last heard of.
    seen: HashMap<PublicKey, Instant>,
    /// Those that are not shown as they are.
    changed: BTreeSet<SessionId>,
    /// Validators of which `seen` is not shown as it is.
    seen_changed: HashSet<PublicKey>,
}

impl Sessions {
    pub(super) fn new(heartbeat_limit: Duration, auth_limit: Duration, ghost_limit: Duration) -> Self {
        Self {
            heartbeat_limit: heartbeat_limit.min(LONGEST_TIME),
            auth_limit,
            ghost_limit,
            all: BTreeMap::new(),
            of: HashMap::new(),
            due: BTreeSet::new(),
            seen: HashMap::new(),
            changed: BTreeSet::new(),
            seen_changed: HashSet::new(),
        }
    }

    pub(super) fn open(&mut self, now: Instant, id: SessionId, peer: String, version: String) {
        let session = Session {
            peer: peer.into(),
            version: version.into(),
            opened: now,
            validator: None,
            heartbeat: now,
            closing: false,
            answers: VecDeque::new(),
            due: None,
        };
        self.all.insert(id, session);
        self.changed.insert(id);
        self.look_at(id, now.checked_add(self.auth_limit));
    }

    pub(super) fn get(&self, id: SessionId) -> Option<&Session> {
        self.all.get(&id)
    }

    /// A connection has ended.
    pub(super) fn remove(&mut self, id: SessionId) -> Option<Session> {
        self.look_at(id, None);
        let session = self.all.remove(&id)?;
        self.changed.insert(id);
        self.leave_place(id, &session);
        Some(session)
    }

    /// The validator of a session has shown who it is: it takes its place, from the older session that this gives.
    pub(super) fn authenticate(&mut self, now: Instant, id: SessionId, validator: PublicKey) -> Option<SessionId> {
        let session = self.all.get_mut(&id)?;
        session.validator = Some(validator);
        session.heartbeat = now;
        self.changed.insert(id);
        self.look_at(id, now.checked_add(self.ghost_limit));
        if self.seen.remove(&validator).is_some() {
            self.seen_changed.insert(validator);
        }
        self.of.insert(validator, id)
    }

    /// As if the session had never authenticated.
    pub(super) fn forget(&mut self, id: SessionId) {
        let Some(session) = self.all.get_mut(&id) else { return };
        let validator = session.validator.take();
        self.changed.insert(id);
        if let Some(validator) = validator
            && self.of.get(&validator) == Some(&id)
        {
            self.of.remove(&validator);
        }
    }

    pub(super) fn beat(&mut self, now: Instant, id: SessionId) {
        if let Some(session) = self.all.get_mut(&id) {
            session.heartbeat = now;
            self.changed.insert(id);
        }
    }

    /// Marks a session as closing; says whether it was not.
    pub(super) fn close(&mut self, id: SessionId) -> bool {
        let Some(mut session) = self.all.remove(&id) else { return false };
        let first = !session.closing;
        session.closing = true;
        session.answers.clear();
        self.changed.insert(id);
        self.leave_place(id, &session);
        self.all.insert(id, session);
        first
    }

    fn leave_place(&mut self, id: SessionId, session: &Session) {
        if let Some(validator) = session.validator
            && self.of.get(&validator) == Some(&id)
        {
            self.of.remove(&validator);
            self.seen.insert(validator, session.heartbeat);
            self.seen_changed.insert(validator);
        }
    }

    /// The session of a validator, if that is live.
    pub(super) fn live(&self, now: Instant, validator: PublicKey) -> Option<SessionId> {
        let id = *self.of.get(&validator)?;
        self.live_until(self.all.get(&id)?).is_some_and(|until| now <= until).then_some(id)
    }

    fn live_until(&self, session: &Session) -> Option<Instant> {
        session.validator.filter(|_| !session.closing).map(|_| session.heartbeat + self.heartbeat_limit)
    }

    /// Sessions whose validator is not among these; the others are forgotten.
    pub(super) fn keep(&mut self, validators: &HashSet<PublicKey>) -> Vec<SessionId> {
        let forgotten = self.seen.extract_if(|validator, _| !validators.contains(validator));
        self.seen_changed.extend(forgotten.map(|(validator, _)| validator));
        let unknown = self.of.iter().filter(|(validator, _)| !validators.contains(*validator));
        let mut unknown: Vec<SessionId> = unknown.map(|(_, id)| *id).collect();
        unknown.sort_unstable();
        unknown
    }

    /// Sessions that are to be closed now.
    pub(super) fn take_overdue(&mut self, now: Instant) -> Vec<(SessionId, CloseWhy)> {
        let mut overdue = Vec::new();
        while let Some((when, id)) = self.due.first().copied()
            && when <= now
        {
            self.look_at(id, None);
            let Some(session) = self.all.get(&id).filter(|session| !session.closing) else { continue };
            match session.validator {
                None => overdue.push((id, CloseWhy::NoAuthentication)),
                Some(_) => match session.heartbeat.checked_add(self.ghost_limit) {
                    Some(until) if until <= now => overdue.push((id, CloseWhy::NoHeartbeat)),
                    until => self.look_at(id, until),
                },
            }
        }
        overdue
    }

    /// It is looked at then, and not before; `None` for never.
    fn look_at(&mut self, id: SessionId, when: Option<Instant>) {
        let Some(session) = self.all.get_mut(&id) else { return };
        if let Some(before) = std::mem::replace(&mut session.due, when) {
            self.due.remove(&(before, id));
        }
        self.due.extend(when.map(|when| (when, id)));
    }

    /// When [`Sessions::take_overdue`] is due next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.due.first().map(|(when, _)| *when)
    }

    /// How many answers a session is owed.
    pub(super) fn owed(&self, id: SessionId) -> usize {
        self.all.get(&id).map_or(0, |session| session.answers.len())
    }

    /// Whether no session is owed an answer.
    pub(super) fn is_settled(&self) -> bool {
        self.all.values().all(|session| session.answers.is_empty())
    }

    /// Adds an answer behind those that are owed; `None` for one that waits for the store.
    pub(super) fn push_answer(&mut self, id: SessionId, answer: Option<String>) {
        if let Some(session) = self.all.get_mut(&id) {
            session.answers.push_back(answer);
        }
    }

    /// Leaves out the answers behind the first so many.
    pub(super) fn truncate_answers(&mut self, id: SessionId, owed: usize) {
        if let Some(session) = self.all.get_mut(&id) {
            session.answers.truncate(owed);
        }
    }

    /// The oldest answer that waits for the store is this.
    pub(super) fn fill_answer(&mut self, id: SessionId, answer: String) {
        let session = self.all.get_mut(&id);
        if let Some(waiting) = session.and_then(|session| session.answers.iter_mut().find(|answer| answer.is_none())) {
            *waiting = Some(answer);
        }
    }

    /// The next answer that may leave.
    pub(super) fn pop_answer(&mut self, id: SessionId) -> Option<String> {
        let answers = &mut self.all.get_mut(&id)?.answers;
        answers.front()?.as_ref()?;
        answers.pop_front().flatten()
    }

    /// What others may see, the oldest first.
    pub(super) fn infos(&self) -> Vec<SessionInfo> {
        self.all.iter().map(|(id, session)| self.info(*id, session)).collect()
    }

    fn info(&self, id: SessionId, session: &Session) -> SessionInfo {
        SessionInfo {
            id,
            validator: session.validator,
            peer: session.peer.clone(),
            version: session.version.clone(),
            opened: session.opened,
            heartbeat: session.heartbeat,
            live_until: self.live_until(session),
        }
    }

    /// Brings earlier [`Sessions::infos`] up to date. It costs what has changed since, however many there are.
    pub(super) fn show(&mut self, shown: &mut Vec<SessionInfo>) {
        for id in std::mem::take(&mut self.changed) {
            let place = shown.binary_search_by_key(&id, |info| info.id);
            let now = self.all.get(&id).map(|session| self.info(id, session));
            match (place, now) {
                (Ok(at), Some(info)) => shown[at] = info,
                (Ok(at), None) => drop(shown.remove(at)),
                (Err(at), Some(info)) => shown.insert(at, info),
                (Err(_), None) => {}
            }
        }
    }

    /// When each validator that has no session now, and had one, was last heard of.
    pub(super) fn seen(&self) -> HashMap<PublicKey, Instant> {
        self.seen.clone()
    }

    /// Brings earlier [`Sessions::seen`] up to date. It costs what has changed since; all of it only where somebody
    /// still looks at the earlier one.
    pub(super) fn show_seen(&mut self, shown: &mut Arc<HashMap<PublicKey, Instant>>) {
        for validator in self.seen_changed.drain() {
            let shown = Arc::make_mut(shown);
            match self.seen.get(&validator) {
                Some(at) => shown.insert(validator, *at),
                None => shown.remove(&validator),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    #[test]
    fn what_is_shown_is_what_is_there_after_each_step() {
        let seed = Rng::from_entropy().next_u64();
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        let (second, mut now) = (Duration::from_secs(1), Instant::now());
        let mut sessions = Sessions::new(60 * second, 10 * second, 600 * second);
        let ids: Vec<_> = (0..20).map(|_| SessionId::fresh()).collect();
        let validators: Vec<_> = (0..5u8).map(|n| PublicKey::from_bytes([n; 32])).collect();
        let (mut shown, mut seen) = (sessions.infos(), Arc::default());
        for _ in 0..5_000 {
            now += second;
            let id = ids[rng.next_u64() as usize % ids.len()];
            let validator = validators[rng.next_u64() as usize % validators.len()];
            let is_there = sessions.get(id).is_some();
            match rng.next_u64() % 8 {
                0 | 1 if !is_there => sessions.open(now, id, "peer".to_owned(), "1".to_owned()),
                2 => drop(sessions.authenticate(now, id, validator)),
                3 => drop(sessions.close(id)),
                4 => drop(sessions.remove(id)),
                5 => sessions.forget(id),
                _ => sessions.beat(now, id),
            }
            if rng.one_in(3) {
                sessions.show(&mut shown);
                sessions.show_seen(&mut seen);
                assert_eq!((&shown, &*seen), (&sessions.infos(), &sessions.seen()), "seed {seed}");
            }
        }
    }
}
