"""The house of architecture.md: lower floors never import higher ones, and the core touches no world.

Imports are read with `ast`, wherever in a module they stand, also under TYPE_CHECKING. Not seen:
what is imported by a computed name.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("edge_fi", "firmware_sim", "broker")

FLOORS = {
    "edge_fi": 0,  # holds the version alone
    "edge_fi.errors": 0,
    "edge_fi.messages": 0,
    "edge_fi.effects": 0,
    "edge_fi.wire": 0,
    "edge_fi.wire.frames": 0,
    "edge_fi.wire.invites": 0,
    "edge_fi.wire.payloads": 0,
    "edge_fi.wire.presence": 0,
    "edge_fi.wire.topics": 0,
    "edge_fi.wire.votes": 0,
    "edge_fi.crypto": 0,
    "edge_fi.crypto.aead": 0,
    "edge_fi.crypto.keys": 0,
    "edge_fi.crypto.noise": 0,
    "edge_fi.crypto.seal": 0,
    "edge_fi.admission": 1,
    "edge_fi.asks": 1,
    "edge_fi.claim": 1,
    "edge_fi.epoch": 1,
    "edge_fi.replay": 1,
    "edge_fi.roster": 1,
    "edge_fi.round": 1,
    "edge_fi.session": 1,
    "edge_fi.voting": 1,
    "edge_fi.voting.calibration": 1,
    "edge_fi.voting.clusters": 1,
    "edge_fi.voting.conformal": 1,
    "edge_fi.voting.contribution": 1,
    "edge_fi.voting.features": 1,
    "edge_fi.voting.gate": 1,
    "edge_fi.voting.hog": 1,
    "edge_fi.voting.jury": 1,
    "edge_fi.voting.panel": 1,
    "edge_fi.voting.pool": 1,
    "edge_fi.voting.scores": 1,
    "edge_fi.voting.strategy": 1,
    "edge_fi.applicant": 2,
    "edge_fi.device": 2,
    "edge_fi.gateway": 2,
    "edge_fi.client": 2,
    "firmware_sim.clock": 2,
    "firmware_sim.liars": 2,
    "firmware_sim.link": 2,
    "firmware_sim.stream": 2,
    # Below this line there is a world: I/O, clocks, dice.
    "edge_fi.adapters": 3,
    "edge_fi.adapters.inbound": 3,
    "edge_fi.adapters.keyfile": 3,
    "edge_fi.adapters.mqtt": 3,
    "edge_fi.adapters.onnx": 3,
    "edge_fi.adapters.samples": 3,
    "edge_fi.adapters.state": 3,
    "edge_fi.adapters.state_backup": 3,
    "edge_fi.adapters.state_file": 3,
    "edge_fi.adapters.state_hold": 3,
    "edge_fi.adapters.state_panels": 3,
    "edge_fi.adapters.state_tables": 3,
    "edge_fi.adapters.systemd": 3,
    "edge_fi.adapters.tls": 3,
    "edge_fi.canaries": 3,
    "edge_fi.clerk": 3,
    "edge_fi.config": 3,
    "edge_fi.plugins": 3,
    "edge_fi.log": 3,
    "edge_fi.pump": 3,
    "edge_fi.steward": 3,
    "firmware_sim": 3,
    "firmware_sim.fleet": 3,
    "firmware_sim.keeper": 3,
    "broker": 3,
    "broker.access": 3,
    "broker.certificates": 3,
    "broker.deployment": 3,
    "broker.embedded": 3,
    "broker.files": 3,
    "broker.kinds": 3,
    "broker.mosquitto": 3,
    "broker.nats": 3,
    "broker.production": 3,
    "broker.supervise": 3,
    "edge_fi.__main__": 4,
    "edge_fi.cli": 4,
    "edge_fi.demo": 4,
}
"""The floor of every module."""

TOP_FLOOR = ("edge_fi.cli", "edge_fi.demo")
"""Packages whose modules all stand on floor 4, also those not named above."""

SIBLINGS = {
    "edge_fi.effects": ("edge_fi.messages",),
    "edge_fi.wire": ("edge_fi.errors", "edge_fi.messages", "edge_fi.wire"),
    "edge_fi.crypto": ("edge_fi.errors", "edge_fi.crypto"),
    "edge_fi.admission": ("edge_fi.roster", "edge_fi.session"),
    "edge_fi.claim": ("edge_fi.roster",),
    "edge_fi.epoch": ("edge_fi.round", "edge_fi.session"),
    "edge_fi.round": ("edge_fi.voting",),
    "edge_fi.session": ("edge_fi.replay",),
    "edge_fi.voting": ("edge_fi.voting",),
    "edge_fi.adapters.mqtt": ("edge_fi.adapters.inbound", "edge_fi.adapters.tls"),
    "edge_fi.adapters.state": (
        "edge_fi.adapters.state_file",
        "edge_fi.adapters.state_panels",
        "edge_fi.adapters.state_tables",
    ),
    "edge_fi.adapters.state_panels": ("edge_fi.adapters.state_tables",),
    "edge_fi.canaries": ("edge_fi.adapters.samples",),
    "edge_fi.clerk": (
        "edge_fi.adapters.state_panels",
        "edge_fi.canaries",
        "edge_fi.log",
        "edge_fi.pump",
    ),
    "edge_fi.adapters.state_backup": (
        "edge_fi.adapters.state_file",
        "edge_fi.adapters.state_hold",
        "edge_fi.adapters.state_tables",
    ),
    "edge_fi.adapters.state_tables": ("edge_fi.adapters.state_file",),
    "edge_fi.pump": ("edge_fi.adapters.mqtt",),
    "edge_fi.steward": (
        "edge_fi.adapters.state",
        "edge_fi.adapters.state_hold",
        "edge_fi.canaries",
        "edge_fi.clerk",
        "edge_fi.log",
        "edge_fi.pump",
    ),
    "edge_fi.config": ("edge_fi.plugins",),
    "edge_fi.log": ("edge_fi.adapters.mqtt", "edge_fi.pump"),
    "edge_fi.__main__": ("edge_fi.cli",),
    "edge_fi.cli": ("edge_fi.cli", "edge_fi.demo"),
    "edge_fi.demo": ("edge_fi.demo",),
    "firmware_sim.liars": ("firmware_sim.stream",),
    "firmware_sim.link": ("firmware_sim.stream",),
}
"""What a module, or every module of a package, may import of its own floor."""

OF_FIRMWARE_SIM = ("edge_fi.adapters.onnx", "edge_fi.config")
"""What firmware_sim may import of edge_fi above floor 2."""

OF_BROKER = ("edge_fi.errors", "edge_fi.wire.topics")
"""What broker may import of edge_fi."""

PURE_IMPORTS = frozenset(
    {
        "base64",  # an invite is a line of text; binascii, which it wraps, is as pure
        "collections",
        "collections.abc",
        "dataclasses",
        "enum",
        "functools",
        "hashlib",
        "heapq",
        "hmac",
        "math",
        "re",
        "struct",
        "typing",
        "numpy",
        "numpy.typing",
        "nacl._sodium",
        "nacl.bindings",
        "nacl.exceptions",
    }
)
"""What modules without a world may import from outside."""

IMPURE_NAMES = re.compile(
    r"SealedBox|generate|random|randombytes\w*|(?!crypto_sign_seed_keypair$)crypto_\w+_keypair"
)
"""Dice by name, wherever they come from: numpy.random, and those inside libsodium."""

IMPURE_BUILTINS = frozenset({"open", "print", "input", "breakpoint", "eval", "exec", "__import__"})

ONLY_IN = {
    "nacl._sodium": ("edge_fi.crypto.aead",),
    "onnxruntime": ("edge_fi.adapters.onnx", "edge_fi.demo.make_assets", "edge_fi.demo.make_watch"),
    "paho": ("edge_fi.adapters.mqtt",),
}
"""Foreign packages, and the modules that translate them."""


def is_within(module: str, package: str) -> bool:
    """Whether it is this package or something inside it."""
    return module == package or module.startswith(package + ".")


def is_package(module: str) -> bool:
    """Whether a module is a folder's `__init__`."""
    return any(other.startswith(module + ".") for other in FLOORS)


