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

/// Lua before a script that makes several changes: `may(command, key)` ends the script if its user may not do that, or
/// if the key is of a type on which the command fails. All are asked before the first change, for Redis undoes nothing:
/// what fails in the middle would leave a message that was taken and never recorded. Redis 6 does not know of rights
/// beforehand. Of types nobody is told without the right to ask for one.
macro_rules! may {
    () => {
        "local kinds = {HSET = 'hash', HDEL = 'hash', ZADD = 'zset', ZREM = 'zset', LPUSH = 'list', RPUSH = 'list', \
         RPOP = 'list', LTRIM = 'list', SADD = 'set', SETEX = 'string', SET = 'string'}
         local function may(command, key)
         local knows = redis.acl_check_cmd
         if knows and not knows(command, key) then \
         error({err = 'NOPERM a right is missing: command ' .. command .. ' in a script, on \"' .. key .. '\"'}) end
         local wanted = kinds[command]
         if not wanted or (knows and not knows('TYPE', key)) then return end
         local kind = redis.pcall('TYPE', key).ok
         if kind and kind ~= 'none' and kind ~= wanted then
         local text = 'WRONGTYPE the key \"' .. key .. '\" is a ' .. kind .. ', not a ' .. wanted
         error(knows and {err = text} or text) end
         end\n"
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
