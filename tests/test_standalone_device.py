"""A device written from docs/protocol.md alone: its vectors, and rounds with real gateways and brokers."""

import ast
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import standalone_device as alone
from live import EDGE_FI, Process, eventually, free_port, need

TASKS = Path(__file__).parents[1] / "configs" / "tasks"
VECTORS = Path(__file__).parent / "vectors"
DTYPES = {"float32": 0, "float16": 1, "uint8": 2, "int8": 3}
Vector = dict[str, Any]


def load(name: str) -> Vector:
    found: Vector = json.loads((VECTORS / f"{name}.json").read_text())
    return found


def of_kind(*kinds: str, **fields: str) -> list[str]:
    """The names of the vectors of these kinds, which say this."""
    found = {name: load(name) for name in sorted(path.stem for path in VECTORS.glob("*.json"))}
    return [name for name, v in found.items() if v.get("kind") in kinds and fields.items() <= v.items()]


def still(size: int) -> bytes:
    """Random bytes: of keys, any; of the part that is added to a wait, none."""
    return bytes(size) if size < 32 else os.urandom(size)


def tape(*drawn: str) -> Callable[[int], bytes]:
    """Random bytes: first those of the vector."""
    waiting = [bytes.fromhex(one) for one in drawn]
    return lambda size: waiting.pop(0) if waiting and len(waiting[0]) == size else still(size)


def task_of(task: Vector) -> alone.Task:
    low, high = task["log_weight"]
    dtype, shape, labels = DTYPES[task["dtype"]], tuple(task["shape"]), tuple(task["labels"])
    return alone.Task(task["name"], task["number"], dtype, shape, low, high, labels, task["features"])


class Sitting:
    """The device of one session vector, connected at 0, with its HELLO sent."""

    def __init__(self, session: Vector) -> None:
        self.session, self.now = session, 0.0
        random, model = tape(session["member_ephemeral_private"]), bytes.fromhex(session["model"])
        self.device = alone.Device(session, task_of(session["task"]), model, random)
        self.device.connected(self.now)

    def welcomed(self) -> "Sitting":
        assert self.take(self.session["welcome"]) == ""
        self.device.out.clear()
        return self

    def take(self, frame: str, level: str = "d") -> str:
        topic = {"d": self.device.down, "q": self.device.common}[level]
        return self.device.take(topic, bytes.fromhex(frame), self.now)

    def sent(self) -> list[str]:
        """The frames on `a` since the last call."""
        found = [payload.hex() for topic, payload, _, _ in self.device.out if topic == self.device.up]
        self.device.out.clear()
        return found


# It has no gate, and so never says that it has.
@pytest.mark.parametrize("name", [n for n in of_kind("session", role="device") if "gate" not in load(n)])
def test_a_session_vector(name: str) -> None:
    v = load(name)
    sitting = Sitting(v)
    device = sitting.device
    assert device.names == (v["mqtt_client_id"], v["id"], v["mqtt_password"])
    assert device.prologue.hex() == v["prologue"]
    assert device.task.digest().hex() == v["task"]["digest"]
    assert sitting.sent() == [v["hello"]]
    assert sitting.take(v["welcome"]) == ""
    session = device.session
    assert session
    assert (session.number, session.boot, session.window) == (
        v["session"],
        v["boot"],
        v["rejoin_window_ms"] / 1000,
    )
    assert (session.floor, session.epoch.number) == (v["floor"], v["epoch"])
    assert (session.to_gateway.hex(), session.to_member.hex()) == (v["to_gateway"], v["to_member"])
    assert session.k_answer.hex() == v["key_answer"]
    assert (session.k_up.hex(), session.k_down.hex()) == (v["key_up"], v["key_down"])
    assert session.epoch.seal_key.hex() == v["query_seal_key"]
    assert session.epoch.hash_key.hex() == v["query_hash_key"]
    assert sitting.sent() == [v["ready"]]
    assert sitting.take(v["welcome"]) == ""
    assert len(sitting.sent()) == 1  # the same WELCOME: another READY


