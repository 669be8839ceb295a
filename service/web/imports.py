"""Owns the import of a list over HTTP: the body goes from the socket to the flow piece by piece, and one answer tells
what came of it. Refuses to keep a body, and to take in more lists at once than leave room for callbacks."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Final, Literal

import msgspec
from starlette.requests import Request

from service.domain.addresses import CHANNELS, Channel
from service.errors import StorageUnavailable, TooSlow, UnsupportedEncoding
from service.flows.imports import Import, Order, Tally
from service.flows.ingest import ENTRIES
from service.telemetry import Metrics
from service.web.contract import Answer, AnyOperation, Asked, Call, MomentOrDay, Operation, Stream
from service.web.http import service_of

BUSY_SECONDS: Final = 30
"""After how long to come again when enough others import here."""


class Listed(Asked, frozen=True, kw_only=True):
    """What may be said of a list beside itself."""

    channel: Annotated[Channel, msgspec.Meta(description="What its addresses are.")]
    reason: Annotated[
        str | None,
        msgspec.Meta(
            description="Why the addresses are listed, for lines that do not tell, or in a word that is not known. "
            "Required if the file has no column for it.",
            examples=["unsubscribe"],
        ),
    ] = None
    as_of: Annotated[
        MomentOrDay | None,
        msgspec.Meta(
            description="As of when lines without a time are true: the day of the export, for example (2026-01-31 is "
            "its beginning in UTC). Left out: the time of receipt, unless an import has said the same before, without "
            "a time either.",
            examples=["2026-01-31T12:00:00Z"],
        ),
    ] = None
    file_name: Annotated[
        Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x1f\x7f]{1,255}$")] | None,
        msgspec.Meta(description="Kept with every line as its origin.", examples=["bounces.csv"]),
    ] = None
    dry_run: Annotated[bool, msgspec.Meta(description="Only say what the import would do.")] = False


class LineError(msgspec.Struct):
    """A line that could not be understood, and why."""

    line: int
    error: str


class Imported(msgspec.Struct):
    """What came of a list.

    `accepted` (new facts), `duplicates` (known ones), `rejected` and `skipped` (lines that state no stop of this
    channel) add up to `lines`; the first 100 rejected are in `errors`. `reasons` counts the understood lines by what
    they were taken for; of these, `untimed` had no time that can stand, and `assumed` a word that is not known, so that
    they took the `reason` of the call.
    """

    import_id: uuid.UUID
    state: Literal["imported", "previewed"]
    kind: str | None
    lines: int
    accepted: int
    duplicates: int
    rejected: int
    skipped: int
    untimed: int
    assumed: int
    reasons: dict[str, int]
    errors: list[LineError]


def count_from_zero(metrics: Metrics) -> None:
    """Has the counts of lines shown from the start, so that the first of each is seen to come."""
    for channel in CHANNELS:
        for name in ENTRIES:
            metrics.imported.add(channel, name, count=0)


async def import_list(call: Call[Listed, None]) -> Imported:
    """Suppress the addresses of a list: CSV, one JSON object a line, or a provider's JSON, as it is or packed by gzip.

    The list is read while it arrives, and taken in by chunks of 5,000 lines; if the call is cut off, send the same file
    again. It only ever stops: a line that is known changes nothing, and nothing is cleared.

    Columns or fields, whatever their case, spaces, `-` and `_`: the address is `address`, `email`, `email_address`,
    `mail` or `recipient`, for `sms` `address`, `number`, `phone_number`, `phone`, `mobile_number`, `mobile`, `msisdn`
    or `recipient`; the reason `reason` or `suppression_reason`; the time `occurred_at`, `created`, `created_at`,
    `last_update_time`, `timestamp`, `time` or `date`.

    A rejected line says why: `missing-address`, `not-an-email-address`, `not-a-number`, `wrong-number-of-digits`,
    `address-too-long`, `control-character`, `undecodable` (a character that was lost), `missing-reason`,
    `unknown-reason`, `bad-timestamp`, `too-many-cells` (more than the first line has names), `not-json`,
    `not-an-object`, `line-too-long` (over 64 KiB), and `other-namespace` for rows of our own export.
    """
    request, service, query = call.request, call.service, call.query
    if request.headers.get("Content-Encoding", "identity").strip().lower() not in ("identity", "gzip", ""):
        raise UnsupportedEncoding("Send the file as it is, or with Content-Encoding: gzip.")
    order = Order(
        call.namespace,
        call.channel(query.channel) or query.channel,
        call.caller.name,
        random.getrandbits(50),
        query.file_name,
        query.reason,
        None if query.as_of is None else int(query.as_of.timestamp()),
        query.dry_run,
    )
    if service.importing.locked():
        raise StorageUnavailable("Enough lists are being imported here; send it again later.", BUSY_SECONDS)
    async with service.importing:
        one = Import(service.database, order, service.rules, service.clock, metrics=service.metrics)
        tally = await one.run(_parts(request))
    for name in ENTRIES:
        if not query.dry_run and (count := getattr(tally, name)):
            service.metrics.imported.add(order.channel, name, count=count)
    return _told(one, tally, dry_run=query.dry_run)


async def _parts(request: Request) -> AsyncIterator[bytes]:
    """The body as it arrives. It may take as long as it likes, as long as it goes on."""
    seconds = service_of(request).settings.body_timeout_seconds
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(seconds):
                part = await anext(stream, None)
        except TimeoutError:
            raise TooSlow("The list stopped arriving; send it again, nothing counts twice.") from None
        if part is None:
            return
        if part:
            yield part


def _told(one: Import, tally: Tally, *, dry_run: bool) -> Imported:
    return Imported(
        one.id,
        "previewed" if dry_run else "imported",
        one.kind,
        **tally.counts,
        untimed=tally.untimed,
        assumed=tally.assumed,
        reasons=dict(sorted(tally.reasons.items())),
        errors=[LineError(*error) for error in tally.errors],
    )


_SAYS: Final = "The file as it is, or packed by gzip. What it is, is told by how it begins."

OPERATIONS: Final[list[AnyOperation]] = [
    Operation(
        "POST",
        "/v1/suppressions/import",
        import_list,
        scope="write",
        query=Listed,
        streams={
            "text/plain": Stream(_SAYS, "ann@example.com\nbob@example.com\n", {}),
            "text/csv": Stream(_SAYS, "email,reason,created\nann@example.com,bounce,1700000000\n", {}),
            "application/x-ndjson": Stream(_SAYS, '{"address": "ann@example.com", "reason": "bounce"}\n', {}),
            "application/json": Stream(_SAYS, [{"address": "ann@example.com", "reason": "bounce"}], {}),
            "application/gzip": Stream(_SAYS, schema={}),
            "application/octet-stream": Stream(_SAYS, schema={}),
        },
        headers={"Content-Encoding": "`gzip`, if the body is packed on its way."},
        answers=[
            Answer(
                200,
                Imported,
                "What came of the list.",
                {
                    "import_id": "019c13a5-5c80-7000-8000-0123456789ab",
                    "state": "imported",
                    "kind": "csv",
                    "lines": 1204,
                    "accepted": 1180,
                    "duplicates": 21,
                    "rejected": 3,
                    "skipped": 0,
                    "untimed": 0,
                    "assumed": 0,
                    "reasons": {"hard_bounce": 1201},
                    "errors": [{"line": 17, "error": "not-an-email-address"}],
                },
            )
        ],
        problems=[
            "body-too-slow",
            "broken-list",
            "empty-list",
            "impossible-time",
            "no-address-column",
            "no-header",
            "not-text",
            "other-channel",
            "reason-required",
            "unknown-reason",
            "unsupported-encoding",
        ],
    ),
]
