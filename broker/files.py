"""Files that a running broker reads: replaced whole, private, owned by the account that must read them."""

import os
import stat
from contextlib import suppress
from pathlib import Path

from edge_fi.errors import ConfigError

PRIVATE = 0o600
PRIVATE_FOLDER = 0o700


def make_folder(folder: Path, *, inside: bool = False) -> None:
    """Make a folder for its owner alone, and those above it. One that exists stays as it is.

    inside: it belongs to whom the folder around it belongs to. Raises ConfigError if it cannot be made, or
    if others could replace the files in it.
    """
    try:
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=PRIVATE_FOLDER)
        if inside and os.geteuid() == 0:
            around = folder.parent.stat()
            # Whoever owns the folder around may have put a link here, to what is not its own.
            os.chown(folder, around.st_uid, around.st_gid, follow_symlinks=False)
        mode = stat.S_IMODE(folder.stat().st_mode)
    except OSError as error:
        raise ConfigError(
            f"cannot make the folder {folder}: {error.strerror}; correct that, or choose another"
        ) from None
    if mode & 0o022:
        raise ConfigError(f"{folder} has mode {mode:04o}, others may write to it: run chmod 700 {folder}")


def owner(folder: Path) -> int:
    """The user id that files written to this folder belong to.

    It is the folder's owner where we may give files away, as root may: a broker that gives up root to be
    `mosquitto` has to read them afterwards.
    """
    return folder.stat().st_uid if os.geteuid() == 0 else os.geteuid()


def replace(path: Path, content: bytes, *, keep: bool = False) -> bool:
    """Write a file so that at any moment, whatever happens, it has either the old or the new content.

    keep: it stays ours, where others would go to the folder's owner. Returns False, and touches nothing, if
    that is what the file has already. Raises ConfigError if it cannot be written; then the old one is there.
    """
    try:
        if _is_as_wanted(path, content, keep=keep):
            return False
        temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
        try:
            _write(temporary, content, like=None if keep else path.parent)
            temporary.replace(path)
        except BaseException:
            with suppress(FileNotFoundError):
                temporary.unlink()
            raise
        _sync(path.parent)  # the rename itself
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}; nothing was changed in it: correct that, and write again"
        ) from None
    return True


def _is_as_wanted(path: Path, content: bytes, *, keep: bool) -> bool:
    try:
        status = path.lstat()
        wanted_owner = os.geteuid() if keep else owner(path.parent)
        return (
            stat.S_ISREG(status.st_mode)
            and stat.S_IMODE(status.st_mode) == PRIVATE
            and status.st_uid == wanted_owner
            and path.read_bytes() == content
        )
    except FileNotFoundError:
        return False


def _write(path: Path, content: bytes, *, like: Path | None) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
    with os.fdopen(descriptor, "wb") as file:
        if like is not None and os.geteuid() == 0:
            status = like.stat()
            os.fchown(descriptor, status.st_uid, status.st_gid)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
