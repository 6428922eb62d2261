//! What a worker does in Redis in one piece, as Lua: take, settle, store, renew, find what is left, put back. Pure
//! text.
//!
//! Keys that a script finds by itself (those of other workers) are not declared, as in kombu, so Redis Cluster is not
//! served. In each script the first command that needs memory comes before the first change, or after one that frees
//! it: a full Redis refuses a script as a whole or not at all. So does one that has taken a right away, or has
//! something else under a key, see [`may`].

use redis::Value;

use super::outcome::Returned;
use crate::redis::{Script, may};

/// Takes messages and records each where kombu records its own, and in the worker's name.
///
/// `KEYS`: held, unacked, unacked_index, aside, then the lists in the order of taking. `ARGV`: how many, how many the
/// list of what was put aside keeps, bytes of it that are kept of one, bytes after which no further is taken, bytes of
/// the largest message. Answers with `{tag, key, message, bytes}` for each, one after the other; the tag is empty for
/// what is no message or too large and was put aside; of what is too large the message has the beginning and the end.
pub(super) static TAKE: Script = Script::new(concat!(
    may!(),
    r#"may('HSET', KEYS[2])
may('ZADD', KEYS[3])
may('HSET', KEYS[1])
may('LPUSH', KEYS[4])
may('LTRIM', KEYS[4])
local taken, left, bytes = {}, tonumber(ARGV[1]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
local function decoded(raw)
  local ok, message = pcall(cjson.decode, raw)
  -- Python writes lone surrogates, which this decoder refuses. It reads the rest when no escape is a character.
  if not ok then ok, message = pcall(cjson.decode, (string.gsub(raw, '\\(.)', {u = '\\\\u'}))) end
  return ok and type(message) == 'table' and message or {}
end
for k = 5, #KEYS do
  while left > 0 and bytes > 0 do
    local raw = redis.pcall('RPOP', KEYS[k])
    if not raw then break end
    -- What was taken before it is told of first.
    if type(raw) == 'table' then
      if #taken > 0 then return taken end
      may('RPOP', KEYS[k])
      return raw
    end
    left = left - 1
    bytes = bytes - #raw
    local size, small = #raw, #raw <= tonumber(ARGV[5])
    local props = small and decoded(raw)['properties']
    local tag = type(props) == 'table' and props['delivery_tag']
    if type(tag) == 'string' and tag ~= '' then
      local info = type(props['delivery_info']) == 'table' and props['delivery_info'] or {}
      local exchange = type(info['exchange']) == 'string' and info['exchange'] or ''
      local routing = type(info['routing_key']) == 'string' and info['routing_key'] or KEYS[k]
      local route = cjson.encode(exchange) .. ', ' .. cjson.encode(routing)
      redis.call('HSET', KEYS[2], tag, '[' .. raw .. ', ' .. route .. ']')
      redis.call('ZADD', KEYS[3], now, tag)
      redis.call('HSET', KEYS[1], tag, KEYS[k])
    else
      tag = ''
      redis.call('LPUSH', KEYS[4], cjson.encode({
        reason = small and 'not a message: no JSON object with a delivery tag' or 'too large', queue = KEYS[k],
        at = now, bytes = size, message = string.sub(raw, 1, tonumber(ARGV[3]))}))
      if not small then raw = string.sub(raw, 1, 65536) .. string.sub(raw, -65536) end
      redis.call('LTRIM', KEYS[4], 0, tonumber(ARGV[2]) - 1)
    end
    taken[#taken + 1] = tag
    taken[#taken + 1] = KEYS[k]
    taken[#taken + 1] = raw
    taken[#taken + 1] = tostring(size)
  end
end
return taken
"#,
));

/// Ends a message: stores what came of it, sends what follows from it, and acknowledges it.
///
/// `KEYS`: held, unacked, unacked_index; for a message of another worker's also its `alive`: while that is there,
/// nothing is done and the answer is 0. `ARGV`: tag, bytes of all parts of a chord that are given back, then
/// operations of four each. `result`, key, value, seconds (0: for ever) stores and publishes unless a success is
/// there; `weak-result` unless an end is there, for where the message is in another Redis; `own-result` only if the
/// message is still ours. All others only if it is still ours, or in another Redis: `push`, list, message, how many
/// the list keeps (0: all); `size`, key of a group, parts of its chord, seconds; `group`, key, how its results are
/// nested, seconds; `part`, key of a group, what is recorded, seconds, followed by what tells it from the others, its
/// place, `ordered` or not, and the token under which its chord's end is dealt with; `claimed`, key of a group, token,
/// `done` or `failed`, up to `end`: what follows from the end of a chord, if that is still ours to deal with.
///
/// Results come first, then parts. When one of these is the last of its chord, nothing behind the parts is done and the
/// message stays: the answer is a list of `{number of the part, from 0, what was recorded of all, or a text if that is
/// too large, how it is nested}`. Else it is 1 if the message was still ours.
///
/// It may be repeated: what is ours once is not ours again, and a part is recorded once.
pub(super) static SETTLE: Script = Script::new(concat!(
    may!(),
    r#"if KEYS[4] and redis.call('EXISTS', KEYS[4]) == 1 then return 0 end
local tag, most = ARGV[1], tonumber(ARGV[2])
local ours = redis.call('HEXISTS', KEYS[1], tag)
local here = ours == 1 or tag == ''
-- All write the status first; what is within the result does not count.
local function status(meta) return meta and string.match(meta, '^{%s*"status":%s*"(%u+)"') end
local function succeeded(meta) return status(meta) == 'SUCCESS' end
local function ended(meta) return succeeded(meta) or status(meta) == 'FAILURE' or status(meta) == 'REVOKED' end
-- Results may be stored again, but what follows is sent once.
local function ask()
  local at = 3
  while at <= #ARGV do
    local what, key = ARGV[at], ARGV[at + 1]
    local set = (tonumber(ARGV[at + 3]) or 0) > 0 and 'SETEX' or 'SET'
    if what == 'push' then
      if ours == 1 then
        may('LPUSH', key)
        may('LTRIM', key)
      end
    elseif what == 'part' then
      may(ARGV[at + 6] == 'ordered' and 'ZADD' or 'RPUSH', key .. '.j')
      may('SADD', key .. '.d')
      may('EXPIRE', key)
      may('SET', key .. '.c')
      at = at + 4
    elseif what == 'size' then
      may(set, key .. '.s')
      may('DEL', key .. '.c')
    elseif what == 'claimed' then
      may('DEL', key .. '.s')
      may('SET', key .. '.c')
    elseif what ~= 'end' then
      may(set, key)
      if what ~= 'group' then may('PUBLISH', key) end
    end
    at = at + 4
  end
  if ours == 1 then
    may('HDEL', KEYS[1])
    may('HDEL', KEYS[2])
    may('ZREM', KEYS[3])
  end
end
local first = ARGV[3]
if here and first and (#ARGV > 6 or (first ~= 'result' and first ~= 'own-result')) then ask() end
local function keep(key, value, seconds)
  if seconds > 0 then redis.call('SETEX', key, seconds, value) else redis.call('SET', key, value) end
end
-- The keys are those of Celery: results, how many more, size, who is recorded, who deals with the end.
local function record(key, entry, seconds, member, place, ordered, token)
  local j, t, s, d, c = key .. '.j', key .. '.t', key .. '.s', key .. '.d', key .. '.c'
  local claim = redis.call('GET', c)
  if claim == 'done' then return end
  if redis.call('SISMEMBER', d, member) == 0 then
    if ordered then redis.call('ZADD', j, place, entry) else redis.call('RPUSH', j, entry) end
    redis.call('SADD', d, member)
  end
  if seconds > 0 then
    for _, of in ipairs({j, t, s, key}) do redis.call('EXPIRE', of, seconds) end
  end
  -- Celery does not know it, and so does not remove it.
  redis.call('EXPIRE', d, seconds > 0 and seconds or 86400)
  local size = redis.call('GET', s)
  local count = redis.call(ordered and 'ZCARD' or 'LLEN', j)
  if not size or count ~= tonumber(size) + tonumber(redis.call('GET', t) or 0) then return end
  if claim ~= token and not redis.call('SET', c, token, 'NX', 'EX', 10) then return end
  local all, bytes, read = {}, 0, ordered and 'ZRANGE' or 'LRANGE'
  for from = 0, count - 1, 100 do
    for _, one in ipairs(redis.call(read, j, from, from + 99)) do
      bytes = bytes + #one
      all[#all + 1] = one
    end
    if bytes > most then return 'too large', redis.call('GET', key) end
  end
  return all, redis.call('GET', key)
end
local function claimed(key, token, how)
  local claim = redis.call('GET', key .. '.c')
  if claim ~= token and (claim or redis.call('EXISTS', key .. '.s') == 0) then return false end
  if how == 'done' then
    redis.call('DEL', key .. '.j', key .. '.t', key .. '.s', key .. '.d')
    redis.call('SET', key .. '.c', 'done', 'EX', 300)
  else
    redis.call('DEL', key .. '.s')
  end
  return true
end
local at, parts, returned, skip = 3, 0, {}, false
while at <= #ARGV do
  local what, key, value, number = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  local is_result = what == 'result' or what == 'own-result' or what == 'weak-result'
  if #returned > 0 and not is_result and what ~= 'part' then return returned end
  at = at + 4
  if what == 'part' then
    if here then
      local all, saved =
        record(key, value, number, ARGV[at], ARGV[at + 1], ARGV[at + 2] == 'ordered', ARGV[at + 3])
      if all then returned[#returned + 1] = {parts, all, saved or ''} end
    end
    parts, at = parts + 1, at + 4
  elseif what == 'claimed' then skip = not (here and claimed(key, value, ARGV[at - 1]))
  elseif what == 'end' then skip = false
  elseif skip then
  elseif what == 'push' then
    if ours == 1 then
      redis.call('LPUSH', key, value)
      if number > 0 then redis.call('LTRIM', key, 0, number - 1) end
    end
  elseif what == 'group' then
    if here then keep(key, value, number) end
  elseif what == 'size' then
    if here then
      keep(key .. '.s', value, number)
      redis.call('DEL', key .. '.c')
    end
  elseif ours == 1 or what ~= 'own-result' then
    local there = redis.call('GET', key)
    local stays = succeeded(there) or (what == 'weak-result' and ended(there))
    if (ours == 1 and succeeded(value)) or not stays then
      keep(key, value, number)
      redis.call('PUBLISH', key, value)
    end
  end
end
if #returned > 0 then return returned end
if ours == 1 then
  -- Ours last: it stays so when another fails, and is settled again.
  for _, of in ipairs({{'HDEL', KEYS[2]}, {'ZREM', KEYS[3]}, {'HDEL', KEYS[1]}}) do
    local done = redis.pcall(of[1], of[2], tag)
    if type(done) == 'table' then
      may(of[1], of[2])
      return done
    end
  end
end
return ours
"#,
));

/// The chords that [`SETTLE`] says have ended, by the number of the part that was the last.
pub(super) fn returned(answer: Value) -> Vec<(usize, Returned)> {
    let Value::Array(all) = answer else { return Vec::new() };
    let bytes = |value: Value| match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    };
    let one = |one: Value| {
        let Value::Array(fields) = one else { return None };
        let Ok([Value::Int(part), entries, saved]) = <[Value; 3]>::try_from(fields) else { return None };
        let entries = match entries {
            Value::Array(entries) => Some(entries.into_iter().filter_map(bytes).collect()),
            _ => None,
        };
        let saved = bytes(saved).filter(|saved| !saved.is_empty());
        Some((usize::try_from(part).ok()?, Returned { entries, saved }))
    };
    all.into_iter().filter_map(one).collect()
}

/// Stores a state on the way (started, progress), while the message is ours.
///
/// `KEYS`: held, result key. `ARGV`: tag, value, seconds.
pub(super) static STATE: Script = Script::new(
    r#"
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
if tonumber(ARGV[3]) > 0 then redis.call('SETEX', KEYS[2], ARGV[3], ARGV[2])
else redis.call('SET', KEYS[2], ARGV[2]) end
redis.call('PUBLISH', KEYS[2], ARGV[2])
return 1
"#,
);

/// Marks a task as revoked if nothing was stored of it but that it waits.
///
/// `KEYS`: result key. `ARGV`: value, seconds.
pub(super) static REVOKE: Script = Script::new(
    r#"
local there = redis.call('GET', KEYS[1])
if there then
  -- All write the status first, and what follows may not be JSON.
  local status = string.match(there, '^{%s*"status":%s*"(%u+)"')
  if status ~= 'PENDING' and status ~= 'RECEIVED' and status ~= 'RETRY' and status ~= 'REJECTED' then return 0 end
end
if tonumber(ARGV[2]) > 0 then redis.call('SETEX', KEYS[1], ARGV[2], ARGV[1])
else redis.call('SET', KEYS[1], ARGV[1]) end
redis.call('PUBLISH', KEYS[1], ARGV[1])
return 1
"#,
);

/// Says that the worker lives, and that what it holds is fresh, so that a Celery worker, which restores by age, leaves
/// it.
///
/// `KEYS`: alive, held, unacked_index, workers. `ARGV`: worker, milliseconds to live. Answers how many it holds; with
/// an error, though it is done, if Redis is full.
pub(super) static RENEW: Script = Script::new(concat!(
    may!(),
    r#"-- A Redis that is full refuses what takes memory, as long as nothing was changed: that is told in the end. To
-- live on takes none.
local refused = redis.pcall('SADD', KEYS[4], ARGV[1])
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[2])
else redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
local held = redis.call('HKEYS', KEYS[2])
for _, tag in ipairs(held) do
  local done = redis.pcall('ZADD', KEYS[3], 'XX', now, tag)
  if type(done) == 'table' then
    may('ZADD', KEYS[3])
    return done
  end
end
if type(refused) == 'table' then return refused end
return #held
"#,
));

/// Finds other workers that have the same name and live.
///
/// `KEYS`: workers. `ARGV`: start of a worker's keys, the worker's name with a dot, its id. Answers with their ids.
pub(super) static NAMESAKES: Script = Script::new(
    r#"
local found, name = {}, ARGV[2]
for _, worker in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  -- Behind the name there is nothing but an id of 32 digits.
  if worker ~= ARGV[3] and #worker == #name + 32 and string.sub(worker, 1, #name) == name
    and redis.call('EXISTS', ARGV[1] .. worker) == 1 then found[#found + 1] = worker end
end
return found
"#,
);

/// Finds what nobody works on in the queues that are served: held by a worker that lives no more, or recorded by
/// anybody longer ago than the visibility time-out. What belongs to other queues is left to those who serve them: how
/// long they may work is not known here.
///
/// `KEYS`: workers, unacked, unacked_index. `ARGV`: start of a worker's keys, most of them, seconds of the visibility
/// time-out, separator, start of the keys of bindings, how many of the old ones to pass over, prefix, then the queues.
/// Answers
/// with how many to pass over next time, then `{worker, tag, key, entry}` for each, one after the other; for what is
/// only old the worker is empty and the key is its queue.
pub(super) static LEFT: Script = Script::new(
    r#"
local found, left, sep = {0}, tonumber(ARGV[2]), ARGV[4]
local queues, prefix = {unpack(ARGV, 8)}, ARGV[7]
local function note(worker, tag, key, entry)
  found[#found + 1] = worker
  found[#found + 1] = tag
  found[#found + 1] = key
  found[#found + 1] = entry
  left = left - 1
end
local function starts(text, start) return string.sub(text, 1, #start) == start end
local function is_served(list)
  -- A task that has begun.
  if string.byte(list) == 1 then list = string.sub(list, 2) end
  for _, queue in ipairs(queues) do
    if list == prefix .. queue or starts(list, prefix .. queue .. sep) then return true end
  end
end
local function queue_of(entry)
  local exchange, key = string.match(string.sub(entry, -2048), ',%s*"([^"]*)",%s*"([^"]*)"%]$')
  local ok, route = pcall(cjson.decode, '["' .. (exchange or '') .. '","' .. (key or '') .. '"]')
  if not key or not ok then return nil end
  local bound = route[1] ~= '' and redis.call('SMEMBERS', ARGV[5] .. route[1]) or {route[2] .. sep .. sep .. route[2]}
  for _, queue in ipairs(queues) do
    for _, member in ipairs(bound) do
      if starts(member, route[2] .. sep) and string.sub(member, -#sep - #queue) == sep .. queue then return queue end
    end
  end
end
for _, worker in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  if redis.call('EXISTS', ARGV[1] .. worker) == 0 then
    local held = ARGV[1] .. worker .. '.held'
    local all = redis.call('HGETALL', held)
    for at = 1, #all, 2 do
      if left <= 0 then return found end
      if is_served(all[at + 1]) then
        local entry = redis.call('HGET', KEYS[2], all[at])
        if entry then note(worker, all[at], all[at + 1], entry) else redis.call('HDEL', held, all[at]) end
      end
    end
    if #all == 0 then redis.call('SREM', KEYS[1], worker) end
  end
end
-- Those of others may be many: some at a time, and 4 MiB of them.
local passed, most, bytes = tonumber(ARGV[6]), 1000, 4194304
local oldest = tonumber(redis.call('TIME')[1]) - tonumber(ARGV[3])
local old = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', oldest, 'LIMIT', passed, most)
for at, tag in ipairs(old) do
  found[1] = passed + at
  if left <= 0 or bytes <= 0 then return found end
  local entry = redis.call('HGET', KEYS[2], tag)
  local queue = entry and queue_of(entry)
  bytes = bytes - (entry and #entry or 0)
  if queue then note('', tag, queue, entry) end
end
if #old < most then found[1] = 0 end
return found
"#,
);

/// Puts one message that nobody works on back, once.
///
/// `KEYS`: unacked, unacked_index, list. `ARGV`: tag, message, seconds of the visibility time-out, the keys `alive` and
/// `held` of the dead worker, or two empty ones for a message that is only old. To the end of the list that is taken
/// from next, as kombu does.
pub(super) static RESTORE: Script = Script::new(concat!(
    may!(),
    r#"may('HDEL', KEYS[1])
may('ZREM', KEYS[2])
may('RPUSH', KEYS[3])
local tag = ARGV[1]
if ARGV[5] ~= '' then
  if redis.call('EXISTS', ARGV[4]) == 1 or redis.call('HDEL', ARGV[5], tag) == 0 then return 0 end
else
  local score = redis.call('ZSCORE', KEYS[2], tag)
  if not score or tonumber(score) > tonumber(redis.call('TIME')[1]) - tonumber(ARGV[3]) then return 0 end
end
redis.call('ZREM', KEYS[2], tag)
if redis.call('HDEL', KEYS[1], tag) == 0 then return 0 end
redis.call('RPUSH', KEYS[3], ARGV[2])
return 1
"#,
));

/// Acknowledges a message of ours before its task begins. It stays in the worker's name, so that its end is still ours
/// to settle, but nobody puts it back.
///
/// `KEYS`: held, unacked, unacked_index. `ARGV`: tag. Answers 1 if it was ours.
pub(super) static ACKNOWLEDGE: Script = Script::new(concat!(
    may!(),
    r#"if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
may('HDEL', KEYS[2])
may('ZREM', KEYS[3])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
return 1
"#,
));

/// Stands before the list in a worker's record of a message whose task has begun and is not to be begun again.
pub(super) const BEGUN: char = '\u{1}';

/// Notes that the task of a message of ours begins, and that it has failed if this worker is lost.
///
/// `KEYS`: held. `ARGV`: tag, [`BEGUN`]. Answers 1 if it was ours.
pub(super) static BEGIN: Script = Script::new(
    r#"
local list = redis.call('HGET', KEYS[1], ARGV[1])
if not list then return 0 end
if string.sub(list, 1, #ARGV[2]) ~= ARGV[2] then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. list) end
return 1
"#,
);

/// Gives one message of ours back.
///
/// `KEYS`: held, unacked, unacked_index, list. `ARGV`: tag, message, `first` or `last`. Answers 1 if it was ours.
pub(super) static RELEASE: Script = Script::new(concat!(
    may!(),
    r#"may('HDEL', KEYS[1])
may('HDEL', KEYS[2])
may('ZREM', KEYS[3])
may(ARGV[3] == 'first' and 'RPUSH' or 'LPUSH', KEYS[4])
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call(ARGV[3] == 'first' and 'RPUSH' or 'LPUSH', KEYS[4], ARGV[2])
return 1
"#,
));

/// The worker goes: others may have at once what it still holds.
///
/// `KEYS`: alive, held, workers. `ARGV`: worker. Answers how many it still holds.
pub(super) static LEAVE: Script = Script::new(
    r#"
redis.call('DEL', KEYS[1])
local held = redis.call('HLEN', KEYS[2])
if held == 0 then redis.call('SREM', KEYS[3], ARGV[1]) end
return held
"#,
);

/// Answers a remote control: to each queue that is bound under the routing key, as a direct exchange does.
///
/// `KEYS`: bindings of the exchange. `ARGV`: routing key, message, separator, seconds that an answer waits for its
/// reader, prefix of keys.
pub(super) static REPLY: Script = Script::new(
    r#"
local start, sent = ARGV[1] .. ARGV[3], 0
for _, member in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  if string.sub(member, 1, #start) == start then
    local at, queue = 1, member
    while at do
      at = string.find(queue, ARGV[3], 1, true)
      if at then queue = string.sub(queue, at + #ARGV[3]) end
    end
    queue = ARGV[5] .. queue
    redis.call('LPUSH', queue, ARGV[2])
    redis.call('EXPIRE', queue, ARGV[4])
    sent = sent + 1
  end
end
return sent
"#,
);
