"""The usual question is answered offhand as on the ordinary way, byte for byte; whatever else comes is left to that."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from random import Random
from string import ascii_letters, digits, punctuation
from typing import Any
from urllib.parse import quote

import pytest
import structlog
from structlog.testing import capture_logs

from service.app import build, desk_of, take_of
from service.flows.together import Together
from service.settings import Settings
from service.spans import Span, Tracer
from service.store.suppressions import CauseRow, Subject
from service.telemetry import Metrics
from service.web.offhand import Offhand
from tests.flows.speaking import until
from tests.web.doors import Door, answer_from, get, served
from tests.web.harness import Headers, Site, address_path, opened, signature

ANN = address_path("email", "ann@example.com")
ID = "X-Request-ID: trace-1"
OWN_ID = re.compile(rb"x-request-id: [0-9a-f]{32}\r\n")


@dataclass
class Two:
    """One list, asked at a port with what takes requests offhand, and at one without."""

    site: Site
    offhand: Door
    ordinary: Door
    metrics: Metrics

    async def alike(self, asked: bytes, *, taken: bool) -> bytes:
        """What both answer, but for ids of their own; the first of them took it or not."""
        before = len(self.offhand.took)
        told = [OWN_ID.sub(b"", await door.ask(asked)) for door in (self.offhand, self.ordinary)]
        assert told[0] == told[1]
        assert any(self.offhand.took[before:]) is taken, told[0]
        return told[0]

    def counted(self, status: str) -> float:
        """Answers of this status to such questions so far."""
        labels = {"route": "/v1/suppressions/{channel}/{address:path}", "status": status}
        return self.metrics.registry.get_sample_value("kahuna_sync_request_seconds_count", labels) or 0.0


@asynccontextmanager
async def standing(settings: Settings) -> AsyncIterator[Two]:
    """Both ports, each of a process of its own as it were, on one list and by one clock."""
    async with opened(settings) as site:
        metrics = Metrics()
        quick, plain = build(settings, site.clock, metrics), build(settings, site.clock)
        async with served(quick, take_of(quick)) as offhand, served(plain, None) as ordinary:
            yield Two(site, offhand, ordinary, metrics)


@pytest.fixture
async def two(settings: Settings) -> AsyncIterator[Two]:
    async with standing(settings) as made:
        yield made


@pytest.fixture
async def reader(two: Two) -> Headers:
    """A caller who may ask, and is known by now."""
    return await known(two, await two.site.token("read"))


async def known(two: Two, caller: Headers) -> Headers:
    """A caller of whom the process has heard: the first question is one that has to be asked about."""
    for door in (two.offhand, two.ordinary):
        await door.ask(get(ANN, caller))
    return caller


# The same answers.

SPELLINGS = [
    ANN,
    "/v1/suppressions/email/eve@example.com",
    "/v1/suppressions/email/Bob@Example.com",
    "/v1/suppressions/email/a+b%2Bc@example.com",
    "/v1/suppressions/email/%20dan@example.com%20",
    address_path("email", "josé@bücher.example"),
    address_path("email", '"a@b c"@example.com'),
    address_path("email", 'a"b\\c@example.com'),
    address_path("email", "a?b#c&d=e%f@example.com"),
    address_path("sms", "+1 (555) 010-0001"),
    "/v1/suppressions/sms/+15550100002",
    "/v1/suppressions/sms/0015550100003",
]


async def test_an_address_however_it_is_spelt(two: Two, reader: Headers) -> None:
    writer = await two.site.token("write")
    for path in SPELLINGS:
        assert b'"causes":[]' in await two.alike(get(path, reader, ID), taken=True)
        assert (await two.site.client.put(path, headers=writer, json={"reason": "manual"})).is_success
        listed = await two.alike(get(path, reader, ID), taken=True)
        assert b'"suppressed":true' in listed
        assert b"x-request-id: trace-1\r\n" in listed


async def test_all_that_a_list_can_say_of_an_address(two: Two, reader: Headers) -> None:
    stops: list[dict[str, Any]] = [
        {"email": f"{reason}@example.com", "reason": reason, "timestamp": 1_700_000_000 + second}
        for reason in ("unsub", "hard_bounce", "soft_bounce", "spam", "invalid", "blocked", "reject")
        for second in range(3)
    ]
    stops += [stop | {"email": "every@example.com"} for stop in stops]
    await two.site.deliver("email", stops)
    consent = {"evidence": "form 7", "occurred_at": "2024-01-01T00:00:00Z"}
    writer = await two.site.token("write")
    await two.site.client.post(address_path("email", "spam@example.com", "/reactivate"), headers=writer, json=consent)
    for address in {stop["email"] for stop in stops}:
        told = await two.alike(get(address_path("email", address), reader, ID), taken=True)
        assert (b'"suppressed":true' in told) is not address.startswith(("spam", "soft"))


def spelt(chance: Random) -> str:
    """Something that may stand in a path where an address is expected: most are, or are nearly one."""
    letters = ascii_letters + digits + "@@.+ éß你\u0301"
    text = "".join(chance.choices(letters, k=chance.randrange(1, 12))) + "@example.com"
    raw = quote(text, safe=chance.choice(["", "@+", "@+!$&'()*,;=:"]))
    ends = ["%", "%zz", "%ff", "%00", "%2F", "/", "?", "?x=1", "#", "%0a"]
    return raw if chance.random() < 0.7 else raw + chance.choice(ends)


async def test_whatever_stands_in_the_path_both_say_the_same(two: Two, reader: Headers) -> None:
    chance, taken = Random(1), 0
    paths = [f"/v1/suppressions/email/{spelt(chance)}" for _ in range(100)]
    paths += [f"/v1/suppressions/email/a{one}b@example.com" for one in punctuation]
    paths += [f"/v1/suppressions/email/a%{code:02x}b@example.com" for code in range(0x80)]
    for path in paths:
        before = len(two.offhand.took)
        ours, theirs = [await door.ask(get(path, reader, ID)) for door in (two.offhand, two.ordinary)]
        assert ours == theirs, path
        taken += any(two.offhand.took[before:])
    assert len(paths) / 3 < taken < len(paths)


async def test_what_the_caller_has(two: Two, reader: Headers) -> None:
    tag = re.search(rb'etag: (".*")', await two.alike(get(ANN, reader, ID), taken=True))
    assert tag
    for form in ("{}", "W/{}", '"other", {}', "*", '"other"', ""):
        told = await two.alike(get(ANN, reader, ID, f"If-None-Match: {form.format(tag[1].decode())}"), taken=True)
        assert told.startswith(b"HTTP/1.1 200" if form in ('"other"', "") else b"HTTP/1.1 304"), form


async def test_an_id_that_is_none_is_replaced(two: Two, reader: Headers) -> None:
    for given in ("", "a" * 129, "ann@example.com", "a b", "a\tb", "é"):
        asked = get(ANN, reader, f"X-Request-ID: {given}")
        await two.alike(asked, taken=True)
        told = await two.offhand.ask(asked)
        assert len(OWN_ID.findall(told)) == told.count(b"x-request-id") == 1, given


# What is left to the ordinary way.

UNUSUAL = {
    f"{ANN}?purpose=transactional": 200,
    f"{ANN}?": 200,
    f"{ANN}?porpose=marketing": 400,
    f"{ANN}#top": 200,
    "/v1/suppressions/email/ann%ff@example.com": 400,
    "/v1/suppressions/email/ann%4@example.com": 400,
    "/v1/suppressions/email/\xc3\xa9@example.com": 400,
    "/v1/suppressions/email/\xe9@example.com": 400,
    "/v1/suppressions/email/ann": 422,
    "/v1/suppressions/email/": 422,
    f"/v1/suppressions/email/{'a' * 2000}@example.com": 422,
    f"/v1/suppressions/email/{'%20' * 17_000}ann@example.com": 414,
    "/v1/suppressions/sms/STOP": 422,
    "/v1/suppressions/fax/1": 404,
    "/v1/suppressions/email/a/b@example.com": 200,
    "/v1/suppressions/email/a%2Fb@example.com": 200,
    f"{ANN}/history": 200,
    f"{ANN}/nothing": 404,
    "/v1/suppressions": 200,
    "http://sync.test/v1/suppressions/email/ann@example.com": 200,
    "/livez": 200,
}


async def test_a_path_that_is_not_quite_usual(two: Two, reader: Headers) -> None:
    for path, status in UNUSUAL.items():
        told = await two.alike(get(path, reader, ID), taken=False)
        assert told.startswith(b"HTTP/1.1 %d" % status), (path, told)


async def test_a_request_that_is_not_quite_usual(two: Two, reader: Headers) -> None:
    stop = '{"reason":"manual"}'
    for asked in (
        get(ANN, reader, ID, method="HEAD"),
        get(ANN, reader, ID, version="1.0"),
        get(ANN, reader, ID, "Connection: keep-alive", version="1.0"),
        get(ANN, reader, ID, "Connection: close"),
        get(ANN, reader, ID, "Connection: keep-alive, close"),
        get(ANN, reader, ID, "Proxy-Connection: close"),
        get(ANN, reader, ID, "X-Request-ID: trace-2"),
        get(ANN, reader, ID, "Authorization: Bearer other"),
        get(ANN, reader, ID, "Content-Length: 2") + b"{}",
        get(ANN, reader, ID, "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        get(ANN, reader, ID, "Expect: 100-continue"),
        get(ANN, reader, ID, f"Content-Length: {len(stop)}", method="PUT") + stop.encode(),
    ):
        await two.alike(asked, taken=False)
    for more in ("Connection: Keep-Alive", "Content-Length: 0", "Upgrade: h2c\r\nConnection: keep-alive"):
        await two.alike(get(ANN, reader, ID, more), taken=True)


async def test_who_may_not_ask_is_told_so_on_the_ordinary_way(two: Two) -> None:
    site = two.site
    several = {**await site.token("read", namespace=None)}
    callers: dict[str, tuple[Headers, bytes]] = {
        "nobody": ({}, b"401"),
        "unknown": ({"Authorization": "Bearer ks_unknown"}, b"401"),
        "another scheme": ({"Authorization": "Basic a2V5Og=="}, b"401"),
        "no scope": (await site.token("write"), b"403"),
        "no such namespace": (await site.token("read", namespace="gone"), b"404"),
        "no namespace": (several, b"400"),
        "another channel": (await site.token("read", channel="sms"), b"403"),
    }
    for name, (caller, status) in callers.items():
        await known(two, caller)
        told = await two.alike(get(ANN, caller, ID), taken=False)
        assert told.startswith(b"HTTP/1.1 " + status), name
    limited = await known(two, await site.token("read", namespace="other", channel="email"))
    assert b'"namespace":"other"' in await two.alike(get(ANN, limited, ID), taken=True)


async def test_a_token_is_believed_for_as_long_as_ever_and_no_longer(two: Two, reader: Headers) -> None:
    soon = two.site.clock.now + timedelta(seconds=1)
    ending = await known(two, await two.site.token("read", expires_at=soon))
    await two.alike(get(ANN, ending, ID), taken=True)
    two.site.clock.sleep(1)
    assert b" 401 " in await two.alike(get(ANN, ending, ID), taken=False)
    await two.site.execute("update tokens set revoked_at = now()")
    await two.alike(get(ANN, reader, ID), taken=True)
    two.site.clock.sleep(two.site.settings.token_cache_seconds)
    assert b" 401 " in await two.alike(get(ANN, reader, ID), taken=False)


async def test_every_call_counts_once_towards_what_a_token_may_make(settings: Settings) -> None:
    async with standing(replace(settings, token_calls_per_second=3.0)) as two:
        reader = await known(two, await two.site.token("read"))
        for _ in range(2):
            await two.alike(get(ANN, reader, ID), taken=True)
        for _ in range(2):
            assert b"\r\nretry-after: 1\r\n" in await two.alike(get(ANN, reader, ID), taken=False)
        two.site.clock.sleep(0.5)
        await two.alike(get(ANN, reader, ID), taken=True)
        assert (two.counted("200"), two.counted("429")) == (4, 2)


async def test_the_last_use_of_a_token_is_noted(two: Two, reader: Headers) -> None:
    two.site.clock.sleep(1)
    await two.alike(get(ANN, reader, ID), taken=True)
    await two.offhand.service.callers.note_uses(two.site.database)
    assert await two.site.query("select last_used_at from tokens") == [(two.site.clock.now,)]


async def test_every_answer_is_counted_once_under_its_route(two: Two, reader: Headers) -> None:
    assert two.counted("200") == 1
    for number in range(3):
        await two.alike(get(ANN, reader, ID), taken=True)
        assert two.counted("200") == 2 + number
    await two.alike(get(ANN, reader, ID, "If-None-Match: *"), taken=True)
    assert (two.counted("200"), two.counted("304")) == (4, 1)


async def test_where_traces_are_sent_every_request_goes_the_ordinary_way(settings: Settings) -> None:
    assert take_of(build(settings, tracer=Tracer(list[Span]().append))) is None
    apart = build(replace(settings, admin_port=1))
    assert take_of(apart) is None
    assert take_of(desk_of(apart) or apart) is not None


# A connection.


async def test_requests_in_one_piece_are_answered_in_their_order(two: Two, reader: Headers) -> None:
    body = b'[{"email": "ann@example.com", "reason": "unsub", "timestamp": 1700000000}]'
    signed = {"X-Kahuna-Signature": signature(body, "email"), "Content-Length": str(len(body))}
    stop = get("/webhooks/default/email", signed, method="POST") + body
    stream, writer = await two.offhand.connect()
    asked = get(ANN, reader)
    writer.write(asked + stop + asked + asked[:30])
    told = [await answer_from(stream) for _ in range(3)]
    writer.write(asked[30:])
    told.append(await answer_from(stream))
    writer.close()
    assert [b'"suppressed":true' in one for one in told] == [False, False, True, True]
    assert b'"state":"applied"' in told[1]
    # Only one that has the connection for itself is offered: what comes behind it waits its turn.
    assert two.offhand.took[-2:] == [True, True]


class Held:
    """A shared lookup that answers when it is let, or fails; counts how often it began."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.gate = asyncio.Event()
        self.error = error
        self.begun = 0

    async def __call__(self, subjects: Sequence[Subject]) -> list[list[CauseRow]]:
        self.begun += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return [[] for _ in subjects]


