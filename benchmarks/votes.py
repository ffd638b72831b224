"""A study's federation as its gateway meets it: a feature map, gates, and every round's ballots."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from datasets import Labels
from members import Trained

from edge_fi.messages import Array
from edge_fi.voting import features, gate
from edge_fi.voting.features import FeatureMap
from edge_fi.voting.gate import Gate
from edge_fi.voting.strategy import Ballots, Strategy

KINDS = {"fashion": "hog", "digits": "pixels", "letter": "columns", "watch": "columns"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """Trained members with their gates, all as they travel: encoded and decoded."""

    trained: Trained
    features: FeatureMap
    gates: list[Gate]
    rows: Array
    """(queries, axes): the queries in the shared space."""
    votes: Array
    """(members, queries, classes)."""
    log_weights: Array
    """(members, queries): what the gates say."""
    gate_bytes: int
    """Of the largest."""

    @property
    def truth(self) -> Labels:
        """(queries,)."""
        return self.trained.split.truth

    def ballots(self, votes: Array | None = None, log_weights: Array | None = None) -> Iterator[Ballots]:
        """Each round's. votes, log_weights: others in the place of the federation's."""
        votes = self.votes if votes is None else votes
        log_weights = self.log_weights if log_weights is None else log_weights
        coverage = self.trained.coverage.astype(np.float64)
        for query in range(votes.shape[1]):
            yield Ballots(votes[:, query], log_weights[:, query], coverage)


def federation(trained: Trained) -> Federation:
    """Fit map and gates, as `edge-fi task features` and `edge-fi device familiarize` do."""
    split, classes = trained.split, len(trained.split.labels)
    kind = "hog" if trained.case.inputs == "hog" else KINDS[trained.case.dataset]
    made = gate.anchored(features.fit(split.public.astype(np.float64), kind=kind))
    shared = FeatureMap.decode(made.encoded)
    own = shared.rows(split.train.astype(np.float64))
    gates = [gate.fit(own[rows], split.train_labels[rows], shared, classes=classes) for rows in trained.owned]
    rows = shared.rows(split.queries.astype(np.float64))
    return Federation(
        trained=trained,
        features=shared,
        gates=gates,
        rows=rows,
        votes=trained.on_queries.astype(np.float64),
        log_weights=np.stack([its.weigh_all(rows, shared) for its in gates]),
        gate_bytes=max(len(its.encode(shared)) for its in gates),
    )


def pooled(strategy: Strategy, ballots: Iterator[Ballots]) -> Array:
    """(queries, classes): what a strategy makes of each round."""
    return np.stack([strategy(its) for its in ballots])
