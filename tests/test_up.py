"""What `up` refuses before it starts anything."""

from pathlib import Path

import pytest

from service import up
from service.errors import SettingsError


def test_one_folder_is_for_one_up_at_a_time(tmp_path: Path) -> None:
    with up.only_one(tmp_path), pytest.raises(SettingsError, match="DATA_DIR"), up.only_one(tmp_path):
        pytest.fail("a second one got in")
    with up.only_one(tmp_path):
        pass
