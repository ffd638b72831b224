"""`edge-fi device join`, and the same for clients and helpers: an invite becomes keys and configuration.

The invite is a secret: it is read from stdin, from a prompt or from a file, never from the arguments,
which every user of the machine can see. The key is on the disk before the gateway hears of it, so that
after a crash at any moment the same command with the same invite goes on where it stopped.
"""

import contextlib
import json
import math
import os
import sys
import time
from pathlib import Path

import click

from edge_fi import config
from edge_fi.adapters import keyfile
from edge_fi.adapters.mqtt import Down, MqttLink, Up
from edge_fi.adapters.tls import fetch_ca, make_context, pin_of
from edge_fi.applicant import Applicant
from edge_fi.cli.joinfiles import absent_maps, configure, refuse_another_member, write
from edge_fi.cli.run import load_model, run_device
from edge_fi.crypto.seal import join_password
from edge_fi.errors import ConfigError, JoinError, KeyFileError, ModelError, TransportError
from edge_fi.pump import Notice, Pump
from edge_fi.session import Identity
from edge_fi.wire import invites, topics
from edge_fi.wire.invites import Invite
from edge_fi.wire.payloads import Accept, Refusal

LOOK_EVERY_S = 0.02
REFUSED_FOR_S = 2.0  # by the broker, which may be reading its new files; then it is its last word

_REFUSALS = {
    Refusal.USED: "this invite was used already: ask the gateway's owner for a new one",
    Refusal.EXPIRED: "this invite has expired: ask the gateway's owner for a new one",
    Refusal.WITHDRAWN: "this invite was withdrawn: ask the gateway's owner for a new one",
    Refusal.NAME_TAKEN: "there is a member of this name: ask the gateway's owner for an invite with another "
    "name, or, if that member's keys are lost, for one made with --replace",
    Refusal.FULL: "the federation has given all its numbers: its owner must begin a new one",
    Refusal.BUSY: "the gateway cannot write its state, is its disk full? The invite is still good: try again",
}


def join_command(role: str) -> click.Command:
    """`edge-fi <role> join`."""

    @click.command("join")
    @click.argument("unwanted", nargs=-1, metavar="")
    @click.option(
        "--file",
        "source",
        type=click.Path(path_type=Path),
        help="The file of the invite, or a folder of them: one is taken, which no other process gets.",
    )
    @click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path(),
        help="Folder for key and configuration. Default: this one.",
    )
    @click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(1, 3600),
        default=30.0,
        show_default=True,
        help="Longest wait for the broker and for the gateway, in seconds each.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
    def join(
        unwanted: tuple[str, ...],
        source: Path | None,
        out: Path,
        timeout_s: float,
        as_json: bool,
        is_run: bool = False,
        **about_model: str | None,
    ) -> None:
        if unwanted:  # and perhaps a secret: not repeated
            raise click.UsageError(
                "an invite is not given as an argument, where every user of this machine could read it: "
                "paste it when asked, pipe it in, or name its file with --file"
            )
        invite = _read_invite(role, source, out, is_quiet=as_json)
        key, path = out / f"{invite.id}.key", out / f"{role}.toml"
        refuse_another_member(path, invite)
        applied = _make_or_find_key(invite, key)
        ca = _fetch_ca(invite, out, timeout_s=timeout_s)
        accept = _apply(invite, applied, ca, timeout_s=timeout_s)
        configure(path, invite, accept, about_model)
        # Last, since without it the same command begins again.
        identity = keyfile.accept_member(key, applied, accept.index)
        _await_login(identity, invite, ca, timeout_s=timeout_s)
        _tell(identity, accept, path, as_json=as_json, is_run=is_run)
        if about_model.get("model"):
            _try_model(path)  # what does not fit is said now
        if is_run:
            click.get_current_context().invoke(run_device, path=path, stop_with_stdin=False, as_json=as_json)

    join.help = (
        f"Make this machine a {role} of a federation, by an invite.\n\n"
        "The invite is pasted when asked for, piped in, or read from a file.\n\n\b\nExamples:\n"
        f"  edge-fi {role} join{' --model model.onnx' if role == 'device' else ''}\n"
        f"  edge-fi {role} join --file {'pi-07' if role == 'device' else 'laptop'}.invite\n"
        f"  ssh gateway edge-fi gateway invite x --config acme/gateway.toml | edge-fi {role} join"
    )
    if role == "device":
        for option in _MODEL_OPTIONS:
            option(join)
    return join


