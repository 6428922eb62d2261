//! `--connections`: how many connections a server has, and whether there are file descriptors for them.

use clap::{Args, value_parser};
use rustix::process::{Resource, getrlimit};

/// Descriptors that a role may have beside those of its connections: 256 of HTTP clients, as many of connections that
/// are about to go (in a flood more; then accepting waits), and a few of databases, logs and engines.
const OTHERS: u64 = 556;

/// Connections that a server has at least, however low the limit of open files is.
const FEWEST: usize = 16;

/// How many connections a server has.
#[derive(Debug, Args)]
pub(super) struct ConnectionsArg {
    /// Connections at a time, further ones are refused; each takes a file descriptor. Without it 10000 (a miner: 1000
    /// more, for its executors), or as many as the limit of open files has room for
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=100_000), env = "PHALANX_CONNECTIONS")]
    connections: Option<u32>,
}

impl ConnectionsArg {
    /// The flag with its value, for comparison.
    pub(super) fn flag(&self) -> (&'static str, String) {
        ("--connections", format!("{:?}", self.connections))
    }

    /// So many as were asked for, or as are `usual`; checked against the limit of open files.
    pub(super) fn places(&self, usual: usize) -> Result<usize, String> {
        let asked = self.connections.map(|asked| usize::try_from(asked).unwrap_or(usize::MAX));
        fitting(asked, usual, getrlimit(Resource::Nofile).current)
    }
}

fn fitting(asked: Option<usize>, usual: usize, descriptors: Option<u64>) -> Result<usize, String> {
    let Some(descriptors) = descriptors else { return Ok(asked.unwrap_or(usual)) };
    let room = usize::try_from(descriptors.saturating_sub(OTHERS)).unwrap_or(usize::MAX);
    match asked {
        Some(asked) if asked > room => Err(format!(
            "--connections {asked}: there is room for {room}, because the limit of open files is {descriptors}; raise \
             it (ulimit -n, LimitNOFILE=), or ask for fewer"
        )),
        Some(asked) => Ok(asked),
        None if usual > room => {
            let room = room.max(FEWEST);
            log::warn!("connections at a time: {room}, because the limit of open files is {descriptors}");
            Ok(room)
        }
        None => Ok(usual),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_must_fit_into_the_limit_of_open_files_and_the_usual_number_is_made_to() {
        assert_eq!(fitting(Some(5000), 10_000, Some(65_536)), Ok(5000));
        assert_eq!(fitting(Some(5000), 10_000, None), Ok(5000));
        let why = fitting(Some(5000), 10_000, Some(1024)).unwrap_err();
        assert!(why.contains("room for 468") && why.contains("ulimit -n"), "{why}");
        assert_eq!(fitting(None, 10_000, Some(1024)), Ok(468));
        assert_eq!(fitting(None, 10_000, Some(64)), Ok(FEWEST));
        assert_eq!(fitting(None, 10_000, None), Ok(10_000));
    }
}
