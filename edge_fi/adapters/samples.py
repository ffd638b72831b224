"""Queries from files, with or without labels, checked against their task."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_fi.errors import ConfigError
from edge_fi.messages import Array, Task

Labels = NDArray[np.int64]


def read_queries(path: Path, task: Task) -> Array:
    """(n, *shape): of a .npy, or of `queries` in a .npz. Raises ConfigError."""
    return _queries(path, _load(path, "queries"), task)


def read_labelled(path: Path, labels: Path | None, task: Task) -> tuple[Array, Labels]:
    """(n, *shape) and (n,): a .npz with `queries` and `labels`, or two .npy files. Labels may be names or
    numbers of the task's classes. Raises ConfigError.
    """
    queries = _queries(path, _load(path, "queries"), task)
    told = _load(path if labels is None else labels, "labels")
    shown = path if labels is None else labels
    if told.shape != (len(queries),):
        raise ConfigError(f"{shown}: {len(queries)} queries need as many labels, not {list(told.shape)}")
    if told.dtype.kind == "U":
        unknown = sorted(set(told.tolist()) - set(task.labels))
        if unknown:
            raise ConfigError(
                f"{shown}: label {unknown[0]!r} is none of task {task.name}: {', '.join(task.labels[:20])}"
            )
        return queries, np.array([task.labels.index(label) for label in told.tolist()], np.int64)
    if told.dtype.kind not in "ui" or told.min(initial=0) < 0 or told.max(initial=0) >= task.classes:
        raise ConfigError(
            f"{shown}: labels must be names of task {task.name}, or numbers 0 to {task.classes - 1}"
        )
    return queries, told.astype(np.int64)


def _queries(path: Path, values: NDArray[np.generic], task: Task) -> Array:
    wanted = f"task {task.name} takes {task.dtype} {list(task.shape)}"
    if values.shape[1:] != task.shape or values.dtype.kind not in "buif":
        raise ConfigError(
            f"{path} holds {values.dtype} {list(values.shape)}, but {wanted}, one behind another"
        )
    queries = np.asarray(values, np.float64)
    if not np.isfinite(queries).all():
        raise ConfigError(f"{path} has values that are not finite")
    # As queries will come: of samples scaled otherwise a gate would find every query unfamiliar.
    with np.errstate(all="ignore"):
        cast = queries.astype(task.dtype)
    if cast.dtype.kind in "ui" and not np.array_equal(cast, queries):
        raise ConfigError(f"{path} has values that {task.dtype} cannot hold; {wanted}")
    return cast.astype(np.float64)


def _load(path: Path, name: str) -> NDArray[np.generic]:
    try:
        with path.open("rb") as file:  # np.load leaves it open when it fails
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            return np.asarray(content[name])
    except OSError as error:
        raise ConfigError(f"cannot read {os.path.normpath(path)}: {error.strerror}") from None
    except KeyError:
        raise ConfigError(f"{path} has no array {name!r}: np.savez(file, queries=..., labels=...)") from None
    except Exception:  # numpy's reader raises six unrelated types for a damaged file
        raise ConfigError(f"{path} is neither .npy nor .npz") from None
