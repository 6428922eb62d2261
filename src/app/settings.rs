//! The settings file: `--config FILE`, TOML, one table for each command with the names of its flags.
//!
//! Precedence is flag, then environment, then file, then default. A setting of the file becomes a flag of the command
//! line unless a flag or the environment gives it already, so every check of a flag holds for the file too. A table
//! `NAME` in that of a command is the value of the flag `--NAME-settings`, as JSON, or of `--NAME`, if that takes JSON.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::{Arg, ArgAction, Command};

use super::hint::hint;

/// Bytes of a settings file.
const FILE_BYTES: u64 = 1 << 20;

/// The value of flags that take JSON, as `--help` calls it.
const JSON: &str = "JSON";

/// Adds the settings of the file that `arguments` or `PHALANX_CONFIG` name, if they name one.
///
/// # Errors
/// One line that names the file, the key and what would be right.
pub fn with_file(
    command: &Command,
    arguments: Vec<OsString>,
    env: impl Fn(&OsStr) -> Option<OsString>,
) -> Result<Vec<OsString>, String> {
    let Some(path) = config_path(&arguments).or_else(|| env(OsStr::new("PHALANX_CONFIG"))) else {
        return Ok(arguments);
    };
    let path = Path::new(&path);
    let fail = |problem: String| format!("settings file {}: {problem}", path.display());
    let size = std::fs::metadata(path).map_err(|e| fail(format!("cannot read it: {e}")))?.len();
    if size > FILE_BYTES {
        return Err(fail(format!("it has {size} bytes, at most {FILE_BYTES} are read")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| fail(format!("cannot read it: {e}")))?;
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        fail(format!("not TOML: {}", e.to_string().split_whitespace().collect::<Vec<_>>().join(" ")))
    })?;
    merge(command, arguments, &table, env).map_err(fail)
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

fn merge(
    command: &Command,
    mut arguments: Vec<OsString>,
    table: &toml::Table,
    env: impl Fn(&OsStr) -> Option<OsString>,
) -> Result<Vec<OsString>, String> {
    let names: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
    if let Some(key) = table.keys().find(|k| !names.contains(&k.as_str())) {
        return Err(format!(
            "unknown key {key:?}{}; it has one table for each command, as [validator]",
            hint(key, &names)
        ));
    }
    let given = arguments.iter().skip(1).filter_map(|a| a.to_str()).find(|a| names.contains(a));
    let Some(subcommand) = given.and_then(|name| command.find_subcommand(name)) else { return Ok(arguments) };
    let name = subcommand.get_name();
    let settings = match table.get(name) {
        None => return Ok(arguments),
        Some(toml::Value::Table(settings)) => settings,
        Some(other) => return Err(format!("{name:?} is {other}; it should be a table, as [{name}]")),
    };
    let flags: Vec<&Arg> = subcommand.get_arguments().filter(|a| a.get_long().is_some() && !a.is_hide_set()).collect();
    let longs: Vec<&str> = flags.iter().filter_map(|a| a.get_long()).collect();
    for (key, value) in settings {
        let mut long = key.replace('_', "-");
        // What a table says does not fit into one value: it is that of a flag of its own, as JSON.
        let table = matches!(value, toml::Value::Table(_)).then(|| format!("{long}-settings"));
        let json;
        let takes_json = |flag: &&&Arg| {
            let names = flag.get_value_names().unwrap_or_default();
            flag.get_long() == Some(&long) && names.iter().any(|name| name.as_str() == JSON)
        };
        let table = match flags.iter().find(takes_json) {
            Some(_) => table.map(|_| long.clone()),
            None => table,
        };
        let value = match table.filter(|name| longs.contains(&name.as_str())) {
            Some(flag) => {
                long = flag;
                let text = serde_json::to_string(value).map_err(|e| format!("[{name}] {key}: {e}"))?;
                json = toml::Value::String(text);
                &json
            }
            None => value,
        };
        let Some(flag) = flags.iter().find(|a| a.get_long() == Some(&long)) else {
            return Err(format!("[{name}] unknown key {key:?}{}", hint(&long, &longs)));
        };
        let written = format!("--{long}");
        let on_the_line = arguments
            .iter()
            .filter_map(|a| a.to_str())
            .any(|a| a == written || a.strip_prefix(&written).is_some_and(|rest| rest.starts_with('=')));
        if on_the_line || flag.get_env().is_some_and(|name| env(name).is_some()) {
            continue;
        }
        let takes_value = !matches!(flag.get_action(), ArgAction::SetTrue | ArgAction::SetFalse | ArgAction::Count);
        let values = match value {
            toml::Value::Array(values) => values.as_slice(),
            one => std::slice::from_ref(one),
        };
        for value in values {
            match (value, takes_value) {
                (toml::Value::Boolean(true), false) => arguments.push(written.clone().into()),
                (toml::Value::Boolean(false), false) => {}
                (other, false) => return Err(format!("[{name}] {key} is {other}; it should be true or false")),
                (toml::Value::String(text), true) => arguments.push(format!("{written}={text}").into()),
                (toml::Value::Table(_) | toml::Value::Array(_), true) => {
                    let one =
                        flag.get_value_names().and_then(|names| names.first()).map_or("VALUE", |name| name.as_str());
                    return Err(format!(
                        "[{name}] {key} is {value}; it should be one value or a list of values, each as --{long} {one}"
                    ));
                }
                (other, true) => arguments.push(format!("{written}={other}").into()),
            }
        }
    }
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        Command::new("phalanx").subcommand(
            Command::new("validator")
                .arg(Arg::new("facilitator").long("facilitator").env("FACILITATOR_URI"))
                .arg(Arg::new("trusted-signer").long("trusted-signer").action(ArgAction::Append))
                .arg(Arg::new("box").long("box"))
                .arg(Arg::new("box-settings").long("box-settings"))
                .arg(Arg::new("hosts").long("hosts").value_name("JSON"))
                .arg(Arg::new("json").long("json").action(ArgAction::SetTrue)),
        )
    }

    fn run(line: &[&str], file: &str, env: Option<&str>) -> Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("phalanx.toml");
        std::fs::write(&path, file).unwrap();
        let mut arguments: Vec<OsString> = line.iter().map(OsString::from).collect();
        arguments.extend(["--config".into(), path.into()]);
        let env = |name: &OsStr| env.filter(|_| name == "FACILITATOR_URI").map(OsString::from);
        let merged = with_file(&command(), arguments, env)?;
        Ok(merged[line.len() + 2..].iter().map(|a| a.to_str().unwrap().to_owned()).collect())
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
}
