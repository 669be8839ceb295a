"""Every line that the service logs is explained to whoever reads it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEVELS = {"debug", "info", "warning", "error", "exception"}


def events() -> Iterator[str]:
    """The names of the lines, but for those that are put together while it runs."""
    for path in (ROOT / "service").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
                continue
            first = node.args[0]
            if node.func.attr in LEVELS and isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value


def test_the_runbook_explains_every_line_of_the_log() -> None:
    told = (ROOT / "docs/operating.md").read_text(encoding="utf-8")
    found = {name for name in events() if re.fullmatch(r"[a-z_]+\.[a-z_]+", name)}
    assert len(found) > 50
    assert {name for name in found if f"`{name}`" not in told} == set()
