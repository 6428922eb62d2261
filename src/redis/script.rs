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

/// Lua before a script that makes several changes: `may(command, key)` ends the script if its user may not do that. All
/// are asked before the first change, for Redis undoes nothing: a right that is missing in the middle would leave a
/// message that was taken and never recorded. Redis 6 does not know beforehand, and asks nobody.
macro_rules! may {
    () => {
        "local function may(command, key) if redis.acl_check_cmd and not redis.acl_check_cmd(command, key) then \
         error({err = 'NOPERM a right is missing: command ' .. command .. ' in a script, on \"' .. key .. '\"'}) \
         end end\n"
    };
}
pub(crate) use may;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_called_by_its_sha1() {
        static SCRIPT: Script = Script::new("return 1");
        assert_eq!(SCRIPT.digest(), "e0e1f9fabfc9d4800c877a703b823ac0578ff8db");
    }
}
