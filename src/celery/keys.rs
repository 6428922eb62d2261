//! The names of the keys, channels and queues that Celery and kombu use in Redis. Pure.

/// The queue that Celery uses when none is named.
pub const DEFAULT_QUEUE: &str = "celery";

/// The content type of every message that is read and written.
pub const JSON: &str = "application/json";

/// Priorities that have a list of their own; the others share the list of the next lower one.
pub const PRIORITY_STEPS: [u8; 4] = [0, 3, 6, 9];

/// The largest priority. On Redis a smaller number goes first.
pub const PRIORITY_MAX: u8 = 9;

/// Stands between a queue's name and its priority.
pub const SEPARATOR: &str = "\x06\x16";

/// The hash of messages that a worker holds: delivery tag to `[message, exchange, routing key]`.
pub const UNACKED: &str = "unacked";

/// The sorted set of the same delivery tags, by the Unix time of their delivery.
pub const UNACKED_INDEX: &str = "unacked_index";

/// The exchange on which workers get their commands.
pub const CONTROL_EXCHANGE: &str = "celery.pidbox";

/// The exchange on which they answer.
pub const CONTROL_REPLY_EXCHANGE: &str = "reply.celery.pidbox";

/// The exchange on which workers and producers tell what happens.
pub const EVENT_EXCHANGE: &str = "celeryev";

/// The Redis list in which messages of this priority wait; a priority above 9 is 9.
pub fn queue_key(queue: &str, priority: u8) -> String {
    let step = PRIORITY_STEPS.iter().rev().find(|step| **step <= priority.min(PRIORITY_MAX)).copied().unwrap_or(0);
    match step {
        0 => queue.to_owned(),
        step => format!("{queue}{SEPARATOR}{step}"),
    }
}

/// All lists of a queue, the one to empty first at the front.
pub fn queue_keys(queue: &str) -> [String; PRIORITY_STEPS.len()] {
    PRIORITY_STEPS.map(|step| queue_key(queue, step))
}

/// Where the result of a task is stored, and also the channel on which each of its changes is published.
pub fn meta_key(task_id: &str) -> String {
    format!("celery-task-meta-{task_id}")
}

/// The channel of a fanout exchange in the database `db`.
pub fn fanout_channel(db: i64, exchange: &str) -> String {
    format!("/{db}.{exchange}")
}

/// The set of queues that are bound to an exchange.
pub fn binding_key(exchange: &str) -> String {
    format!("_kombu.binding.{exchange}")
}

/// A member of [`binding_key`]'s set.
pub fn binding(routing_key: &str, queue: &str) -> String {
    format!("{routing_key}{SEPARATOR}{SEPARATOR}{queue}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_priority_goes_into_the_list_of_its_step() {
        let expected = [0, 0, 0, 3, 3, 3, 6, 6, 6, 9, 9];
        for (priority, step) in expected.into_iter().enumerate() {
            let key = queue_key("q", u8::try_from(priority).unwrap());
            assert_eq!(key, if step == 0 { "q".to_owned() } else { format!("q\u{6}\u{16}{step}") }, "{priority}");
        }
        assert_eq!(queue_keys("q"), ["q", "q\x06\x163", "q\x06\x166", "q\x06\x169"]);
    }
}
