//! Nonces and tokens of the job API: who signed a fresh nonce gets a token. Pure apart from the secret's file.
//!
//! Both are made with one secret and carry their own expiry, so nothing is kept for clients that never come back; only
//! the nonces of successful logins are remembered until they expire, so that each serves once.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::base::small_file;
use crate::store::make_folder;

const SECRET_BYTES: usize = 32;

/// Bytes of its file that are read: its 64 digits, and what an editor adds.
const SECRET_FILE_BYTES: u64 = 1024;

/// How long a nonce may be used: time enough to sign it with a slow wallet.
const NONCE_SECONDS: u64 = 300;

/// The only kind of token we make and take (JWT, RFC 7519, with HS256).
const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// Why a nonce or a token does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// It was not made here, or was changed.
    #[error("Invalid token")]
    Invalid,
    /// The word at which the SDK logs in again.
    #[error("Token expired")]
    Expired,
}

/// Makes and checks tokens.
pub struct Tokens {
    secret: [u8; SECRET_BYTES],
    lifetime: Duration,
    /// Used nonces, with the second after which they are refused for their age anyway.
    used: HashMap<String, u64>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("lifetime", &self.lifetime).finish_non_exhaustive()
    }
}

impl Tokens {
    /// Tokens made with that secret are good for `lifetime`.
    pub fn new(secret: [u8; SECRET_BYTES], lifetime: Duration) -> Self {
        Self { secret, lifetime, used: HashMap::new() }
    }

