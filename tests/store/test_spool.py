"""The spool keeps whole batches through anything, tells what is torn, and never takes more than its limit."""

import errno
import fcntl
import os
import resource
import struct
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from service.errors import SettingsError, StorageUnavailable
from service.store.batches import Received
from service.store.spool import ASIDE, BLOCK, FRESH, Spool, Torn, batch_id_of, received_at_of

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ROOM = 1024 * BLOCK


class Seconds:
    """A monotonic clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def a_batch(body: bytes = b'[{"email":"ann@example.com"}]', after: float = 0, namespace: str = "default") -> Received:
    headers = {"user-agent": "Kahuna é"}
    received_at = NOON + timedelta(seconds=after)
    digest = sha256(body).digest()
    return Received(uuid.uuid4(), namespace, "email", "kahuna_webhook", received_at, headers, body, digest, "request-1")


def a_spool(folder: Path, limit: int = ROOM) -> Spool:
    spool = Spool(folder, limit)
    spool.prepare()
    return spool


def put(spool: Spool, *batches: Received) -> list[uuid.UUID | StorageUnavailable]:
    return spool.put(batches)


def names(folder: Path) -> list[str]:
    """Everything in the folder, hidden or not."""
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def disk_full(at: int) -> Iterator[None]:
    """No file of this process may grow over this many bytes: a write fails half done, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# What is kept.


def test_a_batch_comes_back_as_it_was_received(tmp_path: Path) -> None:
    batch = a_batch('[{"email":"ä@example.com"}]'.encode() * 1000)
    spool = a_spool(tmp_path)
    assert put(spool, batch) == [batch.id]
    (name,) = spool.look().batches
    assert spool.load(name) == batch
    assert (batch_id_of(name), received_at_of(name)) == (str(batch.id), batch.received_at.timestamp())


def test_a_file_of_a_release_that_kept_no_request_id_is_read_all_the_same(tmp_path: Path) -> None:
    spool, batch = a_spool(tmp_path), a_batch()
    put(spool, batch)
    (name,) = spool.look().batches
    path = tmp_path / name
    fields = msgspec.msgpack.decode(path.read_bytes()[48:])
    assert fields.pop("request_id") == "request-1"
    payload = msgspec.msgpack.encode(fields)
    path.write_bytes(struct.pack(">8sQ32s", b"KSPOOL1\n", len(payload), sha256(payload).digest()) + payload)
    assert spool.load(name) == batch._replace(request_id=None)


def test_it_survives_a_restart_and_is_drained_in_order_of_receipt(tmp_path: Path) -> None:
    batches = [a_batch(b"[%d]" % n, after) for n, after in enumerate([5, 3, 0.000_002, 4, 0.000_001])]
    first = a_spool(tmp_path)
    for batch in batches:
        put(first, batch)
    again = a_spool(tmp_path)
    found = [again.load(name) for name in again.look().batches]
    assert found == sorted(batches, key=lambda batch: batch.received_at)


def test_only_its_own_user_may_read_what_holds_addresses(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "spool"
    put(a_spool(folder), a_batch())
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in folder.iterdir()] == [0o600]


def test_the_same_body_is_kept_once_under_its_first_id(tmp_path: Path) -> None:
    first, twin, later = a_batch(), a_batch(), a_batch(after=60)
    other = a_batch(namespace="other")
    assert put(a_spool(tmp_path), first, twin, other) == [first.id, first.id, other.id]
    spool = a_spool(tmp_path)
    assert put(spool, later) == [first.id]
    assert len(spool.look().batches) == 2
    assert spool.kept(later) == first


def test_what_was_removed_is_no_longer_known(tmp_path: Path) -> None:
    spool = a_spool(tmp_path)
    first, again = a_batch(), a_batch()
    put(spool, first)
    assert spool.may_keep(again)
    spool.remove(spool.look().batches[0])
    assert not spool.may_keep(again)
    assert spool.kept(again) is None
    assert put(spool, again) == [again.id]


def test_what_another_process_removed_is_no_longer_known_either(tmp_path: Path) -> None:
    spool, other = a_spool(tmp_path), a_spool(tmp_path)
    first, again = a_batch(), a_batch()
    put(spool, first)
    other.remove(other.look().batches[0])
    assert put(spool, again) == [again.id]
    assert [batch_id_of(name) for name in spool.look().batches] == [str(again.id)]


# What outlives a power loss: a file once its content was forced to disk, and its name once its folder was.


