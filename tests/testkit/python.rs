//! Peers in Python, from the environment in `PHALANX_TEST_VENV` (default `target/venv`, which `make test` sets up).

use std::path::{Path, PathBuf};
use std::process::Command;

/// The script of that name in `tests/python`, to be run by a Python that has the module; `None` without one, which is
/// reported, and fails with `PHALANX_TEST_REQUIRE_ALL=1`.
pub fn script(name: &str, module: &str) -> Option<Command> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let venv = std::env::var_os("PHALANX_TEST_VENV").map_or_else(|| PathBuf::from("target/venv"), PathBuf::from);
    let python = root.join(venv).join("bin/python");
    let found = Command::new(&python).args(["-c", &format!("import {module}")]).output();
    if found.is_ok_and(|output| output.status.success()) {
        let mut command = Command::new(python);
        // Nothing is written beside the scripts.
        command.arg("-B").arg(root.join("tests/python").join(name));
        return Some(command);
    }
    let required = std::env::var("PHALANX_TEST_REQUIRE_ALL").is_ok_and(|value| value == "1");
    assert!(!required, "{} cannot import {module}", python.display());
    eprintln!("SKIPPED: {} cannot import {module}; `make test` sets it up", python.display());
    None
}
