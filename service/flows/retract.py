"""Owns taking back what an import, a surge or a run has said: never a clear, so a genuine stop that comes later wins.

(being written: the signatures below stand)
"""

import uuid
from collections import Counter
from collections.abc import Callable
from datetime import datetime

from service.flows.ingest import Rules
from service.store import access, retractions
from service.store.access import Deed
from service.store.database import Connection, Database
from service.store.retractions import Evidence, Retraction

Counts = Counter[str]
Progress = Callable[[Counts], None]


async def request(connection: Connection, asked: Retraction, evidence: Evidence, now: datetime) -> uuid.UUID:
    """Has the word of this evidence taken back by the worker; returns the retraction's id. Asked for the same run,
    surge or import again, it is the one of before. In the caller's transaction. Conflict `batch-gone` if a batch has
    left the archive."""
    before = await retractions.create(connection, asked, now)
    if before is not None:
        return before
    await retractions.add_evidence(connection, asked.id, evidence)
    detail = {"retraction_id": str(asked.id), "of": str(asked.of), "reason": asked.reason}
    deed = Deed(asked.actor, f"{asked.kind}.reverted", asked.namespace, asked.channel, detail=detail)
    await access.write_down(connection, deed, now)
    return asked.id


async def run_next(
    database: Database,
    rules: Rules,
    clock: Callable[[], datetime],
    progress: Progress | None = None,
    retraction_id: uuid.UUID | None = None,
) -> Retraction | None:
    """Carries out the next retraction that waits, or the one given; returns it, or None if there is none."""
    raise NotImplementedError
