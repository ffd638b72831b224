"""The four real data sets of the study, each split into what members own, what is public, and what is asked.

Nothing is downloaded from a web site: fashion is Debian's `dataset-fashion-mnist` (Xiao, Rasul and Vollgraf
2017, MIT licence), letter is in Debian's `r-cran-mlbench` (Frey and Slate 1991) and read with `rdata`,
watch is in the wheel of `seglearn` (Burns et al. 2018, smartwatch at 50 Hz), digits is in scikit-learn
(Alpaydin and Kaynak 1998).
"""

import gzip
import importlib.util
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_fi.demo.watch import EXERCISES, STEP, WINDOW, summary

FASHION = Path("/usr/share/datasets/fashion-mnist")
LETTER = Path("/usr/lib/R/site-library/mlbench/data/LetterRecognition.rda")
UNSEEN_WEARERS = 3

Rows = NDArray[np.float32]
Labels = NDArray[np.int64]


class MissingDatasetError(Exception):
    """A data set is not on this machine; the message says how to get it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One data set as a federation meets it."""

    name: str
    labels: tuple[str, ...]
    train: Rows
    """What the members' own data are taken from, (n, ...)."""
    train_labels: Labels
    public: Rows
    """Unlabelled, known to everybody. In nobody's training data."""
    queries: Rows
    truth: Labels
    outside: Rows
    """Distributed as `train`, in nobody's training data and not public: to measure what a gate tells."""
    outside_labels: Labels


def cache_folder() -> Path:
    """Where what took long to make is kept: $XDG_CACHE_HOME/edge_fi, or ~/.cache/edge_fi."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "edge_fi"


def split(name: str, seed: int) -> Split:
    """The split of this seed. Raises MissingDatasetError."""
    return {"digits": _digits, "watch": _watch, "fashion": _fashion, "letter": _letter}[name](seed)


def _shuffled(
    name: str, labels: tuple[str, ...], rows: Rows, targets: Labels, sizes: tuple[int, int, int], seed: int
) -> Split:
    train, public, asked = sizes
    order = np.random.default_rng([seed, 1]).permutation(len(rows))
    parts = np.split(order[: train + public + asked], [train, train + public])
    return Split(
        name=name,
        labels=labels,
        train=rows[parts[0]],
        train_labels=targets[parts[0]],
        public=rows[parts[1]],
        queries=rows[parts[2]],
        truth=targets[parts[2]],
        outside=rows[parts[2]],
        outside_labels=targets[parts[2]],
    )


def _digits(seed: int) -> Split:
    from sklearn.datasets import load_digits

    digits = load_digits()
    names = tuple(str(label) for label in range(10))
    rows, targets = digits.images.astype(np.float32), digits.target.astype(np.int64)
    return _shuffled("digits", names, rows, targets, (1097, 200, 500), seed)


def _fashion(seed: int) -> Split:
    rows, targets = _fashion_images("train")
    asked, truth = _fashion_images("t10k")
    random = np.random.default_rng([seed, 1])
    order, chosen = random.permutation(len(rows)), random.permutation(len(asked))[:4000]
    names = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
    return Split(
        name="fashion",
        labels=names,
        train=rows[order[:15_000]],
        train_labels=targets[order[:15_000]],
        public=rows[order[15_000:16_500]],
        queries=asked[chosen],
        truth=truth[chosen],
        outside=asked[chosen],
        outside_labels=truth[chosen],
    )


@cache
def _fashion_images(part: str) -> tuple[Rows, Labels]:
    try:
        images = gzip.decompress((FASHION / f"{part}-images-idx3-ubyte.gz").read_bytes())
        labels = gzip.decompress((FASHION / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    except FileNotFoundError:
        raise MissingDatasetError("fashion: apt-get install dataset-fashion-mnist") from None
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    return pixels.astype(np.float32), np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)


def _letter(seed: int) -> Split:
    rows, targets = _letters()
    names = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return _shuffled("letter", names, rows, targets, (14_500, 1_500, 4_000), seed)


@cache
def _letters() -> tuple[Rows, Labels]:
    try:
        import rdata
    except ImportError:
        raise MissingDatasetError("letter: pip install rdata") from None
    if not LETTER.exists():
        raise MissingDatasetError("letter: apt-get install r-cran-mlbench")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file names no encoding; it is ASCII
        frame = rdata.read_rda(LETTER)["LetterRecognition"]
    targets = np.array([ord(letter) - ord("A") for letter in frame.iloc[:, 0]], np.int64)
    return frame.iloc[:, 1:].to_numpy(np.float32), targets


def _watch(seed: int) -> Split:
    rows, targets, wearers = watch_windows()
    random = np.random.default_rng([seed, 1])
    unseen = random.permutation(np.unique(wearers))[:UNSEEN_WEARERS]
    is_asked = np.isin(wearers, unseen)
    asked = random.permutation(
        np.flatnonzero(is_asked)
    )  # as of a fleet, and not one exercise after the other
    known = random.permutation(np.flatnonzero(~is_asked))
    # Windows overlap: one that is outside has neighbours in somebody's training data.
    public, outside, train = np.split(known, [len(known) // 5, len(known) * 2 // 5])
    return Split(
        name="watch",
        labels=EXERCISES,
        train=rows[train],
        train_labels=targets[train],
        public=rows[public],
        queries=rows[asked],
        truth=targets[asked],
        outside=rows[outside],
        outside_labels=targets[outside],
    )


@cache
def watch_windows() -> tuple[Rows, Labels, Labels]:
    """Features of every window, (n, 6 channels * 9), its exercise and its wearer."""
    series = np.load(_watch_file(), allow_pickle=True).item()
    rows, targets, wearers = [], [], []
    for motion, exercise, wearer in zip(series["X"], series["y"], series["subject"], strict=True):
        for start in range(0, len(motion) - WINDOW + 1, STEP):
            rows.append(summary(motion[start : start + WINDOW]))
            targets.append(int(exercise))
            wearers.append(int(wearer))
    return np.stack(rows), np.array(targets, np.int64), np.array(wearers, np.int64)


def _watch_file() -> Path:
    found = importlib.util.find_spec("seglearn")
    if found is not None and found.submodule_search_locations:
        return Path(found.submodule_search_locations[0]) / "data" / "watch_dataset.npy"
    # Its code needs an old scikit-learn; its data do not. So it is unpacked beside, and never imported.
    folder = cache_folder() / "seglearn"
    path = folder / "seglearn" / "data" / "watch_dataset.npy"
    if not path.exists():
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--target",
            str(folder),
            "seglearn",
        ]
        if subprocess.run(command, check=False).returncode:
            raise MissingDatasetError("watch: pip install --no-deps seglearn")
    return path
