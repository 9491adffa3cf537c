"""What the server does by itself: look at entries, and change one if it is still what was looked at.

A script runs alone, so that comparison and change are one step. Each changes the first thing that it changes by a
command that the server refuses before it has begun to (out of memory, read-only, no permission): an error from a script
means that nothing was written.

A write carries a deadline on the server's clock. One that a server reads later, because it was stopped or the network
held it up, changes nothing: its caller has long been told that nobody knows.

What a look shows of a key is one of ``{'absent'}``, ``{'other', type}`` and ``{'held', token, value, ...}``. Tokens are
SHA-1 of what is held, made anew in each look: a foreign program that writes a field is seen, whatever it writes.
"""

from __future__ import annotations

import hashlib
from typing import Final

import attrs


@attrs.frozen
class Script:
    """A script and its name on the server."""

    text: bytes
    sha: bytes

    @classmethod
    def of(cls, *parts: str) -> Script:
        """One script of several parts."""
        text = "\n".join(parts).encode()
        return cls(text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())


@attrs.frozen
class Scripts:
    """The scripts for one kind of value."""

    look: Script
    """KEYS: any number. ARGV: the layout. Gives what is shown of each key."""
    write: Script
    """KEYS: one. ARGV: token, deadline in ms, TTL in ms (0: as it is; -1: none), the layout, what to write. Gives
    {'done'}, {'late'}, or {'refused', what a look shows}."""
    remove: Script
    """KEYS: one. ARGV: token, deadline in ms, the layout. Gives the same."""


_TOOLS: Final = """
local function take(count)
  local taken = {}
  for index = 1, count do taken[index] = table.remove(ARGV, 1) end
  return taken
end
local function number() return tonumber(table.remove(ARGV, 1)) end
local function is_late(deadline)
  local now = redis.call('TIME')
  return tonumber(now[1]) * 1000 + tonumber(now[2]) / 1000 > deadline
end
local function holds(seen, token)
  return seen[1] == 'held' and seen[2] == token or seen[1] == 'absent' and token == 'absent'
end
"""

_LOOK: Final = """
local layout = read_layout()
local answers = {}
for index, key in ipairs(KEYS) do answers[index] = look(key, layout) end
return answers
"""

_BEGIN_CHANGE: Final = """
local token, deadline = table.remove(ARGV, 1), number()
if is_late(deadline) then return {'late'} end
"""

_COMPARE: Final = """
local layout = read_layout()
local seen = look(KEYS[1], layout)
if not holds(seen, token) then return {'refused', seen} end
"""

_REMOVE: Final = """
if seen[1] == 'held' then redis.call('DEL', KEYS[1]) end
return {'done'}
"""

_EXPIRE: Final = """
if ttl > 0 then redis.call('PEXPIRE', KEYS[1], ttl) elseif ttl < 0 then redis.call('PERSIST', KEYS[1]) end
return {'done'}
"""

# The layout of a hash: how many values are shown, the field of the seal ('' if there is none), how many fields there
# are, the fields. Only the seal is not part of the token; one that is not the token of the rest is told behind it.
_HASH: Final = """
local function read_layout()
  local shown, seal = number(), table.remove(ARGV, 1)
  return {shown = shown, seal = seal, fields = take(number())}
end
local function look(key, layout)
  local kind = redis.call('TYPE', key)['ok']
  if kind == 'none' then return {'absent'} end
  if kind ~= 'hash' then return {'other', kind} end
  local held = redis.call('HMGET', key, unpack(layout.fields))
  local parts, any = {}, false
  for index = 1, #layout.fields do
    local value = held[index]
    if value then
      any = true
      parts[#parts + 1] = #value .. ':'
      parts[#parts + 1] = value
    else
      parts[#parts + 1] = '-'
    end
  end
  if not any then return {'absent'} end
  local token = redis.sha1hex(table.concat(parts))
  if layout.seal ~= '' then
    local seal = redis.call('HGET', key, layout.seal)
    if seal ~= token then token = token .. '.' .. redis.sha1hex(seal or '') end
  end
  local seen = {'held', token}
  for index = 1, layout.shown do seen[index + 2] = held[index] end
  return seen
end
"""

# Fields and values to set, as one number and that many strings; then the fields to delete.
_HASH_WRITE: Final = """
redis.call('HSET', KEYS[1], unpack(take(number())))
if #ARGV > 0 then redis.call('HDEL', KEYS[1], unpack(ARGV)) end
"""

# A plain value has no layout.
_STRING: Final = """
local function read_layout() return {} end
local function look(key)
  local kind = redis.call('TYPE', key)['ok']
  if kind == 'none' then return {'absent'} end
  if kind ~= 'string' then return {'other', kind} end
  local held = redis.call('GET', key)
  return {'held', redis.sha1hex(held), held}
end
"""

_STRING_WRITE: Final = """
redis.call('SET', KEYS[1], ARGV[1], 'KEEPTTL')
"""

_TTL: Final = "local ttl = number()"


def _scripts(look: str, write: str) -> Scripts:
    return Scripts(
        look=Script.of(_TOOLS, look, _LOOK),
        write=Script.of(_TOOLS, look, _BEGIN_CHANGE, _TTL, _COMPARE, write, _EXPIRE),
        remove=Script.of(_TOOLS, look, _BEGIN_CHANGE, _COMPARE, _REMOVE),
    )


HASH_SCRIPTS: Final = _scripts(_HASH, _HASH_WRITE)
STRING_SCRIPTS: Final = _scripts(_STRING, _STRING_WRITE)


def token_of(values: list[bytes | None]) -> str:
    """The token that a look at a hash shows of these values of its fields."""
    digest = hashlib.sha1(usedforsecurity=False)
    for value in values:
        if value is None:
            digest.update(b"-")
        else:
            digest.update(b"%d:" % len(value))
            digest.update(value)
    return digest.hexdigest()
