//! Who has a place at a server, and who goes when there is none left. Pure: no thread, no lock, no clock.
//!
//! * A connection is a stranger until its role knows whose it is. All strangers together have a share of the places, so
//!   the rest is kept for those who are known, and the strangers of one address have a share of that one.
//! * When the strangers' share, or the server, is full, the oldest stranger goes to make room for a new one. Nobody who
//!   is known is ever closed for somebody who is not.
//! * An address that is over its own share gets no further place, and pushes nobody out. Nor does one that connects too
//!   often: to close and to come again does not help.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::rate::{Buckets, Rate};

/// Connections that were told to go and have not gone yet, at most: each still has its socket, and a thread if it is
/// one of the first, and ends within milliseconds of its kick, unless many come at once. As long as there are so many,
/// newcomers are refused instead.
const GOING: usize = 1024;

/// Whose an address counts as: without its port, and a network of 64 bits for IPv6, because whoever has one has them
/// all.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    /// An IPv4 address, or the beginning of an IPv6 network.
    Address(IpAddr),
    /// A peer without one, as in memory.
    Named(String),
}

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) >> 64 << 64).into(),
            v4 => v4,
        })
    }
}

impl Origin {
    /// Of an address with its port, or of a name.
    pub(crate) fn of(peer: &str) -> Self {
        match peer.parse::<SocketAddr>() {
            Ok(address) => address.ip().into(),
            Err(_) => Self::Named(peer.to_owned()),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

/// How many connections a server has places for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlaceLimits {
    /// In all.
    pub total: usize,
    /// Of those, for strangers; the rest is kept for those who are known.
    pub strangers: usize,
    /// Of those, for the strangers of one address.
    pub address: usize,
    /// How often one address may connect.
    pub connects: Rate,
    /// Connections without a place that are told why, each by a thread; still further ones are just closed.
    pub turned_away: usize,
}

/// Why a connection has no place, or has lost it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoPlace {
    /// Everybody in it is known, or has just been told to go.
    Full,
    /// Its address has as many strangers as it may.
    Address,
    /// Its address connects too often.
    Rate,
    /// The system has no thread for it.
    Thread,
    /// It was the oldest stranger when another one came.
    Oldest,
    /// It has not said in time who it is.
    Late,
    /// It has sent too much of a message, with all the others, without its end.
    Memory,
}

impl NoPlace {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Full, Self::Address, Self::Rate, Self::Thread, Self::Oldest, Self::Late, Self::Memory];

    /// In a word, as in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Address => "address",
            Self::Rate => "rate",
            Self::Thread => "no_thread",
            Self::Oldest => "oldest_stranger",
            Self::Late => "late",
            Self::Memory => "memory",
        }
    }
}

/// What becomes of a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// It has a place.
    Taken,
    /// It has one, and this connection is to be closed for it.
    InPlaceOf(u64),
    /// It has none.
    Refused(NoPlace),
}

/// How many places are taken, and who had none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaceCounts {
    /// The limits.
    pub limits: PlaceLimits,
    /// Connections that are served.
    pub taken: usize,
    /// Of those, strangers.
    pub strangers: usize,
    /// Connections that had no place or have lost it, since the start, by reason.
    pub refused: BTreeMap<NoPlace, u64>,
}

impl PlaceCounts {
    /// As `/status.json` shows them.
    pub fn json(&self) -> Value {
        let Self { limits: PlaceLimits { total, strangers: share, address, .. }, taken, strangers, refused } = self;
        let refused: Map<_, _> =
            refused.iter().map(|(why, count)| (why.as_str().to_owned(), (*count).into())).collect();
        json!({
            "taken": taken, "places": total, "strangers": strangers, "strangers_places": share,
            "strangers_of_one_address": address, "refused": refused,
        })
    }
}

/// One connection that has a place, or had one until it was told to go.
#[derive(Debug)]
struct Visitor {
    origin: Origin,
    /// Its place among the strangers, by age, if it is one.
    stranger: Option<u64>,
    going: bool,
}

