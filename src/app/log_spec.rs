//! What `RUST_LOG` asks for: a word that names nothing of this program must not silence all of it. Pure.

use std::str::FromStr;

use log::LevelFilter;

/// The crate, with which all our targets begin.
const CRATE: &str = env!("CARGO_CRATE_NAME");

/// Its modules: the second word of our targets.
pub(super) const MODULES: &[&str] = &[
    "app",
    "base",
    "celery",
    "cli",
    "executor",
    "facilitator",
    "identity",
    "link",
    "miner",
    "net",
    "ops",
    "pool",
    "proc",
    "protocol",
    "redis",
    "store",
    "tasks",
    "transport",
    "validator",
];

/// What counts, in the syntax of `env_logger`, and what is wrong with `asked`, a line each. Without anything in `asked`
/// about this program, what is logged of it stays as by `usual`.
pub(super) fn understand(asked: &str, usual: &str) -> (String, Vec<String>) {
    let (directives, pattern) = match asked.split_once('/') {
        Some((directives, pattern)) => (directives, Some(pattern)),
        None => (asked, None),
    };
    let mut problems = Vec::new();
    let mut counts = Vec::new();
    let mut is_about_us = false;
    for directive in directives.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
        match about_us(directive) {
            Ok(ours) => {
                is_about_us |= ours;
                counts.push(directive);
            }
            Err(problem) => problems.push(format!("RUST_LOG: {problem}")),
        }
    }
    if !is_about_us {
        if !directives.trim().is_empty() {
            problems.push(format!("RUST_LOG names nothing of this program, so its logs stay as by {usual:?}"));
        }
        counts.insert(0, usual);
    }
    let mut spec = counts.join(",");
    match pattern {
        Some(pattern) if pattern.contains('/') => {
            problems.push(format!("RUST_LOG: the pattern {pattern:?} has a second '/'; it does not count"));
        }
        Some(pattern) => spec = format!("{spec}/{pattern}"),
        None => {}
    }
    (spec, problems)
}

/// Whether a directive says what is logged of this program.
fn about_us(directive: &str) -> Result<bool, String> {
    let (name, level) = match directive.split_once('=') {
        Some((name, level)) => (name.trim(), Some(level.trim())),
        None => (directive, None),
    };
    if let Some(level) = level.filter(|level| !level.is_empty())
        && LevelFilter::from_str(level).is_err()
    {
        return Err(format!("{level:?} is no level; one of off, error, warn, info, debug, trace would be right"));
    }
    if level.is_none() && LevelFilter::from_str(name).is_ok() {
        return Ok(true);
    }
    let mut words = name.split("::");
    match (words.next().unwrap_or_default(), words.next()) {
        // A name is the beginning of those that are meant.
        (word, None) => Ok(CRATE.starts_with(word)),
        (CRATE, Some(module)) if MODULES.iter().any(|known| known.starts_with(module)) => Ok(true),
        (CRATE, Some(module)) => {
            Err(format!("there is no module {module:?} in {CRATE}; there are {}", MODULES.join(", ")))
        }
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn counts(asked: &str, spec: &str, problems: &[&str]) {
        let (counts, found) = understand(asked, "info");
        assert_eq!(counts, spec, "of {asked:?}");
        assert_eq!(found.len(), problems.len(), "of {asked:?}: {found:?}");
        for (found, problem) in found.iter().zip(problems) {
            assert!(found.contains(problem), "{found}");
        }
    }

    #[test]
    fn what_is_about_this_program_counts_as_it_is() {
        for asked in ["debug", "phalanx=trace", "phalanx::link=debug", "warn,rustls=trace", "off", "DEBUG", "phalanx"] {
            counts(asked, asked, &[]);
        }
        counts(" info , phalanx::net::http = debug ", "info,phalanx::net::http = debug", &[]);
        counts("debug/job .*", "debug/job .*", &[]);
        counts("", "info", &[]);
        counts("/job", "info/job", &[]);
    }

    #[test]
    fn a_name_that_is_nobodys_silences_nothing() {
        counts("foo", "info,foo", &["names nothing of this program"]);
        counts("inof", "info,inof", &["names nothing of this program"]);
        counts("rustls=debug", "info,rustls=debug", &["names nothing of this program"]);
        counts("phalanx::lnk=debug", "info", &["no module \"lnk\" in phalanx; there are app,", "names nothing"]);
        counts("debug,phalanx::lnk", "debug", &["no module \"lnk\""]);
        counts("phalanx=inof", "info", &["\"inof\" is no level; one of off, error", "names nothing"]);
        counts("debug/a/b", "debug", &["second '/'"]);
    }

    #[test]
    fn the_modules_are_those_of_the_crate() {
        let crate_root = include_str!("../lib.rs");
        let mut modules: Vec<_> =
            crate_root.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
        // What only names others logs nothing.
        modules.retain(|module| *module != "prelude");
        modules.sort_unstable();
        modules.dedup();
        assert_eq!(MODULES, modules);
    }
}
