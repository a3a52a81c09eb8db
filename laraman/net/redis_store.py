"""Leases in Redis: SET with NX and PX, renewed and given back only with the token that it was taken with (redis.io/docs, SET, "patterns").

Of several Redis servers behind one another the one that is asked decides: a replica that is promoted without having heard of a lease gives it
away a second time. What is noted is compared there, so a period is run twice then only when that was lost too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from laraman.errors import LinkDown
from laraman.net.store import ANSWER_SECONDS, Store

if TYPE_CHECKING:
    from laraman.net.lease import StoreLease

_RENEW = "if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end return redis.call('pexpire', KEYS[1], ARGV[2])"
_GIVE_BACK = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"
#: What is noted already was noted by us, if the answer was lost: the lease has been ours all the time.
_NOTE = """
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
local noted = redis.call('get', KEYS[2]) or ''
if noted ~= ARGV[2] and noted ~= ARGV[3] then return 0 end
redis.call('set', KEYS[2], ARGV[3])
return 1
"""


class RedisStore(Store):
    def __init__(self, url: str, prefix: str) -> None:
        super().__init__(url, prefix)
        self._client: Any = None  # redis has few types
        self._milliseconds = round(self.seconds * 1000)

    async def take(self, lease: StoreLease) -> bool:
        entry, _ = self._keys(lease)
        if await self._ask("SET", entry, lease.token, "NX", "PX", self._milliseconds):
            return True
        return await self.renew(lease)  # it may be ours: the answer was lost

    async def renew(self, lease: StoreLease) -> bool:
        return bool(await self._script(_RENEW, lease, self._milliseconds))

    async def give_back(self, lease: StoreLease) -> None:
        await self._script(_GIVE_BACK, lease)

    async def noted(self, lease: StoreLease) -> str:
        return str(await self._ask("GET", self._keys(lease)[1]) or "")

    async def note(self, lease: StoreLease, text: str) -> bool:
        return bool(await self._script(_NOTE, lease, lease.seen, text))

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _keys(self, lease: StoreLease) -> tuple[str, str]:
        """Of the entry and of what is noted; in braces what decides, in a cluster of Redis servers, where both are."""
        name = f"{self.prefix}:{{{lease.name}}}"
        return f"{name}:lease", f"{name}:noted"

    async def _script(self, script: str, lease: StoreLease, *arguments: Any) -> Any:
        return await self._ask("EVAL", script, 2, *self._keys(lease), lease.token, *arguments)

    async def _ask(self, *command: Any) -> Any:
        try:
            return await self._dialled().execute_command(*command)
        except (RedisError, OSError, ValueError) as exc:  # ValueError: an option of the URL that cannot be
            raise LinkDown(str(exc) or type(exc).__name__) from exc

    def _dialled(self) -> Any:
        if self._client is None:
            options: dict[str, Any] = {"socket_timeout": ANSWER_SECONDS, "socket_connect_timeout": ANSWER_SECONDS, "decode_responses": True}
            if self.url.startswith("rediss:"):
                options["ssl_check_hostname"] = True  # which redis-py before 6 does not
            self._client = Redis.from_url(self.url, retry=Retry(NoBackoff(), 1), **options)
        return self._client
