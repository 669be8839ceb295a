"""Owns what this process knows about the database: whether it is there, so that nobody waits for what is not.

A failure is a reason to ask, and so is a silence while somebody waits: the database is away if it does not answer on a
new connection within the patience. Then all who wait are told at once, nobody else is let in, and a watch asks again
and again until it is back. Refuses to decide what becomes of those who were told.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from service.errors import StorageUnavailable
from service.telemetry import logger

T = TypeVar("T")

LOOK: Final = 0.5
"""Seconds between two looks of the watch."""


class Weather:
    """`answers` asks the database within some seconds, the patience; `on_loss` is called each time it is found to be
    away; `look` is the time in seconds between two looks of the watch."""

    def __init__(
        self,
        answers: Callable[[float], Awaitable[bool]],
        patience: float,
        on_loss: Callable[[], object],
        look: float = LOOK,
    ) -> None:
        self._answers = answers
        self._patience = patience
        self._on_loss = on_loss
        self._pause = look
        self._there = asyncio.Event()
        self._there.set()
        self._waiting: dict[asyncio.Timeout, float] = {}
        self._heard_at = 0.0
        self._question: asyncio.Task[None] | None = None

    @property
    def away(self) -> bool:
        """Whether the database was away when last asked."""
        return not self._there.is_set()

    async def back(self) -> None:
        """Returns once the database is there."""
        await self._there.wait()

    async def trusting(self, work: Callable[[], Awaitable[T]]) -> T:
        """Does work that needs the database, and once more if it failed though the database is there. Whatever it had
        begun is left to end by itself. StorageUnavailable as soon as the database is known to be away."""
        try:
            return await self._attempt(work)
        except StorageUnavailable:
            if await self.doubt():
                raise
        return await self._attempt(work)

    async def doubt(self) -> bool:
        """Asks the database, and tells whether it is away. Those who doubt at the same time share the question."""
        if self.away:
            return True
        if self._question is None or self._question.done():
            self._question = asyncio.create_task(self._ask())
        await asyncio.shield(self._question)
        return self.away

    async def watch(self) -> None:
        """Looks out until it is cancelled: for silence, and then for the end of it."""
        try:
            while True:
                await asyncio.sleep(self._pause)
                await self._look()
        finally:
            if self._question is not None:
                self._question.cancel()

    async def _look(self) -> None:
        if not self.away:
            if self._is_silent():
                await self.doubt()
        elif await self._answers(self._patience):
            self._there.set()
            logger().info("database.found")

    async def _attempt(self, work: Callable[[], Awaitable[T]]) -> T:
        if self.away:
            raise StorageUnavailable("The database is away; try again.")
        now = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(None) as patience:
                self._waiting[patience] = now()
                try:
                    result = await work()
                finally:
                    self._waiting.pop(patience, None)
        except TimeoutError:
            raise StorageUnavailable("The database does not answer; try again.") from None
        self._heard_at = now()
        return result

    def _is_silent(self) -> bool:
        """Whether nobody was answered for longer than the patience, though somebody waited all the while."""
        oldest = next(iter(self._waiting.values()), None)
        if oldest is None:
            return False
        return asyncio.get_running_loop().time() - max(oldest, self._heard_at) > self._patience

    async def _ask(self) -> None:
        if await self._answers(self._patience):
            self._heard_at = asyncio.get_running_loop().time()
            return
        logger().warning("database.lost", waiting=len(self._waiting))
        self._there.clear()
        told, self._waiting = self._waiting, {}
        for patience in told:
            patience.reschedule(asyncio.get_running_loop().time())
        self._on_loss()
