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
  may('HSET', KEYS[3])
  may('PEXPIRE', KEYS[3])
  redis.call('HSET', KEYS[3], ARGV[4], ARGV[5])
  redis.call('PEXPIRE', KEYS[3], ARGV[6])
end
redis.call('LPUSH', KEYS[2], ARGV[2])
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[3])
return 1",
));

/// Puts all messages that begin a canvas into their queues once, although they may be sent again after a lost answer.
///
/// Keys: the producer's own. Arguments: the number of this, which grows, for how many seconds it is kept, then
/// operations of four each: `size`, key of a group, parts of its chord, seconds (0: for ever); `group`, key, how its
/// results are nested, seconds; `push`, list, message, nothing. Gives 1, or 0 if it was there before.
pub static ENQUEUE_ALL: Script = Script::new(concat!(
    may!(),
    "local last = redis.call('GET', KEYS[1])
if last and tonumber(last) >= tonumber(ARGV[1]) then return 0 end
may('SET', KEYS[1])
for at = 3, #ARGV, 4 do
  local what, key = ARGV[at], ARGV[at + 1]
  may(what == 'push' and 'LPUSH' or 'SETEX', what == 'size' and key .. '.s' or key)
  if what ~= 'push' then may('DEL', key .. '.c') end
end
for at = 3, #ARGV, 4 do
  local what, key, value, seconds = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  if what == 'push' then
    redis.call('LPUSH', key, value)
  else
    local place = what == 'size' and key .. '.s' or key
    if seconds > 0 then redis.call('SETEX', place, seconds, value) else redis.call('SET', place, value) end
    -- A chord that is sent once more under its old id begins anew.
    redis.call('DEL', key .. '.c')
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1",
));
