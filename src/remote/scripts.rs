//! What the servers do in one step: Lua, sent whole each time (a server compiles a script once).
//!
//! All but the last two have the same four names: the counter, the notices (a sorted set: text, epoch), their times (a hash:
//! epoch, Unix seconds) and the floor.

/// The most notices in the log. The oldest go when there are more, and with them everything that was not computed since.
pub(super) const NOTICES_MAX: usize = 1 << 18;

/// `text, retention in seconds, most notices, channel, least` → `{epoch, time, the text's epoch before}`. The counter is never left
/// behind the log, or behind what who publishes has seen.
pub(super) const PUBLISH: &str = r"
local now = tonumber(redis.call('TIME')[1])
local last = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2]
local least = math.max(tonumber(last or 0), tonumber(redis.call('GET', KEYS[4]) or 0), tonumber(ARGV[5]))
if tonumber(redis.call('GET', KEYS[1]) or 0) < least then
  redis.call('SET', KEYS[1], string.format('%.0f', least))
end
local epoch = redis.call('INCR', KEYS[1])
local before = redis.call('ZSCORE', KEYS[2], ARGV[1])
if before then redis.call('HDEL', KEYS[3], before) end
redis.call('ZADD', KEYS[2], epoch, ARGV[1])
redis.call('HSET', KEYS[3], epoch, now)
for _ = 1, 128 do
  local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
  local time = tonumber(redis.call('HGET', KEYS[3], first[2]) or now)
  if time > now - tonumber(ARGV[2]) and redis.call('ZCARD', KEYS[2]) <= tonumber(ARGV[3]) then break end
  redis.call('ZREM', KEYS[2], first[1])
  redis.call('HDEL', KEYS[3], first[2])
  redis.call('SET', KEYS[4], first[2])
end
redis.call('PUBLISH', ARGV[4], epoch)
return {epoch, now, before or '0'}
";

/// `epoch, most` → `{counter, floor, seconds, microseconds, text, epoch, time, …}`, of the notices after that epoch.
pub(super) const SINCE: &str = r"
local now = redis.call('TIME')
local answer = {redis.call('GET', KEYS[1]) or '0', redis.call('GET', KEYS[4]) or '0', now[1], now[2]}
local found = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
for index = 1, #found, 2 do
  answer[#answer + 1] = found[index]
  answer[#answer + 1] = found[index + 1]
  answer[#answer + 1] = redis.call('HGET', KEYS[3], found[index + 1]) or now[1]
end
return answer
";

/// `channel, counter, text, epoch, time, …`: what the log has with no later epoch gets a new one.
pub(super) const RESTORE: &str = r"
if tonumber(redis.call('GET', KEYS[1]) or 0) < tonumber(ARGV[2]) then redis.call('SET', KEYS[1], ARGV[2]) end
for index = 3, #ARGV, 3 do
  local before = redis.call('ZSCORE', KEYS[2], ARGV[index])
  if not before or tonumber(before) < tonumber(ARGV[index + 1]) then
    local epoch = redis.call('INCR', KEYS[1])
    if before then redis.call('HDEL', KEYS[3], before) end
    redis.call('ZADD', KEYS[2], epoch, ARGV[index])
    redis.call('HSET', KEYS[3], epoch, ARGV[index + 2])
  end
end
redis.call('PUBLISH', ARGV[1], 'restored')
return 1
";

/// `lease; token`: deletes the lease if the token is its own.
pub(super) const RELEASE: &str = r"
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('UNLINK', KEYS[1]) end
return 0
";

/// `lease; token, milliseconds`: has the lease last that long from now if the token is its own.
pub(super) const RENEW: &str = r"
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
";
