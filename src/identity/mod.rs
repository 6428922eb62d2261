//! Who we are and who signed what: sr25519 key pairs, SS58 addresses, signatures and Bittensor hotkey files.
//!
//! Everything here is pure apart from [`KeyPair::load`] and [`write_hotkey_file`], which touch one file each.
//!
//! ```
//! use phalanx::identity::{KeyPair, PublicKey};
//!
//! let alice = KeyPair::load("//Alice")?;
//! let signature = alice.sign(b"hello");
//! let signer = PublicKey::from_ss58(&alice.ss58())?;
//! assert!(signer.verify(b"hello", &signature));
//! # Ok::<(), phalanx::identity::IdentityError>(())
//! ```
mod batch;
mod error;
mod hotkey_file;
mod keys;
mod secret;
mod signature;
mod ss58;

pub use batch::verify_batch;
pub use error::IdentityError;
pub use hotkey_file::{HOTKEY_FILE_LIMIT, write_hotkey_file};
pub use keys::{KeyPair, PublicKey};
pub use secret::seed_from_mnemonic;
pub use signature::Signature;
pub use ss58::SS58_PREFIX;
