//! A text of the program's own on stdout, as the whole of what a command does.

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use crate::app::exit;

/// Prints it: exit 0, or 1 if stdout cannot be written. Blocks on stdout.
pub(super) fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        // A reader that has seen enough is no failure.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => exit::failed(format!("cannot write to stdout: {error}")),
        _ => ExitCode::from(exit::DONE),
    }
}
