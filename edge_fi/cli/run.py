"""`edge-fi gateway run` and `edge-fi device run`: long-running, until a signal ends them."""

import contextlib
import math
import os
import signal
import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_fi import config, plugins
from edge_fi.adapters import keyfile
from edge_fi.adapters.mqtt import Down, MqttLink, Up
from edge_fi.adapters.samples import read_labelled
from edge_fi.adapters.state import State
from edge_fi.adapters.state_hold import Hold
from edge_fi.adapters.systemd import Notifier
from edge_fi.adapters.tls import make_context
from edge_fi.canaries import Canaries, is_canary
from edge_fi.cli.brokerfiles import follow
from edge_fi.cli.familiarity import load_gate, load_map
from edge_fi.client import Client
from edge_fi.device import Device, Labelling
from edge_fi.effects import Machine
from edge_fi.errors import ConfigError, TransportError
from edge_fi.gateway import Gateway
from edge_fi.log import Log
from edge_fi.messages import Task
from edge_fi.pump import Notice, Pump
from edge_fi.session import Identity
from edge_fi.steward import Steward
from edge_fi.wire import topics

if TYPE_CHECKING:
    from edge_fi.adapters.onnx import OnnxModel

_config_option = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    required=True,
    help="Configuration file; EDGE_FI_BROKER__HOST=... and the like override it.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Log as JSON lines, on stdout.")


def tls_of(path: Path, broker: config.Broker) -> ssl.SSLContext | None:
    """What a configuration file says of TLS. Raises ConfigError."""
    return make_context(path.parent / broker.ca if broker.ca else None) if broker.tls else None


def make_link(
    machine: Machine, path: Path, broker: config.Broker, *, client_id: str, username: str, password: str
) -> MqttLink:
    """The link of a machine to the broker that its configuration file names.

    username, password: those that follow from its keys, where the file names no others.
    """
    has_own = broker.username is not None
    return MqttLink(
        client_id,
        host=broker.host,
        port=broker.port,
        subscriptions=machine.subscriptions,
        will=machine.will,
        version=broker.mqtt,
        keepalive_s=broker.keepalive_s,
        username=broker.username if has_own else username,
        password=config.read_password(path.parent, broker) if has_own else password,
        tls=tls_of(path, broker),
    )


def make_member_link(machine: Machine, identity: Identity, path: Path, broker: config.Broker) -> MqttLink:
    """The link of a member."""
    return make_link(
        machine,
        path,
        broker,
        client_id=identity.mqtt_client_id,
        username=identity.id,
        password=identity.mqtt_password,
    )


def make_gateway_link(machine: Gateway, path: Path, broker: config.Broker) -> MqttLink:
    """The link of a gateway."""
    return make_link(
        machine,
        path,
        broker,
        client_id=machine.identity.mqtt_client_id(machine.boot),
        username=topics.GATEWAY_USER,
        password=machine.identity.mqtt_password,
    )


def make_client(path: Path) -> tuple[Client, MqttLink, config.ClientConfig]:
    """A client and its link, as its configuration file says."""
    settings = config.load(path, config.ClientConfig)
    identity = keyfile.read_member(path.parent / settings.key, "client")
    client = Client(identity, os.urandom)
    return client, make_member_link(client, identity, path, settings.broker), settings


@click.group()
def gateway() -> None:
    """Run a gateway: it asks the devices and pools their votes."""


