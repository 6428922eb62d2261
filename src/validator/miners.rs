//! The miners file: `[[miner]]` tables with `hotkey`, `address`, `port`, and perhaps `trusted = true` or `tls = true`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::routing::MinerAddress;
use crate::identity::PublicKey;

/// Bytes of a miners file: some 10,000 miners.
const FILE_BYTES: u64 = 2 << 20;

/// The miners file cannot be used; one line that names the file, the table and what would be right.
#[derive(Debug, thiserror::Error)]
#[error("miners file {}: {problem}", path.display())]
pub struct MinersFileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong and what would be right.
    pub problem: String,
}

const KEYS: [&str; 5] = ["hotkey", "address", "port", "trusted", "tls"];

/// Reads and checks a miners file.
///
/// # Errors
/// [`MinersFileError`] for the first problem in the order of the file.
pub fn load_miners(path: &Path) -> Result<Vec<MinerAddress>, MinersFileError> {
    let fail = |problem: String| MinersFileError { path: path.to_owned(), problem };
    let size = std::fs::metadata(path).map_err(|e| fail(format!("cannot read it: {e}")))?.len();
    if size > FILE_BYTES {
        return Err(fail(format!("it has {size} bytes, at most {FILE_BYTES} are read")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| fail(format!("cannot read it: {e}")))?;
    parse_miners(&text).map_err(fail)
}

/// Reads the text of a miners file.
///
/// # Errors
/// The first problem, in words.
pub fn parse_miners(text: &str) -> Result<Vec<MinerAddress>, String> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        format!("not TOML: {}", e.to_string().split_whitespace().collect::<Vec<_>>().join(" "))
    })?;
    if let Some(key) = table.keys().find(|k| *k != "miner") {
        return Err(format!("unknown key {key:?}; the file has [[miner]] tables only"));
    }
    let entries = match table.get("miner") {
        Some(toml::Value::Array(entries)) => entries.as_slice(),
        Some(_) => return Err("\"miner\" is not a list of tables; write [[miner]], with two brackets".to_owned()),
        None => {
            return Err(
                "no [[miner]] table; write [[miner]] hotkey = \"5…\" address = \"127.0.0.1\" port = 9101".to_owned()
            );
        }
    };
    let mut seen = HashSet::new();
    entries
        .iter()
        .enumerate()
        .map(|(index, entry)| {
            let miner = parse_entry(entry).map_err(|problem| format!("[[miner]] number {}: {problem}", index + 1))?;
            if !seen.insert(miner.hotkey) {
                return Err(format!("[[miner]] number {}: hotkey {} is there twice", index + 1, miner.hotkey));
            }
            Ok(miner)
        })
        .collect()
}

fn parse_entry(entry: &toml::Value) -> Result<MinerAddress, String> {
    let table = entry.as_table().ok_or("not a table; write [[miner]], with two brackets")?;
    if let Some(key) = table.keys().find(|k| !KEYS.contains(&k.as_str())) {
        return Err(format!("unknown key {key:?}; it has {}", KEYS.join(", ")));
    }
    let text = |key: &str, example: &str| match table.get(key) {
        Some(toml::Value::String(text)) if !text.is_empty() => Ok(text.as_str()),
        Some(other) => Err(format!("{key} is {other}; it should be a text like {example}")),
        None => Err(format!("{key} is missing; it should be a text like {example}")),
    };
    let hotkey = text("hotkey", "\"5Grwva…\"")?;
    let hotkey = PublicKey::from_ss58(hotkey).map_err(|e| format!("hotkey {hotkey:?}: {e}"))?;
    let address = text("address", "\"127.0.0.1\"")?;
    if address.contains(['/', ' ', '@']) {
        return Err(format!("address {address:?} should be a host name or an IP address, without scheme or port"));
    }
    let port = match table.get("port") {
        Some(toml::Value::Integer(port)) => u16::try_from(*port).ok().filter(|p| *p > 0),
        _ => None,
    };
    let port = port.ok_or_else(|| match table.get("port") {
        Some(other) => format!("port is {other}; it should be a number from 1 to 65535"),
        None => "port is missing; it should be a number from 1 to 65535".to_owned(),
    })?;
    let flag = |key: &str| match table.get(key) {
        None => Ok(false),
        Some(toml::Value::Boolean(set)) => Ok(*set),
        Some(other) => Err(format!("{key} is {other}; it should be true or false")),
    };
    let (trusted, tls) = (flag("trusted")?, flag("tls")?);
    Ok(MinerAddress { hotkey, address: address.to_owned(), port, trusted, tls })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOB: &str = "5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty";

    #[test]
    fn a_good_file_is_read() {
        let text = format!("[[miner]]\nhotkey = \"{BOB}\"\naddress = \"::1\"\nport = 9101\ntrusted = true\n");
        let miners = parse_miners(&text).unwrap();
        assert_eq!((miners.len(), miners[0].port, miners[0].trusted), (1, 9101, true));
        assert_eq!(miners[0].url(&miners[0].hotkey), format!("ws://[::1]:9101/v0.1/validator_interface/{BOB}"));
        let tls = parse_miners(&text.replace("trusted", "tls")).unwrap();
        assert_eq!(tls[0].url(&tls[0].hotkey), format!("wss://[::1]:9101/v0.1/validator_interface/{BOB}"));
        assert!(parse_miners("miner = []").unwrap().is_empty());
    }

    #[test]
    fn each_mistake_is_named_with_its_place_and_its_cure() {
        let entry = |rest: &str| format!("[[miner]]\nhotkey = \"{BOB}\"\n{rest}");
        for (text, expected) in [
            ("", "no [[miner]] table"),
            ("[miner]\nport = 1", "with two brackets"),
            ("x = 1", "unknown key \"x\""),
            ("[[miner]]\nhotkey = 5", "number 1: hotkey is 5; it should be a text"),
            ("[[miner]]\nhotkey = \"5abc\"", "number 1: hotkey \"5abc\":"),
            (&entry("address = \"ws://x\"\nport = 1"), "without scheme or port"),
            (&entry("address = \"x\"\nport = 0"), "port is 0; it should be a number from 1 to 65535"),
            (&entry("address = \"x\""), "port is missing"),
            (
                &entry("address = \"x\"\nport = 1\nprot = 2"),
                "unknown key \"prot\"; it has hotkey, address, port, trusted, tls",
            ),
            (&entry("address = \"x\"\nport = 1\n").repeat(2), "number 2: hotkey 5FHneW46"),
            ("[[miner", "not TOML"),
        ] {
            let problem = parse_miners(text).unwrap_err();
            assert!(problem.contains(expected), "{text:?}: {problem}");
            assert!(!problem.contains('\n'), "{problem}");
        }
    }
}
