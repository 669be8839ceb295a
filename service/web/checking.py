"""Owns the check of many addresses: as one JSON call, or as lines that are answered while they are still being sent.

Both may be gzip, in and out. Refuses to hold a stream: what cannot be sent on is not read.
"""

import asyncio
import zlib
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Final

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.domain.addresses import Channel
from service.domain.suppression import Purpose
from service.errors import KahunaSyncError, Unprocessable, UnsupportedEncoding
from service.flows.check import Asking, Checked, check
from service.store.database import MANY, aside
from service.telemetry import logger
from service.web.contract import Answer, AnyOperation, Asked, Body, Call, Operation
from service.web.http import Mendable, Service, on_error
from service.web.lines import Inlet, beside

MOST_ADDRESSES: Final = 100_000
BODY_LIMIT: Final = 16 * 1024 * 1024
"""Bytes of the JSON form, once decompressed."""

AHEAD: Final = 2
"""Groups of a stream that are looked for at once: one is prepared while the database is busy with the other."""

WORTH_ZIPPING: Final = 1000
"""Bytes from which an answer is compressed."""

_QUICKLY: Final = 1
"""The level of compression: the others take several times as long for a tenth less."""

_AS_LINES: Final = (
    "Any number of addresses, one a line, goes as Content-Type: text/plain, with ?channel=email or ?channel=sms."
)

_PURPOSE: Final = "What the messages are for: a `transactional` one may be sent in spite of an e-mail unsubscribe."


class Question(Mendable, forbid_unknown_fields=True):
    """Which addresses, and what the message is for."""

    channel: Channel
    # The most is checked by hand, for a sentence that says what to send instead.
    addresses: Annotated[list[str], msgspec.Meta(min_length=1, extra_json_schema={"maxItems": MOST_ADDRESSES})]
    purpose: Annotated[Purpose, msgspec.Meta(description=_PURPOSE)] = "marketing"

    @classmethod
    def mended(cls, document: Any) -> "Mended | None":
        """With its strange addresses as they can be shown, and where they stand."""
        try:
            asked = msgspec.convert(document, Question)
        except msgspec.ValidationError:
            return None
        shown = [_shown(one) for one in asked.addresses]
        strange = tuple(place for place, one in enumerate(asked.addresses) if one != shown[place])
        return Mended(asked.channel, shown, asked.purpose, strange) if strange else None


class Mended(Question):
    """A question in which some addresses are no text, and the places of those."""

    strange: tuple[int, ...] = ()


class OfLines(Asked, frozen=True, kw_only=True):
    """What lines cannot say themselves; a JSON body does."""

    channel: Annotated[Channel | None, msgspec.Meta(description="Of lines, and then required: their channel.")] = None
    purpose: Annotated[
        Purpose | None, msgspec.Meta(description=f"Of lines: {_PURPOSE[0].lower()}{_PURPOSE[1:]} Default: marketing.")
    ] = None


class Results(msgspec.Struct):
    """One result for each address that was sent, in the same order and spelling."""

    results: list[Checked]


async def check_document(call: Call[OfLines, Question]) -> Response:
    """May we message these addresses? Up to 100,000 in one JSON body, any number as lines of text.

    As `application/json`: one result for each address, in the same order and spelling. The best form for one
    address, too: it keeps addresses out of the access logs on the way.
    """
    body, service = call.body, call.service
    if call.query.channel is not None or call.query.purpose is not None:
        raise Unprocessable("The body says the channel and the purpose; leave them out of the query.", "said-twice")
    if len(body.addresses) > MOST_ADDRESSES:
        raise Unprocessable(f"addresses has over {MOST_ADDRESSES} entries. {_AS_LINES}", "invalid-body")
    asking = _asking(call, body.channel, body.purpose)
    found = await _checked(service, asking, body.addresses)
    for place in body.strange if isinstance(body, Mended) else ():
        found[place] = Checked(body.addresses[place], error="not-utf8")
    zipped = accepts_gzip(call.request)
    content, headers = await aside(len(found), _packed, Results(found), zipped=zipped)
    return Response(content, 200, headers, "application/json")


