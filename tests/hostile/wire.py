"""Owns what may come over a connection that no client of HTTP would send, and how each of it must end.

Every talk is on a connection of its own, and ends: with an answer whose status stands in the contract, or without a
word. One that is still open when its patience is over is a fault.
"""

import asyncio
import gzip
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Final, NamedTuple

from service.kahuna.salvage import MAX_ENTRIES
from service.kahuna.webhook import sign
from tests.hostile.judge import KEY

BODY: Final = b'[{"number":"15550100001","timestamp":1700000000}]'
SIGNATURE: Final = sign(["15550100001"], KEY)
PATH: Final = "/webhooks/default/sms"
MIB: Final = 1024 * 1024


class Pause(NamedTuple):
    """Silence, for so many of the server's time-outs."""

    share: float


class Drip(NamedTuple):
    """Bytes one after the other, for so many of the server's time-outs in all."""

    content: bytes
    share: float


class HalfClose(NamedTuple):
    """Nothing more will be said, but the answer is listened to."""


Part = bytes | Pause | Drip | HalfClose


class Talk(NamedTuple):
    """What is said, and the statuses that must come back, in their order. `may_be` are other ends that are as good."""

    parts: Sequence[Part]
    statuses: Sequence[int] = ()
    may_be: Sequence[Sequence[int]] = ()


def head(*more: str, path: str = PATH, method: str = "POST", length: int | None = len(BODY), end: bool = True) -> bytes:
    """A signed callback's head; the connection ends with it unless `end` says otherwise."""
    lines = [f"{method} {path} HTTP/1.1", "Host: hostile", f"X-Kahuna-Signature: {SIGNATURE}"]
    lines += [] if length is None else [f"Content-Length: {length}"]
    lines += ["Connection: close"] if end else []
    return "\r\n".join([*lines, *more, "", ""]).encode("latin-1")


def chunked(*chunks: bytes, more: Sequence[str] = ()) -> Talk:
    """A callback whose body comes in these chunks, as they stand."""
    return Talk([head("Transfer-Encoding: chunked", *more, length=None), *chunks], [200])


def whole(content: bytes, *more: str, signature: str = SIGNATURE) -> list[Part]:
    """A callback with this body."""
    return [head(*more, length=len(content)).replace(SIGNATURE.encode(), signature.encode()) + content]


def refused(talk: Talk, *statuses: int) -> Talk:
    """The same, with another end."""
    return talk._replace(statuses=statuses)