@pytest.mark.parametrize("name", of_kind("welcome", "rekey", "query", "settled"))
def test_a_frame_to_a_device(name: str) -> None:
    v = load(name)
    levels = {"query": "dq", "settled": "q"}.get(v["kind"], "d")
    for level in levels:
        sitting = Sitting(load(v["session"]))
        if v["kind"] != "welcome":
            sitting.welcomed()
        if "query" in v:
            assert sitting.take(v["query"], "q") == ""
        for frame in v.get("before", []):
            assert sitting.take(frame) == ""
        sitting.now += v.get("wait_ms", 0) / 1000
        sitting.sent()
        before = sitting.device.session, sitting.device.hello, len(sitting.device.jobs)
        expected = "" if v["expect"] == "ok" else v["expect"]
        assert sitting.take(v["frame"], level) == expected
        if expected:
            assert sitting.sent() == []
            assert before == (sitting.device.session, sitting.device.hello, len(sitting.device.jobs))
        elif v["kind"] == "rekey":
            assert sitting.sent() == [v["ready"]]
            assert sitting.take(v["frame"]) == ""
            assert sitting.sent() == [v["ready_again"]]
        elif v["kind"] == "query":
            _, query = sitting.device.jobs[-1]
            assert query.hash.hex() == v["query_hash"]
            assert (query.seq, query.forms, query.settle.hex()) == (v["seq"], v["forms"], v["settle"])
            tensor = alone.Tensor(DTYPES[v["dtype"]], tuple(v["shape"]), bytes.fromhex(v["content"]))
            assert query.tensor == tensor
        elif v["kind"] == "settled":
            job = sitting.device.jobs[-1]
            assert sitting.device.inferred(*job, None, sitting.now) == "ticket"
            assert sitting.sent() == []


@pytest.mark.parametrize("name", of_kind("answer", expect="ok"))
def test_an_answer_vector(name: str) -> None:
    v = load(name)
    sitting = Sitting(load(v["session"])).welcomed()
    sitting.device.known = v["model_classes"]
    assert sitting.take(v["query"], "q") == ""
    if "rekey" in v:
        assert sitting.take(v["rekey"]) == ""
    sitting.sent()
    session, query = sitting.device.jobs.pop()
    assert query.hash.hex() == v["query_hash"]
    assert sitting.device.inferred(session, query, v["scores"], sitting.now) == ""
    assert sitting.sent() == [v["frame"]]
    assert sitting.take(v["query"], "d") == ""
    assert sitting.sent() == [v["frame"]]
    assert not sitting.device.jobs


@pytest.mark.parametrize("name", of_kind("vote", expect="ok"))
def test_a_vote_vector(name: str) -> None:
    v = load(name)
    code = alone.encode_vote(v["form"], v["given_probabilities"], v["given_log_weight"], *v["scale"])
    assert code.hex() == v["code"]


@pytest.mark.parametrize("name", of_kind("invite"))
def test_an_invite_vector(name: str) -> None:
    v = load(name)
    if v["expect"] != "ok":
        with pytest.raises(alone.Dropped, match=f"^{v['expect']}$"):
            alone.parse_invite(v["text"])
        return
    found = alone.parse_invite(v["text"])
    assert found == {key: v[key] for key in found}


def joiner_of(v: Vector) -> alone.Joiner:
    joiner = alone.Joiner(v, bytes.fromhex(v["member_private"]), tape(v["member_ephemeral_private"]))
    joiner.connected(0.0)
    joiner.tick(0.0)
    return joiner


@pytest.mark.parametrize("name", of_kind("joining"))
def test_a_joining_vector(name: str) -> None:
    v = load(name)
    invite = alone.parse_invite(v["text"])
    assert invite == {key: v[key] for key in invite}
    joiner = joiner_of(v)
    assert joiner.names[1:] == (v["join_mqtt_user"], v["join_mqtt_password"])
    assert [(topic, frame.hex()) for topic, frame, _, _ in joiner.out] == [("fi1/acme/join", v["join"])]
    assert joiner.take(joiner.topics[0], bytes.fromhex(v["accept"]), 0.0) == ""
    assert (joiner.index, joiner.only_task, joiner.done) == (v["index"], v["only_task"], True)
    assert joiner.tasks == [task_of(task) for task in v["tasks"]]
    if v["role"] == "device":
        device = alone.Device(v, joiner.tasks[0], bytes(8), os.urandom)
        assert device.names == (v["mqtt_client_id"], v["mqtt_user"], v["mqtt_password"])


