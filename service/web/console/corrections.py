"""Owns the corrections desk: what Kahuna is owed, by state, what became of each, and what a person decides of it.

Whoever decides about several says first which ones, and is told how many those are before anything is done.
"""

from collections import Counter
from typing import Any, Final, NamedTuple

from msgspec.structs import replace
from starlette.responses import Response

from service.domain.addresses import CHANNELS
from service.domain.facts import EMAIL_REASONS, SMS_REASONS
from service.errors import Unprocessable
from service.store import desk, outbox
from service.store.desk import Wanted
from service.web import corrections as routes
from service.web.console.asking import as_body, call, filtered, further, ticked, why_of, written
from service.web.console.visiting import Action, Form, Page, Visit
from service.web.contract import Asked, Parameters
from service.web.corrections import (
    CircuitChosen,
    CorrectionDiscard,
    CorrectionRequeue,
    Corrections,
    DecidedShown,
    wanted_of,
)

RESULTS_SHOWN: Final = 100

STATES: Final = {
    "pending": "waits to be sent",
    "sending": "is on its way",
    "dead": "was given up: Kahuna could not take it, at once or again and again, or nobody can tell what became of it",
    "rejected": "Kahuna refused it for good",
    "unsupported": "Kahuna's API has no words for it",
    "discarded": "a person put it aside",
    "sent": "Kahuna accepted it",
    "superseded": "a newer one took its place, or it is not owed any more",
}
"""What each state says of a correction, those first that somebody has to do something about."""

DECIDABLE: Final = (*desk.SETTLEABLE, "discarded")
"""States in which there is something to decide."""

OUTCOMES: Final = {
    "requeued": "wait to be sent now",
    "discarded": "are put aside",
    "not-owed": "are not owed any more: both sides agree by now",
    "superseded": "made way for a newer correction of their slot",
    "on-its-way": "are on their way just now: decide again when they are back",
    "sent": "were accepted by Kahuna already",
    "refused-for-good": "were refused by Kahuna for good: tick “anyway” if it has to be tried once more",
    "discarded-before": "were discarded before: tick “anyway” to have them sent after all",
    "unsupported": "cannot be said by Kahuna's API: have Kahuna's Customer Success do it",
    "not-found": "are not to be found",
}
"""What came of corrections, by the words of the API."""

_LIST: Final = Parameters(Corrections)
_FIELDS: Final = ("state", "channel", "slot", "action", "reason", "since", "until", "request_id")
_PATH: Final = "/console/corrections"
_WHY: Final = "Say why they are put aside: it is kept with each of them, and in the audit log."


class Choice(NamedTuple):
    """Which corrections are meant, as hidden fields carry it on: some by their ids, or all of a filter."""

    fields: dict[str, str]

    @property
    def body(self) -> dict[str, Any]:
        """The same as the API takes it."""
        ids = [int(name) for name in _ids(self.fields)]
        if ids:
            return {"ids": ids}
        meant = {name: value for name, value in self.fields.items() if name in _FIELDS}
        found: dict[str, Any] = {"filter": meant}
        return found | ({"cursor": self.fields["cursor"]} if "cursor" in self.fields else {})


def _ids(form: Form) -> list[str]:
    """The ids that were ticked, as they stand in the form; what can be no id is none."""
    return [name for name in ticked(form, "id-") if name.isdecimal() and len(name) < 18]


def _choice(form: Form) -> Choice:
    """What a form means: the ticked ones, unless it says `all`."""
    if form.get("which") == "all":
        if form.get("state") not in DECIDABLE:
            raise Unprocessable(f"All of a state can be decided about if it is one of {', '.join(DECIDABLE)}.")
        return Choice(written(form, "which", *_FIELDS, "cursor"))
    chosen = {f"id-{name}": "on" for name in _ids(form)}
    if not chosen:
        raise Unprocessable("Nothing is ticked. Go back, and tick the corrections that you mean.", "nothing-chosen")
    return Choice(chosen)


