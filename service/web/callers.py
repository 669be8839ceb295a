"""Owns who is calling: tokens that were asked about a moment ago, how often each may call, and when each was used.

A token is only ever looked for by its digest. What is known of one is forgotten after some seconds, which is how long a
revoked token may live on in a replica; its end, if it has one, is kept to the moment. What is unknown is remembered for
less, and of no more tokens than fit, so that nobody can fill the memory with made-up ones.
"""

import asyncio
import math
import uuid
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from service.errors import KahunaSyncError, TooManyCalls
from service.store import access
from service.store.access import Caller
from service.store.database import Database
from service.telemetry import logger

MOST_KNOWN: Final = 10_000
"""Tokens that are remembered, of each kind."""

UNKNOWN_SECONDS: Final = 1.0
"""Seconds that an unknown token is remembered at most: one that was made meanwhile works after that."""

NOTE_SECONDS: Final = 60.0
"""Seconds between two notes of when tokens were used."""

GOODBYE_SECONDS: Final = 2.0
"""Seconds that the last note may take."""


class _Known(NamedTuple):
    caller: Caller | None
    since: datetime
    until: datetime


class Callers:
    """Tells callers by their tokens. `ask` finds the caller of a digest, `seconds` is how long that is believed, and
    `per_second` how many calls a token may make of this process (None: any number), with bursts of one second's."""

    def __init__(
        self,
        ask: Callable[[bytes], Awaitable[Caller | None]],
        clock: Callable[[], datetime],
        seconds: float,
        per_second: float | None,
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._believed = timedelta(seconds=seconds)
        self._doubted = timedelta(seconds=min(seconds, UNKNOWN_SECONDS))
        self._allowance = None if per_second is None else _Allowance(per_second)
        self._known: dict[bytes, _Known] = {}
        self._unknown: dict[bytes, _Known] = {}
        self._used: dict[uuid.UUID, datetime] = {}

    async def of(self, token: str) -> Caller | None:
        """Whom the token stands for; None if it is unknown, revoked or expired. TooManyCalls if it makes too many."""
        now = self._clock()
        caller = await self._told(token, now)
        if caller is not None:
            self.count(caller, now)
        return caller

    def known(self, token: str, now: datetime) -> Caller | None:
        """Whom the token stands for, if nobody need be asked for that. It is not counted as a call."""
        known = self._known.get(access.digest_of(token))
        return None if known is None or not known.since <= now < known.until else _living(known, now)

    def count(self, caller: Caller, now: datetime) -> None:
        """That a caller calls. TooManyCalls if it makes too many, and then this is none."""
        if caller.token_id is None:
            return
        if self._allowance is not None:
            self._allowance.spend(caller.token_id, now)
        self._used[caller.token_id] = now

    def note(self, caller: Caller) -> None:
        """That a caller who was told otherwise, by a session, uses the token now."""
        if caller.token_id is not None:
            self._used[caller.token_id] = self._clock()

    async def still_knows(self, token: str) -> bool:
        """Whether the token stands for anybody by now, for a call that took a while: that is no call of its own."""
        return await self._told(token, self._clock()) is not None

    async def _told(self, token: str, now: datetime) -> Caller | None:
        digest = access.digest_of(token)
        known = self._known.get(digest) or self._unknown.get(digest)
        # A clock that was set back must not make a moment of an hour.
        if known is None or not known.since <= now < known.until:
            known = await self._learn(digest, now)
        return _living(known, now)

    async def _learn(self, digest: bytes, now: datetime) -> _Known:
        caller = await self._ask(digest)
        known = _Known(caller, now, now + (self._doubted if caller is None else self._believed))
        mine, other = (self._unknown, self._known) if caller is None else (self._known, self._unknown)
        other.pop(digest, None)
        mine.pop(digest, None)
        if len(mine) >= MOST_KNOWN:
            del mine[next(iter(mine))]
        mine[digest] = known
        return known

    async def note_uses(self, database: Database) -> None:
        """Writes down when tokens were used. What cannot be written now is written the next time."""
        used, self._used = self._used, {}
        if not used:
            return
        try:
            async with database.begin() as connection:
                await access.note_uses(connection, used)
        except KahunaSyncError as error:
            self._used = used | self._used
            logger().warning("token.uses_kept", count=len(used), reason=error.slug)
        except asyncio.CancelledError:
            self._used = used | self._used
            raise

    async def keep_noting(self, database: Database) -> None:
        """Writes it down again and again, until cancelled; then once more, if that is quick."""
        try:
            while True:
                await asyncio.sleep(NOTE_SECONDS)
                await self.note_uses(database)
        finally:
            try:
                async with asyncio.timeout(GOODBYE_SECONDS):
                    await self.note_uses(database)
            except TimeoutError:
                logger().warning("token.uses_lost")


def _living(known: _Known, now: datetime) -> Caller | None:
    """The caller, unless its token has ended by now."""
    caller = known.caller
    return None if caller is None or (caller.expires_at is not None and caller.expires_at <= now) else caller


def token_in(authorization: str) -> str:
    """The token that this header carries, if any."""
    kind, _, token = authorization.partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


class _Allowance:
    """A bucket for each token, which fills by `per_second` up to one second's worth, and at least one call."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._most = max(per_second, 1.0)
        self._left: dict[uuid.UUID, tuple[float, datetime]] = {}

    def spend(self, token_id: uuid.UUID, now: datetime) -> None:
        """Takes one call out; refused if there is none, with the seconds until there is."""
        left, at = self._left.get(token_id, (self._most, now))
        left = min(self._most, left + max((now - at).total_seconds(), 0.0) * self._per_second)
        if left < 1.0:
            self._left[token_id] = left, now
            seconds = math.ceil((1.0 - left) / self._per_second)
            raise TooManyCalls("This API token makes too many calls; wait as long as Retry-After says.", seconds)
        self._left[token_id] = left - 1.0, now
