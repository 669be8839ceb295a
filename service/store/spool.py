"""Owns the spool: a folder that keeps verified batches, one file each, for as long as the database cannot.

A batch is written under a temporary name, forced to disk, renamed, and its folder forced to disk, before anybody is
told that it is kept. Names sort by the time of receipt. Refuses what is not whole and its own: a torn or foreign file
is set aside under another name, stays for a person to look at, and is never read as a batch. Several processes may
share a folder; one drains it at a time. Everything here blocks, and knows nothing of SQL or of what a batch says.
"""

import errno
import fcntl
import os
import re
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import zstandard

from service.domain.addresses import Channel
from service.domain.facts import Origin
from service.errors import SettingsError, StorageUnavailable
from service.store.batches import Received

BLOCK: Final = 4096
"""Bytes in which disks give out space: a file counts in whole ones, so that many small files are not taken for none."""

FRESH: Final = 1.0
"""Seconds for which a look at the folder is good enough to tell how full it is."""

_NAME: Final = re.compile(r"(\d{17})-([0-9a-f]{32})-([0-9a-f]{64})\.batch")
_PART: Final = ".part"
ASIDE: Final = ".aside"
"""What a name ends with once its file was set aside."""

_LOCK: Final = ".drain.lock"

_MAGIC: Final = b"KSPOOL1\n"
_HEAD: Final = struct.Struct(">8sQ32s")


class Torn(ValueError):
    """The file is not a whole batch: cut, altered, or written by somebody else."""


class Stock(NamedTuple):
    """What is in the folder. `batches` are names in order of receipt, `strangers` names that nobody here gave, `aside`
    counts the files set aside, and `size` is in bytes of disk, of everything."""

    batches: list[str]
    strangers: list[str]
    aside: int
    size: int


class _Kept(msgspec.Struct, frozen=True):
    """A batch as it stands in its file."""

    id: uuid.UUID
    namespace: str
    channel: Channel
    origin: Origin
    received_at: datetime
    headers: dict[str, str]
    body: bytes
    body_bytes: int
    digest: bytes
    request_id: str | None = None  # files of older releases have none


@dataclass(slots=True)
class _Part:
    """A file that is being written. Its lock tells it from what a killed process left behind."""

    key: str
    path: Path
    final: Path
    descriptor: int = field(default=-1)

    def write(self, content: bytes) -> None:
        self.descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with open(self.descriptor, "wb", closefd=False) as file:
            file.write(content)

    def settle(self, force: Callable[[int], None]) -> None:
        force(self.descriptor)
        self.path.rename(self.final)

    def drop(self) -> None:
        """Leaves nothing behind, whatever it was called by then."""
        for path in (self.path, self.final):
            with suppress(OSError):
                path.unlink()

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


