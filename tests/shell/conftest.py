"""A shell for each test."""

import pytest

from .speaking import Shell


@pytest.fixture
def shell() -> Shell:
    return Shell()


@pytest.fixture
def seeded(shell: Shell) -> Shell:
    """Ninety-five records of yesterday and today, and no others."""
    shell.control("seed", {"users": 5, "records": 95, "span_seconds": 20_000})
    return shell
