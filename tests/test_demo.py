"""The demo: its files are what its scripts make, its picture tells the truth, and it runs over a broker."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_fi.demo import picture
from edge_fi.demo.measure import Figures, weights
from edge_fi.demo.members import DIGITS, SCENARIOS, WATCH, Scenario
from edge_fi.messages import Array, Form, Outcome, Status, Vote
from edge_fi.voting.features import FeatureMap
from edge_fi.voting.gate import Gate
from edge_fi.voting.strategy import STRATEGIES, stack

BOTH = pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)


def vote(device: str, label: int, top: float, log_weight: float, *, classes: int = 10) -> Vote:
    probabilities = np.full(classes, (1 - top) / (classes - 1))
    probabilities[label] = top
    return Vote(device, probabilities, log_weight, Form.LABEL)


def outcome(*votes: Vote) -> Outcome:
    pooled = STRATEGIES["familiarity"](stack(votes))
    return Outcome(
        status=Status.ANSWERED,
        label=int(pooled.argmax()),
        probabilities=tuple(pooled.tolist()),
        strategy="familiarity",
        votes=votes,
    )


def told_by_one(n_wrong: int, *, wrong_top: float = 0.95, gap: float = 6.0) -> Outcome:
    """One member says 3 and is familiar; so many others say 1, and are not."""
    others = [vote(f"pi-{number + 2:02}", 1, wrong_top, -gap) for number in range(n_wrong)]
    return outcome(vote("pi-01", 3, 0.6, 0.0), *others)


def test_gates_and_map_of_the_digits_are_made_again_byte_by_byte(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from edge_fi.demo.make_gates import make_gates

    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
        make_gates(folder, told=lambda line: None)
    made, again = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert made == again
    assert set(made) == {DIGITS.features_name, *(member.gate for member in DIGITS.members())}
    kept = {name: (DIGITS.folder / name).read_bytes() for name in made}
    if made[DIGITS.features_name] == kept[DIGITS.features_name]:
        assert made == kept
    # Another processor's linear algebra rounds otherwise, and the axes may turn round: the weights remain.
    assert np.abs(log_weights(made) - log_weights(kept)).mean() < 1.0


def log_weights(files: dict[str, bytes]) -> Array:
    """Of each member, at each image that is asked."""
    features = FeatureMap.decode(files[DIGITS.features_name])
    rows = np.stack([features.row(tensor) for tensor in DIGITS.asked()[0]])
    gates = [Gate.decode(files[member.gate], features) for member in DIGITS.members()]
    return np.stack([gate.weigh_all(rows, features) for gate in gates])


@BOTH
def test_every_gate_is_of_the_tasks_map_and_of_what_its_member_knows(scenario: Scenario) -> None:
    task, features = scenario.task(), scenario.features()
    assert task.features == features.digest
    for member in scenario.members():
        gate = Gate.decode((scenario.folder / member.gate).read_bytes(), features)
        assert [task.labels[label] for label in np.flatnonzero(gate.coverage)] == member.labels
        assert gate.coverage.sum() == member.samples


@BOTH
def test_no_public_query_is_asked(scenario: Scenario) -> None:
    tensors, truth = scenario.asked()
    assert len(tensors) == len(truth) == 300
    known = {label for member in scenario.members() for label in member.labels}
    assert known == set(scenario.task().labels), "every label is known to somebody"


def test_the_watch_assets_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in WATCH.folder.iterdir()}
    assert sum(sizes.values()) < 600_000
    assert max(size for name, size in sizes.items() if name.endswith(".onnx")) < 100_000
    assert "BSD" in (WATCH.folder / "NOTICE").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["familiarity", "entropy", "linear"])
def test_the_weights_in_the_picture_are_those_of_the_strategy(name: str) -> None:
    ballots = stack(told_by_one(3).votes)
    shares = weights(name, ballots)
    assert shares.sum() == pytest.approx(1)
    assert shares @ ballots.probabilities == pytest.approx(STRATEGIES[name](ballots))


def test_the_picture_shows_a_query_on_which_familiarity_alone_is_right() -> None:
    everybody_right = outcome(*(vote(f"pi-{number:02}", 3, 0.9, 0.0) for number in range(5)))
    familiarity_wrong = told_by_one(4, gap=-6.0)
    figures = Figures(np.full(5, 3))
    few, most = told_by_one(2), told_by_one(4)
    figures.outcomes = dict(enumerate([everybody_right, familiarity_wrong, few, most, most]))
    assert figures.most_telling() == 3, "most members wrong, and the first of such"
    figures.outcomes = {0: everybody_right, 1: familiarity_wrong}
    assert figures.most_telling() == 0


def test_the_default_stands_first_and_the_others_by_accuracy() -> None:
    figures = Figures(np.full(3, 3))
    figures.outcomes = dict(enumerate([told_by_one(4)] * 3))
    names, told = zip(*figures.strategy_scores().items(), strict=True)
    assert names[0] == "familiarity" and told[0].accuracy == 100
    accuracies = [its.accuracy for its in told[1:]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert figures.answered_accuracy() == 100


@BOTH
def test_a_picture_is_drawn(scenario: Scenario, tmp_path: Path) -> None:
    task = scenario.task()
    tensors, truth = scenario.asked()
    members = scenario.members()
    votes = [
        vote(member.id, task.labels.index(member.labels[-1]), 0.8, -float(place), classes=task.classes)
        for place, member in enumerate(members)
    ]
    path = tmp_path / "one.png"
    picture.draw(
        path,
        task=task,
        tensor=tensors[0],
        truth=int(truth[0]),
        outcome=outcome(*votes),
        members=members,
    )
    assert path.read_bytes().startswith(b"\x89PNG")


@BOTH
def test_a_short_demo_runs_over_a_broker(scenario: Scenario, tmp_path: Path) -> None:
    command = ["demo", "--scenario", scenario.name, "--queries", "5", "--json", "figures.json"]
    done = subprocess.run(
        [sys.executable, "-m", "edge_fi", *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["scenario"] == scenario.name and figures["rounds"] == 5
    assert figures["lost"] == 0 and figures["rejected"] == {}
    assert next(iter(figures["strategies"])) == "familiarity"
    assert len(figures["devices"]) == len(scenario.members())
    assert (tmp_path / "edge-fi-demo.png").read_bytes().startswith(b"\x89PNG")