def floor_of(module: str) -> int | None:
    """The floor that a module stands on."""
    if any(is_within(module, package) for package in TOP_FLOOR):
        return 4
    return FLOORS.get(module)


def siblings_of(module: str) -> tuple[str, ...]:
    """What it may import of its own floor."""
    return next((names for key, names in SIBLINGS.items() if is_within(module, key)), ())


@cache
def modules() -> dict[str, Path]:
    """Every module of the three packages, by its name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(module: str, tree: ast.Module) -> Iterator[tuple[str, str, bool]]:
    """Each import: the module it names, the same with the name taken from it, is it in a function."""
    in_functions = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, alias.name, id(node) in in_functions
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                levels = module.split(".") + ["__init__"] * is_package(module)
                base = ".".join([*levels[: -node.level], base]).rstrip(".")
            for alias in node.names:
                yield base, f"{base}.{alias.name}", id(node) in in_functions


def may_import(module: str, target: str, *, in_function: bool) -> bool:
    """Whether the house allows this import of one of our modules."""
    floor, its_floor = floor_of(module), floor_of(target)
    home, its_home = module.split(".")[0], target.split(".")[0]
    if floor is None or its_floor is None:
        return False
    if its_home == "broker":
        return home == "broker" or (home == "edge_fi" and floor == 4 and in_function)
    if home == "broker":
        return target in OF_BROKER
    if home == "firmware_sim" and its_home == "edge_fi":
        return its_floor <= 2 or (floor >= 3 and target in OF_FIRMWARE_SIM)
    if home == "edge_fi" and its_home == "firmware_sim":
        return False
    if its_floor < floor or target == "edge_fi":
        return True
    return its_floor == floor and any(is_within(target, sibling) for sibling in siblings_of(module))


def import_faults(module: str, tree: ast.Module) -> Iterator[str]:
    """Imports that the house does not allow."""
    ours = set(FLOORS) | set(modules())
    is_pure = (floor_of(module) or 0) <= 2
    for base, full, in_function in imports(module, tree):
        target = full if full in ours else base
        home = target.split(".")[0]
        if home in PACKAGES:
            if not may_import(module, target, in_function=in_function):
                yield f"{module} may not import {target}"
        elif is_pure and base not in PURE_IMPORTS and full not in PURE_IMPORTS:
            yield f"{module} is pure and may not import {base}"
        for foreign, places in ONLY_IN.items():
            if is_within(full, foreign) and module not in places:
                yield f"{module} may not import {foreign}: only {', '.join(places)} may"


def name_faults(module: str, tree: ast.Module) -> Iterator[str]:
    """Uses of dice, files or the terminal, by their names, in a module without a world."""
    for node in ast.walk(tree):
        names = []
        match node:
            case ast.Attribute(attr=name):
                names = [name]
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names = [alias.name.split(".")[-1] for alias in aliases]
            case ast.Name(id=name, ctx=ast.Load()):
                names = [name]
                if name in IMPURE_BUILTINS:
                    yield f"{module} is pure and may not call {name}"
        for name in names:
            if name == "*" or IMPURE_NAMES.fullmatch(name):
                yield f"{module} is pure and may not name {name}"


def faults(module: str, source: str) -> list[str]:
    """Everything in which this source breaks the house's rules."""
    floor = floor_of(module)
    if floor is None:
        return [f"{module} stands on no floor: add it to FLOORS in tests/test_layers.py, and to SIBLINGS"]
    tree = ast.parse(source)
    found = list(import_faults(module, tree))
    if floor <= 2:
        found += name_faults(module, tree)
    return found


