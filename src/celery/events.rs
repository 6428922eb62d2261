//! Publishes events for a client or a worker. Events never hold up a task: they wait in a queue of their own, one
//! request at a time is on its way to Redis, and what does not fit is dropped and counted. No thread: it runs on those
//! of its callers and of the commander, and never blocks.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::event::{Event, Source, When, message};
use super::moment::Moment;
use crate::base::limits::{CELERY_EVENT_BYTES, CELERY_EVENTS_AT_ONCE};
use crate::base::lock::lock;
use crate::ops::metrics::Counter;
use crate::ops::status::Board;
use crate::redis::{CommanderHandle, RedisError, Repeat, Request};

/// The routing key of several events of tasks together.
const MULTIPLE: &str = "task.multi";

/// Publishes the events of one client or worker.
pub(super) struct EventSender {
    commands: CommanderHandle,
    source: Source,
    /// The channel of events; a routing key follows.
    channel: String,
    /// How long Redis may take.
    patience: Duration,
    clock: AtomicU64,
    waiting: Mutex<Waiting>,
    sent: Counter,
    dropped: Counter,
}

#[derive(Default)]
struct Waiting {
    /// The JSON of each.
    events: VecDeque<String>,
    bytes: usize,
    /// Some are on their way.
    sending: bool,
}

impl EventSender {
    /// A sender of `hostname`.
    pub(super) fn new(
        commands: CommanderHandle,
        hostname: &str,
        channel: String,
        patience: Duration,
        board: &Board,
    ) -> Arc<Self> {
        let counter = |result| {
            let help = "Celery events by what became of them.";
            board.metrics.counter("phalanx_celery_events_total", help, &[("result", result)])
        };
        Arc::new(Self {
            commands,
            source: Source { hostname: hostname.to_owned(), pid: std::process::id() },
            channel,
            patience,
            clock: AtomicU64::new(1),
            waiting: Mutex::default(),
            sent: counter("sent"),
            dropped: counter("dropped"),
        })
    }

    /// The logical clock, moved on.
    pub(super) fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Moves the logical clock past that of a message.
    pub(super) fn witness(&self, clock: u64) {
        // The clocks of others are what others say.
        self.clock.fetch_max(clock.min(u64::MAX / 2), Ordering::Relaxed);
        self.tick();
    }

    /// Hands over an event of a task. Those that come while others are on their way go together.
    pub(super) fn put(self: &Arc<Self>, event: Event) {
        let event = self.written(event);
        {
            let mut waiting = lock(&self.waiting);
            if waiting.bytes + event.len() > CELERY_EVENT_BYTES {
                self.dropped.inc();
                return;
            }
            waiting.bytes += event.len();
            waiting.events.push_back(event);
        }
        self.send_next();
    }

    /// Publishes an event of the source itself by itself, as Celery does; not twice, and not late.
    pub(super) fn publish(self: &Arc<Self>, event: Event) {
        let routing_key = event.routing_key();
        let event = self.written(event);
        self.submit(event, &routing_key, 1, |_| {});
    }

    /// Hands all that wait to the commander, whatever is on its way.
    pub(super) fn finish(self: &Arc<Self>) {
        loop {
            let next = lock(&self.waiting).take();
            let Some((body, events)) = next else { return };
            self.submit(body, MULTIPLE, events, |_| {});
        }
    }

    fn written(&self, event: Event) -> String {
        let now = SystemTime::now();
        let east = TimeZone::system().to_offset(Timestamp::try_from(now).unwrap_or_default()).seconds();
        let behind_utc = -f64::from(east) / 3600.0;
        event.write(&self.source, When { clock: self.tick(), now: Moment::from(now), behind_utc })
    }

    fn send_next(self: &Arc<Self>) {
        let next = {
            let mut waiting = lock(&self.waiting);
            if waiting.sending {
                return;
            }
            let next = waiting.take();
            waiting.sending = next.is_some();
            next
        };
        let Some((body, events)) = next else { return };
        let submitted = self.submit(body, MULTIPLE, events, |sender| {
            lock(&sender.waiting).sending = false;
            sender.send_next();
        });
        if !submitted {
            // The next event tries again.
            lock(&self.waiting).sending = false;
        }
    }

    /// `then` is called when Redis has answered or will not; false if the commander takes nothing.
    fn submit(
        self: &Arc<Self>,
        body: String,
        routing_key: &str,
        events: u64,
        then: impl FnOnce(&Arc<Self>) + Send + 'static,
    ) -> bool {
        let message = message(&self.source.hostname, body, routing_key, uuid::Uuid::new_v4().to_string());
        let channel = format!("{}/{routing_key}", self.channel);
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(channel).arg(message);
        let request = Request::new(Repeat::Never, Instant::now() + self.patience).command(&publish);
        let sender = self.clone();
        let submitted = self.commands.submit(request, move |answer| {
            match answer {
                Ok(_) => sender.sent.add(events),
                Err(error) => sender.lost(events, &error),
            }
            then(&sender);
        });
        if let Err(error) = &submitted {
            self.lost(events, error);
        }
        submitted.is_ok()
    }

    fn lost(&self, events: u64, error: &RedisError) {
        self.dropped.add(events);
        log::debug!("{events} Celery events are dropped: {error}");
    }
}

impl Waiting {
    /// The next ones that go together, as a JSON list, and how many they are.
    fn take(&mut self) -> Option<(String, u64)> {
        let mut body = String::new();
        let mut events = 0;
        while body.len() < CELERY_EVENTS_AT_ONCE {
            let Some(event) = self.events.pop_front() else { break };
            self.bytes -= event.len();
            body.push(if events == 0 { '[' } else { ',' });
            body.push_str(&event);
            events += 1;
        }
        (events > 0).then(|| {
            body.push(']');
            (body, events)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::stop::Stopping;
    use crate::redis::{Commander, RedisConfig};

    #[test]
    fn events_that_redis_does_not_take_are_dropped_and_counted() {
        let board = Board::new();
        // Nothing listens there.
        let config = RedisConfig::parse("redis://127.0.0.1:1/0").unwrap();
        let commander = Commander::start("cel-cmd", config, &board).unwrap();
        let sender =
            EventSender::new(commander.handle(), "w@h", "/0.celeryev".to_owned(), Duration::from_secs(3600), &board);
        let (most, size) = (50_000, Event::started("id").write(&sender.source, when()).len());
        for _ in 0..most {
            sender.put(Event::started("id"));
        }
        let kept = {
            let waiting = lock(&sender.waiting);
            assert!(waiting.bytes <= CELERY_EVENT_BYTES && waiting.bytes + 2 * size > CELERY_EVENT_BYTES);
            waiting.events.len() as u64
        };
        // One was on its way alone.
        assert_eq!(sender.dropped.get(), most - kept - 1);
        sender.finish();
        let mut stopping = Stopping::alone();
        stopping.step("commander", Duration::ZERO, |step| commander.stop_in(step));
        drop(stopping.finish());
        assert_eq!((sender.sent.get(), sender.dropped.get()), (0, most), "each is counted");
        sender.put(Event::started("id"));
        assert_eq!(sender.dropped.get(), most + 1, "after a stop too");
    }

    fn when() -> When {
        When { clock: 1, now: Moment::from(SystemTime::now()), behind_utc: 0.0 }
    }
}
