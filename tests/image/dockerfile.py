"""Reads a Dockerfile as far as ours goes. What it does not understand is an error, so that nothing is passed over."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

KNOWN = ("ARG", "ENV", "WORKDIR", "RUN", "COPY", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD")


class Step(NamedTuple):
    """One instruction, its continued lines joined."""

    word: str
    rest: str


@dataclass
class Stage:
    """What one `FROM` begins."""

    origin: str
    name: str
    steps: list[Step] = field(default_factory=list)

    def of(self, word: str) -> list[str]:
        """What follows each instruction of this word."""
        return [step.rest for step in self.steps if step.word == word]


def stages(path: Path) -> list[Stage]:
    """The stages of a Dockerfile, in its order."""
    found: list[Stage] = []
    for word, rest in _instructions(path.read_text(encoding="utf-8")):
        if word == "FROM":
            origin, _, name = rest.partition(" AS ")
            found.append(Stage(origin, name))
        elif word == "ARG" and not found:
            continue
        elif word in KNOWN:
            found[-1].steps.append(Step(word, rest))
        else:
            raise ValueError(f"the Dockerfile has an instruction that is not understood: {word}")
    return found


def _instructions(text: str) -> Iterator[Step]:
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\n\s*", "", lines).splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield Step(word, rest)


def environment(stage: Stage) -> dict[str, str]:
    """What its ENV instructions set."""
    pairs = [pair.partition("=") for rest in stage.of("ENV") for pair in shlex.split(rest)]
    return {name: value for name, _, value in pairs}


def arguments(stage: Stage) -> dict[str, str]:
    """What its ARG instructions are without a --build-arg."""
    pairs = [rest.partition("=") for rest in stage.of("ARG")]
    return {name: value for name, _, value in pairs}


def exec_form(text: str) -> list[str]:
    """The words of a command in exec form; ValueError for the form that a shell would run."""
    words = json.loads(text[text.index("[") :])
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("not in exec form")
    return words
