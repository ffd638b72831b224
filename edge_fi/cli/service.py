"""`edge-fi device install-service` and `edge-fi gateway install-service`: a service of systemd."""

import json
import os
import pwd
import shlex
import subprocess
import sys
from pathlib import Path

import click

import edge_fi
from edge_fi import config
from edge_fi.cli.unit import Service, render
from edge_fi.errors import ConfigError

_BOOTED = Path("/run/systemd/system")  # there where systemd is the init (sd_booted(3))
_FILES: dict[str, type[config.DeviceConfig | config.GatewayConfig]] = {
    "device": config.DeviceConfig,
    "gateway": config.GatewayConfig,
}


def install_service(role: str) -> click.Command:
    """`edge-fi <role> install-service`."""

    @click.command("install-service")
    @click.option(
        "--config",
        "path",
        type=click.Path(path_type=Path),
        default=Path(f"{role}.toml"),
        show_default=True,
        help="Its configuration file.",
    )
    @click.option("--user", help="The account to run as. Default: the owner of the configuration file.")
    @click.option(
        "--unit-dir",
        type=click.Path(path_type=Path),
        default=Path("/etc/systemd/system"),
        show_default=True,
        help="Where the unit file goes.",
    )
    @click.option("--print", "is_print", is_flag=True, help="Only show the unit file.")
    @click.option("--now", "is_now", is_flag=True, help="Start it now, and on each boot.")
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
    def install(
        path: Path, user: str | None, unit_dir: Path, is_print: bool, is_now: bool, as_json: bool
    ) -> None:
        service = _plan(role, path, user)
        unit, target = render(service), unit_dir / f"edge-fi-{role}.service"
        commands = [["systemctl", "daemon-reload"], ["systemctl", "enable", "--now", target.name]]
        if is_print:
            shown = json.dumps({"unit": str(target), "content": unit}) if as_json else unit.removesuffix("\n")
            click.echo(shown)
            return
        if is_now and not _BOOTED.is_dir():
            raise ConfigError(
                "systemd does not run here: leave --now out, and start the service where it does"
            )
        _write(target, unit, service)
        for command in commands if is_now else ():
            _run(command, target.name)
        next_steps = [] if is_now else [shlex.join(command) for command in commands]
        if as_json:
            told = {"unit": str(target), "user": service.user, "started": is_now, "next": next_steps}
            click.echo(json.dumps(told))
            return
        click.echo(f"{target}  written; the {role} runs as {service.user}")
        click.echo(f"it runs; its log: journalctl -u {target.name}" if is_now else "next:")
        for step in next_steps:
            click.echo(f"  sudo {step}")

    install.help = (
        f"Make the {role} a service of systemd, which starts on each boot and again after a failure.\n\n\b\n"
        f"Examples:\n  sudo edge-fi {role} install-service --config {role}.toml --now\n"
        f"  edge-fi {role} install-service --config {role}.toml --print"
    )
    return install


def _plan(role: str, path: Path, user: str | None) -> Service:
    """Everything that goes into the unit. Raises ConfigError where it could not run like that."""
    settings = config.load(
        path, _FILES[role], environment={}
    )  # a service has not the variables of this shell
    program = Path(sys.executable).with_name("edge-fi")
    if not os.access(program, os.X_OK):
        raise ConfigError(
            f"there is no {program} for a service to run: pip install edge-fi with {sys.executable}"
        )
    folder = Path(os.path.abspath(path)).parent
    named = [folder / name for name in _names(settings)]
    for file in named:
        if not file.exists():
            raise ConfigError(f"{path} names {file}, which is not there: put it there first")
    account = _account(path, user)
    key = folder / settings.key
    if key.stat().st_uid != account.pw_uid:
        raise ConfigError(
            f"{key} does not belong to {account.pw_name}, who is to run the service: "
            f"run 'sudo chown {account.pw_name} {key}', or name its owner with --user"
        )
    # The program itself: its environment, the Python below that, and the code, which may lie elsewhere.
    code = (Path(sys.prefix), Path(sys.base_prefix), Path(edge_fi.__file__).parents[1])
    writes: list[Path] = []
    if isinstance(settings, config.GatewayConfig):
        # SQLite writes beside its file, and a key is changed by a new file under its name.
        writes = [folder, (folder / settings.state).parent]
        broker_files = folder / settings.broker_files
        writes += [broker_files] if broker_files.is_dir() else []
    return Service(
        role=role,
        program=program,
        config=folder / path.name,
        user=account.pw_name,
        code=code,
        reads=(folder, *named),
        writes=tuple(writes),
    )


def _names(settings: config.DeviceConfig | config.GatewayConfig) -> list[str]:
    """Every file that a configuration names."""
    names = [settings.key, settings.broker.ca, settings.broker.password_file]
    if isinstance(settings, config.DeviceConfig):
        names += [settings.task, settings.model.path]
    else:
        names += [settings.state, *settings.tasks]
    return [name for name in names if name is not None]


def _account(path: Path, user: str | None) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user) if user is not None else pwd.getpwuid(path.stat().st_uid)
    except KeyError:
        who = f"there is no account {user}" if user else f"{path} belongs to nobody"
        raise ConfigError(f"{who}: name an account of this machine with --user") from None


def _write(target: Path, unit: str, service: Service) -> None:
    """Raises ConfigError: without the right to, without systemd, or where another service stands."""
    try:
        if target.exists() and f" --config {service.config}\n" not in target.read_text(encoding="utf-8"):
            raise ConfigError(
                f"{target} is the service of another configuration: stop it and remove that file first, "
                "or choose another place with --unit-dir"
            )
        target.write_text(unit, encoding="utf-8")
        target.chmod(0o644)
    except PermissionError:
        again = [str(service.program), service.role, "install-service", "--config", str(service.config)]
        raise ConfigError(
            f"only root may write {target}: run 'sudo {shlex.join([*again, '--user', service.user])}'"
        ) from None
    except FileNotFoundError:
        raise ConfigError(
            f"there is no folder {target.parent}: is systemd this machine's service manager? "
            "Otherwise show the unit with --print, and tell its manager the same"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error.strerror}") from None


def _run(command: list[str], name: str) -> None:
    shown = shlex.join(command)
    try:
        # Quiet of what went well: what it says then is the fault.
        quiet = [command[0], "--quiet", *command[1:]]
        done = subprocess.run(quiet, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ConfigError(f"cannot run '{shown}': {error.strerror}; is systemd installed?") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ConfigError(f"'{shown}' failed: {said[0]}; its log says more: journalctl -u {name}")
