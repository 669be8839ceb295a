"""Owns the whole list in HTTP words: CSV or NDJSON as long as it is, as of one moment, no faster than it is taken."""

import asyncio
import zlib
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Send
from starlette.types import Scope as Asking

from service.domain.addresses import CHANNELS, Channel
from service.domain.facts import REASONS
from service.errors import StorageBusy, Unprocessable
from service.flows.follow import Cursor, Scope
from service.store import changes, export
from service.store.export import Format, Key, Wanted
from service.telemetry import logger
from service.web.contract import Answer, AnyOperation, Asked, Call, Operation, Shown
from service.web.http import Service, unless_gone
from service.web.listing import check_reason

AT_ONCE: Final = 2
"""Exports of one process under way: each keeps a connection and a snapshot for as long as it lasts."""

ENOUGH: Final = 128 * 1024
"""Bytes that are sent at once: the server's own parts are a tenth of that, and each costs as much."""

STALLED: Final = 60.0
"""Seconds after which one who takes nothing is given up: the server keeps all old rows for as long as they wait."""

_TYPES: Final = {"csv": "text/csv; charset=utf-8", "ndjson": "application/x-ndjson"}


_Reason = Annotated[str, msgspec.Meta(extra_json_schema={"enum": REASONS})]
_Row = Annotated[str, msgspec.Meta(pattern=f"^({'|'.join(CHANNELS)}),({'|'.join(REASONS)}),[^\\u0000]+$")]


class Stalled(Exception):
    """The caller takes nothing any more."""


class Export(Asked, frozen=True, kw_only=True):
    """Which causes, in which form and order."""

    format: Annotated[Format, msgspec.Meta(description="The form of the rows.")] = "csv"
    channel: Annotated[Channel | None, msgspec.Meta(description="Causes of this channel only.")] = None
    reason: Annotated[_Reason | None, msgspec.Meta(description="Causes of this reason only.")] = None
    active: Annotated[
        bool | None, msgspec.Meta(description="Only causes that are in force, or only those that are not.")
    ] = None
    order: Annotated[
        Literal["key"] | None,
        msgspec.Meta(
            description="`key` sorts the rows by address, channel and reason, so that an export that breaks off can be "
            "resumed. Left out, they come as the server finds them, which is quicker."
        ),
    ] = None
    from_: Annotated[
        _Row | None,
        msgspec.Meta(
            description="Go on with this row, itself included, in the order of the keys: `channel,reason,address` of "
            "the last whole row.",
            examples=["email,unsubscribe,ann@example.com"],
        ),
    ] = msgspec.field(default=None, name="from")


class Exported(msgspec.Struct):
    """A cause as it stands. `occurred_at` is the time of the fact that decided it. `until` is when it ends or ended by
    itself; a cause that was cleared ended at the very time of its clear. A soft bounce is a row for each that counts.
    """

    namespace: str
    channel: Channel
    address: str
    reason: str
    active: bool
    occurred_at: Shown
    until: Shown | None
    origin: str | None
    recorded_at: Shown | None
    address_received: str


async def exported(call: Call[Export, None]) -> Response:
    """Every cause on the list, as of one moment.

    Rows are written as they are read, however many there are. An answer that is not ended in form has broken off.
    """
    query, request = call.query, call.request
    if query.reason not in (None, *REASONS):
        raise Unprocessable(f"reason must be one of {', '.join(REASONS)}.", "invalid-parameter")
    channel = call.channel(query.channel)
    check_reason(channel, query.reason)
    wanted = Wanted(
        call.namespace,
        int(call.service.now.timestamp()),
        channel,
        query.reason,
        query.active,
        ordered=query.order == "key",
        begin=None if query.from_ is None else _key_from(query.from_),
    )
    zipped = _takes_gzip(request.headers.get("Accept-Encoding", ""))
    return _Export(call.service, wanted, query.format, zipped=zipped)


def _key_from(text: str) -> Key:
    channel, reason, address = text.split(",", 2)
    return Key(address, CHANNELS[CHANNELS.index(channel)], reason)


def _takes_gzip(accepted: str) -> bool:
    for part in accepted.lower().split(","):
        coding, _, quality = part.partition(";")
        if coding.strip() in ("gzip", "*"):
            return quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


