"""The document of the API: well-formed, complete, and true of the application, whatever is sent to it."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.python import asgi

from service import app
from service.settings import Settings
from service.store import access
from service.store.database import Database
from service.web import openapi
from service.web.problems import PROBLEMS
from tests.flows.speaking import Clock
from tests.web.harness import Site, opened

ROOT = Path(app.__file__).parent


@pytest.fixture
async def site(settings: Settings) -> AsyncIterator[Site]:
    async with opened(settings) as site:
        yield site


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
        methods = getattr(route, "methods", None) or route.app.methods  # type: ignore[attr-defined]
        path = openapi.path_of(route.path)  # type: ignore[attr-defined]
        served |= {(path, method.lower()) for method in methods if method != "HEAD"}
    assert served == {(path, method) for path, method, _ in operations_in(document)}


async def test_names_of_operations_are_their_own(document: Any) -> None:
    names = [one["operationId"] for _, _, one in operations_in(document)]
    assert len(names) == len(set(names))


async def test_every_operation_and_parameter_is_explained(document: Any) -> None:
    for path, method, one in operations_in(document):
        assert one["summary"], (method, path)
        assert all(parameter["description"] for parameter in one["parameters"]), (method, path)
        assert all(answer["description"] for answer in one["responses"].values()), (method, path)


def test_every_slug_that_the_code_answers_is_explained_and_no_other() -> None:
    code = "".join(path.read_text() for name in ("web", "flows") for path in (ROOT / name).glob("*.py"))
    raised = set(re.findall(r'"([a-z]+(?:-[a-z]+)+)"\s*\)\s*(?:from \w+)?\n', code)) & PROBLEMS.keys()
    named = {slug for slug in PROBLEMS if f'"{slug}"' in code.replace(problems_source(), "")}
    defaults = set(re.findall(r'slug(?:: ClassVar\[str\])? = "([a-z-]+)"', (ROOT / "errors.py").read_text()))
    unused = {"bad-request", "forbidden", "conflict", "unprocessable", "wrong-settings"}
    assert raised | named | (defaults - unused) == set(PROBLEMS)


def problems_source() -> str:
    return (ROOT / "web" / "problems.py").read_text()


# The page.


async def test_the_page_shows_every_operation_and_loads_nothing(site: Site, document: Any) -> None:
    page = await site.client.get("/docs")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    for _, _, one in operations_in(document):
        assert f"id='{one['operationId']}'" in page.text
    assert not re.search(r"<script|<link|<img|src=|@import|url\(|//", page.text)


# Whatever is sent.

SEMANTIC = {"impossible-address", "impossible-time", "unknown-reason", "future-time", "invalid-cursor", "invalid-time"}
"""What a request that has the right form may still be refused for."""


class Credentials:
    """A token for those who need one, and the signature of callbacks."""

    def __init__(self, token: str) -> None:
        self._token = token

    def get(self, case: Any, _context: Any) -> str:
        return "signed" if case.path.startswith(("/webhooks", "/api")) else self._token

    def set(self, case: Any, found: str, _context: Any) -> None:
        if found == self._token:
            case.headers["Authorization"] = f"Bearer {found}"
        else:
            case.headers["X-Kahuna-Signature"] = "0"


@pytest.fixture
def api(settings: Settings) -> Iterator[Any]:
    async def seed() -> str:
        async with Database.of(settings) as database, database.begin() as connection:
            return await access.create_token(connection, "tester", access.SCOPES, None, Clock()())

    token = asyncio.run(seed())
    application = app.build(settings)
    config = SchemathesisConfig.from_dict(
        {
            "checks": {
                "positive_data_acceptance": {"expected-statuses": ["2xx", "304", "401", "403", "404", "409", "422"]}
            }
        }
    )
    schema = schemathesis.openapi.from_asgi("/openapi.json", application, config=config)
    schema.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])

    @schema.auth()
    class Caller(Credentials):
        def __init__(self) -> None:
            super().__init__(token)

    yield schema
    asgi.shutdown_lifespans()


schema = schemathesis.pytest.from_fixture("api")


def refused_for_its_meaning_only(_context: Any, response: Any, case: Any) -> None:
    """What is generated after the document has the right form, so nothing may say that it has not."""
    if response.status_code == 422 and case.meta.generation.mode.is_positive:
        assert response.json()["type"] in SEMANTIC, response.text


@schema.parametrize()
@hypothesis_settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_application_does_what_the_document_says(case: Any) -> None:
    case.call_and_validate(additional_checks=[refused_for_its_meaning_only])
