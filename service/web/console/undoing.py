"""Owns the pages of what can be undone: surges that wait for a person, imports, and what was or is being taken back.

Whatever is decided goes the way of the API, and is shown in numbers before it is done. Who is in a surge is read from
its first batches, as many as one page needs.
"""

import uuid
from typing import Any, Final

from starlette.responses import Response

from service.errors import NotFound
from service.flows import surges as finding
from service.store import retractions
from service.store import surges as store
from service.web import undo
from service.web.asking import Page as Rows
from service.web.asking import Walk, id_in
from service.web.console.asking import ROWS, as_body, call, filtered, further, why_of, written
from service.web.console.visiting import Action, Form, Page, Visit
from service.web.contract import Asked, Parameters
from service.web.undo import Judgement, Revert, Surges, SurgeShown

_SURGES: Final = Parameters(Surges)
_IMPORTS: Final = Parameters(Walk)

_LATER: Final = "It is being taken back: a worker goes through what was said. Reload to see how far it is."

_WHY: Final = "Say why it is taken back: it is told to whoever asks about one of the addresses."


async def surges(visit: Visit) -> Response:
    """Groups of stops in unusual number: those that wait, or were decided."""
    asked = filtered(visit, _SURGES)
    found = await undo.list_surges(call(visit, asked.query, None))
    onward = further(visit, "/console/surges", asked, found.next)
    return visit.page("surges.html", title="Surges", asked=asked, surges=found.surges, further=onward)


async def surge(visit: Visit) -> Response:
    """One surge, and who is in it."""
    return await _surge(visit, "surge.html", "Surge")


async def deciding(visit: Visit) -> Response:
    """What keeping a surge, or taking it back, would come to."""
    return await _surge(visit, "surge_decide.html", "Decide about a surge")


async def _surge(visit: Visit, template: str, title: str) -> Response:
    shown = await _one(visit)
    glance = await finding.glance(visit.service.database, visit.service.rules, shown.id)
    return visit.page(template, title=title, surge=shown, glance=glance)


async def _one(visit: Visit) -> SurgeShown:
    asked = call(visit, Asked(namespace=visit.namespace), None)
    async with visit.service.database.read() as connection:
        row = await store.one(connection, id_in(asked))
        undone = await retractions.of_each(connection, "surge", [id_in(asked)])
    if row is None or asked.namespace_limit not in (None, row.namespace):
        raise NotFound("There is no such surge; the page Surges lists them.")
    return undo.surge_told(row, undone)


async def keep(visit: Visit, form: Form) -> Response:
    """These stops are genuine."""
    said = as_body(Judgement, written(form, "note"))
    kept = await undo.keep_surge(call(visit, Asked(namespace=visit.namespace), said))
    return visit.back("/console/surges", f"Kept: the {kept.count:,} stops stand, and nobody is asked again.")


async def revert_surge(visit: Visit, form: Form) -> Response:
    """Takes the stops of a surge back."""
    said = as_body(Revert, {"reason": why_of(form, "reason", _WHY)})
    return await _taken_back(visit, await undo.revert_surge(call(visit, Asked(namespace=visit.namespace), said)))


async def imports(visit: Visit) -> Response:
    """The lists that were taken in."""
    asked = filtered(visit, _IMPORTS)
    found = await undo.list_imports(call(visit, asked.query, None))
    onward = further(visit, "/console/imports", asked, found.next)
    return visit.page("imports.html", title="Imports", imports=found.imports, further=onward)


async def one_import(visit: Visit) -> Response:
    """One list, and what taking it back would come to."""
    found = await undo.one_import(call(visit, Asked(namespace=visit.namespace), None))
    return visit.page("import.html", title="Import", one=found)


async def revert_import(visit: Visit, form: Form) -> Response:
    """Takes all that a list has said back."""
    said = as_body(Revert, {"reason": why_of(form, "reason", _WHY)})
    return await _taken_back(visit, await undo.revert_import(call(visit, Asked(namespace=visit.namespace), said)))


async def _taken_back(visit: Visit, answer: Response) -> Response:
    """To the page of the retraction that the API has answered with."""
    asked = uuid.UUID(answer.headers["Location"].rpartition("/")[2])
    return visit.back(f"/console/retractions/{asked}", _LATER)


async def taken_back(visit: Visit) -> Response:
    """The newest retractions."""
    asked = Rows(namespace=visit.namespace, limit=ROWS)
    found = await undo.list_retractions(call(visit, asked, None))
    return visit.page("retractions.html", title="Taken back", retractions=found.retractions, most=ROWS)


async def retraction(visit: Visit) -> Response:
    """One retraction: how far it is, what it came to, and what Kahuna cannot be told of it."""
    asked = Rows(namespace=visit.namespace, limit=ROWS)
    found = await undo.one_retraction(call(visit, asked, None))
    about = {"surge": "surges", "import": "imports", "run": "plans"}[found.kind]
    values: dict[str, Any] = {"one": found, "about": f"/console/{about}/{found.of}", "says": SAYS, "most": ROWS}
    return visit.page("retraction.html", title="Taken back", **values)


SAYS: Final = {
    "evidence": "batches and actions gone through",
    "facts": "facts taken back",
    "theirs": "of these, told by Kahuna",
    "handed_over": "facts that stay, since others said the same",
    "logged": "facts of Kahuna's logs that stand in their place",
    "kept": "facts that stay, since dropped months said them too",
    "restored": "facts said again meanwhile",
    "corrections": "corrections owed to Kahuna for it",
    "gone": "batches that are not in the archive any more",
    "unclear": "entries that cannot be read any more",
}
"""What the counts of a retraction count."""


PAGES: Final = (
    Page("/console/surges", surges),
    Page("/console/surges/{id}", surge),
    Page("/console/surges/{id}/decide", deciding),
    Page("/console/imports", imports),
    Page("/console/imports/{id}", one_import),
    Page("/console/retractions", taken_back),
    Page("/console/retractions/{id}", retraction),
)

ACTIONS: Final = (
    Action("/console/surges/{id}/keep", keep),
    Action("/console/surges/{id}/revert", revert_surge),
    Action("/console/imports/{id}/revert", revert_import),
)