    /// Reads the secret from a file, or makes the file, readable by its owner only.
    ///
    /// # Errors
    /// The file cannot be read or made, is no regular file, or does not hold a secret.
    pub fn load(path: &Path, lifetime: Duration) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            make_folder(folder).map_err(io::Error::other)?;
        }
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Ok(mut file) => {
                let secret = random();
                file.write_all(hex::encode(secret).as_bytes())?;
                file.sync_all()?;
                Ok(Self::new(secret, lifetime))
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let mut secret = [0; SECRET_BYTES];
                let text = small_file::read_own(path, SECRET_FILE_BYTES)?;
                hex::decode_to_slice(text.trim_ascii(), &mut secret).map_err(|_| {
                    io::Error::other(
                        "it should hold 64 hex digits; delete it to have a new one made (users log in again)",
                    )
                })?;
                Ok(Self::new(secret, lifetime))
            }
            Err(error) => Err(error),
        }
    }

    /// A fresh nonce; `now` is in seconds since 1970.
    pub fn nonce(&self, now: u64) -> String {
        let body = format!("{}.{}", now + NONCE_SECONDS, hex::encode(random::<16>()));
        format!("{body}.{}", self.mac("nonce", &body))
    }

    /// Whether a nonce may be used now; [`Tokens::spend`] is called once the login is good.
    pub fn check_nonce(&self, nonce: &str, now: u64) -> bool {
        let Some((body, mac)) = nonce.rsplit_once('.') else { return false };
        let expiry = body.split_once('.').and_then(|(expiry, _)| expiry.parse::<u64>().ok());
        self.is_mac("nonce", body, mac) && expiry.is_some_and(|expiry| now < expiry) && !self.used.contains_key(nonce)
    }

    /// Uses a nonce up; false if another login was faster.
    pub fn spend(&mut self, nonce: &str, now: u64) -> bool {
        self.used.retain(|_, expiry| *expiry > now);
        self.check_nonce(nonce, now) && self.used.insert(nonce.to_owned(), now + NONCE_SECONDS).is_none()
    }

    /// A token for a user (SS58).
    pub fn issue(&self, user: &str, now: u64) -> String {
        let claims = json!({"sub": user, "iat": now, "exp": now + self.lifetime.as_secs()});
        let body = format!("{}.{}", URL_SAFE_NO_PAD.encode(HEADER), URL_SAFE_NO_PAD.encode(claims.to_string()));
        format!("{body}.{}", self.mac("", &body))
    }

    /// The user (SS58) of a token.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn user(&self, token: &str, now: u64) -> Result<String, TokenError> {
        let (body, mac) = token.rsplit_once('.').ok_or(TokenError::Invalid)?;
        // We made it if the MAC is right, so the header, which is under the MAC, is ours.
        if !self.is_mac("", body, mac) {
            return Err(TokenError::Invalid);
        }
        let claims = body.split_once('.').and_then(|(_, claims)| URL_SAFE_NO_PAD.decode(claims).ok());
        let claims: Value =
            claims.and_then(|claims| serde_json::from_slice(&claims).ok()).ok_or(TokenError::Invalid)?;
        match (claims["sub"].as_str(), claims["exp"].as_u64()) {
            (Some(user), Some(expiry)) if now < expiry => Ok(user.to_owned()),
            (Some(_), Some(_)) => Err(TokenError::Expired),
            _ => Err(TokenError::Invalid),
        }
    }

    /// `purpose` keeps a nonce from being taken for a token and the reverse.
    fn hmac(&self, purpose: &str, body: &str) -> Hmac<Sha256> {
        let mut hmac = Hmac::<Sha256>::new_from_slice(&self.secret).expect("HMAC takes a key of any length");
        hmac.update(purpose.as_bytes());
        hmac.update(body.as_bytes());
        hmac
    }

    fn mac(&self, purpose: &str, body: &str) -> String {
        URL_SAFE_NO_PAD.encode(self.hmac(purpose, body).finalize().into_bytes())
    }

    fn is_mac(&self, purpose: &str, body: &str, mac: &str) -> bool {
        // Compared in constant time.
        URL_SAFE_NO_PAD.decode(mac).is_ok_and(|mac| self.hmac(purpose, body).verify_slice(&mac).is_ok())
    }
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system gives random bytes");
    bytes
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn tokens() -> Tokens {
        Tokens::new([7; SECRET_BYTES], Duration::from_secs(60))
    }

    #[test]
    fn a_token_is_good_for_its_time_and_only_unchanged() {
        let tokens = tokens();
        let token = tokens.issue("5Grw", 1000);
        assert_eq!(tokens.user(&token, 1059), Ok("5Grw".to_owned()));
        assert_eq!(tokens.user(&token, 1060), Err(TokenError::Expired));
        assert_eq!(TokenError::Expired.to_string(), "Token expired");
        let other = Tokens::new([8; SECRET_BYTES], Duration::from_secs(60));
        assert_eq!(other.user(&token, 1000), Err(TokenError::Invalid));
        let (body, mac) = token.rsplit_once('.').unwrap();
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        let claims = body.split_once('.').unwrap().1;
        for bad in
            [format!("{none}.{claims}."), format!("{none}.{claims}.{mac}"), format!("{body}x.{mac}"), body.to_owned()]
        {
            assert_eq!(tokens.user(&bad, 1000), Err(TokenError::Invalid), "{bad}");
        }
        assert_eq!(tokens.user(&tokens.nonce(1000), 1000), Err(TokenError::Invalid));
    }

    /// The token of RFC 7515's layout: three base64url parts, the first two JSON.
    #[test]
    fn a_token_is_a_jwt() {
        let token = tokens().issue("5Grw", 1000);
        let parts: Vec<_> = token.split('.').collect();
        let json = |part: &str| serde_json::from_slice::<Value>(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
        assert_eq!(json(parts[0]), json!({"alg": "HS256", "typ": "JWT"}));
        assert_eq!(json(parts[1]), json!({"sub": "5Grw", "iat": 1000, "exp": 1060}));
        assert_eq!(URL_SAFE_NO_PAD.decode(parts[2]).unwrap().len(), 32);
    }

    #[test]
    fn a_nonce_serves_once_and_not_for_ever() {
        let mut tokens = tokens();
        let nonce = tokens.nonce(1000);
        assert_ne!(nonce, tokens.nonce(1000));
        assert!(tokens.check_nonce(&nonce, 1000));
        assert!(tokens.spend(&nonce, 1000));
        assert!(!tokens.check_nonce(&nonce, 1000) && !tokens.spend(&nonce, 1000));
        let late = tokens.nonce(1000);
        assert!(!tokens.check_nonce(&late, 1000 + NONCE_SECONDS));
        assert!(!tokens.check_nonce(&tokens.issue("5Grw", 1000), 1000) && !tokens.check_nonce("", 1000));
        let far = tokens.nonce(9000);
        assert!(tokens.spend(&far, 9000));
        assert_eq!(tokens.used.len(), 1, "expired nonces are forgotten");
    }

    #[test]
    fn a_pipe_in_place_of_the_secret_is_refused_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jwt.secret");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
        let error = Tokens::load(&path, Duration::ZERO).unwrap_err().to_string();
        assert_eq!(error, "it is no regular file");
    }

    #[test]
    fn the_secret_survives_in_a_private_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/jwt.secret");
        let token = Tokens::load(&path, Duration::from_secs(60)).unwrap().issue("5Grw", 1000);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(Tokens::load(&path, Duration::from_secs(60)).unwrap().user(&token, 1000).is_ok());
        fs::write(&path, "short").unwrap();
        assert!(Tokens::load(&path, Duration::from_secs(60)).unwrap_err().to_string().contains("64 hex digits"));
    }
}
