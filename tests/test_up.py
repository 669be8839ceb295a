"""What `up` decides and refuses before it starts anything."""

import asyncio
import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service import demo, up
from service.errors import SettingsError
from tests.test_serving import a_port


def test_one_folder_is_for_one_up_at_a_time(tmp_path: Path) -> None:
    with up.only_one(tmp_path), pytest.raises(SettingsError, match="DATA_DIR"), up.only_one(tmp_path):
        pytest.fail("a second one got in")
    with up.only_one(tmp_path):
        pass


@pytest.mark.parametrize("given", [None, "", ".data", ".data/demo", ".data/demo/"])
def test_a_demonstration_finds_its_folder_again(given: str | None) -> None:
    environ = {"KAHUNA_API_KEY": "real", "DATABASE_URL": "real"} | ({} if given is None else {"DATA_DIR": given})
    made = demo.environ_of(environ, 8701)
    assert made["DATA_DIR"] == ".data/demo"
    assert "real" not in made.values()


async def test_a_child_that_does_not_end_in_its_time_is_killed_and_the_log_says_so() -> None:
    stop = asyncio.Event()
    with capture_logs() as log:
        running = asyncio.create_task(
            up.run([["simulator", "--port", str(a_port())]], dict(os.environ), stop, grace=0.0)
        )
        # Told to end while it is being started, it is ended as soon as it is there.
        for _ in range(3):
            await asyncio.sleep(0)
        stop.set()
        assert await running == 0
    killed = [line for line in log if line["event"] == "process.killed"]
    told = {(line["command"], line["child"], line["after"], line["log_level"]) for line in killed}
    assert told == {("simulator", 1, 0.0, "error")}
