//! A list of miners as TOML or as JSON: `miner`, each with `hotkey`, `address`, `port`, and perhaps `trusted = true` or
//! `tls = true`. Pure.

use std::collections::HashSet;

use crate::identity::PublicKey;
use crate::validator::routing::MinerAddress;

/// Bytes of a host name: the most that the name system has.
const HOST_BYTES: usize = 253;

const KEYS: [&str; 5] = ["hotkey", "address", "port", "trusted", "tls"];

/// Reads the text of a miners file.
///
/// # Errors
/// The first problem, in words.
pub fn parse_miners(text: &str) -> Result<Vec<MinerAddress>, String> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        format!("not TOML: {}", e.to_string().split_whitespace().collect::<Vec<_>>().join(" "))
    })?;
    miners_of(&table)
}

/// Reads the same as JSON: `{"miner": [{"hotkey": "5…", "address": "127.0.0.1", "port": 9101}]}`.
///
/// # Errors
/// The first problem, in words.
pub fn parse_miners_json(text: &[u8]) -> Result<Vec<MinerAddress>, String> {
    let fail = |why: String| format!("not a JSON object of miners: {why}");
    let value: serde_json::Value = serde_json::from_slice(text).map_err(|e| fail(e.to_string()))?;
    match as_toml(value).map_err(fail)? {
        toml::Value::Table(table) => miners_of(&table),
        _ => Err(fail("write {\"miner\": [{\"hotkey\": …}]}".to_owned())),
    }
}

/// Its nesting is bounded by what reads JSON.
fn as_toml(value: serde_json::Value) -> Result<toml::Value, String> {
    use serde_json::Value as Json;
    Ok(match value {
        Json::Null => return Err("null is no value here; leave the key out".to_owned()),
        Json::Bool(value) => value.into(),
        Json::String(text) => text.into(),
        Json::Number(number) => match number.as_i64() {
            Some(number) => number.into(),
            // It is shown as what is wrong.
            None => number.as_f64().unwrap_or(f64::NAN).into(),
        },
        Json::Array(values) => toml::Value::Array(values.into_iter().map(as_toml).collect::<Result<_, _>>()?),
        Json::Object(fields) => {
            let fields = fields.into_iter().map(|(key, value)| Ok((key, as_toml(value)?)));
            toml::Value::Table(fields.collect::<Result<_, String>>()?)
        }
    })
}

fn miners_of(table: &toml::Table) -> Result<Vec<MinerAddress>, String> {
    if let Some(key) = table.keys().find(|k| *k != "miner") {
        return Err(format!("unknown key {key:?}; there are [[miner]] tables (in JSON a list \"miner\") only"));
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
    if address.len() > HOST_BYTES {
        let bytes = address.len();
        return Err(format!("address has {bytes} bytes; it should be a host name or an IP address"));
    }
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
    fn json_says_the_same_as_toml() {
        let toml = format!("[[miner]]\nhotkey = \"{BOB}\"\naddress = \"h\"\nport = 1\ntls = true\n");
        let json = format!(r#"{{"miner": [{{"hotkey": "{BOB}", "address": "h", "port": 1, "tls": true}}]}}"#);
        assert_eq!(parse_miners_json(json.as_bytes()).unwrap(), parse_miners(&toml).unwrap());
        assert!(parse_miners_json(br#"{"miner": []}"#).unwrap().is_empty());
        for (json, expected) in [
            ("", "not a JSON object of miners: EOF"),
            (r#"[{"hotkey": 1}]"#, "not a JSON object of miners"),
            (&json[..json.len() - 3], "not a JSON object of miners: EOF"),
            (&json.replace("true", "null"), "not a JSON object of miners: null is no value here"),
            (&json.replace(r#""port": 1"#, r#""port": 1.5"#), "number 1: port is 1.5; it should be a number"),
            (&format!("{{{}}}", r#""a":"#.repeat(200)), "not a JSON object of miners"),
            (&format!(r#"{{"miner": {}{}}}"#, "[".repeat(1000), "]".repeat(1000)), "not a JSON object of miners"),
            ("{}", "no [[miner]] table"),
        ] {
            let problem = parse_miners_json(json.as_bytes()).unwrap_err();
            assert!(problem.contains(expected) && !problem.contains('\n'), "{json:?}: {problem}");
        }
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
