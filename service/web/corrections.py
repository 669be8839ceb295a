"""Owns what operators ask and decide about corrections, and about the circuits that hold them up."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from service.domain.addresses import CHANNELS, Channel
from service.errors import NotFound, Unprocessable
from service.flows import desk as deeds
from service.flows import push
from service.flows.desk import Chosen, Decided, Desk
from service.flows.write import normalised
from service.spans import trace_id_of
from service.store import calls, circuits, desk
from service.store.circuits import Circuit
from service.store.desk import Wanted
from service.web.asking import DEFAULT_LIMIT, LARGEST_LIMIT, Walk, cursor_for, in_utc, place_at, told
from service.web.contract import Answer, AnyOperation, Asked, Body, Call, Moment, Operation, Shown, Text
from service.web.http import shown
from service.web.listing import Reason

MOST_IDS: Final = 1000

_Id: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=10**17)]
_Place: TypeAlias = tuple[_Id]
_Why: TypeAlias = Annotated[str, msgspec.Meta(pattern="^[a-z0-9-]{1,100}$", examples=["bad-request"])]
_Action: TypeAlias = Literal["suppress", "clear"]
_RequestId: TypeAlias = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9._:-]{1,128}$")]
_State: TypeAlias = Literal["pending", "sending", "sent", "rejected", "dead", "superseded", "unsupported", "discarded"]
_Ids: TypeAlias = Annotated[list[_Id], msgspec.Meta(min_length=1, max_length=MOST_IDS)]
_Said: TypeAlias = Annotated[str, msgspec.Meta(pattern="^[^\\x00]*[^\\s\\x00][^\\x00]*$")]


class Corrections(Walk, frozen=True, kw_only=True):
    """Which corrections."""

    state: Annotated[
        _State | None,
        msgspec.Meta(description="Corrections in this state: `pending` unless it is said; of a `request_id`, any."),
    ] = None
    channel: Annotated[Channel | None, msgspec.Meta(description="Of this channel only.")] = None
    slot: Annotated[Reason | None, msgspec.Meta(description="Of this slot of Kahuna's, by our reason for it.")] = None
    action: Annotated[_Action | None, msgspec.Meta(description="Stops (`suppress`) or opt-ins (`clear`) only.")] = None
    reason: Annotated[_Why | None, msgspec.Meta(description="Why they are in this state.")] = None
    since: Annotated[Moment | None, msgspec.Meta(description="Written at this time or later.")] = None
    until: Annotated[Moment | None, msgspec.Meta(description="Written before this time.")] = None
    request_id: Annotated[_RequestId | None, msgspec.Meta(description="Caused by this request.")] = None


class Meant(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Which corrections; what is left out is not asked about. An address is searched for in both channels."""

    state: _State | None = None
    channel: Channel | None = None
    slot: Reason | None = None
    action: _Action | None = None
    reason: _Why | None = None
    since: Moment | None = None
    until: Moment | None = None
    request_id: _RequestId | None = None
    address: Text | None = None


class CorrectionSearch(Meant, forbid_unknown_fields=True, kw_only=True):
    """The same as the parameters of the list, and an address, which is none of what goes into URLs."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=LARGEST_LIMIT)] = DEFAULT_LIMIT
    cursor: str | None = None


class Choice(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Which corrections are decided about: some by their ids, or all that a filter with a state means. `cursor` is the
    `next` of an earlier call with the same filter."""

    ids: _Ids | None = None
    filter: Meant | None = None
    cursor: str | None = None


class CorrectionRequeue(Choice, forbid_unknown_fields=True, kw_only=True):
    """Which corrections to send again; `anyway` those, too, that Kahuna refused for good or that were discarded."""

    anyway: bool = False


class CorrectionDiscard(Choice, forbid_unknown_fields=True, kw_only=True):
    """Which corrections to put aside, and why."""

    reason: _Said


class CircuitChosen(msgspec.Struct, forbid_unknown_fields=True):
    """Which circuit."""

    channel: Channel


class CorrectionShown(msgspec.Struct, kw_only=True):
    """What Kahuna is owed, and what became of it. `stopped_at` is when the stop happened that it is for: from then on
    the clock runs. `decided_by` and `note` are those of a discard. `request_id` is that of the request that it comes
    from, and `trace_id` its trace, if it was recorded."""

    id: int
    namespace: str
    channel: Channel
    address: str
    slot: str
    action: str
    state: str
    attempts: int
    reason: str | None
    evidence: dict[str, Any] | None
    occurred_at: Shown | None
    stopped_at: Shown | None
    created_at: datetime
    next_attempt_at: datetime
    settled_at: datetime | None
    decided_by: str | None
    note: str | None
    request_id: str | None
    trace_id: str | None


