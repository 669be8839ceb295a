"""What a difference between the two lists is called."""

import pytest

from service.domain.corrections import Correction, Marks, Slot
from service.domain.drift import Kind, kind_of
from service.domain.suppression import Cause

STOP = Correction("suppress", 20)
OPT_IN = Correction("clear", 20)
STOPPED = Cause("do_not_call", stop_at=20)
CLEARED = Cause("do_not_call", stop_at=10, clear_at=20)
UNDONE = Cause("do_not_call")
"""A row that holds nothing but the lock of its slot."""

CASES: dict[str, tuple[Correction | None, list[Cause], Slot, Kind | None]] = {
    "both suppress": (None, [STOPPED], Slot(Marks(stop_at=20)), None),
    "both permit": (None, [CLEARED], Slot(Marks(10, 20)), None),
    "neither ever heard of it": (None, [], Slot(), None),
    "we suppress, the vendor never heard of it": (STOP, [STOPPED], Slot(), "missing_there"),
    "we suppress, it may hold what we sent": (STOP, [STOPPED], Slot(sent=Marks(stop_at=20)), "missing_there"),
    "we suppress, it permits": (STOP, [STOPPED], Slot(Marks(clear_at=30)), "differs"),
    "we suppress, it holds a stop and may hold an opt-in": (
        STOP,
        [STOPPED],
        Slot(Marks(20), Marks(None, 30)),
        "differs",
    ),
    "we suppress, it holds a tie": (STOP, [STOPPED], Slot(Marks(20, 20)), "differs"),
    "we permit, it suppresses": (OPT_IN, [CLEARED], Slot(Marks(stop_at=15)), "differs"),
    "we permit, it may suppress": (OPT_IN, [CLEARED], Slot(sent=Marks(stop_at=15)), "differs"),
    "it holds a stop that we have no fact of": (None, [], Slot(Marks(stop_at=20)), "missing_here"),
    "it holds a stop that was undone here": (None, [UNDONE], Slot(Marks(stop_at=20)), "missing_here"),
    "it holds a stop that it cleared itself": (None, [], Slot(Marks(10, 20)), None),
    "it holds a stop, and we know of one that lapsed": (None, [STOPPED], Slot(Marks(stop_at=20)), None),
}


@pytest.mark.parametrize(("needed", "causes", "slot", "kind"), CASES.values(), ids=CASES)
def test_a_difference_has_its_name(
    needed: Correction | None, causes: list[Cause], slot: Slot, kind: Kind | None
) -> None:
    assert kind_of(needed, causes, slot) == kind
