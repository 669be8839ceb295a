"""Owns the page of one address: the verdict in a sentence, the causes, all that was ever noted about it, and the two
things that a person may say about it.

An address travels in the bodies of forms alone, never in a URL, which browsers and proxies keep: so what is done here
is answered by the page itself, and not by a way to it.
"""

from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec
from starlette.responses import Response

from service.domain.addresses import CHANNELS
from service.domain.facts import reasons_of
from service.domain.suppression import verdict
from service.errors import Conflict, NotFound, RequestError, Unprocessable
from service.flows import write
from service.flows.write import Statement, normalised
from service.store.suppressions import CauseRow, Subject
from service.web.console import asking
from service.web.console.visiting import Action, Form, Page, Visit
from service.web.history import FactTold, History, Review, history_of
from service.web.http import seconds_from
from service.web.suppressions import Cause, Consent, Stop, cause_told

EVENTS: Final = 100
"""What was noted, on one page."""

_NEWER_STOP: Final = (
    "Nothing was changed: a stop at or after this consent stands, and only a newer consent ends it. If the person has "
    "agreed again since, give the time of that; if not, the stop is what they want."
)


class _Said(NamedTuple):
    """What came of a form: a sentence of what was done, or of what is amiss, and then what the form held."""

    done: str = ""
    fault: str = ""
    status: int = 200
    form: Form = MappingProxyType({})


async def search(visit: Visit) -> Response:
    """Where an address is looked up."""
    return visit.page("address_search.html", title="Address", channels=CHANNELS, fault="", sought="")


async def look(visit: Visit, form: Form) -> Response:
    """All about the address that was looked up."""
    try:
        subject = _subject(visit, form)
    except Unprocessable as error:
        values: dict[str, Any] = {"fault": str(error), "sought": form.get("address", "")}
        return visit.page("address_search.html", title="Address", status=422, channels=CHANNELS, **values)
    return await _timeline(visit, subject, form.get("cursor") or None, _Said())


async def suppress(visit: Visit, form: Form) -> Response:
    """Stops messages to an address, by the word of whoever asks."""
    asking.require(visit, "read")  # the answer is the whole page of the address
    subject = _subject(visit, form)
    try:
        said = asking.as_body(Stop, asking.written(form, "reason", "occurred_at", "note"))
        statement = _statement(visit, subject, form, said.occurred_at)
        service = visit.service
        await write.suppress(service.database, statement, said.reason, said.note, service.rules.policy, service.clock)
    except RequestError as error:
        return await _refused(visit, subject, error, form)
    return await _timeline(visit, subject, None, _Said(f"The stop is recorded: {said.reason}. It is in force at once."))


async def reactivate(visit: Visit, form: Form) -> Response:
    """Ends the stops of an address by a new consent."""
    asking.require(visit, "read")  # the answer is the whole page of the address
    subject = _subject(visit, form)
    try:
        given = asking.written(form, "evidence", "occurred_at")
        if len(given) < 2:
            raise Unprocessable("Say where and when the new consent was given: both are kept as evidence.")
        consent = asking.as_body(Consent, given)
        statement = _statement(visit, subject, form, consent.occurred_at)
        service = visit.service
        await write.reactivate(service.database, statement, consent.evidence, service.rules.policy, service.clock)
    except RequestError as error:
        return await _refused(visit, subject, error, form)
    return await _timeline(
        visit, subject, None, _Said("The consent is recorded; every stop of this channel up to its time has ended.")
    )


async def _refused(visit: Visit, subject: Subject, error: RequestError, form: Form) -> Response:
    is_newer = isinstance(error, Conflict) and error.reason == "newer-stop"
    said = _Said(fault=_NEWER_STOP if is_newer else str(error), status=error.status, form=form)
    return await _timeline(visit, subject, None, said)


def _subject(visit: Visit, form: Form) -> Subject:
    """Which address a form is about: `subject` has the channel and the address, as links to here say it, or each has a
    field of its own. Without a channel, whatever has an @ is a mailbox."""
    channel, _, address = form.get("subject", "").partition(" ")
    address = address or form.get("address", "")
    channel = channel or form.get("channel", "") or ("email" if "@" in address else "sms")
    if channel not in CHANNELS:
        raise NotFound("There is no such channel; choose e-mail or text.", "unknown-channel")
    return Subject(visit.namespace, channel, normalised(channel, address))


def _statement(visit: Visit, subject: Subject, form: Form, occurred_at: str | None) -> Statement:
    """What the visitor says, about the address as it was given."""
    address = form.get("address", "") or subject.address
    return Statement(visit.actor, subject.namespace, subject.channel, address, seconds_from(occurred_at, "occurred_at"))


async def _timeline(visit: Visit, subject: Subject, cursor: str | None, said: _Said) -> Response:
    service = visit.service
    causes = await service.lookups.ask(subject)
    query = Review(limit=EVENTS, cursor=cursor)
    told = await history_of(service.database, service.rules.policy, service.now, subject, query, causes)
    return visit.page(
        "address.html",
        title="Address",
        status=said.status,
        said=said,
        told=told,
        events=_events(told),
        is_first=cursor is None,
        causes=_standing(visit, causes),
        transactional=_may_be_sent_what_must_be(visit, causes),
        reasons=reasons_of(subject.channel),
    )


def _events(told: History) -> list[tuple[str, Any]]:
    """What was noted, each with what kind of thing it is; `facts` are those that were said in one breath, as a consent
    says one for each reason."""
    found: list[tuple[str, Any]] = []
    for event in told.events:
        if not isinstance(event, FactTold):
            found.append((str(event.__struct_config__.tag), event))
        elif found and found[-1][0] == "facts" and _in_one_breath(found[-1][1][-1], event):
            found[-1][1].append(event)
        else:
            found.append(("facts", [event]))
    return found


def _in_one_breath(one: FactTold, other: FactTold) -> bool:
    return msgspec.structs.replace(one, reason=other.reason) == other


def _standing(visit: Visit, causes: list[CauseRow]) -> list[Cause]:
    rows = {row.cause.reason: row for row in causes}
    judged = verdict({r: row.cause for r, row in rows.items()}, _now(visit), visit.service.rules.policy)
    told = [cause_told(standing, rows[standing.cause.reason]) for standing in judged.standings]
    return sorted(told, key=lambda one: not one.active)


def _may_be_sent_what_must_be(visit: Visit, causes: list[CauseRow]) -> bool:
    known = {row.cause.reason: row.cause for row in causes}
    return not verdict(known, _now(visit), visit.service.rules.policy, "transactional").suppressed


def _now(visit: Visit) -> int:
    return int(visit.service.now.timestamp())


PAGES: Final = (Page("/console/address", search, scope="read"),)

ACTIONS: Final = (
    Action("/console/address", look, scope="read", audited=False),
    Action("/console/address/suppress", suppress, scope="write"),
    Action("/console/address/reactivate", reactivate, scope="write"),
)