@pytest.mark.parametrize("module", modules())
def test_a_module_keeps_the_rules_of_its_floor(module: str) -> None:
    assert faults(module, modules()[module].read_text(encoding="utf-8")) == []


def test_every_place_is_taken() -> None:
    assert set(FLOORS) <= set(modules())
    assert {name for names in ONLY_IN.values() for name in names} <= set(modules())


def test_the_core_is_all_of_edge_fi_but_its_edge() -> None:
    edge = {"adapters", "canaries", "clerk", "cli", "config", "demo", "log", "plugins", "pump", "steward"}
    edge |= {"__main__"}
    core = {module for module in modules() if is_within(module, "edge_fi") and (floor_of(module) or 0) <= 2}
    assert core == {
        module
        for module in modules()
        if is_within(module, "edge_fi") and not edge & set(module.split(".")[1:2])
    }


# Every rule can fail


@pytest.mark.parametrize(
    ("module", "source"),
    [
        # Lower never imports higher
        ("edge_fi.errors", "import edge_fi.messages"),
        ("edge_fi.errors", "from edge_fi import messages"),
        ("edge_fi.wire.votes", "from edge_fi.voting import pool"),
        ("edge_fi.crypto.seal", "from edge_fi.session import Session"),
        ("edge_fi.session", "from edge_fi.gateway import Gateway"),
        ("edge_fi.round", "import edge_fi.device as device"),
        ("edge_fi.gateway", "from edge_fi.pump import Pump"),
        ("edge_fi.gateway", "def later():\n    from edge_fi.config import load"),
        ("edge_fi.device", "if TYPE_CHECKING:\n    from edge_fi.adapters.mqtt import MqttLink"),
        ("edge_fi.pump", "import edge_fi.cli.main"),
        ("edge_fi.adapters.mqtt", "from edge_fi.demo import run"),
        ("edge_fi", "from edge_fi.gateway import Gateway"),
        ("edge_fi.wire", "from edge_fi.session import Session"),
        ("edge_fi.wire", "from ..session import Session"),
        # Siblings only where shown
        ("edge_fi.effects", "from edge_fi.wire import topics"),
        ("edge_fi.messages", "from edge_fi.effects import Publish"),
        ("edge_fi.wire.frames", "from edge_fi.crypto.keys import KEY_BYTES"),
        ("edge_fi.crypto.seal", "from edge_fi.wire import frames"),
        ("edge_fi.crypto.seal", "from ..wire import frames"),
        ("edge_fi.crypto.keys", "from edge_fi.effects import Publish"),
        ("edge_fi.replay", "from edge_fi.session import Session"),
        ("edge_fi.session", "from edge_fi.round import Round"),
        ("edge_fi.session", "from edge_fi.voting import pool"),
        ("edge_fi.round", "from edge_fi.replay import WINDOW"),
        ("edge_fi.voting.pool", "from edge_fi.round import Round"),
        ("edge_fi.roster", "from edge_fi.session import Session"),
        ("edge_fi.asks", "from edge_fi.session import Session"),
        ("edge_fi.claim", "from edge_fi.session import GatewayIdentity"),
        ("edge_fi.claim", "from edge_fi.epoch import TaskEpoch"),
        ("edge_fi.epoch", "from edge_fi.roster import Roster"),
        ("edge_fi.epoch", "from edge_fi.voting import strategy"),
        ("edge_fi.admission", "from edge_fi.claim import Claim"),
        ("edge_fi.session", "from edge_fi.roster import Roster"),
        ("edge_fi.wire.invites", "from edge_fi.roster import Invitation"),
        ("edge_fi.applicant", "from edge_fi.gateway import Gateway"),
        ("edge_fi.gateway", "from edge_fi.applicant import Applicant"),
        ("edge_fi.gateway", "from edge_fi.adapters.state import State"),
        ("edge_fi.gateway", "from edge_fi.device import Device"),
        ("edge_fi.device", "from edge_fi.gateway import Gateway"),
        ("edge_fi.client", "from edge_fi.device import Device"),
        ("edge_fi.client", "from .device import Device"),
        ("edge_fi.adapters.onnx", "from edge_fi.adapters import keyfile"),
        ("edge_fi.adapters.mqtt", "from edge_fi.pump import Pump"),
        ("edge_fi.adapters.mqtt", "from edge_fi.adapters import keyfile"),
        ("edge_fi.config", "from edge_fi.log import Log"),
        ("edge_fi.pump", "from edge_fi.adapters.state import State"),
        ("edge_fi.pump", "from edge_fi.steward import Steward"),
        ("edge_fi.adapters.state", "from edge_fi.adapters.mqtt import MqttLink"),
        ("edge_fi.adapters.state_file", "from edge_fi.adapters.state import State"),
        ("edge_fi.demo.run", "from edge_fi.cli.run import make_client"),
        ("firmware_sim.stream", "from firmware_sim.link import Link"),
        ("firmware_sim.clock", "from firmware_sim.fleet import Fleet"),
        # Packages
        ("firmware_sim.fleet", "from edge_fi.pump import Pump"),
        ("firmware_sim.fleet", "from edge_fi.adapters.mqtt import MqttLink"),
        ("firmware_sim.clock", "from edge_fi.config import load"),
        ("firmware_sim.fleet", "def run():\n    from broker.embedded import EmbeddedBroker"),
        ("edge_fi.pump", "from firmware_sim.clock import Clock"),
        ("edge_fi.demo.run", "from firmware_sim.fleet import Fleet"),
        ("broker.embedded", "from edge_fi.messages import Task"),
        ("broker.embedded", "from edge_fi.wire import frames"),
        ("broker.access", "from edge_fi.roster import Roster"),
        ("broker.kinds", "import firmware_sim.clock"),
        ("broker.kinds", "import edge_fi"),
        ("edge_fi.cli.run", "from broker.embedded import EmbeddedBroker"),
        ("edge_fi.demo.run", "import broker"),
        ("edge_fi.demo.run", "class Run:\n    from broker import embedded"),
        ("edge_fi.pump", "def run():\n    from broker.embedded import EmbeddedBroker"),
        ("edge_fi.device", "def run():\n    import broker.kinds"),
        # Nothing that stands nowhere
        ("edge_fi.gateway", "from edge_fi.budget import Budget"),
    ],
)
def test_an_import_that_the_house_does_not_show_is_found(module: str, source: str) -> None:
    (fault,) = faults(module, source)
    assert fault.startswith(f"{module} may not import ")


