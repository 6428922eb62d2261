//! What a miner's settings say of its hosts: a table `[miner.hosts.NAME]` for each beside its own machine.

use std::net::IpAddr;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::hint::hint;
use crate::miner::host::HostName;
use crate::proc::docker::{EngineAddress, SshPlace, TlsFiles};
use crate::protocol::ExecutorClass;

/// What a table may say.
const KEYS: [&str; 5] = ["address", "executors", "tls-ca", "tls-cert", "tls-key"];

/// A host of a miner.
#[derive(Debug, Clone)]
pub struct HostSetting {
    /// Its name.
    pub name: HostName,
    /// Where its engine is.
    pub address: EngineAddress,
    /// How many executors of which class.
    pub executors: Vec<(ExecutorClass, u32)>,
}

/// The hosts of a JSON object that has a table for each, with the keys of the settings file. Where one is behind SSH,
/// an `ssh` of ours is written to `ssh`.
///
/// # Errors
/// One line that names the host, the key and what would be right.
pub fn hosts(table: Option<&str>, ssh: &SshPlace) -> Result<Vec<HostSetting>, String> {
    let Some(text) = table else { return Ok(Vec::new()) };
    let table: Map<String, Value> = serde_json::from_str(text).map_err(|e| format!("hosts: not a JSON object: {e}"))?;
    let host = |(name, value): (&String, &Value)| {
        host(name, value, ssh).map_err(|problem| format!("host {name:?}: {problem}"))
    };
    let hosts: Vec<HostSetting> = table.iter().map(host).collect::<Result<_, _>>()?;
    for (at, one) in hosts.iter().enumerate() {
        if let Some(other) = hosts[..at].iter().find(|other| other.address == one.address) {
            let HostSetting { name, address, .. } = one;
            return Err(format!("host {:?}: {address} is the engine of host {} already", name.as_str(), other.name));
        }
    }
    Ok(hosts)
}

fn host(name: &str, value: &Value, ssh: &SshPlace) -> Result<HostSetting, String> {
    let Value::Object(table) = value else {
        return Err(format!("it is {value}; it should be a table, as [miner.hosts.gpu-1]"));
    };
    let name: HostName = name.parse().map_err(|e: crate::miner::host::BadHostName| e.to_string())?;
    if name == HostName::LOCAL {
        return Err("that is this machine, whose executors are those of --executors".to_owned());
    }
    let (mut address, mut executors, mut tls) = (None, Vec::new(), [None, None, None]);
    for (key, value) in table {
        let known = key.replace('_', "-");
        let text = || value.as_str().ok_or_else(|| format!("{key} is {value}; it should be a text"));
        match known.as_str() {
            "address" => address = Some(text()?),
            "executors" => executors = slots(value)?,
            "tls-ca" => tls[0] = Some(PathBuf::from(text()?)),
            "tls-cert" => tls[1] = Some(PathBuf::from(text()?)),
            "tls-key" => tls[2] = Some(PathBuf::from(text()?)),
            _ => return Err(format!("unknown key {key:?}{}", hint(&known, &KEYS))),
        }
    }
    let tls = match tls {
        [None, None, None] => None,
        [Some(ca), Some(cert), Some(key)] => Some(TlsFiles { ca, cert, key }),
        _ => return Err("tls-ca, tls-cert and tls-key go together".to_owned()),
    };
    let address = address.ok_or("address is missing; name its engine, as ssh://user@10.0.0.7")?;
    let address = EngineAddress::parse(address, tls, ssh)?;
    if address.is_local() {
        return Err(
            "address is this machine's own engine, whose executors are those of --executors; name another, as \
             ssh://user@10.0.0.7"
                .to_owned(),
        );
    }
    if executors.is_empty() {
        return Err("executors is missing; it should be as {\"always_on.test\" = 2}".to_owned());
    }
    Ok(HostSetting { name, address, executors })
}

fn slots(value: &Value) -> Result<Vec<(ExecutorClass, u32)>, String> {
    let right = "it should be as {\"always_on.test\" = 2}";
    let Value::Object(classes) = value else { return Err(format!("executors is {value}; {right}")) };
    let slots = |(class, count): (&String, &Value)| {
        let class: ExecutorClass = class.parse().map_err(|e: crate::protocol::UnknownName| e.to_string())?;
        match count.as_u64().and_then(|count| u32::try_from(count).ok()) {
            Some(count @ 1..=1000) => Ok((class, count)),
            _ => Err(format!("executors of {} are {count}; it should be a number from 1 to 1000", class.as_str())),
        }
    };
    classes.iter().map(slots).collect()
}