@gateway.command("run")
@_config_option
@click.option("--start-broker", is_flag=True, help="Start a broker too, at the configured loopback port.")
@_json_option
def run_gateway(path: Path, start_broker: bool, as_json: bool) -> None:
    """Run the gateway until SIGINT or SIGTERM.

    \b
    Examples:
      edge-fi gateway run --config configs/gateway.toml
      edge-fi gateway run --config configs/gateway.toml --start-broker
    """
    settings = config.load(path, config.GatewayConfig)
    key = path.parent / settings.key
    identity = keyfile.read_gateway(key)
    tasks = config.load_tasks(path.parent, settings.tasks)
    files = zip(settings.tasks, tasks.values(), strict=True)
    maps = {task.number: load_map(path.parent / file, task) for file, task in files}
    policy = config.round_policy(path, settings.round)
    canaries = load_canaries(path, settings, tasks)
    log = _make_log(as_json)
    with contextlib.ExitStack() as stack:
        state_path = path.parent / settings.state
        state = stack.enter_context(State.open(state_path, identity.federation, identity.static.public))
        hold = stack.enter_context(Hold.take(state_path))
        roster = state.roster()
        machine = Gateway(
            identity,
            roster,
            tasks.values(),
            os.urandom,
            policy=policy,
            strategies=plugins.strategies(policy.strategy),
            features={number: its for number, its in maps.items() if its is not None},
            is_claiming=True,
        )
        link = make_gateway_link(machine, path, settings.broker)
        check = _nothing
        if start_broker:
            check = stack.enter_context(_started_broker(path, settings.broker, link, log))
        log.event(
            "gateway_started",
            federation=identity.federation,
            tasks=list(tasks),
            devices=sum(member.role == "device" for member in roster.members),
            clients=sum(member.role == "client" for member in roster.members),
            broker=f"{settings.broker.host}:{settings.broker.port}",
        )
        steward = Steward(
            state,
            hold,
            machine,
            read_identity=lambda: keyfile.read_gateway(key),
            follow=lambda: follow(path, settings, identity, state.roster),
            log=log,
            canaries=canaries,
        )
        steward.begin(roster)
        stack.callback(steward.close)

        notifier = Notifier()

        def watch(notice: Notice) -> None:
            if not is_canary(notice):
                log.watch(notice)
            steward.watch(notice)
            _tell_manager(notifier, notice)

        pump = Pump(machine, link, keeper=steward, watch=watch)

        def look() -> float:
            check()
            return steward.look(pump)

        _run(pump, log, notifier, look)


@click.group()
def device() -> None:
    """Run a device: it answers queries with its own model."""


@device.command("run")
@_config_option
@click.option("--stop-with-stdin", is_flag=True, help="Stop when stdin closes: no orphan of its starter.")
@_json_option
def run_device(path: Path, stop_with_stdin: bool, as_json: bool) -> None:
    """Run the device until SIGINT or SIGTERM.

    \b
    Example:
      edge-fi device run --config configs/device.toml
    """
    settings = config.load(path, config.DeviceConfig)
    identity = keyfile.read_member(path.parent / settings.key, "device")
    task = config.load_task(path.parent / settings.task)
    model = load_model(path, settings)
    labelling = Labelling(
        task=task,
        model=model.digest,
        classes=model.classes,
        forms=config.forms(path, settings.answer_forms),
    )
    machine = Device(identity, labelling, os.urandom, gate=load_gate(path, settings, task))
    link = make_member_link(machine, identity, path, settings.broker)
    log = _make_log(as_json)
    log.event(
        "device_started",
        federation=identity.federation,
        id=identity.id,
        task=task.name,
        labels=[task.labels[label] for label in model.classes],
        broker=f"{settings.broker.host}:{settings.broker.port}",
    )
    notifier = Notifier()

    def watch(notice: Notice) -> None:
        log.watch(notice)
        _tell_manager(notifier, notice)

    pump = Pump(machine, link, model=model, watch=watch)
    if stop_with_stdin:
        threading.Thread(target=_stop_with_stdin, args=[pump], daemon=True).start()
    _run(pump, log, notifier)


def load_model(path: Path, settings: config.DeviceConfig) -> "OnnxModel":
    """The model that a configuration names, held against its task. Raises ModelError, ConfigError."""
    from edge_fi.adapters.onnx import OnnxModel

    return OnnxModel.load(
        path.parent / settings.model.path,
        config.load_task(path.parent / settings.task),
        labels=settings.model.labels,
        scores=settings.model.scores,
        output=settings.model.output,
    )


