"""Gates and a feature map made by hand, so small that a test can tell their weights in its head.

Queries are two numbers, and stand in the shared space where they are: mean 0, scale 1, no turn.
"""

from dataclasses import replace

import numpy as np

from edge_fi.messages import Task, Tensor
from edge_fi.voting.clusters import Clusters
from edge_fi.voting.features import FeatureMap
from edge_fi.voting.gate import Gate

MAP = FeatureMap(
    kind="columns",
    shape=(2,),
    mean=np.zeros(2),
    scale=np.ones(2),
    axes=np.eye(2),
    steps=np.ones(2),
    dimension=2.0,
    public=np.zeros((0, 2)),
)
OTHER_MAP = replace(MAP, dimension=1.5)
PLACES = Task(
    name="places",
    number=1,
    labels=("a", "b", "c", "d"),
    shape=(2,),
    dtype="uint8",
    log_weight=(-40, 10),
    features=MAP.digest,
)
"""The task that goes with MAP."""


def at(x: int, y: int = 0) -> Tensor:
    """A query at this place."""
    return Tensor("uint8", (2,), bytes([x, y]))


def gate(
    x: float, y: float = 0, *, count: int = 10, spread: float = 25.0, floor: float = -60.0, classes: int = 4
) -> Gate:
    """Of a device whose data lie around this place, all of class 0."""
    return Gate(
        map_digest=MAP.digest,
        own=Clusters(np.array([[x, y]], float), np.array([float(count)]), np.array([spread])),
        coverage=np.eye(classes)[0] * count,
        floor=floor,
    )


def content(x: float, y: float = 0) -> bytes:
    """The same, as it is registered."""
    return gate(x, y).encode(MAP)


def weight(x: float, tensor: Tensor) -> float:
    """What a gate at x says of a query: .7 (ln n - D/2 (ln s^2 + d^2 / s^2))."""
    distance = float(tensor.content[0]) - x
    return 0.7 * float(np.log(10) - (np.log(25.0) + (distance**2 + tensor.content[1] ** 2) / 25.0))