@pytest.mark.parametrize("name", of_kind("accept", "refused"))
def test_a_frame_to_a_joiner(name: str) -> None:
    v = load(name)
    joiner = joiner_of(load(v["joining"]))
    expected = "" if v["expect"] == "ok" else v["expect"]
    assert joiner.take(joiner.topics[0], bytes.fromhex(v["frame"]), 0.0) == expected
    if expected:
        assert not joiner.done and not joiner.reason
    elif v["kind"] == "refused":
        assert joiner.reason == alone.REASONS[v["reason"]]
        assert joiner.done == v["is_final"]


@pytest.mark.parametrize("name", of_kind("misplaced", receiver="device"))
def test_a_misplaced_frame(name: str) -> None:
    v = load(name)
    assert Sitting(load(v["session"])).welcomed().take(v["frame"], v["level"]) == v["expect"]


def test_it_imports_nothing_of_this_project() -> None:
    tree = ast.parse(Path(alone.__file__).read_text())
    froms = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    packages = {name.split(".")[0] for name in froms | names}
    assert packages - sys.stdlib_module_names == {"nacl"}


# What no vector shows: the rhythm of HELLO, presence, and MQTT itself.


def sending_times(device: alone.Device, start: float, end: float) -> list[float]:
    """When it sends on `a`, in tenths of a second."""
    times = []
    for tenth in range(round(start * 10), round(end * 10) + 1):
        device.tick(tenth / 10)
        if any(topic == device.up for topic, _, _, _ in device.out):
            times.append(tenth / 10)
        device.out.clear()
    return times


def test_hello_is_sent_again_ever_later() -> None:
    device = Sitting(load("session_ok_digits")).device
    hello = device.hello
    device.out.clear()
    assert sending_times(device, 0.1, 95.0) == [0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 61.5, 91.5]
    assert device.hello == hello
    device.disconnected()
    device.connected(95.0)
    assert sending_times(device, 95.0, 95.0) == [95.0]
    assert device.hello == hello


def test_hints_are_heeded_less_and_less_while_the_boot_stays() -> None:
    v = load("session_ok_digits")
    sitting = Sitting(v).welcomed()
    device, foreign = sitting.device, b"ready 00000001"
    assert device.take(device.state, f"ready {v['boot']:08x}".encode(), 1.0) == ""
    assert not device.waiting  # its own boot
    assert device.take(device.state, b"ready 0000000", 1.0) == ""
    assert not device.waiting  # not the text of a boot
    assert device.take(device.state, foreign, 1.0) == ""
    assert sending_times(device, 1.0, 1.4) == [1.0]
    assert device.session  # it serves on until a WELCOME opens
    device.doubt, device.doubt_until, device.waiting = 1.0, 3.0, False  # as after a WELCOME of the same boot
    assert device.take(device.state, foreign, 2.0) == ""
    assert sending_times(device, 2.0, 3.2) == [3.0]


def test_presence_that_somebody_else_wrote_is_corrected_once_a_second() -> None:
    sitting = Sitting(load("session_ok_digits")).welcomed()
    device = sitting.device
    for tenth in range(30):
        device.take(device.will, b"lost", tenth / 10)
        device.tick(tenth / 10)
    assert [payload for topic, payload, _, _ in device.out if topic == device.will] == [b"ready"] * 2
    assert {(qos, retain) for topic, _, qos, retain in device.out if topic == device.will} == {(1, True)}


def test_a_query_of_an_epoch_not_held_is_checked_once_a_second() -> None:
    sitting = Sitting(load("session_ok_digits")).welcomed()
    forged, true = load("query_bad_epoch_flipped")["frame"], load("query_bad_epoch")["frame"]
    sitting.now = 5.0
    assert sitting.take(forged) == "signature"
    assert sitting.take(true) == "epoch"
    assert not sitting.device.waiting
    sitting.now = 6.0
    assert sitting.take(true) == "epoch"
    assert sitting.device.waiting


