//! What SIGHUP does for a command that has a miners file.

use std::path::PathBuf;

use crate::app::supervise::Env;
use crate::validator::{MinerAddress, load_miners};

/// From now on SIGHUP reads the file again and calls `set` with its miners; a file that cannot be used changes nothing.
pub(super) fn reload_miners(env: &Env, path: PathBuf, set: impl Fn(Vec<MinerAddress>) + Send + 'static) {
    env.reload.set(move || match load_miners(&path) {
        Ok(miners) => {
            log::info!("SIGHUP: {} miners from {}", miners.len(), path.display());
            set(miners);
        }
        Err(error) => log::error!("SIGHUP: the miners stay as they are: {error}"),
    });
}
