"""Every strategy on real data, under label skew: the product's own voting code on members trained here.

    python benchmarks/federations.py --dataset fashion --alpha .1 .5 100 --seeds 5 --json fashion.json

Members are heterogeneous models, each trained on its own Dirichlet(alpha) share; trained once, then kept in
the cache folder. Accuracy and ECE in percent, NLL in nats, over the queries, mean and standard deviation
over the seeds. Every strategy's distribution is calibrated as the gateway does it: after the pool, in the
order of the queries, without labels.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import datasets
import members
import numpy as np
import votes
from attacks import attacks
from contribution import contribution
from disclosure import membership_auc
from machine import describe
from members import Case
from votes import Federation

from edge_fi.demo.measure import calibrated
from edge_fi.messages import Array, Form
from edge_fi.voting import scores
from edge_fi.voting.calibration import Calibrator
from edge_fi.voting.strategy import DEFAULT, STRATEGIES, Ballots, first_choices
from edge_fi.wire import votes as codes

SCALE = (-16, 6)  # of a task with a feature map: what 5 bits of a private gate's claim stand for
CODES = (Form.LABEL, Form.PROBS_2, Form.PROBS_4, Form.PROBS_8, Form.LOGITS_8)
FEEDBACK = (0, 50, 100, 200)  # queries whose answers become known, the first ones
PARTS = ("strategies", "calibration", "codes", "membership", "contribution", "liars")

Row = dict[str, Any]


def strategies(federation: Federation) -> dict[str, dict[str, float]]:
    """Of each strategy, and of the best and the average member alone."""
    truth, result = federation.truth, {}
    for name, strategy in STRATEGIES.items():
        raw, said = calibrated(strategy, federation.ballots())
        result[name] = {
            "accuracy": scores.accuracy(raw, truth),
            "nll": scores.nll(said, truth),
            "ece": scores.ece(said, truth),
            "nll_raw": scores.nll(raw, truth),
            "ece_raw": scores.ece(raw, truth),
        }
    alone = [
        {
            "accuracy": scores.accuracy(own, truth),
            "nll": scores.nll(own, truth),
            "ece": scores.ece(own, truth),
        }
        for own in federation.votes
    ]
    result["best member"] = max(alone, key=lambda its: its["accuracy"])
    result["average member"] = {key: float(np.mean([its[key] for its in alone])) for key in alone[0]}
    return result


def calibration(federation: Federation) -> dict[str, dict[str, float]]:
    """Of the default strategy: as pooled, and calibrated with so many labels; on queries that had none."""
    truth, strategy = federation.truth, STRATEGIES[DEFAULT]
    raw = votes.pooled(strategy, federation.ballots())
    firsts = votes.pooled(strategy, (first_choices(its) for its in federation.ballots()))
    asked = slice(max(FEEDBACK), None)
    result = {
        "none": {"nll": scores.nll(raw[asked], truth[asked]), "ece": scores.ece(raw[asked], truth[asked])}
    }
    for labels in FEEDBACK:
        calibrator, said = Calibrator(), []
        for query, (one, its) in enumerate(zip(raw, firsts, strict=True)):
            calibrator.observe(one, its)
            said.append(calibrator.apply(one))
            if query < labels:
                calibrator.note(one, int(truth[query]))
        told = np.stack(said)[asked]
        result[f"{labels} labels"] = {
            "nll": scores.nll(told, truth[asked]),
            "ece": scores.ece(told, truth[asked]),
        }
    return result


def answer_codes(federation: Federation) -> dict[str, float]:
    """Accuracy of the default by answer code; of private gates, the weights are quantized too."""
    result = {"exact": _accuracy(federation, federation.votes, federation.log_weights)}
    for form, is_private in product(CODES, (False, True)):
        said, weights = np.empty_like(federation.votes), np.array(federation.log_weights)
        classes = federation.votes.shape[2]
        for place in np.ndindex(said.shape[:2]):
            code = codes.quantize(form, federation.votes[place], float(weights[place]), scale=SCALE)
            said[place], claim = codes.dequantize(form, code, classes, scale=SCALE)
            if is_private:
                weights[place] = claim if claim > SCALE[0] else -np.inf
        name = f"{form.title}, {'private' if is_private else 'registered'}"
        result[name] = _accuracy(federation, said, weights)
    return result


def _accuracy(federation: Federation, said: Array, weights: Array) -> float:
    def default(ballots: Ballots) -> Array:
        is_known = np.isfinite(ballots.log_weights).any()
        return STRATEGIES[DEFAULT](ballots) if is_known else STRATEGIES["linear"](ballots)

    return scores.accuracy(votes.pooled(default, federation.ballots(said, weights)), federation.truth)


def study(case: Case, folder: Path, parts: list[str]) -> Row:
    """Everything of one federation."""
    federation = votes.federation(members.load(case, folder))
    result: Row = {"gate_bytes": federation.gate_bytes, "map_bytes": len(federation.features.encoded)}
    if "strategies" in parts:
        result["strategies"] = strategies(federation)
    if "calibration" in parts:
        result["calibration"] = calibration(federation)
    if "codes" in parts:
        result["codes"] = answer_codes(federation)
    if "membership" in parts:
        plain, against = membership_auc(federation, case.seed)
        result["membership"] = {"plain": plain, "calibrated": against}
    if "contribution" in parts:
        result["contribution"] = contribution(federation)
    if "liars" in parts:
        result["liars"] = attacks(federation, case.seed)
    return result


def summary(rows: list[Row]) -> Row:
    """Mean and standard deviation, leaf by leaf."""
    result: Row = {}
    for key, first in rows[0].items():
        if isinstance(first, dict):
            result[key] = summary([row[key] for row in rows])
        else:
            values = [row[key] for row in rows]
            result[key] = round(float(np.mean(values)), 4)
            result[f"{key}_sd"] = round(float(np.std(values, ddof=1)) if len(values) > 1 else 0.0, 4)
    return result


def show(name: str, told: Row) -> None:
    """A table of one data set and alpha."""
    print(f"\n{name}")
    for part, figures in told.items():
        if not isinstance(figures, dict):
            if not part.endswith("_sd"):
                print(f"  {part} {figures:.0f}")
            continue
        print(f"  {part}")
        for row, values in figures.items():
            if isinstance(values, dict):
                shown = [
                    f"{key} {value:.3g} ({values[key + '_sd']:.2g})"
                    for key, value in values.items()
                    if key + "_sd" in values
                ]
                print(f"    {row:<22}{'  '.join(shown)}")
            elif f"{row}_sd" in figures:
                print(f"    {row:<22}{values:.3g} ({figures[row + '_sd']:.2g})")


def main() -> None:
    """Train what is not there, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--dataset", nargs="+", choices=("digits", "watch", "fashion", "letter"), required=True
    )
    parser.add_argument("--members", type=int, choices=(5, 10, 20), default=10)
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.1, 0.5, 100.0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--inputs", choices=("raw", "hog"), default="raw", help="what the models are fed")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    folder = datasets.cache_folder() / "federations"
    cases = {
        (dataset, alpha): [
            Case(
                dataset=dataset,
                members=arguments.members,
                alpha=alpha,
                seed=seed,
                inputs=arguments.inputs,
            )
            for seed in range(arguments.seeds)
        ]
        for dataset, alpha in product(arguments.dataset, arguments.alpha)
    }
    every = [case for group in cases.values() for case in group]
    try:
        members.train(every, folder=folder, workers=arguments.workers, told=_told("members trained"))
    except datasets.MissingDatasetError as error:
        sys.exit(f"this data set is not on this machine: {error}")
    told, results, details = _told("federations measured"), [], []
    done = 0
    for (dataset, alpha), group in cases.items():
        rows = []
        for case in group:
            rows.append(study(case, folder, arguments.parts))
            done += 1
            told(done, len(every))
        figures = summary(rows)
        named = {"dataset": dataset, "inputs": arguments.inputs, "members": arguments.members}
        named |= {"alpha": alpha, "seeds": arguments.seeds}
        show(", ".join(f"{key} {value}" for key, value in named.items()), figures)
        results += [
            {**named, "strategy": strategy, **values}
            for strategy, values in figures.pop("strategies", {}).items()
        ]
        details.append({**named, **figures, "by_seed": rows})
    if arguments.json:
        report = {"machine": describe(), "results": results, "details": details}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def _told(what: str) -> Callable[[int, int], None]:
    """Shows progress on stderr, and on a terminal only its latest state."""
    end = "\r" if sys.stderr.isatty() else "\n"

    def told(done: int, of: int) -> None:
        if of and (end == "\r" or done % max(1, of // 10) == 0):
            print(f"{what}: {done} of {of}", end="\n" if done == of else end, file=sys.stderr, flush=True)

    return told


if __name__ == "__main__":
    main()