/// The places of one server.
#[derive(Debug)]
pub(crate) struct Places {
    limits: PlaceLimits,
    visitors: HashMap<u64, Visitor>,
    /// Strangers that were not told to go, the oldest first.
    strangers: BTreeMap<u64, u64>,
    /// How many of them each address has.
    of_address: HashMap<Origin, usize>,
    going: usize,
    turned_away: HashSet<u64>,
    connects: Buckets<Origin>,
    /// Strangers so far.
    age: u64,
    refused: BTreeMap<NoPlace, u64>,
}

impl Places {
    /// All free.
    pub(crate) fn new(limits: PlaceLimits) -> Self {
        Self {
            limits,
            visitors: HashMap::new(),
            strangers: BTreeMap::new(),
            of_address: HashMap::new(),
            going: 0,
            turned_away: HashSet::new(),
            connects: Buckets::new(limits.connects),
            age: 0,
            refused: BTreeMap::new(),
        }
    }

    /// A connection comes, as a stranger. A number is not used twice.
    pub(crate) fn enter(&mut self, id: u64, origin: Origin, now: Instant) -> Entry {
        if !self.connects.take(origin.clone(), now) {
            return self.refuse(NoPlace::Rate);
        }
        if self.of_address.get(&origin).is_some_and(|count| *count >= self.limits.address) {
            return self.refuse(NoPlace::Address);
        }
        let mut entry = Entry::Taken;
        if self.strangers.len() >= self.limits.strangers || self.taken() >= self.limits.total {
            let oldest = self.strangers.first_key_value().map(|(_, id)| *id).filter(|_| self.going < GOING);
            let Some(oldest) = oldest else { return self.refuse(NoPlace::Full) };
            self.send_away(oldest);
            self.count(NoPlace::Oldest);
            entry = Entry::InPlaceOf(oldest);
        }
        self.visitors.insert(id, Visitor { origin, stranger: None, going: false });
        self.stranger(id);
        entry
    }

    /// Whether a connection that was refused is told why; it counts as turned away until it has [left](Self::left).
    pub(crate) fn turn_away(&mut self, id: u64) -> bool {
        let room = self.turned_away.len() < self.limits.turned_away;
        if room {
            self.turned_away.insert(id);
        }
        room
    }

    /// It is known now whose this connection is.
    pub(crate) fn known(&mut self, id: u64) {
        if self.visitors.get(&id).is_some_and(|visitor| !visitor.going) {
            self.no_stranger(id);
        }
    }

    /// It is not known any more, as between two requests: it is the youngest stranger now. The shares may be over by
    /// it, until it or others go; those who come anew make room first.
    pub(crate) fn stranger(&mut self, id: u64) {
        let Some(visitor) = self.visitors.get_mut(&id).filter(|visitor| !visitor.going && visitor.stranger.is_none())
        else {
            return;
        };
        self.age += 1;
        visitor.stranger = Some(self.age);
        *self.of_address.entry(visitor.origin.clone()).or_default() += 1;
        self.strangers.insert(self.age, id);
    }

    /// Whether one that is known may wait among the strangers: there is room left for those who come, half of its
    /// address's share.
    pub(crate) fn may_wait(&self, id: u64) -> bool {
        let waiting = |origin: &Origin| self.of_address.get(origin).copied().unwrap_or(0);
        let visitor = self.visitors.get(&id).filter(|visitor| !visitor.going);
        visitor.is_some_and(|visitor| waiting(&visitor.origin) < self.limits.address / 2)
    }

    /// The connection is over, and its thread ends.
    pub(crate) fn left(&mut self, id: u64) {
        self.no_stranger(id);
        if self.visitors.remove(&id).is_some_and(|visitor| visitor.going) {
            self.going -= 1;
        }
        self.turned_away.remove(&id);
    }

    /// Counts one that had no place or has lost it.
    pub(crate) fn count(&mut self, why: NoPlace) {
        *self.refused.entry(why).or_default() += 1;
    }

    /// Who is there.
    pub(crate) fn counts(&self) -> PlaceCounts {
        PlaceCounts {
            limits: self.limits,
            taken: self.taken(),
            strangers: self.strangers.len(),
            refused: self.refused.clone(),
        }
    }

    /// Connections that have a place; those that were told to go have none.
    fn taken(&self) -> usize {
        self.visitors.len() - self.going
    }

