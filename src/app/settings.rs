//! The settings file: `--config FILE`, TOML, one table for each command with the names of its flags.
//!
//! Precedence is flag, then environment, then file, then default. A setting of the file becomes a flag of the command
//! line unless a flag or the environment gives it already, so every check of a flag holds for the file too. A table
//! `NAME` in that of a command is the value of the flag `--NAME-settings`, as JSON, or of `--NAME`, if that takes JSON.
//! Flags of all commands, as `log-format`, may stand before the tables or in them. The table of a command with commands
//! of its own, as `jobs`, has the flags of all of them; each takes those that it knows.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use clap::{Arg, ArgAction, Command};

use super::hint::hint;
use crate::base::{small_file, text};

/// Bytes of a settings file.
const FILE_BYTES: u64 = 1 << 20;

/// The value of flags that take JSON, as `--help` calls it.
const JSON: &str = "JSON";

/// The flag that names the settings file; it cannot be in it.
const CONFIG: &str = "config";

/// The command line with the settings of the file, and where each setting is from.
#[derive(Debug, Default)]
pub struct Settings {
    /// The command line: what was given, then what the file adds.
    pub arguments: Vec<OsString>,
    /// Where settings are from.
    pub sources: Sources,
    /// What is wrong with the file, a line each.
    pub problems: Vec<String>,
}

/// Where the settings of one command are from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The settings file, if there is one.
    pub file: Option<PathBuf>,
    /// The long names of the command's flags, each with its variable.
    flags: BTreeMap<String, Option<String>>,
    /// Those that the command line gives.
    line: BTreeSet<String>,
    /// Those that the environment gives.
    environment: BTreeSet<String>,
    /// Those that the file gives, with table and key.
    from_file: BTreeMap<String, String>,
}

/// Where a setting is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A flag of the command line.
    Flag,
    /// This variable.
    Variable(String),
    /// The settings file: its name, then table and key.
    File(String),
    /// Nobody has set it.
    Default,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Variable(name) => write!(f, "variable {name}"),
            Self::File(place) => f.write_str(place),
            Self::Default => f.write_str("default"),
        }
    }
}

impl Sources {
    /// Where the setting of this long name is from.
    pub fn of(&self, long: &str) -> Source {
        if self.line.contains(long) {
            return Source::Flag;
        }
        if self.environment.contains(long) {
            return Source::Variable(self.flags.get(long).cloned().flatten().unwrap_or_default());
        }
        match (self.from_file.get(long), &self.file) {
            (Some(key), Some(file)) => Source::File(format!("{}: {key}", file.display())),
            _ => Source::Default,
        }
    }

    /// The problem with the source of each setting that it begins with, or that it quotes: a flag of the command line
    /// speaks for itself. What begins with the name of a setting in words, as `max_job_time is 0`, is given its flag.
    pub fn named(&self, problem: &str) -> String {
        let parts: Vec<String> = problem.split("; ").map(|part| self.named_part(part)).collect();
        parts.join("; ")
    }

    fn named_part(&self, part: &str) -> String {
        let first = part.split([' ', ':']).next().unwrap_or_default();
        let flag = first.replace('_', "-");
        let is_told = [" is ", ": "].iter().any(|behind| part[first.len()..].starts_with(behind));
        let part = match is_told && self.flags.contains_key(&flag) {
            true => format!("--{flag}{}", &part[first.len()..]),
            false => part.to_owned(),
        };
        let start = match part.strip_prefix("--") {
            Some(_) => Some(2),
            None => part.find("'--").map(|at| at + 3),
        };
        let Some(start) = start else { return part };
        let end = part[start..].find(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).unwrap_or(part.len() - start);
        let long = &part[start..start + end];
        let place = match self.of(long) {
            Source::Variable(name) => format!(" ({name})"),
            Source::File(place) => format!(" (settings file {place})"),
            Source::Flag | Source::Default => return part,
        };
        // What clap quotes has the name of the value behind the flag.
        let mut at = start + end;
        if start > 2 {
            at += part[at..].find('\'').map_or(0, |quote| quote + 1);
        }
        format!("{}{place}{}", &part[..at], &part[at..])
    }
}

