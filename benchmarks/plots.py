"""Draws what `federations.py --json` wrote: accuracy by skew, and what each attack costs.

python benchmarks/plots.py fashion.json letter.json watch.json digits.json --out docs
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
import numpy as np

# Okabe and Ito 2008: told apart by everybody.
SHOWN = {
    "familiarity": ("#0072b2", "o-", 2.6),
    "coverage": ("#009e73", "s--", 1.4),
    "coupled": ("#56b4e9", "d--", 1.4),
    "entropy": ("#d55e00", "^-", 1.6),
    "linear": ("#000000", "x-", 1.2),
    "hard": ("#999999", ".:", 1.2),
    "consensus": ("#cc79a7", "v:", 1.2),
}


def accuracy(reports: list[dict[str, Any]], path: Path) -> None:
    """One panel a data set: accuracy of each strategy, by alpha."""
    names = list(dict.fromkeys(row["dataset"] for report in reports for row in report["results"]))
    figure, axes = plt.subplots(1, len(names), figsize=(3.1 * len(names), 3.3), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        rows = [row for report in reports for row in report["results"] if row["dataset"] == name]
        alphas = sorted({row["alpha"] for row in rows})
        for strategy, (colour, line, width) in SHOWN.items():
            own = {row["alpha"]: row for row in rows if row["strategy"] == strategy}
            means = np.array([own[alpha]["accuracy"] for alpha in alphas])
            spread = np.array([own[alpha]["accuracy_sd"] for alpha in alphas])
            axis.plot(range(len(alphas)), means, line, color=colour, lw=width, ms=5, label=strategy)
            if strategy in ("familiarity", "entropy"):
                axis.fill_between(
                    range(len(alphas)), means - spread, means + spread, color=colour, alpha=0.12
                )
        axis.set_xticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("alpha: small is skewed", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0][0].set_ylabel("right, %")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def attacks(reports: list[dict[str, Any]], path: Path) -> None:
    """Of each attack: accuracy without its liars, with them, and with them and the jury."""
    details = [row for report in reports for row in report["details"] if row.get("liars")]
    if not details:
        return
    figure, axes = plt.subplots(1, len(details), figsize=(6.4 * len(details), 4.6), squeeze=False)
    for axis, told in zip(axes[0], details, strict=True):
        liars = told["liars"]
        places = np.arange(len(liars))
        for offset, (key, colour) in enumerate(
            (("without them", "#999999"), ("undefended", "#d55e00"), ("defended", "#0072b2"))
        ):
            values = [its[key] for its in liars.values()]
            axis.barh(places + 0.27 * (offset - 1), values, 0.25, color=colour, label=key)
        axis.set_yticks(places, list(liars), fontsize=8)
        axis.invert_yaxis()
        axis.set_xlim(0, 100)
        axis.set_title(f"{told['dataset']}, alpha {told['alpha']:g}: right, %", fontsize=10)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0][0].legend(fontsize=8, frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def print_tables(reports: list[dict[str, Any]]) -> None:
    """In Markdown: of each strategy accuracy, and of the chosen ones NLL and ECE; then all other parts."""
    rows = [row for report in reports for row in report["results"]]
    cases = list(dict.fromkeys((row["dataset"], row["inputs"], row["alpha"]) for row in rows))
    named = [f"{name}{' ' + inputs if inputs != 'raw' else ''} {alpha:g}" for name, inputs, alpha in cases]
    strategies = list(dict.fromkeys(row["strategy"] for row in rows))
    for key, digits in (("accuracy", 1), ("nll", 2), ("ece", 1), ("ece_raw", 1)):
        print(f"\n| {key} | " + " | ".join(named) + " |\n|" + "---|" * (len(named) + 1))
        for strategy in strategies:
            own = {
                (row["dataset"], row["inputs"], row["alpha"]): row
                for row in rows
                if row["strategy"] == strategy
            }
            values = [own.get(case, {}) for case in cases]
            told = [
                f"{its[key]:.{digits}f} ± {its[key + '_sd']:.{digits}f}" if key in its else ""
                for its in values
            ]
            print(f"| {strategy} | " + " | ".join(told) + " |")
    details = [row for report in reports for row in report["details"]]
    for part in ("calibration", "codes", "membership", "contribution"):
        with_part = [row for row in details if part in row]
        if not with_part:
            continue
        columns = [f"{row['dataset']} {row['alpha']:g}" for row in with_part]
        print(f"\n| {part} | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
        for name in (key for key in with_part[0][part] if not key.endswith("_sd")):
            told = []
            for its in (row[part] for row in with_part):
                value = its[name]
                told.append(
                    f"{value['ece']:.1f} ({value['nll']:.2f})" if isinstance(value, dict) else f"{value:.3g}"
                )
            print(f"| {name} | " + " | ".join(told) + " |")
    for row in details:
        if row.get("liars"):
            print(
                f"\n| {row['dataset']} {row['alpha']:g} | without them | undefended | defended | honest out |"
            )
            print("|---|---|---|---|---|")
            for name, its in row["liars"].items():
                keys = ("without them", "undefended", "defended")
                told = [f"{its[key]:.1f} ± {its[key + '_sd']:.1f}" for key in keys]
                print(f"| {name} | " + " | ".join(told) + f" | {its['honest expelled at the end']:.2f} |")


def main() -> None:
    """Read, draw, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reports", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.reports]
    print_tables(reports)
    accuracy(reports, arguments.out / "study-accuracy.png")
    attacks(reports, arguments.out / "study-liars.png")


if __name__ == "__main__":
    main()
