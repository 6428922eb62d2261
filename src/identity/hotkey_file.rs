//! Bittensor hotkey files: one JSON object with the secret and the address of a key.
//!
//! The form is that of `bittensor-wallet`: `secretSeed`, `secretPhrase` and `privateKey` are strings of which any may
//! be missing, `ss58Address` is the address, and `cryptoType`, where it is given, is 1 for sr25519.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{IdentityError, KeyPair, PublicKey, secret, seed_from_mnemonic};
use crate::base::key_file::tell_if_open;
use crate::base::{small_file, text};

/// The longest hotkey file that is read, in bytes: a hundred times a real one, so that a wrong path does no harm.
pub const HOTKEY_FILE_LIMIT: u64 = 64 * 1024;

/// How the three kinds of encrypted wallet files begin, newest kind first, and what the kind is called.
const ENCRYPTED: [(&[u8], &str); 3] = [(b"$NACL", "NaCl"), (b"$ANSIBLE_VAULT", "Ansible Vault"), (b"gAAAAA", "Fernet")];

impl KeyPair {
    /// Reads the value of `--key`, in any form an operator has it.
    ///
    /// * begins with `//` or `0x`, or has twelve words or more: a key URI, see [`KeyPair::from_uri`];
    /// * anything else: the path of a Bittensor hotkey file, unencrypted, whose `ss58Address` must fit its secret.
    ///   (Write `./0x…` for a file of such a name.)
    ///
    /// A file that other users can read is told in the log. Blocks only while the file is read, which for a pipe means
    /// at most 10 s for each
    /// piece.
    ///
    /// # Errors
    /// Those of [`KeyPair::from_uri`]; for a path, what is wrong with the file and its fields; for a text that is
    /// neither, both readings.
    pub fn load(key: &str) -> Result<Self, IdentityError> {
        let key = key.trim();
        let words = key.split_whitespace().count();
        if key.starts_with("//") || key.starts_with("0x") || (words >= 12 && !is_path(key)) {
            return Self::from_uri(key);
        }
        read(key)
    }
}

impl KeyPair {
    /// Reads a key from a text that was kept somewhere: a key URI, see [`KeyPair::from_uri`], or the content of a
    /// hotkey file. `origin` is where it was, for errors.
    ///
    /// # Errors
    /// What is wrong with it, as of [`KeyPair::load`].
    pub fn from_kept(bytes: &[u8], origin: &Path) -> Result<Self, IdentityError> {
        let wrong = |why| IdentityError::HotkeyFile { path: origin.into(), why };
        let is_encrypted = ENCRYPTED.iter().any(|(start, _)| bytes.starts_with(start));
        if is_encrypted || bytes.len() as u64 > HOTKEY_FILE_LIMIT {
            return parse(bytes).map_err(wrong);
        }
        let text = text::of_file(bytes).map_err(wrong)?.trim();
        match text {
            "" => Err(wrong("it is empty; it should have a key in it".to_owned())),
            text if text.starts_with('{') => parse(bytes).map_err(wrong),
            text => Self::from_uri(text),
        }
    }
}

/// Whether a `--key` is written as only a path is: nothing else begins with `/` (but `//`), `.` or `~`.
fn is_path(key: &str) -> bool {
    key.starts_with(['/', '.', '~']) && !key.starts_with("//")
}

/// Reads the hotkey file that `key` is the path of, and checks its secret against its address.
fn read(key: &str) -> Result<KeyPair, IdentityError> {
    let path = Path::new(key);
    let failed = |cause| IdentityError::HotkeyFileIo { path: path.into(), cause };
    let bytes = small_file::read(path, HOTKEY_FILE_LIMIT).map_err(|cause| match cause.kind() {
        ErrorKind::FileTooLarge => IdentityError::HotkeyFile { path: path.into(), why: too_long() },
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidFilename | ErrorKind::InvalidInput => {
            no_such_key(key, cause)
        }
        _ => failed(cause),
    })?;
    tell_if_open(path, &fs::metadata(path).map_err(failed)?);
    parse(&bytes).map_err(|why| IdentityError::HotkeyFile { path: path.into(), why })
}

/// Explains a value that is neither key nor file, without repeating what may be a secret with a slip in it.
fn no_such_key(key: &str, cause: io::Error) -> IdentityError {
    let hex_digits = key.len() >= 32 && key.bytes().all(|byte| byte.is_ascii_hexdigit());
    let (shown, why) = match key.split_whitespace().count() {
        0 => ("an empty text".into(), "nothing is given"),
        1 if hex_digits => ("this text of hex digits".into(), "a seed begins with 0x"),
        words if words > 1 && !is_path(key) => (format!("this text of {words} words"), "a mnemonic has at least 12"),
        _ => (format!("{key:?}"), "that is //Alice, a mnemonic, or 0x and 64 hex digits"),
    };
    IdentityError::NoSuchKey { shown, why, cause }
}

fn too_long() -> String {
    format!("longer than {HOTKEY_FILE_LIMIT} bytes, so it is no hotkey file")
}