class CorrectionsShown(msgspec.Struct):
    """Corrections, the newest first; `next` is the cursor of the page after, null if there is none. A page of a rare
    kind may hold fewer rows than its limit, even none."""

    corrections: list[CorrectionShown]
    next: str | None


class CallShown(msgspec.Struct):
    """One call of a Sync API that the correction was sent in, with how many others (`entries` counts all). `outcome` is
    `answered`, or why there is no result; `answer` is what Kahuna wrote, with everything masked that may be an address
    or a key. `id` is the request id that Kahuna got."""

    id: str
    answered_at: datetime
    worker: str
    entries: int
    outcome: str
    status: int | None
    accepted: int | None
    rejected: int | None
    answer: str | None


class WholeCorrection(CorrectionShown, kw_only=True):
    """A correction with the calls that it was sent in, the newest first."""

    calls: list[CallShown]


class Settled(msgspec.Struct):
    """What came of one correction. `waits_as` is the correction of its slot that waits to be sent now."""

    id: int
    outcome: deeds.What
    waits_as: int | None


class DecidedShown(msgspec.Struct):
    """What came of each, and in figures. `next` is the cursor for the next call with the same filter, null at the
    end."""

    counts: dict[str, int]
    corrections: list[Settled]
    next: str | None


class CircuitShown(msgspec.Struct):
    """Whether corrections of a channel are sent. `open`: none is before `next_probe_at`. `half-open`: the next one goes
    ahead alone, and if Kahuna takes it, the others follow."""

    namespace: str
    channel: Channel
    state: Literal["closed", "open", "half-open"]
    reason: str | None
    since: datetime | None
    next_probe_at: datetime | None
    fix: str | None


class CircuitsShown(msgspec.Struct):
    """The circuit of each channel."""

    circuits: list[CircuitShown]


class CircuitReset(msgspec.Struct):
    """What a reset did: whether the circuit was open, and how many corrections are due at once that waited for it."""

    namespace: str
    channel: Channel
    was_open: bool
    released: int


async def list_corrections(call: Call[Corrections, None]) -> CorrectionsShown:
    """The newest corrections in a state, or of a request.

    Those of a request are looked for in the whole outbox, so a page may be empty and have a `next`."""
    query = call.query
    wanted = wanted_of(call.namespace, query, None)
    if query.state is None and query.request_id is None:
        wanted = wanted._replace(state="pending")
    return await _page(call, wanted, query.cursor, query.limit)


async def search_corrections(call: Call[Asked, CorrectionSearch]) -> CorrectionsShown:
    """The newest corrections of an address, or whatever else is meant."""
    body = call.body
    wanted = wanted_of(call.namespace, body, body.address)
    return await _page(call, wanted, body.cursor, body.limit)


async def one_correction(call: Call[Asked, None]) -> WholeCorrection:
    """A correction with every call that it was sent in, and what Kahuna answered."""
    limit, text = call.namespace_limit, call.request.path_params["correction_id"]
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= 17 else 0
    async with call.service.database.read() as connection:
        row = await desk.one(connection, number)
        if row is None or limit not in (None, row.namespace):
            raise NotFound("There is no such correction; list them with GET /v1/admin/corrections.")
        made = await calls.of_correction(connection, row, call.service.now)
    shown_calls = [told(CallShown, one, id=one.id.hex, entries=len(one.corrections)) for one in made]
    return told(WholeCorrection, row, calls=shown_calls, **_worked_out(row))


async def requeue_corrections(call: Call[Asked, CorrectionRequeue]) -> DecidedShown:
    """Send corrections again that are still owed.

    What is owed is examined anew: each answer says what happened. `requeued`: it waits to be sent, as the correction
    `waits_as`; `not-owed`: both sides agree by now; `superseded`: a newer one of its slot waits, or took its place;
    `on-its-way`: ask again when it is back; `sent`: Kahuna has accepted it; `refused-for-good` and `discarded-before`:
    say `anyway` if it is meant; `unsupported`: Kahuna's API has no words for it; `not-found`.
    """
    body = call.body
    return _decided(await _desk(call).requeue(_chosen(call, body), anyway=body.anyway))


