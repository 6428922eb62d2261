//! Bittensor hotkey files: those of the Python wallet are read, bad ones are refused by file and field, ours are
//! private.
//!
//! The files in `fixtures/` were written by `bittensor-wallet` 4.1.1 for throw-away keys.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use phalanx::identity::{HOTKEY_FILE_LIMIT, IdentityError, KeyPair, write_hotkey_file};
use serde_json::{Value, json};

const DEV_MNEMONIC: &str = "bottom drive obey lake curtain smoke basket hold race lonely fit walk";
const ALICE: &str = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
const ALICE_HOT: &str = "5G6Fyo6U2fDhJXDJGp4Dr6XViVCdPcryiyLBDsusguSRcYvJ";
/// The seed 0x0102…20, and its address.
const COUNTING_SEED: &str = "0x0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20";
const COUNTING: &str = "5CShbTqxKUgKZBRDu1VGVpivm3m415stz86A5GBdoV7wrU1d";

fn text<'a>(case: &'a Value, field: &str) -> &'a str {
    case[field].as_str().unwrap_or_else(|| panic!("no {field} in {case}"))
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn load_path(path: &Path) -> Result<KeyPair, IdentityError> {
    KeyPair::load(path.to_str().unwrap())
}

/// A folder with one file of the given content in it.
struct KeyFile {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl KeyFile {
    fn new(content: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hotkey");
        fs::write(&path, content).unwrap();
        Self { _folder: folder, path }
    }

    /// The messages about the file; every such line must name it.
    fn complaint(&self) -> String {
        let line = load_path(&self.path).expect_err("the file must be refused").to_string();
        assert!(line.contains(self.path.to_str().unwrap()), "names no file: {line}");
        assert!(!line.contains('\n'), "more than a line: {line}");
        line
    }
}

fn fixture_fields(name: &str) -> Value {
    serde_json::from_slice(&fs::read(fixture(name)).unwrap()).unwrap()
}

/// `hotkey.json` with fields replaced; a null removes the field.
fn changed(changes: Value) -> KeyFile {
    let mut fields = fixture_fields("hotkey.json");
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => assert!(fields.as_object_mut().unwrap().remove(name).is_some(), "no {name} to remove"),
            value => fields[name] = value.clone(),
        }
    }
    KeyFile::new(fields.to_string().as_bytes())
}

#[test]
fn hotkey_files_of_the_python_wallet_are_read() {
    let created = fixture_fields("hotkey.json");
    assert_eq!(load_path(&fixture("hotkey.json")).unwrap().ss58(), text(&created, "ss58Address"));
    assert_eq!(format!("0x{}", load_path(&fixture("hotkey.json")).unwrap().public().to_hex()), created["publicKey"]);
    // A key from a URI has neither seed nor phrase in its file; one from a seed has a seed that is not hex.
    assert_eq!(load_path(&fixture("hotkey_from_uri.json")).unwrap().ss58(), ALICE_HOT);
    assert_eq!(load_path(&fixture("hotkey_from_seed.json")).unwrap().ss58(), COUNTING);
    let from_uri = load_path(&fixture("hotkey_from_uri.json")).unwrap();
    assert!(KeyPair::from_uri("//Alice//hot").unwrap().public().verify(b"hello", &from_uri.sign(b"hello")));
}

#[test]
fn older_hotkey_files_are_read() {
    let address = text(&fixture_fields("hotkey.json"), "ss58Address").to_string();
    let older = [
        json!({"cryptoType": null}),
        json!({"cryptoType": null, "secretPhrase": null}),
        json!({"cryptoType": null, "privateKey": null}),
        json!({"privateKey": null, "secretSeed": null}),
        json!({"secretPhrase": null, "secretSeed": null}),
        json!({"accountId": null, "publicKey": null}),
        json!({"secretPhrase": "", "privateKey": ""}),
        json!({"somethingNew": [1, 2]}),
        // Some wallets put the private key where the seed belongs.
        json!({"secretSeed": fixture_fields("hotkey.json")["privateKey"], "privateKey": null, "secretPhrase": null}),
    ];
    for changes in older {
        let file = changed(changes.clone());
        assert_eq!(load_path(&file.path).unwrap().ss58(), address, "{changes}");
    }
}

