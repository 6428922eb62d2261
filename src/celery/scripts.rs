//! Lua scripts that run in Redis, one constant each.

use crate::redis::{Script, may};

/// Puts a message into a queue once, although it may be sent again after a lost answer.
///
/// Keys: the producer's own, the queue's list, and for a task with a mark the mark's. Arguments: the message's number,
/// which grows, the message, and for how many seconds the producer's number is kept; with a mark its field, its value,
/// and for how many milliseconds it is kept. Gives 1, or 0 if the message was there before. One key for each producer,
/// not for each message.
pub static ENQUEUE: Script = Script::new(concat!(
    may!(),
    "local last = redis.call('GET', KEYS[1])
if last and tonumber(last) >= tonumber(ARGV[1]) then return 0 end
may('LPUSH', KEYS[2])
may('SET', KEYS[1])
if KEYS[3] then
  may('PEXPIRE', KEYS[3])
  redis.call('HSET', KEYS[3], ARGV[4], ARGV[5])
  redis.call('PEXPIRE', KEYS[3], ARGV[6])
end
redis.call('LPUSH', KEYS[2], ARGV[2])
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[3])
return 1",
));
