//! Memory for the messages that all peers of a server have begun and not ended. Pure: no thread, no lock, no clock.
//!
//! Who would exceed it waits until the oldest begun message has gone: that one's connection is closed. So whoever
//! begins messages and does not end them has the memory for as long as nobody else needs it.

use std::collections::BTreeMap;

/// What becomes of a request for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grant {
    /// It is given.
    Given,
    /// It is not there; this connection is to go, and then it is asked again.
    After(u64),
    /// It is not there, and others go already; it is asked again when one has gone.
    Wait,
    /// It is not there, and the one who asks has the oldest message: it goes.
    Go,
}

#[derive(Debug)]
struct Begun {
    /// The connection.
    id: u64,
    bytes: usize,
    goes: bool,
}

/// The memory of one server.
#[derive(Debug)]
pub(super) struct Receiving {
    limit: usize,
    used: usize,
    /// By age.
    begun: BTreeMap<u64, Begun>,
    age: u64,
}

impl Receiving {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, used: 0, begun: BTreeMap::new(), age: 0 }
    }

    /// Connection `id` needs so many bytes more for its present message, whose age it gives if it has one.
    pub(super) fn ask(&mut self, id: u64, age: &mut Option<u64>, bytes: usize) -> Grant {
        if age.and_then(|age| self.begun.get(&age)).is_some_and(|begun| begun.goes) {
            return Grant::Go;
        }
        if self.used + bytes <= self.limit {
            let own = *age.get_or_insert_with(|| {
                self.age += 1;
                self.age
            });
            self.begun.entry(own).or_insert(Begun { id, bytes: 0, goes: false }).bytes += bytes;
            self.used += bytes;
            return Grant::Given;
        }
        let going: usize = self.begun.values().filter(|begun| begun.goes).map(|begun| begun.bytes).sum();
        if self.used - going + bytes <= self.limit {
            return Grant::Wait;
        }
        match self.begun.iter_mut().find(|(_, begun)| !begun.goes) {
            Some((oldest, begun)) => {
                begun.goes = true;
                if Some(*oldest) == *age { Grant::Go } else { Grant::After(begun.id) }
            }
            // More than there is in all.
            None => Grant::Go,
        }
    }

    /// The message of this age has ended, or its connection has.
    pub(super) fn end(&mut self, age: u64) {
        self.used -= self.begun.remove(&age).map_or(0, |begun| begun.bytes);
    }

    pub(super) fn used(&self) -> usize {
        self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    #[test]
    fn the_oldest_begun_message_goes_for_a_younger_one() {
        let mut receiving = Receiving::new(10);
        let (mut one, mut two, mut three) = (None, None, None);
        assert_eq!(receiving.ask(1, &mut one, 6), Grant::Given);
        assert_eq!(receiving.ask(2, &mut two, 4), Grant::Given);
        assert_eq!(receiving.ask(3, &mut three, 5), Grant::After(1));
        assert_eq!(receiving.ask(3, &mut three, 5), Grant::Wait, "one goes already");
        assert_eq!(receiving.ask(1, &mut one, 1), Grant::Go);
        receiving.end(one.unwrap());
        assert_eq!(receiving.ask(3, &mut three, 5), Grant::Given);
        assert_eq!(receiving.ask(2, &mut two, 4), Grant::Go, "it is the oldest itself");
        receiving.end(two.unwrap());
        receiving.end(three.unwrap());
        assert_eq!(receiving.used(), 0);
        assert_eq!(receiving.ask(4, &mut None, 11), Grant::Go);
    }

    #[test]
    fn over_random_steps_the_limit_holds_and_whoever_ends_its_message_gets_on() {
        let seed = Rng::from_entropy().next_u64();
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        let mut receiving = Receiving::new(100);
        let mut ages = [None; 16];
        let mut given = [0; 16];
        for _ in 0..50_000 {
            let who = (rng.next_u64() % 16) as usize;
            let bytes = 1 + (rng.next_u64() % 25) as usize;
            match receiving.ask(who as u64, &mut ages[who], bytes) {
                Grant::Given => given[who] += 1,
                Grant::Go => ages[who].take().into_iter().for_each(|age| receiving.end(age)),
                Grant::After(victim) if rng.one_in(2) => {
                    ages[victim as usize].take().into_iter().for_each(|age| receiving.end(age));
                }
                Grant::After(_) | Grant::Wait => {}
            }
            if rng.one_in(7) {
                ages[who].take().into_iter().for_each(|age| receiving.end(age));
            }
            assert!(receiving.used() <= 100);
            assert_eq!(receiving.used(), receiving.begun.values().map(|begun| begun.bytes).sum::<usize>());
        }
        assert!(given.iter().all(|given| *given > 100), "{given:?}");
    }
}
