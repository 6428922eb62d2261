//! How much one peer may say, over all its connections. Pure: `now` is an argument.
//!
//! Whose a connection is, its server decides, as by a name and an address together: then whoever takes another's name,
//! before it has to show that it is its own, takes nothing from that one.

use std::fmt;
use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::net::rate::{Buckets, Rate};

/// Close code for a peer that says more than it may (RFC 6455 leaves 4000 to 4999 to us; 429 is HTTP's).
pub const CLOSE_OVER_RATE: u16 = 4029;

/// The rates of one peer, over all its connections from one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerRates {
    /// Of texts. A job takes a validator five at a miner, and eight at a facilitator; an executor six.
    pub frames: Rate,
    /// Of texts that are no message of the protocol.
    pub bad_frames: Rate,
    /// Of authentications; a validator may have a connection to a miner for each job.
    pub authentications: Rate,
}

impl Default for PeerRates {
    /// 5,000 frames in 1 s, 30 bad ones in 60 s, 2,000 authentications in 10 s: twice what one validator needs that
    /// asks all of 1,000 executors at once.
    fn default() -> Self {
        Self {
            frames: Rate::new(5000, Duration::from_secs(1)),
            bad_frames: Rate::new(30, Duration::from_secs(60)),
            authentications: Rate::new(2000, Duration::from_secs(10)),
        }
    }
}

/// A peer has said too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverRate {
    /// Of what, as in metrics: `frames`, `bad_frames` or `authentications`.
    pub what: &'static str,
    /// What would be right.
    pub rate: Rate,
}

impl fmt::Display for OverRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "more than {} {} in {:?}", self.rate.count, self.what.replace('_', " "), self.rate.period)
    }
}

/// What each peer has said; `K` is who is counted.
#[derive(Debug)]
pub struct Said<K> {
    frames: Buckets<K>,
    bad_frames: Buckets<K>,
    authentications: Buckets<K>,
}

impl<K: Clone + Eq + Hash> Said<K> {
    /// Nobody has said anything.
    pub fn new(rates: PeerRates) -> Self {
        Self {
            frames: Buckets::new(rates.frames),
            bad_frames: Buckets::new(rates.bad_frames),
            authentications: Buckets::new(rates.authentications),
        }
    }

    /// A text came, which is still to be read.
    ///
    /// # Errors
    /// If it is one too many.
    pub fn frame(&mut self, who: &K, now: Instant) -> Result<(), OverRate> {
        take(&mut self.frames, "frames", who, now)
    }

    /// It was none of the protocol.
    ///
    /// # Errors
    /// If it is one too many.
    pub fn bad_frame(&mut self, who: &K, now: Instant) -> Result<(), OverRate> {
        take(&mut self.bad_frames, "bad_frames", who, now)
    }

    /// It was an authentication.
    ///
    /// # Errors
    /// If it is one too many.
    pub fn authentication(&mut self, who: &K, now: Instant) -> Result<(), OverRate> {
        take(&mut self.authentications, "authentications", who, now)
    }
}

fn take<K: Clone + Eq + Hash>(
    buckets: &mut Buckets<K>,
    what: &'static str,
    who: &K,
    now: Instant,
) -> Result<(), OverRate> {
    if buckets.take(who.clone(), now) { Ok(()) } else { Err(OverRate { what, rate: buckets.rate() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_counted_by_its_name_and_its_address() {
        let second = Duration::from_secs(1);
        let rates = PeerRates { bad_frames: Rate::new(1, second), ..PeerRates::default() };
        let (mut said, now) = (Said::new(rates), Instant::now());
        let [alice, elsewhere, bob] = [("5A", "10.0.0.1"), ("5A", "10.0.0.2"), ("5B", "10.0.0.1")];
        said.bad_frame(&alice, now).unwrap();
        let over = said.bad_frame(&("5A", "10.0.0.1"), now).unwrap_err();
        assert_eq!((over.what, over.to_string().as_str()), ("bad_frames", "more than 1 bad frames in 1s"));
        for other in [elsewhere, bob] {
            said.bad_frame(&other, now).unwrap();
        }
        said.frame(&alice, now).unwrap();
        said.authentication(&alice, now).unwrap();
    }
}
