"""Real devices for a benchmark: each with a connection of its own, in a few processes.

Run as `python benchmarks/fleet.py` by round_trip.py; the fleet lives until its stdin closes.
"""

import json
import os
import sys
import threading
from functools import partial
from pathlib import Path

from plain import Echo, PlainDevice

from edge_fi.adapters import keyfile
from edge_fi.adapters.mqtt import MqttLink
from edge_fi.adapters.onnx import OnnxModel
from edge_fi.demo.members import ASSETS, members, task
from edge_fi.device import Device, Labelling
from edge_fi.effects import Machine
from edge_fi.pump import Infers, Pump

MEMBER = 1  # the demo's multilayer perceptron


def load_model() -> OnnxModel:
    """The model that every device of a benchmark runs."""
    member = members()[MEMBER]
    return OnnxModel.load(ASSETS / member.model, task(), labels=member.labels, scores="probabilities")


def make(name: str, folder: Path, model: OnnxModel) -> tuple[Machine, str]:
    """The machine of this name, and its MQTT client id."""
    if name == "echo":
        return Echo("bench"), "bench-echo"
    if name.startswith("plain"):
        return PlainDevice(task(), "plain", name), f"bench-{name}"
    identity = keyfile.read_member(folder / f"{name}.key", "device")
    labelling = Labelling(task=task(), model=model.digest, classes=model.classes)
    return Device(identity, labelling, os.urandom), identity.mqtt_client_id


def drive(machine: Machine, client_id: str, port: int, model: Infers) -> None:
    """Give a machine a link and a pump, for ever."""
    link = MqttLink(
        client_id, host="127.0.0.1", port=port, subscriptions=machine.subscriptions, will=machine.will
    )
    pump = Pump(machine, link, model=model, watch=lambda _: None)
    pump.start()
    pump.run()


def main(port: int, folder: str, names: list[str]) -> None:
    """One thread a device: a pump owns its machine, and onnxruntime releases the interpreter."""
    model = load_model()
    for name in names:
        target = partial(drive, *make(name, Path(folder), model), port, model)
        threading.Thread(target=target, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
