"""Everything as a user runs it: processes started from the command line, killed and started again."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import eventually, make_state, need

from broker.embedded import EmbeddedBroker, available
from edge_fi.demo.members import ASSETS, members

ROOT = Path(__file__).parents[2]
EDGE_FI = [sys.executable, "-m", "edge_fi"]


class Process:
    """A verb that runs until it is told to stop; its log is read line by line."""

    def __init__(self, *arguments: str | Path, **environment: str) -> None:
        self.process = subprocess.Popen(
            [*EDGE_FI, *map(str, arguments), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self._said = b""

    def events(self) -> list[dict[str, object]]:
        assert self.process.stdout is not None
        self._said += self.process.stdout.read() or b""
        return [json.loads(line) for line in self._said.decode().splitlines() if line.endswith("}")]

    def saw(self, name: str, **fields: object) -> bool:
        return any(event["event"] == name and fields.items() <= event.items() for event in self.events())

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


class Site:
    """A folder with keys and configuration, a broker, and the processes that a test starts."""

    def __init__(self, folder: Path, kind: str) -> None:
        need(kind)
        self.folder = folder
        self.broker = EmbeddedBroker(kind)
        self.processes: list[Process] = []

    def __enter__(self) -> "Site":
        self.broker.start()
        make_state(self.folder, "site", [member.id for member in members()[:3]], ["laptop"])
        tail = f"[broker]\nport = {self.broker.port}\n"
        task = json.dumps(str(ASSETS / "digits.toml"))
        for member in members()[:3]:
            (self.folder / f"{member.id}.toml").write_text(
                f'key = "{member.id}.key"\ntask = {task}\n[model]\n'
                f"path = {json.dumps(str(ASSETS / member.model))}\n"
                f'labels = {json.dumps(member.labels)}\nscores = "{member.scores}"\n{tail}'
            )
        (self.folder / "client.toml").write_text(f'key = "laptop.key"\ntasks = [{task}]\n{tail}')
        (self.folder / "gateway.toml").write_text(
            f'key = "gateway.key"\nstate = "state.db"\ntasks = [{task}]\n{tail}[round]\ntimeout_s = 2.0\n'
        )
        (self.folder / "image.json").write_text(json.dumps([[0] * 8] * 8))
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.end(signal.SIGKILL)
        self.broker.stop()

    def start(self, *arguments: str | Path) -> Process:
        process = Process(*arguments)
        self.processes.append(process)
        return process

    def start_all(self) -> tuple[Process, list[Process]]:
        gateway = self.start("gateway", "run", "--config", self.folder / "gateway.toml")
        devices = [
            self.start("device", "run", "--config", self.folder / f"{member.id}.toml")
            for member in members()[:3]
        ]
        eventually(lambda: all(gateway.saw("joined", peer=member.id) for member in members()[:3]))
        return gateway, devices

    def ask(self, timeout_s: float = 10.0) -> tuple[int, dict[str, object]]:
        done = subprocess.run(
            [*EDGE_FI, "ask", "--config", str(self.folder / "client.toml"), "--json",
             "--input", str(self.folder / "image.json"), "--timeout", str(timeout_s)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return done.returncode, json.loads(done.stdout)


@pytest.fixture(params=["mosquitto", "nats"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path, request.param) as made:
        yield made


def test_a_federation_of_processes_answers_and_survives_each_part(site: Site) -> None:
    """One story rather than five, since each start of a process costs a second."""
    gateway, devices = site.start_all()
    code, outcome = site.ask()
    everybody = {"pi-01": "counted", "pi-02": "counted", "pi-03": "counted"}
    assert (code, outcome["status"], outcome["members"]) == (0, "answered", everybody)

    # A device that stands still in mid round is named at the deadline, and the rest is counted.
    devices[1].process.send_signal(signal.SIGSTOP)
    code, outcome = site.ask()
    assert code == 0 and outcome["members"] == everybody | {"pi-02": "missing"}
    devices[1].process.send_signal(signal.SIGCONT)
    eventually(lambda: gateway.saw("rejected", reason="late") or site.ask()[1]["members"] == everybody)

    # Killed and started again: it joins with a new session.
    devices[1].end(signal.SIGKILL)
    again = site.start("device", "run", "--config", site.folder / "pi-02.toml")
    eventually(lambda: again.saw("joined", peer="gateway"))
    eventually(lambda: site.ask()[1]["members"] == everybody, within_s=10)

    # The broker dies and comes back; nothing of ours is restarted.
    site.broker.kill()
    eventually(lambda: gateway.saw("disconnected"))
    site.broker.start()
    began = time.monotonic()
    code, outcome = site.ask()
    assert (code, outcome["members"]) == (0, everybody)
    assert time.monotonic() - began < 10

    # The gateway dies and comes back; the devices find it.
    gateway.end(signal.SIGKILL)
    gateway = site.start("gateway", "run", "--config", site.folder / "gateway.toml")
    eventually(lambda: all(gateway.saw("joined", peer=member.id) for member in members()[:3]))
    assert site.ask()[1]["members"] == everybody

    # Told to stop, they stop with 0 and say goodbye.
    assert [device.end() for device in (devices[0], again, devices[2])] == [0, 0, 0]
    eventually(lambda: gateway.saw("presence", peer="pi-03", state="disconnected"))
    assert not gateway.saw("presence", peer="pi-03", state="lost")
    assert gateway.end(signal.SIGINT) == 0


def test_without_a_gateway_the_client_says_so(site: Site) -> None:
    code, outcome = site.ask(timeout_s=0.5)
    assert (code, outcome["status"]) == (7, "unreachable")


def test_without_devices_the_gateway_says_so(site: Site) -> None:
    gateway = site.start("gateway", "run", "--config", site.folder / "gateway.toml")
    eventually(lambda: gateway.saw("connected"))
    code, outcome = site.ask(timeout_s=1.0)
    assert (code, outcome["status"]) == (7, "no_members")


def test_a_gateway_waits_for_a_broker_that_is_not_there_and_says_so(tmp_path: Path) -> None:
    kind = available()[0]
    with Site(tmp_path, kind) as site:
        site.broker.kill()
        gateway = site.start("gateway", "run", "--config", site.folder / "gateway.toml")
        eventually(lambda: gateway.saw("broker_unreachable", reason="Connection refused"))
        site.broker.start()
        eventually(lambda: gateway.saw("connected"), within_s=10)


def test_a_device_stops_when_its_starter_is_gone(tmp_path: Path) -> None:
    with Site(tmp_path, available()[0]) as site:
        starter = subprocess.Popen(
            [sys.executable, "-c", (
                "import subprocess, sys, time\n"
                "p = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)\n"
                "print(p.pid, flush=True)\n"
                "time.sleep(60)\n"
            ), *EDGE_FI, "device", "run", "--stop-with-stdin", "--config", str(site.folder / "pi-01.toml")],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        with starter:
            assert starter.stdout is not None
            pid = int(starter.stdout.readline())
            starter.kill()
            starter.wait()
            eventually(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid))


def test_the_demo_gives_its_figures_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = subprocess.run(
        [*EDGE_FI, "demo", "--json", "figures.json", "--queries", "300"],
        cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["broker"] in available()
    assert figures["rounds"] == 300 and figures["lost"] == 0 and figures["rejected"] == {}
    assert [device["id"] for device in figures["devices"]] == ["pi-01", "pi-02", "pi-03", "pi-04", "pi-05"]
    best_alone = max(device["accuracy"] for device in figures["devices"])
    assert max(figures["strategies"].values()) > best_alone
    assert set(figures["strategies"]) >= {"hard", "linear", "logarithmic", "entropy", "confidence"}
    assert figures["bytes"]["answer_wire"] <= 50
    assert 0 < figures["latency_ms"]["p50"] <= figures["latency_ms"]["p99"]
    assert (tmp_path / "edge-fi-demo.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edge-fi-demo.png", "figures.json"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_an_ended_demo_leaves_no_process_and_no_key(tmp_path: Path, number: int) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "EDGE_FI_BROKER__PORT": "1"}
    with (tmp_path / "said").open("wb") as said:
        demo = subprocess.Popen([*EDGE_FI, "demo"], cwd=tmp_path, env=environment, stdout=said, stderr=said)
    with demo:
        eventually(lambda: b" 5/5 " in (tmp_path / "said").read_bytes() or len(_descendants(demo.pid)) >= 7)
        eventually(lambda: bool(list(tmp_path.glob("edge-fi-demo-*/pi-05.log"))) and not _keys(tmp_path))
        family = _descendants(demo.pid)
        demo.send_signal(number)
        demo.wait()
        eventually(
            lambda: not [pid for pid in family if Path(f"/proc/{pid}").exists() and not _is_zombie(pid)]
        )
    assert not _keys(tmp_path)
    if number != signal.SIGKILL:
        eventually(lambda: not list(tmp_path.glob("edge*fi-*")))


def test_a_demo_whose_devices_die_ends_with_a_word(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [*EDGE_FI, "demo"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    with demo:
        eventually(lambda: bool(_running(demo.pid, b"pi-05.toml")))
        os.kill(_running(demo.pid, b"pi-05.toml")[0], signal.SIGKILL)
        assert demo.stderr is not None
        assert "device pi-05 ended" in demo.stderr.read()
        assert demo.wait() == 6


def test_the_readme_runs_as_printed(tmp_path: Path) -> None:
    """The block under 'Run your own', with the shell, in a copy of what it needs."""
    text = (ROOT / "README.md").read_text()
    block = re.search(r"## Run your own.*?```sh\n(.*?)```", text, re.DOTALL)
    assert block is not None
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # Copies, since keys/ must be beside the real folder of the files that name it.
    (tmp_path / "edge_fi").symlink_to(ROOT / "edge_fi")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tasks").symlink_to(ROOT / "configs" / "tasks")
    for path in (ROOT / "configs").glob("*.toml"):
        (tmp_path / "configs" / path.name).write_text(path.read_text())
    # The block activates `.venv`; nothing else may bring edge-fi onto the path.
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parent.parent)
    script = "set -e\n" + block[1] + "kill %1 %2\nwait || true\n"
    environment = {
        "HOME": str(tmp_path),
        "EDGE_FI_BROKER__PORT": str(port),
        "PATH": "/usr/sbin:/usr/bin:/bin",
    }
    done = subprocess.run(
        ["bash", "-m", "-c", script], cwd=tmp_path, env=environment,
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed = re.search(r"```\n(\d .*?)```", text, re.DOTALL)
    assert printed is not None
    assert _without_times(printed[1]) in _without_times(done.stdout)


def _keys(folder: Path) -> list[Path]:
    return list(folder.glob("edge-fi-demo-*/*.key"))


def _running(parent: int, argument: bytes) -> list[int]:
    """Processes below this one with this in an argument."""
    return [pid for pid in _descendants(parent) if argument in _command(pid)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _without_times(lines: str) -> str:
    return re.sub(r"[\d.]+ ms", "", lines)


def _is_zombie(pid: int) -> bool:
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


def _descendants(pid: int) -> set[int]:
    found: set[int] = set()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            for child in map(int, children.read_text().split()):
                found |= {child} | _descendants(child)
    return found
