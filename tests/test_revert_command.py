"""`kahuna-sync revert`: what a person at a shell sees, and the exit code."""

import re
import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from service.__main__ import cli
from service.errors import SettingsError


def run(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), env={"DATABASE_URL": url, "LOG_LEVEL": "info"})


@pytest.fixture
def import_id(database_url: str, tmp_path: Path) -> str:
    """A list that was taken in."""
    file = tmp_path / "x.csv"
    file.write_text("email,time\na@example.com,1700000000\nb@example.com,1700000000\n")
    result = run(database_url, "import", str(file), "--channel", "email", "--reason", "manual")
    assert result.exit_code == 0, result.output
    found = re.search(r"kahuna-sync revert import (\S+)", result.output)
    assert found is not None
    return found[1]


def test_a_dry_run_counts_and_a_revert_takes_back(database_url: str, import_id: str) -> None:
    tried = run(database_url, "revert", "import", import_id, "--dry-run")
    assert tried.exit_code == 0, tried.output
    assert "tried only" in tried.stdout
    assert re.search(r"2\s+│ facts that stand on it", tried.stdout)
    assert run(database_url, "revert", "import", import_id, "--dry-run").stdout == tried.stdout
    done = run(database_url, "revert", "import", import_id, "--reason", "wrong file")
    assert done.exit_code == 0, done.output
    assert re.search(r"2\s+│ facts taken back", done.stdout)
    assert "a@example.com" not in done.output
    assert run(database_url, "rebuild", "--verify").exit_code == 0
    again = run(database_url, "revert", "import", import_id, "--note", "wrong file")
    assert re.search(r"2\s+│ facts taken back", again.stdout), "the same retraction is told again"


def test_what_a_person_can_mend_is_said(database_url: str, import_id: str) -> None:
    for arguments, says in (
        (("import", import_id), "--note"),
        (("import", str(uuid.uuid4()), "--reason", "x"), "no such import"),
        (("surge", str(uuid.uuid4()), "--reason", "x"), "no such surge"),
    ):
        result = run(database_url, "revert", *arguments)
        assert isinstance(result.exception, SettingsError)
        assert says in str(result.exception)
