"""The document of the API: well-formed, complete, and true of the application, whatever is sent to it."""

import ast
import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis.strategies import emails, from_regex
from schemathesis.config import SchemathesisConfig
from schemathesis.python import asgi
from starlette.routing import Match

from service import app, errors
from service.domain.addresses import Channel
from service.settings import Settings
from service.store import access
from service.web import openapi, reference
from service.web.problems import PROBLEMS
from tests.conftest import cloned, settings_for
from tests.web.harness import Site, opened, signature

ROOT = Path(app.__file__).parent


@pytest.fixture
async def document(site: Site) -> Any:
    return (await site.client.get("/openapi.json")).json()


def operations_in(document: Any) -> list[tuple[str, str, Any]]:
    return [(path, method, one) for path, there in document["paths"].items() for method, one in there.items()]


# The document.


async def test_it_is_openapi_3_1(document: Any) -> None:
    assert document["openapi"] == "3.1.0"
    schemathesis.openapi.from_dict(document).validate()
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate(schema)


async def test_every_example_is_what_its_schema_says(document: Any) -> None:
    def check(content: Any) -> int:
        examples = [content["example"]] if "example" in content else []
        examples += [one["value"] for one in content.get("examples", {}).values()]
        schema = content["schema"] | {"components": document["components"]}
        validator = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
        for example in examples:
            validator.validate(example)
        return len(examples)

    for path, method, one in operations_in(document):
        bodies = one.get("requestBody", {}).get("content", {})
        answers = [c for answer in one["responses"].values() for c in answer.get("content", {}).items()]
        for kind, content in chain(bodies.items(), answers):
            assert check(content) or "json" not in kind or path == "/openapi.json", (method, path, kind)


async def test_every_route_is_described_and_nothing_else(settings: Settings, document: Any) -> None:
    served = set()
    for route in app.build(settings).routes:
        path = openapi.path_of(route.path)  # type: ignore[attr-defined]
        # Pages for people are no part of the API.
        if not path.startswith("/console"):
            methods = getattr(route, "methods", None) or route.app.methods  # type: ignore[attr-defined]
            served |= {(path, method.lower()) for method in methods if method != "HEAD"}
    assert served == {(path, method) for path, method, _ in operations_in(document)}


def test_no_route_hides_another(settings: Settings) -> None:
    routes = app.build(settings).routes
    for route in routes:
        path = re.sub(r"{\w+(:path)?}", "a@b", route.path)  # type: ignore[attr-defined]
        methods = getattr(route, "methods", {"GET"})
        if not methods:  # the console's word for whatever its pages are not for
            methods = {"TRACE"}
        scope = {"type": "http", "path": path, "root_path": "", "method": "GET" if "GET" in methods else min(methods)}
        (first, *_) = [one for one in routes if one.matches(scope)[0] is Match.FULL]
        assert first is route, path


async def test_names_of_operations_are_their_own(document: Any) -> None:
    names = [one["operationId"] for _, _, one in operations_in(document)]
    assert len(names) == len(set(names))


async def test_every_operation_and_parameter_is_explained(document: Any) -> None:
    for path, method, one in operations_in(document):
        assert one["summary"], (method, path)
        assert all(parameter["description"] for parameter in one["parameters"]), (method, path)
        assert all(answer["description"] for answer in one["responses"].values()), (method, path)


async def test_a_call_with_two_kinds_of_bodies_asks_its_question_once(document: Any) -> None:
    told = document["paths"]["/v1/suppressions/check"]["post"]
    assert told["summary"].startswith("May we message")
    assert "May we message" not in told["description"]
    assert told["description"].index("As `application/json`") < told["description"].index("As `text/plain`")


def test_every_refusal_has_its_words_and_its_status_and_there_are_no_others() -> None:
    said = {slug: one.status for slug, one in PROBLEMS.items()}
    of_the_router = {"not-found": 404, "method-not-allowed": 405, "internal-error": 500}
    assert said == dict(chain.from_iterable(map(refusals_in, sorted(ROOT.glob("*/*.py"))))) | of_the_router


