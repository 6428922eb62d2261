//! `phalanx key`: make keys, show them, sign and verify.
//!
//! Results go to stdout, complaints to stderr in one line, and secrets nowhere but to the stdout of `generate`.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;

use clap::Subcommand;
use serde_json::json;

use crate::base::key_file::{openness, tell_if_open};
use crate::base::small_file;
use crate::identity::{
    HOTKEY_FILE_LIMIT, IdentityError, KeyPair, PublicKey, Signature, seed_from_mnemonic, write_hotkey_file,
};

/// The arguments of `phalanx key`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands of `phalanx key`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a new key and print {mnemonic, ss58, public_key, seed}, or keep it in a file
    Generate {
        /// Write a Bittensor hotkey file (mode 0600; an existing file is kept) and print only {ss58, public_key}
        #[arg(long, value_name = "FILE", env = "PHALANX_KEY_OUT")]
        out: Option<PathBuf>,
    },
    /// Print {ss58, public_key} of a key
    Show {
        /// The key.
        #[command(flatten)]
        key: KeyArg,
    },
    /// Sign bytes and print the signature, 0x and 128 hex digits
    Sign {
        /// The key.
        #[command(flatten)]
        key: KeyArg,
        /// The bytes to sign, in hex, with or without 0x
        #[arg(long = "hex", value_name = "MSG", env = "PHALANX_KEY_HEX")]
        message: String,
    },
    /// Check a signature: prints valid (exit 0) or invalid (exit 1)
    Verify {
        /// The address of the supposed signer
        #[arg(long, value_name = "SS58", env = "PHALANX_KEY_SIGNER")]
        signer: String,
        /// The signed bytes, in hex, with or without 0x; <Bytes>…</Bytes> around them is tried as well
        #[arg(long = "hex", value_name = "MSG", env = "PHALANX_KEY_HEX")]
        message: String,
        /// The signature, 0x and 128 hex digits
        #[arg(long, value_name = "SIG", env = "PHALANX_KEY_SIGNATURE")]
        signature: String,
    },
}

/// The flag `--key`, the same in every command that signs.
#[derive(clap::Args)]
pub struct KeyArg {
    /// A development URI (//Alice), the path of a Bittensor hotkey file, a mnemonic, or 0x and 64 hex digits; - for
    /// standard input, credential:NAME for one that systemd gives; prefer a file: other users of the machine can read
    /// the arguments of a process
    #[arg(long, value_name = "K", required_unless_present = "key_file", env = "PHALANX_KEY", hide_env_values = true)]
    key: Option<String>,
    /// A file with the key, in any of the forms of --key but a path; - for standard input
    #[arg(long, value_name = "FILE", env = "PHALANX_KEY_FILE")]
    key_file: Option<PathBuf>,
}

/// What `--key` begins with where the rest is the name of a credential of systemd.
pub(super) const CREDENTIAL: &str = "credential:";

/// The name that stands for standard input.
const STDIN: &str = "-";

impl KeyArg {
    /// The key. Blocks for a file, at most 10 s for each piece from a pipe.
    ///
    /// # Errors
    /// One line that names the flag, and nothing of the key.
    pub fn load(&self) -> Result<KeyPair, String> {
        match (&self.key, &self.key_file) {
            (Some(_), Some(_)) => Err("give --key or --key-file, not both".to_owned()),
            (Some(key), None) => load_key(key).map_err(|problem| format!("--key: {problem}")),
            (None, Some(file)) => load_kept(file).map_err(|problem| format!("--key-file: {problem}")),
            (None, None) => Err("--key is missing; give a hotkey file".to_owned()),
        }
    }

    /// What is to be said of the file of the key, if other users can get at it.
    pub(super) fn openness(&self) -> Option<String> {
        let file = self.key_file.clone().or_else(|| self.key.as_ref().map(PathBuf::from))?;
        openness(&file, &std::fs::metadata(&file).ok()?)
    }