/// The sources of this process' settings, from when they were read on.
static SOURCES: OnceLock<Sources> = OnceLock::new();

/// From now on [`named`] names these.
pub fn remember(sources: Sources) {
    // The first counts: settings that are read again have the same command line.
    let _ = SOURCES.set(sources);
}

/// The problem with the source of each setting that it is about.
pub fn named(problem: &str) -> String {
    SOURCES.get().map_or_else(|| problem.to_owned(), |sources| sources.named(problem))
}

impl Settings {
    /// The value of another variable than the flag's own, if nothing that counts more gives the flag.
    pub fn add_variable(&mut self, long: &str, variable: &str, value: &OsStr) {
        let mut written = OsString::from(format!("--{long}="));
        written.push(value);
        self.arguments.push(written);
        self.sources.environment.insert(long.to_owned());
        self.sources.flags.insert(long.to_owned(), Some(variable.to_owned()));
    }
}

/// Reads the settings of the file that `arguments` or `PHALANX_CONFIG` name, if they name one. Blocks on the disk; for
/// a pipe at most 10 s.
pub fn read(command: &Command, arguments: Vec<OsString>, env: impl Fn(&OsStr) -> Option<OsString>) -> Settings {
    let arguments = joined(command, arguments);
    let path = config_path(&arguments).or_else(|| env(OsStr::new("PHALANX_CONFIG"))).map(PathBuf::from);
    let mut settings = Settings { arguments, ..Settings::default() };
    settings.sources.file.clone_from(&path);
    let (subcommand, flags) = flags_of(command, &settings.arguments);
    for flag in &flags {
        let Some(long) = flag.get_long() else { continue };
        let variable = flag.get_env().map(|name| name.to_string_lossy().into_owned());
        if is_on_the_line(&settings.arguments, long) {
            settings.sources.line.insert(long.to_owned());
        } else if flag.get_env().is_some_and(|name| env(name).is_some()) {
            settings.sources.environment.insert(long.to_owned());
        }
        settings.sources.flags.insert(long.to_owned(), variable);
    }
    let Some(path) = path else { return settings };
    match table_of(&path) {
        Ok(table) => merge(command, subcommand, &flags, &table, &mut settings),
        Err(problem) => settings.problems.push(problem),
    }
    let name = |problem: String| format!("settings file {}: {problem}", path.display());
    settings.problems = settings.problems.into_iter().map(name).collect();
    settings
}

fn table_of(path: &Path) -> Result<toml::Table, String> {
    let bytes = small_file::read(path, FILE_BYTES).map_err(|e| format!("cannot read it: {e}"))?;
    text::of_file(&bytes)?.parse().map_err(|error: toml::de::Error| {
        // It shows the line, which may have a password in it.
        let at = error.span().map_or(0, |span| span.start);
        let line = bytes[..at.min(bytes.len())].iter().filter(|byte| **byte == b'\n').count() + 1;
        let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
        format!("not TOML: line {line}: {message}")
    })
}

/// `--flag -1s` as `--flag=-1s`: what begins with a minus and a digit is a value and no flag, and is refused as one.
fn joined(command: &Command, arguments: Vec<OsString>) -> Vec<OsString> {
    let takes_value = |text: &str| {
        let long = text.strip_prefix("--").filter(|long| !long.is_empty() && !long.contains('='))?;
        let all = command.get_subcommands().flat_map(Command::get_arguments).chain(command.get_arguments());
        all.into_iter().find(|flag| flag.get_long() == Some(long)).map(takes_value)
    };
    let mut out: Vec<OsString> = Vec::new();
    for argument in arguments {
        let is_negative = argument
            .to_str()
            .is_some_and(|text| text.starts_with('-') && text[1..].starts_with(|c: char| c.is_ascii_digit()));
        match out.last_mut() {
            Some(flag) if is_negative && flag.to_str().and_then(takes_value) == Some(true) => {
                flag.push("=");
                flag.push(argument);
            }
            _ => out.push(argument),
        }
    }
    out
}

fn takes_value(flag: &Arg) -> bool {
    !matches!(flag.get_action(), ArgAction::SetTrue | ArgAction::SetFalse | ArgAction::Count)
}

