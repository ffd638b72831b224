"""Make the watch demo's assets: seven wearers, each with a plan of exercises and a model of these alone.

Needs the extra `train` (not torch) and the file of seglearn's wheel, `pip install --no-deps seglearn`:
`python -m edge_fi.demo.make_watch [--data FILE] [--out DIR]`. In the data every wearer does all seven
exercises; that each does three is our split. No window that a model was trained on is written. `--draws 6`
writes nothing, and says how it goes with other draws of who asks: one draw is an anecdote.
"""

import argparse
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx.utils import Extractor
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import ExtraTreesClassifier, GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from edge_fi.demo.make_gates import write_gate, write_map
from edge_fi.demo.members import WATCH
from edge_fi.demo.watch import EXERCISES, Labels, Rows, windows
from edge_fi.errors import ModelError
from edge_fi.voting import features, gate, scores
from edge_fi.voting.features import FeatureMap
from edge_fi.voting.strategy import STRATEGIES, Ballots

SEED = 0  # of everything; not chosen, simply the first
N_DEVICES = 7  # the wearers; those of the other three ask
PLANS = [sorted((i, (i + 1) % 7, (i + 3) % 7)) for i in range(N_DEVICES)]
"""Exercises of each wearer: the Fano plane, so that three wearers know each, and no two the same pair."""
PUBLIC_SHARE = 5  # one in so many of the devices' windows is public, and in nobody's training data
PUBLIC = 500  # windows of these
ASKED = 300
KIND = "columns"
SCORE_TOLERANCE = 1e-4  # float32 in the graph against float64 in scikit-learn
OPSET, ML_OPSET = 17, 3

TASK = f"""\
name = "watch"
number = 2
labels = {json.dumps(EXERCISES)}
shape = [54]
dtype = "float32"
features = "watch.features"
description = "Shoulder exercises by the motion of a smartwatch: seglearn's watch data (Burns et al. 2018), \
features of four seconds at 50 Hz"
"""


def recipes() -> dict[str, Any]:
    """A kind of model for each wearer. No nearest neighbours: such a model is its training data."""
    return {
        "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=300)),
        "multilayer perceptron": make_pipeline(
            StandardScaler(), MLPClassifier((32,), alpha=0.5, max_iter=1000, random_state=SEED)
        ),
        "random forest": RandomForestClassifier(40, max_depth=8, random_state=SEED),
        "gradient boosting": GradientBoostingClassifier(n_estimators=30, max_depth=2, random_state=SEED),
        "extra trees": ExtraTreesClassifier(30, max_depth=8, random_state=SEED),
        "linear discriminant": make_pipeline(
            StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1)
        ),
        "naive Bayes": make_pipeline(StandardScaler(), GaussianNB(var_smoothing=0.1)),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """Whose windows are whose, as indices."""

    owned: list[NDArray[np.intp]]
    public: NDArray[np.intp]
    asked: NDArray[np.intp]


