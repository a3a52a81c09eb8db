"""What Redis does as one step (6.2 or later). Keys are given, as Redis asks of scripts.

A queue is a stream with one consumer group, a hash of key -> id of the jobs that are not acknowledged (their count is its length), and a sorted set
of the entries that are delayed. An entry of the stream is ``k`` key, ``n`` attempt, ``i`` id ("" when the entry's own is it), ``d`` payload. What is
given again is a new entry with the same id. XAUTOCLAIM would go by the claimer's idea of how long a job may take; here it is its holder's, which its
consumer's name says: "...@milliseconds".
"""

from __future__ import annotations

from laraman.channel.redis_wire import Script

_NOW = "local time = redis.call('TIME') local now = time[1] * 1000 + math.floor(time[2] / 1000)"

#: KEYS: stream. Put the entry in again, at the end; nobody has it until then. One that is no job stays where it is.
_AGAIN = """
local function again(entry, more)
    local found = redis.call('XRANGE', KEYS[1], entry, entry)[1]
    local f = found and found[2] or {}
    if #f ~= 8 then return end
    redis.call('XADD', KEYS[1], '*', 'k', f[2], 'n', f[4] + more, 'i', f[6] == '' and entry or f[6], 'd', f[8])
    redis.call('XDEL', KEYS[1], entry)
end
"""

#: KEYS: stream, keys. ARGV: key, payload, limit. The id; nothing when the queue is full.
PUT = Script("""
local id = redis.call('HGET', KEYS[2], ARGV[1])
if id then return id end
if redis.call('HLEN', KEYS[2]) >= tonumber(ARGV[3]) then return false end
id = redis.call('XADD', KEYS[1], '*', 'k', ARGV[1], 'n', 1, 'i', '', 'd', ARGV[2])
redis.call('HSET', KEYS[2], ARGV[1], id)
return id
""")

#: KEYS: stream, delayed, swept. ARGV: group, milliseconds until others do it again, seconds after which an idle consumer is forgotten.
#: Give again what is due. Milliseconds until something delayed is due, at most those of ARGV.
#: The first line makes it go on when Redis has no memory left, so that jobs are done and give back theirs: a script that has written may end.
SWEEP = Script(f"""
{_NOW}
{_AGAIN}
redis.call('ZREM', KEYS[2], '')
redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 100)) do
    again(entry, 1)
    redis.call('ZREM', KEYS[2], entry)
end
if redis.call('SET', KEYS[3], 1, 'NX', 'PX', ARGV[2]) then
    for _, fields in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
        local consumer = {{}}
        for at = 1, #fields, 2 do consumer[fields[at]] = fields[at + 1] end
        local visibility = string.match(consumer.name, '@(%d+)$')
        if visibility and consumer.pending > 0 then
            for _, held in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], 'IDLE', visibility, '-', '+', 100, consumer.name)) do
                redis.call('XACK', KEYS[1], ARGV[1], held[1])
                again(held[1], 1)
            end
        elseif consumer.pending == 0 and consumer.idle > ARGV[3] * 1000 then
            redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
        end
    end
end
local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
if not first[2] then return tonumber(ARGV[2]) end
return math.max(1, math.min(tonumber(ARGV[2]), first[2] - now))
""")

#: KEYS: stream, keys. ARGV: group, entry, key, id. 0 when somebody else has it by now. 1 when it is done, by this or, as the answer was lost, before.
ACK = Script("""
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 1 then
    redis.call('XDEL', KEYS[1], ARGV[2])
    redis.call('HDEL', KEYS[2], ARGV[3])
    return 1
end
return redis.call('HGET', KEYS[2], ARGV[3]) == ARGV[4] and 0 or 1
""")

#: KEYS: stream, delayed. ARGV: group, entry, milliseconds of delay, attempts to count. 0 when somebody else has it by now.
NACK = Script(f"""
{_NOW}
{_AGAIN}
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
if tonumber(ARGV[3]) > 0 then
    redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[2])
else
    again(ARGV[2], ARGV[4])
end
return 1
""")

#: KEYS: stream. ARGV: group, consumer, entry. 0 when somebody else has it by now.
EXTEND = Script("""
if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2]) == 0 then return 0 end
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'JUSTID')
return 1
""")

#: KEYS: entry. ARGV: by, milliseconds of life or "". The sum, as text: numbers of Lua have 53 bits.
INCREMENT = Script("""
local there = redis.call('EXISTS', KEYS[1]) == 1
redis.call('INCRBY', KEYS[1], ARGV[1])
if not there and ARGV[2] ~= '' then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return redis.call('GET', KEYS[1])
""")

#: KEYS: entry. ARGV: old, new ("": none), milliseconds of life or "".
COMPARE_AND_SET = Script("""
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
if ARGV[2] == '' then
    redis.call('DEL', KEYS[1])
elseif ARGV[3] == '' then
    redis.call('SET', KEYS[1], ARGV[2])
else
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
return 1
""")

#: KEYS: holder, last token. ARGV: who asks, milliseconds of the lease. The token, or minus the milliseconds until the lease of another ends.
#: Tokens are no less than the clock's milliseconds, so that they grow even when Redis has lost what it knew.
ACQUIRE = Script(f"""
{_NOW}
local holder = redis.call('GET', KEYS[1])
if holder then
    local token, who = string.match(holder, '^(%d+) (.*)$')
    if who ~= ARGV[1] then return -math.max(1, redis.call('PTTL', KEYS[1])) end
    return tonumber(token)
end
local token = math.max(now, (redis.call('GET', KEYS[2]) or 0) + 1)
local text = string.format('%.0f', token)
redis.call('SET', KEYS[2], text, 'EX', 86400)
redis.call('SET', KEYS[1], text .. ' ' .. ARGV[1], 'PX', ARGV[2])
return token
""")

#: KEYS: holder, last token. ARGV: token, milliseconds of the lease. A lock that is forgotten is still his who had it last.
RENEW = Script("""
local holder = redis.call('GET', KEYS[1])
if holder then
    if string.match(holder, '^(%d+) ') ~= ARGV[1] then return 0 end
    return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
if tonumber(redis.call('GET', KEYS[2]) or 0) > tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[2], ARGV[1], 'EX', 86400)
redis.call('SET', KEYS[1], ARGV[1] .. ' ', 'PX', ARGV[2])
return 1
""")

#: KEYS: holder. ARGV: token ("" when the answer to ACQUIRE was not waited for), who asked.
RELEASE = Script("""
local token, who = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) (.*)$')
if token and (token == ARGV[1] or who == ARGV[2]) then return redis.call('DEL', KEYS[1]) end
return 0
""")