fn config_path(arguments: &[OsString]) -> Option<OsString> {
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--") => return None,
            Some("--config") => return arguments.next().cloned(),
            Some(text) if text.starts_with("--config=") => return Some(text["--config=".len()..].into()),
            _ => {}
        }
    }
    None
}

fn is_on_the_line(arguments: &[OsString], long: &str) -> bool {
    arguments.iter().filter_map(|argument| argument.to_str()).any(|argument| {
        let rest = argument.strip_prefix("--").and_then(|argument| argument.strip_prefix(long));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    })
}

/// The command that the line names, and the flags that it may have, those of all commands among them.
fn flags_of<'c>(command: &'c Command, arguments: &[OsString]) -> (Option<&'c Command>, Vec<&'c Arg>) {
    let at = positional(command, arguments);
    let subcommand = at.and_then(|at| command.find_subcommand(&arguments[at]));
    let nested = at.zip(subcommand).and_then(|(at, command)| {
        let at = at + positional(command, &arguments[at..])?;
        command.find_subcommand(&arguments[at])
    });
    let of_all = command.get_arguments().filter(|flag| flag.is_global_set() && flag.get_long() != Some(CONFIG));
    let own = subcommand.into_iter().chain(nested).flat_map(Command::get_arguments);
    let flags = own.chain(of_all).filter(|flag| flag.get_long().is_some() && !flag.is_hide_set());
    (subcommand, flags.collect())
}

/// Where the name of the command is on the line.
pub fn positional(command: &Command, arguments: &[OsString]) -> Option<usize> {
    let mut at = 1;
    while let Some(argument) = arguments.get(at) {
        let text = argument.to_string_lossy();
        let flag =
            text.strip_prefix("--").and_then(|long| command.get_arguments().find(|f| f.get_long() == Some(long)));
        match flag {
            Some(flag) if takes_value(flag) => at += 2,
            _ if text.starts_with('-') => at += 1,
            _ => return Some(at),
        }
    }
    None
}

fn merge(
    command: &Command,
    subcommand: Option<&Command>,
    flags: &[&Arg],
    table: &toml::Table,
    settings: &mut Settings,
) {
    let names: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
    let of_all = |key: &str| {
        let long = key.replace('_', "-");
        let is_it = |flag: &&Arg| flag.get_long() == Some(&long) && flag.is_global_set() && long != CONFIG;
        command.get_arguments().find(is_it)
    };
    let mut own = None;
    for (key, value) in table {
        match (names.contains(&key.as_str()), value) {
            (true, toml::Value::Table(of_command)) => {
                match command
                    .find_subcommand(key)
                    .filter(|of| subcommand.is_none_or(|own| own.get_name() != of.get_name()))
                {
                    Some(other) => settings.problems.extend(unknown_keys(command, other, of_command)),
                    None => own = own.or(Some(of_command)),
                }
            }
            (true, other) => {
                settings.problems.push(format!("{key:?} is {other}; it should be a table, as [{key}]"));
            }
            (false, _) if of_all(key).is_some() => {}
            (false, _) => settings.problems.push(format!(
                "unknown key {key:?}{}; it has one table for each command, as [validator]",
                hint(key, &names)
            )),
        }
    }
    let Some(subcommand) = subcommand else { return };
    let name = subcommand.get_name();
    // The command's own table counts more, so it comes first.
    for (key, value) in own.into_iter().flatten() {
        if is_of_another(subcommand, flags, key) {
            continue;
        }
        if let Err(problem) = set(&format!("[{name}] {key}"), key, value, flags, settings) {
            settings.problems.push(problem);
        }
    }
    for (key, value) in table.iter().filter(|(key, _)| of_all(key).is_some()) {
        if let Err(problem) = set(key, key, value, flags, settings) {
            settings.problems.push(problem);
        }
    }
}

