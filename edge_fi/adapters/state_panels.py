"""What a gateway's state keeps of its panels: what was learnt of members, their worth, and spent canaries."""

import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass

from edge_fi.adapters.state_tables import Tables
from edge_fi.voting.contribution import Contribution


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """What one member was worth to one task."""

    task: int
    member: int
    """Its index."""
    contribution: Contribution
    rounds: int
    """Of how many, the latest ones, it was computed."""
    computed: int
    """Wall time in seconds since 1970."""


class StatePanels:
    """A part of one open state. Methods raise StateError where the file cannot be read or written."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def snapshots(self) -> dict[int, bytes]:
        """What `keep` was given last, by task."""
        with self._tables.transaction(is_change=False):
            return dict(self._tables.query("SELECT task, snapshot FROM panels ORDER BY task"))

    def expelled(self) -> dict[int, frozenset[int]]:
        """Indices of the members that a task's jury has expelled, by task."""
        with self._tables.transaction(is_change=False):
            rows = self._tables.query("SELECT task, expelled FROM panels ORDER BY task")
        return {task: frozenset(json.loads(indices)) for task, indices in rows}

    def keep(self, task: int, snapshot: bytes, expelled: frozenset[int]) -> None:
        """A panel's snapshot, in the place of the one before."""
        # What a loss of power takes of this is half a minute's, and the pump need not wait for the disk.
        with self._tables.soon(), self._tables.transaction(is_change=True) as now:
            self._tables.run(
                "INSERT OR REPLACE INTO panels (task, snapshot, expelled, changed) VALUES (?, ?, ?, ?)",
                *(task, snapshot, json.dumps(sorted(expelled)), now),
            )

    def worths(self) -> list[Worth]:
        """What `keep_worths` was given last, by task and member."""
        with self._tables.transaction(is_change=False):
            rows = self._tables.query(
                "SELECT task, member_index, rounds, computed, value, error, agreement, share "
                "FROM contributions ORDER BY task, member_index"
            )
        return [
            Worth(
                task=task,
                member=member,
                contribution=Contribution(value=value, error=error, agreement=agreement, share=share),
                rounds=rounds,
                computed=computed,
            )
            for task, member, rounds, computed, value, error, agreement, share in rows
        ]

    def keep_worths(self, task: int, rounds: int, worths: Mapping[int, Contribution]) -> None:
        """What members were worth, by index, in the place of what was known before."""
        with self._tables.soon(), self._tables.transaction(is_change=True) as now:
            self._tables.run("DELETE FROM contributions WHERE task = ?", task)
            for member, worth in worths.items():
                self._tables.run(
                    "INSERT INTO contributions (task, member_index, rounds, computed, value, error, "
                    "agreement, share) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    *(task, member, rounds, now, *astuple(worth)),
                )

    def spent(self, task: int) -> frozenset[bytes]:
        """Digests of the inputs that were asked as canaries."""
        with self._tables.transaction(is_change=False):
            rows = self._tables.query("SELECT input FROM canaries WHERE task = ?", task)
        return frozenset(digest for (digest,) in rows)

    def spend(self, task: int, digest: bytes) -> None:
        """Note that this input is about to be asked: durable when this returns."""
        with self._tables.transaction(is_change=True) as now:
            row = task, digest, now
            self._tables.run("INSERT OR IGNORE INTO canaries (task, input, asked) VALUES (?, ?, ?)", *row)
