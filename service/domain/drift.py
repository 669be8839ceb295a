"""Owns what a difference between the two lists is called."""

from typing import Literal

from service.domain.corrections import Correction, Slot
from service.domain.suppression import Cause

Kind = Literal["missing_here", "missing_there", "differs"]


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
