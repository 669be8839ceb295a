"""The check of many: as one document and as lines, packed or not, and what becomes of callers who go away."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from service.app import build
from service.settings import Settings
from service.web.checking import MOST_ADDRESSES
from tests.conftest import namespace
from tests.web.harness import Endless, Headers, Site, address_path, is_problem, opened, with_state

CHECK = "/v1/suppressions/check"
LINES = f"{CHECK}?channel=email"
TEXT = {"Content-Type": "text/plain"}
JSON = {"Content-Type": "application/json"}
ANN = {"address": " Ann@Example.COM", "suppressed": True, "reasons": ["unsubscribe"]}
BOB = {"address": "bob@example.com", "suppressed": False, "reasons": []}
NOBODY = {"address": "nobody", "error": "not-an-email-address"}


@pytest.fixture
async def site(settings: Settings) -> AsyncIterator[Site]:
    async with opened(settings) as site:
        await site.deliver("email", [{"reason": "unsub", "email": "ann@example.com", "timestamp": 1_700_000_000}])
        yield site


@pytest.fixture
async def reader(site: Site) -> Headers:
    return await site.token("read")


def asked(*addresses: str, **more: object) -> dict[str, object]:
    return {"channel": "email", "addresses": list(addresses)} | more


def told(content: bytes) -> list[Any]:
    """The lines of an answer."""
    return [msgspec.json.decode(line) for line in content.splitlines()]


# One document.


async def test_each_address_is_answered_in_its_place(site: Site, reader: Headers) -> None:
    document = asked(" Ann@Example.COM", "bob@example.com", "nobody", " Ann@Example.COM", "nobody")
    answer = await site.client.post(CHECK, headers=reader, json=document)
    assert answer.status_code == 200
    assert answer.json() == {"results": [ANN, BOB, NOBODY, ANN, NOBODY]}


async def test_the_purpose_decides_what_counts(site: Site, reader: Headers) -> None:
    answer = await site.client.post(CHECK, headers=reader, json=asked("ann@example.com", purpose="transactional"))
    assert answer.json()["results"] == [{"address": "ann@example.com", "suppressed": False, "reasons": []}]


async def test_the_check_says_what_the_status_says(site: Site, reader: Headers) -> None:
    for address in ("ann@example.com", "bob@example.com"):
        status = (await site.client.get(address_path("email", address), headers=reader)).json()
        [found] = (await site.client.post(CHECK, headers=reader, json=asked(address))).json()["results"]
        assert found["suppressed"] == status["suppressed"]
        assert found["reasons"] == [cause["reason"] for cause in status["causes"] if cause["active"]]


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"channel": "email"}, "addresses"),
        ({"channel": "email", "addresses": []}, "length >= 1"),
        ({"channel": "fax", "addresses": ["1"]}, "channel"),
        ({"addresses": ["a@b"]}, "channel"),
        (asked("a@b", purpose="fun"), "purpose"),
        (asked("a@b", porpose="marketing"), "porpose"),
        ({"channel": "email", "addresses": ["a@b", 1]}, "addresses"),
        (
            asked(*["a@b"] * (MOST_ADDRESSES + 1)),
            "over 100000 entries. Any number of addresses, one a line, goes as Content-Type: text/plain",
        ),
    ],
)
async def test_a_question_that_cannot_be_answered_is_refused(
    site: Site, reader: Headers, document: object, says: str
) -> None:
    answer = await site.client.post(CHECK, headers=reader, json=document)
    assert is_problem(answer, 422, "invalid-body")
    assert says in answer.json()["detail"]


@pytest.mark.parametrize("kind", [{}, {"Content-Type": "application/x-www-form-urlencoded"}])
async def test_lines_that_are_not_called_so_are_told_how_to_come(
    site: Site, reader: Headers, kind: dict[str, str]
) -> None:
    answer = await site.client.post(CHECK, headers={**reader, **kind}, content=b"ann@example.com\n")
    assert is_problem(answer, 400, "not-json")
    assert "as Content-Type: text/plain, with ?channel=" in answer.json()["detail"]


@pytest.mark.parametrize("parameter", ["channel=email", "purpose=marketing"])
async def test_a_document_speaks_for_itself(site: Site, reader: Headers, parameter: str) -> None:
    answer = await site.client.post(f"{CHECK}?{parameter}", headers=reader, json=asked("a@b"))
    assert is_problem(answer, 422, "said-twice")


async def test_a_hundred_thousand_are_answered_at_once(site: Site, reader: Headers) -> None:
    addresses = [f"u{n}@example.com" for n in range(MOST_ADDRESSES - 1)] + ["ann@example.com"]
    packed = gzip.compress(msgspec.json.encode(asked(*addresses)), 1)
    answer = await site.client.post(CHECK, headers={**reader, "Content-Encoding": "gzip"}, content=packed)
    found = answer.json()["results"]
    assert [one["address"] for one in found] == addresses
    assert [one["suppressed"] for one in found].index(True) == MOST_ADDRESSES - 1


@pytest.mark.parametrize(
    ("accepts", "packs"),
    [("gzip", True), ("br, gzip;q=0.5", True), ("*", True), ("identity", False), ("gzip;q=0", False), ("", False)],
)
async def test_an_answer_is_packed_for_those_who_can_unpack_it(
    site: Site, reader: Headers, accepts: str, packs: bool
) -> None:
    addresses = [f"u{n}@example.com" for n in range(100)]
    for path, kind, content in (
        (CHECK, "application/json", msgspec.json.encode(asked(*addresses))),
        (LINES, "text/plain", "\n".join(addresses).encode()),
    ):
        headers = {**reader, "Content-Type": kind, "Accept-Encoding": accepts}
        answer = await site.client.post(path, headers=headers, content=content)
        assert answer.headers.get("Content-Encoding") == ("gzip" if packs else None)
        assert answer.headers["Vary"] == "Accept-Encoding"
        found = told(answer.content) if kind == "text/plain" else answer.json()["results"]
        assert [one["address"] for one in found] == addresses


async def test_a_bomb_is_refused(site: Site, reader: Headers) -> None:
    bomb = gzip.compress(b" " * 17 * 1024 * 1024)
    answer = await site.client.post(CHECK, headers={**reader, "Content-Encoding": "gzip"}, content=bomb)
    assert is_problem(answer, 413, "body-too-large")


# Lines.


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
async def test_each_line_is_answered_by_one(
    site: Site, reader: Headers, end: str, pack: Callable[[bytes], bytes]
) -> None:
    content = pack(end.join([" Ann@Example.COM", "bob@example.com", "", "nobody"]).encode())
    coding = {"Content-Encoding": "gzip"} if pack is gzip.compress else {}
    answer = await site.client.post(LINES, headers={**reader, **TEXT, **coding}, content=content)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert told(answer.content) == [ANN, BOB, {"address": "", "error": "not-an-email-address"}, NOBODY]


async def test_no_lines_are_no_answers(site: Site, reader: Headers) -> None:
    answer = await site.client.post(LINES, headers={**reader, **TEXT}, content=b"")
    assert (answer.status_code, answer.content) == (200, b"")


async def test_a_line_that_is_no_text_spoils_no_other(site: Site, reader: Headers) -> None:
    content = b"bob@example.com\n\xffann@example.com\r\n\xef\xbf\xbd@example.com\nnobody"
    answer = await site.client.post(LINES, headers={**reader, **TEXT}, content=content)
    strange = {"address": "\ufffdann@example.com", "error": "not-utf8"}
    replaced = {"address": "\ufffd@example.com", "suppressed": False, "reasons": []}
    assert told(answer.content) == [BOB, strange, replaced, NOBODY]


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("\\ud800", "\ufffd"),
        ("\\udc00x", "\ufffdx"),
        ("x\\ud83d", "x\ufffd"),
        ("\\ud83d\\ude00\\ud83d", "\U0001f600\ufffd"),
    ],
    ids=["the first", "the second", "at the end", "behind a whole one"],
)
async def test_half_of_a_pair_in_a_json_body_spoils_no_other(
    site: Site, reader: Headers, sent: str, shown: str
) -> None:
    body = f'{{"channel": "email", "addresses": ["bob@example.com", "{sent}@example.com", "nobody"]}}'
    answer = await site.client.post(CHECK, headers={**reader, **JSON}, content=body)
    assert answer.status_code == 200
    assert answer.json()["results"] == [BOB, {"address": f"{shown}@example.com", "error": "not-utf8"}, NOBODY]


@pytest.mark.parametrize(
    "body",
    [
        '{"channel": "email", "addresses": ["\\ud800@example.com"',
        '{"channel": "\\ud800", "addresses": ["bob@example.com"]}',
        '{"channel": "email", "addresses": ["\\ud800@example.com"], "more": 1}',
        '{"channel": "email", "addresses": [NaN]}',
    ],
    ids=["cut off", "in another place", "another member", "no half"],
)
async def test_a_body_that_is_wrong_in_another_way_is_refused_whole(site: Site, reader: Headers, body: str) -> None:
    answer = await site.client.post(CHECK, headers={**reader, **JSON}, content=body)
    assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (400, "not-json")


async def test_lines_of_numbers_and_of_a_purpose(site: Site, reader: Headers) -> None:
    answer = await site.client.post(f"{CHECK}?channel=sms", headers={**reader, **TEXT}, content=b"+1 555 010 0001")
    assert told(answer.content) == [{"address": "+1 555 010 0001", "suppressed": False, "reasons": []}]
    answer = await site.client.post(
        f"{LINES}&purpose=transactional", headers={**reader, **TEXT}, content=b"ann@example.com"
    )
    assert [one["suppressed"] for one in told(answer.content)] == [False]


@pytest.mark.parametrize(
    ("path", "headers", "status", "slug"),
    [
        (CHECK, {}, 422, "channel-required"),
        (f"{CHECK}?channel=fax", {}, 422, "invalid-parameter"),
        (f"{LINES}&prupose=marketing", {}, 400, "unknown-parameter"),
        (f"{LINES}&namespace=nowhere", {}, 403, "other-namespace"),
        (LINES, {"Content-Encoding": "br"}, 415, "unsupported-encoding"),
        (LINES, {"Content-Encoding": "gzip"}, 400, "not-gzip"),
    ],
)
async def test_what_is_wrong_with_lines_is_said_before_any_answer(
    site: Site, reader: Headers, path: str, headers: dict[str, str], status: int, slug: str
) -> None:
    answer = await site.client.post(path, headers={**reader, **TEXT, **headers}, content=b"ann@example.com")
    assert is_problem(answer, status, slug)


async def test_an_endless_line_is_refused(site: Site, reader: Headers) -> None:
    endless = Endless(b"x" * 1000)
    answer = await site.client.post(LINES, headers={**reader, **TEXT}, content=endless)
    assert is_problem(answer, 400, "line-too-long")
    assert endless.read < 1_000_000


async def test_a_caller_who_sends_nothing_is_not_waited_for_long(settings: Settings) -> None:
    async with opened(replace(settings, body_timeout_seconds=0.05)) as site:
        reader = await site.token("read")

        async def silence() -> AsyncIterator[bytes]:
            yield b"half a li"
            await asyncio.sleep(60)

        answer = await site.client.post(LINES, headers={**reader, **TEXT}, content=silence())
        assert is_problem(answer, 408, "body-too-slow")


async def test_without_the_database_lines_get_a_problem(settings: Settings) -> None:
    async with opened(settings) as site:
        reader = await site.token("read")
        await site.client.get(address_path("email", "a@b"), headers=reader)
        async with site.broken("suppressions"):
            answer = await site.client.post(LINES, headers={**reader, **TEXT}, content=b"ann@example.com")
        assert is_problem(answer, 503, "storage-outdated")


# While lines are still sent: the application is spoken to as a server does.


class Conversation:
    """A caller who sends parts when told to, and may go away or not read."""

    def __init__(self, site: Site, token: Headers) -> None:
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.reads = asyncio.Event()
        self.reads.set()
        self.taken = 0
        self.counted: dict[str, float] = {}
        self._site = site
        self._headers = [(b"authorization", token["Authorization"].encode()), (b"content-type", b"text/plain")]

    def say(self, content: bytes, *, more: bool = True) -> None:
        self.sent.put_nowait({"type": "http.request", "body": content, "more_body": more})

    def go_away(self) -> None:
        self.sent.put_nowait({"type": "http.disconnect"})

    async def hear(self) -> list[Any]:
        """The lines of the next part of the answer."""
        message = await self.answers.get()
        while message["type"] == "http.response.start" or (not message["body"] and message["more_body"]):
            message = await self.answers.get()
        return told(message["body"])

    async def run(self) -> None:
        """The request, until the application is done with it."""
        application = build(self._site.settings, self._site.clock)
        async with application.router.lifespan_context(application) as state:
            scope = {
                "type": "http",
                "asgi": {"version": "3.0"},
                "http_version": "1.1",
                "method": "POST",
                "path": CHECK,
                "raw_path": CHECK.encode(),
                "query_string": b"channel=email",
                "headers": self._headers,
            }
            await with_state(application, dict(state or {}))(scope, self._receive, self._send)
            figures = application.state.desk.service.metrics.registry
            told = {status: {"route": CHECK, "status": status} for status in ("200", "204", "500")}
            self.counted = {
                status: figures.get_sample_value("kahuna_sync_request_seconds_count", labels) or 0
                for status, labels in told.items()
            }

    async def _receive(self) -> dict[str, Any]:
        message = await self.sent.get()
        self.taken += len(message.get("body", b""))
        return message

    async def _send(self, message: dict[str, Any]) -> None:
        await self.reads.wait()
        self.answers.put_nowait(message)


async def test_lines_are_answered_before_all_were_sent(site: Site, reader: Headers) -> None:
    caller = Conversation(site, reader)
    running = asyncio.create_task(caller.run())
    for address in ("a@example.com", "b@example.com"):
        caller.say(address.encode() + b"\n")
        assert [one["address"] for one in await caller.hear()] == [address]
    caller.say(b"", more=False)
    await running


async def test_a_caller_who_goes_away_ends_the_work(site: Site, reader: Headers) -> None:
    caller = Conversation(site, reader)
    running = asyncio.create_task(caller.run())
    caller.say(b"a@example.com\n")
    await caller.hear()
    caller.go_away()
    await running
    assert caller.answers.empty()
    assert caller.counted == {"200": 1, "204": 0, "500": 0}


async def test_who_goes_away_before_the_answer_is_no_fault_of_ours(site: Site, reader: Headers) -> None:
    caller = Conversation(site, reader)
    caller.go_away()
    await caller.run()
    assert caller.counted == {"200": 0, "204": 1, "500": 0}


async def test_a_caller_who_does_not_read_is_not_read_from(site: Site, reader: Headers) -> None:
    """What cannot be sent on is not taken in: the memory that a stream takes has a bound."""
    caller = Conversation(site, reader)
    caller.reads.clear()
    running = asyncio.create_task(caller.run())
    for _ in range(200):
        caller.say(b"someone@example.com\n" * 1000)
    for _ in range(100):
        await asyncio.sleep(0.01)
        if caller.taken >= 400_000:
            break
    await asyncio.sleep(0.05)
    assert caller.taken < 1_500_000
    caller.go_away()
    caller.reads.set()
    running.cancel()
    await asyncio.wait([running])


async def test_a_caller_who_never_reads_is_cut_off(settings: Settings) -> None:
    async with opened(replace(settings, body_timeout_seconds=0.05)) as site:
        caller = Conversation(site, await site.token("read"))
        caller.reads.clear()
        caller.say(b"a@example.com\n", more=False)
        await caller.run()
        assert caller.answers.empty()


async def test_what_fails_on_the_way_is_the_last_line_of_an_answer_without_end(site: Site, reader: Headers) -> None:
    caller = Conversation(site, reader)
    running = asyncio.create_task(caller.run())
    caller.say(b"a@example.com\n")
    await caller.hear()
    async with site.broken("suppressions"):
        caller.say(b"b@example.com\n")
        assert (await caller.hear())[0]["type"] == "storage-outdated"
        await running
    assert caller.answers.empty()


async def test_a_token_of_one_namespace_checks_in_that_alone(settings: Settings) -> None:
    async with opened(replace(settings, namespaces=(namespace("default"), namespace("other")))) as site:
        await site.deliver("email", [{"reason": "unsub", "email": "ann@example.com", "timestamp": 1_700_000_000}])
        other = await site.token("read", namespace="other")
        answer = await site.client.post(CHECK, headers=other, json=asked("ann@example.com"))
        assert not answer.json()["results"][0]["suppressed"]
