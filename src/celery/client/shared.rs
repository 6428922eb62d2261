//! What the handles of a client share: its connections, and the table of the results that are followed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use redis::FromRedisValue;

use super::config::CeleryConfig;
use super::entry::ResultEntry;
use super::error::TaskError;
use super::polls::Polls;
use crate::base::limits::CELERY_LOOKS;
use crate::base::lock::lock;
use crate::base::shutdown::Shutdown;
use crate::base::timer::{Alarm, TimerHandle};
use crate::celery::events::EventSender;
use crate::celery::keys::Keyspace;
use crate::celery::meta::Meta;
use crate::ops::errors::ErrorHandler;
use crate::redis::{CommanderHandle, RedisError, Repeat, Request, SubscriberHandle, Subscription};

pub(super) struct ClientShared {
    pub config: CeleryConfig,
    pub names: Keyspace,
    pub commander: CommanderHandle,
    /// Asks where results are.
    pub results: CommanderHandle,
    /// Whether that is another Redis than the broker.
    pub is_elsewhere: bool,
    pub subscriber: SubscriberHandle,
    pub timer: TimerHandle,
    /// Ends what waits on a connection of its own.
    pub stopping: Shutdown,
    pub producer: String,
    /// The number of the last message. It is held while a message is handed to the commander, which keeps their order.
    pub sequence: Mutex<u64>,
    pub table: Mutex<ResultTable>,
    pub events: Arc<EventSender>,
    pub errors: ErrorHandler,
}

#[derive(Default)]
pub(super) struct ResultTable {
    pub slots: HashMap<String, ResultSlot>,
    pub polls: Polls,
    pub alarm: Option<(Instant, Alarm)>,
    pub stopped: bool,
}

pub(super) struct ResultSlot {
    pub entry: Arc<ResultEntry>,
    /// Values of [`PendingResult`].
    pub users: usize,
    pub _subscription: Option<Subscription>,
}

impl ClientShared {
    pub(super) fn use_again(&self, entry: &Arc<ResultEntry>) {
        let mut table = lock(&self.table);
        if let Some(slot) = table.slots.get_mut(&entry.id)
            && Arc::ptr_eq(&slot.entry, entry)
        {
            slot.users += 1;
        }
    }

    pub(super) fn unused(&self, entry: &Arc<ResultEntry>) {
        let gone = {
            let mut table = lock(&self.table);
            let Some(slot) = table.slots.get_mut(&entry.id) else { return };
            if !Arc::ptr_eq(&slot.entry, entry) {
                return;
            }
            slot.users -= 1;
            if slot.users > 0 || entry.has_hooks() { None } else { table.remove(entry) }
        };
        // Outside the lock: the subscription has one of its own.
        drop(gone);
    }

    pub(super) fn fetch(&self, id: &str, deadline: Instant) -> Result<Option<Meta>, RedisError> {
        let get = Request::idempotent(redis::cmd("GET").arg(self.names.meta(id)), deadline);
        let stored = self.results.call(get)?.into_iter().next().unwrap_or(redis::Value::Nil);
        let stored = Option::<Vec<u8>>::from_redis_value(stored)?;
        stored.map(|stored| Meta::read(&stored).map_err(|error| RedisError::Reply(error.to_string()))).transpose()
    }

    pub(super) fn forget(&self, id: &str, deadline: Instant) -> Result<(), RedisError> {
        let delete = Request::idempotent(redis::cmd("DEL").arg(self.names.meta(id)), deadline);
        self.results.call(delete).map(|_| ())
    }

    /// A result was published, or looked up when `since` was received.
    pub(super) fn receive(&self, id: &str, stored: &[u8], since: Option<u64>) {
        let Some(entry) = lock(&self.table).slots.get(id).map(|slot| slot.entry.clone()) else { return };
        let ended = match Meta::read(stored) {
            Ok(meta) => entry.learn(meta, since),
            Err(error) => {
                self.errors.report(error.class(), "celery-results", &format_args!("of task {id}: {error}"));
                entry.end(Err(error.into()));
                true
            }
        };
        if ended {
            let gone = lock(&self.table).remove(&entry);
            drop(gone);
        }
    }

    /// Looks for the results that are due, and plans the next look.
    pub(super) fn look(self: &Arc<Self>) {
        let now = Instant::now();
        loop {
            let entries: Vec<(Arc<ResultEntry>, u64)> = {
                let mut table = lock(&self.table);
                let ids = table.polls.take(now, CELERY_LOOKS);
                if ids.is_empty() {
                    Self::arm(self, &mut table);
                    return;
                }
                let entries = ids.iter().filter_map(|id| table.slots.get(id)).map(|slot| slot.entry.clone());
                entries.map(|entry| (entry.clone(), entry.received())).collect()
            };
            let mut request = Request::new(Repeat::Idempotent, now + self.config.redis.operation_time);
            for (entry, _) in &entries {
                request = request.command(redis::cmd("GET").arg(self.names.meta(&entry.id)));
            }
            let weak = Arc::downgrade(self);
            let asked = self.results.submit(request, move |answer| match (answer, weak.upgrade()) {
                (Ok(values), Some(shared)) => {
                    for ((entry, since), value) in entries.iter().zip(values) {
                        match value {
                            redis::Value::BulkString(stored) => {
                                shared.receive(&entry.id, &stored, Some(*since));
                                if entry.wants_second_look() {
                                    lock(&shared.table).polls.soon(Instant::now(), &entry.id);
                                }
                            }
                            _ => entry.absent(*since),
                        }
                    }
                    Self::arm(&shared, &mut lock(&shared.table));
                }
                (Err(error), _) => log::debug!("Celery: results were not looked for: {error}"),
                (Ok(_), None) => {}
            });
            if let Err(error) = asked {
                log::debug!("Celery: results are not looked for: {error}");
            }
        }
    }

    /// Sets the alarm for the next look.
    pub(super) fn arm(self: &Arc<Self>, table: &mut ResultTable) {
        let next = table.polls.next().filter(|_| !table.stopped);
        if table.alarm.as_ref().map(|(at, _)| *at) == next {
            return;
        }
        // An earlier alarm finds nothing due and sets the next one.
        if let (Some((at, _)), Some(next)) = (&table.alarm, next)
            && *at <= next
            && *at > Instant::now()
        {
            return;
        }
        table.alarm = next.map(|at| {
            let weak = Arc::downgrade(self);
            let look = move || {
                if let Some(shared) = weak.upgrade() {
                    shared.look();
                }
            };
            (at, self.timer.at(at, look))
        });
    }

    pub(super) fn close(&self) {
        let slots = {
            let mut table = lock(&self.table);
            table.stopped = true;
            table.alarm = None;
            table.polls = Polls::default();
            std::mem::take(&mut table.slots)
        };
        self.stopping.cancel();
        for slot in slots.values() {
            slot.entry.end(Err(TaskError::Stopped));
        }
    }
}

impl ResultTable {
    /// The same task may be followed anew by now, as another entry.
    pub(super) fn remove(&mut self, entry: &Arc<ResultEntry>) -> Option<ResultSlot> {
        let same = self.slots.get(&entry.id).is_some_and(|slot| Arc::ptr_eq(&slot.entry, entry));
        same.then(|| {
            self.polls.remove(&entry.id);
            self.slots.remove(&entry.id)
        })?
    }
}

/// A task that was not sent is not followed.
pub(super) fn forget_slot(shared: &Weak<ClientShared>, entry: &Arc<ResultEntry>) {
    if let Some(shared) = shared.upgrade() {
        let gone = lock(&shared.table).remove(entry);
        drop(gone);
    }
}
