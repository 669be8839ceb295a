"""Owns the world in which histories play: the service's own flows on a real PostgreSQL, the stand-in behind the
client's transport, the post between the two, and workers that die or stall. Ends with what both sides hold.

Refuses to judge: it keeps what was said, what was heard and what was found.
"""

import asyncio
import secrets
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from random import Random
from typing import Any, Final, Literal

import httpx
import msgspec

from service.domain.addresses import CHANNELS, Channel
from service.domain.runs import Guards
from service.errors import Conflict
from service.flows import check, pull, push, reconcile, review
from service.flows.check import Asking
from service.flows.imports import Import, Order
from service.flows.prove import prove
from service.kahuna.simulator import SimulatorConfig, build_simulator
from service.settings import Settings
from service.store import reviews
from service.store.database import Database
from tests.convergence.history import ABREAST, TICKS, History, Said, Step, weather
from tests.convergence.oracle import ALL, OF_WORD, Word
from tests.flows.logs import Failing, client_of
from tests.flows.planning import OPEN_DOOR, approved, asked, digest, found, lines_of, means
from tests.flows.speaking import KEYS, Wire, World

BEGINNING = datetime(2026, 3, 1, 12, tzinfo=UTC)
LONG = 1_000
"""Seconds after which every lease has ended and every retry and probe is due."""

_RUNS: Final[Sequence[tuple[Channel, str]]] = (("email", "logs"), ("email", "ledger"), ("sms", "ledger"))

TIMELY = Guards(share=0.5, floor=3, most=20)
"""Guards that hold some plans."""


class Dies(BaseException):
    """The worker's process ends here."""