/// What is wrong with the keys of a table that is not that of the line: a name that no flag has would be found only by
/// the command that reads it.
fn unknown_keys(command: &Command, of: &Command, table: &toml::Table) -> Vec<String> {
    let own = of.get_subcommands().flat_map(Command::get_arguments).chain(of.get_arguments());
    let flags = own.chain(command.get_arguments().filter(|flag| flag.is_global_set()));
    let longs: Vec<&str> = flags.filter(|flag| !flag.is_hide_set()).filter_map(Arg::get_long).collect();
    let is_known = |key: &str| {
        let long = key.replace('_', "-");
        let as_table = format!("{long}-settings");
        longs.iter().any(|known| *known == long || *known == as_table)
    };
    let unknown = table.keys().filter(|key| !is_known(key));
    unknown
        .map(|key| format!("[{}] unknown key {key:?}{}", of.get_name(), hint(&key.replace('_', "-"), &longs)))
        .collect()
}

/// Whether a key is no flag of the command of the line, but one of another command of the same table.
fn is_of_another(subcommand: &Command, flags: &[&Arg], key: &str) -> bool {
    let long = key.replace('_', "-");
    let is_it = |flag: &&Arg| flag.get_long() == Some(&long);
    let mut others = subcommand.get_subcommands().flat_map(Command::get_arguments);
    !flags.iter().any(is_it) && others.any(|flag| is_it(&flag))
}

