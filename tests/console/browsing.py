"""A person at the console, as far as that can be played without a browser: cookies kept, forms filled in."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from html import unescape
from html.parser import HTMLParser
from typing import Any

import httpx

from service.settings import Settings
from service.store import access
from tests.web.harness import Site, opened

ORIGIN = "https://sync.test"


@dataclass
class Person:
    """Somebody with a browser of their own. `token` is what they sign in with."""

    site: Site
    client: httpx.AsyncClient
    token: str

    async def get(self, path: str) -> httpx.Response:
        """A page."""
        return await self.client.get(path)

    async def post(self, path: str, origin: str = ORIGIN, **fields: Any) -> httpx.Response:
        """A form, sent from a page of this origin."""
        headers = {"Origin": origin, "Sec-Fetch-Site": "same-origin"}
        return await self.client.post(path, data=fields, headers=headers)

    async def sign_in(self) -> httpx.Response:
        """Exchanges the token for a session."""
        return await self.post("/console/sign-in", token=self.token)

    async def csrf(self) -> str:
        """What forms of this session bring back."""
        return csrf_in((await self.get("/console/health")).text)

    async def act(self, path: str, **fields: Any) -> httpx.Response:
        """A form of this session."""
        return await self.post(path, csrf=await self.csrf(), **fields)


class Seen(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes an element."""
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def of(self, *names: str) -> list[dict[str, str]]:
        """The attributes of all elements of these names."""
        return [attributes for tag, attributes in self.tags if tag in names]


def csrf_in(text: str) -> str:
    """The value that the first form of a page brings back."""
    found = re.search(r'name="csrf" value="([^"]*)"', text)
    assert found, text
    return unescape(found[1])


@asynccontextmanager
async def browsing(
    site: Site, *scopes: str, namespace: str | None = None, name: str = "ann", **limits: Any
) -> AsyncIterator[Person]:
    """Somebody whose new token has these scopes, and who has not signed in yet."""
    async with site.database.begin() as connection:
        given = scopes or ("read", "write", "admin")
        token = await access.create_token(connection, name, given, namespace, site.clock(), **limits)
    transport = site.client._transport  # noqa: SLF001 (another browser before the same application)
    async with httpx.AsyncClient(transport=transport, base_url=ORIGIN) as client:
        yield Person(site, client, token)


@asynccontextmanager
async def signed_in(settings: Settings, *scopes: str, **limits: Any) -> AsyncIterator[Person]:
    """The application, and somebody who has signed in."""
    async with opened(settings) as site, browsing(site, *scopes, **limits) as person:
        answer = await person.sign_in()
        assert answer.status_code == 303, answer.text
        yield person
