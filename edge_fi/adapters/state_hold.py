"""One gateway a state: the running one holds a lock beside the file, and says in it what it has applied.

The lock is the kernel's, of the kind that belongs to an open file (fcntl(2), F_OFD_SETLK): it dies with its
process, however that ends, and whether it is held can be asked without taking it. It knows this machine
alone; that no gateway runs on another one is what `claim` asks the broker.
"""

import contextlib
import fcntl
import os
import struct
import time
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from edge_fi.errors import AlreadyRunningError, StateError

Progress = Literal["applied", "late", "absent"]
"""Of a change: the running gateway goes by it, does not yet, or none runs."""

_POLL_S = 0.02
_FLOCK = struct.Struct("@hhqqi4x")  # type, whence, start, length, process: on 64-bit Linux


class Hold:
    """The lock, until `release` or the end of the process. Use as a context manager."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> "Hold":
        """Hold the state at `path`. Raises AlreadyRunningError where another process does."""
        lock = _lock(path)
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if os.geteuid() == 0 and path.exists():
                # A gateway that is not root must be able to hold what root has looked at.
                os.fchown(descriptor, path.stat().st_uid, path.stat().st_gid)
        except OSError as error:
            raise StateError(f"cannot write {os.path.normpath(lock)}: {error.strerror}") from None
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _whole_file(fcntl.F_WRLCK))
        except BlockingIOError:
            told = os.pread(descriptor, 80, 0).split()
            os.close(descriptor)
            process = f"process {int(told[0])}" if told else "another process"
            raise AlreadyRunningError(
                f"{process} runs as the gateway of {os.path.normpath(path)}: stop it first"
            ) from None
        hold = cls(descriptor)
        hold.applied(-1, -1)  # what a former run has applied is not yet ours
        return hold

    def applied(self, version: int, rotations: int) -> None:
        """Say that the gateway goes by this version of the roster, and by so many rotations."""
        # In place and of one size, so that a full disk is no hindrance.
        with contextlib.suppress(OSError):
            os.pwrite(self._descriptor, b"%10d %20d %20d\n" % (os.getpid(), version, rotations), 0)

    def release(self) -> None:
        """Let go."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def is_held(path: Path) -> bool:
    """Whether a gateway runs on this state."""
    return _applied(path) is not None


def wait_applied(path: Path, version: int, rotations: int, *, timeout_s: float = 5.0) -> Progress:
    """Wait until the running gateway goes by this version and these rotations, or later ones."""
    deadline = time.monotonic() + timeout_s
    while True:
        applied = _applied(path)
        if applied is None:
            return "absent"
        if applied[0] >= version and applied[1] >= rotations:
            return "applied"
        if time.monotonic() >= deadline:
            return "late"
        time.sleep(_POLL_S)


def _applied(path: Path) -> tuple[int, int] | None:
    """Version and rotations that the running gateway goes by; None if none runs."""
    try:
        descriptor = os.open(_lock(path), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        in_the_way = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _whole_file(fcntl.F_RDLCK))
        if _FLOCK.unpack(in_the_way)[0] == fcntl.F_UNLCK:
            return None
        told = os.pread(descriptor, 80, 0).split()
        return (int(told[1]), int(told[2])) if len(told) == 3 else (-1, -1)
    finally:
        os.close(descriptor)


def _whole_file(kind: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0)


def _lock(path: Path) -> Path:
    """Beside the file itself, by whatever links it was reached."""
    path = path.resolve()
    return path.with_name(f"{path.name}.lock")
