//! How much one peer may say. Pure: `now` is an argument.
//!
//! A peer is known by its name and its address together: whoever connects with another's hotkey in its path, before it
//! has to show that it is its own, takes nothing from that one.

use std::sync::Arc;
use std::time::Instant;

use super::config::PeerRates;
use super::router::{OverRate, Peer};
use crate::link::rate::Buckets;

/// Who is counted.
pub(super) type Source = Arc<(Peer, String)>;

/// What each peer has said.
#[derive(Debug)]
pub(super) struct Said {
    frames: Buckets<Source>,
    bad_frames: Buckets<Source>,
    authentications: Buckets<Source>,
}

impl Said {
    pub(super) fn new(rates: PeerRates) -> Self {
        Self {
            frames: Buckets::new(rates.frames),
            bad_frames: Buckets::new(rates.bad_frames),
            authentications: Buckets::new(rates.authentications),
        }
    }

    /// A text came, which is still to be read.
    pub(super) fn frame(&mut self, who: &Source, now: Instant) -> Result<(), OverRate> {
        take(&mut self.frames, "frames", who, now)
    }

    /// It was none of the protocol.
    pub(super) fn bad_frame(&mut self, who: &Source, now: Instant) -> Result<(), OverRate> {
        take(&mut self.bad_frames, "bad_frames", who, now)
    }

    /// It was an authentication.
    pub(super) fn authentication(&mut self, who: &Source, now: Instant) -> Result<(), OverRate> {
        take(&mut self.authentications, "authentications", who, now)
    }
}

fn take(buckets: &mut Buckets<Source>, what: &'static str, who: &Source, now: Instant) -> Result<(), OverRate> {
    if buckets.take(who.clone(), now) { Ok(()) } else { Err(OverRate { what, rate: buckets.rate() }) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::link::rate::Rate;

    #[test]
    fn a_peer_is_counted_by_its_name_and_its_address() {
        let second = Duration::from_secs(1);
        let rates = PeerRates { bad_frames: Rate::new(1, second), ..PeerRates::default() };
        let (mut said, now) = (Said::new(rates), Instant::now());
        let peer = |name: &str, address: &str| Arc::new((Peer::Validator(name.to_owned()), address.to_owned()));
        let [alice, elsewhere, bob] = [peer("5A", "10.0.0.1"), peer("5A", "10.0.0.2"), peer("5B", "10.0.0.1")];
        said.bad_frame(&alice, now).unwrap();
        let over = said.bad_frame(&peer("5A", "10.0.0.1"), now).unwrap_err();
        assert_eq!((over.what, over.to_string().as_str()), ("bad_frames", "more than 1 bad frames in 1s"));
        for other in [elsewhere, bob] {
            said.bad_frame(&other, now).unwrap();
        }
        said.frame(&alice, now).unwrap();
        said.authentication(&alice, now).unwrap();
    }
}
