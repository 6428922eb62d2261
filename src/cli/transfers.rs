//! The flags that say what an executor carries for a job. A miner has them too, and hands them on.

use crate::miner::ExecutorSettings;
use crate::net::reach::{Network, Reach};

/// Where volumes and uploads of jobs may lead, and with whose credentials.
#[derive(Debug, clap::Args)]
pub(super) struct TransferArgs {
    /// A network that the addresses in jobs (volumes, uploads, registries) may lead to, as 10.0.0.0/8, beside global
    /// unicast; may be repeated
    #[arg(long, value_name = "CIDR", env = "PHALANX_REACH", value_delimiter = ',')]
    reach: Vec<Network>,
    /// Let Hugging Face volumes without a token of their own use the one in HF_TOKEN
    #[arg(long, env = "PHALANX_HUGGING_FACE_TOKEN_FOR_JOBS")]
    pub(super) hugging_face_token_for_jobs: bool,
}

impl TransferArgs {
    pub(super) fn reach(&self) -> Reach {
        Reach::Global(self.reach.clone())
    }

    /// Tells executors the same.
    pub(super) fn hand_on(&self, settings: &mut ExecutorSettings) {
        let Self { reach, hugging_face_token_for_jobs } = self;
        if !reach.is_empty() {
            let reach: Vec<String> = reach.iter().map(Network::to_string).collect();
            settings.set("PHALANX_REACH", reach.join(","));
        }
        settings.set("PHALANX_HUGGING_FACE_TOKEN_FOR_JOBS", hugging_face_token_for_jobs.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        transfers: TransferArgs,
    }

    #[test]
    fn networks_are_checked_and_handed_on() {
        let parse = |arguments: &[&str]| Line::try_parse_from([&["x"], arguments].concat());
        let line = parse(&["--reach", "127.0.0.0/8", "--reach", "fd00::/8"]).unwrap();
        let mut settings = ExecutorSettings::default();
        line.transfers.hand_on(&mut settings);
        assert!(format!("{settings:?}").contains("\"PHALANX_REACH\", \"127.0.0.0/8,fd00::/8\""), "{settings:?}");
        assert!(line.transfers.reach().allows("127.0.0.1".parse().unwrap()));
        let error = parse(&["--reach", "10.0.0.1/8"]).unwrap_err().to_string();
        assert!(error.contains("--reach") && error.contains("should it be 10.0.0.0/8?"), "{error}");
    }
}
