"""Owns what the steps of a reconciliation share: whose it is, by which rules it judges, and the fence that keeps a
worker whose lease has ended from writing another word."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from service.domain.runs import Guards, RunState, resting, saw_all
from service.domain.suppression import Policy
from service.errors import KahunaSyncError
from service.flows.ingest import Rules
from service.kahuna.client import KahunaClient
from service.settings import Settings
from service.store import differences, reconciliations
from service.store.database import Connection, Database, until_settled
from service.store.outbox import Scope
from service.store.reconciliations import Run
from service.telemetry import Metrics

LEASE: Final = timedelta(minutes=5)

SCHEDULE: Final = "schedule"
"""Who asks for the runs that the settings ask for."""

UNFINISHED: Final[frozenset[RunState]] = frozenset({"queued", "running", "approved", "reverting"})
"""Runs on which a worker has something to do."""

T = TypeVar("T")
P = ParamSpec("P")

Progress = Callable[[str, int], None]
"""What is being done, and how many lines are so far."""


class TakenOver(KahunaSyncError):
    """This worker was too slow: its lease ended, and the work is another's now."""

    slug = "taken-over"


class NotYet(KahunaSyncError):
    """Other work has to be done first; this is gone on with later."""

    slug = "not-yet"


@dataclass(frozen=True, slots=True)
class Means:
    """What a reconciliation works with. `clients` speak to Kahuna, by namespace; the ledger needs none. `sample` is how
    many addresses a spot check takes that names none, `budget` how many calls it may make; `page` is how many addresses
    or lines one transaction takes on, which holds their rows meanwhile, and `decided_at_once` how many lines one of a
    decision marks; `delay` is how far it stays behind the present of Kahuna's logs, and `kept_runs` how many runs of a
    list, the newest, keep all of their lines. `metrics` count what its logs tell."""

    database: Database
    rules: Rules
    clock: Callable[[], datetime]
    guards: Guards = Guards()  # noqa: RUF009 (a value that never changes)
    clients: Mapping[str, KahunaClient] = field(default_factory=dict)
    sample: int = 100
    budget: int = 100
    page: int = 2000
    delay: timedelta = timedelta(minutes=10)
    kept_runs: int = 30
    decided_at_once: int = 10_000
    metrics: Metrics = field(default_factory=Metrics)

    @property
    def policy(self) -> Policy:
        """The numbers of the verdict."""
        return self.rules.policy


def guards_of(settings: Settings) -> Guards:
    """The guards that these settings set."""
    return Guards(settings.reconcile_guard_share, settings.reconcile_guard_floor, settings.reconcile_guard_count)


@dataclass(frozen=True, slots=True)
class Underway:
    """A run in the hands of this worker. Every transaction first makes sure that it still is."""

    means: Means
    run: Run

    def scope(self) -> Scope:
        """The list that the run is about, as of now."""
        return Scope(self.run.namespace, self.run.channel, self.means.clock(), self.means.policy)

    async def anew(self) -> "Underway":
        """The same run with what is written of it by now."""
        async with self.means.database.read() as connection:
            row = await reconciliations.one(connection, self.run.id)
        if row is None or row.fence != self.run.fence:
            raise TakenOver("Another worker has taken this run over.")
        return replace(self, run=reconciliations.as_run(row))

    async def hold(self, connection: Connection) -> None:
        """Holds the run for longer, its row locked until the commit; TakenOver if it is another worker's by now, or was
        ended."""
        if not await reconciliations.hold(connection, self.run, self.means.clock() + LEASE):
            raise TakenOver("Another worker has taken this run over, or somebody has ended it.")

    async def do(self, work: Callable[Concatenate[Connection, P], Awaitable[T]], *args: P.args, **more: P.kwargs) -> T:
        """One short transaction; TakenOver if the run is another worker's by now, or was ended."""

        async def fenced(connection: Connection) -> T:
            await self.hold(connection)
            return await work(connection, *args, **more)

        return await until_settled(self.means.database, fenced)


def rested(lines: Mapping[Any, int], counts: Mapping[str, int], now: datetime, *, approved: bool) -> dict[str, Any]:
    """The values of a run with a whole plan whose lines stand like this, and that counted this when it was made: its
    state, and what follows from it."""
    state = resting(lines, approved=approved, whole=saw_all(counts))
    waits = any(lines.get(one) for one in ("applied", "on_its_way"))
    finished = None if state in UNFINISHED else now
    closed = None if waits or state in ("planned", "approved") else now
    return {"state": state, "finished_at": finished, "closed_at": closed, "lease_until": None}


async def rest(connection: Connection, row: Any, now: datetime) -> RunState:
    """Brings the state of a run in line with its lines; its row must be locked."""
    lines = await differences.counts(connection, row.id)
    values = rested(lines, row.counts, now, approved=row.approved_at is not None)
    await reconciliations.change(connection, row.id, values)
    state: RunState = values["state"]
    return state
