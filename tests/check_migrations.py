"""`python -m tests.check_migrations`: the migrations make the tables that `store/tables.py` describes."""

import asyncio
import tempfile
from pathlib import Path

from service import embedded
from service.store import migrations


def main() -> None:
    """Runs all migrations on an empty database, and compares."""
    with tempfile.TemporaryDirectory(prefix="ks-check-") as folder:
        Path(folder).chmod(0o755)
        with embedded.server(Path(folder)) as url:
            asyncio.run(migrations.upgrade(url))
            asyncio.run(migrations.check(url))


if __name__ == "__main__":
    main()
