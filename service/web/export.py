"""Owns the whole list in HTTP words: CSV or NDJSON as long as it is, as of one moment, no faster than it is taken."""

import asyncio
import zlib
from collections.abc import Callable
from typing import Any, Final, get_args

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Send
from starlette.types import Scope as Asked

from service.domain.addresses import CHANNELS
from service.domain.facts import reasons_of
from service.errors import StorageUnavailable, Unprocessable
from service.flows.follow import Cursor, Scope
from service.store import changes, export
from service.store.export import Format, Key, Wanted
from service.telemetry import logger
from service.web.asking import choice_in
from service.web.http import Service, caller_with, namespace_for, parameters, service_of, unless_gone

AT_ONCE: Final = 2
"""Exports of one process under way: each keeps a connection and a snapshot for as long as it lasts."""

STALLED: Final = 60.0
"""Seconds after which one who takes nothing is given up: the server keeps all old rows for as long as they wait."""

_TYPES: Final = {"csv": "text/csv; charset=utf-8", "ndjson": "application/x-ndjson"}
_REASONS: Final = tuple(dict.fromkeys(reason for channel in CHANNELS for reason in reasons_of(channel)))


class Stalled(Exception):
    """The caller takes nothing any more."""


async def exported(request: Request) -> Response:
    """GET: every cause of the list."""
    caller = await caller_with(request, "read")
    given = parameters(request, "namespace", "format", "channel", "reason", "active", "order", "from")
    namespace = namespace_for(request, caller, given.get("namespace"))
    active = choice_in(given, "active", ("true", "false"))
    service = service_of(request)
    wanted = Wanted(
        namespace,
        int(service.now.timestamp()),
        choice_in(given, "channel", CHANNELS),
        choice_in(given, "reason", _REASONS),
        None if active is None else active == "true",
        ordered=choice_in(given, "order", ("key",)) is not None,
        begin=key_from(given["from"]) if "from" in given else None,
    )
    form: Format = choice_in(given, "format", get_args(Format)) or "csv"
    return _Export(service, wanted, form, zipped=_takes_gzip(request.headers.get("Accept-Encoding", "")))


ROUTES: Final = [Route("/v1/suppressions/export", exported, methods=["GET"])]


def key_from(text: str) -> Key:
    """The key of a row: its channel, reason and address with commas between them."""
    channel, _, rest = text.partition(",")
    reason, _, address = rest.partition(",")
    if channel not in CHANNELS or reason not in _REASONS or not address or "\0" in address:
        raise Unprocessable("from must be channel,reason,address of the last row that you have.", "invalid-parameter")
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

    async def __call__(self, scope: Asked, receive: Receive, send: Send) -> None:
        if self._service.exports.locked():
            raise StorageUnavailable(f"{AT_ONCE} exports are under way already; try again later.", 30)
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
        said: dict[str, Any] = {"namespace": self._wanted.namespace, "format": self._form, "lines": outlet.lines}
        failure = None if working.cancelled() else working.exception()
        if working.cancelled():
            logger().info("export.abandoned", **said)
        elif failure is None:
            await outlet.end()
            logger().info("list.exported", **said)
        else:
            logger().error("export.broken", **said, exc_info=failure)

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
        self.lines = 0

    async def take(self, part: bytes) -> None:
        """Sends some, once there is room for it."""
        self.lines += part.count(b"\n")
        body = part if self._pack is None else await asyncio.to_thread(self._pack, part)
        try:
            async with asyncio.timeout(STALLED):
                await self._send({"type": "http.response.body", "body": body, "more_body": True})
        except TimeoutError:
            raise Stalled from None

    async def end(self) -> None:
        """Says that this was all."""
        await self._send({"type": "http.response.body", "body": self._rest(), "more_body": False})