    fn refuse(&mut self, why: NoPlace) -> Entry {
        self.count(why);
        Entry::Refused(why)
    }

    fn send_away(&mut self, id: u64) {
        self.no_stranger(id);
        if let Some(visitor) = self.visitors.get_mut(&id) {
            visitor.going = true;
            self.going += 1;
        }
    }

    fn no_stranger(&mut self, id: u64) {
        let Some(visitor) = self.visitors.get_mut(&id) else { return };
        let Some(age) = visitor.stranger.take() else { return };
        self.strangers.remove(&age);
        if let Some(count) = self.of_address.get_mut(&visitor.origin) {
            *count -= 1;
            if *count == 0 {
                self.of_address.remove(&visitor.origin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::base::rng::Rng;

    const OFTEN: Rate = Rate::new(1_000_000, Duration::from_secs(1));

    fn limits(total: usize, strangers: usize, address: usize) -> PlaceLimits {
        PlaceLimits { total, strangers, address, connects: OFTEN, turned_away: 2 }
    }

    fn address(last: u8) -> Origin {
        IpAddr::from([10, 0, 0, last]).into()
    }

    #[test]
    fn the_oldest_stranger_goes_for_a_new_one_and_who_is_known_stays() {
        let (mut places, now) = (Places::new(limits(10, 3, 3)), Instant::now());
        for id in 1..=3 {
            assert_eq!(places.enter(id, address(id as u8), now), Entry::Taken);
        }
        places.known(1);
        assert_eq!(places.enter(4, address(4), now), Entry::Taken, "who is known has left the strangers' share");
        assert_eq!(places.enter(5, address(5), now), Entry::InPlaceOf(2));
        // What was told to go is not known any more, whatever it says still.
        places.known(2);
        assert_eq!(places.enter(6, address(6), now), Entry::InPlaceOf(3));
        let counts = places.counts();
        assert_eq!((counts.taken, counts.strangers, counts.refused[&NoPlace::Oldest]), (4, 3, 2));
        [2, 3].into_iter().for_each(|id| places.left(id));
        assert_eq!((places.visitors.len(), places.going), (4, 0));
        // Between two requests it is a stranger again, the youngest.
        places.left(4);
        places.stranger(1);
        assert_eq!(places.enter(7, address(7), now), Entry::InPlaceOf(5));
    }

    #[test]
    fn an_address_over_its_share_is_refused_and_pushes_nobody_out() {
        let (mut places, now) = (Places::new(limits(10, 4, 2)), Instant::now());
        let enter = |places: &mut Places, id| places.enter(id, address(1), now);
        assert_eq!([enter(&mut places, 1), enter(&mut places, 2)], [Entry::Taken; 2]);
        for id in [3, 4, 5] {
            assert_eq!(enter(&mut places, id), Entry::Refused(NoPlace::Address));
        }
        assert_eq!([places.turn_away(3), places.turn_away(4), places.turn_away(5)], [true, true, false]);
        places.left(3);
        assert!(places.turn_away(6));
        places.known(1);
        assert_eq!(enter(&mut places, 7), Entry::Taken);
        places.left(2);
        assert_eq!(enter(&mut places, 8), Entry::Taken);
    }

    #[test]
    fn a_server_full_of_those_who_are_known_refuses_and_strangers_share_the_last_place() {
        let (mut places, now) = (Places::new(limits(3, 3, 3)), Instant::now());
        for id in 1..=3 {
            assert_eq!(places.enter(id, address(1), now), Entry::Taken);
            places.known(id);
        }
        assert_eq!(places.enter(4, address(2), now), Entry::Refused(NoPlace::Full));
        places.left(3);
        assert_eq!(places.enter(5, address(2), now), Entry::Taken);
        assert_eq!(places.enter(6, address(3), now), Entry::InPlaceOf(5));
    }

    #[test]
    fn an_address_that_connects_too_often_is_refused_before_it_pushes_anybody_out() {
        let connects = Rate::new(5, Duration::from_secs(10));
        let mut places = Places::new(PlaceLimits { connects, ..limits(4, 2, 2) });
        let now = Instant::now();
        let honest = places.enter(0, address(9), now);
        assert_eq!(honest, Entry::Taken);
        let mut pushed = Vec::new();
        for id in 1..100 {
            match places.enter(id, address(1), now) {
                Entry::InPlaceOf(victim) => pushed.push(victim),
                Entry::Taken => {}
                Entry::Refused(why) => assert_eq!(why, NoPlace::Rate),
            }
            places.left(id);
        }
        assert_eq!((pushed, places.counts().refused[&NoPlace::Rate]), (Vec::new(), 94));
    }

    #[test]
    fn as_long_as_many_go_newcomers_are_refused() {
        let (mut places, now) = (Places::new(limits(200, 1, 1)), Instant::now());
        let count = GOING as u64;
        for id in 0..=count {
            assert_ne!(places.enter(id, address(id as u8), now), Entry::Refused(NoPlace::Full));
        }
        assert_eq!(places.enter(500, address(250), now), Entry::Refused(NoPlace::Full));
        places.left(0);
        assert_eq!(places.enter(501, address(251), now), Entry::InPlaceOf(count));
    }

    /// Whatever strangers do, no total is exceeded, who is known stays, and an honest peer gets in and is known.
    #[test]
    fn over_random_steps_no_share_is_exceeded_and_honest_peers_get_in() {
        let seed = Rng::from_entropy().next_u64();
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        let limits = limits(40, 12, 4);
        let (mut places, now) = (Places::new(limits), Instant::now());
        let (mut open, mut known) = (Vec::<u64>::new(), HashSet::<u64>::new());
        let (mut tries, mut in_at_once) = (0, 0);
        for id in 0..20_000_u64 {
            let (one, late) = (rng.next_u64(), rng.one_in(4));
            let entered = |places: &mut Places, id, origin, open: &mut Vec<u64>| {
                let entry = places.enter(id, origin, now);
                match entry {
                    Entry::Taken => open.push(id),
                    Entry::InPlaceOf(victim) => {
                        assert!(!known.contains(&victim), "{victim} was known and is closed for {id}");
                        assert!(open.contains(&victim), "{victim} has gone already");
                        open.retain(|id| *id != victim);
                        open.push(id);
                        // Its thread ends a little later.
                        if !late {
                            places.left(victim);
                        }
                    }
                    Entry::Refused(_) => {}
                }
                entry
            };
            match one % 10 {
                // Strangers of eight addresses come and stay silent.
                0..=5 => drop(entered(&mut places, id, address((one / 10 % 8) as u8), &mut open)),
                // An honest peer of an address of its own is known a moment later.
                6 => {
                    tries += 1;
                    if !matches!(entered(&mut places, id, address(200), &mut open), Entry::Refused(_)) {
                        in_at_once += 1;
                        places.known(id);
                        known.insert(id);
                    }
                }
                _ => {
                    if let Some(at) = (one as usize / 10).checked_rem(open.len()) {
                        let gone = open.swap_remove(at);
                        known.remove(&gone);
                        places.left(gone);
                    }
                }
            }
            if places.going > 32 {
                let gone: Vec<_> = places.visitors.iter().filter(|(_, v)| v.going).map(|(id, _)| *id).collect();
                gone.into_iter().for_each(|id| places.left(id));
            }
            let counts = places.counts();
            assert_eq!(counts.taken, open.len());
            assert!(counts.taken <= limits.total && counts.strangers <= limits.strangers, "{counts:?}");
            assert!(places.of_address.values().all(|count| *count <= limits.address));
            assert_eq!(places.of_address.values().sum::<usize>(), counts.strangers);
            assert_eq!(counts.strangers, counts.taken - known.len());
        }
        assert_eq!(tries, in_at_once, "an honest peer gets in at its first try");
    }

    #[test]
    fn an_address_counts_without_its_port_and_an_ipv6_network_as_one() {
        for (peer, shown) in [
            ("127.0.0.1:5000", "127.0.0.1"),
            ("127.0.0.2:5000", "127.0.0.2"),
            ("[::ffff:10.0.0.1]:1", "10.0.0.1"),
            ("[2001:db8:1:2:3:4:5:6]:1", "2001:db8:1:2::"),
            ("dialer of miner", "dialer of miner"),
        ] {
            assert_eq!(Origin::of(peer).to_string(), shown);
        }
    }
}
