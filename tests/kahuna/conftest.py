"""The event loop of the tests, and keys that open nothing."""

import pytest

from service.settings import Secret


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def api_key() -> Secret:
    return Secret("demo-api-key")
