"""The demo's members: their files in the package, and each as a process of its own."""

import json
import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edge_fi.adapters import keyfile
from edge_fi.config import ENVIRONMENT_PREFIX, load_task
from edge_fi.errors import TransportError
from edge_fi.messages import Task, Tensor
from edge_fi.roster import Roster
from edge_fi.session import GatewayIdentity

ASSETS = Path(__file__).parent / "assets"
STOP_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoMember:
    """One device of the demo: its model, and what its private data taught it."""

    id: str
    model: str
    kind: str
    scores: str
    labels: list[str]
    samples: int


def members() -> list[DemoMember]:
    """The demo's five devices."""
    tables = tomllib.loads((ASSETS / "members.toml").read_text(encoding="utf-8"))["member"]
    return [DemoMember(**table) for table in tables]


def task() -> Task:
    """The demo's task: digits of 8x8 pixels."""
    return load_task(ASSETS / "digits.toml")


def heldout() -> tuple[list[Tensor], NDArray[np.int64]]:
    """Images that no member has trained on, and what they show, (n,)."""
    with np.load(ASSETS / "heldout.npz", allow_pickle=False) as file:
        images, labels = file["images"], file["labels"]
    digits = task()
    return [Tensor(digits.dtype, digits.shape, image.tobytes()) for image in images], labels.astype(np.int64)


class MemberProcesses:
    """Every member as `edge-fi device run` in its own process, with keys and configuration in a folder.

    Each holds the reading end of a pipe that only this process can close, and stops when it is closed:
    however the demo ends, nothing is left running.
    """

    def __init__(self, folder: Path, *, port: int) -> None:
        self.folder = folder
        self._port = port
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def make_keys(self, federation: str) -> tuple[GatewayIdentity, Roster]:
        """A gateway's keys, and for each member a key and its line of the roster."""
        gateway = keyfile.make_gateway(self.folder / "gateway.key", federation, os.urandom)
        names = [("device", member.id) for member in members()]
        lines = keyfile.introduce(self.folder, names, gateway, os.urandom)
        return gateway, Roster(members=tuple(lines))

    def __enter__(self) -> "MemberProcesses":
        # What a user has set for a federation of its own must not reach these devices.
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)
        }
        for member in members():
            path = self.folder / f"{member.id}.toml"
            path.write_text(self._configuration(member), encoding="utf-8")
            command = [sys.executable, "-m", "edge_fi", "device", "run", "--config", str(path)]
            with (self.folder / f"{member.id}.log").open("wb") as log:
                self._processes[member.id] = subprocess.Popen(
                    [*command, "--stop-with-stdin"],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    # Ctrl-C is for the demo, which then tells its members.
                    start_new_session=True,
                )
        return self

    def forget_keys(self) -> None:
        """Remove the private keys: everybody has read its own, and a killed demo shall leave none."""
        for path in self.folder.glob("*.key"):
            path.unlink()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self._processes.values():
            if process.stdin is not None:
                process.stdin.close()
        for process in self._processes.values():
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def check(self) -> None:
        """Raises TransportError with a member's last words if one has ended."""
        for member, process in self._processes.items():
            if process.poll() is not None:
                lines = (self.folder / f"{member}.log").read_text(errors="replace").splitlines()
                raise TransportError(f"device {member} ended: {lines[-1] if lines else 'no word from it'}")

    def _configuration(self, member: DemoMember) -> str:
        return "\n".join(
            [
                f"key = {json.dumps(f'{member.id}.key')}",
                f"task = {json.dumps(str(ASSETS / 'digits.toml'))}",
                "[model]",
                f"path = {json.dumps(str(ASSETS / member.model))}",
                f"labels = {json.dumps(member.labels)}",
                f"scores = {json.dumps(member.scores)}",
                "[broker]",
                f"port = {self._port}",
                "",
            ]
        )
