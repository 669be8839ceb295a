"""Campaigns: which there are, whom they are about to reach, and what they leave in the log.

Owns jobs and the schedule by which they move with the clock. Refuses to run by itself: a schedule moves when it is
told the time, so that two stand-ins that are asked the same do the same.
"""

import heapq
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import msgspec

from service.domain.addresses import Channel
from service.kahuna.simulator.contract import Env, error_object
from service.kahuna.simulator.people import People, Person
from service.kahuna.simulator.records import Campaign, CampaignType, Device, EmailOfExperience, Log, Record
from service.kahuna.simulator.stops import Stops

ADDRESS_CREDENTIALS: Final[Mapping[Channel, str]] = {"email": "email", "sms": "mobile_number"}


class CampaignOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A campaign to be made. Without an id it gets the next one."""

    name: str
    type: CampaignType = "adaptive"
    channel: Literal["push", "in_app", "email", "sms"] = "email"
    env: Env = "s"
    campaign_id: int | None = None
    suite_id: int | None = None
    emails: tuple[EmailOfExperience, ...] = ()


_DEFAULTS: Final = (
    CampaignOrder("Welcome", channel="push", campaign_id=1001, suite_id=1),
    CampaignOrder("Newsletter", channel="email", campaign_id=1002, suite_id=1),
    CampaignOrder("Sale by text", channel="sms", campaign_id=1003),
    CampaignOrder("What is new", channel="in_app", campaign_id=1004),
    CampaignOrder("Price drop", type="external_trigger", channel="email", campaign_id=2001),
    CampaignOrder(
        "First steps",
        type="experience",
        campaign_id=3001,
        emails=(
            EmailOfExperience("Hello", "Welcome aboard"),
            EmailOfExperience("A week later", "How is it going?"),
        ),
    ),
)


class Campaigns:
    """The campaigns of one environment; each environment begins with a few."""

    def __init__(self, env: Env) -> None:
        self._env = env
        self._by_id: dict[int, Campaign] = {}
        for order in _DEFAULTS:
            self.make(order)

    def __iter__(self) -> Iterator[Campaign]:
        return iter(self._by_id.values())

    def get(self, campaign_id: int) -> Campaign | None:
        """The campaign with this id."""
        return self._by_id.get(campaign_id)

    def named(self, name: str) -> Campaign | None:
        """The campaign with this name, the first one of several."""
        return next((campaign for campaign in self if campaign.name == name), None)

    def make(self, order: CampaignOrder) -> Campaign:
        """A new campaign, or another in the place of the one with this id."""
        given = order.campaign_id
        campaign_id = max(self._by_id, default=1000) + 1 if given is None else given
        campaign = Campaign(campaign_id, order.name, order.type, order.channel, self._env, order.suite_id, order.emails)
        self._by_id[campaign_id] = campaign
        return campaign

    def of_push_api(self, name: str | None) -> Campaign:
        """What the pushes of the Push API are counted for; that they are a campaign without a name too is assumed."""
        wanted = name or "Push API"
        found = self.named(wanted)
        if found is not None and found.channel == "push":
            return found
        return self.make(CampaignOrder(wanted, type="push_api", channel="push"))


@dataclass(slots=True, eq=False)
class Job:
    """Users being added to a campaign."""

    id: str
    begins: int
    total: int
    done: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)
    polled: int | None = None

    def status(self, now: int) -> dict[str, Any]:
        """How far it is, in the assumed words. A job that could not add anybody has failed."""
        word = "pending" if now < self.begins else "running"
        if now >= self.begins and self.done == self.total:
            word = "failed" if self.total and len(self.errors) == self.total else "complete"
        return {
            "success": True,
            "job_id": self.id,
            "status": word,
            "processed": self.done,
            "total": self.total,
            "errors": self.errors,
        }


class Recipient(msgspec.Struct, frozen=True):
    """One user to be added: the first who has one of these credentials. What several values mean is not known."""

    kind: str
    values: tuple[str, ...]
    send_at: int = 0


class Message(msgspec.Struct, frozen=True):
    """One message to one user. The two words are those of the Push API."""

    user_id: int
    campaign: Campaign
    observe_rate_limiting: bool = False
    influence_rate_limiting: bool = True


class _Addition(msgspec.Struct, frozen=True):
    """A recipient's turn in a job."""

    job: Job
    recipient: Recipient
    campaign: Campaign
    observe_rate_limiting: bool