#[test]
fn bad_hotkey_files_are_refused_by_field() {
    let phrase_only = json!({"secretSeed": null, "privateKey": null, "secretPhrase": "one two"});
    let cases = [
        (json!({"ss58Address": null}), "ss58Address is missing"),
        (json!({"ss58Address": 5}), "ss58Address is not a string"),
        (json!({"ss58Address": "5abc"}), "ss58Address: \"5abc\" is not an SS58 address"),
        (
            json!({"ss58Address": ALICE}),
            "but secretSeed is the secret of 5FWvr3mDK9Foga4MLMvvqNJLjyCSvi2FDVnitxhNrCvTdpWA",
        ),
        (json!({"secretSeed": "0x12", "privateKey": null, "secretPhrase": null}), "secretSeed cannot be read"),
        (json!({"secretSeed": null, "privateKey": null, "secretPhrase": null}), "are all missing"),
        (json!({"secretSeed": ["0x"]}), "secretSeed is not a string"),
        (json!({"cryptoType": "1"}), "cryptoType is not 1"),
        (phrase_only, "secretPhrase cannot be read (a mnemonic is"),
    ];
    for (changes, why) in cases {
        let line = changed(changes).complaint();
        assert!(line.contains(why), "{line}");
    }
    let line = changed(json!({"secretSeed": COUNTING_SEED})).complaint();
    assert!(line.contains(COUNTING) && !line.contains(COUNTING_SEED), "{line}");

    for (name, why) in [
        ("hotkey_ed25519.json", "cryptoType is not 1: only sr25519 keys can sign here"),
        ("hotkeypub.txt", "a …pub.txt file holds no secret and cannot sign"),
        ("hotkey_encrypted", "encrypted (NaCl), and a service has nobody to ask for the password"),
    ] {
        let line = load_path(&fixture(name)).unwrap_err().to_string();
        assert!(line.contains(name) && line.contains(why), "{line}");
    }
}

#[test]
fn files_that_are_no_hotkeys_are_refused() {
    let secret = "bottom drive obey lake";
    let cases: [(&[u8], &str); 9] = [
        (b"", "not JSON (EOF while parsing a value at line 1 column 0)"),
        (secret.as_bytes(), "not JSON"),
        (b"\"bottom drive obey lake\"", "the JSON is not an object"),
        (b"[]", "the JSON is not an object"),
        (b"\xff\xfe", "it is UTF-16 text; save it as UTF-8"),
        (b"\xff\xf0", "it is not UTF-8 text, from line 1 on; save it as UTF-8"),
        (b"$NACL\x00\xff", "encrypted (NaCl)"),
        (b"$ANSIBLE_VAULT;1.1;AES256\n3762", "encrypted (Ansible Vault)"),
        (b"gAAAAABh", "encrypted (Fernet)"),
    ];
    for (content, why) in cases {
        let line = KeyFile::new(content).complaint();
        assert!(line.contains(why) && !line.contains(secret), "{line}");
    }
}

#[test]
fn a_hotkey_file_has_a_limit() {
    let mut content = fs::read(fixture("hotkey.json")).unwrap();
    content.resize(HOTKEY_FILE_LIMIT as usize, b' ');
    assert!(load_path(&KeyFile::new(&content).path).is_ok());
    content.push(b' ');
    let line = KeyFile::new(&content).complaint();
    assert!(line.contains("longer than 65536 bytes"), "{line}");
}

#[test]
fn a_folder_is_no_hotkey_file() {
    let folder = tempfile::tempdir().unwrap();
    let error = load_path(folder.path()).unwrap_err();
    assert!(matches!(error, IdentityError::HotkeyFileIo { .. }), "{error}");
    assert!(error.to_string().contains(folder.path().to_str().unwrap()), "{error}");
}

#[test]
fn a_written_hotkey_file_is_read_back_and_private() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hotkey");
    let pair = write_hotkey_file(&path, DEV_MNEMONIC).unwrap();
    assert_eq!(load_path(&path).unwrap().public(), pair.public());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let fields: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    // What bittensor-wallet itself writes for this mnemonic.
    assert_eq!(
        fields,
        json!({
            "accountId": "0x46ebddef8cd9bb167dc30878d7113b7e168e6f0646beffd77d69d39bad76b47a",
            "publicKey": "0x46ebddef8cd9bb167dc30878d7113b7e168e6f0646beffd77d69d39bad76b47a",
            "privateKey": "0x05d65584630d16cd4af6d0bec10f34bb504a5dcb62dba2122d49f5a663763d0a\
                           fd190cce74df356432b410bd64682309d6dedb27c76845daf388557cbac3ca34",
            "secretPhrase": DEV_MNEMONIC,
            "secretSeed": "0xfac7959dbfe72f052e5a0c3c8d6530f202b02fd8f9f5ca3580ec8deb7797479e",
            "ss58Address": "5DfhGyQdFobKM8NsWvEeAKk5EQQgYe9AydgJ7rMB6E1EqRzV",
        })
    );
}

#[test]
fn nothing_is_overwritten_by_a_new_hotkey_file() {
    let file = KeyFile::new(b"precious");
    let error = write_hotkey_file(&file.path, DEV_MNEMONIC).unwrap_err();
    assert!(error.to_string().contains("exists already and is kept; name a new file"), "{error}");
    assert_eq!(fs::read(&file.path).unwrap(), b"precious");

    let folder = tempfile::tempdir().unwrap();
    let (link, target) = (folder.path().join("link"), folder.path().join("target"));
    symlink(&target, &link).unwrap();
    assert!(write_hotkey_file(&link, DEV_MNEMONIC).is_err());
    assert!(!target.exists());
    assert!(write_hotkey_file(&folder.path().join("none/hotkey"), DEV_MNEMONIC).is_err());
    assert!(write_hotkey_file(&folder.path().join("new"), "one two").is_err());
    assert!(!folder.path().join("new").exists());
}
