//! `phalanx completions` and `phalanx man`: what a shell and `man` know of the program, made by the program itself, so
//! that they know its flags.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap_complete::Shell;

use super::print::print;
use crate::app::exit;

/// The arguments of `phalanx completions`.
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// The arguments of `phalanx man`.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// The folder, which is made if it is not there
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Prints the completions of a shell: exit 0, or 1 if stdout cannot be written.
pub fn completions(args: CompletionsArgs, mut command: clap::Command) -> ExitCode {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "phalanx", &mut text);
    print(&String::from_utf8_lossy(&text))
}

/// Writes a page for each command: exit 0, or 1 if the folder cannot be written. Blocks on the disk.
pub fn man(args: ManArgs, command: clap::Command) -> ExitCode {
    let write = |folder: &Path| {
        std::fs::create_dir_all(folder)?;
        clap_mangen::generate_to(command, folder)
    };
    match write(&args.folder) {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(error) => exit::failed(format!("{}: cannot write the pages: {error}", args.folder.display())),
    }
}