def draw(exercises: Labels, wearers: Labels, seed: int) -> Drawn:
    """Who is a device, who asks, what is public."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(np.unique(wearers)))
    devices, asking = order[:N_DEVICES], order[N_DEVICES:]
    is_public = np.zeros(len(wearers), dtype=bool)
    is_public[random.permutation(len(wearers))[: len(wearers) // PUBLIC_SHARE]] = True
    return Drawn(
        owned=[
            np.flatnonzero((wearers == wearer) & np.isin(exercises, plan) & ~is_public)
            for wearer, plan in zip(devices, PLANS, strict=True)
        ],
        public=random.permutation(np.flatnonzero(np.isin(wearers, devices) & is_public))[:PUBLIC],
        asked=random.permutation(np.flatnonzero(np.isin(wearers, asking)))[:ASKED],
    )


def export(device_id: str, model: Any, rows: Rows) -> bytes:
    """As ONNX. Raises ModelError where that says anything else of these rows."""
    converted = convert_sklearn(
        model,
        name="watch",  # the default is a random one
        initial_types=[("motion", FloatTensorType([None, rows.shape[1]]))],
        options={id(model): {"zipmap": False}},
        target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
    )
    only = Extractor(converted).extract_model(["motion"], ["probabilities"])
    content = bytes(only.SerializeToString(deterministic=True))
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (scores,) = session.run(["probabilities"], {"motion": rows})
    differ = np.abs(np.asarray(scores, np.float64) - model.predict_proba(rows)).max(axis=1) > SCORE_TOLERANCE
    # A tree's threshold may lie between a float64 and its float32.
    if differ.mean() > 0.01:
        raise ModelError(f"{device_id}: the ONNX scores differ from the trained model's")
    return content


def find_data() -> Path:
    """The file of an installed seglearn, whose code is not run. Raises ModelError."""
    found = importlib.util.find_spec("seglearn")
    if found is None or not found.submodule_search_locations:
        raise ModelError("watch_dataset.npy is missing: pip install --no-deps seglearn, or give --data")
    return Path(found.submodule_search_locations[0]) / "data" / "watch_dataset.npy"


def make_watch(out: Path, data: Path, told: Callable[[str], None] = print) -> None:
    """Train, verify and write everything into `out`; tell what it is worth."""
    rows, exercises, wearers = windows(data)
    drawn = draw(exercises, wearers, SEED)
    asked, truth = rows[drawn.asked], exercises[drawn.asked]
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / "heldout.npz", queries=asked, labels=truth.astype(np.uint8))
    (out / "watch.toml").write_text(TASK, encoding="utf-8")
    shared = write_map(out / WATCH.features_name, rows[drawn.public], kind=KIND)
    tables = []
    for number, ((kind, model), own) in enumerate(zip(recipes().items(), drawn.owned, strict=True), start=1):
        device_id = f"watch-{number:02}"
        model.fit(rows[own], exercises[own])
        content = export(device_id, model, asked)
        (out / f"{device_id}.onnx").write_bytes(content)
        size = write_gate(out / f"{device_id}.gate", rows[own], exercises[own], shared, len(EXERCISES))
        known = [EXERCISES[label] for label in model.classes_]
        tables.append(_table(device_id, kind, known, samples=len(own)))
        right = (model.predict(asked) == truth).mean()
        told(f"{device_id} {kind}: {len(content)} bytes, gate {size}, right {right:.1%}, {known}")
    (out / "members.toml").write_text("\n".join(tables), encoding="utf-8")


def accuracies(data: Path, seed: int) -> dict[str, float]:
    """Percent right, by strategy, with this draw of who asks; from exact votes and without a jury."""
    rows, exercises, wearers = windows(data)
    drawn = draw(exercises, wearers, seed)
    classes = len(EXERCISES)
    fitted = gate.anchored(features.fit(rows[drawn.public].astype(np.float64), kind=KIND))
    shared = FeatureMap.decode(fitted.encoded)
    places, asked = shared.rows(rows.astype(np.float64)), rows[drawn.asked]
    said = np.zeros((N_DEVICES, len(asked), classes))
    log_weights = np.zeros((N_DEVICES, len(asked)))
    for device, (model, own) in enumerate(zip(recipes().values(), drawn.owned, strict=True)):
        model.fit(rows[own], exercises[own])
        said[device][:, model.classes_] = model.predict_proba(asked)
        its_gate = gate.fit(places[own], exercises[own], shared, classes=classes)
        log_weights[device] = its_gate.weigh_all(places[drawn.asked], shared)
    coverage = np.stack([np.bincount(exercises[own], minlength=classes) for own in drawn.owned]).astype(float)
    rounds = [Ballots(said[:, n], log_weights[:, n], coverage) for n in range(len(asked))]
    return {
        name: scores.accuracy(np.stack([strategy(its) for its in rounds]), exercises[drawn.asked])
        for name, strategy in STRATEGIES.items()
    }


def show_draws(data: Path, draws: int, told: Callable[[str], None] = print) -> None:
    """Mean and standard deviation of each strategy's accuracy."""
    measured = [accuracies(data, seed) for seed in range(draws)]
    for name in STRATEGIES:
        values = [its[name] for its in measured]
        each = " ".join(f"{value:.1f}" for value in values)
        told(f"{name:<12}{np.mean(values):6.1f} +- {np.std(values, ddof=1):.1f}   {each}")


def _table(device_id: str, kind: str, known: list[str], *, samples: int) -> str:
    return (
        f'[[member]]\nid = "{device_id}"\nmodel = "{device_id}.onnx"\ngate = "{device_id}.gate"\n'
        f'kind = "{kind}"\nscores = "probabilities"\nlabels = {json.dumps(known)}\nsamples = {samples}\n'
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the watch demo's models and write its assets.")
    parser.add_argument("--out", type=Path, default=WATCH.folder, metavar="DIR")
    parser.add_argument("--data", type=Path, metavar="FILE", help="Default: of the installed seglearn.")
    parser.add_argument("--draws", type=int, metavar="N", help="Measure N draws of who asks; write nothing.")
    arguments = parser.parse_args()
    if arguments.draws:
        show_draws(arguments.data or find_data(), arguments.draws)
    else:
        make_watch(arguments.out, arguments.data or find_data())
