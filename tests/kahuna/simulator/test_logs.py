"""The log APIs, spoken to from the contract."""

import itertools
import random
from datetime import UTC, datetime
from typing import Any

import pytest

from . import speaking
from .speaking import NOW, TODAY, Vendor

NUMBERS = itertools.count()
MIDNIGHT = datetime(2017, 7, 15, tzinfo=UTC).timestamp()


async def page(vendor: Vendor, **body: Any) -> Any:
    return await vendor.call("kahunalogs", {"categories_to_return": ["push"], "number_of_records": 3} | body)


async def push(vendor: Vendor, count: int = 1) -> list[str]:
    """So many push records, each with a campaign of its own, whose names are returned."""
    names = [f"push {next(NUMBERS)}" for _ in range(count)]
    for name in names:
        config = {"campaign_name": name, "observe_rate_limiting": False}
        body = {"push_array": [{"target": {"username": "ann"}, "notification": {"alert": "!"}, "config": config}]}
        assert await vendor.call("push", body) == [{"success": True}]
    return names


@pytest.mark.parametrize(
    "timestamp",
    [
        "7/14/2017 2:40",
        "07/14/2017",
        "07/14/17 02:40:00 AM",
        "7/14/2017 2:40 am",
        "07/14/2017 02:40:00",
        "2017-07-14",
        "2017-07-14 02:40:00",
        "2017-07-14T02:40:00Z",
        " 2017-07-14 02:40:00.400000 ",
    ],
)
async def test_the_common_formats_of_a_date(vendor: Vendor, timestamp: str) -> None:
    await vendor.meet("ann")
    await push(vendor)
    assert len((await page(vendor, timestamp=timestamp))["push"]) == 1


@pytest.mark.parametrize("timestamp", ["7/14/2017 2:41", "07/14/17 02:40:00 PM", "7/13/2017", "07/15/2017"])
async def test_that_date_from_that_time(vendor: Vendor, timestamp: str) -> None:
    await vendor.meet("ann")
    await push(vendor)
    answer = await page(vendor, timestamp=timestamp)
    assert (answer["push"], answer["more_records"]) == ([], False)


async def test_a_day_ends_at_midnight_and_its_last_cursor_leads_on(vendor: Vendor) -> None:
    await vendor.meet("ann")
    await push(vendor, 4)
    vendor.clock.seconds = MIDNIGHT - 0.5
    await push(vendor)
    vendor.clock.seconds = MIDNIGHT
    await push(vendor, 2)
    assert [len(await vendor.logs("push", timestamp=day)) for day in (TODAY, "07/15/2017")] == [5, 2]
    first = await page(vendor, timestamp=TODAY)
    last = await page(vendor, cursor=first["cursor"])
    assert (len(first["push"]), first["more_records"], len(last["push"]), last["more_records"]) == (3, True, 2, False)
    newer = await page(vendor, cursor=last["cursor"])
    assert [record["timestamp"] for record in newer["push"]] == ["2017-07-15 00:00:00.000000"] * 2


async def test_paging_loses_and_repeats_nothing_while_records_arrive(vendor: Vendor) -> None:
    await vendor.meet("ann")
    chance = random.Random(7)
    answer = await page(vendor, timestamp=TODAY)
    read: list[str] = []
    written: list[str] = []
    for _ in range(30):
        for _ in range(chance.randint(0, 5)):
            written += await push(vendor)
            vendor.clock.seconds += chance.choice([0, 0.001, 1])
        answer = await page(vendor, cursor=answer["cursor"])
        assert len(answer["push"]) <= 3
        read += [record["campaign"] for record in answer["push"]]
    while answer["more_records"]:
        answer = await page(vendor, cursor=answer["cursor"])
        read += [record["campaign"] for record in answer["push"]]
    assert read == written


async def test_a_clock_that_is_set_back_hides_nothing(vendor: Vendor) -> None:
    await vendor.meet("ann")
    await push(vendor)
    cursor = (await page(vendor, timestamp=TODAY))["cursor"]
    vendor.clock.seconds -= 3600
    await push(vendor)
    records = (await page(vendor, cursor=cursor))["push"]
    assert [record["timestamp"] for record in records] == ["2017-07-14 02:40:00.500000"]


async def test_the_array_is_called_what_was_asked_for(vendor: Vendor) -> None:
    await vendor.meet("ann")
    await push(vendor)
    words = ["push", "inapp", "email", "user_merges"]
    answer = await page(vendor, timestamp=TODAY, categories_to_return=words)
    assert set(answer) == {*words, "more_records", "cursor"}
    assert [len(answer[word]) for word in words] == [1, 0, 0, 0]


async def test_the_cursor_has_precedence(vendor: Vendor) -> None:
    await vendor.meet("ann")
    await push(vendor)
    cursor = (await page(vendor, timestamp=TODAY))["cursor"]
    assert (await page(vendor, timestamp=TODAY, cursor=cursor))["push"] == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"timestamp": "yesterday"},
        {"timestamp": 1_500_000_000},
        {"cursor": "x"},
        {"cursor": "é"},
        {"timestamp": TODAY, "number_of_records": 0},
        {"timestamp": TODAY, "number_of_records": "3"},
        {"timestamp": TODAY, "categories_to_return": ["fax"]},
        {"timestamp": TODAY, "categories_to_return": []},
        {"timestamp": TODAY, "categories_to_return": "push"},
    ],
)
async def test_bad_options_are_refused(vendor: Vendor, body: dict[str, Any]) -> None:
    answer = await vendor.raw("kahunalogs", {"categories_to_return": ["push"]} | body)
    assert (answer.status_code, answer.json()["success"]) == (400, False)


async def test_more_than_a_thousand_are_cut_to_a_thousand(vendor: Vendor) -> None:
    await vendor.control("seed", {"users": 5, "records": 1001, "categories": ["push"], "span_seconds": 60})
    answer = await page(vendor, timestamp=TODAY, number_of_records=5000)
    assert (len(answer["push"]), answer["more_records"]) == (1000, True)


async def test_a_cursor_is_of_its_environment_and_unaltered(vendor: Vendor) -> None:
    cursor = (await page(vendor, timestamp=TODAY))["cursor"]
    assert (await vendor.raw("kahunalogs", {"cursor": cursor}, "p")).status_code == 400
    altered = ("A" if cursor[0] != "A" else "B") + cursor[1:]
    assert (await vendor.raw("kahunalogs", {"cursor": altered})).status_code == 400
    assert (await vendor.raw("usercampaign", {"cursor": cursor}, "p")).status_code == 400


async def test_a_cursor_may_expire() -> None:
    async with speaking.vendor(cursor_lifetime_seconds=60) as vendor:
        cursor = (await page(vendor, timestamp=TODAY))["cursor"]
        vendor.clock.seconds = NOW + 60
        assert (await vendor.raw("kahunalogs", {"cursor": cursor})).status_code == 200
        vendor.clock.seconds += 2
        answer = await vendor.raw("kahunalogs", {"cursor": cursor})
        assert (answer.status_code, answer.json()["error"]) == (400, "Cursor expired")