/// Reads the content of a hotkey file; the error says what is wrong with it.
fn parse(bytes: &[u8]) -> Result<KeyPair, String> {
    let marked = bytes.starts_with(b"\xef\xbb\xbf");
    let note = if marked { " (it begins with a byte order mark, which is passed over)" } else { "" };
    parse_content(bytes).map_err(|why| why + note)
}

fn parse_content(bytes: &[u8]) -> Result<KeyPair, String> {
    if bytes.len() as u64 > HOTKEY_FILE_LIMIT {
        return Err(too_long());
    }
    if let Some((_, kind)) = ENCRYPTED.iter().find(|(start, _)| bytes.starts_with(start)) {
        return Err(format!(
            "encrypted ({kind}), and a service has nobody to ask for the password; give a hotkey without one \
             (`btcli wallet regen-hotkey --no-use-password` makes it from the mnemonic)"
        ));
    }
    let text = text::of_file(bytes)?;
    let value: Value =
        serde_json::from_str(text).map_err(|error| format!("not JSON ({error}), so it is no hotkey file"))?;
    let Value::Object(fields) = value else {
        return Err("the JSON is not an object, so it is no hotkey file".into());
    };
    match fields.get("cryptoType") {
        None | Some(Value::Null) => {}
        Some(number) if number.as_u64() == Some(1) => {}
        Some(_) => return Err("cryptoType is not 1: only sr25519 keys can sign here".into()),
    }
    let address = field(&fields, "ss58Address")?.ok_or("ss58Address is missing, so the key cannot be checked")?;
    let address = PublicKey::from_ss58(address).map_err(|error| format!("ss58Address: {error}"))?;
    let (name, pair) = secret_of(&fields)?;
    let found = pair.public();
    if found != address {
        return Err(format!("ss58Address is {address}, but {name} is the secret of {found}: the file is damaged"));
    }
    Ok(pair)
}

/// The first secret of the file that can be read, with the name of its field.
///
/// Some wallets write a `secretSeed` that is not hex beside a good `privateKey`, so one bad field is not the end.
fn secret_of(fields: &Map<String, Value>) -> Result<(&'static str, KeyPair), String> {
    let mut complaints = Vec::new();
    for name in ["secretSeed", "privateKey", "secretPhrase"] {
        let Some(text) = field(fields, name)? else {
            continue;
        };
        let pair = match name {
            "secretPhrase" => KeyPair::from_mnemonic(text, None),
            _ => secret::from_hex(text).map(KeyPair),
        };
        match pair {
            Ok(pair) => return Ok((name, pair)),
            Err(error) => complaints.push(format!("{name} cannot be read ({error})")),
        }
    }
    if complaints.is_empty() {
        complaints.push(
            "secretSeed, privateKey and secretPhrase are all missing; a …pub.txt file holds no secret and cannot sign"
                .into(),
        );
    }
    Err(complaints.join("; "))
}

/// A field that is a text, if it is there and says anything.
fn field<'a>(fields: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, String> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
        Some(_) => Err(format!("{name} is not a string")),
    }
}

/// Writes the pair of a mnemonic as a hotkey file that Bittensor wallets read, for its owner's eyes only (mode 0600),
/// and returns the pair.
///
/// Blocks while the file is written and synced. A file that could not be written whole is removed again.
///
/// # Errors
/// [`IdentityError::Mnemonic`]; [`IdentityError::HotkeyFile`] when anything at all is at `path` already;
/// [`IdentityError::HotkeyFileIo`] when the file cannot be written.
pub fn write_hotkey_file(path: &Path, mnemonic: &str) -> Result<KeyPair, IdentityError> {
    let seed = seed_from_mnemonic(mnemonic, None)?;
    let pair = KeyPair::from_seed(seed);
    let public = format!("0x{}", pair.public().to_hex());
    // `cryptoType` is left out: readers take sr25519 without it, and older ones refuse the whole file because of it.
    let content = json!({
        "accountId": public,
        "publicKey": public,
        "privateKey": format!("0x{}", hex::encode(pair.private_bytes())),
        "secretPhrase": mnemonic,
        "secretSeed": format!("0x{}", hex::encode(seed)),
        "ss58Address": pair.ss58(),
    });
    let failed = |cause| IdentityError::HotkeyFileIo { path: path.into(), cause };
    // `create_new` also refuses a dangling link, behind which the secret would land somewhere unexpected.
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|cause| match cause.kind() {
            ErrorKind::AlreadyExists => IdentityError::HotkeyFile {
                path: path.into(),
                why: "exists already and is kept; name a new file".into(),
            },
            _ => failed(cause),
        })?;
    if let Err(cause) = file.write_all(content.to_string().as_bytes()).and_then(|()| file.sync_all()) {
        return Err(match std::fs::remove_file(path) {
            Ok(()) => failed(cause),
            Err(left) => failed(io::Error::other(format!("{cause}; the partial file could not be removed ({left})"))),
        });
    }
    Ok(pair)
}
