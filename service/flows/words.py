"""Owns what a piece of evidence says, for whoever takes it back or asks who else stands behind a fact: archived batches
by their testimony, rows of the audit log by what they state."""

import asyncio
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from service.domain.facts import Fact, Origin
from service.flows.ingest import Rules
from service.flows.testimony import testimony_of
from service.store import batches, retractions
from service.store.batches import Applied
from service.store.database import Connection
from service.store.retractions import Retraction
from service.store.withdrawals import Saying


@dataclass(frozen=True, slots=True)
class Word:
    """What one piece of evidence says, of what is meant; in the order of the addresses."""

    evidence: uuid.UUID
    said: list[Saying]
    silent: Sequence[tuple[int, Fact]] = ()
    unclear: int = 0


async def words_of(
    connection: Connection, retraction: Retraction, evidence: Sequence[tuple[uuid.UUID, bool]], rules: Rules
) -> list[Word]:
    """What this evidence says, of what is meant; of batches as much as memory should hold."""
    found = await batches.applied_among(connection, [one for one, is_batch in evidence if is_batch])
    words = [await asyncio.to_thread(_said_by, one, retraction, rules) for one in found]
    deeds = await retractions.deeds_among(connection, retraction, [one for one, is_batch in evidence if not is_batch])
    return words + [
        Word(deed.id, sorted(one for one in stated([deed]) if retraction.only.takes(one.fact))) for deed in deeds
    ]


def _said_by(applied: Applied, retraction: Retraction, rules: Rules) -> Word:
    found = testimony_of(applied, rules)
    batch = applied.received
    facts = sorted({fact for fact in found.facts if retraction.only.takes(fact)})
    said = [Saying(fact, batch.id, True, batch.origin, applied.applied_at) for fact in facts]
    return Word(batch.id, said, found.silent, found.unclear)


def stated(deeds: Iterable[retractions.Deed]) -> Iterator[Saying]:
    """What rows of the audit log state."""
    for deed in deeds:
        for fact in deed.facts:
            yield Saying(fact, deed.id, False, _origin_of(deed.action), deed.at)


def _origin_of(action: str) -> Origin:
    """Where the facts of a deed come from, by what was done."""
    kind = action.partition(".")[0]
    return _ORIGINS.get(kind, "operator")


_ORIGINS: Final[Mapping[str, Origin]] = {
    "address": "api",
    "reconciliation": "reconciliation",
    "logs": "kahuna_logs",
}
"""Where facts come from, by the first word of a deed; of other deeds, from an operator."""
