"""What Kahuna would hold: one world for each environment, with people, stops, campaigns and their log.

Owns the putting together, the clock's place in it, and the ids that come from the seed. Refuses the outside: a world
knows neither requests nor callbacks.
"""

import hashlib
import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence

from service.domain.addresses import Channel
from service.kahuna.simulator.campaigns import ADDRESS_CREDENTIALS, Campaigns, Job, Recipient, Schedule
from service.kahuna.simulator.contract import ENVS, Env, SimulatorConfig
from service.kahuna.simulator.faults import Faults
from service.kahuna.simulator.people import People, Person
from service.kahuna.simulator.records import MICROSECONDS, Campaign, Log
from service.kahuna.simulator.stops import Stops


class World:
    """Everything of one environment. Ask `now` first in each request: what was due happens then."""

    def __init__(self, config: SimulatorConfig, env: Env, clock: Callable[[], float]) -> None:
        self.env: Env = env
        self._config = config
        self._clock = clock
        self.log = Log()
        self.people = People(self.log)
        self.stops = Stops()
        self.campaigns = Campaigns(env)
        self.jobs: dict[str, Job] = {}
        self.seeded = itertools.count(1)
        pauses = (_micro(config.push_cooldown_seconds), _micro(config.ingestion_seconds))
        self.schedule = Schedule(self.people, self.stops, self.log, *pauses)
        # Nobody is protected by these numbers, and they must come again with the same seed.
        self.random = random.Random(f"{config.seed}:{env}")  # noqa: S311

    def now(self) -> int:
        """The time in microseconds, with everything done that is due by now."""
        now = _micro(self._clock())
        self.schedule.move_to(now)
        return now

    def seconds(self) -> int:
        """The time in whole seconds."""
        return self.now() // MICROSECONDS

    def start_job(self, campaign: Campaign, recipients: Sequence[Recipient], *, observe: bool) -> Job:
        """Begin to add these to the campaign."""
        number = f"{self._config.seed}:{self.env}:{len(self.jobs) + 1}"
        name = hashlib.blake2b(number.encode(), digest_size=12, person=b"job").hexdigest()
        begins = self.now() + _micro(self._config.job_pending_seconds)
        job = self.jobs[name] = Job(name, begins, len(recipients))
        ends = begins + _micro(self._config.job_running_seconds)
        self.schedule.add_job(job, ends, campaign, recipients, observe=observe)
        self.now()
        return job

    def address(self, person: Person, channel: Channel) -> str | None:
        """Where this person gets messages."""
        return person.credentials.get(ADDRESS_CREDENTIALS[channel])


class Kahuna:
    """The worlds, what was asked, and how it is to fail."""

    def __init__(self, config: SimulatorConfig, clock: Callable[[], float]) -> None:
        self.config = config
        self.worlds: dict[Env, World] = {env: World(config, env, clock) for env in ENVS}
        self.requests: deque[dict[str, object]] = deque(maxlen=config.requests_kept)
        self.faults = Faults()
        self._clock = clock

    def now(self) -> int:
        """The time in whole seconds."""
        return int(self._clock())


def _micro(seconds: float) -> int:
    return int(seconds * MICROSECONDS)
