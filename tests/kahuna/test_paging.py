"""Pages: nothing lost, nothing twice, nothing kept, and an end."""

import json
import tracemalloc
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import kahuna
from service.kahuna.paging import RawPage, chain
from tests.kahuna.listening import Clock, Seen, listening, raw, said

DAY = datetime(2017, 5, 6, tzinfo=UTC)


def log_of(total: int, filler: str = "") -> Any:
    """An answering with so many records, numbered, each page made when it is asked for; cursors are opaque to nobody
    here."""

    def answer(seen: Seen) -> bytes:
        body = seen.json()
        size = body["number_of_records"]
        first = int(body.get("cursor", "@0")[1:])
        last = min(first + size, total)
        records = ",".join(f'{{"action":"push","user_id":{n},"message":"{filler}"}}' for n in range(first, last))
        more = "true" if last < total else "false"
        return raw(f'{{"push":[{records}],"more_records":{more},"cursor":"@{last}"}}'.encode())

    return answer


async def test_a_quarter_of_a_million_records_pass_through_flat_memory() -> None:
    total, filler = 250_000, "x" * 200
    async with listening(log_of(total, filler), keep=False) as vendor, vendor.client() as client:
        tracemalloc.start()
        count = 0
        async for record in client.push_logs(DAY, until=DAY + timedelta(hours=1)):
            assert record.user_id == count
            count += 1
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert count == total
    assert peak < 5_000_000 < total * len(filler)


@given(stop=st.integers(1, 6))
@settings(max_examples=6, deadline=None)
async def test_from_a_stored_position_nothing_is_lost_and_nothing_comes_twice(stop: int) -> None:
    async with listening(log_of(5_500)) as vendor, vendor.client() as client:
        seen: list[int | None] = []
        until = DAY + timedelta(hours=1)
        pages, position = 0, kahuna.Position()
        async for page in client.push_logs(DAY, until=until).pages():
            seen += [record.user_id for record in page.records]
            position, pages = page.position, pages + 1
            if pages == stop:
                break
        rest = client.push_logs(position.since, until=until, cursor=position.cursor)
        seen += [record.user_id async for record in rest]
    assert seen == list(range(5_500))
    assert rest.position == kahuna.Position(until)


async def test_the_position_is_that_of_whole_pages() -> None:
    async with listening(log_of(2_500)) as vendor, vendor.client() as client:
        pages = client.push_logs(cursor="@500")
        taken = 0
        async for _ in pages:
            taken += 1
            if taken == 1_500:
                break
    assert pages.position == kahuna.Position(None, "@1500")
    assert vendor.seen[0].json() == {"categories_to_return": ["push"], "number_of_records": 1000, "cursor": "@500"}


# Days.


def days_of(records: list[datetime], page_size: int = 2, *, last_cursor: bool = True) -> Any:
    """An answering as the contract has it: a first call gives the rest of its date."""

    def answer(seen: Seen) -> bytes:
        body = seen.json()
        stamp, _, skipped = (body.get("cursor") or body["timestamp"]).partition("|")
        moment, skip = datetime.strptime(stamp, "%m/%d/%Y %I:%M:%S %p").replace(tzinfo=UTC), int(skipped or 0)
        left = [r for r in records if r >= moment and r.date() == moment.date()][skip:]
        page = [{"timestamp": f"{r:%Y-%m-%d %H:%M:%S.%f}"} for r in left[:page_size]]
        more = len(left) > page_size
        cursor = f"{stamp}|{skip + len(page)}" if more or last_cursor else ""
        return said({"push": page, "more_records": more, "cursor": cursor})

    return answer


HOURS = [DAY + timedelta(hours=h, microseconds=h) for h in range(0, 96, 5)]


async def test_a_range_is_walked_day_by_day_and_ends_where_it_was_told() -> None:
    since, until = HOURS[2], HOURS[15]
    async with listening(days_of(HOURS)) as vendor, vendor.client() as client:
        times = [record.time async for record in client.push_logs(since, until=until)]
    assert times == HOURS[2:15]
    asked = [seen.json()["timestamp"] for seen in vendor.seen if "timestamp" in seen.json()]
    assert asked == ["05/06/2017 10:00:00 AM", *(f"05/{day:02}/2017 12:00:00 AM" for day in (7, 8, 9))]


