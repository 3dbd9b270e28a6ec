"""Files that appear under their name only when they are whole."""

import contextlib
import fcntl
import hashlib
import os
from dataclasses import dataclass
from typing import NoReturn

from megatron_pixel.config.errors import UserError

PART_SUFFIX = ".part"
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class FileEntry:
    """What a manifest remembers of a file."""

    bytes: int
    sha256: str


class CannotWriteError(UserError):
    """A file could not be written. ``problem`` names the file, the reason and the bytes written; the message adds a
    way out, which callers that know a better one replace."""

    def __init__(self, problem: str, way_out: str | None = None) -> None:
        self.problem = problem
        self.way_out = way_out or "nothing unfinished is left behind. Make room or choose another output prefix."
        super().__init__(f"{problem}; {self.way_out}")

    @classmethod
    def of(cls, error: OSError, path: str) -> "CannotWriteError":
        """What the system refused in a folder or file ``path``, if it names none itself."""
        return cls(f"cannot write {error.filename or path}: {error.strerror or type(error).__name__}")

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.problem, self.way_out)


def cannot_write(path: str, written: int, error: OSError) -> NoReturn:
    """Raise :class:`CannotWriteError` for a write to ``path`` that failed (full disk, quota) after so many bytes."""
    reason = error.strerror or type(error).__name__
    raise CannotWriteError(f"cannot write {path}: {reason} after {written:,} bytes") from error


class OutputFile:
    """A file written under ``path + ".part"``, hashed on the way, and renamed to ``path`` by :meth:`commit`.

    A part left by a process that was killed is simply overwritten, but for its first ``keep`` bytes; one that another
    process is writing is refused. Every failed write raises :class:`CannotWriteError`.
    """

    def __init__(self, path: str, keep: int = 0) -> None:
        """``keep`` bytes of an earlier process stay at the beginning of the file; UserError if there are fewer."""
        self.path = path
        self.part = path + PART_SUFFIX
        self.bytes = 0
        self._sha256 = hashlib.sha256()
        self._committed = False
        try:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            # Opened without truncation: the content may belong to a process that holds the lock.
            descriptor = os.open(self.part, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            cannot_write(path, 0, error)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(
                f"{path} is being written by another process; wait for it or choose another prefix"
            ) from None
        except OSError:
            pass  # a file system without locks
        if keep:
            self._resume(descriptor, keep)
        os.ftruncate(descriptor, keep)
        self._file = open(descriptor, "wb", buffering=_BUFFER_BYTES)  # noqa: SIM115 - closed by close or abort

    def _resume(self, descriptor: int, keep: int) -> None:
        while self.bytes < keep:
            data = os.read(descriptor, min(_BUFFER_BYTES, keep - self.bytes))
            if not data:
                os.close(descriptor)
                raise UserError(f"{self.part} has {self.bytes:,} bytes where {keep:,} were written: it is damaged")
            self._sha256.update(data)
            self.bytes += len(data)

    def write(self, data: bytes | memoryview) -> None:
        """Append ``data``."""
        try:
            self._file.write(data)
        except OSError as error:
            cannot_write(self.path, self.bytes, error)
        self.bytes += len(data)
        self._sha256.update(data)

    def sync(self) -> None:
        """Bring everything to the disk; more may follow."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            cannot_write(self.path, self.bytes, error)

    def close(self) -> None:
        """Bring everything to the disk; the file keeps its temporary name."""
        if self._file.closed:
            return
        self.sync()
        self._file.close()

    def commit(self) -> FileEntry:
        """Give the file its name; return its size and hash."""
        self.close()
        try:
            os.replace(self.part, self.path)
        except OSError as error:
            cannot_write(self.path, self.bytes, error)
        self._committed = True
        sync_folder(os.path.dirname(self.path) or ".")
        return FileEntry(bytes=self.bytes, sha256=self._sha256.hexdigest())

    def leave(self) -> None:
        """Close the file under its temporary name, for a later process to go on with."""
        with contextlib.suppress(OSError):  # closing flushes, and the disk may be full
            self._file.close()

    def abort(self) -> None:
        """Remove the file, whether it has its name already or not."""
        with contextlib.suppress(OSError):  # closing flushes, and the disk may be full
            self._file.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path if self._committed else self.part)


def write_file(path: str, data: bytes) -> FileEntry:
    """Write ``data`` to ``path`` at once: whole under its name, or not there."""
    output = OutputFile(path)
    try:
        output.write(data)
        return output.commit()
    except BaseException:
        output.abort()
        raise


def hash_file(path: str) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: str) -> None:
    """Make a rename durable; file systems that cannot sync a folder order it themselves."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