class Forced:
    """Stands for the disk: what it was told to keep, in which order, and what was in the folder at the time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept: list[tuple[str, int]] = []
        self.names: list[str] = []
        self.failing = ""

    def __call__(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115 (a link of the kernel's, not of a disk)
        kind = "folder" if path == self.folder else "part" if path.name.endswith(".part") else "batch"
        if kind == self.failing:
            raise OSError(errno.EIO, "the disk is broken")
        self.kept.append((kind, 0 if kind == "folder" else path.stat().st_size))
        self.names = [one.name for one in self.folder.iterdir() if not one.name.startswith(".")]


def test_nobody_is_told_before_the_file_and_its_name_are_on_the_disk(tmp_path: Path) -> None:
    disk = Forced(tmp_path)
    spool = Spool(tmp_path, ROOM, force=disk)
    first, second = a_batch(b"[1]"), a_batch(b"[2]")
    assert put(spool, first, second) == [first.id, second.id]
    sizes = sorted(path.stat().st_size for path in tmp_path.glob("*.batch"))
    assert [kind for kind, _ in disk.kept] == ["part", "part", "folder"], "the name comes after the content"
    assert sorted(size for kind, size in disk.kept if kind == "part") == sizes, "all of it"
    assert sorted(disk.names) == sorted(spool.look().batches), "the folder was kept with both names in it"


@pytest.mark.parametrize("failing", ["part", "folder"])
def test_what_the_disk_does_not_keep_is_refused(tmp_path: Path, failing: str) -> None:
    disk = Forced(tmp_path)
    disk.failing = failing
    [answer] = put(Spool(tmp_path, ROOM, force=disk), a_batch())
    assert isinstance(answer, StorageUnavailable)
    assert "EIO" in str(answer)
    assert names(tmp_path) == []


def test_a_trial_of_the_folder_reaches_the_disk(tmp_path: Path) -> None:
    disk = Forced(tmp_path)
    spool = Spool(tmp_path, ROOM, force=disk)
    spool.prepare()
    assert disk.kept == [("part", BLOCK)]
    disk.failing = "part"
    assert "EIO" in (spool.refusal() or "")


# What is torn, and what is none of ours.


def test_a_file_cut_at_any_length_is_torn(tmp_path: Path) -> None:
    spool = a_spool(tmp_path)
    put(spool, a_batch())
    (name,) = spool.look().batches
    content = (tmp_path / name).read_bytes()
    for length in range(len(content)):
        (tmp_path / name).write_bytes(content[:length])
        with pytest.raises(Torn):
            spool.load(name)
    (tmp_path / name).write_bytes(content + b"\0")
    with pytest.raises(Torn):
        spool.load(name)


def test_a_file_with_any_byte_altered_is_torn(tmp_path: Path) -> None:
    spool = a_spool(tmp_path)
    put(spool, a_batch())
    (name,) = spool.look().batches
    content = (tmp_path / name).read_bytes()
    for place in range(len(content)):
        altered = bytearray(content)
        altered[place] ^= 0x10
        (tmp_path / name).write_bytes(altered)
        with pytest.raises(Torn):
            spool.load(name)


def test_a_redelivery_of_what_is_torn_is_kept_anew(tmp_path: Path) -> None:
    spool = a_spool(tmp_path)
    first, again = a_batch(), a_batch(after=1)
    put(spool, first)
    (name,) = spool.look().batches
    (tmp_path / name).write_bytes(b"")
    assert put(spool, again) == [again.id]
    assert spool.load(spool.look().batches[1]) == again


def test_a_file_set_aside_is_kept_counted_and_overwrites_none(tmp_path: Path) -> None:
    spool = a_spool(tmp_path)
    for content in ("first", "second", "third"):
        (tmp_path / "letter").write_text(content)
        assert spool.look().strangers == ["letter"]
        spool.set_aside("letter")
    stock = spool.look()
    assert (stock.batches, stock.strangers, stock.aside, stock.size) == ([], [], 3, 3 * BLOCK)
    assert {path.read_text() for path in tmp_path.glob(f"*{ASIDE}")} == {"first", "second", "third"}


def test_folders_links_and_hidden_files_are_nobodys_business(tmp_path: Path) -> None:
    spool = a_spool(tmp_path)
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / ".hidden")
    stock = spool.look()
    assert (stock.batches, stock.strangers, stock.aside) == ([], [], 0)
    assert spool.sweep() == 0


def test_what_a_killed_writer_left_is_swept_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    spool = a_spool(tmp_path)
    for name in (".dead.part", ".alive.part"):
        (tmp_path / name).write_bytes(b"half")
    assert spool.look().batches == spool.look().strangers == []
    with (tmp_path / ".alive.part").open("rb") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        assert spool.sweep() == 1
    assert names(tmp_path) == [".alive.part"]


# The limit.


def test_it_takes_up_to_its_limit_and_no_more(tmp_path: Path) -> None:
    spool = a_spool(tmp_path, 3 * BLOCK)
    answers = put(spool, *(a_batch(b"[%d]" % n) for n in range(5)))
    assert [isinstance(answer, uuid.UUID) for answer in answers] == [True, True, True, False, False]
    assert spool.look().size == 3 * BLOCK
    refusal = answers[-1]
    assert isinstance(refusal, StorageUnavailable)
    assert refusal.retry_after > 0
    assert "SPOOL_LIMIT_BYTES" in (spool.refusal() or "")
    assert put(spool, a_batch(b"[0]"))[0] == answers[0], "one that waits already takes no more room"


def test_room_that_was_made_is_used_again(tmp_path: Path) -> None:
    clock = Seconds()
    spool = Spool(tmp_path, BLOCK, clock)
    assert put(spool, a_batch(b"[1]"))[0] != put(spool, a_batch(b"[2]"))[0]
    spool.remove(spool.look().batches[0])
    clock.now += FRESH + 0.1
    batch = a_batch(b"[3]")
    assert put(spool, batch) == [batch.id]
    assert spool.refusal() is not None


def test_what_was_there_before_and_what_others_put_count(tmp_path: Path) -> None:
    clock = Seconds()
    put(a_spool(tmp_path), a_batch(b"[1]"))
    spool, other = Spool(tmp_path, 3 * BLOCK, clock), Spool(tmp_path, 3 * BLOCK, clock)
    assert isinstance(put(spool, a_batch(b"[2]"))[0], uuid.UUID)
    assert isinstance(put(other, a_batch(b"[3]"))[0], uuid.UUID)
    clock.now += FRESH + 0.1
    assert isinstance(put(spool, a_batch(b"[4]"))[0], StorageUnavailable)
    (tmp_path / "letter").write_bytes(b"x" * 5000)
    assert spool.look().size == 5 * BLOCK


# Disks that fail.


@pytest.mark.parametrize("at", [0, 1, 50, 200])
def test_a_full_disk_is_told_and_nothing_half_written_stays(tmp_path: Path, at: int) -> None:
    spool = a_spool(tmp_path)
    small, large = a_batch(b"[1]"), a_batch(os.urandom(2000))
    assert put(spool, small) == [small.id]
    with disk_full(at):
        (answer,) = put(spool, large)
        assert isinstance(answer, StorageUnavailable)
        assert "EFBIG" in str(answer)
        assert "EFBIG" in (spool.refusal() or "")
    assert len(names(tmp_path)) == 1
    assert put(spool, large) == [large.id]


def test_one_that_does_not_fit_on_the_disk_spoils_no_other(tmp_path: Path) -> None:
    spool = a_spool(tmp_path)
    batches = [a_batch(b"[1]"), a_batch(os.urandom(20_000)), a_batch(b"[2]")]
    with disk_full(10_000):
        answers = put(spool, *batches)
    assert [answers[0], answers[2]] == [batches[0].id, batches[2].id]
    assert isinstance(answers[1], StorageUnavailable)
    assert [spool.load(name).id for name in spool.look().batches] == sorted(
        (batches[0].id, batches[2].id), key=lambda one: one.hex
    )
    assert len(names(tmp_path)) == 2


def test_a_folder_that_is_gone_is_a_refusal_until_it_is_back(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    spool = a_spool(folder)
    put(spool, a_batch(b"[0]"))
    (folder / spool.look().batches[0]).unlink()
    folder.rmdir()
    (answer,) = put(spool, a_batch())
    assert isinstance(answer, StorageUnavailable)
    assert "ENOENT" in (spool.refusal() or "")
    with pytest.raises(FileNotFoundError):
        spool.look()
    spool.prepare()
    batch = a_batch()
    assert put(spool, batch) == [batch.id]
    assert spool.refusal() is None


def test_a_folder_that_cannot_be_written_to_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(SettingsError, match="SPOOL_DIR"):
        Spool(tmp_path / "file" / "spool", ROOM).prepare()
    with disk_full(10), pytest.raises(SettingsError, match="EFBIG"):
        Spool(tmp_path, ROOM).prepare()
    assert names(tmp_path) == ["file"]


# Several processes.


def test_one_process_drains_at_a_time(tmp_path: Path) -> None:
    spool, other = a_spool(tmp_path), a_spool(tmp_path)
    with spool.draining() as ours, other.draining() as theirs:
        assert (ours, theirs) == (True, False)
    with other.draining() as theirs:
        assert theirs
    assert spool.look().strangers == []


DYING = """
import os, pathlib, sys
from service.store.spool import Spool
with Spool(pathlib.Path(sys.argv[1]), 1).draining() as ours:
    os._exit(9 if ours else 1)
"""


def test_a_process_that_was_killed_drains_no_longer(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", DYING, tmp_path], check=False).returncode == 9
    with a_spool(tmp_path).draining() as ours:
        assert ours