async def discard_corrections(call: Call[Asked, CorrectionDiscard]) -> DecidedShown:
    """Put corrections aside, for a reason: nobody waits for them any more, and the clock of their stops ends.

    Kahuna is not told, and nothing of the list changes. The same is not proposed again until something new is learnt.
    """
    return _decided(await _desk(call).discard(_chosen(call, call.body), call.body.reason))


async def list_circuits(call: Call[Asked, None]) -> CircuitsShown:
    """Whether corrections are sent, by channel, and if not, why."""
    namespace, now = call.namespace, call.service.now
    async with call.service.database.read() as connection:
        found = await circuits.all_open(connection)
    return CircuitsShown(
        [circuit_told(namespace, channel, found.get((namespace, channel)), now) for channel in CHANNELS]
    )


async def reset_circuit(call: Call[Asked, CircuitChosen]) -> CircuitReset:
    """Close a circuit now, so that what waits for it goes out at once. If Kahuna still refuses, it opens again."""
    service, namespace, channel = call.service, call.namespace, call.body.channel
    was, released = await deeds.reset_circuit(service.database, namespace, channel, call.caller.name, service.clock)
    return CircuitReset(namespace, channel, was is not None, released)


def circuit_told(namespace: str, channel: Channel, circuit: Circuit | None, now: datetime) -> CircuitShown:
    """The circuit of a channel, whether it is open or not."""
    if circuit is None:
        return CircuitShown(namespace, channel, "closed", None, None, None, None)
    state: Literal["open", "half-open"] = "open" if circuit.probe_at > now else "half-open"
    fix = push.fix_of(circuit.reason)
    return CircuitShown(namespace, channel, state, circuit.reason, circuit.opened_at, circuit.probe_at, fix)


def wanted_of(namespace: str, said: Corrections | Meant, address: str | None) -> Wanted:
    """Which corrections a list or a filter means, in the words of the store."""
    since, until = in_utc(said.since, "since"), in_utc(said.until, "until")
    spelt = None if address is None else spellings(address, said.channel)
    which = (said.state, said.channel, said.slot, said.action, said.reason)
    return Wanted(namespace, *which, since, until, spelt, said.request_id)


def spellings(address: str, only: Channel | None) -> tuple[str, ...]:
    """The normal forms of an address, in the channels of which it can be one."""
    found: list[str] = []
    refusal: Unprocessable | None = None
    for channel in CHANNELS if only is None else (only,):
        try:
            found.append(normalised(channel, address))
        except Unprocessable as error:
            refusal = error
    if not found and refusal is not None:
        raise refusal
    return tuple(found)


async def _page(call: Call[Any, Any], wanted: Wanted, cursor: str | None, limit: int) -> CorrectionsShown:
    before = place_at(cursor, _Place)
    async with call.service.database.read() as connection:
        rows, further = await desk.listed(connection, wanted, before[0] if before else None, limit)
    found = [told(CorrectionShown, row, **_worked_out(row)) for row in rows]
    return CorrectionsShown(found, None if further is None else cursor_for(further))


def _worked_out(row: Any) -> dict[str, str | None]:
    times = {"occurred_at": shown(row.occurred_at), "stopped_at": shown(row.stopped_at)}
    return times | {"trace_id": trace_id_of(row.traceparent)}


def _desk(call: Call[Any, Any]) -> Desk:
    service = call.service
    return Desk(service.database, call.namespace, call.caller.name, service.rules.policy, service.clock)


def _chosen(call: Call[Any, Any], choice: Choice) -> Chosen:
    meant, namespace = choice.filter, call.namespace
    if choice.ids is not None and meant is None and choice.cursor is None:
        return Chosen(ids=tuple(choice.ids))
    states = (*desk.SETTLEABLE, "discarded")
    if choice.ids is not None or meant is None or meant.state not in states:
        raise Unprocessable(
            f'Say which are meant: {{"ids": [17]}}, or {{"filter": {{"state": "dead"}}}} ({", ".join(states)}).',
            "nothing-chosen",
        )
    after = place_at(choice.cursor, _Place)
    return Chosen(wanted=wanted_of(namespace, meant, meant.address), after=after[0] if after else 0)


def _decided(decided: Decided) -> DecidedShown:
    counts: dict[str, int] = {}
    for result in decided.results:
        counts[result.outcome] = counts.get(result.outcome, 0) + 1
    results = [Settled(*result) for result in decided.results]
    return DecidedShown(counts, results, None if decided.next is None else cursor_for(decided.next))


