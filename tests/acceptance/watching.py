"""Waits for what the worker does: at the vendor, and in the list of corrections."""

from __future__ import annotations

from typing import Any

from .running import until
from .speaking import Voice, a_number, ago, an_email
from .vendor import Seen, Taken, Vendor


def arrived(vendor: Vendor, channel: str, address: str, times: int = 1) -> list[Taken]:
    """Wait until the vendor took this address so many times."""

    def enough() -> list[Taken]:
        found = vendor.accepted(channel, address)
        return found if len(found) >= times else []

    return until(enough, f"{times} x {address} at the vendor")


def sentinel(voice: Voice, vendor: Vendor, channel: str) -> None:
    """Whatever was owed before on this channel has gone out once a later correction arrived."""
    address = an_email("sentinel") if channel == "email" else a_number()
    voice.stop(channel, address, "manual", ago(30))
    arrived(vendor, channel, address)


def settled(voice: Voice, *addresses: str) -> None:
    """Wait until nothing is on its way for these addresses. Looked at twice: a row may go back to where one looked."""
    states = ("pending", "sending") * 2
    until(
        lambda: not any(voice.corrections(state, one) for state in states for one in addresses),
        f"corrections of {addresses} settled",
        90,
    )


def seen(vendor: Vendor, channel: str, address: str, times: int) -> list[Seen]:
    """Wait until so many requests carried this address."""

    def enough() -> list[Seen]:
        found = vendor.requests(channel, address)
        return found if len(found) >= times else []

    return until(enough, f"{times} requests with {address}")


def listed(voice: Voice, address: str, *states: str) -> list[Any]:
    """Wait until a correction of this address is listed in one of these states."""

    def found() -> list[Any]:
        return [row for state in states for row in voice.corrections(state, address)]

    return until(found, f"a correction of {address} listed as {states}")
