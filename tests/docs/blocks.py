"""The code blocks of a Markdown file with what they print, and how those in Python are run: all in one process, in
order, as at the prompt of `python -m asyncio`."""

import ast
import asyncio
import contextlib
import inspect
import io
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Example(NamedTuple):
    """A block of code, the line that it begins at, and what the block after it says that it prints."""

    code: str
    line: int
    prints: str


def examples(file: Path, language: str) -> list[Example]:
    """The blocks of a language. One that is not followed by a `text` block prints nothing."""
    text = file.read_text(encoding="utf-8")
    blocks = list(_BLOCK.finditer(text))
    found = []
    for block, after in zip(blocks, [*blocks[1:], None], strict=True):
        if block[1] == language:
            follows = after is not None and after[1] == "text" and not text[block.end() : after.start()].strip()
            printed = after[2] if after is not None and follows else ""
            found.append(Example(block[2], text[: block.start()].count("\n") + 2, printed))
    return found


def run(codes: Sequence[str]) -> list[str]:
    """What each of them prints."""
    names: dict[str, Any] = {"__name__": "__main__"}
    with asyncio.Runner() as runner:
        return [_run(runner, code, names) for code in codes]


def _run(runner: asyncio.Runner, code: str, names: dict[str, Any]) -> str:
    printed = io.StringIO()
    compiled = compile(code, "the example", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    with contextlib.redirect_stdout(printed):
        made = eval(compiled, names)  # noqa: S307 - the examples of our own documentation
        if inspect.iscoroutine(made):
            runner.run(made)
    return printed.getvalue()


if __name__ == "__main__":
    json.dump(run([example.code for example in examples(Path(sys.argv[1]), "python")]), sys.stdout)