_Step: TypeAlias = _Addition | Message


class Schedule:
    """What is to happen in one environment, and the doing of it. All times are in microseconds."""

    def __init__(self, people: People, stops: Stops, log: Log, cooldown: int, ingestion: int) -> None:
        self._people = people
        self._stops = stops
        self._log = log
        self._cooldown = cooldown
        self._ingestion = ingestion
        self._steps: list[tuple[int, int, _Step]] = []
        self._order = itertools.count()

    def add(self, due: int, step: _Step) -> None:
        """This is to be done then; of two at the same time, the one that was added first."""
        heapq.heappush(self._steps, (due, next(self._order), step))

    def add_job(
        self, job: Job, ends: int, campaign: Campaign, recipients: Sequence[Recipient], *, observe: bool
    ) -> None:
        """Recipients have their turns evenly between the job's begin and end."""
        for number, recipient in enumerate(recipients, 1):
            due = job.begins + (ends - job.begins) * number // len(recipients)
            self.add(due, _Addition(job, recipient, campaign, observe))

    def move_to(self, now: int) -> None:
        """Do everything that is due."""
        while self._steps and self._steps[0][0] <= now:
            due, _, step = heapq.heappop(self._steps)
            if isinstance(step, Message):
                self._send(due, step)
            else:
                self._take_turn(due, step)

    def _take_turn(self, due: int, turn: _Addition) -> None:
        recipient, job = turn.recipient, turn.job
        job.done += 1
        found = (self._person(recipient.kind, value, due) for value in recipient.values)
        person = next((one for one in found if one is not None), None)
        if person is None:
            job.errors.append({"k_to": list(recipient.values)} | error_object(404, "User not found"))
            return
        message = Message(person.id, turn.campaign, turn.observe_rate_limiting)
        if recipient.send_at > due:
            self.add(recipient.send_at, message)
        else:
            self._send(due, message)

    def _person(self, kind: str, value: str, at: int) -> Person | None:
        # The recipients of a Flex campaign are known by Kahuna's own id, which is no credential.
        if kind == "":
            return self._people.current(int(value))
        person = self._people.of(kind, value)
        return person if person is not None and person.created + self._ingestion <= at else None

    def _send(self, at: int, message: Message) -> None:
        """Send, if this person can be reached; a message that is not sent leaves no record."""
        person = self._people.current(message.user_id)
        if person is None:
            return
        match message.campaign.channel:
            case "push":
                self._push(at, person, message)
            case "in_app":
                self._show(at, person, message)
            case channel:
                self._mail(at, person, message, channel)

    def _push(self, at: int, person: Person, message: Message) -> None:
        device = next((one for one in person.devices.values() if one.push_enabled), None)
        if device is None:
            return
        held_back = person.last_push is not None and at < person.last_push + self._cooldown
        if message.observe_rate_limiting and held_back:
            self._write(at, person, message.campaign, "rate_limited", device=device)
            return
        if message.influence_rate_limiting:
            person.last_push = at
        self._write(at, person, message.campaign, "push", device=device)

    def _show(self, at: int, person: Person, message: Message) -> None:
        device = next(iter(person.devices.values()), None)
        if device is not None:
            for action in ("ia_sent", "ia_delivered"):
                self._write(at, person, message.campaign, action, device=device)

    def _mail(self, at: int, person: Person, message: Message, channel: Channel) -> None:
        address = person.credentials.get(ADDRESS_CREDENTIALS[channel])
        if address is not None and self._stops.reachable(channel, address):
            for action in ("email", "delivered") if channel == "email" else ("sms",):
                self._write(at, person, message.campaign, action, address)

    def _write(
        self, at: int, person: Person, campaign: Campaign, action: str, address: str = "", device: Device | None = None
    ) -> None:
        person.last_campaigns[campaign.channel] = campaign
        record = Record(campaign.channel, at, action, person.id, person.labels, campaign, address, device)
        self._log.add(record)
