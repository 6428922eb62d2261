//! The flags that say who the miners are, the same in every command that has miners.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::tls;
use super::values::{duration, secret_file_or_address};
use crate::app::supervise::Env;
use crate::base::shutdown::Shutdown;
use crate::ops::errors::ErrorHandler;
use crate::validator::MinerAddress;
use crate::validator::miners::{MinerFeed, MinerFile, MinerSource, MinersUrl};

/// More often no server should be asked.
const LEAST_INTERVAL: Duration = Duration::from_secs(1);

/// Flags of a command that has miners.
#[derive(Debug, clap::Args)]
pub(super) struct MinerListArgs {
    /// The miners: a TOML file with a `[[miner]]` table with hotkey, address and port for each, read again when it
    /// changes; or an http:// or https:// address that answers with the same as JSON. In the variable a password of the
    /// address is hidden
    #[arg(long, value_name = "FILE|URL", env = "PHALANX_MINERS", hide_env_values = true)]
    #[arg(value_parser = secret_file_or_address)]
    miners: Option<PathBuf>,
    /// How often an address of --miners is asked, give or take a fifth
    #[arg(long, value_name = "DUR", default_value = "60s", value_parser = duration, env = "PHALANX_MINERS_INTERVAL")]
    miners_interval: Duration,
}

/// The miners, and where they come from.
pub(super) struct MinerList {
    pub(super) miners: Vec<MinerAddress>,
    source: Box<dyn MinerSource>,
    /// What interrupts the source.
    stop: Shutdown,
}

impl MinerListArgs {
    /// Whether miners are named.
    pub(super) fn is_given(&self) -> bool {
        self.miners.is_some()
    }

    /// The miners; `None` if none are named. Blocks for a file, or at most 10 s for an address.
    ///
    /// # Errors
    /// One line that names the flag, or where the list is, the entry and what would be right.
    pub(super) fn load(&self, tls: &tls::ClientArgs) -> Result<Option<MinerList>, String> {
        let Some(from) = &self.miners else { return Ok(None) };
        let stop = Shutdown::new();
        let mut source: Box<dyn MinerSource> = match url(from) {
            None => Box::new(MinerFile::new(from)),
            Some(_) if self.miners_interval < LEAST_INTERVAL => {
                return Err(format!("--miners-interval is {:?}; it should be 1s or more", self.miners_interval));
            }
            Some(url) => Box::new(MinersUrl::new(url, tls.http(stop.clone())?, self.miners_interval)),
        };
        let miners = source.look(true).map_err(|e| e.to_string())?.unwrap_or_default();
        Ok(Some(MinerList { miners, source, stop }))
    }
}

/// What is said where no miners are named.
pub(super) const MISSING: &str = "--miners is missing; give the file with the [[miner]] tables, or an https:// address";

impl MinerList {
    /// From now on `set` gets each new list; SIGHUP asks for it at once.
    pub(super) fn follow(
        self,
        env: &Env,
        errors: &ErrorHandler,
        set: impl Fn(Vec<MinerAddress>) + Send + 'static,
    ) -> MinerFeed {
        let feed = MinerFeed::start(self.source, self.miners.len(), self.stop, set, errors);
        let handle = feed.handle();
        env.reload.set(move || handle.reload());
        feed
    }
}

/// The text, if it is an address.
fn url(from: &Path) -> Option<&str> {
    let text = from.to_str()?;
    ["http://", "https://"].iter().any(|scheme| text.starts_with(scheme)).then_some(text)
}