/// Makes one setting a flag of the command line, if nothing that counts more gives it.
fn set(
    place: &str,
    key: &str,
    value: &toml::Value,
    flags: &[&Arg],
    Settings { arguments, sources, .. }: &mut Settings,
) -> Result<(), String> {
    let longs: Vec<&str> = flags.iter().filter_map(|flag| flag.get_long()).collect();
    let mut long = key.replace('_', "-");
    // What a table says does not fit into one value: it is that of a flag of its own, as JSON.
    let table = matches!(value, toml::Value::Table(_)).then(|| format!("{long}-settings"));
    let takes_json = |flag: &&&Arg| {
        let names = flag.get_value_names().unwrap_or_default();
        flag.get_long() == Some(&long) && names.iter().any(|name| name.as_str() == JSON)
    };
    let table = match flags.iter().find(takes_json) {
        Some(_) => table.map(|_| long.clone()),
        None => table,
    };
    let json;
    let value = match table.filter(|name| longs.contains(&name.as_str())) {
        Some(flag) => {
            long = flag;
            let text = serde_json::to_string(value).map_err(|e| format!("{place}: {e}"))?;
            json = toml::Value::String(text);
            &json
        }
        None => value,
    };
    let Some(flag) = flags.iter().find(|flag| flag.get_long() == Some(&long)) else {
        let table = place.split_once(' ').map_or("", |(table, _)| table);
        return Err(format!("{table} unknown key {key:?}{}", hint(&long, &longs)).trim_start().to_owned());
    };
    let counts_more = sources.line.contains(&long) || sources.environment.contains(&long);
    if counts_more || sources.from_file.contains_key(&long) {
        return Ok(());
    }
    let takes_value = takes_value(flag);
    let values = match value {
        toml::Value::Array(values) => values.as_slice(),
        one => std::slice::from_ref(one),
    };
    let mut added = Vec::new();
    for value in values {
        match (value, takes_value) {
            (toml::Value::Boolean(true), false) => added.push(format!("--{long}")),
            (toml::Value::Boolean(false), false) => {}
            (other, false) => return Err(format!("{place} is {other}; it should be true or false")),
            (toml::Value::String(text), true) => added.push(format!("--{long}={text}")),
            (toml::Value::Table(_) | toml::Value::Array(_), true) => {
                let one = flag.get_value_names().and_then(|names| names.first()).map_or("VALUE", |name| name.as_str());
                return Err(format!(
                    "{place} is {value}; it should be one value or a list of values, each as --{long} {one}"
                ));
            }
            (other, true) => added.push(format!("--{long}={other}")),
        }
    }
    sources.from_file.insert(long, place.to_owned());
    arguments.extend(added.into_iter().map(OsString::from));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        let log_format = Arg::new("log-format").long("log-format").global(true);
        Command::new("phalanx")
            .arg(log_format)
            .arg(Arg::new("config").long("config").global(true))
            .subcommand(
                Command::new("validator")
                    .arg(Arg::new("facilitator").long("facilitator").env("FACILITATOR_URI"))
                    .arg(Arg::new("trusted-signer").long("trusted-signer").action(ArgAction::Append))
                    .arg(Arg::new("box").long("box"))
                    .arg(Arg::new("box-settings").long("box-settings"))
                    .arg(Arg::new("hosts").long("hosts").value_name("JSON"))
                    .arg(Arg::new("json").long("json").action(ArgAction::SetTrue)),
            )
            .subcommand(
                Command::new("jobs")
                    .subcommand(Command::new("ls").arg(Arg::new("key").long("key")).arg(Arg::new("tag").long("tag")))
                    .subcommand(Command::new("show").arg(Arg::new("key").long("key")).arg(Arg::new("uuid"))),
            )
    }

    fn run(line: &[&str], file: &str, env: Option<&str>) -> Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("phalanx.toml");
        std::fs::write(&path, file).unwrap();
        let mut arguments: Vec<OsString> = line.iter().map(OsString::from).collect();
        arguments.extend(["--config".into(), path.into()]);
        let env = |name: &OsStr| env.filter(|_| name == "FACILITATOR_URI").map(OsString::from);
        let settings = read(&command(), arguments, env);
        if !settings.problems.is_empty() {
            return Err(settings.problems.join("; "));
        }
        Ok(settings.arguments[line.len() + 2..].iter().map(|a| a.to_str().unwrap().to_owned()).collect())
    }

    #[test]
    fn flag_beats_environment_beats_file() {
        let file = "[validator]\nfacilitator = \"ws://file\"\ntrusted_signer = [\"a\", \"b\"]\njson = true\n";
        let rest = ["--trusted-signer=a", "--trusted-signer=b", "--json"];
        let all = [&["--facilitator=ws://file"], &rest[..]].concat();
        assert_eq!(run(&["phalanx", "validator"], file, None).unwrap(), all);
        assert_eq!(run(&["phalanx", "validator"], file, Some("ws://env")).unwrap(), rest);
        assert_eq!(run(&["phalanx", "validator", "--facilitator=ws://flag"], file, None).unwrap(), rest);
        assert!(run(&["phalanx", "other"], file, None).unwrap().is_empty());
    }

    #[test]
    fn a_command_of_a_command_takes_what_it_knows_of_the_table() {
        let file = "[jobs]\nkey = \"k\"\ntag = \"t\"\n";
        assert_eq!(run(&["phalanx", "jobs", "ls"], file, None).unwrap(), ["--key=k", "--tag=t"]);
        assert_eq!(run(&["phalanx", "jobs", "show", "u"], file, None).unwrap(), ["--key=k"]);
        let problem = run(&["phalanx", "jobs", "ls"], "[jobs]\ntagg = 1\n", None).unwrap_err();
        assert!(problem.contains("[jobs] unknown key \"tagg\"; did you mean \"tag\"?"), "{problem}");
    }

    #[test]
    fn a_table_in_a_command_s_table_is_a_flag_with_json() {
        let file = "[validator.box]\nsize = \"2g\"\nlist = [1, 2]\n[validator.box.\"a.b\"]\nx = true\n";
        let json = r#"{"size":"2g","list":[1,2],"a.b":{"x":true}}"#;
        assert_eq!(run(&["phalanx", "validator"], file, None).unwrap(), [format!("--box-settings={json}")]);
        assert_eq!(run(&["phalanx", "validator", "--box=s"], file, None).unwrap(), [format!("--box-settings={json}")]);
        assert!(run(&["phalanx", "validator", "--box-settings={}"], file, None).unwrap().is_empty());
        let file = "[validator.hosts.a]\nx = 1\n";
        assert_eq!(run(&["phalanx", "validator"], file, None).unwrap(), [r#"--hosts={"a":{"x":1}}"#]);
        assert_eq!(run(&["phalanx", "validator"], "[validator]\nbox = \"s\"\n", None).unwrap(), ["--box=s"]);
    }

    #[test]
    fn mistakes_are_named_with_a_suggestion() {
        for (file, expected) in [
            ("[validater]\n", "unknown key \"validater\"; did you mean \"validator\"?"),
            (
                "[validator]\nfacilitater = 1\n",
                "[validator] unknown key \"facilitater\"; did you mean \"facilitator\"?",
            ),
            ("[validator]\nxyz = 1\n", "[validator] unknown key \"xyz\""),
            ("[jobs]\ntagg = 1\n", "[jobs] unknown key \"tagg\"; did you mean \"tag\"?"),
            ("[validator]\njson = 3\n", "json is 3; it should be true or false"),
            ("validator = 3\n", "it should be a table"),
            ("[validator]\nfacilitator = {}\n", "one value or a list"),
            ("= 1", "not TOML"),
        ] {
            let problem = run(&["phalanx", "validator"], file, None).unwrap_err();
            assert!(problem.contains(expected), "{file:?}: {problem}");
            assert!(!problem.contains('\n') && problem.contains("phalanx.toml"), "{problem}");
        }
    }

    #[test]
    fn flags_of_all_commands_stand_before_the_tables_or_in_them() {
        let all = "log-format = \"json\"\n[validator]\njson = true\n";
        assert_eq!(run(&["phalanx", "validator"], all, None).unwrap(), ["--json", "--log-format=json"]);
        let own = "log_format = \"json\"\n[validator]\nlog-format = \"text\"\n";
        assert_eq!(run(&["phalanx", "validator"], own, None).unwrap(), ["--log-format=text"]);
        assert!(run(&["phalanx", "--log-format", "x", "validator"], all, None).unwrap().iter().eq(["--json"]));
        assert!(run(&["phalanx", "validator"], "config = \"x\"\n", None).is_err());
    }

    #[test]
    fn a_file_is_read_as_editors_save_it_and_what_is_no_toml_does_not_show_its_line() {
        assert_eq!(run(&["phalanx", "validator"], "\u{feff}[validator]\r\njson = true\r\n", None).unwrap(), ["--json"]);
        let problem = run(&["phalanx", "validator"], "[validator]\nredis = redis://:secret@h\n", None).unwrap_err();
        assert!(problem.contains("phalanx.toml: not TOML: line 2: ") && !problem.contains("secret"), "{problem}");
    }

    #[test]
    fn a_negative_value_is_one_of_its_flag() {
        let line = |words: &[&str]| {
            let settings = read(&command(), words.iter().map(OsString::from).collect(), |_| None);
            settings.arguments.into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(line(&["phalanx", "validator", "--box", "-1s"]), ["phalanx", "validator", "--box=-1s"]);
        for other in [&["phalanx", "validator", "--json", "-1"][..], &["phalanx", "validator", "--box", "--json"]] {
            assert_eq!(line(other), other);
        }
    }

    #[test]
    fn a_problem_names_where_its_setting_is_from() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("f.toml");
        std::fs::write(&file, "[validator]\nbox = \"x\"\nhosts = \"{}\"\n").unwrap();
        let words = ["phalanx", "--config", file.to_str().unwrap(), "validator", "--hosts", "{}"];
        let env = |name: &OsStr| (name == "FACILITATOR_URI").then(|| "ws://x".into());
        let settings = read(&command(), words.iter().map(OsString::from).collect(), env);
        assert!(settings.problems.is_empty(), "{:?}", settings.problems);
        let place = format!("{}: [validator] box", file.display());
        assert_eq!(settings.sources.of("box"), Source::File(place.clone()));
        assert_eq!(settings.sources.of("hosts"), Source::Flag);
        assert_eq!(settings.sources.of("facilitator"), Source::Variable("FACILITATOR_URI".to_owned()));
        assert_eq!(settings.sources.of("json"), Source::Default);
        for (problem, named) in [
            ("--box: bad", format!("--box (settings file {place}): bad")),
            ("--hosts: bad", "--hosts: bad".to_owned()),
            ("facilitator is odd; --box 3 is odd", {
                format!("--facilitator (FACILITATOR_URI) is odd; --box (settings file {place}) 3 is odd")
            }),
            ("invalid value 'x' for '--box <X>': no", {
                format!("invalid value 'x' for '--box <X>' (settings file {place}): no")
            }),
            ("nothing of it", "nothing of it".to_owned()),
        ] {
            assert_eq!(settings.sources.named(problem), named);
        }
    }
}
