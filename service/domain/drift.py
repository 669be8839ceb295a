"""Owns what a difference between the two lists is called, which way it is mended, and what it would take."""

from typing import Final, Literal

from service.domain.addresses import Channel
from service.domain.corrections import Correction, Marks, Slot, sayable
from service.domain.suppression import Cause

Kind = Literal["missing_here", "missing_there", "differs"]

KINDS: Final = ("missing_here", "missing_there", "differs")

Direction = Literal["here", "there"]
"""Where something is to be done: a fact is recorded here, or Kahuna is told there."""


def kind_of(needed: Correction | None, causes: list[Cause], slot: Slot) -> Kind | None:
    """The name of the difference, or None if there is none.

    `missing_there`: we suppress, and the vendor never heard of the address. `differs`: both know it, and disagree.
    `missing_here`: it holds a stop for which there is no fact of ours, neither stop nor clear.
    """
    if needed is not None:
        unheard = slot.held.stop_at is None and slot.held.clear_at is None
        return "missing_there" if needed.action == "suppress" and unheard else "differs"
    known = any(c.decided is not None for c in causes)
    return "missing_here" if slot.held.stop_at is not None and not known and not slot.surely_open else None


def direction_of(kind: str) -> Direction:
    """Where a difference of this kind is mended."""
    return "here" if kind == "missing_here" else "there"


def reason_of(needed: Correction | None, causes: list[Cause], slot_name: str) -> str:
    """What the difference is about: the reason of the newest word of ours on that side, else the slot's own."""
    if needed is None:
        return slot_name
    stops = needed.action == "suppress"
    said = [(c.stop_at if stops else c.clear_at, c.reason) for c in causes]
    return max(((at, reason) for at, reason in said if at is not None), default=(0, slot_name))[1]


def still_meant(channel: Channel, action: str | None, occurred_at: int | None, needed: Correction | None) -> bool:
    """Whether what was approved is what is needed now. A stop may have got another time meanwhile; an opt-in may not,
    since that is another consent than the one that was looked at."""
    if needed is None or needed.action != action or not sayable(channel, needed.action):
        return False
    return action == "suppress" or needed.occurred_at == occurred_at


def only_ours(held: Marks, accepted: list[Correction]) -> bool:
    """Whether the stop that the vendor holds is one that we told it: then it proves nothing about the person."""
    return any(c.action == "suppress" and c.occurred_at == held.stop_at for c in accepted)
