"""Accounts and certificates change under running brokers: who is revoked is cut, and nobody else notices."""

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from deployed import DeployedBroker, federation, nonce, password
from live import eventually, need
from raw_mqtt import PATIENCE_S, RawMqtt

from broker import access, certificates, production
from broker.embedded import BROKERS

CUT_S = 5.0  # from a reload until a former member's connection has ended; measured: some ms
UNTOUCHED_S = 0.05  # that a connection is watched for an end that must not come


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DeployedBroker]:
    with DeployedBroker(tmp_path / "broker", request.param, federation()) as running:
        yield running


def is_open(connection: RawMqtt, *, watched_s: float = UNTOUCHED_S) -> bool:
    """Whether it is not cut within this time."""
    try:
        connection.await_end(watched_s)
    except TimeoutError:
        return True
    return False


def reload(broker: DeployedBroker) -> None:
    """Reload, and wait until the broker has done it: a user that is new in each reload is let in."""
    mark = access.client("acme", f"mark-{nonce().decode()}", password())
    broker.users[mark.name] = mark
    broker.reload()
    eventually(lambda: not broker.refuses(mark.name, mark.password))


def test_a_removed_user_is_cut_and_refused(broker: DeployedBroker) -> None:
    gone = broker.connect("pi-02")
    former = broker.users.pop("pi-02")
    broker.reload()
    assert gone.await_end(CUT_S) < CUT_S
    assert broker.refuses("pi-02", former.password)


def test_a_removed_user_hears_nothing_more(broker: DeployedBroker) -> None:
    gone, gateway = broker.connect("pi-02"), broker.connect("gateway")
    gone.subscribe("fi1/acme/d/pi-02")
    del broker.users["pi-02"]
    broker.reload()
    gone.await_end(CUT_S)
    gateway.publish("fi1/acme/d/pi-02", b"not for it")
    gateway.ping()
    assert not gone.messages


def test_the_others_lose_no_message_while_one_is_removed(broker: DeployedBroker) -> None:
    gone, member, gateway = broker.connect("pi-02"), broker.connect("pi-01"), broker.connect("gateway")
    member.subscribe("fi1/acme/d/pi-01")
    gateway.subscribe("fi1/acme/a/+")
    del broker.users["pi-02"]
    sent: list[bytes] = []

    def talk() -> None:
        sent.append(nonce())
        gateway.publish("fi1/acme/d/pi-01", sent[-1])
        member.publish("fi1/acme/a/pi-01", sent[-1])

    for _ in range(20):
        talk()
    broker.reload()
    deadline = time.monotonic() + CUT_S
    while is_open(gone, watched_s=0.001):
        assert time.monotonic() < deadline
        talk()
    for _ in range(20):
        talk()
    for listener, speaker, topic in (
        (member, gateway, "fi1/acme/d/pi-01"),
        (gateway, member, "fi1/acme/a/pi-01"),
    ):
        end = nonce()
        speaker.publish(topic, end)
        assert [message.payload for message in listener.receive_until(end)] == sent


def test_a_user_that_is_new_is_let_in_and_nobody_is_cut(broker: DeployedBroker) -> None:
    inside = [broker.connect(name) for name in ("gateway", "pi-01", "laptop", "bank", "join_7")]
    new = access.device("acme", "pi-03", password(), [1])
    assert broker.refuses("pi-03", new.password)
    broker.users["pi-03"] = new
    reload(broker)
    gateway, member = inside[0], broker.connect("pi-03")
    member.subscribe("fi1/acme/q/1")
    gateway.publish("fi1/acme/q/1", b"for all of them")
    assert member.receive_until(b"for all of them") == []
    assert all(is_open(connection) for connection in inside)


def test_who_comes_back_with_another_password_replaces_who_had_the_old_one(broker: DeployedBroker) -> None:
    old, bystander = broker.connect("pi-01"), broker.connect("pi-02")
    old_password = broker.users["pi-01"].password
    broker.users["pi-01"] = access.device("acme", "pi-01", password(), [1])
    broker.reload()
    assert old.await_end(CUT_S) < CUT_S
    assert broker.refuses("pi-01", old_password)
    broker.connect("pi-01").ping()
    assert is_open(bystander)