    /// The flag, for a command that a person may type again; the key itself only if it is no secret.
    pub(super) fn shown(&self) -> String {
        let quoted = |text: &str| shlex::try_quote(text).map_or("KEY".to_owned(), Into::into);
        match (&self.key, &self.key_file) {
            (_, Some(file)) => format!("--key-file {}", quoted(&file.to_string_lossy())),
            (Some(key), None) if key.starts_with("//") || Path::new(key).is_file() => format!("--key {}", quoted(key)),
            _ => "--key KEY".to_owned(),
        }
    }

    /// Whether it comes from standard input.
    pub(super) fn is_on_stdin(&self) -> bool {
        let is_dash = |text: &str| text.trim() == STDIN;
        self.key.as_deref().is_some_and(is_dash) || self.key_file.as_ref().is_some_and(|file| file.as_os_str() == STDIN)
    }

    /// Which key is meant, for comparison.
    pub(super) fn named(&self) -> String {
        format!("{:?} {:?}", self.key, self.key_file)
    }
}

/// The value of `--key`.
pub(super) fn load_key(key: &str) -> Result<KeyPair, String> {
    if key.trim() == STDIN {
        return load_kept(Path::new(STDIN));
    }
    match key.trim().strip_prefix(CREDENTIAL) {
        Some(name) => load_kept(&credential(name)?),
        None => KeyPair::load(key).map_err(|error| error.to_string()),
    }
}

fn load_kept(file: &Path) -> Result<KeyPair, String> {
    let bytes = match file.as_os_str() == STDIN {
        true => standard_input()?,
        false => small_file::read(file, HOTKEY_FILE_LIMIT).map_err(|e| format!("{}: {e}", file.display()))?,
    };
    if let Ok(metadata) = std::fs::metadata(file) {
        tell_if_open(file, &metadata);
    }
    let origin = if file.as_os_str() == STDIN { Path::new("standard input") } else { file };
    KeyPair::from_kept(&bytes, origin).map_err(|error| error.to_string())
}

/// All of standard input; it is read once, however often it is asked for, as when SIGHUP has the settings read again.
fn standard_input() -> Result<Vec<u8>, String> {
    static READ: OnceLock<Result<Vec<u8>, String>> = OnceLock::new();
    let read = || {
        let mut stdin = io::stdin().lock();
        // A person at a terminal may take a while.
        let may_wait = !stdin.is_terminal();
        small_file::read_from(&mut stdin, HOTKEY_FILE_LIMIT, may_wait).map_err(|e| format!("standard input: {e}"))
    };
    READ.get_or_init(read).clone()
}

/// Where systemd has put a credential of this process (`LoadCredential=`, `SetCredentialEncrypted=`).
///
/// # Errors
/// What is missing, in words.
pub(super) fn credential(name: &str) -> Result<PathBuf, String> {
    if name.is_empty() || name.contains('/') || name == ".." {
        return Err(format!("{CREDENTIAL}{name}: it should be the name of a credential, without a slash"));
    }
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
        format!(
            "{CREDENTIAL}{name}: CREDENTIALS_DIRECTORY is not set; systemd sets it for a unit with \
             LoadCredential={name}:FILE"
        )
    })?;
    Ok(Path::new(&folder).join(name))
}

/// Shows nothing of the key.
impl std::fmt::Debug for KeyArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyArg(…)")
    }
}

/// Why a `phalanx key` command has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
enum KeyError {
    /// The value of a flag is not what it has to be.
    #[error("{flag}: {cause}")]
    Flag { flag: &'static str, cause: IdentityError },
    /// The key cannot be read.
    #[error("{0}")]
    Key(String),
    /// The message is not hex.
    #[error("--hex: {0}, expected an even number of hex digits with or without 0x")]
    Message(hex::FromHexError),
}

/// What a command prints, a line, and whether it is good news.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    line: String,
    good: bool,
}

