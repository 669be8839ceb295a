"""The APIs that look back, spoken to from the contract, and held against the logs."""

import asyncio
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from . import speaking
from .speaking import TODAY, Vendor

EMAIL, SMS = 1002, 1003


async def statistics(vendor: Vendor, env: str = "s", **body: Any) -> dict[int, dict[str, int]]:
    """The figures of all campaigns, page by page."""
    answer = await vendor.call("campaignstats", body, env)
    found = list(answer["campaigns"])
    while answer["more_records"]:
        answer = await vendor.call("campaignstats", {"cursor": answer["cursor"]}, env)
        found += answer["campaigns"]
    return {one["campaign_id"]: one["stats"] for one in found}


WORDS = {
    "email": {
        "delivered": "delivered",
        "opened": "opens",
        "clicked": "clicks",
        "unsub": "unsubs",
        "hard_bounce": "hard_bounces",
        "soft_bounce": "soft_bounces",
        "spam": "spam_reports",
    },
    "push": {"push": "delivered", "click": "clicks", "goal": "goal", "uninstalled": "uninstalled"},
    "in_app": {"ia_delivered": "ia_delivered", "ia_click": "clicks"},
}
COUNTED = {name for words in WORDS.values() for name in words.values()}
ACTS = ["opened", "clicked", "unsub", "hard_bounce", "soft_bounce", "spam", "click", "goal", "ia_click", "start"]


NAMES = [f"user{number}" for number in range(6)]
# What happens, to whom, and how many seconds later the next thing does. A number is the campaign they are added to.
STEPS = st.tuples(
    st.sampled_from([*ACTS, 1001, 1002, 1002, 1003, 1004]),
    st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
    st.sampled_from([0, 3, 20]),
)


@hypothesis_settings(deadline=None, max_examples=30)
@given(st.lists(STEPS, max_size=20))
def test_the_figures_add_up_with_the_logs_and_nobody_stopped_is_mailed(
    steps: list[tuple[str | int, list[str], int]],
) -> None:
    asyncio.run(live(steps))


async def live(steps: list[tuple[str | int, list[str], int]]) -> None:
    async with speaking.vendor(page_size=2, push_cooldown_seconds=30.0) as vendor:
        await vendor.meet(*NAMES)
        for what, some, wait in steps:
            if isinstance(what, int):
                await vendor.populate(what, *some, observe_rate_limiting=True)
            else:
                await vendor.act(what, *some)
            vendor.clock.seconds += wait
        figures = await statistics(vendor)
        # Texts have no log API to be held against.
        counted = {campaign_id: Counter[str]() for campaign_id in figures if campaign_id != SMS}
        for category, words in WORDS.items():
            for record in await vendor.logs(category, size=7):
                if "campaign_id" in record and record["action"] in words:
                    counted[record["campaign_id"]][words[record["action"]]] += 1
        for campaign_id, counts in counted.items():
            shown = {name: n for name, n in figures[campaign_id].items() if n and name in COUNTED}
            assert shown == dict(counts)
        assert figures[1002]["email_unique_opens"] <= min(figures[1002]["opens"], len(NAMES))
        nobody_stopped_is_mailed(await vendor.logs("email"))


def nobody_stopped_is_mailed(emails: list[Any]) -> None:
    stopped: set[int] = set()
    for record in emails:
        assert record["action"] not in ("email", "delivered") or record["user_id"] not in stopped
        if record["action"] in ("unsub", "hard_bounce", "spam"):
            stopped.add(record["user_id"])


async def test_the_figures_of_a_period_and_of_one_campaign(vendor: Vendor) -> None:
    await vendor.meet("ann")
    for _ in range(2):
        await vendor.populate(EMAIL, "ann")
        vendor.clock.seconds += 24 * 3600
    one = await statistics(vendor, campaign_id=EMAIL, start_date=TODAY, end_date=TODAY)
    assert {campaign_id: stats["delivered"] for campaign_id, stats in one.items()} == {EMAIL: 1}
    assert (await statistics(vendor, campaign_id=EMAIL))[EMAIL]["delivered"] == 2
    assert (await statistics(vendor, "p"))[EMAIL]["delivered"] == 0
    assert (await vendor.raw("campaignstats", {"campaign_id": 9})).status_code == 400
    assert (await vendor.raw("campaignstats", {"start_date": "soon"})).status_code == 400


async def test_texts_are_counted_too(vendor: Vendor) -> None:
    await vendor.meet("ann", "bob", env="p")
    for _ in range(2):
        await vendor.populate(SMS, "ann", "bob", env="p")
        vendor.clock.seconds += 60
        await vendor.act("stop", "bob", env="p")
    assert (await statistics(vendor, "p"))[SMS] == {"delivered": 3, "opt_outs": 2, "opt_ins": 0}
    records = await reached(vendor, campaign_name="Sale by text", action="sms")
    assert [len(record["campaigns"]) for record in records] == [2, 1]


# User/Campaign.


async def reached(vendor: Vendor, **body: Any) -> list[Any]:
    answer = await vendor.call("usercampaign", body, "p")
    found = list(answer["records"])
    while answer["more_records"]:
        answer = await vendor.call("usercampaign", {"cursor": answer["cursor"]}, "p")
        found += answer["records"]
    return found


async def test_whom_a_campaign_reached_page_by_page() -> None:
    async with speaking.vendor(page_size=2) as vendor:
        names = [f"user{number}" for number in range(5)]
        await vendor.meet(*names, env="p")
        await vendor.populate(EMAIL, *names[1:], env="p")
        vendor.clock.seconds += 60
        await vendor.act("opened", "user2", env="p")
        everybody = await reached(vendor, campaign_name="Newsletter", start_date=TODAY)
        assert [one["credentials"]["username"] for one in everybody] == names[1:]
        assert everybody[0]["campaigns"][0] == {
            "campaign": "Newsletter",
            "campaign_id": EMAIL,
            "action": "email",
            "timestamp": "2017-07-14 02:40:08.000000",
        }
        opened = await reached(vendor, suite_id=1, action="opened")
        assert [len(one["campaigns"]) for one in opened] == [1]
        users = [{"username": "user3"}, {"email": "user0@example.com"}, {"username": "nobody"}]
        some = await reached(vendor, campaign_name="Newsletter", credentials_list=users)
        assert [one["credentials"]["username"] for one in some] == ["user3"]
        assert await reached(vendor, campaign_name="Newsletter", end_date="7/13/2017") == []


async def test_an_experience_tells_its_emails(vendor: Vendor) -> None:
    records = (await vendor.call("usercampaign", {"campaign_name": "First steps"}, "p"))["records"]
    assert [record["subject"] for record in records] == ["Welcome aboard", "How is it going?"]


async def test_what_user_campaign_refuses(vendor: Vendor) -> None:
    wanted = {"campaign_name": "Newsletter"}
    assert (await vendor.raw("usercampaign", wanted, "s")).status_code == 400
    for body in ({}, {"cursor": "x"}, wanted | {"credentials_list": [{"username": "a"}] * 101}):
        assert (await vendor.raw("usercampaign", body, "p")).status_code == 400
    hundred = wanted | {"credentials_list": [{"username": "a"}] * 100}
    assert (await vendor.raw("usercampaign", hundred, "p")).status_code == 200
