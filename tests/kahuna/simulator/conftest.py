"""A stand-in for each test."""

from collections.abc import AsyncIterator

import pytest

from . import speaking
from .speaking import Vendor


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    async with speaking.vendor() as one:
        yield one