async def corrections(visit: Visit) -> Response:
    """Corrections in a state, the newest first, how many there are in each, and the circuits."""
    asked = filtered(visit, _LIST)
    query = replace(asked.query, state=asked.query.state or "pending")
    found = await routes.list_corrections(call(visit, query, None))
    circuits = await routes.list_circuits(call(visit, Asked(namespace=visit.namespace), None))
    decidable = query.state in DECIDABLE
    async with visit.service.database.read() as connection:
        depth = {state: await desk.tallied(connection, _all(visit, state)) for state in outbox.UNSETTLED}
        wanted = wanted_of(visit.namespace, query, None)
        matching, is_all = await desk.tallied(connection, wanted) if decidable else (0, True)
    values: dict[str, Any] = {
        "asked": asked,
        "state": query.state,
        "states": STATES,
        "depth": depth,
        "corrections": found.corrections,
        "matching": matching,
        "is_all": is_all,
        "decidable": decidable,
        "circuits": circuits.circuits,
        "further": further(visit, _PATH, asked, found.next),
        "channels": CHANNELS,
        "slots": sorted({*EMAIL_REASONS, *SMS_REASONS}),
        "meant": written(asked.said, *_FIELDS) | {"state": query.state},
    }
    return visit.page("corrections.html", title="Corrections", **values)


def _all(visit: Visit, state: str) -> Wanted:
    """All corrections in a state."""
    return wanted_of(visit.namespace, Corrections(state=state), None)  # type: ignore[arg-type]


async def correction(visit: Visit) -> Response:
    """One correction, with every attempt."""
    found = await routes.one_correction(call(visit, Asked(namespace=visit.namespace), None))
    values: dict[str, Any] = {"correction": found, "says": STATES[found.state], "decidable": found.state in DECIDABLE}
    return visit.page("correction.html", title=f"Correction {found.id}", **values)


async def choose(visit: Visit, form: Form) -> Response:
    """What is meant, in numbers, and what can be done about it."""
    choice = _choice(form)
    body = as_body(CorrectionRequeue, choice.body)
    async with visit.service.database.read() as connection:
        if body.filter is None:
            rows = await desk.rows_of(connection, visit.namespace, body.ids or ())
            by_state, is_all = Counter(row.state for row in rows), True
        else:
            count, is_all = await desk.tallied(connection, wanted_of(visit.namespace, body.filter, None))
            by_state = Counter({form["state"]: count})
    values: dict[str, Any] = {
        "fields": choice.fields,
        "by_state": by_state,
        "count": by_state.total(),
        "states": STATES,
    }
    return visit.page("corrections_chosen.html", title="Decide about corrections", is_all=is_all, **values)


async def requeue(visit: Visit, form: Form) -> Response:
    """Has those sent again that are still owed."""
    choice, more = _choice(form), {"anyway": form.get("anyway") == "yes"}
    body = as_body(CorrectionRequeue, choice.body | more)
    done = await routes.requeue_corrections(call(visit, Asked(namespace=visit.namespace), body))
    return _decided(visit, "requeue", choice, done, {"anyway": form.get("anyway", "")})


async def discard(visit: Visit, form: Form) -> Response:
    """Puts them aside, for a reason."""
    choice = _choice(form)
    note = why_of(form, "because", _WHY)
    body = as_body(CorrectionDiscard, choice.body | {"reason": note})
    done = await routes.discard_corrections(call(visit, Asked(namespace=visit.namespace), body))
    return _decided(visit, "discard", choice, done, {"note": note})


def _decided(visit: Visit, verb: str, choice: Choice, done: DecidedShown, more: dict[str, str]) -> Response:
    onward = None if done.next is None else choice.fields | more | {"cursor": done.next}
    values: dict[str, Any] = {"verb": verb, "done": done, "results": done.corrections[:RESULTS_SHOWN], "onward": onward}
    return visit.page("corrections_decided.html", title="What came of it", outcomes=OUTCOMES, **values)


async def reset(visit: Visit, form: Form) -> Response:
    """Closes a circuit, so that what waits for it goes out at once."""
    chosen = as_body(CircuitChosen, written(form, "channel"))
    done = await routes.reset_circuit(call(visit, Asked(namespace=visit.namespace), chosen))
    was = "is closed" if done.was_open else "was not open"
    return visit.back(_PATH, f"The circuit of {done.channel} {was}; {done.released} corrections are due at once.")


PAGES: Final = (
    Page(_PATH, corrections),
    Page(f"{_PATH}/{{correction_id}}", correction),
)

ACTIONS: Final = (
    Action(f"{_PATH}/choose", choose, audited=False),
    Action(f"{_PATH}/requeue", requeue),
    Action(f"{_PATH}/discard", discard),
    Action(f"{_PATH}/circuits/reset", reset),
)
