"""What is repeated and what never is, how long is waited, how much at once, and what nobody is told."""

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import kahuna
from service.kahuna import KahunaClient, Retry
from service.kahuna.parts import Cut
from service.settings import Secret
from tests.kahuna.calls import ADDRESS, EVERY, MESSAGE, OPT_IN, SAFE, TIMED, UNSAFE, Calling
from tests.kahuna.listening import API_KEY, SECRET_KEY, Clock, Half, Seen, listening, raw, said

CUT = None
BUSY = raw(b"", 503)


HALF = Half(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{")


@pytest.mark.parametrize("api", UNSAFE)
@pytest.mark.parametrize("answer", [CUT, HALF, BUSY, raw(b"", 500), raw(b"", 408)])
async def test_what_may_have_worked_is_not_sent_twice(api: str, answer: bytes | None) -> None:
    async with listening(lambda _: answer) as vendor, vendor.client() as client:
        with pytest.raises(kahuna.Ambiguous) as caught:
            await EVERY[api](client)
    assert caught.value.api == api
    assert len(vendor.seen) == 1


@pytest.mark.parametrize("api", UNSAFE)
async def test_silence_is_ambiguous_too(api: str) -> None:
    gate = Gate({})
    credentials = kahuna.Credentials("http://kahuna.test", "p", Secret(SECRET_KEY), Secret(API_KEY))
    async with KahunaClient(credentials, transport=gate, timeouts=kahuna.Timeouts(deadline=0.01)) as client:
        with pytest.raises(kahuna.Ambiguous, match="deadline"):
            # So that a deadline that comes much too late fails as well.
            await asyncio.wait_for(EVERY[api](client), 5)
    assert gate.most == 1


@pytest.mark.parametrize("api", SAFE)
async def test_what_may_be_repeated_is(api: str) -> None:
    clock = Clock()
    async with listening(lambda _: BUSY) as vendor, vendor.client(time=clock, retry=Retry(3, 1.0, 60.0)) as client:
        with pytest.raises(kahuna.Unavailable):
            await EVERY[api](client)
    assert len(vendor.seen) == 3
    assert len({seen.body for seen in vendor.seen}) == 1


@pytest.mark.parametrize("api", EVERY)
@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 409, 413, 422])
async def test_what_no_wait_can_mend_is_not_repeated(api: str, status: int) -> None:
    async with listening(lambda _: raw(b"", status)) as vendor, vendor.client() as client:
        with pytest.raises(kahuna.KahunaError):
            await EVERY[api](client)
    assert len(vendor.seen) == 1


@pytest.mark.parametrize("api", EVERY)
async def test_what_surely_did_nothing_is_repeated_everywhere(api: str) -> None:
    async with listening(lambda _: raw(b"", 429)) as vendor, vendor.client(retry=Retry(3, 1.0, 60.0)) as client:
        with pytest.raises(kahuna.RateLimited):
            await EVERY[api](client)
    assert len(vendor.seen) == 3


@pytest.mark.parametrize("api", EVERY)
async def test_without_a_connection_it_is_tried_again(api: str) -> None:
    async with listening(lambda _: None) as vendor:
        pass
    calls: list[kahuna.Call] = []
    async with vendor.client(retry=Retry(3, 1.0, 60.0), observe=calls.append) as client:
        with pytest.raises(kahuna.Unreachable):
            await EVERY[api](client)
    assert [(call.outcome, call.attempt) for call in calls] == [("unreachable", n) for n in (1, 2, 3)]


async def test_an_opt_in_without_a_time_is_not_repeated() -> None:
    async with listening(lambda _: BUSY) as vendor, vendor.client() as client:
        with pytest.raises(kahuna.Ambiguous):
            await client.sms_sync([TIMED, OPT_IN])
    assert len(vendor.seen) == 1


async def test_no_retry_is_one_request() -> None:
    async with listening(lambda _: BUSY) as vendor, vendor.client(retry=Retry.none()) as client:
        with pytest.raises(kahuna.Unavailable):
            await client.user_info("email", ADDRESS)
    assert len(vendor.seen) == 1


# Waiting.


