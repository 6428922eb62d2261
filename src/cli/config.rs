//! `phalanx config show ROLE`: the effective settings, and where each is from. `phalanx config init ROLE`: a settings
//! file with all of them.
//!
//! The line is that of the role itself with `config show` or `config init` before it. Both print TOML that the role
//! reads again; secrets are not in it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command, Subcommand};

use super::check::ROLES;
use super::mistakes::{needed, one_line};
use crate::app::exit;
use crate::app::settings::{Settings, Source};
use crate::ops::redact;

/// Columns of a comment in the file.
const WIDTH: usize = 100;

/// What stands for a secret.
const HIDDEN: &str = "…";

/// The arguments of `phalanx config`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    _command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the effective settings of a role, each with its source; secrets are not shown
    Show(RoleArg),
    /// Print a settings file for a role: all settings with their defaults, and those that the line gives
    Init(RoleArg),
}

#[derive(Debug, clap::Args)]
struct RoleArg {
    /// The role, and then its flags: facilitator, validator, miner or worker
    #[arg(value_name = "ROLE", trailing_var_arg = true, allow_hyphen_values = true)]
    _role: Vec<String>,
}

/// What is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// The effective settings.
    Show,
    /// A settings file.
    Init,
}

/// Prints the settings of the role that the line names.
pub(super) fn run(what: What, command: &Command, settings: Settings, role: Option<&str>) -> ExitCode {
    let Some(role) = role.filter(|role| ROLES.contains(role)) else {
        return exit::usage(format!("config: name the role after it: {}", ROLES.join(", ")));
    };
    if !settings.problems.is_empty() {
        return exit::usage(settings.problems.join("; "));
    }
    let Settings { mut arguments, sources, .. } = settings;
    let mut missing = BTreeSet::new();
    let matches = loop {
        match command.clone().try_get_matches_from(&arguments) {
            Ok(matches) => break matches,
            Err(help) if !help.use_stderr() => {
                // A closed pipe is not worth a word.
                let _ = help.print();
                return ExitCode::from(exit::DONE);
            }
            Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => {
                let more = needed(&error, &mut arguments);
                if more.is_empty() || !missing.is_disjoint(&more) {
                    return exit::usage(sources.named(&one_line(&error)));
                }
                missing.extend(more);
            }
            Err(error) => return exit::usage(sources.named(&one_line(&error))),
        }
    };
    let Some((own, matches)) = command.find_subcommand(role).zip(matches.subcommand_matches(role)) else {
        return exit::usage(format!("config: {role} is not among the commands"));
    };
    let of_all: Vec<&Arg> = command.get_arguments().filter(|arg| arg.is_global_set()).collect();
    let file = File { role, matches, missing: &missing, of: &|long: &str| sources.of(long) };
    let text = match what {
        What::Show => file.shown(&of_all, own),
        What::Init => file.made(&of_all, own),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            exit::failed(format!("cannot write to stdout: {error}"))
        }
        _ => ExitCode::from(exit::DONE),
    }
}

struct File<'a> {
    role: &'a str,
    matches: &'a ArgMatches,
    /// Needed flags that nobody has given; something stands for them.
    missing: &'a BTreeSet<String>,
    of: &'a dyn Fn(&str) -> Source,
}

fn settable(arg: &&Arg) -> bool {
    let is_ours = !matches!(arg.get_action(), ArgAction::Help | ArgAction::HelpLong | ArgAction::Version);
    is_ours && !arg.is_hide_set() && arg.get_long().is_some_and(|long| long != "config")
}

/// Its value is a JSON text, which a settings file has as tables.
fn is_table(arg: &Arg) -> bool {
    arg.get_value_names().is_some_and(|names| names.iter().any(|name| name.as_str() == "JSON"))
}

impl File<'_> {
    fn shown(&self, of_all: &[&Arg], own: &Command) -> String {
        let mut text = format!("# The effective settings of phalanx {}, each with its source.\n", self.role);
        of_all.iter().copied().filter(settable).for_each(|arg| self.line(arg, &mut text));
        let _ = writeln!(text, "\n[{}]", self.role);
        own.get_arguments()
            .filter(settable)
            .filter(|arg| !arg.is_global_set())
            .for_each(|arg| self.line(arg, &mut text));
        text
    }

    fn line(&self, arg: &Arg, text: &mut String) {
        let long = arg.get_long().unwrap_or_default();
        let _ = match self.value(arg) {
            _ if self.missing.contains(long) => writeln!(text, "# {long} is missing, and needed"),
            Some(value) => writeln!(text, "{long} = {value}  # {}", (self.of)(long)),
            None => writeln!(text, "# {long} is not set"),
        };
    }

    fn made(&self, of_all: &[&Arg], own: &Command) -> String {
        let mut text = format!(
            "# Settings of phalanx {}. A flag counts more than its variable, and that more than this file.\n\
             # A line that begins with # and a name is the default, or an example where there is none.\n",
            self.role
        );
        of_all.iter().copied().filter(settable).for_each(|arg| self.entry(arg, &mut text));
        let _ = writeln!(text, "\n[{}]", self.role);
        own.get_arguments()
            .filter(settable)
            .filter(|arg| !arg.is_global_set())
            .for_each(|arg| self.entry(arg, &mut text));
        text
    }

    /// One setting with its help.
    fn entry(&self, arg: &Arg, text: &mut String) {
        let long = arg.get_long().unwrap_or_default();
        text.push('\n');
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        comment(text, &help);
        let variable = arg.get_env().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let is_given = !matches!((self.of)(long), Source::Default);
        let default = default_of(arg);
        let remark = match (&default, self.missing.contains(long)) {
            (_, true) => "; it is needed",
            (None, _) if !is_given => "; it has no default",
            _ => "",
        };
        let _ = writeln!(text, "# Variable {variable}{remark}.");
        if is_table(arg) {
            let name = long.trim_end_matches("-settings");
            let _ = writeln!(text, "# Here it is the tables [{}.{name}] and below.", self.role);
            return;
        }
        let given = self.value(arg).filter(|_| is_given);
        let _ = match given {
            Some(value) if value.contains(HIDDEN) => {
                writeln!(text, "# {long} is given, and a secret: put it into a file")
            }
            Some(value) => writeln!(text, "{long} = {value}"),
            None => {
                let example = || toml::Value::String(example(arg, self.role)).to_string();
                writeln!(text, "#{long} = {}", default.unwrap_or_else(example))
            }
        };
    }

    /// The effective value as TOML, a secret hidden; `None` if there is none.
    fn value(&self, arg: &Arg) -> Option<String> {
        let id = arg.get_id().as_str();
        if !arg.get_action().takes_values() {
            return Some(self.matches.get_flag(id).to_string());
        }
        let values: Vec<String> = self.matches.get_raw(id)?.map(|value| shown(arg, &value.to_string_lossy())).collect();
        listed(arg, values)
    }
}