class FakeBroker:
    """Says these bytes in crumbs, one after another, and keeps what it hears."""

    def __init__(self, *said: bytes) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._said, self.heard = said, b""
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        with self._listener, self._listener.accept()[0] as peer:
            for crumb in self._said:
                peer.sendall(crumb)
                self.heard += peer.recv(65536)
            while more := peer.recv(65536):
                self.heard += more


def test_mqtt_in_crumbs() -> None:
    payload = bytes(range(256))
    publish = b"\x32\x87\x02" + b"\0\3a/b" + b"\x12\x34" + payload  # QoS 1, a length of 2 bytes
    broker = FakeBroker(b"\x20\x02", b"\0\0", b"\x30\x06\0\3a/bx" + b"\x90", b"\x03\0\x01\0", publish[:100])
    place = {"host": "127.0.0.1", "port": broker.port, "tls": False, "pin": ""}
    link = alone.Mqtt(place)
    link.connect(("fi00", "pi-07", "secret"), "fi1/acme/s/pi-07")
    link.write(0xC0, b"")  # the fake says one crumb for each that it hears
    link.subscribe(["a/b"])
    link.publish("c", b"y", 1, True)
    assert link.messages(0.2) == [("a/b", b"x")]
    link.buffer += publish[100:]
    assert link.messages(0.01) == [("a/b", payload)]
    link.publish("c", bytes(20_000), 0, False)
    link.socket.close()
    broker.thread.join()
    connect = b"\0\4MQTT\x04\xee\0\x14" + b"\0\4fi00" + b"\0\x10fi1/acme/s/pi-07" + b"\0\4lost"
    connect += b"\0\5pi-07" + b"\0\6secret"
    assert broker.heard.startswith(bytes([0x10, len(connect)]) + connect)
    assert b"\x82\x08\0\x01\0\3a/b\0" in broker.heard
    assert b"\x33\x06\0\1c\0\x02y" in broker.heard
    assert b"\x40\x02\x12\x34" in broker.heard  # PUBACK
    assert broker.heard.endswith(b"\x30\xa3\x9c\x01\0\1c" + bytes(20_000))


def test_a_joiner_that_no_broker_lets_in_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("standalone_device.time.sleep", pauses.append)
    joiner = joiner_of(load("join_ok_device"))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            for _ in range(joiner.patience):
                with listener.accept()[0] as peer:
                    peer.sendall(b"\x20\x02\0\x05")
                    while peer.recv(65536):
                        pass

        thread = threading.Thread(target=refuse)
        thread.start()
        place = {"host": "127.0.0.1", "port": listener.getsockname()[1], "tls": False, "pin": ""}
        with pytest.raises(alone.NotLetInError, match="CONNACK 5"):
            alone.run(place, joiner, lambda: None)
        thread.join()
    assert len(pauses) == joiner.patience - 1


# With a real gateway, a real client and real brokers.


