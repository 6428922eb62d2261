//! Keys beside our queues that tell of producers with other settings, whose tasks would wait for ever in lists that
//! nobody reads. Pure.

use std::collections::BTreeMap;

use crate::celery::keys::Keyspace;

/// Keys that one look asks Redis to pass over: some 3 ms of it, so a million keys take a hundred looks.
pub(super) const KEYS_AT_ONCE: usize = 10_000;

/// Keys that are told of.
const MOST_TOLD: usize = 100;

/// How far the keys were looked through, and what was found.
#[derive(Debug, Default)]
pub(super) struct Siblings {
    /// Where the next look goes on.
    cursor: String,
    /// The queue whose keys it looks for, by its place.
    queue: usize,
    /// The keys, each with what it tells.
    told: BTreeMap<String, String>,
}

impl Siblings {
    /// What the next look asks for: a cursor of `SCAN` and a pattern.
    pub(super) fn next(&self, queues: &[String]) -> (String, String) {
        let cursor = if self.cursor.is_empty() { "0" } else { &self.cursor };
        let queue = queues.get(self.queue).map_or("", String::as_str);
        let escaped: String =
            queue.chars().flat_map(|c| "*?[]^\\".contains(c).then_some('\\').into_iter().chain([c])).collect();
        (cursor.to_owned(), format!("*{escaped}*"))
    }

    /// What a look has found: where to go on, and keys; gives what is new of it.
    pub(super) fn found(
        &mut self,
        cursor: String,
        keys: Vec<String>,
        queues: &[String],
        names: &Keyspace,
    ) -> Vec<String> {
        let Some(queue) = queues.get(self.queue) else {
            // It is served no more.
            (self.queue, self.cursor) = (0, String::new());
            return Vec::new();
        };
        let mut new = Vec::new();
        for key in keys {
            if !self.told.contains_key(&key)
                && self.told.len() < MOST_TOLD
                && let Some(tells) = judge(&key, queue, names)
            {
                new.push(tells.clone());
                self.told.insert(key, tells);
            }
        }
        if cursor == "0" {
            self.queue = (self.queue + 1) % queues.len();
        }
        self.cursor = cursor;
        new
    }

    /// All that was found.
    pub(super) fn told(&self) -> Vec<String> {
        self.told.values().cloned().collect()
    }
}

/// What a key tells of another's settings.
fn judge(key: &str, queue: &str, names: &Keyspace) -> Option<String> {
    if let Some(prefix) = key.strip_suffix(&*Keyspace::default().bindings(queue)) {
        return (prefix != names.prefix()).then(|| {
            let ours = names.prefix();
            format!("{key:?}: others use the queue {queue:?} with global_keyprefix {prefix:?}; here it is {ours:?}")
        });
    }
    let rest = key.strip_prefix(&*names.key(queue))?;
    let separator = rest.trim_end_matches(|c: char| c.is_ascii_digit());
    let step = rest[separator.len()..].parse::<u8>().ok()?;
    if separator.is_empty() || separator.chars().any(char::is_alphanumeric) {
        return None;
    }
    if separator != names.separator() {
        let ours = names.separator();
        return Some(format!("{key:?}: others use the queue {queue:?} with sep {separator:?}; here it is {ours:?}"));
    }
    (!names.steps().contains(&step)).then(|| {
        let ours = names.steps();
        format!("{key:?}: others use the queue {queue:?} with a priority step {step}; here they are {ours:?}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_tells_of_other_settings_is_told_and_once() {
        let (names, queues) = (Keyspace::default(), ["q".to_owned(), "r*".to_owned()]);
        let mut siblings = Siblings::default();
        assert_eq!(siblings.next(&queues), ("0".to_owned(), "*q*".to_owned()));
        let keys = ["q:5", "q\x06\x165", "q\x06\x163", "q", "q5", "q:mine:5", "x:_kombu.binding.q", "_kombu.binding.q"];
        let keys = || keys.map(str::to_owned).to_vec();
        let found = siblings.found("7".to_owned(), keys(), &queues, &names);
        assert_eq!(found.len(), 3, "{found:?}");
        for (tells, of) in found.iter().zip(["sep \":\"", "priority step 5", "global_keyprefix \"x:\""]) {
            assert!(tells.contains(of), "{tells}");
        }
        assert_eq!(siblings.next(&queues).0, "7");
        assert!(siblings.found("0".to_owned(), keys(), &queues, &names).is_empty());
        assert_eq!((siblings.next(&queues), siblings.told().len()), (("0".to_owned(), "*r\\**".to_owned()), 3));
    }
}
