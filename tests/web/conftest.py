"""The deployment that most tests of the routes speak to; a module whose settings or lists differ opens its own."""

from collections.abc import AsyncIterator

import pytest

from service.settings import Settings
from tests.web.harness import Site, opened


@pytest.fixture
async def site(settings: Settings) -> AsyncIterator[Site]:
    async with opened(settings) as site:
        yield site
