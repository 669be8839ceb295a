"""Owns what an archived batch says when it is read again: the same facts as at the time, by its recorded outcome.

What the batch alone can tell is sorted as ingesting sorts it; what it cannot (which entries had been understood, which
opt-ins waited) was written down with it. Refuses to guess: an entry whose outcome cannot be told again is counted.
"""

from collections.abc import Sequence
from typing import NamedTuple

from service.domain.facts import SOURCES, Action, Fact
from service.flows.ingest import Rules, read, sort
from service.kahuna.wire import EMAIL_WORDS
from service.store.batches import Applied


class Testimony(NamedTuple):
    """What a batch says. Opt-ins in `waiting` are no facts of it, nor are the `silent` lines of an import, each with
    its index: they had no time, and were no news. `unclear` counts entries that were taken at the time and cannot be
    read now, `unknown` those of them whose word these settings do not know."""

    facts: list[Fact]
    waiting: list[Fact]
    unclear: int
    unknown: int = 0
    silent: Sequence[tuple[int, Fact]] = ()


def testimony_of(applied: Applied, rules: Rules) -> Testimony:
    """The facts of a batch. The words of a namespace that is not configured any more are those of the contract."""
    batch = applied.received
    source = SOURCES.get(batch.origin)
    words = rules.words.get(batch.namespace, EMAIL_WORDS)
    try:
        member = read(batch, words)
    except ValueError:
        return Testimony([], [], 1)
    if source is None:
        return Testimony([], [], max(len(member.callback.values), 1))
    found = sort(member, 0, "hold")
    unclear = [found.rejected[index] for index in found.rejected.keys() - applied.rejected]
    silent: list[tuple[int, Fact]] = []
    said = Testimony([], [], len(unclear), unclear.count("unknown-reason"), silent)
    received_at = int(batch.received_at.timestamp())

    def take(index: int | None, address: str, reason: str, action: Action, at: int | None) -> None:
        if index in applied.rejected:
            return
        fact = Fact(batch.namespace, batch.channel, address, reason, action, received_at if at is None else at, source)
        if index not in applied.held:
            said.facts.append(fact)
        elif at is not None and batch.origin == "kahuna_webhook":
            # An opt-in that waits says what Kahuna holds; a line or a record that is known otherwise says nothing.
            said.waiting.append(fact)
        elif batch.origin == "import" and fact.occurred_at == received_at and index is not None:
            silent.append((index, fact))

    for entry in (*found.facts, *found.opt_ins):
        take(entry.entry_index, entry.address, entry.reason, entry.action, entry.occurred_at)
    for held in found.untimed:
        take(held.entry_index, held.address, held.reason, "clear", None)
    return said