@asynccontextmanager
async def held(two: Two, held: Held, waiting: int = 8) -> AsyncIterator[Door]:
    """A port at which questions wait for a lookup of ours."""
    service = two.offhand.service
    lookups = Together(held, at_once=1, most=8, waiting=waiting)
    application = build(two.site.settings, two.site.clock)
    async with served(application, Offhand(replace(service, lookups=lookups)).take) as door:
        yield door


async def waits(door: Door, asked: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The connection of a question that has been taken, and waits."""
    count = len(door.took)
    stream, writer = await door.connect()
    writer.write(asked)
    await until(lambda: len(door.took) > count)
    assert door.took[-1]
    return stream, writer


async def test_one_who_goes_while_it_waits_costs_the_others_nothing(two: Two, reader: Headers) -> None:
    lookup, before = Held(), two.counted("200")
    async with held(two, lookup) as door:
        _, gone = await waits(door, get(ANN, reader))
        deaf, half = await waits(door, get(ANN, reader))
        stream, writer = await waits(door, get(ANN, reader))
        gone.transport.abort()
        half.write_eof()
        assert await deaf.read() == b""
        await until(lambda: len(door.server.server_state.connections) == 1)
        lookup.gate.set()
        assert (await answer_from(stream)).startswith(b"HTTP/1.1 200")
        writer.close()
        half.close()
    assert two.counted("200") == before + 3


async def test_at_the_end_what_waits_is_answered_first(two: Two, reader: Headers) -> None:
    lookup = Held()
    async with held(two, lookup) as door:
        stream, writer = await waits(door, get(ANN, reader))
        ending = asyncio.create_task(door.server.shutdown())
        await asyncio.sleep(0.1)
        assert not ending.done()
        lookup.gate.set()
        told = await stream.read()
        assert told.startswith(b"HTTP/1.1 200")
        assert b"\r\nconnection: close\r\n" in told
        await ending
        writer.close()


async def test_when_too_many_wait_the_next_is_told_on_the_ordinary_way(two: Two, reader: Headers) -> None:
    lookup = Held()
    async with held(two, lookup, waiting=1) as door:
        first, one = await waits(door, get(ANN, reader))
        await until(lambda: lookup.begun == 1)
        second, other = await waits(door, get(ANN, reader))
        # This application's own lookup has room, and answers.
        assert (await door.ask(get(ANN, reader))).startswith(b"HTTP/1.1 200")
        assert door.took == [True, True, False]
        lookup.gate.set()
        for stream in (first, second):
            assert (await answer_from(stream)).startswith(b"HTTP/1.1 200")
        one.close()
        other.close()


async def test_a_lookup_that_fails_is_the_same_problem(two: Two, reader: Headers) -> None:
    for harm, status in (("rename to away", 503), ("alter column address type bytea using address::bytea", 500)):
        await two.site.execute(f"alter table suppressions {harm}")
        with capture_logs() as lines:
            told = await two.alike(get(ANN, reader, ID), taken=True)
        assert told.startswith(b"HTTP/1.1 %d" % status)
        failed = [line for line in lines if line["event"] == "request.failed"]
        assert len(failed) == (2 if status == 500 else 0)
        assert all(line["route"] == "/v1/suppressions/{channel}/{address:path}" for line in failed)
        assert two.counted(str(status)) == 1
        if status == 503:
            await two.site.execute("alter table away rename to suppressions")


async def test_a_fault_is_a_problem_for_each_that_shared_it(two: Two, reader: Headers) -> None:
    for error in (ValueError(), asyncio.CancelledError()):
        lookup = Held(error)
        async with held(two, lookup) as door:
            waiting = [await waits(door, get(ANN, reader, ID)) for _ in range(2)]
            lookup.gate.set()
            for stream, writer in waiting:
                told = await answer_from(stream)
                assert told.startswith(b"HTTP/1.1 500")
                assert b"x-request-id: trace-1" in told
                writer.close()


@contextmanager
def nothing_logged() -> Iterator[None]:
    """As where standard error goes to a full disk."""

    def refuse(_logger: Any, _method: str, _event: Any) -> Any:
        raise OSError

    before = structlog.get_config()["processors"]
    structlog.configure(processors=[refuse])
    try:
        yield
    finally:
        structlog.configure(processors=before)


async def test_a_fault_that_cannot_be_logged_is_told_all_the_same(two: Two, reader: Headers) -> None:
    lookup, reported = Held(ValueError()), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(type(context["exception"])))
    async with held(two, lookup) as door:
        waiting = [await waits(door, get(ANN, reader, ID)) for _ in range(2)]
        with nothing_logged():
            lookup.gate.set()
            told = [await answer_from(stream) for stream, _ in waiting]
        assert [one[:12] for one in told] == [b"HTTP/1.1 500"] * 2
        assert reported == [OSError] * 2
        for _, writer in waiting:
            writer.close()