async def test_waits_double_and_hear_kahuna() -> None:
    answers = [BUSY, raw(b"", 429, retry_after="7"), raw(b"", 503, retry_after="10"), BUSY, said({"success": False})]
    clock = Clock()
    retry = Retry(attempts=9, first=2.0, longest=10.0)
    async with listening(lambda _: answers.pop(0)) as vendor, vendor.client(time=clock, retry=retry) as client:
        with pytest.raises(kahuna.Refused):
            await client.user_info("email", ADDRESS)
    assert clock.slept == [2.0, 7.0, 10.0, 10.0]


@given(st.integers(1, 10_000), st.none() | st.floats(0), st.floats(0, 1, exclude_max=True))
def test_no_wait_is_over_the_longest_or_under_what_was_asked(attempt: int, asked: float | None, jitter: float) -> None:
    wait = Retry(attempts=10_001, first=0.5, longest=30.0).wait(attempt, asked, jitter)
    if wait is None:
        assert (asked or 0) > 30.0
    else:
        assert 0 < wait <= 30.0
        assert wait >= (asked or 0)


def test_jitter_takes_up_to_half() -> None:
    assert [Retry(first=4.0).wait(1, None, jitter) for jitter in (0.0, 0.5)] == [4.0, 3.0]


async def test_a_repeated_job_status_keeps_its_pace() -> None:
    answers = [BUSY, said({"status": "running"})]
    clock = Clock()
    async with listening(lambda _: answers.pop(0)) as vendor, vendor.client(time=clock) as client:
        await client.job_status("7")
    assert sum(clock.slept) == 30.0


# Numbers.


class Gate(httpx.AsyncBaseTransport):
    """A transport that holds requests until it is opened, and counts them."""

    def __init__(self, document: Any) -> None:
        self.open = asyncio.Event()
        self.inside = self.most = 0
        self.document = document

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.inside += 1
        self.most = max(self.most, self.inside)
        await self.open.wait()
        self.inside -= 1
        return httpx.Response(200, json=self.document)


@pytest.mark.parametrize(
    ("api", "concurrency", "most"),
    [("adaptive_campaign", 50, 10), ("flex", 50, 10), ("user_info", 50, 25), ("user_info", 3, 3), ("flex", 3, 3)],
)
async def test_so_many_are_under_way_at_most(api: str, concurrency: int, most: int) -> None:
    gate = Gate({"success": True, "job_id": "1"})
    credentials = kahuna.Credentials("http://kahuna.test", "p", Secret(SECRET_KEY), Secret(API_KEY))
    async with KahunaClient(credentials, transport=gate, concurrency=concurrency) as client:
        calls = [asyncio.create_task(_started(EVERY[api], client)) for _ in range(25)]
        for _ in range(200):
            await asyncio.sleep(0)
        assert gate.inside == most
        gate.open.set()
        await asyncio.gather(*calls)
    assert gate.most == most


async def _started(call: Calling, client: KahunaClient) -> Any:
    return await call(client)


async def test_an_observer_is_told_of_every_request() -> None:
    answers = [BUSY, said({"accepted": 1, "rejected": 0})]
    calls: list[kahuna.Call] = []
    async with listening(lambda _: answers.pop(0)) as vendor, vendor.client(observe=calls.append) as client:
        await client.email_sync([kahuna.EmailSyncEntry("unsub", ADDRESS)])
    assert [(call.outcome, call.status, call.attempt) for call in calls] == [("unavailable", 503, 1), ("ok", 200, 2)]
    assert {call.bytes_out for call in calls} == {len(seen.body) for seen in vendor.seen}
    assert ADDRESS not in repr(calls)


async def test_a_cancelled_request_is_observed_as_that() -> None:
    calls: list[kahuna.Call] = []
    gate = Gate({})
    credentials = kahuna.Credentials("http://kahuna.test", "p", Secret(SECRET_KEY), Secret(API_KEY))
    async with KahunaClient(credentials, transport=gate, observe=calls.append) as client:
        call = asyncio.create_task(client.user_info("email", ADDRESS))
        for _ in range(200):
            await asyncio.sleep(0)
        assert gate.inside == 1
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    assert call.cancelled()
    assert [(one.api, one.outcome, one.status) for one in calls] == [("user_info", "cancelled", None)]


