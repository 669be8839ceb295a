"""Owns what a run asks Kahuna itself before the ledger is compared: its logs, whose stops protect at once and are lines
of the plan that are done already, or the profiles of some addresses.

Refuses to conclude more from a profile than it says: a stop that nobody here knows is proposed, whatever else is at
odds is for a person.
"""

import asyncio
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from service.domain.corrections import slots_of
from service.domain.facts import Fact, home_of
from service.domain.suppression import verdict
from service.errors import KahunaSyncError
from service.flows import profiles, pull
from service.flows.plan import compare_some
from service.flows.profiles import Observation
from service.flows.testimony import testimony_of
from service.flows.underway import Progress, Underway
from service.kahuna.client import KahunaClient
from service.store import batches, differences, drift, pulls, reconciliations
from service.store.database import Connection
from service.store.differences import Line
from service.store.drift import Sides
from service.store.outbox import Scope

AT_ONCE: Final = 16
"""Batches that are read at once."""


class NoClient(KahunaSyncError):
    """This process has no keys to ask Kahuna with."""

    slug = "no-keys-for-kahuna"


async def pull_logs(underway: Underway, progress: Progress | None) -> None:
    """Reads the logs; what they told is on the list at once, and each fact is a line of the plan that is proved."""
    means, run = underway.means, underway.run
    asked = (run.asked or {}).get("since")
    since = None if asked is None else datetime.fromisoformat(asked)
    seen = Counter[str]()

    def tell(step: pull.Step) -> None:
        seen.update(step.counts)
        if progress is not None:
            progress("records of the logs", seen["records"])

    client = _client(underway)
    shared = (means.database, client, run.namespace, means.rules, means.clock)
    more: dict[str, Any] = {"progress": tell, "run_id": run.id, "holding": underway.hold, "metrics": means.metrics}
    pulled = await pull.pull(*shared, since=since, delay=means.delay, **more)
    counts = Counter[str]()
    for start in range(0, len(pulled.batches), AT_ONCE):
        counts += await underway.do(_list_batches, underway, pulled.batches[start : start + AT_ONCE])
    error = f"logs-unread:{','.join(sorted(pulled.failed))}" if pulled.failed else None
    counts["logs_unread"] = len(pulled.failed)
    await underway.do(_note, underway, {"counts": dict(+counts), "error": error, "attempts": 0})


def _client(underway: Underway) -> KahunaClient:
    client = underway.means.clients.get(underway.run.namespace)
    if client is None:
        raise NoClient("Set KAHUNA_SECRET_KEY, KAHUNA_API_KEY and KAHUNA_ENV, and ask for the run again.")
    return client


async def _nothing(_: Connection) -> None:
    """For a transaction that only holds the run."""


async def _note(connection: Connection, underway: Underway, values: dict[str, Any]) -> None:
    await reconciliations.write(connection, underway.run, values)


async def _list_batches(connection: Connection, underway: Underway, ids: Sequence[uuid.UUID]) -> Counter[str]:
    """The new facts of these batches as lines; of a slot that is told twice, the newest."""
    lines: dict[tuple[str, str], Line] = {}
    while ids:
        found = await batches.applied_among(connection, ids)
        for one in found:
            said = await asyncio.to_thread(testimony_of, one, underway.means.rules)
            for fact in sorted(said.facts, key=lambda fact: fact.occurred_at):
                line = _told_by_logs(fact, one.received.id)
                lines[line.address, line.slot] = line
        ids = [one for one in ids if found and one > found[-1].received.id]
    await differences.add(connection, underway.run.id, [lines[key] for key in sorted(lines)])
    return Counter({name: len(lines) for name in ("differences", "missing_here", "proved")} if lines else {})


def _told_by_logs(fact: Fact, batch_id: uuid.UUID) -> Line:
    slot = home_of(fact.channel, fact.reason)
    evidence = {"here": [], "there": {"log_record_of_batch": batch_id}, "correction": "proved"}
    at = fact.occurred_at
    told = Line(fact.address, slot, "missing_here", fact.action, at, evidence, "proved", fact.reason, "from-logs")
    return told._replace(batch_id=batch_id)


async def batches_of(connection: Connection, run_id: uuid.UUID) -> list[uuid.UUID]:
    """The batches that a run had made of Kahuna's logs."""
    return await pulls.batches_of(connection, run_id)


async def look_up(underway: Underway) -> None:
    """Asks Kahuna about some addresses, compares them with the ledger, and writes down where a profile says otherwise
    than both."""
    means, run = underway.means, underway.run
    wanted: Sequence[str] | int = (run.asked or {}).get("addresses") or means.sample
    shared = (means.database, _client(underway), run.namespace, run.channel)
    observed = await profiles.spot_check(*shared, wanted, means.budget, means.clock, lambda: underway.do(_nothing))
    addresses = sorted({one.address for one in observed})
    await compare_some(underway, addresses)
    # Beyond the budget of calls.
    unasked = 0 if isinstance(wanted, int) else len(set(wanted).difference(addresses))
    await underway.do(_list_observed, underway, observed, addresses, unasked)


async def _list_observed(
    connection: Connection, underway: Underway, observed: Sequence[Observation], addresses: Sequence[str], unasked: int
) -> None:
    run, scope = underway.run, underway.scope()
    row = await reconciliations.one(connection, run.id)
    counts = Counter(row.counts) if row is not None else Counter[str]()
    known = await differences.standing(connection, run.id, [(one.address, one.slot) for one in observed])
    both = await drift.sides(connection, scope, addresses)
    by_address: dict[str, list[Sides]] = {}
    for sides in both:
        by_address.setdefault(sides.state.address, []).append(sides)
    lines = [
        line
        for one in observed
        if (one.address, one.slot) not in known
        for line in _seen(scope, one, by_address.get(one.address, []))
    ]
    counts["looked_up"], counts["not_looked_up"] = len(observed), unasked
    counts["without_answer"] = sum(one.suppressed is None for one in observed)
    for line in lines:
        counts.update(("differences", line.kind, line.state))
    await differences.add(connection, run.id, lines)
    await reconciliations.write(connection, run, {"counts": dict(+counts)})


def _seen(scope: Scope, one: Observation, both: Sequence[Sides]) -> Iterable[Line]:
    """What a profile says that we do not know, or know otherwise."""
    causes = both[0].state.causes if both else {}
    suppressed = verdict(causes, scope.at, scope.policy).suppressed
    if one.suppressed is None or one.suppressed == suppressed:
        return
    mine = slots_of(scope.channel, causes).get(one.slot, [])
    evidence = {"here": [cause._asdict() for cause in mine], "there": {"profile": one.evidence}}
    at = one.at or int(datetime.fromisoformat(str(one.evidence["asked_at"])).timestamp())
    if one.suppressed and not any(cause.decided for cause in causes.values()):
        yield Line(one.address, one.slot, "missing_here", "suppress", at, evidence, "proposed", one.slot)
    else:
        yield Line(one.address, one.slot, "differs", None, at, evidence, "unsupported", one.slot, "seen-otherwise")