_CHUNK: Final = b"%x\r\n%s\r\n" % (len(BODY), BODY)
_GET: Final = b"GET /livez HTTP/1.1\r\nHost: hostile\r\n\r\n"
_LAST: Final = b"GET /livez HTTP/1.1\r\nHost: hostile\r\nConnection: close\r\n\r\n"
_OFFER: Final = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQBAAAA")
_OFFERING: Final = _GET.replace(b"\r\n\r\n", b"\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
_EMPTY: Final = sign([], KEY)

TALKS: Final[Mapping[str, Talk]] = MappingProxyType(
    {
        "as it should be": Talk([head() + BODY], [200]),
        # A length that is none.
        "length longer than the body": Talk([head(length=len(BODY) + 9) + BODY], [408]),
        "length shorter than the body": Talk([head(length=len(BODY) - 9) + BODY], [400]),
        "length of less, then another request": Talk([head(length=0, end=False) + _LAST], [400, 200]),
        "length below zero": Talk([head(length=-1) + BODY], [400]),
        "length with a sign": Talk([head("Content-Length: +49", length=None) + BODY], [400]),
        "length that is no number": Talk([head("Content-Length: many", length=None) + BODY], [400]),
        "length past any number": Talk([head(length=10**30) + BODY], [400]),
        "length over the limit": Talk([head(length=10 * MIB + 1) + BODY], [413]),
        "length twice, two of them": Talk([head("Content-Length: 3") + BODY], [400]),
        "length twice, the same": Talk([head(f"Content-Length: {len(BODY)}") + BODY], [400]),
        "length and chunks": Talk([head("Transfer-Encoding: chunked") + _CHUNK + b"0\r\n\r\n"], [400]),
        "no length at all": Talk([head(length=None)], [400]),
        # Chunks.
        "one chunk": chunked(_CHUNK + b"0\r\n\r\n"),
        "a byte a chunk": chunked(*(b"1\r\n%c\r\n" % byte for byte in BODY), b"0\r\n\r\n"),
        "odd extensions": chunked(_CHUNK.replace(b"\r\n", b';a=b;c="d e"\r\n', 1) + b"0;last\r\n\r\n"),
        "an endless extension": refused(chunked(b"1;" + b"x" * 4 * MIB), 400),
        "a long extension": refused(chunked(b"1;" + b"x" * 100_000), 408),
        "trailers": chunked(_CHUNK + b"0\r\nX-Odd: 1\r\n\r\n"),
        "trailers without end": refused(chunked(_CHUNK + b"0\r\n" + b"X-Odd: 1\r\n" * 300_000), 400),
        "a trailer without end": refused(chunked(_CHUNK + b"0\r\nX-Odd: ", *[b"x" * MIB] * 64), 400),
        "a size past any number": refused(chunked(b"f" * 17 + b"\r\n"), 400),
        "a huge size": Talk([head("Transfer-Encoding: chunked", length=None) + b"fffffffffff\r\n" + BODY], [408]),
        "a size below zero": refused(chunked(b"-1\r\n" + BODY), 400),
        "a size that is none": refused(chunked(b"x\r\n" + BODY), 400),
        "chunks without end": refused(chunked(_CHUNK), 408),
        "chunks over the limit": refused(
            chunked(b"100000\r\n" + b" " * MIB + b"\r\n", *[b"100000\r\n" + b" " * MIB + b"\r\n"] * 10), 413
        ),
        "another transfer coding": refused(chunked(_CHUNK, more=["Transfer-Encoding: gzip"]), 400),
        # Heads.
        "a header just under the limit": Talk([head("X-Odd: " + "x" * 60_000) + BODY], [200]),
        "a header of 64 kB": Talk([head("X-Odd: " + "x" * 65_536) + BODY], [400]),
        "a header without end": Talk([head().removesuffix(b"\r\n\r\n") + b"\r\nX-Odd: " + b"x" * 4 * MIB], [400]),
        "a name without end": Talk([head().removesuffix(b"\r\n") + b"x" * 4 * MIB], [400]),
        "headers without end": Talk([head().removesuffix(b"\r\n") + b"X-Odd: 1\r\n" * 100_000], [400]),
        "many headers": Talk([head(*["X-Odd: 1"] * 1000) + BODY], [200]),
        "a folded header": Talk([head("X-Odd: 1\r\n  2") + BODY], [400], [[200]]),
        "a header without a name": Talk([head(": 1") + BODY], [400]),
        "a NUL in a header": Talk([head("X-Odd: \0") + BODY], [400]),
        "a header that is no text": Talk([head("X-Odd: \xff\xfe") + BODY], [200]),
        "lines that end early": Talk([head().replace(b"\r\n", b"\n") + BODY], [400], [[200]]),
        # Paths.
        "a path without end": Talk([head(path="/" + "x" * 4 * MIB) + BODY], [400]),
        "an enormous path": Talk([head(path="/webhooks/" + "x" * 60_000) + BODY], [404]),
        "a NUL in the path": Talk([head(path="/webhooks/\0/sms") + BODY], [400]),
        "a coded NUL in the path": Talk([head(path="/webhooks/%00/sms") + BODY], [404]),
        "no UTF-8 in the path": Talk([head(path="/webhooks/\xff/sms") + BODY], [400], [[404]]),
        "coded, no UTF-8 in the path": Talk([head(path="/webhooks/%ff%fe/sms") + BODY], [404]),
        "the whole address as the path": Talk([head(path=f"http://elsewhere{PATH}") + BODY], [200]),
        "an address without a path": Talk([head(path="http://elsewhere") + BODY], [400], [[404]]),
        "a star for the path": Talk([head(path="*", method="OPTIONS", length=0)], [400], [[404]]),
        "a tunnel": Talk([head(path="elsewhere:443", method="CONNECT", length=0)], [400], [[404]]),
        # What is no HTTP/1.1.
        "HTTP/0.9": Talk([b"GET /livez\r\n\r\n"], [400], [[200]]),
        "HTTP/1.0": Talk([b"GET /livez HTTP/1.0\r\n\r\n"], [200]),
        "HTTP/2": Talk([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"], [400]),
        "HTTP/9.9": Talk([_LAST.replace(b"1.1", b"9.9")], [400]),
        "TLS": Talk([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)], [400]),
        "nothing but zeros": Talk([bytes(100_000)], [400]),
        "another protocol, offered": Talk([head(*_OFFER, end=False) + BODY + head() + BODY], [200, 200]),
        "another protocol, offered in two parts": Talk(
            [head(*_OFFER, end=False)[:60], Pause(0.1), head(*_OFFER, end=False)[60:], Pause(0.1), BODY + _LAST],
            [200, 200],
        ),
        "another protocol, offered with chunks": chunked(_CHUNK, b"0\r\n\r\n", more=_OFFER),
        "another protocol, offered again and again": Talk([_OFFERING * 500 + _LAST], [200] * 501),
        # One after the other.
        "a hundred at once": Talk([_GET * 99 + _LAST], [200] * 100),
        "thousands, the last in two parts": Talk(
            [_GET * 3000 + head()[:50], Pause(0.2), head()[50:] + BODY], [200] * 3001
        ),
        "two callbacks at once": Talk([head(end=False) + BODY + head() + BODY], [200, 200]),
        "a callback, then nonsense": Talk([head(end=False) + BODY + b"\0\0\0\0"], [200]),
        "a hundred, then nonsense": Talk([_GET * 100 + b"\0\0\0"], [200] * 100),
        "told to go on": Talk([head("Expect: 100-continue"), Pause(0.1), BODY], [100, 200]),
        "not told to go on": Talk([head("Expect: 100-continue", path="/webhooks/nobody/sms")], [404]),
        "half closed": Talk([head(end=False) + BODY, HalfClose()], [200]),
        "half closed in the middle": Talk([head(end=False) + BODY[:9], HalfClose()], []),
        # Slowly.
        "never a word": Talk([Pause(3)]),
        "blank lines": Talk([Drip(b"\r\n" * 8, 3)], [], [[400]]),
        "a slow head": Talk([Drip(head()[:40], 3)], [408]),
        "a slow head, the second time": Talk([_GET, Drip(head()[:40], 3)], [200, 408]),
        "a slow body": Talk([head(length=1000), Drip(BODY[:40], 3)], [408]),
        "a body for a refusal": Talk([head(path="/x", end=False, length=MIB), Drip(b" " * 40, 3)], [404]),
        "a body for a refusal, all of it": Talk(
            [head(path="/x", end=False, length=3 * MIB) + b" " * 3 * MIB + _LAST], [404, 200]
        ),
        # Bombs.
        "a gzip bomb": Talk(whole(gzip.compress(bytes(64 * MIB)), "Content-Encoding: gzip"), [413]),
        "a bomb in a bomb": Talk(whole(gzip.compress(gzip.compress(bytes(64 * MIB))), "Content-Encoding: gzip"), [400]),
        "many gzip members": Talk(whole(gzip.compress(b"") * 100_000, "Content-Encoding: gzip"), [400]),
        "ten million entries": Talk(whole(b"[" + b"0," * 10_000_000 + b"0]"), [413]),
        "ten million entries in little": Talk(
            whole(gzip.compress(b"[" + b"0," * 10_000_000 + b"0]"), "Content-Encoding: gzip"), [413]
        ),
        "as many entries as there is room for": Talk(
            whole(b"[" + b"{}," * 3_495_000 + b"{}]", signature=_EMPTY), [413]
        ),
    }
)


def nested(mib: int) -> Mapping[str, Talk]:
    """Bombs that cost as much as they are large, in bodies of so many MiB."""
    size = mib * MIB
    objects = b"[" + b'{"a":' * (size // 6) + b"1" + b"}" * (size // 6) + b"]"
    return {
        "brackets": Talk(whole(b"[" * (size // 2) + b"]" * (size // 2)), [401]),
        "brackets that stay open": Talk(whole(b"[" * size), [400]),
        "objects in objects": Talk(whole(objects, signature=_EMPTY), [200]),
    }


def most_entries() -> Talk:
    """As many entries as are taken in one callback, each for the quarantine."""
    return Talk(whole(b"[" + b"{}," * (MAX_ENTRIES - 1) + b"{}]", signature=_EMPTY), [200])


async def fault_of(port: int, talk: Talk, time_out: float) -> str | None:
    """What is wrong with how a talk ended. `time_out` are the seconds that the server gives heads and bodies."""
    try:
        async with asyncio.timeout(20 + 5 * time_out):
            said = await _spoken(port, talk.parts, time_out)
    except TimeoutError:
        return "the connection stayed open"
    statuses, rest = _statuses(said)
    if b"Traceback" in said:
        return "a traceback in an answer"
    if rest:
        return f"half an answer: {rest[:100]!r}"
    if statuses not in [list(end) for end in (talk.statuses, *talk.may_be)]:
        return f"{statuses} instead of {list(talk.statuses)}: {said[:300]!r}"
    return None


async def _spoken(port: int, parts: Sequence[Part], time_out: float) -> bytes:
    """Everything that the server says until it ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    said = asyncio.create_task(_heard(reader))
    try:
        with suppress(OSError):
            for part in parts:
                await _say(writer, part, time_out)
        return await said
    finally:
        said.cancel()
        writer.transport.abort()


async def _heard(reader: asyncio.StreamReader) -> bytes:
    said = bytearray()
    with suppress(ConnectionError):
        while part := await reader.read(65_536):
            said += part
    return bytes(said)


async def _say(writer: asyncio.StreamWriter, part: Part, time_out: float) -> None:
    match part:
        case Pause(share):
            await asyncio.sleep(share * time_out)
        case Drip(content, share):
            for byte in content:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(share * time_out / len(content))
        case HalfClose():
            writer.write_eof()
        case _:
            writer.write(part)
            await writer.drain()


def _statuses(said: bytes) -> tuple[list[int], bytes]:
    """The statuses of the answers, and what is left that is no whole one."""
    statuses = []
    while said.startswith(b"HTTP/1.1 ") and b"\r\n\r\n" in said:
        head_said, rest = said.split(b"\r\n\r\n", 1)
        status = int(head_said[9:12])
        lengths = [line for line in head_said.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        length = int(lengths[0].split(b":")[1]) if lengths else 0
        if len(rest) < length or (status != 100 and b"x-request-id:" not in head_said.lower()):
            break
        statuses.append(status)
        said = rest[length:]
    return statuses, said