/// Whether executors on another machine would dial their own by this URL, or nobody at all.
pub fn leads_nowhere_else(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or(rest);
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.parse::<IpAddr>() {
        // Of version 4 as version 6 writes it, too.
        Ok(address) => address.to_canonical().is_loopback() || address.is_unspecified(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(toml: &str) -> Result<Vec<HostSetting>, String> {
        let table: toml::Table = toml.parse().unwrap();
        let folder = tempfile::tempdir().unwrap();
        // Any file does for an ssh.
        std::os::unix::fs::symlink("/bin/sh", folder.path().join("ssh")).unwrap();
        let ssh = SshPlace { folder: folder.path().join("ours"), path: folder.path().into() };
        hosts(Some(&serde_json::to_string(&table).unwrap()), &ssh)
    }

    #[test]
    fn each_host_has_a_name_an_engine_and_executors() {
        let toml = r#"
            [gpu-1]
            address = "ssh://phalanx@10.0.0.7:2222"
            executors = { "always_on.gpu-24gb" = 2, "always_on.test" = 1 }
            [second]
            address = "unix:///run/second.sock"
            executors = { "always_on.test" = 3 }
        "#;
        let hosts = read(toml).unwrap();
        let shown: Vec<_> = hosts.iter().map(|host| (host.name.to_string(), host.address.to_string())).collect();
        let expected = [("gpu-1", "ssh://…@10.0.0.7:2222"), ("second", "unix:///run/second.sock")];
        assert_eq!(shown, expected.map(|(name, address)| (name.to_owned(), address.to_owned())));
        assert_eq!(hosts[0].executors.len(), 2);
        assert_eq!(hosts[1].executors, [(ExecutorClass::AlwaysOnTest, 3)]);
        assert!(super::hosts(None, &SshPlace::below("/nonexistent")).unwrap().is_empty());
    }

    #[test]
    fn mistakes_are_named_with_what_would_be_right() {
        let right = "address = \"unix:///s\"\nexecutors = { \"always_on.test\" = 1 }";
        for (toml, says) in [
            (format!("[local]\n{right}"), "that is this machine"),
            (format!("[GPU]\n{right}"), "as gpu-1"),
            (format!("[a]\n{right}\naddres = \"x\""), "unknown key \"addres\"; did you mean \"address\"?"),
            (format!("[a]\n{right}\ntls-ca = \"/ca\""), "go together"),
            ("[a]\nexecutors = { \"always_on.test\" = 1 }".to_owned(), "address is missing"),
            ("[a]\naddress = \"unix:///s\"".to_owned(), "executors is missing"),
            ("[a]\naddress = 1".to_owned(), "it should be a text"),
            ("[a]\nexecutors = 3".to_owned(), "it should be as"),
            ("[a]\nexecutors = { \"always_on.test\" = 0 }".to_owned(), "a number from 1 to 1000"),
            ("[a]\nexecutors = { \"always_on.tst\" = 1 }".to_owned(), "always_on.tst"),
            ("[a]\naddress = \"tcp://h:2375\"\nexecutors = { \"always_on.test\" = 1 }".to_owned(), "without TLS"),
            ("[a]\naddress = \"\"\nexecutors = { \"always_on.test\" = 1 }".to_owned(), "this machine's own engine"),
            (
                "[a]\naddress = \"local\"\nexecutors = { \"always_on.test\" = 1 }".to_owned(),
                "this machine's own engine",
            ),
            (format!("[a]\n{right}\n[b]\n{right}"), "unix:///s is the engine of host a already"),
            ("a = 1".to_owned(), "it should be a table"),
        ] {
            let problem = read(&toml).unwrap_err();
            assert!(problem.contains(says) && problem.starts_with("host ") && !problem.contains('\n'), "{problem}");
        }
        assert!(hosts(Some("[]"), &SshPlace::below("/nonexistent")).unwrap_err().contains("not a JSON object"));
    }

    #[test]
    fn addresses_of_this_machine_alone_are_told_apart() {
        for url in [
            "ws://127.0.0.1:9101",
            "ws://0.0.0.0:1",
            "ws://[::1]:9101",
            "wss://localhost:1/",
            "ws://[::]:1",
            "ws://[::ffff:127.0.0.1]:1",
        ] {
            assert!(leads_nowhere_else(url), "{url}");
        }
        for url in ["ws://10.0.0.5:9101", "wss://miner.example:443", "ws://[2001:db8::1]:1"] {
            assert!(!leads_nowhere_else(url), "{url}");
        }
    }
}
