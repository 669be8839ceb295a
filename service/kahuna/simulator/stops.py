"""Which addresses Kahuna holds as stopped, and why.

Owns the slots that the Sync APIs, the callbacks and the users' own acts fill. Refuses to judge an entry: those that
come here are sound.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

from service.domain.addresses import Channel
from service.kahuna.simulator.contract import EMAIL_WORDS, folded

ADDRESS_KEYS: Final[Mapping[Channel, str]] = MappingProxyType({"email": "email", "sms": "number"})
# How many soft bounces stop an address is not known: here, none do.
_STOPPING: Final[Mapping[Channel, tuple[str | None, ...]]] = MappingProxyType(
    {"email": tuple(word for word in EMAIL_WORDS if word != "soft_bounce"), "sms": (None,)}
)


class Slot(NamedTuple):
    """What Kahuna holds for an address and word, or for a number."""

    timestamp: int
    action: Literal["stop", "opt-in"]


class Stops:
    """The slots of one environment."""

    def __init__(self) -> None:
        self.slots: dict[tuple[Channel, str, str | None], Slot] = {}

    def keep(self, channel: Channel, entry: Mapping[str, Any], now: int) -> None:
        """Remember a sound entry.

        The contract says nothing of order. Assumed: a missing timestamp is the time of receipt, the newest timestamp
        wins, and of two with the same the one that came later.
        """
        key = (channel, folded(entry[ADDRESS_KEYS[channel]]), entry["reason"] if channel == "email" else None)
        slot = Slot(entry.get("timestamp", now), "opt-in" if _opts_in(channel, entry) else "stop")
        if key not in self.slots or self.slots[key].timestamp <= slot.timestamp:
            self.slots[key] = slot

    def reachable(self, channel: Channel, address: str | None) -> bool:
        """Whether a campaign may still use this address."""
        if address is None:
            return False
        # A credential may carry the plus sign that the SMS Sync API does not know.
        key = folded(address).removeprefix("+") if channel == "sms" else folded(address)
        held = (self.slots.get((channel, key, word)) for word in _STOPPING[channel])
        return all(slot is None or slot.action == "opt-in" for slot in held)


def _opts_in(channel: Channel, entry: Mapping[str, Any]) -> bool:
    # Anything but true counts as left out; what Kahuna makes of `"opt-in": false` is not known.
    return channel == "sms" and entry.get("opt-in") is True
