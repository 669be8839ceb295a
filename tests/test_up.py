"""What `up` decides and refuses before it starts anything."""

from pathlib import Path

import pytest

from service import demo, up
from service.errors import SettingsError


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
