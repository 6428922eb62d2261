//! `phalanx key`: make keys, show them, sign and verify.
//!
//! Results go to stdout, complaints to stderr in one line, and secrets nowhere but to the stdout of `generate`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use crate::identity::{
    IdentityError, KeyPair, PublicKey, Signature, seed_from_mnemonic, write_hotkey_file,
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
    /// A development URI (//Alice), the path of a Bittensor hotkey file, a mnemonic, or 0x and 64 hex digits; prefer
    /// a file: other users of the machine can read the arguments of a process
    #[arg(long, value_name = "K", env = "PHALANX_KEY", hide_env_values = true)]
    pub key: String,
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
    Flag {
        flag: &'static str,
        cause: IdentityError,
    },
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
/// Blocks only for the key file, as [`KeyPair::load`] and [`write_hotkey_file`] say.
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
        Command::Verify {
            signer,
            message,
            signature,
        } => {
            let signer = PublicKey::from_ss58(&signer).map_err(|cause| KeyError::Flag {
                flag: "--signer",
                cause,
            })?;
            let signature = Signature::from_hex(&signature).map_err(|cause| KeyError::Flag {
                flag: "--signature",
                cause,
            })?;
            let good = signer.verify(&decode(&message)?, &signature);
            Ok(Answer {
                line: if good { "valid" } else { "invalid" }.into(),
                good,
            })
        }
    }
}

fn generate_into(path: &Path) -> Result<KeyPair, KeyError> {
    let (_, mnemonic) = KeyPair::generate();
    write_hotkey_file(path, &mnemonic).map_err(|cause| KeyError::Flag {
        flag: "--out",
        cause,
    })
}

fn load(key: &KeyArg) -> Result<KeyPair, KeyError> {
    KeyPair::load(&key.key).map_err(|cause| KeyError::Flag {
        flag: "--key",
        cause,
    })
}

fn decode(message: &str) -> Result<Vec<u8>, KeyError> {
    hex::decode(message.strip_prefix("0x").unwrap_or(message)).map_err(KeyError::Message)
}

fn describe(public: PublicKey) -> String {
    json!({"ss58": public.to_ss58(), "public_key": public.to_hex()}).to_string()
}
