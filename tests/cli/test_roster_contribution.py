"""`edge-fi roster contribution`, who is expelled, and what gateway.toml says of canaries."""

import json
from pathlib import Path

import numpy as np
import pytest
from parties import main_here
from stated import join

from edge_fi import config
from edge_fi.adapters import keyfile
from edge_fi.adapters.state import State
from edge_fi.cli.run import load_canaries
from edge_fi.errors import ConfigError
from edge_fi.voting.contribution import Contribution

DIGITS = Path(__file__).parents[2] / "configs" / "tasks" / "digits.toml"
WORTH = Contribution(value=3.25, error=0.5, agreement=12.3, share=0.9)
FREE_RIDER = Contribution(value=0.0, error=0.1, agreement=0.2, share=0.1)


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    ended = main_here(*arguments)
    return ended.code, ended.out, ended.err


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The configuration of a gateway with two devices, about which nothing is known yet."""
    assert run("gateway", "new", "--federation", "acme", "--task", DIGITS, "--out", tmp_path / "acme")[0] == 0
    with opened(tmp_path / "acme") as state:
        join(state, "pi-01")
        join(state, "pi-02")
        join(state, "gone")
        state.revoke("gone")
    return tmp_path / "acme" / "gateway.toml"


def opened(folder: Path) -> State:
    identity = keyfile.read_gateway(folder / "gateway.key")
    return State.open(folder / "state.db", identity.federation, identity.static.public)


def test_nothing_is_known_at_first(path: Path) -> None:
    code, out, _ = run("roster", "contribution", "--config", path)
    assert (code, out) == (0, "nothing is known yet: it takes 40 rounds\n")
    assert "expelled" not in run("roster", "list", "--config", path)[1]


def test_members_are_told_with_their_worth_best_first_and_a_warning(path: Path) -> None:
    with opened(path.parent) as state:
        state.panels.keep_worths(1, 99, {1: WORTH})
        state.panels.keep_worths(1, 120, {1: FREE_RIDER, 2: WORTH, 3: WORTH})
    code, out, err = run("roster", "contribution", "--config", path, "--task", "digits")
    heads, *lines = out.splitlines()
    assert code == 0 and heads.split() == ["id", "task", "points", "share", "agreement", "rounds", "computed"]
    assert lines[0].startswith("pi-02  digits  +3.25 +- 0.50  90.0%  12.3       120     20")
    assert lines[1].startswith("pi-01  digits  +0.00 +- 0.10  10.0%") and len(lines) == 2, (
        "nobody who is gone"
    )
    assert "no label is known" in err and "the ranks mean nothing" in err.replace("\n", " ")
    told = json.loads(run("roster", "contribution", "--config", path, "--json")[1])
    first = told["contributions"][0]
    assert (first["id"], first["index"], first["points"], first["rounds"]) == ("pi-02", 2, 3.25, 120)
    assert "ranks mean nothing" in told["note"]
    code, _, err = run("roster", "contribution", "--config", path, "--task", "letters")
    assert code == 3 and "there is no task letters: digits" in err


def test_who_is_expelled_is_said(path: Path) -> None:
    with opened(path.parent) as state:
        state.panels.keep(1, b"snapshot", frozenset({2}))
        state.panels.keep(77, b"snapshot", frozenset({2}))
    rows = run("roster", "list", "--config", path)[1].splitlines()
    assert [row.endswith(", expelled by the jury of digits, 77") for row in rows] == [False, False, True]
    assert "expelled by the jury of digits, 77" in run("roster", "show", "pi-02", "--config", path)[1]
    told = json.loads(run("roster", "list", "--config", path, "--json")[1])
    assert [its["expelled"] for its in told["members"]] == ["", "digits 77"]


def canaries_of(path: Path, text: str) -> dict[int, object]:
    """What is made of a configuration to which this is appended."""
    beside = path.with_name("with.toml")
    beside.write_text(path.read_text() + text)
    settings = config.load(beside, config.GatewayConfig, {})
    return dict(load_canaries(beside, settings, config.load_tasks(path.parent, settings.tasks)))


def test_canaries_are_read(path: Path) -> None:
    task = config.load_task(DIGITS)
    queries = np.zeros((4, *task.shape), dtype=task.dtype)
    queries[1] = 1
    np.savez(path.parent / "known.npz", queries=queries, labels=np.array([0, 1, 2, 3]))
    (its,) = canaries_of(path, '[canaries.digits]\nfile = "known.npz"\n').values()
    assert its.left == 2, "inputs that are there twice count once"  # type: ignore[attr-defined]
    assert canaries_of(path, "") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[canaries.digits]\nfile = "gone.npz"\n', r"cannot read .*gone\.npz"),
        ('[canaries.digits]\nfile = "shape.npz"\n', "takes"),
        ('[canaries.digits]\nfile = "label.npz"\n', "numbers 0 to 9"),
        ('[canaries.letters]\nfile = "x.npz"\n', "canaries.letters: there is no task letters: digits"),
        ("[canaries.digits]\nbudget = 0.1\n", "canaries.digits.file is missing"),
        ('[canaries.digits]\nfile = "x"\nbudget = 0.9\n', r"canaries.digits.budget: .*0\.5"),
        ('[canaries.digits]\nfile = "x"\nbudge = 0.1\n', "unknown key canaries.digits.budge$"),
    ],
)
def test_canaries_that_do_not_fit_are_named(path: Path, text: str, words: str) -> None:
    task = config.load_task(DIGITS)
    good = np.zeros((2, *task.shape), dtype=task.dtype)
    np.savez(path.parent / "shape.npz", queries=good[:, :1], labels=np.array([0, 1]))
    np.savez(path.parent / "label.npz", queries=good, labels=np.array([0, 10]))
    with pytest.raises(ConfigError, match=words):
        canaries_of(path, text)