@pytest.mark.parametrize("until", [DAY + timedelta(days=5), DAY + timedelta(days=5, hours=1), HOURS[3]])
async def test_more_says_whether_another_page_follows_also_over_days_without_records(until: datetime) -> None:
    since = DAY - timedelta(days=2)
    async with listening(days_of(HOURS)) as vendor, vendor.client() as client:
        told = [(len(page.records), page.more) async for page in client.push_logs(since, until=until).pages()]
    assert [more for _, more in told] == [True] * (len(told) - 1) + [False]
    assert told[0] == (0, True)


@pytest.mark.parametrize("last_cursor", [True, False])
@pytest.mark.parametrize("stop", range(1, 12))
async def test_a_range_goes_on_from_any_page(stop: int, last_cursor: bool) -> None:
    async with listening(days_of(HOURS, last_cursor=last_cursor)) as vendor, vendor.client() as client:
        times: list[datetime | None] = []
        pages, position = 0, kahuna.Position()
        async for page in client.push_logs(DAY, until=HOURS[-1]).pages():
            times += [record.time for record in page.records]
            position, pages = page.position, pages + 1
            if pages == stop:
                break
        rest = client.push_logs(position.since, until=HOURS[-1], cursor=position.cursor)
        times += [record.time async for record in rest]
    assert times == HOURS[:-1]


async def test_a_cursor_that_leads_beyond_its_day_repeats_nothing() -> None:
    def answer(seen: Seen) -> bytes:
        stamp = seen.json().get("cursor") or seen.json()["timestamp"]
        moment = datetime.strptime(stamp, "%m/%d/%Y %I:%M:%S %p").replace(tzinfo=UTC)
        left = [hour for hour in HOURS if hour >= moment]
        page = [{"timestamp": f"{hour:%Y-%m-%d %H:%M:%S.%f}"} for hour in left[:3]]
        cursor = f"{left[3]:%m/%d/%Y %I:%M:%S %p}" if len(left) > 3 else ""
        return said({"push": page, "more_records": len(left) > 3, "cursor": cursor})

    until = DAY + timedelta(days=4)
    async with listening(answer) as vendor, vendor.client() as client:
        pages = [page async for page in client.push_logs(DAY, until=until).pages()]
        early = [page async for page in client.push_logs(DAY, until=HOURS[1]).pages()]
    assert [record.time for page in pages for record in page.records] == HOURS
    for walk in (pages, early):
        assert [page.more for page in walk] == [True] * (len(walk) - 1) + [False]


async def test_without_an_end_the_range_ends_now() -> None:
    clock = Clock((DAY + timedelta(hours=30)).timestamp())
    async with listening(days_of(HOURS)) as vendor, vendor.client(time=clock) as client:
        times = [record.time async for record in client.push_logs(DAY)]
        assert [record async for record in client.push_logs(DAY + timedelta(days=5))] == []
    assert times == [hour for hour in HOURS if hour < DAY + timedelta(days=2)]


def growing(records: list[datetime], clock: Clock, *, last_cursor: bool, page_size: int = 3) -> Any:
    """An answering of a log that grows with the clock; its cursors count records, and serve beyond their day."""

    def answer(seen: Seen) -> bytes:
        body = seen.json()
        there = [r for r in records if r.timestamp() <= clock()]
        if "cursor" in body:
            day, _, skip = body["cursor"].partition("|")
        else:
            moment = datetime.strptime(body["timestamp"], "%m/%d/%Y %I:%M:%S %p").replace(tzinfo=UTC)
            day, skip = f"{moment:%Y%m%d}", str(sum(r < moment for r in there))
        of_day = [r for r in there if f"{r:%Y%m%d}" <= day]
        page = of_day[int(skip) : int(skip) + page_size]
        more = len(of_day) > int(skip) + len(page)
        cursor = f"{day}|{int(skip) + len(page)}" if more or last_cursor else None
        told = [{"timestamp": f"{r:%Y-%m-%d %H:%M:%S.%f}"} for r in page]
        return said({"push": told, "more_records": more, "cursor": cursor})

    return answer


@pytest.mark.parametrize("last_cursor", [True, False])
@pytest.mark.parametrize("lag", [None, 0, 2, 11, 25])
@pytest.mark.parametrize("every", [1, 5, 12, 26])
async def test_walk_after_walk_takes_every_record_once(every: int, lag: int | None, last_cursor: bool) -> None:
    hours = [DAY + timedelta(minutes=60 * h, microseconds=h) for h in range(72)]
    clock = Clock()
    position, times = kahuna.Position(DAY), []
    async with listening(growing(hours, clock, last_cursor=last_cursor)) as vendor, vendor.client(time=clock) as client:
        for hour in [*range(0, 72, every), 99]:
            clock.now = (DAY + timedelta(hours=hour, minutes=30)).timestamp()
            until = None if lag is None or hour == 99 else DAY + timedelta(hours=hour - lag)
            async for page in client.push_logs(position.since, until=until, cursor=position.cursor).pages():
                times += [record.time for record in page.records]
                position = page.position
    assert times == hours


