"""Parts: the same cut as the worker makes, whole, in order, and under the limit with what stands around them."""

import json

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from service.kahuna.parts import Cut, Part
from service.kahuna.wire import EmailSyncEntry, SmsSyncEntry, SyncEntry, cut, is_timed

ENTRIES = st.lists(st.builds(EmailSyncEntry, st.just("unsub"), st.text("ab@é\\", max_size=30), st.none()), max_size=20)


async def parts_of(rule: Cut[SyncEntry], entries: list[EmailSyncEntry] | list[SmsSyncEntry]) -> list[Part]:
    return [part async for part in rule.parts(entries)]


@settings(deadline=None)
@given(entries=ENTRIES, most=st.integers(1, 7), size=st.integers(1, 300))
async def test_what_the_worker_cuts_is_never_cut_again(entries: list[EmailSyncEntry], most: int, size: int) -> None:
    chunks = list(cut(entries, most, size))
    parts = await parts_of(Cut(most, size), entries)
    assert [part.body for part in parts] == [msgspec.json.encode(chunk) for chunk in chunks]
    assert [part.count for part in parts] == [len(chunk) for chunk in chunks]
    for chunk in chunks:
        assert len(await parts_of(Cut(most, size), chunk)) == 1


@settings(deadline=None)
@given(entries=ENTRIES, envelope=st.integers(0, 50))
async def test_the_envelope_counts(entries: list[EmailSyncEntry], envelope: int) -> None:
    parts = await parts_of(Cut(100, 200, envelope=envelope), entries)
    assert [entry for part in parts for entry in json.loads(part.body)] == json.loads(msgspec.json.encode(entries))
    assert all(len(part.body) + envelope < 200 or part.count == 1 for part in parts)


async def test_a_part_may_be_repeated_if_all_of_it_may() -> None:
    timed, untimed, stop = SmsSyncEntry("1", 5, opt_in=True), SmsSyncEntry("2", opt_in=True), SmsSyncEntry("3")
    parts = await parts_of(Cut(2, repeatable=is_timed), [timed, stop, untimed, stop, stop, timed])
    assert [part.repeatable for part in parts] == [True, False, True]


async def test_nothing_is_no_part_unless_one_is_wanted() -> None:
    assert await parts_of(Cut(2), []) == []
    assert await parts_of(Cut(2, at_least_one=True), []) == [Part(b"[]", 0, repeatable=True)]