class Alone:
    """The standalone device as a process."""

    def __init__(self, folder: Path, *arguments: str | Path, invite: str = "") -> None:
        self._log = folder / f"alone-{len(list(folder.glob('alone-*')))}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, alone.__file__, *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={"PATH": os.environ["PATH"]},
            )
        assert self.process.stdin
        self.process.stdin.write(invite.encode())
        self.process.stdin.close()

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = self._log.read_text().splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{")]
        return [its for its in found if its["event"] == name]

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


class Federation:
    """A gateway and a broker of this kind, as their operator starts them."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind, port = folder, kind, str(free_port())
        self.config = folder / "acme" / "gateway.toml"
        where = ["--port", port] if kind == "plain" else ["--host", "127.0.0.1", "--port", port]
        new = ["gateway", "new", "--federation", "acme", "--task", str(TASKS / "digits.toml")]
        self.call(*new, *where, "--out", "acme")
        if kind == "plain":
            (folder / "plain.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
            self.command = ["mosquitto", "-c", str(folder / "plain.conf")]
        else:
            config = ["broker", "config", kind, "--config", str(self.config), "--listen", "127.0.0.1"]
            self.command = self.call(*config)["start"].split()
        self.port, self.processes = int(port), list[subprocess.Popen[bytes]]()
        self.start_broker()
        self.start_gateway()

    def call(self, *arguments: str, stdin: str = "", codes: tuple[int, ...] = (0,)) -> dict[str, Any]:
        run = subprocess.run(
            [*EDGE_FI, *arguments, "--json"], input=stdin, capture_output=True, text=True, cwd=self.folder
        )
        assert run.returncode in codes, run.stdout + run.stderr
        found: dict[str, Any] = json.loads(run.stdout)
        return found

    def of_gateway(self, *arguments: str) -> dict[str, Any]:
        return self.call("gateway", *arguments, "--config", str(self.config))

    def invite(self, *arguments: str) -> str:
        text: str = self.of_gateway("invite", *arguments)["invites"][0]["invite"]
        return text

    def start_broker(self) -> None:
        log = (self.folder / "broker.log").open("ab")
        self.broker = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT)
        log.close()
        eventually(self._listens)

    def stop_broker(self) -> None:
        self.broker.terminate()
        self.broker.wait(20)

    def start_gateway(self) -> None:
        self.gateway = Process("gateway", "run", "--config", self.config)

    def _listens(self) -> bool:
        assert self.broker.poll() is None, (self.folder / "broker.log").read_text()
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
        except OSError:
            return False
        return True

    def ask(self) -> dict[str, Any]:
        """An outcome, also one without a quorum."""
        image = json.dumps([[0] * 8] * 8)
        return self.call("ask", "--config", "laptop/client.toml", "--input", "-", stdin=image, codes=(0, 7))

    def assert_counted(self) -> None:
        outcome = self.ask()
        assert (outcome["status"], outcome["label"], outcome["members"]) == (
            "answered",
            "3",
            {"alone": "counted"},
        )


@pytest.fixture(params=["plain", "mosquitto", "nats"])
def federation(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Federation]:
    need("nats" if request.param == "nats" else "mosquitto")
    made = Federation(tmp_path, request.param)
    yield made
    made.gateway.end()
    made.stop_broker()


def test_it_is_counted_whatever_is_restarted_or_rotated(federation: Federation) -> None:
    folder, state = federation.folder, ["--state", "alone.json", "--label", "3"]
    invite = federation.invite("alone")
    device = Alone(folder, "--invite", "-", *state, invite=invite)
    federation.call(
        "client", "join", "--out", "laptop", stdin=federation.invite("laptop", "--role", "client")
    )
    eventually(lambda: len(device.events("welcome")) == 1)
    assert stat.S_IMODE((folder / "alone.json").stat().st_mode) == 0o600
    federation.assert_counted()

    federation.of_gateway("rotate")
    eventually(lambda: len(device.events("rekey")) == 1)
    federation.assert_counted()
    federation.of_gateway("rotate", "--signing-key")
    eventually(lambda: len(device.events("rekey")) == 2)
    federation.assert_counted()
    assert len(device.events("welcome")) == 1

    federation.gateway.end()
    federation.start_gateway()
    eventually(lambda: len(device.events("welcome")) >= 2)
    federation.assert_counted()

    federation.stop_broker()
    federation.start_broker()
    eventually(lambda: federation.ask()["members"].get("alone") == "counted")
    federation.assert_counted()
    assert len({its["epoch"] for its in device.events("answered")}) == 4
    assert device.end() == 0
    drops = device.events("left")[0]["drops"]
    assert set(drops) <= {"epoch"}, drops

    again = Alone(folder, *state, "--once")
    eventually(lambda: len(again.events("welcome")) == 1)
    federation.assert_counted()
    assert again.process.wait(20) == 0

    thief = Alone(folder, "--invite", "-", "--state", "thief.json", "--label", "3", invite=invite)
    assert thief.process.wait(20) == 3
    assert [its["reason"] for its in thief.events("refused")] == ["used"]


def test_the_pin_must_be_in_the_chain(tmp_path: Path) -> None:
    need("mosquitto")
    made = Federation(tmp_path, "mosquitto")
    try:
        pin = bytes.fromhex(alone.parse_invite(made.invite("alone"))["pin"])
        assert alone.digest(b"", "fi1 ca pin", alone.fetch_ca("127.0.0.1", made.port, pin), 16) == pin
        with pytest.raises(OSError, match="the one that the invite names"):
            alone.fetch_ca("127.0.0.1", made.port, bytes(16))
    finally:
        made.gateway.end()
        made.stop_broker()
