"""Vectors of familiarity: a feature map, gates in its space, and what they say of queries."""

import struct

import numpy as np
from book import Book, Fields, rounded, seeded

from edge_fi.messages import Task, Tensor
from edge_fi.voting.features import FeatureMap, as_array
from edge_fi.voting.gate import Gate

MAP = FeatureMap(
    kind="columns",
    shape=(3,),
    mean=np.array([1.0, -2.0, 0.5]),
    scale=np.array([2.0, 4.0, 1.0]),
    axes=np.array([[0.5, -0.25, 1.0], [0.125, 1.0, 0.5]]),
    steps=np.array([0.0625, 0.125]),
    dimension=1.5,
    origin=2.25,
    public=np.array([[0.0, 0.5], [1.0, -0.25]]),
)
PLACES = Task(
    name="places",
    number=3,
    labels=("here", "there"),
    shape=(3,),
    dtype="int8",
    log_weight=(-20, 5),
    features=MAP.digest,
)
PLACE = Tensor("int8", (3,), bytes([3, 254, 1]))
FAR = Tensor("int8", (3,), bytes([127, 129, 127]))


def gate_bytes(
    *, ratio: bool = True, floor: float = -50.0, digest: bytes = MAP.digest, classes: int = 2, axes: int = 2
) -> bytes:
    """Two clusters of 7 and 300 rows."""
    head = struct.pack(">8sBBHfff", digest, 2, axes, classes, floor, -0.75, 0.015625 if ratio else 0.0)
    clusters = struct.pack(">Hf2bHf2b", 7, 0.5, 8, -4, 300, 1.25, -16, 20)
    drawn = b"".join(seeded(f"gate ratio {n}", 64) for n in range(16))
    # -128 is no code that an encoder makes, and 127 says what the step is.
    codes = b"\x7f" + drawn[1:].replace(b"\x80", b"\x81") if ratio else b""
    return b"GA1" + head + struct.pack(f">{classes}H", 300, *[7] * (classes - 1)) + clusters + codes


def familiarities(book: Book) -> None:
    """Add them all."""

    def ok(name: str, about: str, content: bytes, tensor: Tensor) -> None:
        row = MAP.rows(as_array(tensor)[None])[0]
        weight = Gate.decode(content, MAP).weigh(row, MAP)
        book.add(
            f"weight_ok_{name}",
            "weight",
            about,
            features=MAP.encoded,
            features_digest=MAP.digest,
            gate=content,
            content=tensor.content,
            row=rounded(row),
            weight=rounded(weight) if np.isfinite(weight) else None,
        )

    ok("both", "Density and ratio.", gate_bytes(), PLACE)
    ok("density", "Without a ratio.", gate_bytes(ratio=False), PLACE)
    ok("unfamiliar", "Below the floor: null.", gate_bytes(), FAR)
    ok("bottomless", "As far away, and a floor of minus infinity.", gate_bytes(floor=-np.inf), FAR)


def damaged() -> dict[str, tuple[str, bytes]]:
    """Gates that a gateway refuses: name, what is wrong, bytes."""
    good = gate_bytes()
    at = 3 + struct.calcsize(">8sBBHfff") + 4
    return {
        "magic": ("Other first bytes.", b"GA2" + good[3:]),
        "map": ("Of another map.", gate_bytes(digest=bytes(8))),
        "cut": ("A byte less.", good[:-1]),
        "long": ("A byte more.", good + b"\0"),
        "classes": ("Of three classes.", gate_bytes(classes=3)),
        "nan": ("A floor that is no number.", gate_bytes(floor=np.nan)),
        "count": ("A cluster of 0 rows.", good[:at] + bytes(2) + good[at + 2 :]),
        "spread": ("A spread of 0.", good[: at + 2] + bytes(4) + good[at + 6 :]),
        "empty": ("A byte.", b"G"),
    }


def familiar_fields() -> Fields:
    """What a session of such a task has beside the usual."""
    return {"features": MAP.encoded, "gate": gate_bytes()}