def refusals_in(module: Path) -> Iterator[tuple[str, int]]:
    """The slugs of the refusals that are made in a module, with their statuses."""
    for node in ast.walk(ast.parse(module.read_text())):
        if not isinstance(node, ast.Call):
            continue
        kind = getattr(errors, getattr(node.func, "id", ""), None)
        if kind is not None and issubclass(kind, (errors.RequestError, errors.StorageUnavailable)):
            named = node.args[1].value if len(node.args) > 1 and isinstance(node.args[1], ast.Constant) else None
            yield named if isinstance(named, str) else kind.slug, kind.status


# The page.


async def test_the_page_shows_every_operation_and_loads_nothing(site: Site, document: Any) -> None:
    page = await site.client.get("/docs")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    for _, _, one in operations_in(document):
        assert f"id='{one['operationId']}'" in page.text
    assert not re.search(r"<script|<link|<img|src=|@import|url\(|href=.?(\w+:)?//", page.text)


# Whatever is sent.

SEMANTIC = {
    "at-required",
    "channel-required",
    "broken-list",
    "empty-list",
    "future-time",
    "impossible-address",
    "impossible-time",
    "impossible-window",
    "invalid-cursor",
    "invalid-time",
    "said-twice",
    "no-address-column",
    "no-header",
    "not-for-this-source",
    "not-text",
    "nothing-chosen",
    "reason-required",
    "two-namespaces",
    "unknown-reason",
}
"""What a request that has the right form may still be refused for."""


class Credentials:
    """A token for those who need one, and the signature of callbacks."""

    def __init__(self, token: str) -> None:
        self._token = token

    def of(self, case: Any) -> dict[str, str]:
        """The headers that let this case in."""
        if not case.path.startswith(("/webhooks", "/api")):
            return {"Authorization": f"Bearer {self._token}"}
        channel: Channel = "email" if "email" in case.path else "sms"
        return {"X-Kahuna-Signature": signature(json.dumps(case.body, default=str).encode(), channel)}


class Stage:
    """The application of the test that runs: what is sent is known before there is one."""

    application: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.application(scope, receive, send)


STAGE = Stage()

# What the document cannot say of an address: without this nearly all that is made up would be impossible.
schemathesis.openapi.format("address", emails() | from_regex(r"\+?[0-9]{5,15}", fullmatch=True))


@schemathesis.serializer("text/csv", "application/x-ndjson", "application/gzip", "application/octet-stream")
def _as_bytes(_context: Any, value: Any) -> bytes:
    """Whatever is generated for a body that may be anything."""
    return value if isinstance(value, bytes) else json.dumps(value).encode()


SCHEMA = schemathesis.openapi.from_dict(
    openapi.described([*app.OPERATIONS, *reference.operations(app.OPERATIONS, "1")], "1"),
    config=SchemathesisConfig.from_dict(
        {
            "checks": {
                "positive_data_acceptance": {"expected-statuses": ["2xx", "304", "401", "403", "404", "409", "422"]}
            }
        }
    ),
)
SCHEMA.app = STAGE


@pytest.fixture(scope="module")
def credentials(server_url: str, template: str) -> Iterator[Credentials]:
    """Of an application with something in every list: one for all operations, which see what the others did."""
    with cloned(server_url, template) as url:
        settings = replace(settings_for(url), changes_longest_wait_seconds=0.05)
        token = asyncio.run(seeded(settings))
        STAGE.application = app.build(settings)
        yield Credentials(token)
        asgi.shutdown_lifespans()


async def seeded(settings: Settings) -> str:
    async with opened(settings) as site:
        await site.deliver("email", [{"email": "ann@example.com", "reason": "bored", "timestamp": 1_700_000_000}])
        await site.deliver("sms", [{"number": "15550100001", "opt-in": True}])
        headers = await site.token(*access.SCOPES)
        body = {"channel": "email", "source": "ledger"}
        await site.client.post("/v1/admin/reconciliations", headers=headers, json=body)
    return headers["Authorization"].removeprefix("Bearer ")


def refused_for_its_meaning_only(_context: Any, response: Any, case: Any) -> None:
    """What is generated after the document has the right form, so nothing may say that it has not."""
    if response.status_code == 422 and case.meta.generation.mode.is_positive:
        assert response.json()["type"] in SEMANTIC, response.text


@SCHEMA.parametrize()
@hypothesis_settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_application_does_what_the_document_says(case: Any, credentials: Credentials) -> None:
    headers = credentials.of(case)
    case.call_and_validate(headers=headers, additional_checks=[refused_for_its_meaning_only])