@pytest.mark.parametrize(
    "module", ["edge_fi.wire.votes", "edge_fi.session", "edge_fi.gateway", "firmware_sim.link"]
)
@pytest.mark.parametrize(
    "name",
    [
        "asyncio",
        "click",
        "contextlib",
        "datetime",
        "http.client",
        "importlib",
        "io",
        "logging",
        "nacl.public",
        "nacl.secret",
        "nacl.utils",
        "numpy.lib",
        "os",
        "pathlib",
        "pydantic",
        "secrets",
        "select",
        "selectors",
        "shutil",
        "socket",
        "sqlite3",
        "ssl",
        "subprocess",
        "sys",
        "tempfile",
        "threading",
        "time",
        "urllib.request",
        "uuid",
    ],
)
def test_the_world_is_found_in_a_pure_module(module: str, name: str) -> None:
    fault = f"{module} is pure and may not import {name}"
    assert faults(module, f"import {name}") == [fault]
    assert faults(module, f"def later():\n    from {name} import x") == [fault]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from nacl.bindings import randombytes", "randombytes"),
        ("from nacl.bindings import randombytes_buf_deterministic as dice", "randombytes_buf_deterministic"),
        ("from nacl.bindings import crypto_sign_keypair", "crypto_sign_keypair"),
        ("import nacl.bindings as b\nb.crypto_box_keypair()", "crypto_box_keypair"),
        ("import nacl.bindings as b\nb.crypto_kx_keypair()", "crypto_kx_keypair"),
        ("from nacl.bindings import *", "*"),
        ("key = SigningKey.generate()", "generate"),
        ("box = SealedBox(key)", "SealedBox"),
        ("import numpy as np\nnp.random.default_rng()", "random"),
        ("import numpy\ndice = numpy.random", "random"),
        ("from numpy import random", "random"),
    ],
)
def test_dice_are_found_in_a_pure_module(source: str, name: str) -> None:
    assert faults("edge_fi.crypto.keys", source) == [f"edge_fi.crypto.keys is pure and may not name {name}"]


