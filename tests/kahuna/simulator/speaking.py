"""How the tests of the stand-in speak to it: plain requests written from the contract, and a clock of their own."""

import hashlib
import json
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from service.kahuna.simulator import SimulatorConfig, build_simulator
from service.settings import Secret

NOW = 1_500_000_000.5
TODAY = "07/14/2017"
AUTH = ("the-secret-key", "demo-api-key")
ANN = {"email": "ann@example.com"}


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.seconds = NOW

    def __call__(self) -> float:
        return self.seconds


class Receiver:
    """Where callbacks arrive. `answers` is what it says to each, then 200."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.answers: list[int | httpx.RequestError] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if self.answers else 200
        if isinstance(answer, httpx.RequestError):
            raise answer
        return httpx.Response(answer)

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(request.content) for request in self.requests]


class Vendor:
    """A stand-in with its clock, and somebody who asks it."""

    def __init__(self, web: httpx.AsyncClient, clock: Clock, receiver: Receiver) -> None:
        self.web = web
        self.clock = clock
        self.receiver = receiver

    async def raw(self, path: str, body: Any, env: str = "s", **headers: str) -> httpx.Response:
        """One call of a JSON API."""
        return await self.web.post(f"/api/{path}", params={"env": env}, json=body, headers=headers)

    async def call(self, path: str, body: Any, env: str = "s", **headers: str) -> Any:
        """One call that must be answered with 200; what it says."""
        answer = await self.raw(path, body, env, **headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def log(self, who: dict[str, Any] | None, device: str = "dev-1", **fields: str) -> Any:
        """One call of the Server API."""
        form = {"key": AUTH[0], "env": "s", "dev_id": device, "event": "start"} | fields
        if who is not None:
            form["credentials"] = json.dumps(who)
        answer = await self.web.post("/log", data=form, auth=httpx.BasicAuth("", ""))
        assert answer.status_code == 200
        return answer.json()

    async def meet(self, *names: str, env: str = "s", **fields: str) -> None:
        """Users with an e-mail address, a number and a device."""
        for name in names:
            number = f"1555{zlib.crc32(name.encode()) % 10**7:07d}"
            credentials = {"email": f"{name}@example.com", "username": name, "mobile_number": number}
            said = await self.log(credentials, f"dev-{name}", env=env, push_token=f"token-{name}", os_name="ios")
            assert said == {"success": True}

    async def user(self, kind: str, value: str, env: str = "s") -> Any:
        """The answer of User Info."""
        return await self.call("userinfo", {"target_user": {kind: value}}, env, KAHUNA_API_CHECKSUM=checksum(value))

    async def populate(self, campaign_id: int, *names: str, env: str = "s", **config: Any) -> str:
        """A job of an Adaptive campaign; its id."""
        body = {
            "campaign_config": {"campaign_id": campaign_id, "cred_type": "username"} | config,
            "recipient_list": [{"k_to": [name]} for name in names],
        }
        job_id: str = (await self.call("campaign/populate", body, env))["job_id"]
        return job_id

    async def job(self, job_id: str, env: str = "s") -> Any:
        """The answer of Job Status."""
        return (await self.web.get(f"/api/campaign/populate/{job_id}", params={"env": env})).json()

    async def logs(self, category: str, env: str = "s", size: int = 1000, timestamp: str = TODAY) -> list[Any]:
        """All records of a day, page by page."""
        body: dict[str, Any] = {"number_of_records": size, "categories_to_return": [category]}
        page = await self.call("kahunalogs", body | {"timestamp": timestamp}, env)
        records = list(page[category])
        while page["more_records"]:
            page = await self.call("kahunalogs", body | {"cursor": page["cursor"]}, env)
            records += page[category]
        return records

    async def control(self, path: str, body: Any, method: str = "POST") -> Any:
        """One call of a control endpoint; what it says."""
        answer = await self.web.request(method, f"/simulator/{path}", json=body)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    async def act(self, act: str, *names: str, **more: Any) -> Any:
        """These users do this."""
        users = [{"username": name} for name in names]
        return await self.control("acts", {"act": act, "users": users} | more)

    async def fail(self, **fault: Any) -> None:
        """Fail like this."""
        await self.control("faults", fault, "PUT")


@asynccontextmanager
async def vendor(**more: Any) -> AsyncIterator[Vendor]:
    """A stand-in, set up with these fields of its config."""
    clock, receiver = Clock(), Receiver()
    given = {"callback_pause_seconds": 0.0} | more
    config = SimulatorConfig(Secret(AUTH[0]), Secret(AUTH[1]), **given)
    app = build_simulator(config, clock, transport=httpx.MockTransport(receiver))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://kahuna.test", auth=AUTH) as web:
        yield Vendor(web, clock, receiver)


def checksum(value: str) -> str:
    """As User Info wants it."""
    return hashlib.md5(("yek-ipa-omed" + value).encode(), usedforsecurity=False).hexdigest()
