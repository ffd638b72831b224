"""Canaries: queries whose answers the gateway knows, put among the others when a member is suspected.

To members a canary is a query like any other: of its task's topic, policy and clients' deadline, at a
moment that the dice choose. That its input looks like theirs is for whoever chooses the inputs.
"""

import hashlib
import math
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from edge_fi.adapters.samples import Labels
from edge_fi.effects import Deliver
from edge_fi.messages import Array, Task, Tensor

MEAN_WAIT_S = 20.0  # an exponential wait: from how long none came nothing follows for when one will
MOST_SAVED = 5.0  # canaries that long calm saves up: so many may come in a row
DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class CanaryAsk:
    """The reference of such a query."""

    task: int
    label: int
    """The right answer."""


@dataclass(frozen=True, slots=True)
class Canary:
    """One that is drawn."""

    tensor: Tensor
    label: int
    digest: bytes
    """Of the input, by which it is known that it was asked."""


class Canaries:
    """Those of one task that are left, and when the next may be asked."""

    def __init__(
        self, queries: Array, labels: Labels, task: Task, *, budget: float, dice: random.Random | None = None
    ) -> None:
        """queries: (n, *shape of the task); labels: (n,). budget: their largest share of all queries.
        dice: the system's unless given.
        """
        little = np.dtype(task.dtype).newbyteorder("<")
        self._tensors = [Tensor(task.dtype, task.shape, query.astype(little).tobytes()) for query in queries]
        self._labels = labels.tolist()
        self._budget = budget
        self._dice = dice or random.SystemRandom()
        self._saved = 0.0
        self._left: dict[bytes, int] = {}
        for which, tensor in enumerate(self._tensors):  # of inputs that are there twice, one
            self._left[hashlib.blake2b(tensor.content, digest_size=DIGEST_BYTES).digest()] = which
        self._due_s = math.inf

    @property
    def left(self) -> int:
        """How many were never asked."""
        return len(self._left)

    def spend(self, digests: Collection[bytes]) -> None:
        """These were asked."""
        for digest in digests:
            self._left.pop(digest, None)

    @property
    def is_affordable(self) -> bool:
        """Whether the budget has room for one."""
        return self._saved >= 1

    def earn(self, rounds: int) -> None:
        """So many more queries were asked, canaries among them."""
        self._saved = min(MOST_SAVED, self._saved + rounds * self._budget)

    def wait_s(self, now_s: float, *, is_wanted: bool) -> float:
        """Seconds until one is due, infinite if none is. now_s: of a clock that never goes back."""
        if not (is_wanted and self.is_affordable and self._left):
            self._due_s = math.inf
        elif self._due_s == math.inf:
            self._due_s = now_s + self._dice.expovariate(1 / MEAN_WAIT_S)
        return max(0.0, self._due_s - now_s)

    def draw(self, suspects: Mapping[int, int]) -> Canary:
        """The next, that is still left: half of them of the class that one of the suspects says most.

        suspects: that class, by member. Whoever asks it must `spend` it.
        """
        self._saved -= 1
        self._due_s = math.inf
        wanted = suspects[self._dice.choice(sorted(suspects))]
        of_class = [digest for digest, which in self._left.items() if self._labels[which] == wanted]
        is_of_class = bool(of_class) and self._dice.random() < 0.5
        digest = self._dice.choice(of_class if is_of_class else list(self._left))
        which = self._left[digest]
        return Canary(self._tensors[which], self._labels[which], digest)


def is_canary(notice: object) -> bool:
    """Whether this is the outcome of one, as a pump tells it: no outcome for clients' figures."""
    return isinstance(notice, Deliver) and isinstance(notice.reference, CanaryAsk)
