//! Which program this is.

use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;

/// The program of this process, as the first call has found it. Once another one has taken its place, the system only
/// says of it that it is deleted; the one at its path is meant then, so whoever starts it later calls this at its
/// start.
///
/// # Errors
/// What the system says when it cannot tell.
pub(crate) fn program() -> io::Result<PathBuf> {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    match PROGRAM.get() {
        Some(program) => Ok(program.clone()),
        None => std::env::current_exe().map(|program| PROGRAM.get_or_init(|| program).clone()),
    }
}