_MODEL_OPTIONS = (
    click.option("--run", "is_run", is_flag=True, help="Go on and run the device."),
    click.option("--output", help="Name of the model's output to read, where it has several."),
    click.option("--scores", type=click.Choice(("logits", "probabilities")), help="What its outputs are."),
    click.option("--labels", help="The task's labels that its outputs stand for, with commas between."),
    click.option("--model", help="The ONNX file of this device's model."),
    click.option("--task", help="The task to serve, where the federation has several."),
)


def _read_invite(role: str, source: Path | None, out: Path, *, is_quiet: bool) -> Invite:
    try:
        if source is not None:
            text = _claimed(role, source, out).read_text(encoding="ascii")
        elif sys.stdin.isatty():
            text = click.prompt("Invite", hide_input=True, err=is_quiet)
        else:
            text = sys.stdin.read(100_000)
    except OSError as error:
        raise ConfigError(f"cannot read an invite from {source}: {error.strerror}") from None
    except UnicodeDecodeError:
        told = "what was piped in" if source is None else source
        raise ConfigError(f"{told} is no invite: ask the gateway's owner for one") from None
    try:
        invite = invites.decode(text)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if invite.role != role:
        raise ConfigError(
            f"this invite is for a {invite.role}, not a {role}: run 'edge-fi {invite.role} join' with it"
        )
    return invite


def _claimed(role: str, source: Path, out: Path) -> Path:
    """The file, or one of the folder: taken by renaming it, which only one process can do."""
    if not source.is_dir():
        return source
    for path in sorted(source.glob("*.claimed")):
        if (out / f"{path.stem}.key").exists():
            return path  # taken by this very device, before it was interrupted
    for path in sorted(source.glob("*.invite")):
        with contextlib.suppress(FileNotFoundError):  # somebody was faster
            if _role_of(path) in (role, None):
                return path.rename(path.with_suffix(".claimed"))
    raise ConfigError(
        f"no invite for a {role} is left in {source}: have more made with 'edge-fi gateway invite --count'"
    )


def _role_of(path: Path) -> str | None:
    """Whom an invite is for; None for a file that holds none, of which its reader tells."""
    try:
        return invites.decode(path.read_text(encoding="ascii")).role
    except ValueError:
        return None


def _fetch_ca(invite: Invite, out: Path, *, timeout_s: float) -> Path | None:
    """The certificate that the invite names, from the broker itself; None where none is named."""
    if not invite.pin:
        return None
    path = out / "ca.pem"
    if path.exists():
        if pin_of(path) != invite.pin:
            raise ConfigError(
                f"{path} is of another broker: choose another folder with --out, or move it away"
            )
    else:
        write(path, fetch_ca(invite.host, invite.port, invite.pin, timeout_s=timeout_s))
    return path


def _apply(invite: Invite, identity: Identity, ca: Path | None, *, timeout_s: float) -> Accept:
    """The gateway's word that these keys are a member's. Raises JoinError, TransportError."""
    applicant = Applicant(invite, identity.static, os.urandom)
    link = MqttLink(
        f"fi{os.urandom(10).hex()}",
        host=invite.host,
        port=invite.port,
        subscriptions=applicant.subscriptions,
        username=topics.joiner_user(invite.number),
        password=join_password(invite.token),
        tls=make_context(ca) if invite.tls else None,
    )
    failure, refused_s = "no connection", math.inf

    def watch(notice: Notice) -> None:
        nonlocal failure, refused_s
        if isinstance(notice, Down):
            failure = notice.reason
            refused_s = min(refused_s, time.monotonic()) if failure.startswith("it refuses") else math.inf
        elif isinstance(notice, Up):
            refused_s = math.inf

    def is_refused() -> bool:
        return time.monotonic() > refused_s + REFUSED_FOR_S

    pump = Pump(applicant, link, watch=watch)
    pump.start()
    try:
        pump.run_until(lambda: link.is_up or is_refused(), timeout_s=timeout_s)
        if not link.is_up and refused_s == math.inf:
            raise TransportError(f"broker {invite.host}:{invite.port} cannot be reached: {failure}")
        pump.run_until(lambda: applicant.is_over or is_refused(), timeout_s=timeout_s)
    finally:
        pump.close()
    if applicant.accepted is not None:
        return applicant.accepted
    if applicant.refused is not None:
        raise JoinError(_REFUSALS[applicant.refused])
    if time.time() > invite.expires:
        raise JoinError(_REFUSALS[Refusal.EXPIRED])
    if refused_s < math.inf:  # a broker with accounts has one for each invite that is open, and says no more
        raise JoinError(
            f"broker {invite.host}:{invite.port} does not know this invite: it was withdrawn, as all open "
            "ones are when a gateway is restored, or it has expired by the gateway's clock: ask the "
            "gateway's owner for a new one"
        )
    raise JoinError(
        f"no gateway of federation {invite.federation} answered this invite at {invite.host}:{invite.port}: "
        "is it running, and is the invite one of its own?"
    )