class _Export(Response):
    """The answer. It reads as it is sent: the server's rows go straight to the caller."""

    def __init__(self, service: Service, wanted: Wanted, form: Format, *, zipped: bool) -> None:
        super().__init__(media_type=_TYPES[form])
        self._service = service
        self._wanted = wanted
        self._form = form
        self._zipped = zipped

    async def __call__(self, scope: Asking, receive: Receive, send: Send) -> None:
        if self._service.exports.locked():
            raise StorageBusy(f"{AT_ONCE} exports are under way already; try again later.", 30)
        async with self._service.exports, self._service.database.snapshot(export.TABLE) as connection:
            cursor = Cursor(*await changes.horizon(connection)).written(Scope(self._wanted.namespace))
            await send({"type": "http.response.start", "status": 200, "headers": self._head(cursor)})
            outlet = _Outlet(send, zipped=self._zipped)
            if scope["method"] == "HEAD":
                await outlet.end()
                return
            policy = self._service.rules.policy
            copying = export.stream(connection, self._wanted, policy, self._form, outlet.take)
            working = await unless_gone(receive, copying)
        await self._conclude(working, outlet)

    async def _conclude(self, working: asyncio.Task[None], outlet: "_Outlet") -> None:
        """Only a whole export is ended in form: one that breaks off must be seen to."""
        said: dict[str, Any] = {"namespace": self._wanted.namespace, "format": self._form}
        failure = None if working.cancelled() else working.exception()
        if working.cancelled():
            logger().info("export.abandoned", **said, lines=outlet.lines)
        elif failure is None:
            await outlet.end()
            logger().info("list.exported", **said, lines=outlet.lines)
        else:
            logger().error("export.broken", **said, lines=outlet.lines, exc_info=failure)

    def _head(self, cursor: str) -> list[tuple[bytes, bytes]]:
        more = {
            "Content-Type": _TYPES[self._form],
            "Content-Disposition": f'attachment; filename="suppressions.{self._form}"',
            "Cache-Control": "no-store",
            "Vary": "Accept-Encoding",
            "X-Changes-Cursor": cursor,
        }
        if self._zipped:
            more["Content-Encoding"] = "gzip"
        return [(name.lower().encode(), value.encode()) for name, value in more.items()]


class _Outlet:
    """Where the bytes go out, compressed or not."""

    def __init__(self, send: Send, *, zipped: bool) -> None:
        self._send = send
        # The quickest level: what is sent is already a sixth, and the server's rows must not wait for it.
        packer = zlib.compressobj(1, wbits=31)
        self._pack: Callable[[bytes], bytes] | None = packer.compress if zipped else None
        self._rest: Callable[[], bytes] = packer.flush if zipped else bytes
        self._kept: list[bytes] = []
        self._size = 0
        self.lines = 0

    async def take(self, part: bytes) -> None:
        """Sends what has gathered if that is enough, once there is room for it."""
        self._kept.append(part)
        self._size += len(part)
        if self._size >= ENOUGH:
            await self._give(await self._gathered())

    async def _gathered(self) -> bytes:
        body = b"".join(self._kept)
        self._kept.clear()
        self._size = 0
        self.lines += body.count(b"\n")
        return body if self._pack is None else await asyncio.to_thread(self._pack, body)

    async def _give(self, body: bytes) -> None:
        try:
            async with asyncio.timeout(STALLED):
                await self._send({"type": "http.response.body", "body": body, "more_body": True})
        except TimeoutError:
            raise Stalled from None

    async def end(self) -> None:
        """Says that this was all."""
        body = await self._gathered() + self._rest()
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


_ROW: Final = {
    "namespace": "default",
    "channel": "email",
    "address": "ann@example.com",
    "reason": "unsubscribe",
    "active": True,
    "occurred_at": "2026-01-31T12:00:00Z",
    "until": None,
    "origin": "kahuna_webhook",
    "recorded_at": "2026-01-31T12:00:01.25Z",
    "address_received": "Ann@Example.com",
}

_HEADERS: Final = {
    "X-Changes-Cursor": "Where to follow the feed from: nothing that this export lacks is missing there.",
    "Content-Disposition": "`attachment`, with a file name.",
    "Cache-Control": "`no-store`.",
    "Vary": "`Accept-Encoding`: the answer is compressed for those who take gzip.",
}

OPERATIONS: Final[list[AnyOperation]] = [
    Operation(
        "GET",
        "/v1/suppressions/export",
        exported,
        scope="read",
        query=Export,
        answers=[
            Answer(200, str, "The rows, under a line with their names.", media_type="text/csv", headers=_HEADERS),
            Answer(200, Exported, "A row on each line.", _ROW, "application/x-ndjson", _HEADERS),
        ],
        problems=["unknown-reason"],
    )
]
