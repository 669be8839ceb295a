"""Owns the pages of what was received: the batches of the archive, and the entries that could not be understood."""

from typing import Any, Final

import msgspec
from starlette.responses import Response

from service.domain.addresses import CHANNELS
from service.store import quarantine
from service.web import archive
from service.web.archive import Batches, Discard, Entries, Replay, Requeue, RequeuedShown, WholeBatch
from service.web.console.asking import as_body, call, filtered, further, why_of, written
from service.web.console.visiting import Action, Form, Page, Visit
from service.web.contract import Asked, Parameters
from service.web.http import SMALL_BODY

SHOWN: Final = 16_384
"""Characters of a body, or of an entry, that a page shows; a way to all of it stands beside."""

ENTRIES_SHOWN: Final = 100
"""Entries of a batch that are shown one by one."""

COUNTED: Final = 10_000
"""Entries, the newest, that are counted by their reason."""

_BATCHES: Final = Parameters(Batches)
_ENTRIES: Final = Parameters(Entries)


async def batches(visit: Visit) -> Response:
    """The newest batches."""
    asked = filtered(visit, _BATCHES)
    found = await archive.list_batches(call(visit, asked.query, None))
    onward = further(visit, "/console/batches", asked, found.next)
    values: dict[str, Any] = {"asked": asked, "batches": found.batches, "further": onward, "channels": CHANNELS}
    return visit.page("batches.html", title="Batches", **values)


async def batch(visit: Visit) -> Response:
    """One batch, as received, and what came of it."""
    found = await archive.one_batch(call(visit, Asked(namespace=visit.namespace), None))
    values: dict[str, Any] = {
        "batch": found,
        "entries": _entries(found),
        "body": found.body[:SHOWN],
        "most": ENTRIES_SHOWN,
    }
    return visit.page("batch.html", title="One batch", **values)


def _entries(found: WholeBatch) -> list[tuple[int, str, str | None]]:
    """The first entries of a callback, each with its index and the error that sent it to quarantine, if one did; none
    of a body that is no array, or is too long or too deep to be read in passing."""
    if found.body_encoding != "utf-8" or found.body_bytes > SMALL_BODY:
        return []
    try:
        decoded = msgspec.json.decode(found.body, type=list[msgspec.Raw])
    except (ValueError, RecursionError):
        return []
    errors = {error.index: error.error for error in found.errors}
    return [(n, bytes(raw).decode()[:SHOWN], errors.get(n)) for n, raw in enumerate(decoded[:ENTRIES_SHOWN])]


async def body(visit: Visit) -> Response:
    """The body of a batch, byte for byte."""
    return await archive.one_body(call(visit, Asked(namespace=visit.namespace), None))


async def rehearse(visit: Visit, _form: Form) -> Response:
    """What a replay of a batch would change, in numbers, and the button that has it done."""
    query = Replay(namespace=visit.namespace, dry_run=True)
    would = await archive.replay_batch(call(visit, query, None))
    return visit.page("batch_replay.html", title="Replay a batch", would=would)


async def replay(visit: Visit, _form: Form) -> Response:
    """Applies a batch again by the rules of today."""
    did = await archive.replay_batch(call(visit, Replay(namespace=visit.namespace), None))
    message = f"Replayed: {did.new} new, {did.requeued} understood by now, {did.rejected} still in quarantine."
    return visit.back(f"/console/batches/{did.batch_id}", message)


async def entries(visit: Visit) -> Response:
    """The newest entries that could not be understood, and how many there are for each reason."""
    asked = filtered(visit, _ENTRIES)
    query = asked.query
    found = await archive.list_entries(call(visit, query, None))
    meant = quarantine.Asked(visit.namespace, query.state, query.channel, None, query.batch_id)
    async with visit.service.database.read() as connection:
        by_error, is_all = await quarantine.tallied(connection, meant, COUNTED)
    values: dict[str, Any] = {
        "asked": asked,
        "entries": found.entries,
        "by_error": by_error,
        "meant": sum(count for error, count in by_error.items() if query.error in (None, error)),
        "is_all": is_all,
        "further": further(visit, "/console/quarantine", asked, found.next),
        "channels": CHANNELS,
    }
    return visit.page("quarantine.html", title="Quarantine", **values)


async def entry(visit: Visit) -> Response:
    """One entry, as it came, and what was decided of it."""
    found = await archive.one_entry(call(visit, Asked(namespace=visit.namespace), None))
    return visit.page("quarantine_entry.html", title="One entry", entry=found, shown=found.entry[:SHOWN])


async def requeue(visit: Visit, _form: Form) -> Response:
    """Reads one entry again."""
    found = await archive.requeue_entry(call(visit, Asked(namespace=visit.namespace), None))
    understood = found.state == "requeued"
    message = "It is understood by now, and applied." if understood else f"It is still not understood: {found.error}."
    return visit.back(f"/console/quarantine/{found.batch_id}/{found.entry_index}", message)


async def discard(visit: Visit, form: Form) -> Response:
    """Takes one entry out of the way."""
    note = why_of(form, "reason", "Say why it is discarded: it is kept with the entry, and in the audit log.")
    said = as_body(Discard, {"reason": note})
    await archive.discard_entry(call(visit, Asked(namespace=visit.namespace), said))
    return visit.back("/console/quarantine", "The entry is discarded; it stays readable under “discarded”.")


async def requeue_all(visit: Visit, form: Form) -> Response:
    """Reads the open entries of a filter again, as many as one call takes; says where to go on."""
    meant = written(form, "channel", "error", "batch_id", "cursor")
    wanted = as_body(Requeue, meant)
    done = await archive.requeue_entries(call(visit, Asked(namespace=visit.namespace), wanted))
    if done.next is None:
        return visit.back("/console/quarantine", _requeued(done))
    values: dict[str, Any] = {"sentence": _requeued(done), "meant": meant | {"cursor": done.next}}
    return visit.page("quarantine_requeued.html", title="Requeue many", **values)


def _requeued(done: RequeuedShown) -> str:
    failed = f" {done.failed} batches could not be applied: the log says why." if done.failed else ""
    entries = "1 entry was" if done.entries == 1 else f"{done.entries:,} entries were"
    return f"{entries} read again, {done.requeued:,} of them understood ({done.new:,} new).{failed}"


PAGES: Final = (
    Page("/console/batches", batches),
    Page("/console/batches/{id}", batch),
    Page("/console/batches/{id}/body", body),
    Page("/console/quarantine", entries),
    Page("/console/quarantine/{batch_id}/{entry_index}", entry),
)

ACTIONS: Final = (
    Action("/console/batches/{id}/rehearse", rehearse, audited=False),
    Action("/console/batches/{id}/replay", replay),
    Action("/console/quarantine/requeue", requeue_all),
    Action("/console/quarantine/{batch_id}/{entry_index}/requeue", requeue),
    Action("/console/quarantine/{batch_id}/{entry_index}/discard", discard),
)
