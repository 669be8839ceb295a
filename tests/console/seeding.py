"""A site that has lived for a while: what came over the days, hostile words among it, and something for every page."""

import random
from datetime import timedelta

from tests.web.harness import Site, address_path

HOSTILE = '"><script>alert(1)</script>@example.com'
"""An address that a page must show as text."""

NOTE = "<img src=x onerror=alert(2)> & 'quoted'"
"""A note of the same kind."""

REASONS = ("unsub", "unsub", "unsub", "hard_bounce", "soft_bounce", "spam", "blocked")


async def seed(site: Site, days: int = 2, callbacks: int = 2) -> None:
    """So many days of traffic, some callbacks on each, up to the present of the site's clock."""
    chance, present = random.Random(7), site.clock.now
    for back in range(days * 24, -1, -6 if days > 2 else -24):
        site.clock.now = present - timedelta(hours=back)
        for number in range(chance.randint(1, callbacks)):
            site.clock.now += timedelta(minutes=17) if back else timedelta(0)
            await _callback(site, chance, f"{back}-{number}")
    site.clock.now = present
    await _by_hand(site)


async def _callback(site: Site, chance: random.Random, mark: str) -> None:
    at = site.clock.seconds - chance.randint(1, 5000)
    mails = [
        {"reason": chance.choice(REASONS), "email": f"person{chance.randint(1, 400)}@example.com", "timestamp": at}
        for _ in range(chance.randint(1, 9))
    ]
    # The same entry twice, and one that makes no sense.
    mails += [mails[0], {"reason": "sneezed", "email": f"odd{mark}@example.com", "timestamp": at}]
    assert (await site.deliver("email", mails)).status_code == 200
    number = f"1555{chance.randint(1000000, 9999999)}"
    stop = {"number": number, "timestamp": at, "opt-in": chance.random() < 0.2}
    assert (await site.deliver("sms", [stop])).status_code == 200


async def _by_hand(site: Site) -> None:
    """A stop of ours with a hostile address and note, one that Kahuna contradicts, and a hostile entry."""
    headers = await site.token("read", "write", "admin")
    stops = (
        ("email", HOSTILE, "manual"),
        ("email", "carol@example.com", "manual"),
        ("sms", "15550100001", "do_not_call"),
    )
    for channel, address, reason in stops:
        body = {"reason": reason, "note": NOTE}
        answer = await site.client.put(address_path(channel, address), json=body, headers=headers)
        assert answer.status_code == 200, answer.text
    start = {"number": "15550100001", "timestamp": site.clock.seconds + 2, "opt-in": True}
    assert (await site.deliver("sms", [start])).status_code == 200
    odd = {"reason": "<script>alert(3)</script>", "email": HOSTILE, "timestamp": site.clock.seconds}
    assert (await site.deliver("email", [odd])).status_code == 200
    await site.deliver("sms", [start | {"number": "15550100002", "timestamp": 0}])
