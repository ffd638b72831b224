"""The demo's picture: one query, what each member says to it, and whom each strategy believes."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.gridspec import GridSpec

from edge_fi.demo.measure import MISLED, weights
from edge_fi.demo.members import DemoMember
from edge_fi.demo.watch import SENSORS
from edge_fi.messages import Array, Outcome, Task, Tensor
from edge_fi.voting.features import as_array
from edge_fi.voting.strategy import DEFAULT, STRATEGIES, stack

# Okabe and Ito 2008: told apart by the colour-blind, too; marks and words say the same as the colours.
RIGHT, WRONG, QUIET, GROUND = "#0072b2", "#d55e00", "#5b6570", "#e8f1f8"
COLUMNS = {"linear": "soft vote", "entropy": "by certainty", "familiarity": "by familiarity"}
_WIDTH_IN, _DPI = 11.0, 150
_ROW_IN = 0.52
_LONG = 2  # characters of a label; beyond, what a member says and what it knows need a line each


def draw(
    path: Path, *, task: Task, tensor: Tensor, truth: int, outcome: Outcome, members: list[DemoMember]
) -> None:
    """Write the picture to this file, in the format that its name ends with."""
    kinds = {member.id: member for member in members}
    votes = outcome.votes
    n = len(votes)
    height = _ROW_IN * n + 2.0
    figure = plt.figure(figsize=(_WIDTH_IN, height))
    grid = GridSpec(
        2, 5, figure, left=0.02, right=0.985, top=1 - 1.05 / height, bottom=0.1 / height,
        width_ratios=[2.1, 4.3, 1.9, 1.9, 1.9], height_ratios=[n, 1.55], wspace=0.06, hspace=0.04,
    )  # fmt: skip
    _query(figure.add_subplot(grid[:, 0]), task, tensor, truth)
    is_long = max(map(len, task.labels)) > _LONG
    words = figure.add_subplot(grid[0, 1])
    _rows(words, n)
    words.set_title("what each member says", fontsize=11, loc="left")
    for row, vote in enumerate(votes):
        member, colour = kinds[vote.device], _colour(vote.label, truth)
        words.text(0, row - 0.16, member.kind, fontsize=11, va="center")
        words.text(
            0, row + 0.2, _known(member, task), fontsize=7.5 if is_long else 8.5, va="center", color=QUIET
        )
        said = _said(task.labels[vote.label], vote.label == truth)
        words.text(
            0.98, row - (0.16 if is_long else 0), said, fontsize=10 if is_long else 12,
            weight="bold", ha="right", va="center", color=colour,
        )  # fmt: skip
    ballots = stack(votes)
    is_right = np.array([vote.label == truth for vote in votes])
    for column, name in enumerate([*reversed(MISLED), DEFAULT], start=2):
        axis, total = figure.add_subplot(grid[0, column]), figure.add_subplot(grid[1, column])
        _rows(axis, n)
        _weights(axis, weights(name, ballots), is_right)
        axis.set_title(COLUMNS[name], fontsize=11, weight="bold" if name == DEFAULT else "normal")
        # As the gateway answered, where it did so by this strategy.
        own = outcome.strategy == name
        pooled = np.array(outcome.probabilities) if own else STRATEGIES[name](ballots)
        _outcome(total, pooled, truth, task)
        if name == DEFAULT:
            axis.set_facecolor(GROUND)
            total.set_facecolor(GROUND)
    together = figure.add_subplot(grid[1, 1])
    together.set_axis_off()
    together.text(
        1, 0.62, "together they say", fontsize=11, ha="right", va="center", transform=together.transAxes
    )
    figure.text(
        0.02, 1 - 0.28 / height, _headline(int((~is_right).sum()), n), fontsize=13, weight="bold", va="center"
    )
    figure.text(
        0.985,
        1 - 0.62 / height,
        "whose word weighs how much",
        fontsize=11,
        color=QUIET,
        ha="right",
        va="center",
    )
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


def _headline(wrong: int, n: int) -> str:
    return f"{wrong} of {n} private models are wrong. Weighed by familiarity, who knows such data is heard."


def _said(label: str, is_right: bool) -> str:
    return f"{label}  {'✓' if is_right else '✗'}"


def _colour(label: int, truth: int) -> str:
    return RIGHT if label == truth else WRONG


def _known(member: DemoMember, task: Task) -> str:
    return "knows " + (" " if max(map(len, task.labels)) <= _LONG else ", ").join(member.labels)


def _rows(axis: Axes, n: int) -> None:
    """An axis of n rows, the first on top, without a frame."""
    axis.set_xlim(0, 1)
    axis.set_ylim(n - 0.5, -0.5)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _query(axis: Axes, task: Task, tensor: Tensor, truth: int) -> None:
    """The image itself, or what a watch felt."""
    content = as_array(tensor)
    if content.ndim == 2:
        axis.imshow(content, cmap="gray_r", interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_title(f"the query: a {task.labels[truth]}", fontsize=11)
        return
    _motion(axis, content)
    axis.set_title(f"the query:\n{task.labels[truth]}", fontsize=11)


def _motion(axis: Axes, content: Array) -> None:
    """What `watch.summary` tells of each sensor axis: its range in four seconds, and its middle."""
    _, _, low, middle, high, *_ = content.reshape(-1, len(SENSORS))
    for row, name in enumerate(SENSORS):
        # Acceleration and turning are in units of their own.
        group = slice(0, 3) if row < 3 else slice(3, 6)
        reach = max(np.abs(low[group]).max(), np.abs(high[group]).max(), 1e-9)
        axis.plot([low[row] / reach, high[row] / reach], [row, row], color=QUIET, lw=5, solid_capstyle="butt")
        axis.plot(middle[row] / reach, row, "o", color="black", ms=5)
        axis.text(-1.1, row - 0.33, name, fontsize=9, va="center", color=QUIET)
    axis.set_xlim(-1.15, 1.15)
    axis.set_ylim(len(SENSORS) - 0.5, -0.8)
    axis.set_xticks([])
    axis.set_yticks([])


def _weights(axis: Axes, shares: Array, is_right: Array) -> None:
    axis.barh(range(len(shares)), shares * 0.72, height=0.56, color=np.where(is_right, RIGHT, WRONG))
    for row, weight in enumerate(shares):
        axis.text(weight * 0.72 + 0.03, row, f"{100 * weight:.0f} %", fontsize=9.5, va="center")


def _outcome(axis: Axes, pooled: Array, truth: int, task: Task) -> None:
    label = int(pooled.argmax())
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
    colour = _colour(label, truth)
    said = _said(task.labels[label], label == truth)
    size = 20 if len(task.labels[label]) <= _LONG else 9.5
    axis.text(0.5, 0.62, said, fontsize=size, weight="bold", ha="center", va="center", color=colour,
              transform=axis.transAxes)  # fmt: skip
    axis.text(0.5, 0.14, f"{100 * pooled[label]:.0f} % sure", fontsize=9.5, ha="center", va="center",
              color=QUIET, transform=axis.transAxes)  # fmt: skip