fn listed(arg: &Arg, values: Vec<String>) -> Option<String> {
    let text = |value: String| toml::Value::String(value);
    match matches!(arg.get_action(), ArgAction::Append) {
        true => Some(toml::Value::Array(values.into_iter().map(text).collect()).to_string()),
        false => values.into_iter().next().map(|value| text(value).to_string()),
    }
}

fn default_of(arg: &Arg) -> Option<String> {
    if !arg.get_action().takes_values() {
        return Some("false".to_owned());
    }
    let values: Vec<String> =
        arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    if values.is_empty() { None } else { listed(arg, values) }
}

/// A value that the flag takes: the example in its help, or one of its kind.
fn example(arg: &Arg, role: &str) -> String {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    // `redis://[user@]host` is a form and no value.
    let is_value = |word: &&str| {
        let is_like_one = word.contains(['.', '/', '=', ':']) || word.starts_with(|c: char| c.is_ascii_digit());
        is_like_one && !word.contains(['[', '{'])
    };
    let said = help.split(" as ").skip(1).filter_map(|rest| rest.split_whitespace().next());
    let said = said.map(|word| word.trim_end_matches([',', ';', '.', ')', ':'])).find(is_value);
    let possible = || arg.get_possible_values().first().map(|value| value.get_name().to_owned());
    if let Some(example) = said.map(str::to_owned).or_else(possible) {
        return example;
    }
    let (long, name) = (arg.get_long().unwrap_or_default(), arg.get_value_names().and_then(|names| names.first()));
    let example = match name.map_or("", |name| name.as_str()) {
        "ADDR" => "127.0.0.1:9101",
        "SS58" => "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY",
        "DIR" => return format!("/var/lib/phalanx/{role}"),
        "K" | "FILE" | "FILE|URL" => return format!("/etc/phalanx/{long}"),
        "CLASS=N" => "always_on.test=4",
        "CIDR" => "10.0.0.0/8",
        "DUR" => "10m",
        "SIZE" => "10GB",
        "N/DUR" => "100/1s",
        "N" => "100",
        "WHICH" => "system",
        "URL" if long == "redis" => "redis://127.0.0.1:6379/0",
        "URL" => "http://proxy.example:3128",
        "IMAGE" => "busybox:1",
        "COMMAND" => "/usr/local/bin/phalanx",
        _ => return format!("{role}.example"),
    };
    example.to_owned()
}

/// A value without what is secret in it.
fn shown(arg: &Arg, value: &str) -> String {
    if !arg.is_hide_env_values_set() {
        return redact::secrets(value).into_owned();
    }
    let value = value.trim();
    let is_key = arg.get_long() == Some("key");
    // What is no path may be the key itself.
    let is_path = !value.starts_with("//") && !value.starts_with("0x") && !value.contains(char::is_whitespace);
    match is_key && !is_path {
        true => HIDDEN.to_owned(),
        false => redact::secrets(value).into_owned(),
    }
}

/// A text as comment lines.
fn comment(text: &mut String, help: &str) {
    let mut line = String::from("#");
    for word in help.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > WIDTH {
            let _ = writeln!(text, "{line}");
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn each_example_of_a_settings_file_is_a_value_that_its_flag_takes() {
        let command = crate::cli::Cli::command();
        for role in ROLES {
            let own = command.find_subcommand(role).unwrap();
            for arg in own.get_arguments().filter(settable).filter(|arg| !is_table(arg)) {
                let takes_example = arg.get_action().takes_values() && default_of(arg).is_none();
                let (Some(long), true) = (arg.get_long(), takes_example) else { continue };
                let value = example(arg, role);
                let line = ["phalanx".to_owned(), (*role).to_owned(), format!("--{long}={value}")];
                let refused = command.clone().try_get_matches_from(line).err();
                let is_of_value =
                    |error: &clap::Error| matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue);
                // Those with files look whether they are there.
                let refused = refused.filter(is_of_value).map(|error| one_line(&error));
                let refused = refused.filter(|error| !error.contains("No such file"));
                assert_eq!(refused, None, "{role} --{long}={value}");
            }
        }
    }
}
