"""A world for each test of the flows."""

from collections.abc import AsyncIterator

import pytest

from service.settings import Settings
from service.store.database import Database
from tests.flows.speaking import World


@pytest.fixture
async def world(database: Database, settings: Settings) -> AsyncIterator[World]:
    made = World(database, settings)
    async with made.control:
        yield made