def load_canaries(
    path: Path, settings: config.GatewayConfig, tasks: Mapping[str, Task]
) -> dict[int, Canaries]:
    """By number of the task, what a gateway's configuration says of canaries. Raises ConfigError."""
    canaries: dict[int, Canaries] = {}
    for name, section in settings.canaries.items():
        if name not in tasks:
            raise ConfigError(f"{path}: canaries.{name}: there is no task {name}: {', '.join(tasks)}")
        queries, labels = read_labelled(path.parent / section.file, None, tasks[name])
        canaries[tasks[name].number] = Canaries(queries, labels, tasks[name], budget=section.budget)
    return canaries


@contextlib.contextmanager
def _started_broker(
    path: Path, broker: config.Broker, link: MqttLink, log: Log
) -> Iterator[Callable[[], None]]:
    """A broker for as long as the `with` lasts, and a check that raises TransportError when it has ended.

    Raises ConfigError where the gateway could not use the broker that would be started.
    """
    from broker.embedded import EmbeddedBroker, versions

    embedded = EmbeddedBroker(port=broker.port)
    if broker.host not in (embedded.host, "localhost"):
        raise ConfigError(
            f"{path}: broker.host is {broker.host}, but --start-broker starts a broker on {embedded.host}: "
            f'set broker.host = "{embedded.host}", or start a broker there and leave --start-broker out'
        )
    spoken = versions(embedded.kind)
    if broker.mqtt not in spoken:
        raise ConfigError(
            f'{path}: broker.mqtt is "{broker.mqtt}", but {embedded.kind}, which --start-broker starts here, '
            f'speaks {" and ".join(spoken)}: set broker.mqtt = "{spoken[0]}", or install another broker'
        )

    def check() -> None:
        if not link.is_up and not _is_running(embedded.pid):
            raise TransportError(
                f"the broker that --start-broker started on port {embedded.port} has ended: start the "
                "gateway again, or start a broker that outlives it and leave --start-broker out"
            )

    with embedded:
        log.event("broker_started", kind=embedded.kind, host=embedded.host, port=embedded.port)
        yield check


def _is_running(pid: int) -> bool:
    """Whether there is a process of this number: the broker's supervisor reaps it, so a dead one has none."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # mosquitto, started by root, changes its user
        return True
    return True


def _stop_with_stdin(pump: Pump) -> None:
    with contextlib.suppress(OSError):
        # Not sys.stdin: its lock, held by this thread, would stop the interpreter from ending.
        while os.read(0, 4096):
            pass
    pump.stop()


def _nothing() -> None:
    pass


def _never() -> float:
    return math.inf


def _make_log(as_json: bool) -> Log:
    return Log(is_json=as_json, stream=sys.stdout if as_json else None)


def _tell_manager(notifier: Notifier, notice: Notice) -> None:
    """For `systemctl status`: whether the link is up."""
    match notice:
        case Up():
            notifier.status("connected to the broker")
        case Down(reason=reason):
            notifier.status(f"no broker: {reason}")
        case _:
            pass


def _run(pump: Pump, log: Log, notifier: Notifier, look: Callable[[], float] = _never) -> None:
    """Take turns until a signal. look: called before each; returns for how many seconds it may wait."""

    def before_turn() -> float:
        # Each turn that was completed is progress: the service manager's watchdog hears of it.
        notifier.alive()
        return min(look(), log.tick(), notifier.wait_s())

    with _stopped_by_signals(pump):
        pump.start()
        notifier.ready()
        try:
            pump.run(before_turn)
        finally:
            notifier.stopping()
            log.flush()
            pump.close()
    log.event("stopped")


@contextlib.contextmanager
def _stopped_by_signals(pump: Pump) -> Iterator[None]:
    before = {
        number: signal.signal(number, lambda *_: pump.stop()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