/// Runs the command: exit 0 done or valid, 1 invalid (or stdout is gone), 2 bad input, with one line on stderr.
///
/// Blocks only for the key file, as [`KeyArg::load`] and [`write_hotkey_file`] say.
pub fn run(args: Args) -> ExitCode {
    let answer = match answer(args.command) {
        Ok(answer) => answer,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    if let Err(error) = writeln!(io::stdout(), "{}", answer.line) {
        eprintln!("error: the answer could not be written to stdout: {error}");
        return ExitCode::from(1);
    }
    ExitCode::from(if answer.good { 0 } else { 1 })
}

fn answer(command: Command) -> Result<Answer, KeyError> {
    let good = |line: String| Ok(Answer { line, good: true });
    match command {
        Command::Generate { out: None } => {
            let (pair, mnemonic) = KeyPair::generate();
            let seed = seed_from_mnemonic(&mnemonic, None).expect("the mnemonic was made just now");
            let public = pair.public();
            let seed = format!("0x{}", hex::encode(seed));
            good(
                json!({"mnemonic": mnemonic, "ss58": public.to_ss58(), "public_key": public.to_hex(), "seed": seed})
                    .to_string(),
            )
        }
        Command::Generate { out: Some(path) } => good(describe(generate_into(&path)?.public())),
        Command::Show { key } => good(describe(load(&key)?.public())),
        Command::Sign { key, message } => good(load(&key)?.sign(&decode(&message)?).to_hex()),
        Command::Verify { signer, message, signature } => {
            let signer = PublicKey::from_ss58(&signer).map_err(|cause| KeyError::Flag { flag: "--signer", cause })?;
            let signature =
                Signature::from_hex(&signature).map_err(|cause| KeyError::Flag { flag: "--signature", cause })?;
            let good = signer.verify(&decode(&message)?, &signature);
            Ok(Answer { line: if good { "valid" } else { "invalid" }.into(), good })
        }
    }
}

fn generate_into(path: &Path) -> Result<KeyPair, KeyError> {
    let (_, mnemonic) = KeyPair::generate();
    write_hotkey_file(path, &mnemonic).map_err(|cause| KeyError::Flag { flag: "--out", cause })
}

fn load(key: &KeyArg) -> Result<KeyPair, KeyError> {
    key.load().map_err(KeyError::Key)
}

fn decode(message: &str) -> Result<Vec<u8>, KeyError> {
    hex::decode(message.strip_prefix("0x").unwrap_or(message)).map_err(KeyError::Message)
}

fn describe(public: PublicKey) -> String {
    json!({"ss58": public.to_ss58(), "public_key": public.to_hex()}).to_string()
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::Value;

    use super::*;

    const ALICE: &str = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
    const ALICE_HEX: &str = "d43593c715fdd31c61141abd04a99fd6822c8558854ccde39a5684e7a56da27d";

    /// Stands in for the binary.
    #[derive(Debug, Parser)]
    struct Key {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &[&str]) -> Args {
        Key::try_parse_from(std::iter::once(&"key").chain(line)).unwrap().args
    }

    fn ask(line: &[&str]) -> Answer {
        answer(parse(line).command).unwrap()
    }

    fn complaint(line: &[&str]) -> String {
        answer(parse(line).command).expect_err("bad input must be refused").to_string()
    }

    fn exit_code(line: &[&str]) -> String {
        // An exit code can be printed and not compared.
        format!("{:?}", run(parse(line)))
    }

    #[test]
    fn show_prints_address_and_public_key() {
        let expected = format!(r#"{{"ss58":"{ALICE}","public_key":"{ALICE_HEX}"}}"#);
        assert_eq!(ask(&["show", "--key", "//Alice"]), Answer { line: expected, good: true });
    }

    #[test]
    fn what_sign_prints_verify_accepts() {
        for message in ["", "0x", "00ff", "0x00FF"] {
            let signature = ask(&["sign", "--key", "//Alice", "--hex", message]).line;
            assert_eq!(signature.len(), 130);
            let verify =
                |signer, message| ask(&["verify", "--signer", signer, "--hex", message, "--signature", &signature]);
            assert_eq!(verify(ALICE, message), Answer { line: "valid".into(), good: true });
            assert_eq!(verify(ALICE, "0x00fe"), Answer { line: "invalid".into(), good: false });
            let bob = "5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty";
            assert_eq!(verify(bob, message), Answer { line: "invalid".into(), good: false });
        }
    }

    #[test]
    fn verify_knows_signatures_of_the_python_wallet() {
        // Unwrapped and wrapped signatures over "hello" and the public key of Alice, from the vectors.
        for (message, signature) in [
            (
                "68656c6c6f",
                "0x22be041051df84439b22cb821111e959ab360d525a655cb361b86bc383ea727b\
                 9c8a7f33be310fe1c9bd0656066349cf3dc5044b22fe825fef232a9e79e3c289",
            ),
            (
                ALICE_HEX,
                "0xa82fc084a2dbc4b604940fbf86691e2ac1fdca89da5e55523c57720b01fd662e\
                 f59c0edc745ae6eb8a0bd1fb28787ba750dcdf7dc5b7668ae14603706fcc268d",
            ),
        ] {
            assert!(ask(&["verify", "--signer", ALICE, "--hex", message, "--signature", signature]).good);
        }
    }

    #[test]
    fn generate_prints_a_key_that_all_its_forms_agree_on() {
        let line = ask(&["generate"]).line;
        let key: Value = serde_json::from_str(&line).unwrap();
        let names: Vec<&String> = key.as_object().unwrap().keys().collect();
        assert_eq!(names, ["mnemonic", "ss58", "public_key", "seed"]);
        for form in ["mnemonic", "seed"] {
            let shown = ask(&["show", "--key", key[form].as_str().unwrap()]).line;
            let shown: Value = serde_json::from_str(&shown).unwrap();
            assert_eq!((&shown["ss58"], &shown["public_key"]), (&key["ss58"], &key["public_key"]));
        }
        assert_ne!(ask(&["generate"]).line, line);
    }

    #[test]
    fn generate_into_a_file_prints_no_secret_and_overwrites_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hotkey");
        let path = path.to_str().unwrap();
        let line = ask(&["generate", "--out", path]).line;
        assert_eq!(ask(&["show", "--key", path]).line, line);
        let content = std::fs::read(path).unwrap();
        let error = complaint(&["generate", "--out", path]);
        assert!(error.starts_with(&format!("--out: hotkey file {path}: exists already")), "{error}");
        assert_eq!(std::fs::read(path).unwrap(), content);
    }

    #[test]
    fn bad_input_names_the_flag_in_one_line_without_the_secret() {
        let secret = "bottom drive obey lake";
        let good = format!("0x{}", "00".repeat(64));
        let cases: [(&[&str], &str); 7] = [
            (&["show", "--key", secret], "--key: this text of 4 words is neither"),
            (&["show", "--key", "/no/such/file"], "--key: \"/no/such/file\" is neither"),
            (&["sign", "--key", "//Alice", "--hex", "0x1"], "--hex: Odd number of digits, expected an even number"),
            (&["sign", "--key", "//Alice", "--hex", "zz"], "--hex: Invalid character 'z' at position 0, expected"),
            (
                &["verify", "--signer", "5abc", "--hex", "00", "--signature", &good],
                "--signer: \"5abc\" is not an SS58 address",
            ),
            (
                &["verify", "--signer", ALICE, "--hex", "00", "--signature", &good[2..]],
                "--signature: a signature is 0x and 128 hex digits: it does not begin with 0x",
            ),
            (&["verify", "--signer", ALICE, "--hex", "0", "--signature", &good], "--hex: Odd number"),
        ];
        for (line, expected) in cases {
            let error = complaint(line);
            assert!(error.starts_with(expected), "{error}");
            assert!(!error.contains('\n') && !error.contains(secret), "{error}");
            assert_eq!(exit_code(line), format!("{:?}", ExitCode::from(2)));
        }
    }

    #[test]
    fn the_exit_code_is_the_verdict() {
        let signature = ask(&["sign", "--key", "//Alice", "--hex", "00"]).line;
        let verify = |message| exit_code(&["verify", "--signer", ALICE, "--hex", message, "--signature", &signature]);
        assert_eq!(verify("00"), format!("{:?}", ExitCode::from(0)));
        assert_eq!(verify("01"), format!("{:?}", ExitCode::from(1)));
    }

    #[test]
    fn arguments_do_not_show_the_key_when_printed() {
        let printed = format!("{:?}", parse(&["show", "--key", "//very//secret"]));
        assert!(printed.contains("KeyArg(…)") && !printed.contains("secret"), "{printed}");
    }

    #[test]
    fn the_arguments_are_consistent() {
        use clap::CommandFactory;
        Key::command().debug_assert();
    }
}