async def check_lines(call: Call[OfLines, None]) -> Response:
    """May we message these addresses? Any number of them, one a line; the answers come while lines are still sent.

    As `text/plain`: one address a line, and `?channel=` says of which channel they are. Each line is answered by
    one line, in the same order, while lines are still sent. Read the answers while you send: nothing is kept for a
    caller who does not, so one who sends a long list first and reads later is cut off.

    What cannot be an address gets an `error` instead of a verdict: `not-an-email-address`, `not-a-number`,
    `wrong-number-of-digits`, `address-too-long`, `control-character`, and for a line that is no text `not-utf8`.
    """
    encoding = call.request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", ""):
        raise UnsupportedEncoding("Send the body as it is, or with Content-Encoding: gzip.")
    if call.query.channel is None:
        raise Unprocessable("Say of which channel the lines are: ?channel=email or ?channel=sms.", "channel-required")
    _asking(call, call.query.channel)  # what is wrong with the question is said before there is an answer
    return Stream(call, call.query.channel, zipped=encoding == "gzip")


class Stream(Response):
    """The answers to lines, made while they arrive."""

    def __init__(self, call: Call[OfLines, None], channel: Channel, *, zipped: bool) -> None:
        headers = {"Cache-Control": "no-store", "Vary": "Accept-Encoding", "X-Accel-Buffering": "no"}
        self._zip = zlib.compressobj(_QUICKLY, wbits=31) if accepts_gzip(call.request) else None
        if self._zip is not None:
            headers["Content-Encoding"] = "gzip"
        super().__init__(headers=headers, media_type="application/x-ndjson")
        del self.headers["Content-Length"]
        self._call = call
        self._channel = channel
        self._is_zipped = zipped
        self._patience = call.service.settings.body_timeout_seconds
        self._started = False

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        inlet = Inlet(receive, self._patience, zipped=self._is_zipped)
        try:
            async with beside(inlet.fill()):
                async with aclosing(self._answers(inlet)) as answers:
                    async for found in answers:
                        await self._send(send, await aside(len(found), self._line_by_line, found))
                await self._send(send, self._zip.flush() if self._zip else b"", more=False)
        except KahunaSyncError as error:
            if not self._started:
                raise
            await self._break_off(send, error)

    async def _answers(self, inlet: Inlet) -> AsyncGenerator[list[Checked], None]:
        """The answers to one group after the other; the next ones are looked for while one is sent."""
        turn = asyncio.Lock()
        coming = deque(asyncio.create_task(self._answered(inlet, turn)) for _ in range(AHEAD))
        try:
            while found := await coming[0]:
                coming.popleft()
                coming.append(asyncio.create_task(self._answered(inlet, turn)))
                yield found
        finally:
            for task in coming:
                task.cancel()
            await asyncio.gather(*coming, return_exceptions=True)

    async def _answered(self, inlet: Inlet, turn: asyncio.Lock) -> list[Checked]:
        """The answers to the next group; none at the end. Whoever waits longest has the turn to take one."""
        async with turn:
            lines = await inlet.group()
        if not lines:
            return []
        call = self._call
        asking = _asking(call, self._channel, call.query.purpose)
        texts, strange = await aside(len(lines), _texts, lines)
        found = await _checked(call.service, asking, texts)
        for place in strange:
            found[place] = Checked(lines[place].decode(errors="replace"), error="not-utf8")
        return found

    def _line_by_line(self, found: list[Checked]) -> bytes:
        content = msgspec.json.Encoder().encode_lines(found)
        return content if self._zip is None else self._zip.compress(content) + self._zip.flush(zlib.Z_SYNC_FLUSH)

    async def _send(self, send: Send, content: bytes, *, more: bool = True) -> None:
        """Waits until the caller has taken what was sent before, but not for ever."""
        try:
            async with asyncio.timeout(self._patience):
                if not self._started:
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    self._started = True
                await send({"type": "http.response.body", "body": content, "more_body": more})
        except TimeoutError:
            raise ClientDisconnect from None

    async def _break_off(self, send: Send, error: KahunaSyncError) -> None:
        """Says what went wrong as the last line, and leaves the answer without its end, so that nobody takes it for a
        whole one."""
        logger().warning("check.broken_off", because=type(error).__name__)
        told = bytes((await on_error(self._call.request, error)).body) + b"\n"
        await self._send(send, told if self._zip is None else self._zip.compress(told) + self._zip.flush())