def test_a_task_is_given_and_taken_back_without_cutting_the_device(broker: DeployedBroker) -> None:
    device, gateway = broker.connect("pi-01"), broker.connect("gateway")
    device.subscribe("fi1/acme/d/pi-01")

    def hears_task_2() -> bool:
        end = nonce()
        device.subscribe("fi1/acme/q/2")
        gateway.publish("fi1/acme/q/2", b"a query")
        gateway.publish("fi1/acme/d/pi-01", end)
        return [message.payload for message in device.receive_until(end)] == [b"a query"]

    assert not hears_task_2()
    for tasks in ([1, 2], [1]):
        broker.users["pi-01"] = access.device("acme", "pi-01", broker.users["pi-01"].password, tasks)
        reload(broker)
        assert hears_task_2() == (2 in tasks)


def test_a_reload_without_a_change_cuts_nobody(broker: DeployedBroker) -> None:
    inside = [broker.connect(name) for name in ("gateway", "pi-01", "laptop", "bank", "join_7")]
    assert broker.write() == []
    assert production.reload(broker.folder, broker.kind)
    reload(broker)
    assert all(is_open(connection) for connection in inside)


def test_new_connections_see_a_renewed_certificate_and_open_ones_stay(broker: DeployedBroker) -> None:
    member, gateway = broker.connect("pi-01"), broker.connect("gateway")
    member.subscribe("fi1/acme/d/pi-01")
    first = member.socket.getpeercert(binary_form=True)
    assert certificates.renew(broker.folder) == [broker.folder / "server.pem"]
    certificate = x509.load_pem_x509_certificate((broker.folder / "server.pem").read_bytes())
    renewed = certificate.public_bytes(Encoding.DER)
    assert renewed != first
    gateway.publish("fi1/acme/d/pi-01", b"before")
    reload(broker)
    gateway.publish("fi1/acme/d/pi-01", b"after")
    assert [message.payload for message in member.receive_until(b"after")] == [b"before"]
    assert broker.connect("pi-02").socket.getpeercert(binary_form=True) == renewed
    assert is_open(member) and is_open(gateway)


def test_what_is_retained_survives_a_restart(broker: DeployedBroker) -> None:
    broker.connect("gateway").publish("fi1/acme/gateway/state", b"here", qos=1, retain=True)
    broker.stop()
    broker.start()
    member = broker.connect("pi-01")
    member.subscribe("fi1/acme/gateway/state")
    assert member.receive_until(b"here") == []


def test_a_reload_right_after_the_start_does_not_end_the_broker(broker: DeployedBroker) -> None:
    """mosquitto has its pid file before it heeds the signal, which until then would kill it."""
    pid_file = next(broker.folder.glob("*.pid"))
    for _ in range(3):
        broker.stop(signal.SIGKILL)
        pid_file.unlink()
        broker.launch()
        deadline = time.monotonic() + PATIENCE_S
        while not (pid_file.exists() and pid_file.read_text()):  # no pause: the danger lasts some ms
            assert time.monotonic() < deadline
        assert production.reload(broker.folder, broker.kind)
        broker.await_ready()


def test_a_broker_that_does_not_run_is_not_reloaded(broker: DeployedBroker) -> None:
    broker.stop(signal.SIGKILL)
    assert not production.reload(broker.folder, broker.kind)


@pytest.mark.parametrize("kind", BROKERS)
def test_a_folder_may_have_any_printable_name(tmp_path: Path, kind: str) -> None:
    with DeployedBroker(tmp_path / "a \"folder\" of $USER, 'quoted' {1} \\ #é", kind, federation()) as broker:
        broker.connect("pi-01").ping()
        reload(broker)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_started_as_root_mosquitto_reads_its_files_as_their_owner() -> None:
    need("mosquitto")
    nobody = 65_534
    # Not tmp_path, whose folders are for root alone.
    with tempfile.TemporaryDirectory() as temporary:
        os.chmod(temporary, 0o711)
        folder = Path(temporary) / "broker"
        folder.mkdir(mode=0o700)
        os.chown(folder, nobody, nobody)
        with DeployedBroker(folder, "mosquitto", federation()) as broker:
            assert Path(f"/proc/{broker.pid}").stat().st_uid == nobody
            certificates.renew(folder)
            reload(broker)
            owners = {path.name: path.stat().st_uid for path in folder.iterdir()}
            assert owners.pop("ca.key") == 0, "which it has no use for"
            assert set(owners.values()) == {nobody}
