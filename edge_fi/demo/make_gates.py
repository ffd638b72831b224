"""Make the digits demo's feature map and gates: how each member can say that it knows a digit.

Needs scikit-learn for the images, and neither torch nor skl2onnx: the models stay as they are. Which images
are a member's own follows from seeds, so what it trained on is found again here, and is never written:
`python -m edge_fi.demo.make_gates [--out DIR]`.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from edge_fi.demo.members import DIGITS
from edge_fi.errors import ModelError
from edge_fi.voting import features, gate
from edge_fi.voting.features import FeatureMap

SEED = 0  # of the held-out split and of every training; not chosen, simply the first
HELDOUT = 400  # images
N_DEVICES = 5
ALPHA = 0.1  # Dirichlet concentration: most devices lack most digits, which is when a federation matters
LEAST_SAMPLES = 80  # a device with fewer would show a bad model rather than a narrow one
LEAST_LABELS = 2  # a classifier of one label learns nothing
LABELS = 10
# Not hog: on the 300 images asked, hog gained a point or lost a third of one by the vote's form, which is
# noise there, and its map is twice as large. Nothing else of the gates was tried on these images.
KIND = "pixels"

Images = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Digits:
    """The images, and whose they are."""

    images: Images
    """(n, 8, 8), 0 to 16: what is shared among the devices."""
    labels: Labels
    unseen: Images
    """In nobody's training data."""
    truth: Labels
    owned: list[NDArray[np.intp]]
    """Of each device, the indices of its own images."""
    seed: int
    """Of the shares."""


def load() -> Digits:
    """The same for everybody who calls it."""
    digits = load_digits()
    images, labels = digits.images.astype(np.float32), digits.target.astype(np.int64)
    images, unseen, labels, truth = train_test_split(
        images, labels, test_size=HELDOUT, stratify=labels, random_state=SEED
    )
    seed, owned = first_fair_share(labels, N_DEVICES)
    return Digits(images=images, labels=labels, unseen=unseen, truth=truth, owned=owned, seed=seed)


def share(labels: Labels, n_devices: int, *, seed: int) -> list[NDArray[np.intp]]:
    """Indices of each device's samples: every class is split by its own draw (Yurochkin et al. 2019)."""
    random = np.random.default_rng(seed)
    parts: list[list[NDArray[np.intp]]] = [[] for _ in range(n_devices)]
    for label in range(LABELS):
        indices = random.permutation(np.flatnonzero(labels == label))
        shares = random.dirichlet(np.full(n_devices, ALPHA))
        cuts = np.round(np.cumsum(shares)[:-1] * len(indices)).astype(np.intp)
        for part, chosen in zip(parts, np.split(indices, cuts), strict=True):
            part.append(chosen)
    return [np.sort(np.concatenate(part)) for part in parts]


def first_fair_share(labels: Labels, n_devices: int) -> tuple[int, list[NDArray[np.intp]]]:
    """The first seed, and its shares, that give every device enough to train on.

    The seed is chosen for these sizes only, never by accuracy. Every class is known to some device,
    because every sample is given away.
    """

    def is_fair(shares: list[NDArray[np.intp]]) -> bool:
        return all(len(own) >= LEAST_SAMPLES and len(set(labels[own])) >= LEAST_LABELS for own in shares)

    seed = 0
    while not is_fair(shares := share(labels, n_devices, seed=seed)):
        seed += 1
    return seed, shares


def write_map(path: Path, public: NDArray[Any], *, kind: str) -> FeatureMap:
    """Fit a map to public queries, write it, and return it as it was written."""
    content = gate.anchored(features.fit(public.astype(np.float64), kind=kind)).encoded
    path.write_bytes(content)
    return FeatureMap.decode(content)


def write_gate(path: Path, samples: NDArray[Any], labels: Labels, shared: FeatureMap, classes: int) -> int:
    """Fit a gate to a device's own samples and write it. Returns its size in bytes."""
    made = gate.fit(shared.rows(samples.astype(np.float64)), labels, shared, classes=classes)
    return path.write_bytes(made.encode(shared))


def make_gates(out: Path, told: Callable[[str], None] = print) -> None:
    """Write map and gates into `out`. Raises ModelError where the images are not those of the models."""
    digits = load()
    members = DIGITS.members()
    if len(members) != len(digits.owned):
        raise ModelError(f"there are {len(members)} models, but {N_DEVICES} shares of images")
    for member, own in zip(members, digits.owned, strict=True):
        known = sorted({str(label) for label in digits.labels[own]})
        if (len(own), known) != (member.samples, member.labels):
            raise ModelError(f"{member.id}: these are not the images that its model was trained on")
    shared = write_map(out / DIGITS.features_name, digits.unseen[: DIGITS.public], kind=KIND)
    told(f"{DIGITS.features_name}: {len(shared.encoded)} bytes, {len(shared.steps)} axes")
    for member, own in zip(members, digits.owned, strict=True):
        size = write_gate(out / member.gate, digits.images[own], digits.labels[own], shared, LABELS)
        told(f"{member.gate}: {size} bytes of {len(own)} images")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the digits demo's feature map and gates.")
    parser.add_argument("--out", type=Path, default=DIGITS.folder, metavar="DIR")
    make_gates(parser.parse_args().out)
