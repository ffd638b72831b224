"""`edge-fi gateway invite`: what makes a device, client or helper a member, once."""

import json
import os
import re
import time
from pathlib import Path

import click

from edge_fi import config
from edge_fi.adapters.tls import pin_of
from edge_fi.cli.owner import Opened, config_option, json_option, opened
from edge_fi.cli.qr import modules, print_qr
from edge_fi.errors import ConfigError
from edge_fi.messages import ROLES
from edge_fi.wire import invites
from edge_fi.wire.invites import PREFIX, Invite

TOKEN_BYTES = 16
MOST_AT_ONCE = 10_000
_UNITS_S = {"m": 60, "h": 3600, "d": 86_400}


class Lifetime(click.ParamType[int]):
    """`30m`, `24h`, `7d`: in seconds."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Seconds."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,4})([mhd])", str(value))
        if not match or not 60 <= int(match[1]) * _UNITS_S[match[2]] <= 365 * 86_400:
            self.fail(f"{value!r} is no time from 1m to 365d, as 30m, 24h or 7d", param, ctx)
        return int(match[1]) * _UNITS_S[match[2]]


@click.command("invite")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@config_option
@click.option("--role", type=click.Choice(ROLES), default="device", show_default=True)
@click.option(
    "--task", "task_name", help="The only task that a device may join. Default: any of the gateway's."
)
@click.option(
    "--lifetime", type=Lifetime(), default="24h", show_default=True, help="How long it is good for."
)
@click.option("--replace", is_flag=True, help="For a member whose keys are lost: the old ones are revoked.")
@click.option(
    "--count",
    type=click.IntRange(1, MOST_AT_ONCE),
    help="Invites for ID-01, ID-02, ...: so many, into --out.",
)
@click.option(
    "--file",
    "--out",
    "out",
    type=click.Path(path_type=Path),
    help="Write it there, readable by you alone; several go into this folder, as ID.invite.",
)
@click.option("--qr", is_flag=True, help="Show it as a QR code as well.")
@json_option
def invite(
    ids: tuple[str, ...],
    path: Path,
    role: str,
    task_name: str | None,
    lifetime: int,
    replace: bool,
    count: int | None,
    out: Path | None,
    qr: bool,
    as_json: bool,
) -> None:
    """Print an invite: one line that makes its holder the member ID, once.

    Whoever has it can join in this name until it is used or expires: give it as you would a password.

    \b
    Examples:
      edge-fi gateway invite pi-07
      edge-fi gateway invite pi-01 pi-02 pi-03 --file invites
      edge-fi gateway invite pi --count 20 --file invites
      edge-fi gateway invite laptop --role client --lifetime 30m
    """
    if count is not None and (len(ids) > 1 or out is None):
        raise click.UsageError("--count numbers one ID, and needs the folder --file to write them into")
    names = _numbered(ids[0], count) if count is not None else list(ids)
    if len(set(names)) < len(names):
        raise click.UsageError("an ID is given twice, and one invite would take the place of the other")
    if qr:
        modules(PREFIX)  # what is missing for it is said before an invite is made
    with opened(path) as gateway:
        tasks = config.load_tasks(path.parent, gateway.settings.tasks)
        if task_name is not None and task_name not in tasks:
            raise ConfigError(f"no task {task_name!r} in {path}: {', '.join(tasks)}")
        ca = gateway.settings.broker.ca
        pin = b"" if ca is None else pin_of(path.parent / ca)
        task = 0 if task_name is None else tasks[task_name].number
        with gateway.state.together():  # all of them, or none
            made = [
                _make(gateway, name, role, pin, task=task, lifetime_s=lifetime, replaces=replace)
                for name in names
            ]
        gateway.follow()
    if out is not None:
        _write(made, out, is_folder=len(made) > 1 or count is not None or out.is_dir())
    _tell(made, out, qr=qr, as_json=as_json)


def _make(
    gateway: Opened, name: str, role: str, pin: bytes, *, task: int, lifetime_s: int, replaces: bool
) -> Invite:
    """Write an invitation down, and say what its holder needs."""
    invitation, expires = gateway.state.invite(
        name, role, task=task, lifetime_s=lifetime_s, replaces=replaces, token=os.urandom(TOKEN_BYTES)
    )
    broker = gateway.settings.broker
    try:
        return Invite(
            federation=gateway.identity.federation,
            role=role,
            id=name,
            number=invitation.number,
            expires=expires,
            token=invitation.token,
            gateway=gateway.identity.static.public,
            host=broker.host,
            port=broker.port,
            tls=broker.tls,
            pin=pin,
        )
    except ValueError as error:
        raise ConfigError(f"{gateway.path}: the invite would not hold what is in [broker]: {error}") from None


def _numbered(stem: str, count: int) -> list[str]:
    width = max(2, len(str(count)))
    return [f"{stem}-{number:0{width}}" for number in range(1, count + 1)]


def _write(made: list[Invite], out: Path, *, is_folder: bool) -> None:
    """Each in a file of its own, whole from the moment it has its name: another process may wait for it."""
    try:
        (out if is_folder else out.parent).mkdir(parents=True, exist_ok=True)
        for one in made:
            path = out / f"{one.id}.invite" if is_folder else out
            beside = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
            try:
                with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                    file.write(invites.encode(one) + "\n")
                beside.replace(path)
            finally:
                beside.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write an invite to {out}: {error.strerror}") from None


def _tell(made: list[Invite], out: Path | None, *, qr: bool, as_json: bool) -> None:
    if as_json:
        listed = [
            {
                "id": one.id,
                "role": one.role,
                "number": one.number,
                "expires": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(one.expires)),
            }
            | ({"invite": invites.encode(one)} if out is None else {})
            for one in made
        ]
        click.echo(json.dumps({"invites": listed}))
        return
    for one in made:
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.expires))
        where = f"written to {out}" if out is not None else f"join with: edge-fi {one.role} join"
        click.echo(f"{one.role} {one.id}, good once until {until}; {where}", err=out is None)
        if out is None:
            click.echo(invites.encode(one))
        if qr:
            print_qr(invites.encode(one))