def _make_or_find_key(invite: Invite, path: Path) -> Identity:
    """A key for this invite: the one of an attempt that was interrupted, if there is one."""
    if not path.exists():
        return keyfile.make_member(
            path, invite.federation, invite.role, invite.id, gateway=invite.gateway, entropy=os.urandom
        )
    found = keyfile.read_member(path, invite.role, is_joining=True)
    if (found.federation, found.id, found.gateway_static) != (invite.federation, invite.id, invite.gateway):
        raise KeyFileError(
            f"{path} is a key of {found.id} in federation {found.federation}, and this invite is for "
            f"{invite.id} in {invite.federation}, perhaps of another gateway: choose another folder by --out"
        )
    if found.index != keyfile.NOT_YET:
        configuration = path.with_name(f"{found.role}.toml")
        raise KeyFileError(
            f"{path}: {found.id} has joined already, and {configuration} is ready; to join anew, move that "
            "key away"
        )
    return found


def _try_model(path: Path) -> None:
    try:
        load_model(path, config.load(path, config.DeviceConfig))
    except ModelError as error:
        raise ModelError(
            f"{error}; the device has joined: correct [model] in {path}, and run 'edge-fi device run "
            f"--config {path}'"
        ) from None


def _await_login(identity: Identity, invite: Invite, ca: Path | None, *, timeout_s: float) -> None:
    """Until the broker lets the new member in: its files follow the roster within a moment."""
    link = MqttLink(
        identity.mqtt_client_id,
        host=invite.host,
        port=invite.port,
        subscriptions=[topics.gateway_state(invite.federation)],
        username=identity.id,
        password=identity.mqtt_password,
        tls=make_context(ca) if invite.tls else None,
    )
    failure, deadline = "no connection", time.monotonic() + timeout_s
    link.start()
    try:
        while not link.is_up and time.monotonic() < deadline:
            link.service()
            while link.events:
                event = link.events.popleft()
                failure = event.reason if isinstance(event, Down) else failure
            time.sleep(LOOK_EVERY_S)
    finally:
        is_up = link.is_up
        link.close()
    if not is_up:
        raise TransportError(
            f"{identity.id} has joined, but broker {invite.host}:{invite.port} does not let it in: "
            f"{failure}; does its owner keep its accounts with 'edge-fi broker config'? If not, set username "
            f"and password_file in [broker]"
        )


def _tell(identity: Identity, accept: Accept, path: Path, *, as_json: bool, is_run: bool) -> None:
    tasks = [task.name for task in accept.tasks]
    if as_json:
        fields = {
            "federation": identity.federation,
            "role": identity.role,
            "id": identity.id,
            "index": identity.index,
            "tasks": tasks,
            "config": str(path),
        }
        click.echo(json.dumps(fields))
        return
    click.echo(f"{identity.id} is a {identity.role} of federation {identity.federation}")
    click.echo(f"{path}  made, beside the key {identity.id}.key; tasks: {', '.join(tasks) or 'none'}")
    for missing in absent_maps(path, accept):
        click.echo(
            f"{missing} is missing, it was too large to come along: copy it from the gateway", err=True
        )
    if identity.role == "device" and not is_run:
        click.echo(f"next: edge-fi device run --config {path}")
        click.echo(f"  or: sudo edge-fi device install-service --config {path}")
    if identity.role == "client":
        click.echo(f"next: edge-fi ask --config {path} --input image.npy")
