"""The embedded broker serves MQTT, says what is wrong, and never outlives the process that started it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import Queue

import pytest
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from broker import embedded, kinds
from broker.embedded import BROKERS, EmbeddedBroker, available, versions
from broker.supervise import GRACE_S
from edge_fi.errors import TransportError

REPOSITORY = Path(__file__).parents[2]
PATIENCE_S = 10.0
CONNECT = {
    "3.1.1": b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x0a\x00\x00",
    "5": b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x0a\x00\x00\x00",
}


@pytest.fixture(params=BROKERS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name not in available():
        if os.environ.get("REQUIRE_BROKERS") == "1":
            pytest.fail(f"the broker {name} is not installed, and REQUIRE_BROKERS is set")
        pytest.skip(f"the broker {name} is not installed")
    return name


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory for temporary files, of this process and its children; empty at first."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    return directory


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def is_empty(directory: Path) -> bool:
    return not list(directory.iterdir())


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def answers(port: int, host: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((host, port), timeout=PATIENCE_S).close()
    except OSError:
        return False
    return True


class Subscriber:
    """A connected client, and the payloads that it got on the topic `news`."""

    def __init__(self, port: int) -> None:
        self.payloads: Queue[bytes] = Queue()
        self.disconnected: Queue[ReasonCode] = Queue()
        self._subscribed: Queue[int] = Queue()
        self.client = Client(CallbackAPIVersion.VERSION2)
        self.client.on_connect = self._on_connect
        self.client.on_subscribe = lambda *arguments: self._subscribed.put(arguments[2])
        self.client.on_message = self._on_message
        self.client.on_disconnect = self._on_disconnect
        self.client.connect("127.0.0.1", port)

    def open(self) -> None:
        self.client.loop_start()
        self._subscribed.get(timeout=PATIENCE_S)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
        # paho leaves the pair of sockets it wakes itself with to the garbage collector, which warns.
        self.client._reset_sockets()

    def _on_connect(
        self, client: Client, state: object, flags: ConnectFlags, reason: ReasonCode, more: Properties | None
    ) -> None:
        client.subscribe("news", qos=1)

    def _on_message(self, client: Client, state: object, message: MQTTMessage) -> None:
        self.payloads.put(bytes(message.payload))

    def _on_disconnect(
        self,
        client: Client,
        state: object,
        flags: DisconnectFlags,
        reason: ReasonCode,
        more: Properties | None,
    ) -> None:
        self.disconnected.put(reason)


@contextmanager
def subscriber(broker: EmbeddedBroker) -> Iterator[Subscriber]:
    connected = Subscriber(broker.port)
    try:
        connected.open()
        yield connected
    finally:
        connected.close()


# Service


@pytest.mark.parametrize("payload", [b"hello", bytes(900_000)], ids=["small", "large"])
def test_a_published_message_reaches_a_subscriber(kind: str, payload: bytes) -> None:
    with EmbeddedBroker(kind) as broker, subscriber(broker) as reader, subscriber(broker) as writer:
        writer.client.publish("news", payload, qos=1)
        assert reader.payloads.get(timeout=PATIENCE_S) == payload


def test_a_retained_message_waits_for_its_subscriber(kind: str) -> None:
    with EmbeddedBroker(kind) as broker, subscriber(broker) as writer:
        writer.client.publish("news", b"old", qos=1, retain=True).wait_for_publish(PATIENCE_S)
        with subscriber(broker) as reader:
            assert reader.payloads.get(timeout=PATIENCE_S) == b"old"


def test_a_packet_over_the_limit_ends_the_connection(kind: str) -> None:
    with EmbeddedBroker(kind) as broker, subscriber(broker) as writer:
        writer.client.publish("news", bytes(kinds.PACKET_BYTES + 1))
        assert writer.disconnected.get(timeout=PATIENCE_S).is_failure


@pytest.mark.parametrize("version", CONNECT)
def test_the_broker_accepts_the_versions_it_is_said_to_and_no_others(kind: str, version: str) -> None:
    with EmbeddedBroker(kind) as broker, socket.create_connection((broker.host, broker.port)) as connection:
        connection.settimeout(PATIENCE_S)
        connection.sendall(CONNECT[version])
        answer = connection.recv(4)  # CONNACK: type, length, flags, reason
        assert (answer[:1] == b"\x20" and answer[3:] == b"\x00") == (version in versions(kind))


def test_the_broker_is_reachable_from_this_machine_only(kind: str) -> None:
    with EmbeddedBroker(kind) as broker:
        assert answers(broker.port)
        # Loopback too, but only a socket that listens on every address would answer there.
        assert not answers(broker.port, host="127.0.0.2")


def test_two_brokers_run_side_by_side(kind: str) -> None:
    with EmbeddedBroker(kind) as first, EmbeddedBroker(kind) as second:
        assert first.port != second.port
        with subscriber(first) as here, subscriber(second) as there:
            here.client.publish("news", b"here", qos=1)
            there.client.publish("news", b"there", qos=1)
            assert here.payloads.get(timeout=PATIENCE_S) == b"here"
            assert there.payloads.get(timeout=PATIENCE_S) == b"there"
            assert here.payloads.empty()


# Start, stop, kill


def test_a_stopped_broker_leaves_neither_process_nor_files(kind: str, temporary: Path) -> None:
    broker = EmbeddedBroker(kind)
    broker.start()
    pid = broker.pid
    assert is_alive(pid) and not is_empty(temporary)
    broker.stop()
    assert not is_alive(pid) and is_empty(temporary)


def test_stop_may_be_repeated_and_may_come_before_start(kind: str) -> None:
    broker = EmbeddedBroker(kind)
    broker.stop()
    broker.start()
    broker.stop()
    broker.stop()
    broker.kill()
    assert not answers(broker.port)


@pytest.mark.parametrize("end", [EmbeddedBroker.stop, EmbeddedBroker.kill])
def test_a_broker_comes_back_on_its_port_without_its_memory(
    kind: str, end: Callable[[EmbeddedBroker], None]
) -> None:
    with EmbeddedBroker(kind) as broker:
        port, pid = broker.port, broker.pid
        with subscriber(broker) as reader:
            reader.client.publish("news", b"old", qos=1, retain=True).wait_for_publish(PATIENCE_S)
            end(broker)
            assert not is_alive(pid)
            reader.disconnected.get(timeout=PATIENCE_S)
        broker.start()
        assert broker.port == port
        with subscriber(broker) as reader:
            reader.client.publish("news", b"new", qos=1)
            assert reader.payloads.get(timeout=PATIENCE_S) == b"new"


def test_a_broker_that_died_is_started_again_after_stop(kind: str, temporary: Path) -> None:
    with EmbeddedBroker(kind) as broker:
        os.kill(broker.pid, signal.SIGKILL)
        eventually(lambda: is_empty(temporary))
        broker.stop()
        broker.start()
        assert answers(broker.port)


def test_a_frozen_broker_is_ended_all_the_same(temporary: Path) -> None:
    if not available():
        pytest.skip("no broker is installed")
    broker = EmbeddedBroker()
    broker.start()
    pid = broker.pid
    os.kill(pid, signal.SIGSTOP)
    broker.stop()
    assert not is_alive(pid) and is_empty(temporary)


def test_a_running_broker_refuses_to_start(kind: str) -> None:
    with (
        EmbeddedBroker(kind) as broker,
        pytest.raises(TransportError, match=r"runs already .* call stop\(\)"),
    ):
        broker.start()


def test_a_broker_that_does_not_run_has_no_pid(kind: str) -> None:
    broker = EmbeddedBroker(kind)
    with pytest.raises(TransportError, match=r"does not run: call start\(\) first"):
        _ = broker.pid


# What can be wrong


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TransportError, match="'hive': choose mosquitto or nats"):
        EmbeddedBroker("hive")
    with pytest.raises(TransportError, match="'hive': choose mosquitto or nats"):
        versions("hive")


@pytest.fixture
def bin_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where brokers are looked for; empty at first."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setattr(kinds, "MORE_DIRECTORIES", ())
    return directory


def install(directory: Path, script: str, program: str = "mosquitto") -> None:
    path = directory / program
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.usefixtures("bin_directory")
def test_without_any_broker_the_error_says_how_to_get_one() -> None:
    assert available() == []
    with pytest.raises(TransportError, match=r"install mosquitto, or pip install 'edge-fi\[broker\]'"):
        EmbeddedBroker().start()


@pytest.mark.usefixtures("bin_directory")
def test_a_missing_broker_that_was_asked_for_is_named() -> None:
    with pytest.raises(TransportError, match=r"nats was not found: pip install 'edge-fi\[broker\]'"):
        EmbeddedBroker("nats").start()


def test_the_working_directory_is_no_place_to_find_a_broker(
    bin_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(bin_directory, "exit 1")
    assert available() == ["mosquitto"]
    monkeypatch.chdir(bin_directory)
    monkeypatch.setenv("PATH", f"{os.pathsep}/nowhere")
    assert available() == []


def test_a_taken_port_is_named(kind: str, temporary: Path) -> None:
    with EmbeddedBroker(kind) as first:
        second = EmbeddedBroker(kind, port=first.port)
        with pytest.raises(TransportError, match=rf"port {first.port} of 127\.0\.0\.1 is taken: stop"):
            second.start()
        assert answers(first.port)
    second.start()
    second.stop()
    assert is_empty(temporary)


def test_a_broker_that_loses_the_race_for_its_port_tries_another(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lost = kinds.find(kind).path(), tmp_path / "lost"
    script = f'[ -e {lost} ] && exec {real} "$@"; : > {lost}; echo "Address already in use"; exit 1'
    install(tmp_path, script, kinds.find(kind).program)
    monkeypatch.setenv("PATH", str(tmp_path))
    with EmbeddedBroker(kind) as broker:
        assert lost.exists() and answers(broker.port)


def test_a_broker_that_loses_every_port_is_given_up(bin_directory: Path, temporary: Path) -> None:
    install(bin_directory, f"echo x >> {bin_directory}/tries; echo Address already in use; exit 1")
    with pytest.raises(TransportError, match="every port tried from 20000 to 30000"):
        EmbeddedBroker().start()
    assert len((bin_directory / "tries").read_text().split()) == embedded.PORT_ATTEMPTS
    assert is_empty(temporary)


def test_a_broker_that_ends_at_once_is_quoted(bin_directory: Path, temporary: Path) -> None:
    install(bin_directory, "echo the moon is full >&2; exit 1")
    with pytest.raises(TransportError, match=r"mosquitto did not become ready on port \d+: the moon is full"):
        EmbeddedBroker().start()
    assert is_empty(temporary)


def test_a_broker_that_never_answers_is_given_up(
    bin_directory: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "READY_S", 0.3)
    install(bin_directory, "echo thinking; exec /bin/sleep 60")
    with pytest.raises(TransportError, match=r"did not become ready on port \d+: thinking"):
        EmbeddedBroker().start()
    assert is_empty(temporary)


def test_a_program_that_cannot_run_is_named(bin_directory: Path, temporary: Path) -> None:
    (bin_directory / "mosquitto").write_bytes(b"\x7fELF, but not really")
    (bin_directory / "mosquitto").chmod(0o755)
    with pytest.raises(TransportError, match=r"Exec format error: .*mosquitto"):
        EmbeddedBroker().start()
    assert is_empty(temporary)


def test_a_missing_temporary_directory_is_named(kind: str, temporary: Path) -> None:
    temporary.rmdir()
    with pytest.raises(TransportError, match=r"No such file or directory: .*temporary"):
        EmbeddedBroker(kind).start()


# No orphans


@contextmanager
def parent(kind: str, then: str, *, before: str = "") -> Iterator[tuple["subprocess.Popen[str]", int, int]]:
    """A process that has started a broker, and the broker's process number and port."""
    script = f"""
import os, resource, signal, subprocess, sys, threading, time
from broker.embedded import EmbeddedBroker
{before}
broker = EmbeddedBroker({kind!r})
broker.start()
print(broker.pid, broker.port, flush=True)
{then}
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        try:
            assert process.stdout is not None
            pid, port = process.stdout.readline().split()
            yield process, int(pid), int(port)
        finally:
            process.kill()


WAITS = "sys.stdin.read()"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_parent_that_is_killed_takes_its_broker_along(
    kind: str, number: signal.Signals, temporary: Path
) -> None:
    with parent(kind, WAITS) as (process, pid, _):
        assert is_alive(pid) and not is_empty(temporary)
        process.send_signal(number)
        eventually(lambda: not is_alive(pid) and is_empty(temporary))
        assert process.wait() == -number


@pytest.mark.parametrize(
    "end",
    ["", "raise RuntimeError", "raise KeyboardInterrupt", "sys.exit(3)", "os._exit(3)"],
    ids=lambda end: end or "return",
)
def test_a_parent_that_ends_without_stop_takes_its_broker_along(kind: str, end: str, temporary: Path) -> None:
    with parent(kind, end) as (_, pid, _):
        eventually(lambda: not is_alive(pid) and is_empty(temporary))


@pytest.mark.parametrize(
    "child",
    [
        "subprocess.Popen(['sleep', '60'])",
        "subprocess.Popen(['sleep', '60'], close_fds=False)",
        "os.fork()",
    ],
    ids=["child", "child that inherits descriptors", "fork"],
)
def test_a_child_of_the_parent_does_not_keep_the_broker_alive(kind: str, child: str, temporary: Path) -> None:
    tells = "if child: print(getattr(child, 'pid', child), flush=True)"  # of a fork only the parent
    with parent(kind, f"child = {child}\n{tells}\n{WAITS}") as (process, pid, _):
        assert process.stdout is not None
        child_pid = int(process.stdout.readline())
        process.kill()
        eventually(lambda: not is_alive(pid) and is_empty(temporary))
        assert is_alive(child_pid)
        os.kill(child_pid, signal.SIGKILL)


def test_a_fork_that_leaves_the_with_block_does_not_end_the_broker(kind: str) -> None:
    forked = """
