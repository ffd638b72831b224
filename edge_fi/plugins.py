"""Strategies of others: functions of Ballots that an installed package names under `edge_fi.strategies`.

In the package's pyproject.toml:

    [project.entry-points."edge_fi.strategies"]
    cautious = "my_package:cautious"
"""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points

from edge_fi.errors import ConfigError
from edge_fi.voting.strategy import STRATEGIES, Strategy

GROUP = "edge_fi.strategies"


def names() -> list[str]:
    """Of the installed plug-ins; none is loaded."""
    return sorted(_found())


def strategies(wanted: str) -> Mapping[str, Strategy]:
    """The built-in table, and in it the plug-in of this name where it is one.

    Raises ConfigError: it does not load, is no function, or has a name that is not ASCII or a built-in one's.
    """
    entry = _found().get(wanted)
    if entry is None:
        return STRATEGIES
    if not wanted.isascii():  # it travels in each outcome
        raise ConfigError(f"the plug-in {entry.value} has a name that is not ASCII, {wanted!r}: rename it")
    if wanted in STRATEGIES:
        raise ConfigError(
            f"the plug-in {entry.value} has the name of a strategy of edge_fi, {wanted}: rename it"
        )
    try:
        strategy = entry.load()
    except Exception as error:  # whatever its module raises
        raise ConfigError(f"strategy {wanted}: the plug-in {entry.value} does not load: {error}") from None
    if not callable(strategy):
        raise ConfigError(f"strategy {wanted}: {entry.value} is no function of Ballots")
    return {**STRATEGIES, wanted: strategy}


def _found() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
