//! Mistakes on the command line, in words; and all of them at once: clap stops at the first, so each that it finds is
//! told and taken out, with something in its place where the role needs the flag, until nothing is left to find.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgMatches, Command};

use super::report::Report;
use crate::app::exit;

/// What stands for a needed flag that is missing or wrong, so that the others can be looked at.
const STAND_INS: [(&str, &str); 7] = [
    ("listen", "127.0.0.1:0"),
    ("http", "127.0.0.1:0"),
    ("key", "//Alice"),
    ("validator", "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"),
    ("user", "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"),
    ("executors", "always_on.test=1"),
    ("state-dir", "state"),
];

/// What the parsers of numbers say, and what it means.
const PARSERS: [(&str, &str); 4] = [
    ("invalid digit found in string", "it should be a whole number"),
    ("cannot parse integer from empty string", "it should be a whole number"),
    ("number too large to fit in target type", "the number is too large"),
    ("invalid float literal", "it should be a number"),
];

/// Mistakes that are looked for: more than a line has flags.
const MOST: usize = 200;

/// What clap says of a mistake, without the usage that it adds, as one line.
pub(super) fn one_line(error: &clap::Error) -> String {
    if let (ErrorKind::MissingRequiredArgument, Some(ContextValue::Strings(names))) =
        (error.kind(), error.get(ContextKind::InvalidArg))
        && names.iter().all(|name| name.starts_with("--"))
    {
        return names.iter().map(|name| missing(name)).collect::<Vec<_>>().join("; ");
    }
    let text = error.render().to_string();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines = lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"));
    let line = lines.collect::<Vec<_>>().join("; ");
    let line = line.trim_start_matches("error: ").replace(":; ", ": ").replace("tip: ", "");
    PARSERS.iter().fold(line, |line, (says, words)| line.replace(says, words))
}

/// What is said of a needed flag, named as `--listen <ADDR>`.
fn missing(name: &str) -> String {
    format!("{} is missing; give {name}", name.split(' ').next().unwrap_or_default())
}

/// The settings without what is wrong; `None` if what is left cannot be read either.
///
/// # Errors
/// The exit code, if the line asks for help, which has been given.
pub(super) fn parse(
    command: &Command,
    mut arguments: Vec<OsString>,
    role: &str,
    report: &mut Report,
) -> Result<Option<ArgMatches>, ExitCode> {
    let mut command = command.clone();
    for _ in 0..MOST {
        let error = match command.clone().try_get_matches_from(&arguments) {
            Ok(matches) => return Ok(Some(matches)),
            Err(error) => error,
        };
        if !error.use_stderr() {
            // A closed pipe is not worth a word.
            let _ = error.print();
            return Err(ExitCode::from(exit::DONE));
        }
        let named: Vec<String> = match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(one)) => vec![one.clone()],
            Some(ContextValue::Strings(all)) => all.clone(),
            _ => Vec::new(),
        };
        let mut is_mended = false;
        if error.kind() == ErrorKind::MissingRequiredArgument {
            for name in &named {
                let Some(long) = long_of(name) else { continue };
                report.wrong(missing(name));
                is_mended |= stand_in(&mut arguments, &long, report);
            }
        } else {
            report.wrong(one_line(&error));
            for name in &named {
                is_mended |= take_out(&mut command, &mut arguments, name, role, report);
            }
        }
        if !is_mended {
            return Ok(None);
        }
    }
    Ok(None)
}

/// Puts something in the place of the needed flags that the error names, and gives their names.
pub(super) fn needed(error: &clap::Error, arguments: &mut Vec<OsString>) -> BTreeSet<String> {
    let Some(ContextValue::Strings(names)) = error.get(ContextKind::InvalidArg) else { return BTreeSet::new() };
    let longs = names.iter().filter_map(|name| long_of(name));
    let known = longs.filter_map(|long| STAND_INS.iter().find(|(of, _)| *of == long));
    known
        .map(|(long, value)| {
            arguments.push(format!("--{long}={value}").into());
            (*long).to_owned()
        })
        .collect()
}

/// The long name in `--listen <ADDR>`.
fn long_of(name: &str) -> Option<String> {
    let long = name.trim_start_matches('<').strip_prefix("--")?;
    let end = long.find(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).unwrap_or(long.len());
    Some(long[..end].to_owned())
}

fn stand_in(arguments: &mut Vec<OsString>, long: &str, report: &mut Report) -> bool {
    let value = STAND_INS.iter().find(|(of, _)| *of == long).map(|(_, value)| value);
    let is_new = report.wrong.insert(long.to_owned());
    if let Some(value) = value {
        arguments.push(format!("--{long}={value}").into());
    }
    value.is_some() && is_new
}

/// Takes what clap has named out of the line and the environment; says whether something was there.
fn take_out(command: &mut Command, arguments: &mut Vec<OsString>, name: &str, role: &str, report: &mut Report) -> bool {
    let before = arguments.len();
    let Some(long) = long_of(name) else {
        arguments.retain(|argument| argument != name);
        return arguments.len() < before;
    };
    let written = format!("--{long}");
    let assigned = format!("--{long}=");
    let find = |command: &Command| command.get_arguments().find(|arg| arg.get_long() == Some(&long)).cloned();
    let own = command.find_subcommand(role).and_then(find);
    let of_all = find(command);
    let takes_value = own.as_ref().or(of_all.as_ref()).is_some_and(|arg| arg.get_action().takes_values());
    let mut is_value = false;
    arguments.retain(|argument| {
        let text = argument.to_string_lossy();
        let goes = std::mem::take(&mut is_value) || text == written || text.starts_with(&assigned);
        is_value = text == written && takes_value;
        !goes
    });
    let without_variable = |arg: Arg| arg.env(None::<&'static str>);
    let mut had_variable = false;
    if let Some(arg) = &own {
        had_variable |= arg.get_env().is_some();
        let id = arg.get_id().clone();
        *command = std::mem::take(command).mut_subcommand(role, |own| own.mut_arg(id, without_variable));
    } else if let Some(arg) = &of_all {
        had_variable |= arg.get_env().is_some();
        let id = arg.get_id().clone();
        *command = std::mem::take(command).mut_arg(id, without_variable);
    }
    let is_new = report.wrong.insert(long.clone());
    let is_mended = arguments.len() < before || had_variable && is_new;
    // What the role needs has to be there, or the next mistake would be that it is missing.
    if own.is_some_and(|arg| arg.is_required_set()) || matches!(long.as_str(), "key" | "executors") {
        let value = STAND_INS.iter().find(|(of, _)| *of == long).map(|(_, value)| value);
        arguments.extend(value.map(|value| OsString::from(format!("--{long}={value}"))));
    }
    is_mended
}
