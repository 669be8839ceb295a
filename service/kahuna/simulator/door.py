"""The way into every API: faults, credentials, environment, limits, and the log of what was asked.

Owns what all the contracts share. Refuses to know what an API answers.
"""

import asyncio
import hmac
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.kahuna.simulator import faults
from service.kahuna.simulator.contract import ENVS, LOG_WORDS, Api, Env, decoded, error_object
from service.kahuna.simulator.faults import CutConnection, Fault
from service.kahuna.simulator.world import Kahuna, World

_LOG_APIS: Final[Mapping[str, Api]] = MappingProxyType(
    {"push": "push_logs", "in_app": "in_app_logs", "email": "email_logs", "user_merge": "user_merge_logs"}
)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Call:
    """One request that was let in."""

    kahuna: Kahuna
    env: Env
    fault: Fault
    body: bytes
    request: Request

    @property
    def world(self) -> World:
        """What the request is about."""
        return self.kahuna.worlds[self.env]

    def read(self, shape: type[_T]) -> _T:
        """The body in this shape; 400 if it has another. Fields that the shape does not name are ignored."""
        return decoded(self.body, shape)


class Answer(NamedTuple):
    """What an API says, and what the log of requests keeps of it."""

    document: Any
    entries: int | None = None
    counts: Mapping[str, int] = {}
    status: int = 200


Serve = Callable[[Call], Answer]
Endpoint = Callable[[Request], Awaitable[Response]]


class Door:
    """Makes an endpoint of what an API does."""

    def __init__(self, kahuna: Kahuna) -> None:
        self._kahuna = kahuna
        login = f"{kahuna.config.secret_key.reveal()}:{kahuna.config.api_key.reveal()}"
        self._credentials = b64encode(login.encode())

    def endpoint(self, api: Api, serve: Serve) -> Endpoint:
        """An endpoint of one API."""

        async def answer(request: Request) -> Response:
            return await self._answer(request, api, serve)

        return answer

    def limited(self, api: Api, serve: Serve) -> Endpoint:
        """An endpoint that works on so many requests at once, and refuses more: 429 is assumed."""
        under_way = 0

        async def answer(request: Request) -> Response:
            nonlocal under_way
            if under_way >= self._kahuna.config.concurrent_requests:
                self._note(api)["status"] = 429
                return JSONResponse(error_object(429, "Too many requests at once"), 429)
            under_way += 1
            try:
                return await self._answer(request, api, serve)
            finally:
                under_way -= 1

        return answer

    def of_logs(self, serve: Serve) -> Endpoint:
        """The endpoint that the four log APIs share. Which of them is asked, only the body says."""

        async def answer(request: Request) -> Response:
            return await self._answer(request, log_api(await request.body()), serve)

        return answer

    def _note(self, api: Api) -> dict[str, object]:
        log: dict[str, object] = {"api": api, "received_at": self._kahuna.now(), "entries": None, "status": None}
        self._kahuna.requests.append(log)
        return log

    async def _answer(self, request: Request, api: Api, serve: Serve) -> Response:
        """Answers, and logs what was answered; a status of None is a connection that was cut."""
        fault = self._kahuna.faults.next(api)
        log = self._note(api)
        await asyncio.sleep(fault.latency_seconds)
        if fault.drop_request:
            return CutConnection()
        if fault.status is not None:
            log["status"] = fault.status
            return faults.refusal(fault, fault.status)
        try:
            served = serve(await self._let_in(request, api, fault))
        except HTTPException as refusal:
            log["status"] = refusal.status_code
            raise
        log.update(served.counts, entries=served.entries)
        if fault.drop_answer:
            return CutConnection()
        log["status"] = served.status
        return faults.answer(served.document, fault, served.status)

    async def _let_in(self, request: Request, api: Api, fault: Fault) -> Call:
        """The request, if its credentials, environment and size are right. The order of the checks is our choice."""
        # The Server API's key and environment are fields of its form, which it reads itself.
        env = "s" if api == "server" else self._checked(request)
        return Call(self._kahuna, env, fault, await self._body(request), request)

    def _checked(self, request: Request) -> Env:
        if not self._knows(request.headers.get("Authorization", "")):
            raise HTTPException(401, "Authentication failed")
        return environment(request.query_params.get("env"))

    async def _body(self, request: Request) -> bytes:
        body = await request.body()
        # The contract has the limit, but not the status for what is over it.
        if len(body) >= self._kahuna.config.max_body_bytes:
            raise HTTPException(413, "Request too large")
        return body

    def _knows(self, authorization: str) -> bool:
        scheme, _, credentials = authorization.partition(" ")
        return scheme.lower() == "basic" and hmac.compare_digest(credentials.strip().encode(), self._credentials)


def environment(word: str | None) -> Env:
    """The environment of this name; 400 if there is none."""
    for env in ENVS:
        if word == env:
            return env
    raise HTTPException(400, "env must be p or s")


class _Categories(msgspec.Struct):
    categories_to_return: list[str]


def log_api(body: bytes) -> Api:
    """Which log API this body asks, by the first category; what cannot be told counts as the one for push."""
    try:
        categories = msgspec.json.decode(body, type=_Categories).categories_to_return
    except (ValueError, RecursionError):
        return "push_logs"
    return _LOG_APIS[LOG_WORDS.get(categories[0] if categories else "", "push")]


async def refuse(_request: Request, error: Any) -> Response:
    """A refusal as the common error object."""
    return JSONResponse(error_object(error.status_code, error.detail), error.status_code, headers=error.headers)
