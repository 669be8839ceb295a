"""The bench gives its server what there is, not what the host of a container has."""

from pathlib import Path

import pytest

from tests.bench.__main__ import memory

WHOLE = memory(Path("/nowhere"))


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
@pytest.mark.parametrize(("limit", "there_is"), [("1073741824\n", 2**30), ("max\n", WHOLE), (f"{2**63}\n", WHOLE)])
def test_a_container_has_what_it_may_use(tmp_path: Path, name: str, limit: str, there_is: int) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / name).write_text(limit)
    assert memory(tmp_path) == min(there_is, WHOLE)
