//! The flags that say what an executor carries for a job. A miner has them too, and hands them on.

use super::values::Hidden;
use crate::miner::ExecutorSettings;
use crate::net::proxy::{Proxies, Proxy};
use crate::net::reach::{Network, Reach};

/// Where volumes and uploads of jobs may lead, and with whose credentials.
#[derive(Debug, clap::Args)]
pub(super) struct TransferArgs {
    /// A network that the addresses in jobs (volumes, uploads, registries) may lead to, as 10.0.0.0/8, beside global
    /// unicast; may be repeated
    #[arg(long, value_name = "CIDR", env = "PHALANX_REACH", value_delimiter = ',')]
    reach: Vec<Network>,
    /// How volumes and uploads get out: environment (HTTPS_PROXY, HTTP_PROXY and NO_PROXY are followed), none, or the
    /// proxy for all, as http://user:password@host:port; in the variable the password is hidden from other users
    #[arg(
        long,
        value_name = "WHICH|URL",
        default_value = "environment",
        env = "PHALANX_TRANSFER_PROXY",
        hide_env_values = true,
        value_parser = Hidden::parse
    )]
    transfer_proxy: Hidden,
    /// Let Hugging Face volumes without a token of their own use the one in HF_TOKEN
    #[arg(long, env = "PHALANX_HUGGING_FACE_TOKEN_FOR_JOBS")]
    pub(super) hugging_face_token_for_jobs: bool,
}

impl TransferArgs {
    pub(super) fn reach(&self) -> Reach {
        Reach::Global(self.reach.clone())
    }

    /// Which proxies volumes and uploads use.
    ///
    /// # Errors
    /// One line that names the flag or the variable, without a password.
    pub(super) fn proxies(&self) -> Result<Proxies, String> {
        proxies("--transfer-proxy", &self.transfer_proxy)
    }

    /// Tells executors the same.
    pub(super) fn hand_on(&self, settings: &mut ExecutorSettings) {
        let Self { reach, transfer_proxy, hugging_face_token_for_jobs } = self;
        settings.set("PHALANX_TRANSFER_PROXY", transfer_proxy.0.clone());
        if !reach.is_empty() {
            let reach: Vec<String> = reach.iter().map(Network::to_string).collect();
            settings.set("PHALANX_REACH", reach.join(","));
        }
        settings.set("PHALANX_HUGGING_FACE_TOKEN_FOR_JOBS", hugging_face_token_for_jobs.to_string());
    }
}

/// The proxies that a flag names: `environment`, `none`, or one for all.
///
/// # Errors
/// One line that names the flag or the variable, without a password.
pub(super) fn proxies(flag: &str, Hidden(which): &Hidden) -> Result<Proxies, String> {
    match which.as_str() {
        "environment" => Proxies::of_variables(|name| std::env::var(name).ok()),
        "none" => Ok(Proxies::none()),
        url => Proxy::parse(url).map(Proxies::all).map_err(|e| format!("{flag}: {e}, environment or none")),
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
