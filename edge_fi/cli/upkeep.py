"""`edge-fi gateway rotate | backup | restore`: a gateway through the years."""

import contextlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from edge_fi import config
from edge_fi.adapters import keyfile, state_backup
from edge_fi.adapters.state_hold import wait_applied
from edge_fi.cli.owner import config_option, json_option, opened
from edge_fi.errors import ConfigError

CONFIGURATION, STATE = "gateway.toml", "state.db"
LARGEST_BYTES = 1_000_000_000  # of a backup's file; a state of 65,535 members has some tens of MB
KEY, AUTHORITY = "gateway.key", ("broker/ca.pem", "broker/ca.key")
# A task, its feature map, and canaries where they are kept beside it.
SUFFIXES = (".toml", ".features", ".npz")
_TAKEN_ALONG = (KEY, CONFIGURATION, *(f"tasks/*{suffix}" for suffix in SUFFIXES), *AUTHORITY)
"""What a backup holds beside the state."""


@click.command("rotate")
@config_option
@click.option("--signing-key", is_flag=True, help="Make a new key to sign queries with, too.")
@json_option
def rotate(path: Path, signing_key: bool, as_json: bool) -> None:
    """Begin a new epoch: new query keys for every task, carried to each device under its session.

    A running gateway does so within a second. It also does on each start, every day and whenever a
    device is revoked: this is for a suspicion.

    \b
    Examples:
      edge-fi gateway rotate --config acme/gateway.toml
      edge-fi gateway rotate --config acme/gateway.toml --signing-key
    """
    with opened(path) as gateway:
        if signing_key:
            keyfile.rotate_signing(path.parent / gateway.settings.key, os.urandom)
        gateway.state.rotate()
        roster = gateway.state.roster()
    progress = wait_applied(gateway.state_path, roster.version, roster.rotations)
    if as_json:
        click.echo(
            json.dumps({"rotations": roster.rotations, "signing_key": signing_key, "gateway": progress})
        )
        return
    click.echo(
        {
            "applied": "a new epoch has begun",
            "late": "written down; the running gateway has not taken it up within 5 s: see its log",
            "absent": "written down; no gateway runs, and each start is a new epoch",
        }[progress]
    )


@click.command("backup")
@click.argument("target", type=click.Path(path_type=Path))
@config_option
@json_option
def backup(target: Path, path: Path, as_json: bool) -> None:
    """Write keys, roster and configuration into one file, which is as secret as the gateway's key.

    The gateway may run meanwhile. Keys of sessions and epochs are in no backup: they are never on a disk.

    \b
    Example:
      edge-fi gateway backup acme.tar --config acme/gateway.toml
    """
    with tempfile.TemporaryDirectory(prefix="edge-fi-backup-") as folder, opened(path) as gateway:
        _refuse_unusual_places(path, gateway.settings)
        if target.exists():
            raise ConfigError(f"{target} exists and is not overwritten: choose another name")
        copy = Path(folder) / STATE
        gateway.state.backup(copy)
        roster = gateway.state.roster()
        files = {STATE: copy} | dict(_companions(path.parent))
        _pack(target, files)
    fields = {
        "file": str(target),
        "members": len(roster.members),
        "version": roster.version,
        "holds": list(files),
    }
    if as_json:
        click.echo(json.dumps(fields))
        return
    click.echo(
        f"{target}  made: {len(roster.members)} members, roster version {roster.version}; {', '.join(files)}"
    )
    click.echo("whoever reads it can be the gateway: keep it as you keep gateway.key")


@click.command("restore")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The gateway's folder.")
@json_option
def restore(source: Path, out: Path, as_json: bool) -> None:
    """Make a gateway's folder again from a backup.

    Invites that were still open are void. Who was revoked since the backup is revoked again, as soon as the
    broker's memory of it is read; whoever joined since must join again. A roster is never rolled back: where
    the folder has a later one, nothing is restored.

    \b
    Example:
      edge-fi gateway restore acme.tar --out acme
    """
    with tempfile.TemporaryDirectory(prefix="edge-fi-restore-") as folder:
        names = _unpack(source, Path(folder))
        if STATE not in names or KEY not in names:
            raise ConfigError(f"{source} is no backup of a gateway: it has no {STATE} or no {KEY}")
        identity = keyfile.read_gateway(Path(folder) / KEY)
        with _put_back(Path(folder), names, out) as made:
            state_backup.restore(
                Path(folder) / STATE, out / STATE, identity.federation, identity.static.public
            )
    if as_json:
        click.echo(json.dumps({"folder": str(out), "federation": identity.federation, "files": made}))
        return
    click.echo(f"{out}  restored: federation {identity.federation}; open invites are void")
    if AUTHORITY[1] in made:
        click.echo(f"next: edge-fi broker config mosquitto --config {out / CONFIGURATION}, or nats")
    click.echo(f"next: edge-fi gateway run --config {out / CONFIGURATION}")