_CORRECTION: Final = {
    "id": 17,
    "namespace": "default",
    "channel": "email",
    "address": "ann@example.com",
    "slot": "unsubscribe",
    "action": "suppress",
    "state": "dead",
    "attempts": 1,
    "reason": "bad-request",
    "evidence": {"request_id": "019c13a55c8070008000012345678901", "status": 400},
    "occurred_at": "2026-01-31T12:00:00Z",
    "stopped_at": "2026-01-31T12:00:00Z",
    "created_at": "2026-01-31T12:00:01Z",
    "next_attempt_at": "2026-01-31T12:00:01Z",
    "settled_at": "2026-01-31T12:00:02Z",
    "decided_by": None,
    "note": None,
    "request_id": "6f1d0a52c1a34a7f8a55000000000001",
    "trace_id": None,
}

_CALL: Final = {
    "id": "019c13a55c8070008000012345678901",
    "answered_at": "2026-01-31T12:00:02Z",
    "worker": "worker-1/7",
    "entries": 1,
    "outcome": "bad-request",
    "status": 400,
    "accepted": None,
    "rejected": None,
    "answer": "Invalid address: ***",
}

_PAGE: Final = {"corrections": [_CORRECTION], "next": None}

_CIRCUIT: Final = {
    "namespace": "default",
    "channel": "email",
    "state": "open",
    "reason": "credentials-refused",
    "since": "2026-01-31T12:00:00Z",
    "next_probe_at": "2026-01-31T12:05:00Z",
    "fix": "corrections wait; check KAHUNA_SECRET_KEY, KAHUNA_API_KEY and their permissions",
}

_CORRECTIONS: Final = "/v1/admin/corrections"


def _each(outcome: str, waits_as: int | None) -> Answer:
    """What is answered to a decision about several."""
    one = {"id": 17, "outcome": outcome, "waits_as": waits_as}
    return Answer(200, DecidedShown, "What came of each.", {"counts": {outcome: 1}, "corrections": [one], "next": None})


OPERATIONS: Final[list[AnyOperation]] = [
    Operation(
        "GET",
        _CORRECTIONS,
        list_corrections,
        scope="admin",
        query=Corrections,
        answers=[Answer(200, CorrectionsShown, "A page of them.", _PAGE)],
        problems=["invalid-cursor"],
    ),
    Operation(
        "POST",
        f"{_CORRECTIONS}/search",
        search_corrections,
        scope="admin",
        query=Asked,
        body=Body(CorrectionSearch, {"address": "ann@example.com"}),
        answers=[Answer(200, CorrectionsShown, "A page of them.", _PAGE)],
        problems=["invalid-cursor", "invalid-time", "impossible-address"],
    ),
    Operation(
        "POST",
        f"{_CORRECTIONS}/requeue",
        requeue_corrections,
        scope="admin",
        query=Asked,
        body=Body(CorrectionRequeue, {"ids": [17]}),
        answers=[_each("requeued", 18)],
        problems=["nothing-chosen", "invalid-cursor", "invalid-time", "impossible-address"],
    ),
    Operation(
        "POST",
        f"{_CORRECTIONS}/discard",
        discard_corrections,
        scope="admin",
        query=Asked,
        body=Body(CorrectionDiscard, {"ids": [17], "reason": "The mailbox is our own test"}),
        answers=[_each("discarded", None)],
        problems=["nothing-chosen", "invalid-cursor", "invalid-time", "impossible-address"],
    ),
    Operation(
        "GET",
        f"{_CORRECTIONS}/{{correction_id}}",
        one_correction,
        scope="admin",
        query=Asked,
        answers=[Answer(200, WholeCorrection, "The correction.", _CORRECTION | {"calls": [_CALL]})],
        problems=["not-found"],
    ),
    Operation(
        "GET",
        "/v1/admin/circuits",
        list_circuits,
        scope="admin",
        query=Asked,
        answers=[Answer(200, CircuitsShown, "One for each channel.", {"circuits": [_CIRCUIT]})],
    ),
    Operation(
        "POST",
        "/v1/admin/circuits/reset",
        reset_circuit,
        scope="admin",
        query=Asked,
        body=Body(CircuitChosen, {"channel": "email"}),
        answers=[
            Answer(
                200,
                CircuitReset,
                "It is closed.",
                {"namespace": "default", "channel": "email", "was_open": True, "released": 3},
            )
        ],
    ),
]
