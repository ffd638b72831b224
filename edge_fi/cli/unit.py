"""The unit file that makes a role a service of systemd: when it starts, and what it may touch.

It may read its program, its configuration and what that names, and write what it must keep; nothing else of
the home folders is there for it at all. Options are those of systemd 247 and later (Debian 11).
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edge_fi.errors import ConfigError

WATCHDOG_S = 60  # without a turn that was completed; the slowest batch of inferences takes some seconds
STOP_S = 20  # a connect that is under way is waited for

# Empty for the service, but for what is bound into them.
HIDDEN = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # noqa: S108 - not used for files

_UNIT = """\
# Made by: edge-fi {role} install-service
# To change something, put it beside this file: systemctl edit edge-fi-{role}
[Unit]
Description=edge_fi {role} ({config})
Documentation=man:systemd.exec(5)
Wants=network-online.target
After=network-online.target
# It comes back for as long as it takes.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={program} {role} run --config {config}
User={user}
Environment=ORT_DISABLE_TELEMETRY=1
# Each turn that was completed is told; a process that hangs is killed and started again.
WatchdogSec={watchdog}
TimeoutStopSec={stop}
Restart=on-failure
RestartSec=3
# The command line, a configuration, a key or a model is wrong, or another process is this gateway: the next
# start would find it so again. docs/exit-codes.md
RestartPreventExitStatus=2 3 4 5 8

# Files: its own
UMask=0077
ProtectSystem=strict
ProtectHome=tmpfs
PrivateTmp=yes
{paths}
# The machine: nothing of it
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
# No ProcSubset=pid: ONNX Runtime learns from /proc/cpuinfo which instructions an ARM processor has.
ProtectProc=invisible
RemoveIPC=yes
# Core dumps would hold keys.
LimitCORE=0
MemoryMax=75%

# The kernel: what a network program calls, and no new rights
AmbientCapabilities=
CapabilityBoundingSet=
KeyringMode=private
LockPersonality=yes
# ONNX Runtime on processors makes no code at run time (tests/cli/test_service.py tries it).
MemoryDenyWriteExecute=yes
NoNewPrivileges=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
# Refused, not killed: ONNX Runtime asks to pin its threads, and goes on when it may not.
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What one unit is made of. Paths are absolute."""

    role: str
    program: Path
    config: Path
    user: str
    code: tuple[Path, ...]
    """Folders of the program: it cannot change them, even where they are in one that it may write."""
    reads: tuple[Path, ...]
    """Files and folders."""
    writes: tuple[Path, ...]
    """Folders."""


def render(service: Service) -> str:
    """The unit file. Raises ConfigError for a path or a name that a unit cannot hold as it is."""
    paths = (service.program, service.config, *service.code, *service.reads, *service.writes)
    for text in (service.user, *map(str, paths)):
        if not text.isprintable() or any(mark in text for mark in " \"'\\%$:;"):
            raise ConfigError(
                f"{text!r} has characters that systemd reads in another way: rename it, or move it elsewhere"
            )
    return _UNIT.format(
        role=service.role,
        config=service.config,
        program=service.program,
        user=service.user,
        watchdog=WATCHDOG_S,
        stop=STOP_S,
        paths="".join(f"{line}\n" for line in _paths(service)),
    )


def _paths(service: Service) -> list[str]:
    """What of the hidden folders is there, and what may be written."""
    writes = _outermost(_names(service.writes))
    code = {path for path in _names(service.code) if _is_in(path, (*HIDDEN, *writes))}
    reads = {path for path in _names(service.reads) if _is_in(path, HIDDEN) and not _is_in(path, writes)}
    bound = _outermost((code | reads) - set(writes))
    for path in (*bound, *writes):
        if path in HIDDEN:
            raise ConfigError(
                f"a service cannot have all of {path}: move what it needs to a folder of its own"
            )
    lines = [f"BindReadOnlyPaths={path}" for path in bound]
    return lines + [f"{'BindPaths' if _is_in(path, HIDDEN) else 'ReadWritePaths'}={path}" for path in writes]


def _names(paths: Iterable[Path]) -> set[Path]:
    """Each by its name, and by where that leads when there are links in it."""
    return {Path(name) for path in paths for name in (os.path.abspath(path), os.path.realpath(path))}


def _outermost(paths: set[Path]) -> list[Path]:
    """Those that are inside no other."""
    return sorted(path for path in paths if not _is_in(path, paths - {path}))


def _is_in(path: Path, folders: Iterable[Path]) -> bool:
    """Whether it is one of these folders, or inside one."""
    return any(path.is_relative_to(folder) for folder in folders)
