//! What the store does by itself, in Lua that Redis from 5 on and Valkey both run. Each is whole, or not done at all.
//!
//! Time is the store's own, so the clocks of instances need not agree.

/// A bucket, as `control/gcra.rs` has it, in microseconds: the key holds the time at which the bucket is full again, and
/// goes with that time. Arguments: a step, the burst, what is owed (below zero: given back), what is wanted. Gives what
/// is given, what is left, and how long until there is one more.
///
/// No more than half of what is left goes to one who asks, so that no instance takes all. What is owed can bring the
/// bucket no further behind than by one burst.
pub(super) const LEASE: &str = r"
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local step, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local full = tonumber(redis.call('GET', KEYS[1]) or '0')
if full < now then full = now end
full = full + tonumber(ARGV[3]) * step
if full < now then full = now end
if full > now + 2 * burst * step then full = now + 2 * burst * step end
local room = math.floor((now + burst * step - full) / step)
if room < 0 then room = 0 end
local given = math.min(tonumber(ARGV[4]), math.floor((room + 1) / 2))
full = full + given * step
room = room - given
if full > now then
  redis.call('SET', KEYS[1], string.format('%.2f', full), 'PX', math.ceil((full - now) / 1000))
else
  redis.call('DEL', KEYS[1])
end
local wait = full + step - now - burst * step
if room > 0 or wait < 0 then wait = 0 end
return {given, room, math.ceil(wait)}
";

/// An instance says that it lives, and learns how many do. Argument: its name.
pub(super) const BEAT: &str = r"
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 5000)
redis.call('PEXPIRE', KEYS[1], 10000)
return redis.call('ZCARD', KEYS[1])
";