@pytest.mark.parametrize("name", ["open", "print", "input", "__import__", "eval", "exec", "breakpoint"])
def test_files_and_the_terminal_are_found_in_a_pure_module(name: str) -> None:
    assert faults("edge_fi.round", f"{name}('x')") == [f"edge_fi.round is pure and may not call {name}"]
    assert faults("edge_fi.round", f"say = {name}") == [f"edge_fi.round is pure and may not call {name}"]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("edge_fi.config", "import onnxruntime"),
        ("edge_fi.cli.run", "def run():\n    from onnxruntime import InferenceSession"),
        ("firmware_sim.fleet", "import onnxruntime as ort"),
        ("broker.embedded", "import onnxruntime"),
        ("edge_fi.demo.run", "import onnxruntime"),
        ("edge_fi.pump", "from paho.mqtt.client import Client"),
        ("edge_fi.demo.run", "import paho.mqtt.client"),
        ("broker.embedded", "def check():\n    import paho"),
        ("edge_fi.adapters.onnx", "import paho.mqtt"),
        ("edge_fi.adapters.mqtt", "import onnxruntime"),
    ],
)
def test_a_foreign_package_is_found_outside_its_adapter(module: str, source: str) -> None:
    (fault,) = faults(module, source)
    assert re.fullmatch(rf"{module} may not import (onnxruntime|paho): only edge_fi\.adapters\..* may", fault)


