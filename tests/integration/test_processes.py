"""Everything as a user runs it: processes started from the command line, killed and started again."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from live import EDGE_FI, Process, descendants, eventually, free_port, make_state, need
from onnx import TensorProto, helper, numpy_helper

from broker.embedded import EmbeddedBroker, available
from edge_fi.demo.members import ASSETS, members

ROOT = Path(__file__).parents[2]


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
    accuracies = {name: its["accuracy"] for name, its in figures["strategies"].items()}
    assert set(accuracies) >= {"hard", "linear", "logarithmic", "entropy", "familiarity"}
    familiarity = accuracies.pop("familiarity")
    assert familiarity > max(best_alone, *accuracies.values())
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
        eventually(lambda: b" 5/5 " in (tmp_path / "said").read_bytes() or len(descendants(demo.pid)) >= 7)
        eventually(lambda: bool(list(tmp_path.glob("edge-fi-demo-*/pi-05.log"))) and not _keys(tmp_path))
        family = descendants(demo.pid)
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


README = (ROOT / "README.md").read_text()


def shell_blocks(heading: str) -> list[str]:
    """What the README prints for a shell under this heading."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)


class Reader:
    """Somebody who has cloned the repository, and does what the README says."""

    def __init__(self, folder: Path, *, has_activated: bool) -> None:
        """has_activated: `.venv`; else nothing but the block may bring edge-fi onto the path."""
        self.folder = folder
        installed = f"{Path(sys.executable).parent}:" if has_activated else ""
        self._environment = {
            "HOME": str(folder),
            "EDGE_FI_BROKER__PORT": str(free_port()),
            "PATH": f"{installed}/usr/sbin:/usr/bin:/bin",
        }
        (folder / "configs").mkdir()
        (folder / "configs" / "tasks").symlink_to(ROOT / "configs" / "tasks")
        (folder / "edge_fi").symlink_to(ROOT / "edge_fi")
        (folder / ".venv").symlink_to(Path(sys.executable).parent.parent)

    def run(self, script: str, *, within_s: float) -> str:
        """What the script prints. Whatever it has started ends with it."""
        tidy = "trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n"
        with subprocess.Popen(
            ["bash", "-m", "-c", f"set -e\n{tidy}{script}"],
            cwd=self.folder, env=self._environment, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as shell:  # fmt: skip
            try:
                out, err = shell.communicate(timeout=within_s)
            except subprocess.TimeoutExpired:
                for pid in [*descendants(shell.pid), shell.pid]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                out, err = shell.communicate()
                pytest.fail(f"it did not end in time: {out}{err}")
        assert shell.returncode == 0, out + err
        return out


def test_what_the_readme_prints_to_run_ones_own_runs(tmp_path: Path) -> None:
    need("mosquitto")
    (block,) = shell_blocks("Run your own")
    out = Reader(tmp_path, has_activated=False).run(block, within_s=60)
    printed = re.search(r"```\n(\d .*?)```", README, re.DOTALL)
    assert printed is not None
    assert _without_times(printed[1]) in _without_times(out)


def test_what_the_readme_prints_for_several_parties_runs(tmp_path: Path) -> None:
    """On the gateway's machine as printed; then on each device, in a folder with its invite and its model."""
    need("mosquitto")
    on_the_gateways, on_each_device = shell_blocks("Between parties")
    assert len(on_the_gateways.splitlines()) == 5 and len(on_each_device.splitlines()) == 1
    script = on_the_gateways
    for number in (1, 2, 3):
        name = f"pi-0{number}"
        machine = tmp_path / f"machine-{number}"
        machine.mkdir()
        save_model(machine / "model.onnx", number)
        command = on_each_device.strip().replace("pi-01", name)
        script += f"(cd {machine.name}; cp ../invites/{name}.invite .; exec {command}) &\n"
    script += (
        "edge-fi gateway invite laptop --role client --config acme/gateway.toml | "
        "edge-fi client join --out laptop\n"
        "python -m edge_fi.demo.image 4 > image.json\n"
        "until edge-fi ask --config laptop/client.toml --input image.json | grep '3 of 3'; do :; done\n"
        "edge-fi roster list --config acme/gateway.toml --json\n"
    )
    out = Reader(tmp_path, has_activated=True).run(script, within_s=60)
    assert "3 of 3 devices counted" in out
    listed = json.loads(out.splitlines()[-1])
    assert sorted(member["id"] for member in listed["members"]) == ["laptop", "pi-01", "pi-02", "pi-03"]


def save_model(path: Path, seed: int) -> None:
    """A model of somebody's own, that knows every label of the demo's task."""
    weights = np.random.default_rng(seed).normal(size=(64, 10)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["f"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["batch", 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(weights, "w")],
    )
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)


def _keys(folder: Path) -> list[Path]:
    return list(folder.glob("edge-fi-demo-*/*.key"))


def _running(parent: int, argument: bytes) -> list[int]:
    """Processes below this one with this in an argument."""
    return [pid for pid in descendants(parent) if argument in _command(pid)]


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