@pytest.mark.parametrize("stop", range(1, 9))
@pytest.mark.parametrize("first", [9, 26, 40])
@pytest.mark.parametrize("then", [3, 24, 48])
async def test_a_walk_that_was_broken_off_may_go_on_to_another_end(first: int, stop: int, then: int) -> None:
    hours = [DAY + timedelta(hours=h) for h in range(48)]
    clock = Clock((DAY + timedelta(days=9)).timestamp())
    position, times = kahuna.Position(DAY), []
    async with listening(growing(hours, clock, last_cursor=True)) as vendor, vendor.client(time=clock) as client:
        for until, pages in ((first, stop), (then, 99), (60, 99)):
            ends, count = DAY + timedelta(hours=until), 0
            async for page in client.push_logs(position.since, until=ends, cursor=position.cursor).pages():
                times += [record.time for record in page.records]
                position, count = page.position, count + 1
                if count == pages:
                    break
    assert times == hours


async def test_the_future_is_not_asked_for() -> None:
    clock = Clock((DAY + timedelta(hours=30)).timestamp())
    async with listening(days_of(HOURS)) as vendor, vendor.client(time=clock) as client:
        pages = client.push_logs(DAY, until=datetime.max.replace(tzinfo=UTC))
        times = [record.time async for record in pages]
    assert times == [hour for hour in HOURS if hour < DAY + timedelta(days=2)]
    assert pages.position == kahuna.Position(HOURS[9])


@pytest.mark.parametrize("behind", [0, 7])
async def test_a_clock_that_is_behind_loses_nothing(behind: int) -> None:
    hours = [DAY + timedelta(hours=h) for h in range(48)]
    theirs, ours = Clock(), Clock()
    times: set[datetime] = set()
    position = kahuna.Position(DAY)
    async with listening(growing(hours, theirs, last_cursor=False)) as vendor, vendor.client(time=ours) as client:
        for hour in range(0, 60, 4):
            theirs.now = (DAY + timedelta(hours=hour)).timestamp()
            ours.now = theirs.now - behind * 3600
            async for page in client.push_logs(position.since, cursor=position.cursor).pages():
                times |= {record.time for record in page.records if record.time}
                position = page.position
    assert sorted(times) == hours


async def test_a_cursor_alone_ends_before_until() -> None:
    async with listening(growing(HOURS, Clock(), last_cursor=True)) as vendor, vendor.client() as client:
        pages = client.push_logs(cursor="20170506|1", until=HOURS[3])
        assert [record.time async for record in pages] == HOURS[1:3]
        rest = client.push_logs(pages.position.since, cursor=pages.position.cursor, until=HOURS[7])
        assert [record.time async for record in rest] == HOURS[3:7]


FAR_WEST, FAR_EAST = timezone(timedelta(hours=-5)), timezone(timedelta(hours=5))


@pytest.mark.parametrize("edge", [datetime.max.replace(tzinfo=FAR_WEST), datetime.min.replace(tzinfo=FAR_EAST)])
async def test_a_time_that_utc_does_not_have_is_refused(edge: datetime) -> None:
    async with listening(days_of(HOURS)) as vendor, vendor.client() as client:
        with pytest.raises(kahuna.BadRequest, match="a year that UTC has"):
            client.push_logs(edge)
        with pytest.raises(kahuna.BadRequest, match="a year that UTC has"):
            client.push_logs(DAY, until=edge)
        with pytest.raises(kahuna.BadRequest, match="a year that UTC has"):
            client.user_campaign(kahuna.CampaignQuery(start=edge))
        last = datetime.max.replace(tzinfo=UTC)
        assert [record async for record in client.push_logs(last, until=last)] == []
    assert vendor.seen == []


async def test_records_before_since_are_left_out() -> None:
    told = [{"timestamp": f"{hour:%Y-%m-%d %H:%M:%S.%f}"} for hour in HOURS[:4]]
    async with listening(lambda _: said({"push": told, "more_records": False})) as vendor, vendor.client() as client:
        pages = client.push_logs(HOURS[1], until=DAY + timedelta(days=1))
        assert [record.time async for record in pages] == HOURS[1:4]


