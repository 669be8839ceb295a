"""When a request may go out: where time comes from, and requests about one thing that must be apart.

Owns the moment of the last request about each thing. Refuses to hold a place for whoever waits: one who gives up leaves
nothing behind, and one who waits for a connection as well takes its turn only with that in hand.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import inf

from service.kahuna import errors


@dataclass(frozen=True, slots=True)
class Times:
    """Where time comes from, so that tests wait for nothing: Unix seconds, seconds that never go back, sleep, and a
    number in [0, 1) for each retry."""

    clock: Callable[[], float]
    monotonic: Callable[[], float]
    sleep: Callable[[float], Awaitable[object]]
    jitter: Callable[[], float]


class Pace:
    """Keeps requests about the same thing apart by so many seconds."""

    def __init__(self, seconds: float, times: Times) -> None:
        self._seconds = seconds
        self._times = times
        self._free_at: dict[str, float] = {}

    def turn(self, api: str, name: str, end: float = inf) -> "Turn":
        """A turn at asking for `name`, for one call and all its attempts; `end` by the clock that never goes back."""
        return Turn(self, api, name, end)

    async def wait(self, turn: "Turn") -> None:
        """Returns when the turn could be taken; JobUnfinished at once if that is after its end."""
        while True:
            now = self._times.monotonic()
            at = max(now, self._free_at.get(turn.name, now))
            if at > turn.end:
                raise errors.JobUnfinished(turn.api)
            if at == now:
                return
            await self._times.sleep(at - now)

    def take(self, name: str) -> bool:
        """Takes the turn, unless somebody else was faster."""
        now = self._times.monotonic()
        self._free_at = {other: at for other, at in self._free_at.items() if at > now}
        if name in self._free_at:
            return False
        self._free_at[name] = now + self._seconds
        return True


@dataclass(frozen=True, slots=True)
class Turn:
    """What a call waits for before each of its attempts."""

    pace: Pace
    api: str
    name: str
    end: float

    async def wait(self) -> None:
        """Until it could be taken."""
        await self.pace.wait(self)

    def take(self) -> bool:
        """Whether it was."""
        return self.pace.take(self.name)
