"""Owns what a person does about corrections and circuits: have a correction sent again, put it aside, close a circuit.

What is owed is examined anew, under the locks of both sides: a correction is never sent again because it was asked for,
but because it is still owed. Each decision is in the audit log with its actor. Refuses to touch what is on its way.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

from service.domain.addresses import Channel
from service.domain.corrections import sayable
from service.domain.deadlines import Calendar, ImpossibleCalendar, calendar_from
from service.domain.suppression import Policy
from service.errors import SettingsError
from service.settings import Settings
from service.store import access, circuits, desk, outbox, proofs, suppressions
from service.store.access import Deed
from service.store.circuits import Circuit
from service.store.database import Connection, Database, until_settled
from service.store.desk import Wanted
from service.store.outbox import Scope, SlotState
from service.telemetry import logger

MOST: Final = 5000
"""Corrections that one call decides about; a call for more says where to go on."""

AT_ONCE: Final = 500
"""Corrections that one transaction decides about."""

What = Literal[
    "requeued",
    "discarded",
    "on-its-way",
    "superseded",
    "not-owed",
    "sent",
    "refused-for-good",
    "discarded-before",
    "unsupported",
    "not-found",
]
"""What came of one correction."""


def calendar_of(settings: Settings) -> Calendar:
    """The calendar of business days that these settings describe. SettingsError tells of each that cannot be."""
    days, weekend = settings.stop_due_business_days, settings.business_weekend
    holidays, zone = settings.business_holidays or "", settings.business_time_zone
    alone = {
        "STOP_DUE_BUSINESS_DAYS": (days, "none", "", "UTC"),
        "BUSINESS_WEEKEND": (1, weekend, "", "UTC"),
        "BUSINESS_HOLIDAYS": (1, "none", holidays, "UTC"),
        "BUSINESS_TIME_ZONE": (1, "none", "", zone),
    }
    faults = []
    for name, words in alone.items():
        try:
            calendar_from(*words, 0)
        except ImpossibleCalendar as error:
            faults.append(f"{name}: {error}.")
    if faults:
        raise SettingsError(" ".join(faults))
    return calendar_from(days, weekend, holidays, zone, settings.stop_due_soon_days * 86_400)


class Result(NamedTuple):
    """What came of one correction; `waits_as` is the id of the correction of its slot that waits to be sent now."""

    id: int
    outcome: What
    waits_as: int | None = None


class Chosen(NamedTuple):
    """Which corrections are meant: those with these ids, or those that are wanted, after an id."""

    ids: tuple[int, ...] = ()
    wanted: Wanted | None = None
    after: int = 0


class Decided(NamedTuple):
    """What came of each, and after which id to go on; None: there is nothing more."""

    results: list[Result]
    next: int | None


@dataclass(frozen=True, slots=True)
class Desk:
    """Who decides, on what, and by which numbers of the verdict; how many corrections a call and a transaction take."""

    database: Database
    namespace: str
    actor: str
    policy: Policy
    clock: Callable[[], datetime]
    most: int = MOST
    at_once: int = AT_ONCE

    async def requeue(self, chosen: Chosen, *, anyway: bool = False) -> Decided:
        """Has corrections sent again that are still owed; `anyway` those, too, that Kahuna refused for good or that
        somebody discarded."""

        async def again(connection: Connection, scope: Scope, rows: Sequence[Any]) -> list[Result]:
            return await self._requeue(connection, scope, rows, anyway=anyway)

        return await self._decide("requeued", chosen, again)

    async def discard(self, chosen: Chosen, reason: str) -> Decided:
        """Puts corrections aside, so that nothing waits for them any more: they are not proposed again until something
        new is learnt about their slot."""

        async def aside(connection: Connection, scope: Scope, rows: Sequence[Any]) -> list[Result]:
            return await self._discard(connection, scope, rows, reason)

        return await self._decide("discarded", chosen, aside)

    async def _decide(
        self,
        verb: str,
        chosen: Chosen,
        work: Callable[[Connection, Scope, Sequence[Any]], Awaitable[list[Result]]],
    ) -> Decided:
        ids = list(dict.fromkeys(chosen.ids)) if chosen.wanted is None else await self._meant(chosen)
        results: list[Result] = []
        for start in range(0, len(ids), self.at_once):
            some = ids[start : start + self.at_once]

            async def transaction(connection: Connection, some: list[int] = some) -> list[Result]:
                return await self._by_channel(connection, some, work)

            results += await until_settled(self.database, transaction)
        done = sum(result.outcome == verb for result in results)
        logger().info(f"corrections.{verb}", namespace=self.namespace, asked=len(ids), count=done)
        return Decided(results, ids[-1] if chosen.wanted is not None and len(ids) == self.most else None)

    async def _meant(self, chosen: Chosen) -> list[int]:
        if chosen.wanted is None:
            return []
        async with self.database.read() as connection:
            return await desk.oldest(connection, chosen.wanted, chosen.after, self.most)

    async def _by_channel(
        self,
        connection: Connection,
        ids: list[int],
        work: Callable[[Connection, Scope, Sequence[Any]], Awaitable[list[Result]]],
    ) -> list[Result]:
        """Their results, in the order of the ids. The channels in one order, as all locks."""
        by_channel: defaultdict[Channel, list[Any]] = defaultdict(list)
        for row in await desk.rows_of(connection, self.namespace, ids):
            by_channel[row.channel].append(row)
        found: dict[int, Result] = {}
        for channel, rows in sorted(by_channel.items()):
            scope = Scope(self.namespace, channel, self.clock(), self.policy)
            found |= {result.id: result for result in await work(connection, scope, rows)}
        return [found.get(one, Result(one, "not-found")) for one in ids]

    async def _requeue(
        self, connection: Connection, scope: Scope, rows: Sequence[Any], *, anyway: bool
    ) -> list[Result]:
        addresses = {row.address for row in rows}
        await proofs.lock_runs_of(connection, [row.id for row in rows])
        states = await outbox.examine(connection, scope, addresses, again=True)
        by_slot = {(state.address, state.name): state for state in states}
        # Only now, under the locks, do the rows say what stays true.
        rows = await desk.rows_of(connection, scope.namespace, [row.id for row in rows])
        judged = {row.id: _judged(row, by_slot.get((row.address, row.slot)), anyway=anyway) for row in rows}
        slots = {(r.address, r.slot) for r in rows if judged[r.id] in ("requeued", "not-owed")}
        requeued = {(r.address, r.slot) for r in rows if judged[r.id] == "requeued"}
        touched = [by_slot[slot] for slot in sorted(slots) if slot in by_slot]
        wanted = [s._replace(refused=s.refused and (s.address, s.name) not in requeued) for s in touched]
        await outbox.write(connection, scope, wanted)
        await desk.retire(connection, _ids(judged, "requeued", "not-owed", "superseded"), scope.now)
        waiting = await desk.waiting(connection, scope, addresses)
        again = {r.id: waiting.get((r.address, r.slot)) for r in rows if judged[r.id] in ("requeued", "superseded")}
        again = {one: waits_as for one, waits_as in again.items() if waits_as is not None}
        await proofs.reopen(connection, again | dict.fromkeys(_ids(judged, "not-owed")), scope.now)
        await desk.hasten(connection, [waiting[slot] for slot in requeued if slot in waiting], scope.now)
        await self._write_down(connection, scope, "requeued", [r for r in rows if judged[r.id] == "requeued"], waiting)
        return [Result(r.id, judged[r.id], waiting.get((r.address, r.slot))) for r in rows]

    async def _discard(self, connection: Connection, scope: Scope, rows: Sequence[Any], reason: str) -> list[Result]:
        await suppressions.lock(connection, scope.namespace, scope.channel, {row.address for row in rows})
        ids = [row.id for row in rows]
        before = {row.id: row for row in await desk.rows_of(connection, scope.namespace, ids)}
        taken = await desk.discard(connection, ids, self.actor, reason, scope.now)
        await proofs.close_settled(connection, scope.now, taken)
        done = [row for row in before.values() if row.id in taken]
        await self._write_down(connection, scope, "discarded", done, {}, reason)
        after = await desk.rows_of(connection, scope.namespace, ids)
        return [
            Result(row.id, "discarded" if row.id in taken else _SETTLED.get(row.state, "on-its-way")) for row in after
        ]

    async def _write_down(
        self,
        connection: Connection,
        scope: Scope,
        verb: str,
        rows: Iterable[Any],
        waiting: dict[tuple[str, str], int],
        reason: str | None = None,
    ) -> None:
        deeds = []
        for row in rows:
            detail = {"correction_id": row.id, "slot": row.slot, "was": row.state, "because": row.reason}
            detail |= {"waits_as": waiting.get((row.address, row.slot)), "reason": reason}
            known = {name: value for name, value in detail.items() if value is not None}
            deeds.append(Deed(self.actor, f"correction.{verb}", scope.namespace, scope.channel, row.address, known))
        await access.write_all_down(connection, deeds, scope.now)


_SETTLED: Final[dict[str, What]] = {
    "sent": "sent",
    "superseded": "superseded",
    "discarded": "discarded-before",
}


def _judged(row: Any, state: SlotState | None, *, anyway: bool) -> What:
    """What is to become of a correction that somebody wants sent again, as both sides stand now."""
    if row.state in ("sent", "superseded"):
        return _SETTLED[row.state]
    if row.state == "sending" or (state is not None and state.slot.in_flight is not None):
        return "on-its-way"
    if state is None or state.needed is None:
        return "not-owed"
    if not sayable(row.channel, state.needed.action):
        return "unsupported"
    if state.pending is not None and state.pending.id != row.id:
        return "superseded"
    if row.state == "discarded" and not anyway:
        return "discarded-before"
    return "refused-for-good" if state.refused and not anyway else "requeued"


def _ids(judged: dict[int, What], *outcomes: What) -> list[int]:
    return [one for one, outcome in judged.items() if outcome in outcomes]


async def reset_circuit(
    database: Database, namespace: str, channel: Channel, actor: str, clock: Callable[[], datetime]
) -> tuple[Circuit | None, int]:
    """Closes a circuit, so that everything of the channel that waits for it goes out at once; returns the circuit as it
    was, None if it was not open, and how many corrections it held up."""

    async def transaction(connection: Connection) -> tuple[Circuit | None, int]:
        now = clock()
        circuit = await circuits.close_one(connection, namespace, channel)
        released = 0 if circuit is None else await circuits.release(connection, circuit, now)
        detail = {"was_open": circuit is not None, "released": released, "because": circuit and circuit.reason}
        await access.write_down(connection, Deed(actor, "circuit.reset", namespace, channel, detail=detail), now)
        return circuit, released

    circuit, released = await until_settled(database, transaction)
    logger().info("circuit.reset", namespace=namespace, channel=channel, was_open=circuit is not None, count=released)
    return circuit, released
