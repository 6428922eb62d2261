//! How much the peers of a facilitator or miner may say, as flags.

use super::values::rate;
use crate::link::{PeerRates, Rate};

/// The flags.
#[derive(Debug, clap::Args)]
pub(super) struct RateArgs {
    /// Connections of one address; more are refused with HTTP 429
    #[arg(long, value_name = "N/DUR", default_value = "4000/10s", value_parser = rate, env = "PHALANX_HANDSHAKE_RATE")]
    pub(super) handshake_rate: Rate,
    /// Messages of one peer; one that sends more is told so, and its connection is closed with code 4029
    #[arg(long, value_name = "N/DUR", default_value = "5000/1s", value_parser = rate, env = "PHALANX_FRAME_RATE")]
    frame_rate: Rate,
    /// Messages of one peer that are none of the protocol
    #[arg(long, value_name = "N/DUR", default_value = "30/60s", value_parser = rate, env = "PHALANX_BAD_FRAME_RATE")]
    bad_frame_rate: Rate,
    /// Authentications of one validator
    #[arg(long, value_name = "N/DUR", default_value = "2000/10s", value_parser = rate, env = "PHALANX_AUTH_RATE")]
    auth_rate: Rate,
}

impl RateArgs {
    /// The flags with what they say.
    pub(super) fn flags(&self) -> [(&'static str, String); 4] {
        [
            ("--handshake-rate", format!("{:?}", self.handshake_rate)),
            ("--frame-rate", format!("{:?}", self.frame_rate)),
            ("--bad-frame-rate", format!("{:?}", self.bad_frame_rate)),
            ("--auth-rate", format!("{:?}", self.auth_rate)),
        ]
    }

    /// Those of one peer.
    pub(super) fn of_peers(&self) -> PeerRates {
        PeerRates { frames: self.frame_rate, bad_frames: self.bad_frame_rate, authentications: self.auth_rate }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::link::ServerConfig;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        rates: RateArgs,
    }

    #[test]
    fn the_flags_have_the_defaults_of_the_library() {
        let Flags { rates } = Flags::parse_from(["phalanx"]);
        assert_eq!(
            (rates.of_peers(), rates.handshake_rate),
            (PeerRates::default(), ServerConfig::new("min").places.connects)
        );
        let Flags { rates } = Flags::parse_from(["phalanx", "--bad-frame-rate", "3/1m"]);
        assert_eq!(rates.of_peers().bad_frames, Rate::new(3, std::time::Duration::from_secs(60)));
    }
}
