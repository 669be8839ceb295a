"""Owns the page that tells how this deployment is: readiness, what `doctor` finds without asking Kahuna, the database's
tables of receipt, and the work that the worker does by the clock. Refuses to call anybody outside.
"""

import asyncio
from datetime import timedelta
from typing import Any, Final, NamedTuple

import msgspec
from starlette.responses import Response

from service.errors import StorageUnavailable
from service.flows import examine
from service.flows.examine import Check, Release
from service.store import leases, partitions
from service.store.database import Connection
from service.store.partitions import Receipts
from service.web import health as watching
from service.web.console.visiting import Action, Page, Visit
from service.web.contract import Call, Nothing
from service.web.health import Readiness

ALWAYS: Final = frozenset({"upkeep", "surges"})
"""Work that is due again and again in every deployment, so that it tells whether there is a worker."""

LATE: Final = timedelta(minutes=10)
"""After the time when some work is due, from when on nobody seems to do it: the worker looks every few seconds."""


class Months(NamedTuple):
    """The partitions of a table of receipt: how many months have one, and the last."""

    table: str
    made: int
    last: str


class Work(NamedTuple):
    """Work that one worker at a time does: when it is due again, or how long its lease goes on; and whether that was so
    long ago that nobody seems to do it."""

    name: str
    due_at: Any
    taken: int
    late: bool


async def health(visit: Visit) -> Response:
    """Everything that is cheap to look at."""
    service, only = visit.service, visit.visitor.caller.namespace
    readiness = await _readiness(visit)
    settings = [*examine.of_settings(service.settings), *examine.of_signatures(service.settings)]
    checks = [*settings, *await asyncio.to_thread(lambda: list(examine.of_spool(service.settings)))]
    release = Release(service.head, service.revisions)
    months: list[Months] = []
    work: list[Work] = []
    try:
        async with service.database.read() as connection:
            checks += await examine.of_connection(service.settings, connection, release, service.now, only)
            months = [await _months(connection, receipts) for receipts in partitions.ALL]
            work = await _work(connection, visit)
    except StorageUnavailable as error:
        checks.append(Check("database", "fail", str(error), "see readiness above; callbacks go to the spool, if any"))
    shown = [one for one in checks if _concerns(one, only, service.namespaces)]
    return visit.page(
        "health.html",
        title="Health",
        readiness=readiness,
        checks=sorted(shown, key=lambda one: ("fail", "warn", "ok").index(one.level)),
        months=months,
        work=work,
        asleep=any(one.late for one in work),
        use=service.database.use,
    )


async def _readiness(visit: Visit) -> Readiness:
    """What `/readyz` answers."""
    call = Call(visit.request, visit.service, visit.visitor.caller, Nothing(), None)
    return msgspec.json.decode((await watching.readyz(call)).body, type=Readiness)


def _concerns(check: Check, only: str | None, namespaces: Any) -> bool:
    """Whether it is about the namespace that the visitor may see, or about none."""
    _, _, of = check.name.partition("/")
    return only is None or of.partition("/")[0] in ("", only) or of.partition("/")[0] not in namespaces


async def _months(connection: Connection, receipts: Receipts) -> Months:
    made = await partitions.months(connection, receipts)
    last = max(made, default=None)
    return Months(receipts.table, len(made), "none" if last is None else f"{last.year}-{last.month:02}")


async def _work(connection: Connection, visit: Visit) -> list[Work]:
    now = visit.service.now
    rows = await leases.standing(connection)
    only = visit.visitor.caller.namespace
    others = [name for name in visit.service.namespaces if only not in (None, name)]
    return [
        Work(row.name, row.ends_at, row.fence, row.name in ALWAYS and row.ends_at + LATE < now)
        for row in rows
        if row.name != leases.EVIDENCE and not any(f"/{name}/" in row.name for name in others)
    ]


PAGES: Final = (Page("/console/health", health),)

ACTIONS: Final[tuple[Action, ...]] = ()
