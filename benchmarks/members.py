"""The members of a study's federation: heterogeneous models, each trained on its own share alone, and kept.

A class is split over the members by a draw from Dirichlet(alpha) of its own (Yurochkin et al. 2019): at .1
most members lack most classes, at 100 all have alike. What a federation's members say to queries and to
public rows is kept in the cache folder.
"""

import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Labels, Rows, Split
from numpy.typing import NDArray

RECIPE = 3  # one more with each change of data, shares or models: what the cache holds is then made anew
LEAST_SAMPLES = 20  # a member with fewer would be no member
LEAST_LABELS = 2  # a classifier of one label learns nothing

Probabilities = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Names a federation."""

    dataset: str
    members: int
    alpha: float
    seed: int
    inputs: str = "raw"
    """What the models are fed: raw, or hog where that is another feature of images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a federation's members say."""

    case: Case
    split: Split
    owned: list[NDArray[np.intp]]
    """Of each member, the rows of split.train that are its own."""
    on_queries: Probabilities
    """(members, queries, classes); 0 for a class that a member has never seen."""
    on_public: Probabilities

    @property
    def coverage(self) -> NDArray[np.int64]:
        """Samples that each member has of each class, (members, classes)."""
        classes = len(self.split.labels)
        return np.stack([np.bincount(self.split.train_labels[own], minlength=classes) for own in self.owned])


def share(labels: Labels, members: int, alpha: float, seed: int) -> list[NDArray[np.intp]]:
    """Rows of each member. The first draw that gives everybody enough; never chosen by accuracy."""
    for attempt in range(10_000):
        random = np.random.default_rng([seed, 2, attempt])
        parts: list[list[NDArray[np.intp]]] = [[] for _ in range(members)]
        for label in np.unique(labels):
            rows = random.permutation(np.flatnonzero(labels == label))
            shares = random.dirichlet(np.full(members, alpha))
            cuts = np.round(np.cumsum(shares)[:-1] * len(rows)).astype(np.intp)
            for part, chosen in zip(parts, np.split(rows, cuts), strict=True):
                part.append(chosen)
        owned = [np.sort(np.concatenate(part)) for part in parts]
        if all(len(own) >= LEAST_SAMPLES and len(np.unique(labels[own])) >= LEAST_LABELS for own in owned):
            return owned
    raise ValueError(f"no draw of Dirichlet({alpha}) gives {members} members {LEAST_SAMPLES} samples each")


def train(cases: list[Case], *, folder: Path, workers: int, told: Callable[[int, int], None]) -> None:
    """Train members of the federations that the folder lacks. told: how many are done, of how many."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [case for case in cases if not _path(folder, case).exists()]
    jobs = [(case, member) for case in missing for member in range(case.members)]
    done: dict[Case, dict[int, tuple[Probabilities, Probabilities]]] = {case: {} for case in missing}
    told(0, len(jobs))
    with ProcessPoolExecutor(workers) as pool:
        for number, ((case, member), said) in enumerate(
            zip(jobs, pool.map(_train_one, jobs), strict=True), 1
        ):
            done[case][member] = said
            if len(done[case]) == case.members:
                pairs = [done[case][index] for index in range(case.members)]
                _write(_path(folder, case), np.stack([a for a, _ in pairs]), np.stack([b for _, b in pairs]))
                del done[case]
            told(number, len(jobs))


def load(case: Case, folder: Path) -> Trained:
    """A federation whose members `train` has trained."""
    split = datasets.split(case.dataset, case.seed)
    with np.load(_path(folder, case), allow_pickle=False) as file:
        return Trained(
            case=case,
            split=split,
            owned=share(split.train_labels, case.members, case.alpha, case.seed),
            on_queries=file["queries"],
            on_public=file["public"],
        )


def inputs(rows: Rows, kind: str, dataset: str) -> Rows:
    """What a model is fed, (n, d)."""
    if kind == "hog":
        from edge_fi.voting.hog import hog

        return hog(rows.astype(np.float64)).astype(np.float32)
    if dataset == "fashion":
        smaller = rows.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)) / 255
        return np.asarray(smaller.reshape(len(rows), -1), np.float32)
    flat = rows.reshape(len(rows), -1)
    return np.asarray(flat / 16 if dataset == "digits" else flat, np.float32)


def recipes() -> dict[str, Callable[[int], Any]]:
    """The kinds of models; member n is of kind n modulo their number. Sizes are those of an edge device."""
    from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return {
        "logistic regression": lambda _: make_pipeline(
            StandardScaler(), LogisticRegression(C=0.05, max_iter=300)
        ),
        "multilayer perceptron": lambda seed: make_pipeline(
            StandardScaler(),
            MLPClassifier((64,), alpha=0.5, max_iter=120, early_stopping=False, random_state=seed),
        ),
        "random forest": lambda seed: RandomForestClassifier(60, max_depth=12, random_state=seed),
        "kernel machine": lambda seed: make_pipeline(
            StandardScaler(), _Nystroem(seed), LogisticRegression(C=3.0, max_iter=300)
        ),
        "extra trees": lambda seed: ExtraTreesClassifier(60, max_depth=14, random_state=seed),
    }


def _Nystroem(seed: int) -> Any:  # noqa: N802 - a class, once it is known how many rows there are
    from sklearn.base import BaseEstimator, TransformerMixin
    from sklearn.kernel_approximation import Nystroem

    class Landmarks(TransformerMixin, BaseEstimator):  # type: ignore[misc]
        """Nystroem features (Williams and Seeger 2001), of no more landmarks than there are rows."""

        def fit(self, rows: Rows, labels: Labels | None = None) -> Any:
            scale = 1 / (rows.shape[1] * max(float(rows.var()), 1e-6))
            self.map_ = Nystroem(gamma=scale, n_components=min(200, len(rows)), random_state=seed).fit(rows)
            return self

        def transform(self, rows: Rows) -> Any:
            return self.map_.transform(rows)

    return Landmarks()


def _train_one(job: tuple[Case, int]) -> tuple[Probabilities, Probabilities]:
    case, member = job
    split = datasets.split(case.dataset, case.seed)
    own = share(split.train_labels, case.members, case.alpha, case.seed)[member]
    kinds = list(recipes().values())
    model = kinds[member % len(kinds)](1000 * case.seed + member)
    classes = len(split.labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of convergence: a device stops when its time is up
        model.fit(inputs(split.train[own], case.inputs, case.dataset), split.train_labels[own])

    def say(rows: Rows) -> Probabilities:
        said = np.zeros((len(rows), classes), np.float32)
        said[:, model.classes_] = model.predict_proba(inputs(rows, case.inputs, case.dataset))
        return said

    return say(split.queries), say(split.public)


def _path(folder: Path, case: Case) -> Path:
    return folder / f"{case.dataset}-{case.inputs}-{case.members}-{case.alpha:g}-{case.seed}-r{RECIPE}.npz"


def _write(path: Path, queries: Probabilities, public: Probabilities) -> None:
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        np.savez_compressed(file, queries=queries, public=public)
    partial.replace(path)
