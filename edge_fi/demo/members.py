"""The demo's scenarios and members: their files in the package, and each member as a process of its own."""

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
from edge_fi.voting.features import FeatureMap

ASSETS = Path(__file__).parent / "assets"
STOP_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoMember:
    """One device of the demo: its model, and what its private data taught it."""

    id: str
    model: str
    gate: str
    kind: str
    scores: str
    labels: list[str]
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A federation that was trained beforehand, as files in the package."""

    name: str
    """The task's, too."""
    folder: Path
    sample: str
    """What a device has many of: "image"."""
    array: str
    """Of heldout.npz: what can be asked."""
    public: int = 0
    """So many of these are the public queries of the feature map, the first ones, and are not asked."""

    is_short: bool = False
    """Whether its labels need no comma between them."""

    @property
    def task_path(self) -> Path:
        """The task file."""
        return self.folder / f"{self.name}.toml"

    @property
    def features_name(self) -> str:
        """The file of the feature map, in the folder."""
        return f"{self.name}.features"

    def task(self) -> Task:
        """What the federation agrees on."""
        return load_task(self.task_path)

    def features(self) -> FeatureMap:
        """The space in which members say how familiar a query is."""
        return FeatureMap.decode((self.folder / self.features_name).read_bytes())

    def members(self) -> list[DemoMember]:
        """The devices."""
        tables = tomllib.loads((self.folder / "members.toml").read_text(encoding="utf-8"))["member"]
        return [DemoMember(**table) for table in tables]

    def heldout(self) -> tuple[list[Tensor], NDArray[np.int64]]:
        """Queries that no member has trained on, and what they show, (n,)."""
        with np.load(self.folder / "heldout.npz", allow_pickle=False) as file:
            queries, labels = file[self.array], file["labels"]
        task = self.task()
        return [Tensor(task.dtype, task.shape, query.tobytes()) for query in queries], labels.astype(np.int64)

    def asked(self) -> tuple[list[Tensor], NDArray[np.int64]]:
        """Those of them that the demo asks: without the public ones."""
        tensors, truth = self.heldout()
        return tensors[self.public :], truth[self.public :]


DIGITS = Scenario(name="digits", folder=ASSETS, sample="image", array="images", public=100, is_short=True)
WATCH = Scenario(name="watch", folder=ASSETS / "watch", sample="window", array="queries")
SCENARIOS = {scenario.name: scenario for scenario in (DIGITS, WATCH)}


def members() -> list[DemoMember]:
    """The digits demo's five devices."""
    return DIGITS.members()


def task() -> Task:
    """The digits demo's task: images of 8x8 pixels."""
    return DIGITS.task()


def heldout() -> tuple[list[Tensor], NDArray[np.int64]]:
    """Images that no member has trained on, and what they show, (n,)."""
    return DIGITS.heldout()


class MemberProcesses:
    """Every member as `edge-fi device run` in its own process, with keys and configuration in a folder.

    Each holds the reading end of a pipe that only this process can close, and stops when it is closed:
    however the demo ends, nothing is left running.
    """

    def __init__(self, scenario: Scenario, folder: Path, *, port: int) -> None:
        self.folder = folder
        self._scenario = scenario
        self._port = port
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def make_keys(self, federation: str) -> tuple[GatewayIdentity, Roster]:
        """A gateway's keys, and for each member a key and its line of the roster."""
        gateway = keyfile.make_gateway(self.folder / "gateway.key", federation, os.urandom)
        names = [("device", member.id) for member in self._scenario.members()]
        lines = keyfile.introduce(self.folder, names, gateway, os.urandom)
        return gateway, Roster(members=tuple(lines))

    def __enter__(self) -> "MemberProcesses":
        # What a user has set for a federation of its own must not reach these devices.
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)
        }
        for member in self._scenario.members():
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
                f"task = {json.dumps(str(self._scenario.task_path))}",
                "[model]",
                f"path = {json.dumps(str(self._scenario.folder / member.model))}",
                f"labels = {json.dumps(member.labels)}",
                f"scores = {json.dumps(member.scores)}",
                "[familiarity]",
                f"gate = {json.dumps(str(self._scenario.folder / member.gate))}",
                "share = true",
                "[broker]",
                f"port = {self._port}",
                "",
            ]
        )