async def test_a_wrong_field_spoils_neither_its_record_nor_its_neighbours() -> None:
    records = [{"user_id": 1}, {"user_id": "one", "action": 7, "os": "ios"}, "what", None, {"timestamp": "yesterday"}]
    async with listening(lambda _: said({"push": records, "more_records": False})) as vendor, vendor.client() as client:
        first, second, *others, last = [r async for r in client.push_logs(DAY, until=DAY + timedelta(hours=1))]
    assert first == kahuna.PushRecord(user_id=1)
    assert second == kahuna.PushRecord(os="ios", extra={"user_id": "one", "action": 7})
    assert [other.extra for other in others] == [{"value": "what"}, {"value": None}]
    assert (last.timestamp, last.time) == ("yesterday", None)


# Cursors that go nowhere.


@settings(deadline=None)
@given(before=st.integers(0, 20), circle=st.integers(1, 20))
async def test_a_circle_of_cursors_ends(before: int, circle: int) -> None:
    calls = 0

    async def fetch(cursor: str | None) -> RawPage:
        nonlocal calls
        calls += 1
        assert calls < 200
        n = -1 if cursor is None else int(cursor)
        return RawPage([], str(n + 1 if n + 1 < before + circle else before), more=True)

    with pytest.raises(kahuna.UnreadableAnswer, match="cursor does not advance"):
        async for _ in chain("push_logs", fetch, None):
            pass


@pytest.mark.parametrize("cursor", ["@7", "", None])
async def test_more_without_a_new_cursor_is_an_error_at_once(cursor: str | None) -> None:
    answer = {"push": [{}], "more_records": True, "cursor": cursor}
    async with listening(lambda _: said(answer)) as vendor, vendor.client() as client:
        with pytest.raises(kahuna.UnreadableAnswer):
            _ = [record async for record in client.push_logs(cursor="@7")]
    assert len(vendor.seen) == 1


@pytest.mark.parametrize(
    "answer",
    [
        {"push": []},
        {"push": [], "more_records": "no"},
        {"push": {}, "more_records": True, "cursor": "b"},
        {"push": {"0": {"a": 1}}, "more_records": False},
        {"push": "none", "more_records": False},
        {"push": [], "pushes": [{"a": 1}], "more_records": False},
        {"pushes": [{}], "more_records": False},
        {"push": [], "more_records": False, "cursor": 7},
        [],
    ],
)
async def test_a_page_that_might_hide_records_is_unreadable(answer: Any) -> None:
    async with listening(lambda _: said(answer)) as vendor, vendor.client() as client:
        with pytest.raises(kahuna.UnreadableAnswer):
            _ = [record async for record in client.push_logs(cursor="a")]


IN_APP: list[tuple[dict[str, Any], int | None]] = [
    ({"in_app": [], "inapp": [{"user_id": 1}]}, 1),
    ({"in_app": [{"user_id": 1}], "inapp": []}, 1),
    ({"in_app": [{"user_id": 1}], "inapp": None}, 1),
    ({"in_app": [], "inapp": []}, 0),
    ({"in_app": [], "categories_to_return": ["in_app"]}, 0),
    ({"in_app": None}, 0),
    ({}, 0),
    ({"in_app": [{"user_id": 1}], "inapp": [{"user_id": 2}]}, None),
    ({"in_app": [{"user_id": 1}], "inapp": {}}, None),
]


@pytest.mark.parametrize(("lists", "count"), IN_APP)
async def test_records_are_found_under_any_name_we_know(lists: dict[str, Any], count: int | None) -> None:
    answer = said({**lists, "more_records": False})
    async with listening(lambda _: answer) as vendor, vendor.client() as client:
        pages = client.in_app_logs(cursor="a")
        if count is None:
            with pytest.raises(kahuna.UnreadableAnswer):
                _ = [record async for record in pages]
        else:
            assert len([record async for record in pages]) == count


async def test_user_campaign_goes_on_by_cursor_alone() -> None:
    def answer(seen: Seen) -> bytes:
        cursor = seen.json().get("cursor")
        return said({"records": [{"n": cursor}], "more_records": cursor is None, "cursor": "next"})

    async with listening(answer) as vendor, vendor.client() as client:
        pages = client.user_campaign(kahuna.CampaignQuery(campaign_name="a"))
        assert [record.extra["n"] async for record in pages] == [None, "next"]
    assert [json.loads(seen.body) for seen in vendor.seen] == [{"campaign_name": "a"}, {"cursor": "next"}]