with broker:
    if os.fork() == 0:
        sys.exit()
    os.wait()
    print(broker.pid, flush=True)
    sys.stdin.read()
"""
    with parent(kind, f"broker.stop()\n{forked}") as (process, _, port):
        assert process.stdout is not None
        assert is_alive(int(process.stdout.readline()))
        assert answers(port)


def test_the_terminals_interrupt_does_not_reach_the_broker(kind: str) -> None:
    with EmbeddedBroker(kind) as broker:
        assert os.getsid(broker.pid) != os.getsid(0)


def test_the_broker_outlives_the_thread_that_started_it(kind: str) -> None:
    broker = f"""
broker.stop()
thread = threading.Thread(target=broker.start)
thread.start()
thread.join()
print(broker.pid, flush=True)
{WAITS}
"""
    with parent(kind, broker) as (process, _, port):
        assert process.stdout is not None
        assert is_alive(int(process.stdout.readline()))
        assert answers(port)


def test_the_parents_limit_of_open_files_is_not_the_brokers(kind: str) -> None:
    few = "resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))"
    with parent(kind, WAITS, before=few) as (_, _, port), ExitStack() as connections:
        for _ in range(100):
            connection = connections.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.settimeout(PATIENCE_S)
            connection.sendall(CONNECT["3.1.1"])
            assert connection.recv(4) == b"\x20\x02\x00\x00"


def test_a_parent_that_blocks_signals_still_stops_its_broker_gently(kind: str) -> None:
    blocked = "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})"
    timed = "began = time.monotonic()\nbroker.stop()\nprint(time.monotonic() - began, flush=True)"
    with parent(kind, timed, before=blocked) as (process, _, _):
        assert process.stdout is not None
        assert float(process.stdout.readline()) < GRACE_S


def test_a_supervisor_that_is_asked_to_end_ends_its_broker(kind: str, temporary: Path) -> None:
    with EmbeddedBroker(kind) as broker:
        pid = broker.pid
        os.kill(supervisor_of(broker), signal.SIGTERM)
        eventually(lambda: not is_alive(pid) and is_empty(temporary))


def test_stop_cleans_up_after_a_supervisor_that_was_killed(kind: str, temporary: Path) -> None:
    with EmbeddedBroker(kind) as broker:
        os.kill(supervisor_of(broker), signal.SIGKILL)
        assert answers(broker.port)
        broker.stop()
        eventually(lambda: not answers(broker.port))  # its process may stay a zombie where init reaps nobody
        assert is_empty(temporary)


def supervisor_of(broker: EmbeddedBroker) -> int:
    assert broker._supervisor is not None
    return broker._supervisor._process.pid


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks at all processes through /proc")
@pytest.mark.parametrize("delay_ms", [0, 1, 2, 4, 8, 12, 16, 20, 25, 30, 35, 40, 50, 60])
def test_a_parent_killed_at_any_moment_of_the_start_leaves_nothing(
    kind: str, delay_ms: int, temporary: Path
) -> None:
    # The supervisor and the broker have the directory among their arguments, so has a fork before its exec.
    script = f"""
import sys
from broker.embedded import EmbeddedBroker
print(flush=True)
EmbeddedBroker({kind!r}).start()
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(temporary)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay_ms / 1_000)
        process.kill()
    eventually(lambda: not processes_with(str(temporary)) and is_empty(temporary))


def processes_with(argument: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if argument in line:
            found.append(line)
    return found