@pytest.mark.parametrize(
    "module", ["edge_fi.budget", "edge_fi.wire.more", "edge_fi.adapters.http", "broker.acl"]
)
def test_a_module_that_stands_on_no_floor_is_told_where_to_go(module: str) -> None:
    expected = f"{module} stands on no floor: add it to FLOORS in tests/test_layers.py, and to SIBLINGS"
    assert faults(module, "") == [expected]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("edge_fi.wire.frames", "from edge_fi.errors import DecodeError\nfrom edge_fi.messages import Form"),
        ("edge_fi.wire.payloads", "from edge_fi.wire import frames"),
        ("edge_fi.wire.payloads", "from . import frames"),
        ("edge_fi.wire", "from . import frames\nfrom .topics import query"),
        ("edge_fi.session", "from edge_fi.replay import WINDOW\nfrom edge_fi.wire import frames, payloads"),
        ("edge_fi.round", "from edge_fi.voting.strategy import aggregate"),
        ("edge_fi.gateway", "from edge_fi.crypto import seal\nfrom edge_fi.round import Round"),
        ("edge_fi.gateway", "import math, struct, hashlib\nfrom collections import abc\nimport numpy as np"),
        ("edge_fi.gateway", "from edge_fi.claim import Claim\nfrom edge_fi.admission import Admissions"),
        ("edge_fi.admission", "from edge_fi.roster import Roster\nfrom edge_fi.session import Peer"),
        ("edge_fi.epoch", "from edge_fi.round import Round\nfrom edge_fi.session import GatewayIdentity"),
        ("edge_fi.wire.invites", "import base64\nfrom edge_fi.wire.topics import check_id"),
        ("edge_fi.steward", "from edge_fi.adapters.state import State\nfrom edge_fi.pump import Pump"),
        ("edge_fi.crypto.keys", "from nacl.bindings import crypto_sign_seed_keypair"),
        ("edge_fi.session", "session.open(1)\nclass Box:\n    open: int = 0"),
        ("edge_fi.pump", "import os, time\nprint(open('x'))\nfrom edge_fi.gateway import Gateway"),
        ("edge_fi.adapters.onnx", "import onnxruntime"),
        ("edge_fi.demo.make_assets", "import onnxruntime"),
        ("edge_fi.adapters.mqtt", "import paho.mqtt.client"),
        ("edge_fi.cli.anything", "def demo():\n    from broker.embedded import EmbeddedBroker"),
        ("edge_fi.demo.anything", "async def demo():\n    import broker"),
        ("edge_fi.cli.main", "from edge_fi import __version__\nfrom edge_fi.demo import run"),
        ("broker.embedded", "from broker.kinds import Kind\nfrom edge_fi.wire import topics"),
        ("firmware_sim.fleet", "from edge_fi import config\nfrom edge_fi.adapters import onnx"),
        ("firmware_sim.link", "from firmware_sim.stream import Stream\nfrom edge_fi import errors"),
    ],
)
def test_what_the_house_shows_is_allowed(module: str, source: str) -> None:
    assert faults(module, source) == []


if __name__ == "__main__":
    # For coverage: the files of floors 0 to 2.
    print(",".join(str(path) for module, path in modules().items() if (floor_of(module) or 0) <= 2))
