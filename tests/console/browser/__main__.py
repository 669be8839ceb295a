"""Looks at the console in Chromium, and says what is amiss. Exits with 1 if anything is, with 2 without a browser."""

import asyncio
import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from tests.console.browser.running import deployment
from tests.console.browser.walking import walk_all

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@click.command()
@click.option("--screenshots", type=click.Path(path_type=Path), help="A folder for pictures of every page.")
def main(screenshots: Path | None) -> None:
    """Walk through the console in a real browser."""
    executable = next((found for name in NAMES if (found := shutil.which(name))), None)
    if executable is None:
        print(f"No browser: install one of {', '.join(NAMES)} (Debian: apt install chromium).", file=sys.stderr)
        sys.exit(2)
    if screenshots is not None:
        screenshots.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="ks-console-"))
    folder.chmod(0o755)  # the database's own user must get in
    try:
        faults, kinds = asyncio.run(_look(executable, screenshots, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for fault in dict.fromkeys(faults):
        print(f"amiss  {fault}")
    print(f"{len(kinds)} kinds of pages, {len(set(faults))} faults")
    sys.exit(1 if faults else 0)


async def _look(executable: str, screenshots: Path | None, folder: Path) -> tuple[list[str], set[str]]:
    # Not among the packages of the tests, so it is not known to the type checker.
    driver: Any = importlib.import_module("playwright.async_api")
    async with deployment(folder) as site, driver.async_playwright() as playwright:
        # Chromium's own sandbox refuses to run as root.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = await playwright.chromium.launch(executable_path=executable, args=options)
        try:
            return await walk_all(browser, site, screenshots)
        finally:
            await browser.close()


if __name__ == "__main__":
    main()