class Spool:
    """The spool in one folder, of at most `limit` bytes of disk. `force` has what was written to a descriptor outlive a
    power loss."""

    def __init__(
        self,
        folder: Path,
        limit: int,
        monotonic: Callable[[], float] = time.monotonic,
        force: Callable[[int], None] = os.fsync,
    ) -> None:
        self._folder = folder
        self._limit = limit
        self._monotonic = monotonic
        self._force = force
        self._turn = threading.Lock()
        self._known: dict[str, str] = {}
        self._size = 0
        self._looked_at = float("-inf")

    def prepare(self) -> None:
        """Makes the folder if there is none, and tries it. SettingsError says what to mend."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._try()
        except OSError as error:
            raise SettingsError(
                f"SPOOL_DIR cannot be written to ({_word(error)}): let the user of the web process write there, "
                "set another folder, or leave it out to do without a spool."
            ) from error

    def refusal(self) -> str | None:
        """Why the next batch could not be kept, if so."""
        try:
            if self.look().size + BLOCK > self._limit:
                return "full: raise SPOOL_LIMIT_BYTES, or bring the database back"
            self._try()
        except OSError as error:
            return f"cannot be written to ({_word(error)}): check SPOOL_DIR and its disk"
        return None

    def look(self) -> Stock:
        """What is in the folder now. OSError if it cannot be read."""
        with self._turn:
            return self._look()

    def put(self, batches: Sequence[Received]) -> list[uuid.UUID | StorageUnavailable]:
        """Keeps batches through a power loss: for each the id under which it is kept (that of the first, if the same
        body of the same namespace and channel waits already), or why it is not."""
        answers: dict[str, uuid.UUID | StorageUnavailable] = {}
        parts: list[_Part] = []
        with self._turn:
            try:
                for batch in batches:
                    key = _key(batch)
                    if key not in answers:
                        answers[key] = self._begin(batch, key, parts)
                self._settle(parts, answers)
            finally:
                for part in parts:
                    part.close()
        return [answers[_key(batch)] for batch in batches]

    def kept(self, batch: Received) -> Received | None:
        """The batch with this body of this namespace and channel, as far as it is known to wait here, and whole."""
        name = self._known.get(_key(batch))
        if name is None:
            return None
        try:
            return self.load(name)
        except (OSError, Torn):
            self._known.pop(_key(batch), None)
            return None

    def may_keep(self, batch: Received) -> bool:
        """Whether `kept` is worth asking: answers at once, without the disk."""
        return bool(self._known) and _key(batch) in self._known

    def load(self, name: str) -> Received:
        """The batch of a file. Torn if it is not whole, OSError if it cannot be read."""
        return _unpacked((self._folder / name).read_bytes())

    def remove(self, name: str) -> None:
        """Lets go of a batch that is durable elsewhere. After a power loss it may be back: that is a redelivery."""
        (self._folder / name).unlink(missing_ok=True)
        self._forget(name)

    def set_aside(self, name: str) -> None:
        """Puts a file out of the way, for a person to look at. Overwrites nothing."""
        free = (self._folder / f"{name}{number}{ASIDE}" for number in ("", *(f".{n}" for n in range(1, 1000))))
        (self._folder / name).rename(next(path for path in free if not path.exists()))
        self._forget(name)

    def sweep(self) -> int:
        """Deletes what killed processes left half written, which nobody was told of; returns how many."""
        swept = 0
        for path in self._folder.glob(f".*{_PART}"):
            with suppress(OSError), path.open("rb") as file:
                # Whoever writes it still holds it.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                swept += 1
        return swept

    @contextmanager
    def draining(self) -> Iterator[bool]:
        """Whether this block may drain the folder: one at a time may, of all processes. A killed one does not count."""
        descriptor = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(descriptor)

    def _look(self) -> Stock:
        batches: list[str] = []
        strangers: list[str] = []
        aside = size = 0
        for name, length in self._files():
            size += _on_disk(length)
            if name.startswith("."):  # parts, the lock, and what file systems hide
                continue
            if name.endswith(ASIDE):
                aside += 1
            else:
                (batches if _NAME.fullmatch(name) else strangers).append(name)
        self._known = {name[-70:-6]: name for name in batches}
        self._size, self._looked_at = size, self._monotonic()
        return Stock(sorted(batches), sorted(strangers), aside, size)

    def _files(self) -> Iterator[tuple[str, int]]:
        with os.scandir(self._folder) as entries:
            for entry in entries:
                # Another process may take one away meanwhile. Folders such as lost+found are none of ours.
                with suppress(FileNotFoundError):
                    if entry.is_file(follow_symlinks=False):
                        yield entry.name, entry.stat(follow_symlinks=False).st_size

    def _begin(self, batch: Received, key: str, parts: list[_Part]) -> uuid.UUID | StorageUnavailable:
        try:
            if self._monotonic() - self._looked_at > FRESH:
                self._look()
            known = self.kept(batch)
            if known is not None:
                return known.id
            content = _packed(batch)
            if self._size + _on_disk(len(content)) > self._limit:
                return StorageUnavailable("The database cannot take it and the spool is full; deliver it again.", 30)
            name = f"{int(batch.received_at.timestamp() * 1_000_000):017d}-{batch.id.hex}-{key}.batch"
            part = _Part(key, self._folder / f".{name}{_PART}", self._folder / name)
            parts.append(part)
            part.write(content)
        except OSError as error:
            self._undo(parts[-1:] if parts and parts[-1].key == key else [])
            return _unkept(error)
        self._size += _on_disk(len(content))
        return batch.id

    def _settle(self, parts: list[_Part], answers: dict[str, uuid.UUID | StorageUnavailable]) -> None:
        """All were written before the first is forced to disk: for most file systems that is the work of one."""
        whole = [part for part in parts if not isinstance(answers[part.key], StorageUnavailable)]
        for part in whole:
            try:
                part.settle(self._force)
            except OSError as error:
                self._undo([part])
                answers[part.key] = _unkept(error)
        whole = [part for part in whole if not isinstance(answers[part.key], StorageUnavailable)]
        try:
            self._force_folder(whole)
        except OSError as error:
            self._undo(whole)
            answers |= {part.key: _unkept(error) for part in whole}
            return
        self._known |= {part.key: part.final.name for part in whole}

    def _force_folder(self, because_of: Sequence[_Part]) -> None:
        """A file outlives a power loss only if its name does."""
        if not because_of:
            return
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._force(descriptor)
        finally:
            os.close(descriptor)

    def _undo(self, parts: Sequence[_Part]) -> None:
        for part in parts:
            part.drop()
        self._looked_at = float("-inf")

    def _forget(self, name: str) -> None:
        self._known.pop(name[-70:-6], None)

    def _try(self) -> None:
        """Writes as much as it takes to know that a disk is full, and takes it away again."""
        path = self._folder / f".trial-{uuid.uuid4().hex}{_PART}"
        part = _Part("", path, path)
        try:
            part.write(b"\0" * BLOCK)
            self._force(part.descriptor)
        finally:
            part.close()
            part.drop()


def received_at_of(name: str) -> float:
    """When the batch of this name was received, in Unix seconds."""
    return int(name[:17]) / 1_000_000


def batch_id_of(name: str) -> str | None:
    """The id of the batch that this name is for, if it is for one."""
    match = _NAME.fullmatch(name)
    return None if match is None else str(uuid.UUID(match[2]))


def _key(batch: Received) -> str:
    """One body of one namespace and channel."""
    return sha256(msgspec.json.encode([batch.namespace, batch.channel, batch.digest])).hexdigest()


def _packed(batch: Received) -> bytes:
    body = zstandard.ZstdCompressor().compress(batch.body)
    payload = msgspec.msgpack.encode(_Kept(**(batch._asdict() | {"body": body, "body_bytes": len(batch.body)})))
    return _HEAD.pack(_MAGIC, len(payload), sha256(payload).digest()) + payload


def _unpacked(content: bytes) -> Received:
    if len(content) < _HEAD.size:
        raise Torn
    magic, length, digest = _HEAD.unpack_from(content)
    payload = memoryview(content)[_HEAD.size :]
    if magic != _MAGIC or len(payload) != length or sha256(payload).digest() != digest:
        raise Torn
    try:
        kept = msgspec.msgpack.decode(payload, type=_Kept)
        body = zstandard.decompress(kept.body, max_output_size=kept.body_bytes)
    except (msgspec.MsgspecError, zstandard.ZstdError):
        raise Torn from None
    whose = (kept.id, kept.namespace, kept.channel, kept.origin, kept.received_at, kept.headers)
    return Received(*whose, body, kept.digest, kept.request_id)


def _on_disk(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def _unkept(error: OSError) -> StorageUnavailable:
    refusal = StorageUnavailable(f"Neither the database nor the spool ({_word(error)}) can take it; deliver it again.")
    refusal.__cause__ = error
    return refusal


def _word(error: OSError) -> str:
    """ENOSPC and the like: it says what is wrong, and names no path."""
    return errno.errorcode.get(error.errno or 0, type(error).__name__)
