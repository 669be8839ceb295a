"""Who is calling: tokens believed for some seconds, their ends, limits and allowances, and when they were used."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy.exc import IntegrityError

from service.errors import StorageUnavailable, TooManyCalls
from service.settings import Settings
from service.store import access
from service.store.access import Caller
from service.store.database import Database
from service.web import callers
from service.web.callers import Callers
from tests.flows.speaking import Clock
from tests.web.harness import Headers, Site, address_path, away, is_problem, opened

ANN = address_path("email", "ann@example.com")
BOB = address_path("sms", "15550100001")


class Register:
    """Tokens as the database would know them; counts how often it is asked."""

    def __init__(self, **known: Caller) -> None:
        self.known = {access.digest_of(token): caller for token, caller in known.items()}
        self.asked = 0

    async def __call__(self, digest: bytes) -> Caller | None:
        self.asked += 1
        return self.known.get(digest)


def a_caller(name: str = "orders") -> Caller:
    return Caller(name, frozenset({"read"}), None)


@pytest.fixture
async def site(settings: Settings) -> AsyncIterator[Site]:
    async with opened(settings) as site:
        yield site


# What is remembered.


async def test_a_token_is_asked_about_once_in_so_many_seconds() -> None:
    register, clock = Register(one=a_caller()), Clock()
    known = Callers(register, clock, 5.0, None)
    for _ in range(3):
        assert await known.of("one") == a_caller()
        clock.sleep(1.6)
    assert register.asked == 1
    clock.sleep(0.2)
    await known.of("one")
    assert register.asked == 2


async def test_a_token_that_was_revoked_is_unknown_after_so_many_seconds() -> None:
    register, clock = Register(one=a_caller()), Clock()
    known = Callers(register, clock, 5.0, None)
    assert await known.of("one")
    register.known.clear()
    clock.sleep(5)
    # The second time it is remembered, like any unknown one.
    assert [await known.of("one"), await known.of("one"), register.asked] == [None, None, 2]


async def test_a_token_that_was_unknown_works_a_second_after_it_was_made() -> None:
    register, clock = Register(), Clock()
    known = Callers(register, clock, 5.0, None)
    assert [await known.of("one"), await known.of("one"), register.asked] == [None, None, 1]
    register.known[access.digest_of("one")] = a_caller()
    clock.sleep(1)
    assert await known.of("one") == a_caller()


async def test_a_clock_that_is_set_back_does_not_prolong_what_is_believed() -> None:
    register, clock = Register(one=a_caller()), Clock()
    known = Callers(register, clock, 5.0, None)
    await known.of("one")
    clock.sleep(-3600)
    register.known.clear()
    assert await known.of("one") is None


async def test_made_up_tokens_do_not_fill_the_memory_nor_push_out_known_ones() -> None:
    register, clock = Register(one=a_caller()), Clock()
    known = Callers(register, clock, 5.0, None)
    await known.of("one")
    for number in range(callers.MOST_KNOWN + 10):
        await known.of(str(number))
    assert len(known._unknown) == callers.MOST_KNOWN  # noqa: SLF001 (nothing else shows what is kept)
    asked = register.asked
    await known.of("one")
    assert register.asked == asked


async def test_a_token_is_kept_as_its_digest_alone() -> None:
    known = Callers(Register(ks_secret=a_caller()), Clock(), 5.0, None)
    assert await known.of("ks_secret")
    assert "ks_secret" not in repr(vars(known))


# Ends and limits.


async def test_a_token_ends_at_its_moment(site: Site) -> None:
    headers = await site.token("read", expires_at=site.clock() + timedelta(seconds=2))
    assert (await site.client.get(ANN, headers=headers)).status_code == 200
    site.clock.sleep(2)
    assert is_problem(await site.client.get(ANN, headers=headers), 401, "unauthenticated")


async def test_a_revoked_token_is_refused_within_seconds(site: Site) -> None:
    headers = await site.token("read")
    assert (await site.client.get(ANN, headers=headers)).status_code == 200
    async with site.database.begin() as connection:
        assert len(await access.revoke_tokens(connection, "tester", site.clock())) == 1
    site.clock.sleep(site.settings.token_cache_seconds)
    answer = await site.client.get(ANN, headers=headers)
    assert is_problem(answer, 401, "unauthenticated")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_a_token_of_one_channel_speaks_of_no_other(site: Site) -> None:
    headers = await site.token("read", "write", channel="sms")
    assert (await site.client.get(BOB, headers=headers)).status_code == 200
    for method in ("GET", "PUT"):
        answer = await site.client.request(method, ANN, headers=headers, json={"reason": "manual"})
        assert is_problem(answer, 403, "other-channel")
        assert "channel sms only" in answer.json()["detail"]


async def test_a_token_of_one_channel_cannot_be_an_operators(site: Site) -> None:
    with pytest.raises(IntegrityError, match="tokens_channel"):
        await site.token("read", "admin", channel="sms")


async def test_who_lacks_a_scope_hears_which_and_what_there_is(site: Site) -> None:
    answer = await site.client.put(ANN, headers=await site.token("read"), json={"reason": "manual"})
    assert is_problem(answer, 403, "missing-scope")
    assert "scope write (it has read)" in answer.json()["detail"]


# Allowances.


async def test_a_token_that_calls_too_often_is_told_when_to_come_again(settings: Settings) -> None:
    async with opened(replace(settings, token_calls_per_second=2)) as site:
        headers, others = await site.token("read"), await site.token("read")
        assert [(await site.client.get(ANN, headers=headers)).status_code for _ in range(2)] == [200, 200]
        answer = await site.client.get(ANN, headers=headers)
        assert is_problem(answer, 429, "rate-limited")
        assert answer.headers["Retry-After"] == "1"
        assert (await site.client.get(ANN, headers=others)).status_code == 200
        site.clock.sleep(0.5)
        assert (await site.client.get(ANN, headers=headers)).status_code == 200


async def test_an_allowance_of_less_than_one_a_second_says_how_long_to_wait(database: Database) -> None:
    clock = Clock()
    async with database.begin() as connection:
        token = await access.create_token(connection, "slow", ["read"], None, clock())

    async def ask(digest: bytes) -> Caller | None:
        async with database.read() as connection:
            return (await access.callers_of(connection, [digest]))[0]

    slow = Callers(ask, clock, 5.0, 0.1)
    assert await slow.of(token)
    with pytest.raises(TooManyCalls) as refused:
        await slow.of(token)
    assert refused.value.retry_after == 10
    clock.sleep(10)
    assert await slow.of(token)


# When they were used.


async def last_used(site: Site) -> list[object]:
    return [row[0] for row in await site.query("select last_used_at from tokens order by created_at")]


async def test_the_last_use_is_written_when_the_process_ends_and_not_before(settings: Settings) -> None:
    async with opened(settings) as site:
        headers = await site.token("read")
        await site.client.get(ANN, headers=headers)
        assert await last_used(site) == [None]
        used = site.clock()
    async with opened(settings) as site:
        assert await last_used(site) == [used]


async def test_a_use_is_never_set_back(site: Site, settings: Settings) -> None:
    await site.token("read")
    ((token_id,),) = await site.query("select id from tokens")
    for at in (site.clock(), site.clock() - timedelta(hours=1)):
        async with site.database.begin() as connection:
            await access.note_uses(connection, {token_id: at})
    assert await last_used(site) == [site.clock()]


async def test_uses_that_cannot_be_written_are_written_later(site: Site, settings: Settings) -> None:
    headers: Headers = await site.token("read")
    ((token_id,),) = await site.query("select id from tokens")
    caller = Caller("tester", frozenset({"read"}), None, token_id=token_id)
    known = Callers(Register(one=caller), site.clock, 5.0, None)
    await known.of("one")
    async with Database.of(replace(settings, database_url=away())) as gone:
        await known.note_uses(gone)
        with pytest.raises(StorageUnavailable):
            async with gone.begin():
                pass
    assert headers
    assert await last_used(site) == [None]
    await known.note_uses(site.database)
    assert await last_used(site) == [site.clock()]


async def test_noting_that_is_cut_short_forgets_nothing(site: Site) -> None:
    await site.token("read")
    ((token_id,),) = await site.query("select id from tokens")
    known = Callers(Register(one=Caller("tester", frozenset({"read"}), None, token_id=token_id)), site.clock, 5.0, None)
    await known.of("one")
    async with site.database.begin() as connection:
        await connection.exec_driver_sql("select from tokens for update")
        noting = asyncio.create_task(known.note_uses(site.database))
        await asyncio.sleep(0.05)
        noting.cancel()
        await asyncio.wait([noting])
    await known.note_uses(site.database)
    assert await last_used(site) == [site.clock()]


# Which namespace.


async def test_whoever_must_name_a_namespace_hears_which_there_are(site: Site) -> None:
    headers = await site.token("read", namespace=None)
    for parameters, code, slug in (({}, 400, "namespace-required"), ({"namespace": "no"}, 404, "unknown-namespace")):
        answer = await site.client.get(ANN, headers=headers, params=parameters)
        assert is_problem(answer, code, slug)
        assert "default, other" in answer.json()["detail"]