@dataclass
class Found:
    """What there is at the end. `words` are those about each address, `unheard` what users told
    Kahuna and it told nobody, `refused` the opt-ins that a person here did not believe; `here` who is suppressed;
    `there` Kahuna's slots with their actions and times; `second` are the lines of the last runs, by address and slot;
    `ours` the stops by text that we told Kahuna, by number and time; `met` counts what the way there led through."""

    now: int = 0
    words: defaultdict[tuple[Channel, str], list[Word]] = field(default_factory=lambda: defaultdict(list))
    unheard: defaultdict[tuple[Channel, str], list[Word]] = field(default_factory=lambda: defaultdict(list))
    refused: defaultdict[tuple[Channel, str], list[Word]] = field(default_factory=lambda: defaultdict(list))
    here: dict[tuple[Channel, str], bool] = field(default_factory=dict)
    there: defaultdict[tuple[Channel, str], dict[str | None, tuple[str, int]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    second: defaultdict[tuple[Channel, str], dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    open_corrections: list[tuple[str, str]] = field(default_factory=list)
    ours: set[tuple[str, int]] = field(default_factory=set)
    met: Counter[str] = field(default_factory=Counter)


class Switch(httpx.AsyncBaseTransport):
    """The transport of the moment, for a client that lasts: to make one costs more than to call."""

    def __init__(self, chosen: Callable[[], httpx.AsyncBaseTransport]) -> None:
        self._chosen = chosen

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._chosen().handle_async_request(request)


class Holding(httpx.AsyncBaseTransport):
    """A transport whose first call hangs, before or after Kahuna has taken it, until it is let go."""

    def __init__(self, inner: httpx.AsyncBaseTransport, *, answered: bool) -> None:
        self._inner = inner
        self._answered = answered
        self.hangs, self.go_on = asyncio.Event(), asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.hangs.is_set():
            return await self._inner.handle_async_request(request)
        if not self._answered:
            self.hangs.set()
            await self.go_on.wait()
            return await self._inner.handle_async_request(request)
        try:
            return await self._inner.handle_async_request(request)
        finally:
            self.hangs.set()
            await self.go_on.wait()


class Stage(World):
    """One service, one Kahuna, and the histories that they share."""

    def __init__(self, database: Database, settings: Settings, chance: Random) -> None:
        super().__init__(database, settings)
        self.chance = chance
        self.clock.now = BEGINNING
        config = SimulatorConfig(
            KEYS.secret_key, KEYS.api_key, email_webhook="http://us.test/email", sms_webhook="http://us.test/sms"
        )
        post = httpx.MockTransport(self._collect)
        self.simulator = httpx.ASGITransport(app=build_simulator(config, lambda: self.clock.seconds, transport=post))
        self.wire = Wire(self.simulator)
        self.control = httpx.AsyncClient(transport=self.simulator, base_url="http://kahuna.test")
        self.client = client_of(self, Switch(lambda: self.wire))
        self.found = Found()
        self._collected: list[tuple[Channel, dict[str, Any]]] = []
        self._post: defaultdict[int, list[tuple[Channel, dict[str, Any]]]] = defaultdict(list)

    def _collect(self, request: httpx.Request) -> httpx.Response:
        channel: Channel = "email" if request.url.path == "/email" else "sms"
        self._collected += [(channel, entry) for entry in msgspec.json.decode(request.content)]
        return httpx.Response(200)

    async def push(self, channel: Channel = "email", **limits: Any) -> bool:
        """One round of the worker's push."""
        return await push.push_due(self.pusher(self.client, **limits), channel)

    async def play(self, histories: Sequence[History], steps: Sequence[Step]) -> Found:
        """All of it, to the end; what is found then."""
        unwanted = sorted(address for one in histories for address in one.unwanted)
        for tick, step in enumerate(steps):
            self.clock.sleep(step.pause)
            said = [one for each in histories for one in each.said if one.tick == tick]
            await self._fail(step, unwanted)
            await self._live(tick, step, said)
            await self.heal()
        self.clock.sleep(60)
        await self._deliver(TICKS, 100)
        await self._review(histories)
        await self._agree()
        return self.found

    async def _fail(self, step: Step, unwanted: list[str]) -> None:
        for channel, fault in step.faults.items():
            if fault is not None or unwanted:
                await self.fault(api=f"{channel}_sync", **({"reject": unwanted} | (fault or {"times": 4})))

    async def _live(self, tick: int, step: Step, said: Sequence[Said]) -> None:
        """One step. What is said while a push hangs meets corrections on their way."""
        stalled = None if step.stalled is None else await self._stall(step.stalled, answered=step.answered)
        await self._say(said)
        await self._deliver(tick, step.cut)
        if stalled is not None:
            await self._wake(*stalled, lasting=self.chance.random() < 0.5)
        await self._pull(step.pulls)
        if step.run is not None:
            await self._run_between(step.run, dies=step.run_dies)
        for channel in CHANNELS:
            await self.push(channel, **step.limits)
        await prove(self.database, self.clock)
        await push.release_expired(self.database, self.clock)

    # What is said.

    async def _say(self, said: Sequence[Said]) -> None:
        acts: defaultdict[str, list[Said]] = defaultdict(list)
        lists: defaultdict[Channel, list[Said]] = defaultdict(list)
        for one in said:
            if one.kind == "act":
                acts[one.word].append(one)
            elif one.kind == "import":
                lists[one.channel].append(one)
            else:
                await self._write(one)
        for word, some in acts.items():
            await self._act(word, some)
        for channel, rows in lists.items():
            await self._import(channel, rows)

    async def _act(self, word: str, some: Sequence[Said]) -> None:
        """Users of Kahuna's do something; what it would call us with is kept for the post."""
        self._collected.clear()
        order = {"act": word, "addresses": list(dict.fromkeys(one.address for one in some))}
        answer = await self.control.post("/simulator/acts", json=order)
        assert answer.json()["acted"] == len(order["addresses"]), answer.text
        called = {entry.get("email", entry.get("number")): entry for _, entry in self._collected}
        at = self.clock.seconds
        for one in some:
            key, heard = (one.channel, one.address), bool(one.arrives)
            reason = OF_WORD[word] if one.channel == "email" else "do_not_call"
            known = one.channel == "email" or heard
            words = self.found.words if known else self.found.unheard
            words[key].append(Word(reason, word != "start", at, kahuna=True, heard=heard))
            entry = called[one.address]
            for tick in one.arrives:
                self._post[tick].append((one.channel, entry | ({"email": one.spelt} if "email" in entry else {})))

    async def _write(self, one: Said) -> None:
        at = None if one.age is None else self.clock.seconds - one.age
        key, stops = (one.channel, one.address), one.kind == "stop"
        if not stops:
            try:
                await self.consent(one.channel, one.spelt, at)
            except Conflict:
                self.found.met["consents refused for a newer stop"] += 1
                return
        else:
            await self.stop(one.channel, one.spelt, one.word, at)
        # Without a time it is now, or as late as an opt-in that is ahead of our clock; here none is.
        stated = self.clock.seconds if at is None else at
        reasons = [one.word] if stops else list(ALL[one.channel])
        self.found.words[key] += [Word(reason, stops, stated) for reason in reasons]

    async def _import(self, channel: Channel, rows: Sequence[Said]) -> None:
        now = self.clock.seconds
        text = ["address,reason,occurred_at"]
        for one in rows:
            at = now - (one.age or 0)
            text.append(f"{one.spelt},{one.word},{at}")
            self.found.words[channel, one.address].append(Word(one.word, True, at))
        order = Order("default", channel, "tester", secrets.randbits(50), "list.csv")

        async def parts() -> Any:
            yield "\n".join(text).encode()

        tally = await Import(self.database, order, self.rules, self.clock).run(parts())
        assert tally.accepted + tally.duplicates == len(rows), tally

    async def _deliver(self, tick: int, cut: int) -> None:
        """The callbacks that arrive now, in any order and cut in any way."""
        due = self._post.pop(tick, [])
        self.chance.shuffle(due)
        for channel in CHANNELS:
            entries = [entry for about, entry in due if about == channel]
            for start in range(0, len(entries), cut):
                ingested = await self.callback(channel, entries[start : start + cut])
                assert ingested.outcome is not None, "a callback was recorded and not applied"
                assert not ingested.outcome.rejected

    # Workers.

    async def _stall(self, channel: Channel, *, answered: bool) -> tuple[Channel, Holding, asyncio.Task[bool]] | None:
        """A push that hangs in its first call; None if there was nothing to push."""
        holding = Holding(self.wire, answered=answered)
        before, self.wire = self.wire, holding  # type: ignore[assignment]
        task = asyncio.create_task(self.push(channel))
        hangs = asyncio.create_task(holding.hangs.wait())
        await asyncio.wait({task, hangs}, return_when=asyncio.FIRST_COMPLETED)
        self.wire = before
        if holding.hangs.is_set():
            self.found.met["pushes that hung"] += 1
            return channel, holding, task
        hangs.cancel()
        await task
        return None

    async def _wake(self, channel: Channel, holding: Holding, task: asyncio.Task[bool], *, lasting: bool) -> None:
        """The push goes on: after its lease has ended and another has sent the same; or it is told to stop."""
        if lasting:
            self.clock.sleep(LONG)
            freed = await push.release_expired(self.database, self.clock)
            self.found.met["corrections taken from a stalled worker"] += freed
            await self.push(channel)
            holding.go_on.set()
            await task
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self.found.met["pushes cut off"] += 1

    async def _pull(self, how: str) -> None:
        """The logs since the beginning, or as far as they are given; what was read is known the second time."""
        if how == "no":
            return
        before = self.wire
        if how == "fails":
            self.wire = Failing(self.wire, after=self.chance.randint(0, 2))  # type: ignore[assignment]

        def die(_: Any) -> None:
            raise Dies

        try:
            given = (self.database, self.client, "default", self.rules, self.clock)
            progress = die if how == "dies" else None
            await pull.pull(*given, since=BEGINNING, until=self.clock(), page_size=5, progress=progress)
        except Dies:
            self.found.met["pulls whose worker died"] += 1
        finally:
            self.wire = before

    async def _run_between(self, channel: Channel, *, dies: bool) -> None:
        """A run while everything else goes on: it approves itself as far as the guards let it."""
        run_id = await asked(self, channel, auto_approve=True)
        if dies:
            await self._dying(run_id)
        await self._carry_on(run_id, TIMELY)

    async def _dying(self, run_id: Any) -> None:
        def die(*_: Any) -> None:
            raise Dies

        try:
            await reconcile.run_next(means(self, TIMELY, page=2), die, run_id=run_id)
        except Dies:
            self.found.met["runs whose worker died"] += 1

    async def _carry_on(self, run_id: Any, guards: Guards = OPEN_DOOR) -> Any:
        await reconcile.run_next(means(self, guards, clients={"default": self.client}), run_id=run_id)
        return await found(self, run_id)

    # The end.

    async def _review(self, histories: Sequence[History]) -> None:
        """A person decides on the opt-ins that wait. One that is refused was never said."""
        approving = {address: one.approves for one in histories for address in _addresses(one)}
        async with self.database.read() as connection:
            waiting = list(await reviews.by_state(connection, "default", "pending", 10_000))
        for row in waiting:
            key = (row["channel"], row["address"])
            decision = "approved" if approving[row["address"]] else "refused"
            given = (self.database, row["id"], decision, "tester", None, self.policy, self.clock, None)
            await review.decide(*given)
            self.found.met[f"opt-ins {decision}"] += 1
            if decision == "refused":
                refused = [w for w in self.found.words[key] if not w.stops and w.kahuna and w.at == row["occurred_at"]]
                self.found.words[key] = [word for word in self.found.words[key] if word not in refused]
                self.found.refused[key] += refused

    async def _agree(self) -> None:
        """The faults have ended: what is late is sent, one run of each kind is approved, and another looks."""
        await self._quiet()
        for channel, source in _RUNS:
            row = await self._whole_run(channel, source)
            if row.state == "planned":
                await approved(self, row.id)
            await self._quiet()
        self.clock.sleep(LONG)
        for channel, source in _RUNS:
            row = await self._whole_run(channel, source)
            for line in await lines_of(self, row.id):
                self.found.second[channel, line.address][line.slot] = line.state
        await self._look()

    async def _whole_run(self, channel: Channel, source: str) -> Any:
        asks = {"since": BEGINNING.isoformat()} if source == "logs" else None
        return await self._carry_on(await asked(self, channel, source=source, asked=asks))

    async def _quiet(self) -> None:
        """Until nothing is left to be sent: time passes, so that leases end and retries are due."""
        for _ in range(100):
            self.clock.sleep(LONG)
            await push.release_expired(self.database, self.clock)
            if not any([await self.push(channel) for channel in CHANNELS]):
                break
        else:
            raise AssertionError("the pushes come to no end")
        while await prove(self.database, self.clock):
            pass

    async def _look(self) -> None:
        """What both sides hold."""
        self.found.now = self.clock.seconds
        known = [*self.found.words, *self.found.unheard]
        for channel in CHANNELS:
            addresses = sorted({address for about, address in known if about == channel})
            asking = Asking("default", channel, "marketing", self.found.now, self.policy)
            for one in await check.check(self.database, asking, addresses):
                self.found.here[channel, one.address] = one.suppressed is True
        answer = await self.control.get("/simulator/state", params={"env": "s"})
        for slot in answer.json()["slots"]:
            held = self.found.there[slot["channel"], slot["address"]]
            held[slot["word"]] = (slot["action"], slot["timestamp"])
        rows = await self.query("select address, state from corrections where state in ('pending', 'sending')")
        self.found.open_corrections = [(row.address, row.state) for row in rows]
        told = "select address, occurred_at from corrections where channel = 'sms' and action = 'suppress'"
        self.found.ours = {(row.address, row.occurred_at) for row in await self.query(told)}
        await digest(self)


def _addresses(one: History) -> set[str]:
    return {said.address for said in one.said}


def world_of(number: int) -> int:
    """The world in which a history plays."""
    return number // ABREAST


async def play(database: Database, settings: Settings, seed: int, world: int, histories: Sequence[History]) -> Found:
    """What these histories come to in the world of this number."""
    reviewing: Sequence[Literal["local", "off", "all"]] = ("local", "local", "off", "all")
    namespace = replace(settings.namespaces[0], opt_in_review=reviewing[world % len(reviewing)])
    chance = Random(f"{seed} chance {world}")
    stage = Stage(database, replace(settings, namespaces=(namespace,)), chance)
    async with stage.control, stage.client:
        return await stage.play(histories, weather(seed, world))
