"""Owns what becomes of verified callbacks while the database cannot take them: they are spooled, and answered so.

Nothing is spooled that the database can take. What is in the spool goes through the same door as every callback once
the database is back, in order of receipt and with the time of receipt that was stored; a file is let go of only after
the commit, so that a crash in between costs no more than a redelivery. One that fails keeps its place in the folder,
and blocks no other.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar
from uuid import UUID

from service.errors import KahunaSyncError, StorageUnavailable
from service.flows.ingest import Ingested, Rules, read_again
from service.flows.intake import LEAST, SHARED, SMALL_BODY, WAITING, Intake
from service.flows.together import Together
from service.flows.weather import Weather
from service.kahuna import webhook
from service.store.batches import Received
from service.store.spool import Spool, Stock, Torn, batch_id_of
from service.telemetry import logger

T = TypeVar("T")

IDLE: Final = 5.0
"""Seconds between two looks at a spool that nothing was put in: a process that shares it may have died."""

FIRST_PAUSE: Final = 0.5
"""Seconds before what failed is tried again; doubles each time, up to `IDLE`."""

TOGETHER: Final = LEAST
"""Small files that are taken to the database at a time: they share a transaction, with each other and with what comes
in. More would be parted, and the later half might overtake the other."""

REST: Final = 1.0
"""Seconds of rest for each second of work while others are served: what waited must not slow down what comes."""

FAILURES: Final = 8
"""Files that fail one after the other until the rest is left for the next time: then it is not the files."""


class Shelter:
    """Takes callbacks as `Intake` does, and keeps in the spool those that the database cannot take. `rest` is given the
    seconds between two pieces of a drain that is not alone."""

    def __init__(
        self,
        intake: Intake,
        spool: Spool,
        weather: Weather,
        rules: Rules,
        rest: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.weather = weather
        self.spool = spool
        self._intake = intake
        self._rules = rules
        self._put: Together[Received, UUID | StorageUnavailable] = Together(
            self._put_together, at_once=1, most=SHARED, waiting=WAITING
        )
        self._full = asyncio.Event()
        self._rest = rest
        self._heard = 0
        self._failures: dict[str, int] = {}
        self._stranded: dict[str, str] = {}

    async def ingest(self, batch: Received, callback: webhook.Callback) -> Ingested:
        """Makes a verified batch durable: in the database, or else in the spool. StorageUnavailable if in neither."""
        self._heard += 1
        first = await self._first(batch)
        take = self._intake.ingest if first is batch else self._intake.ingest_alone
        try:
            return await self.weather.trusting(lambda: take(first, callback))
        except StorageUnavailable as error:
            kept = await self._put.ask(first)
            if isinstance(kept, StorageUnavailable):
                raise kept from error
        self._full.set()
        logger().warning("batch.spooled", batch_id=str(kept), namespace=batch.namespace, channel=batch.channel)
        return Ingested(str(kept), None, spooled=True)

    async def drain(self) -> None:
        """Empties the spool whenever the database is there, until it is cancelled."""
        failures = 0
        while True:
            await self.weather.back()
            try:
                failures = 0 if await self.drain_once() else failures + 1
            except Exception as error:  # noqa: BLE001 (a loop that ended would be callbacks that are never applied)
                failures += 1
                logger().error("spool.drain_failed", exc_info=error)
            await (asyncio.sleep(min(FIRST_PAUSE * 2.0**failures, IDLE)) if failures else self._wait())

    async def drain_once(self) -> bool:
        """Takes everything in the spool to the database, if no other process is at it; tells whether nothing failed."""
        # The lock is taken right here: a thread that was cancelled meanwhile could not give it back.
        with self.spool.draining() as ours:
            if not ours:
                return True
            self._full.clear()
            await asyncio.to_thread(self.spool.sweep)
            stock = await asyncio.to_thread(self.spool.look)
            for name in stock.strangers:
                await self._set_aside(name)
            drained, failed = await self._drain(self._order(stock))
        if drained:
            logger().info("spool.drained", batches=drained)
        if failed and not self.weather.away:
            logger().error("spool.stuck", failed=failed)
        return not failed

    async def _put_together(self, batches: Sequence[Received]) -> list[UUID | StorageUnavailable]:
        return await asyncio.to_thread(self.spool.put, batches)

    async def _first(self, batch: Received) -> Received:
        """The same body if it waits in the spool: its id was answered, and its time of receipt is what counts."""
        if not self.spool.may_keep(batch):
            return batch
        kept = await asyncio.to_thread(self.spool.kept, batch)
        # A file of an older release may not say which request brought it: this one is better than none.
        return batch if kept is None else kept._replace(request_id=kept.brought_by or batch.request_id)

    def _order(self, stock: Stock) -> list[str]:
        """By time of receipt, but those that failed go last, and those of no namespace of ours stay where they are."""
        there = set(stock.batches)
        self._failures = {name: count for name, count in self._failures.items() if name in there}
        self._stranded = {name: namespace for name, namespace in self._stranded.items() if name in there}
        waiting = (name for name in stock.batches if name not in self._stranded)
        return sorted(waiting, key=lambda name: (self._failures.get(name, 0), name))

    async def _drain(self, names: Sequence[str]) -> tuple[int, int]:
        """How many were taken to the database, and how many failed."""
        drained = failed = in_a_row = 0
        start, now = 0, asyncio.get_running_loop().time
        while start < len(names):
            heard, began = self._heard, now()
            loaded = await asyncio.to_thread(self._load, names[start : start + TOGETHER])
            some = names[start : start + len(loaded)]
            start += len(some)
            for name, came in zip(some, await self._take(some, loaded), strict=True):
                if isinstance(came, BaseException):
                    failed, in_a_row = failed + 1, in_a_row + 1
                    self._note_failure(name, came)
                else:
                    drained, in_a_row = drained + came, 0
            if self.weather.away or in_a_row >= FAILURES:
                break
            if self._heard > heard and start < len(names):
                await self._rest(REST * (now() - began))
        return drained, failed

    def _note_failure(self, name: str, error: BaseException) -> None:
        self._failures[name] = self._failures.get(name, 0) + 1
        if not isinstance(error, KahunaSyncError):
            logger().error("spool.failed", batch_id=batch_id_of(name), exc_info=error)

    def _load(self, names: Sequence[str]) -> list[Received | Exception]:
        """The first of these files, or what each raised: small ones, or a large one by itself, since dozens of those
        would not fit into memory."""
        loaded: list[Received | Exception] = []
        for name in names:
            [batch] = _each(self.spool.load, [name])
            is_large = isinstance(batch, Received) and len(batch.body) > SMALL_BODY
            if is_large and loaded:
                break  # its turn comes next
            loaded.append(batch)
            if is_large:
                break
        return loaded

    async def _take(self, names: Sequence[str], loaded: Sequence[Received | Exception]) -> list[bool | BaseException]:
        """Takes files to the database; of each whether it was there to be taken, or why it keeps its place: one bad
        file must not keep the others waiting."""
        came = await asyncio.gather(*map(self._take_one, names, loaded), return_exceptions=True)
        taken = [name for name, one in zip(names, came, strict=True) if one is True]
        removed = dict(zip(taken, await asyncio.to_thread(_each, self.spool.remove, taken), strict=True))
        return [removed.get(name) or one for name, one in zip(names, came, strict=True)]

    async def _take_one(self, name: str, batch: Received | Exception) -> bool:
        if isinstance(batch, FileNotFoundError):
            return False
        if isinstance(batch, Torn):
            await self._set_aside(name)
            return False
        if isinstance(batch, Exception):
            raise batch
        if batch.namespace not in self._rules.namespaces:
            self._strand(name, batch.namespace)
            return False
        member = await read_again(batch, self._rules)
        await self.weather.trusting(lambda: self._intake.ingest_again(member))
        return True

    async def _set_aside(self, name: str) -> None:
        # The name of a stranger may say anything, so only the id in one of ours is told.
        try:
            await asyncio.to_thread(self.spool.set_aside, name)
        except OSError as error:
            logger().error("spool.failed", batch_id=batch_id_of(name), exc_info=error)
        else:
            logger().error("spool.torn", batch_id=batch_id_of(name))

    def _strand(self, name: str, namespace: str) -> None:
        if namespace not in self._stranded.values():
            logger().error("spool.stranded", namespace=namespace)
        self._stranded[name] = namespace

    async def _wait(self) -> None:
        """Until something is put in, or a while later."""
        try:
            async with asyncio.timeout(IDLE):
                await self._full.wait()
        except TimeoutError:
            return


def _each(work: Callable[[str], T], names: Sequence[str]) -> list[T | Exception]:
    """What the work made of each name, or what it raised."""

    def tried(name: str) -> T | Exception:
        try:
            return work(name)
        except Exception as error:  # noqa: BLE001 (whoever asked judges each by itself)
            return error

    return [tried(name) for name in names]