def _shown(given: str) -> str:
    """With the usual sign in place of each half of a pair."""
    return given.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def accepts_gzip(request: Request) -> bool:
    """Whether the caller can read gzip."""
    for one in request.headers.get("Accept-Encoding", "").split(","):
        coding, _, weight = one.replace(" ", "").lower().partition(";q=")
        if coding in ("gzip", "*"):
            return weight.strip("0.") != "" if weight else True
    return False


def _asking(call: Call[Any, Any], channel: Channel, purpose: Purpose | None = None) -> Asking:
    call.channel(channel)
    service = call.service
    return Asking(call.namespace, channel, purpose or "marketing", int(service.now.timestamp()), service.rules.policy)


async def _checked(service: Service, asking: Asking, addresses: Sequence[str]) -> list[Checked]:
    """A few are answered at once; many wait their turn."""
    if len(addresses) <= MANY:
        return await check(service.database, asking, addresses)
    async with service.checking:
        return await check(service.database, asking, addresses)


def _packed(results: Results, *, zipped: bool) -> tuple[bytes, dict[str, str]]:
    content, headers = msgspec.json.encode(results), {"Cache-Control": "no-store", "Vary": "Accept-Encoding"}
    if not zipped or len(content) < WORTH_ZIPPING:
        return content, headers
    return zlib.compress(content, _QUICKLY, wbits=31), headers | {"Content-Encoding": "gzip"}


def _texts(lines: Sequence[bytes]) -> tuple[list[str], list[int]]:
    """The lines as texts, and the places of those that are none: they stand as nothing."""
    try:
        return [line.decode() for line in lines], []
    except UnicodeDecodeError:
        texts = [line.decode(errors="replace") for line in lines]
    strange = [place for place, text in enumerate(texts) if text.encode() != lines[place]]
    for place in strange:
        texts[place] = ""
    return texts, strange


_RESULT: Final = {"address": "Ann@Example.com", "suppressed": True, "reasons": ["unsubscribe"]}
_REFUSED: Final = {"address": "nobody", "error": "not-an-email-address"}
_HEADERS: Final = {"Cache-Control": "`no-store`.", "Vary": "`Accept-Encoding`."}

OPERATIONS: Final[list[AnyOperation]] = [
    Operation(
        "POST",
        "/v1/suppressions/check",
        check_document,
        scope="read",
        query=OfLines,
        body=Body(
            Question, {"channel": "email", "addresses": ["Ann@Example.com", "nobody"]}, BODY_LIMIT, instead=_AS_LINES
        ),
        answers=[
            Answer(200, Results, "A result for each address.", {"results": [_RESULT, _REFUSED]}, headers=_HEADERS)
        ],
        problems=["said-twice"],
    ),
    Operation(
        "POST",
        "/v1/suppressions/check",
        check_lines,
        scope="read",
        query=OfLines,
        streams={"text/plain": "One address a line, in UTF-8; any number of lines."},
        answers=[
            Answer(200, Checked, "A result for each line.", _RESULT, "application/x-ndjson", headers=_HEADERS),
        ],
        problems=["body-too-slow", "channel-required", "line-too-long", "not-gzip", "unsupported-encoding"],
    ),
]
