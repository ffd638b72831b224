"""The demo's picture: one query, what each member made of it, and the outcome."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from edge_fi.demo.members import DemoMember
from edge_fi.messages import Array, Outcome, Task, Tensor
from edge_fi.wire.votes import size

RIGHT, WRONG, OTHER = "#1b7f4d", "#b3402a", "#b9c0c7"


def draw(
    path: Path, *, task: Task, tensor: Tensor, truth: int, outcome: Outcome, members: list[DemoMember]
) -> None:
    """Write the picture to this file, in the format that its name ends with."""
    kinds = {member.id: member for member in members}
    votes = outcome.votes
    vote_bytes = size(votes[0].form, task.classes)
    figure, axes = plt.subplots(
        1,
        len(votes) + 2,
        figsize=(2.1 * (len(votes) + 2), 3.3),
        width_ratios=[1.1] + [1] * len(votes) + [1.25],
    )
    image = np.frombuffer(tensor.content, task.dtype).reshape(task.shape)
    axes[0].imshow(image, cmap="gray_r", interpolation="nearest")
    axes[0].set_title(f"the query\nshows a {task.labels[truth]}", fontsize=10)
    axes[0].set_xticks([])
    axes[0].set_yticks([])
    for axis, vote in zip(axes[1:], votes, strict=False):
        member = kinds[vote.device]
        verdict = "✓" if vote.label == truth else "✗"
        title = f"{vote.device} says {task.labels[vote.label]} {verdict}\n{member.kind}"
        _bars(axis, vote.probabilities, truth, task, title)
        known = "".join(label if label in member.labels else "·" for label in task.labels)
        axis.set_xlabel(f"knows {known}", fontsize=8, family="monospace")
    pooled = np.array(outcome.probabilities)
    label = task.labels[int(pooled.argmax())]
    _bars(axes[-1], pooled, truth, task, f"together: {label}\n{outcome.strategy}-weighted")
    axes[-1].set_facecolor("#f1f5f9")
    figure.suptitle(
        f"Five private models, each with a vote of {vote_bytes} bytes, sealed: no model and no training "
        "image left its device",
        fontsize=11,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _bars(axis: Axes, probabilities: Array, truth: int, task: Task, title: str) -> None:
    choice = int(probabilities.argmax())
    colours = [OTHER] * task.classes
    colours[choice] = RIGHT if choice == truth else WRONG
    axis.bar(task.labels, probabilities, color=colours)
    axis.set_ylim(0, 1)
    axis.set_yticks([0, 0.5, 1])
    axis.tick_params(labelsize=8)
    axis.set_title(title, fontsize=9)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
