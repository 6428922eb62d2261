//! The names of the keys, channels and queues that Celery and kombu use in Redis. Pure.

/// The queue that Celery uses when none is named.
pub const DEFAULT_QUEUE: &str = "celery";

/// The content type of every message that is read and written.
pub const JSON: &str = "application/json";

/// Priorities that have a list of their own, unless others are set; the rest share the list of the next lower one.
pub const PRIORITY_STEPS: [u8; 4] = [0, 3, 6, 9];

/// The largest priority. On Redis a smaller number goes first.
pub const PRIORITY_MAX: u8 = 9;

/// Stands between a queue's name and its priority, unless another is set.
pub const SEPARATOR: &str = "\x06\x16";

/// The exchange on which workers get their commands.
pub const CONTROL_EXCHANGE: &str = "celery.pidbox";

/// The exchange on which they answer.
pub const CONTROL_REPLY_EXCHANGE: &str = "reply.celery.pidbox";

/// The exchange on which workers and producers tell what happens.
pub const EVENT_EXCHANGE: &str = "celeryev";

/// The names of one application: those of Celery, changed by its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyspace {
    pub(super) prefix: String,
    pub(super) separator: String,
    pub(super) steps: Vec<u8>,
    pub(super) results: String,
}

impl Default for Keyspace {
    fn default() -> Self {
        Self {
            prefix: String::new(),
            separator: SEPARATOR.to_owned(),
            steps: PRIORITY_STEPS.to_vec(),
            results: String::new(),
        }
    }
}

impl Keyspace {
    /// Any key of the broker, with the prefix in front.
    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// What stands in front of all keys of the broker.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What stands between a queue's name and its priority, and between the parts of a binding.
    pub fn separator(&self) -> &str {
        &self.separator
    }

    /// The priorities that have a list of their own, rising.
    pub fn steps(&self) -> &[u8] {
        &self.steps
    }

    /// The Redis list in which messages of this priority wait; a priority above 9 is 9, and one below the first step
    /// goes, as with kombu, to the last.
    pub fn queue(&self, queue: &str, priority: u8) -> String {
        let below = self.steps.partition_point(|step| *step <= priority.min(PRIORITY_MAX));
        let step = if below == 0 { self.steps.last() } else { self.steps.get(below - 1) };
        match step {
            None | Some(0) => self.key(queue),
            Some(step) => format!("{}{queue}{}{step}", self.prefix, self.separator),
        }
    }

    /// All lists of a queue, the one to empty first at the front.
    pub fn queues(&self, queue: &str) -> Vec<String> {
        self.steps.iter().map(|step| self.queue(queue, *step)).collect()
    }

    /// The hash of messages that a worker holds: delivery tag to `[message, exchange, routing key]`.
    pub fn unacked(&self) -> String {
        self.key("unacked")
    }

    /// The sorted set of the same delivery tags, by the Unix time of their delivery.
    pub fn unacked_index(&self) -> String {
        self.key("unacked_index")
    }

    /// Where the result of a task is stored, and also the channel on which each of its changes is published.
    pub fn meta(&self, task_id: &str) -> String {
        format!("{}celery-task-meta-{task_id}", self.results)
    }

    /// Where the results of a group are named, and the start of the keys of its chord.
    pub fn group(&self, group_id: &str) -> String {
        format!("{}celery-taskset-meta-{group_id}", self.results)
    }

    /// The channel of a fanout exchange in the database `db`.
    pub fn fanout(&self, db: i64, exchange: &str) -> String {
        format!("{}/{db}.{exchange}", self.prefix)
    }

    /// The set of queues that are bound to an exchange.
    pub fn bindings(&self, exchange: &str) -> String {
        format!("{}_kombu.binding.{exchange}", self.prefix)
    }

    /// A member of the set of [`Keyspace::bindings`].
    pub fn binding(&self, routing_key: &str, queue: &str) -> String {
        format!("{routing_key}{0}{0}{queue}", self.separator)
    }
}

/// [`Keyspace::queue`] of an application without settings.
pub fn queue_key(queue: &str, priority: u8) -> String {
    Keyspace::default().queue(queue, priority)
}

/// [`Keyspace::meta`] of an application without settings.
pub fn meta_key(task_id: &str) -> String {
    Keyspace::default().meta(task_id)
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
        assert_eq!(Keyspace::default().queues("q"), ["q", "q\x06\x163", "q\x06\x166", "q\x06\x169"]);
    }

    #[test]
    fn settings_change_the_names() {
        let names = Keyspace {
            prefix: "x:".to_owned(),
            separator: ":".to_owned(),
            steps: vec![2, 5],
            results: "r_".to_owned(),
        };
        assert_eq!(names.queues("q"), ["x:q:2", "x:q:5"]);
        assert_eq!((names.queue("q", 4), names.queue("q", 0)), ("x:q:2".to_owned(), "x:q:5".to_owned()));
        assert_eq!(names.meta("1"), "r_celery-task-meta-1");
        assert_eq!((names.fanout(3, "e"), names.bindings("e")), ("x:/3.e".to_owned(), "x:_kombu.binding.e".to_owned()));
        assert_eq!(names.binding("k", "q"), "k::q");
    }
}