async def test_an_answer_that_is_too_long_is_not_read() -> None:
    async with listening(lambda _: raw(b" " * 2_000)) as vendor, vendor.client(answer_limit=1_000) as client:
        with pytest.raises(kahuna.UnreadableAnswer, match="too long"):
            await client.user_info("email", ADDRESS)
        vendor.answering = lambda _: raw(b" " * 2_000, 401)
        with pytest.raises(kahuna.CredentialsRefused):
            await client.user_info("email", ADDRESS)


# What nobody is told.


@pytest.mark.parametrize("api", EVERY)
@pytest.mark.parametrize("status", [200, 400, 401, 409, 500, None])
async def test_neither_key_nor_address_is_in_an_error(
    api: str, status: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told = {"success": False, "error": f"{ADDRESS} {API_KEY}", "error_code": 500}
    answer = None if status is None else said(told, status)
    async with listening(lambda _: answer) as vendor, vendor.client(retry=kahuna.NO_RETRY) as client:
        try:
            shown = repr(await EVERY[api](client))
        except kahuna.KahunaError as error:
            shown = "".join(traceback.format_exception(error)) + repr(error)
        shown += repr(client) + repr(vars(client)) + caplog.text
    assert [secret for secret in (SECRET_KEY, API_KEY, ADDRESS) if secret in shown] == []


async def test_what_kahuna_wrote_is_kept_apart() -> None:
    told = {"success": False, "error": "No", "error_detail": ADDRESS, "error_code": 400}
    async with listening(lambda _: said(told, 400)) as vendor, vendor.client() as client:
        with pytest.raises(kahuna.BadRequest) as caught:
            await client.user_info("email", ADDRESS)
    assert caught.value.detail == f"No: {ADDRESS}"


REQUESTS = [
    kahuna.ServerRequest(dev_id=ADDRESS, events=[kahuna.ServerEvent(ADDRESS)]),
    kahuna.UserAttributes({"email": ADDRESS}, {"email": ADDRESS}),
    kahuna.Recipient([ADDRESS]),
    MESSAGE,
    kahuna.FlexEvent(ADDRESS),
    kahuna.CampaignQuery(credentials=[{"email": ADDRESS}]),
    kahuna.EmailRecord(email=ADDRESS, credentials=(f"email:{ADDRESS}",), extra={"more": ADDRESS}),
    kahuna.Outcome(success=False, error=ADDRESS),
    kahuna.UserInfoAnswer(user=kahuna.UserProfile(credentials={"email": ADDRESS})),
    kahuna.SyncAnswer(0, 1, [ADDRESS]),
]


@pytest.mark.parametrize("one", REQUESTS)
def test_a_structure_shows_no_address(one: Any) -> None:
    assert ADDRESS not in repr(one)


# A million.


async def test_a_million_entries_go_out_whole_though_every_fifth_request_fails() -> None:
    requests, taken, sizes, firsts = 0, 0, [], []

    def answer(seen: Seen) -> bytes:
        nonlocal requests, taken
        requests += 1
        if requests % 5 == 0:
            return BUSY
        count = seen.body.count(b'"reason"')
        taken += count
        sizes.append((len(seen.body), count))
        firsts.append(seen.body[:120])
        return said({"accepted": count, "rejected": 0})

    local = "x" * 60
    million = (kahuna.EmailSyncEntry("unsub", f"{local}{n}@example.com", 1500000000) for n in range(1_000_000))
    async with listening(answer, keep=False) as vendor, vendor.client() as client:
        answered = await client.email_sync(million)
    assert (answered.accepted, answered.rejected, taken) == (1_000_000, 0, 1_000_000)
    assert requests == len(sizes) + len(sizes) // 4
    assert all(size < 10_000_000 and count <= 100_000 for size, count in sizes)
    # As few requests as the limit allows, each beginning where the one before it ended.
    assert min(size for size, _ in sizes[:-1]) > 10_000_000 - 200
    starts = [sum(count for _, count in sizes[:n]) for n in range(len(sizes))]
    assert all(f"{local}{start}@".encode() in first for start, first in zip(starts, firsts, strict=True))


async def test_entries_may_come_one_by_one_and_no_more_of_them_than_a_request_needs() -> None:
    produced, taken, ahead = 0, 0, []

    async def entries() -> AsyncIterator[kahuna.EmailSyncEntry]:
        nonlocal produced
        for produced in range(1, 250_001):  # noqa: B007 - read by the answers
            yield kahuna.EmailSyncEntry("unsub", ADDRESS)

    def answer(seen: Seen) -> bytes:
        nonlocal taken
        count = seen.body.count(b'"reason"')
        taken += count
        ahead.append(produced - taken)
        return said({"accepted": count, "rejected": 0})

    async with listening(answer, keep=False) as vendor, vendor.client() as client:
        assert (await client.email_sync(entries())).accepted == 250_000
    assert ahead == [1, 1, 0]


async def test_a_call_in_parts_that_fails_says_how_far_it_got() -> None:
    answers = [said({"accepted": 99_999, "rejected": 1}), raw(b"", 401)]
    small = (kahuna.SmsSyncEntry(str(n)) for n in range(150_000))
    async with listening(lambda _: answers.pop(0), keep=True) as vendor, vendor.client() as client:
        with pytest.raises(kahuna.CredentialsRefused) as caught:
            await client.sms_sync(small, request_id="abc")
    done = caught.value.done
    assert done is not None
    assert (done.index, done.answer) == (100_000, kahuna.SyncAnswer(99_999, 1))
    assert [seen.headers["x-request-id"] for seen in vendor.seen] == ["abc", "abc-1"]


PUSHES = [kahuna.PushMessage({"username": str(n)}, "Hi") for n in range(250)]
YES = {"success": True}


@pytest.mark.parametrize(
    ("second", "may"),
    [(said([YES] * 99), True), (raw(b"<html>"), True), (BUSY, True), (HALF, True), (raw(b"", 401), False)],
)
async def test_an_error_says_whether_the_pushes_behind_done_may_have_gone_out(second: bytes, may: bool) -> None:
    answers = [said([YES] * 100), second]
    async with listening(lambda _: answers.pop(0)) as vendor, vendor.client() as client:
        with pytest.raises(kahuna.KahunaError) as caught:
            await client.push(PUSHES)
    assert caught.value.done is not None
    assert (caught.value.done.index, len(vendor.seen)) == (100, 2)
    assert caught.value.may_have_worked is may


async def test_who_gives_pushes_and_fails_knows_how_many_went_out() -> None:
    async def messages() -> AsyncIterator[kahuna.PushMessage]:
        for message in PUSHES[:220]:
            yield message
        raise LookupError

    told: list[int] = []
    async with listening(lambda _: said([YES] * 100)) as vendor, vendor.client() as client:
        with pytest.raises(LookupError):
            await client.push(messages(), progress=told.append)
    assert told == [100, 200]


@pytest.mark.parametrize("api", ["email_sync", "sms_sync", "user_attributes"])
async def test_progress_is_told_after_each_request(api: str) -> None:
    def answer(seen: Seen) -> bytes:
        body = seen.json()
        count = len(body if isinstance(body, list) else body["user_attributes_array"])
        return said({"accepted": count, "rejected": 0} if isinstance(body, list) else [YES] * count)

    calls: dict[str, Any] = {
        "email_sync": lambda k: k.email_sync([kahuna.EmailSyncEntry("unsub", "a")] * 100_010, progress=told.append),
        "sms_sync": lambda k: k.sms_sync([TIMED] * 100_010, progress=told.append),
        "user_attributes": lambda k: k.user_attributes([kahuna.UserAttributes({}, {})] * 110, progress=told.append),
    }
    told: list[int] = []
    async with listening(answer) as vendor, vendor.client() as client:
        await calls[api](client)
    assert told == ([100, 110] if api == "user_attributes" else [100_000, 100_010])


async def test_items_that_are_all_there_let_others_work() -> None:
    done = asyncio.Event()
    turns = 0

    async def others() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(others())
    parts = Cut[kahuna.EmailSyncEntry](100_000).parts([kahuna.EmailSyncEntry("unsub", "a")] * 50_000)
    assert [part.count async for part in parts] == [50_000]
    done.set()
    await other
    assert turns >= 50
