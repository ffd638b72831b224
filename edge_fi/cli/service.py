"""`edge-fi device install-service` and `edge-fi gateway install-service`: a service of systemd."""

import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import click

from edge_fi import config
from edge_fi.errors import ConfigError

WATCHDOG_S = 60  # of no turn completed; the slowest batch of inferences takes a few seconds
_COMMANDS = {"device": "device run", "gateway": "gateway run"}
_FILES: dict[str, type[config.DeviceConfig | config.GatewayConfig]] = {
    "device": config.DeviceConfig,
    "gateway": config.GatewayConfig,
}

_UNIT = """\
# Made by: edge-fi {role} install-service
[Unit]
Description=edge_fi {role} ({config})
Wants=network-online.target
After=network-online.target

[Service]
Type=notify
NotifyAccess=main
ExecStart={program} {command} --config {config}
User={user}
Environment=ORT_DISABLE_TELEMETRY=1
# Each turn that was completed is told; a process that hangs is killed and started again.
WatchdogSec={watchdog}
Restart=on-failure
RestartSec=2
# The command line, a configuration, a key or a model is wrong: the next start would find it so again.
RestartPreventExitStatus=2 3 4 5 8
TimeoutStopSec=10
# What it may touch: its own folder, and the network.
ReadWritePaths={folder}
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
ProcSubset={proc}
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
UMask=0077

[Install]
WantedBy=multi-user.target
"""


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
        "--unit-dir", type=click.Path(path_type=Path), default=Path("/etc/systemd/system"), show_default=True
    )
    @click.option("--print", "is_print", is_flag=True, help="Only show the unit.")
    @click.option("--now", "is_now", is_flag=True, help="Start it, and on each boot.")
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
    def install(
        path: Path, user: str | None, unit_dir: Path, is_print: bool, is_now: bool, as_json: bool
    ) -> None:
        config.load(path, _FILES[role])
        unit = content(role, path.resolve(), user or pwd.getpwuid(path.stat().st_uid).pw_name)
        if is_print:
            click.echo(unit, nl=False)
            return
        name = f"edge-fi-{role}.service"
        target = unit_dir / name
        _write(target, unit, role, path)
        commands = [["systemctl", "daemon-reload"], ["systemctl", "enable", "--now", name]]
        if is_now:
            for command in commands:
                _run(command)
        if as_json:
            click.echo(json.dumps({"unit": str(target), "started": is_now}))
            return
        click.echo(f"{target}  written")
        if is_now:
            click.echo(f"it runs; its log: journalctl -u {name}")
        else:
            click.echo("next: " + " && ".join("sudo " + " ".join(command) for command in commands))

    install.help = (
        f"Make the {role} a service of systemd, which starts on each boot and again after a failure.\n\n\b\n"
        f"Examples:\n  sudo edge-fi {role} install-service --config {role}.toml --now\n"
        f"  edge-fi {role} install-service --config {role}.toml --print"
    )
    return install


def content(role: str, path: Path, user: str) -> str:
    """The unit file. path: of the configuration, absolute."""
    program = Path(sys.argv[0]).resolve()
    if program.name != "edge-fi" or not os.access(program, os.X_OK):
        program = Path(shutil.which("edge-fi") or Path(sys.executable).with_name("edge-fi"))
    for text in (str(program), str(path), user):
        if not text.isprintable() or any(mark in text for mark in " \"'\\%$"):
            raise ConfigError(
                f"{text!r} has characters that a unit of systemd reads otherwise: rename or move it"
            )
    return _UNIT.format(
        role=role,
        command=_COMMANDS[role],
        config=path,
        folder=path.parent,
        program=program,
        user=user,
        watchdog=WATCHDOG_S,
        # A gateway looks into /proc for the broker that it tells to read its files again.
        proc="pid" if role == "device" else "all",
    )


def _write(target: Path, unit: str, role: str, path: Path) -> None:
    try:
        target.write_text(unit, encoding="utf-8")
    except PermissionError:
        raise ConfigError(
            f"only root may write {target}: run 'sudo {Path(sys.executable).with_name('edge-fi')} {role} "
            f"install-service --config {path}'"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error.strerror}; is systemd installed here?") from None


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(f"'{' '.join(command)}' failed: {error}; is systemd running here?") from None
