//! Lua scripts, each sent once to a Redis and called by its digest from then on. Pure.

use std::sync::OnceLock;

/// A script as a constant of the program: `static TAKE: Script = Script::new("return …");`.
#[derive(Debug)]
pub struct Script {
    text: &'static str,
    digest: OnceLock<String>,
}

impl Script {
    /// A script with this text.
    pub const fn new(text: &'static str) -> Self {
        Self { text, digest: OnceLock::new() }
    }

    /// The text.
    pub fn text(&self) -> &'static str {
        self.text
    }

    /// What Redis calls it by: the SHA-1 of its text, in hexadecimal.
    pub fn digest(&self) -> &str {
        self.digest.get_or_init(|| redis::Script::new(self.text).get_hash().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_called_by_its_sha1() {
        static SCRIPT: Script = Script::new("return 1");
        assert_eq!(SCRIPT.digest(), "e0e1f9fabfc9d4800c877a703b823ac0578ff8db");
    }
}
