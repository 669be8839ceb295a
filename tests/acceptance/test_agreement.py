"""Both directions at once, in random order: in the end the vendor holds what the list says (design.md 3)."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from .conftest import Deployment
from .speaking import Voice, a_number, ago, started, stopped
from .vendor import Vendor
from .watching import settled

STEPS = 7


class Conversation:
    """What happens to a few numbers on both sides. Times are 20 s apart, so that no two events share a second."""

    def __init__(self, voice: Voice, vendor: Vendor, seed: int) -> None:
        self.voice, self.vendor = voice, vendor
        self.random = random.Random(seed)
        self.numbers = [a_number() for _ in range(10)]
        self.begun = ago(4000)
        self.told: dict[str, list[str]] = {one: [] for one in self.numbers}
        self._late: list[dict[str, object]] = []

    def go(self) -> None:
        """Let it all happen, the vendor's callbacks late and out of order."""
        for step in range(STEPS):
            for number in self.numbers:
                self._happen(number, self.begun + 20 * self._slot(step))
            time.sleep(self.random.random() * 0.5)
            self._call_back(some=True)
        self._call_back(some=False)

    def _slot(self, step: int) -> int:
        """Mostly in order, sometimes the news of something that was earlier."""
        return step * 10 + self.random.randrange(10) if self.random.random() < 0.8 else self.random.randrange(70)

    def _happen(self, number: str, moment: int) -> None:
        what = self.random.choice(["STOP", "START", "START", "do_not_call", "manual", "reactivate"])
        if what in {"STOP", "START"}:
            entry = (stopped if what == "STOP" else started)(number, moment)
            self.vendor.met("single-secret", "sms", entry)
            self._late.append(entry)
        elif what == "reactivate":
            what += f" {self.voice.reactivate('sms', number, moment).status_code}"
        else:
            self.voice.stop("sms", number, what, moment)
        self.told[number].append(f"{moment} {what}")

    def _call_back(self, *, some: bool) -> None:
        self.random.shuffle(self._late)
        kept = len(self._late) // 2 if some else 0
        while len(self._late) > kept:
            size = self.random.randrange(1, 5)
            group, self._late = self._late[:size], self._late[size:]
            self.voice.callback("sms", group)

    def disagreements(self) -> Iterator[str]:
        """The numbers of which the vendor's newest entry and our verdict differ."""
        for number in self.numbers:
            newest = self.vendor.newest("sms", number)
            there, here = newest is not None and newest.is_stop, self.voice.suppressed("sms", number)
            if there is not here:
                held = [(one.timestamp, one.is_stop) for one in self.vendor.accepted("sms", number)]
                yield f"{number}: here {here}, there {there}; {self.told[number]}; the vendor's entries {held}"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_vendor_ends_with_what_the_list_says(alone: Voice, single: Deployment, seed: int) -> None:
    """design 3: a correction is owed when our verdict and the slot disagree; in the end none is owed."""
    talk = Conversation(alone, single.vendor, seed)
    talk.go()
    settled(alone, *talk.numbers)
    assert list(talk.disagreements()) == []
