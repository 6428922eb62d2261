//! The flags of a miner about the security checks of its hosts.

use std::time::Duration;

use super::values::duration;
use crate::executor::sandbox::Sandbox;
use crate::miner::executor_manager::{Probe, RareChecks, SecurityChecks, ToolkitVersion};
use crate::proc::docker::Docker;
use crate::protocol::ExecutorClass;

/// The longest time from a failed check to the next: an operator who has mended something does not wait for long.
const RETRY_MAX: Duration = Duration::from_secs(600);

/// What is checked of hosts, every few hours.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct SecurityArgs {
    /// Image of a container that tries to get out of a job's sandbox; only while it ends with exit code 0, jobs run
    #[arg(long, value_name = "IMAGE", env = "PHALANX_PROBE_IMAGE")]
    probe_image: Option<String>,
    /// What that container must also write
    #[arg(long, value_name = "TEXT", requires = "probe_image", env = "PHALANX_PROBE_SAYS")]
    probe_says: Option<String>,
    /// Least version of NVIDIA's container toolkit where jobs have GPUs, or none
    #[arg(
        long,
        value_name = "VERSION",
        default_value_t = Toolkit(Some(ToolkitVersion::SAFE)),
        value_parser = toolkit,
        env = "PHALANX_NVIDIA_TOOLKIT"
    )]
    nvidia_toolkit: Toolkit,
    /// How often these are checked
    #[arg(long, value_name = "DUR", default_value = "6h", value_parser = duration, env = "PHALANX_SECURITY_INTERVAL")]
    security_interval: Duration,
}

/// A least version, or that none is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Toolkit(Option<ToolkitVersion>);

impl std::fmt::Display for Toolkit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(version) => version.fmt(f),
            None => f.write_str("none"),
        }
    }
}

fn toolkit(text: &str) -> Result<Toolkit, String> {
    match text {
        "none" => Ok(Toolkit(None)),
        version => version
            .parse()
            .map(|version| Toolkit(Some(version)))
            .map_err(|_| format!("it should be a version, as {}, or none", ToolkitVersion::SAFE)),
    }
}

impl SecurityArgs {
    /// What is checked of an engine where jobs have these sandboxes, if anything is.
    pub(super) fn checks(&self, docker: Docker, sandboxes: &[(ExecutorClass, Sandbox)]) -> Option<SecurityChecks> {
        let times = RareChecks { interval: self.security_interval, retry: self.security_interval.min(RETRY_MAX) };
        let mut checks = SecurityChecks::new(docker, times);
        if let Some(image) = &self.probe_image {
            let probe = |options| Probe { image: image.clone(), says: self.probe_says.clone(), options };
            let mut options: Vec<Vec<String>> = sandboxes.iter().map(|(_, sandbox)| sandbox.arguments()).collect();
            // Classes often have the same.
            options.sort();
            options.dedup();
            checks.probes = options.into_iter().map(probe).collect();
        }
        if sandboxes.iter().any(|(_, sandbox)| sandbox.gpus) {
            checks.toolkit = self.nvidia_toolkit.0;
        }
        (!checks.probes.is_empty() || checks.toolkit.is_some()).then_some(checks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        security: SecurityArgs,
    }

    #[test]
    fn versions_are_read_and_a_text_needs_a_probe() {
        let parse = |arguments: &[&str]| {
            Line::try_parse_from([&["x"], arguments].concat()).map(|line| line.security.nvidia_toolkit.to_string())
        };
        assert_eq!(parse(&[]).unwrap(), "1.17.8");
        assert_eq!(parse(&["--nvidia-toolkit", "v1.18"]).unwrap(), "1.18.0");
        assert_eq!(parse(&["--nvidia-toolkit", "none"]).unwrap(), "none");
        let problem = parse(&["--nvidia-toolkit", "new"]).unwrap_err().to_string();
        assert!(problem.contains("it should be a version, as 1.17.8, or none"), "{problem}");
        assert!(parse(&["--probe-says", "Contained"]).is_err());
        assert!(parse(&["--probe-says", "Contained", "--probe-image", "probe:1"]).is_ok());
    }
}
