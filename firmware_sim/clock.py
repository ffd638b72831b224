"""Virtual time: a heap of things to do, run in the order of their times."""

import heapq
from collections.abc import Callable

Action = Callable[[], None]


class Clock:
    """Microseconds since the start of the simulation. Things due at once run in the order they came."""

    def __init__(self) -> None:
        self.now = 0
        self._heap: list[tuple[int, int, Action]] = []
        self._scheduled = 0

    def at(self, time: int, action: Action) -> None:
        """Do this then, or next if that time is past."""
        heapq.heappush(self._heap, (max(time, self.now), self._scheduled, action))
        self._scheduled += 1

    def run(self, until: int) -> None:
        """Do everything due by then; afterwards it is then."""
        while self._heap and self._heap[0][0] <= until:
            self.now, _, action = heapq.heappop(self._heap)
            action()
        self.now = until
