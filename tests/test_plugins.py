"""Strategies of others: named by an entry point, loaded when asked for."""

import re
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_fi import config, plugins
from edge_fi.errors import ConfigError
from edge_fi.voting.strategy import STRATEGIES, Ballots, linear


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five plug-ins, of which one is sound."""
    named = {
        "mean": "edge_fi.voting.strategy:linear",
        "gone": "edge_fi_nowhere:strategy",
        "number": "edge_fi.voting.strategy:_DAMPING",
        "hard": "edge_fi.voting.strategy:linear",
        "größe": "edge_fi.voting.strategy:linear",
    }
    entries = tuple(EntryPoint(name, value, plugins.GROUP) for name, value in named.items())
    monkeypatch.setattr(plugins, "entry_points", lambda group: entries if group == plugins.GROUP else ())


def test_without_plug_ins_there_is_the_table() -> None:
    assert plugins.strategies("familiarity") is STRATEGIES


@pytest.mark.usefixtures("installed")
def test_a_plug_in_is_known_by_name_and_added_when_asked_for() -> None:
    assert plugins.names() == ["gone", "größe", "hard", "mean", "number"]
    assert plugins.strategies("linear") is STRATEGIES
    assert plugins.strategies("mean")["mean"] is linear and "hard" in plugins.strategies("mean")
    assert config.Round(strategy="mean").policy().strategy == "mean"


def test_a_built_in_name_is_known_without_a_look_at_what_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def look(group: str) -> None:
        raise AssertionError

    monkeypatch.setattr(plugins, "entry_points", look)
    assert config.Round(strategy="entropy").policy().strategy == "entropy"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gone", "does not load"),
        ("number", "is no function"),
        ("hard", "has the name of a strategy"),
        ("größe", "not ASCII"),
    ],
)
def test_a_plug_in_that_is_none_is_refused(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plugins.strategies(name)


def test_the_example_of_the_page_is_a_strategy() -> None:
    page = (Path(__file__).parents[1] / "docs" / "familiarity.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"(?s)```python\n(.*?)```", page)
    names: dict[str, Any] = {}
    exec(code, names)
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]])
    ballots = Ballots(probabilities, np.array([-9.0, 0.0, np.nan, -np.inf]), np.full((4, 2), np.nan))
    pooled = names["trimmed"](ballots)
    assert pooled.tolist() == pytest.approx(probabilities[[0, 1, 2]].mean(axis=0).tolist())
    assert pooled.sum() == pytest.approx(1)