def _refuse_unusual_places(path: Path, settings: config.GatewayConfig) -> None:
    """What is elsewhere would not be in the backup, and be missed when it is needed."""
    places = [("this file", path.name, CONFIGURATION), ("key", settings.key, KEY)]
    places += [("state", settings.state, STATE)]
    places += [("a task", task, "tasks/....toml") for task in settings.tasks if not _is_ours(task)]
    named = [its.file for its in settings.canaries.values()]
    places += [("a canary file", file, "tasks/....npz") for file in named if not _is_ours(file)]
    if (path.parent / settings.broker_files).exists():
        places.append(("broker_files", settings.broker_files, "broker"))
    for what, place, usual in places:
        if place != usual:
            raise ConfigError(
                f"{path}: {what} is {place}, and a backup takes {usual} along: move it there, or back up by "
                "hand"
            )


def _companions(folder: Path) -> Iterator[tuple[str, Path]]:
    for pattern in _TAKEN_ALONG:
        for file in sorted(folder.glob(pattern)):
            yield str(file.relative_to(folder)), file


def _pack(target: Path, files: dict[str, Path]) -> None:
    """Whole or not at all, and readable by its owner alone from its first byte."""
    beside = target.with_name(f".{target.name}.{os.urandom(8).hex()}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as raw, tarfile.open(fileobj=raw, mode="w") as archive:
            for name, file in files.items():
                entry = tarfile.TarInfo(name)
                content = file.read_bytes()
                entry.size, entry.mode = len(content), 0o600
                archive.addfile(entry, io.BytesIO(content))
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        beside.rename(target)
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error.strerror}") from None
    finally:
        beside.unlink(missing_ok=True)


def _is_ours(name: str) -> bool:
    """Whether `backup` writes such a name: an archive of somebody else's could name any file."""
    folder, _, file = name.rpartition("/")
    return name in (STATE, KEY, CONFIGURATION, *AUTHORITY) or (
        folder == "tasks" and file.endswith(SUFFIXES) and file.isprintable()
    )


def _unpack(source: Path, folder: Path) -> list[str]:
    """The names of what is in it."""
    names = []
    try:
        with tarfile.open(source) as archive:
            for entry in archive:
                content = archive.extractfile(entry) if entry.isfile() else None
                if not _is_ours(entry.name) or content is None or entry.size > LARGEST_BYTES:
                    raise ConfigError(f"{source} is no backup of a gateway: it holds {entry.name!r}")
                _make_private(folder / entry.name, content.read())
                names.append(entry.name)
    except (OSError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or "it is no backup of a gateway, or damaged"
        raise ConfigError(f"cannot read backup {source}: {reason}") from None
    return names


@contextlib.contextmanager
def _put_back(folder: Path, names: list[str], out: Path) -> Iterator[list[str]]:
    """Everything but the state, where it is not there; gives what was made, and takes it away again where
    the `with` raises. Raises ConfigError where a key there is another.
    """
    key = out / KEY
    if key.exists() and _static(key) != _static(folder / KEY):
        raise ConfigError(f"{key} is the key of another gateway: restore into another folder")
    made: list[str] = []
    try:
        for name in names:
            if name != STATE and not (out / name).exists():
                made.append(name)
                _make_private(out / name, (folder / name).read_bytes())
        yield made
    except BaseException as error:
        for name in made:
            with contextlib.suppress(OSError):
                (out / name).unlink()
        if isinstance(error, OSError):
            raise ConfigError(f"cannot write into {out}: {error.strerror}") from None
        raise


def _static(path: Path) -> bytes:
    return keyfile.read_gateway(path).static.public


def _make_private(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
