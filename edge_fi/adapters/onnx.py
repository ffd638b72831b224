"""ONNX Runtime: loads a model, holds it against its task, runs it on queued queries together.

The only module that imports onnxruntime. From 1.29 on, its plain import on Linux creates a device
identifier in the user's cache folder and calls a collector; the variable below prevents that only if
it is set before the import (tests/adapters/test_telemetry.py watches).
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_fi.errors import ModelError
from edge_fi.messages import Array, Task, Tensor

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime

MAX_BATCH = 64  # beyond this, batching gains little and the first query waits for the last
LEAST_PROBABILITY = 1e-9  # a model's exact 0 would be a logit of minus infinity

Scores = Literal["logits", "probabilities"]

_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}


class OnnxModel:
    """A model that fits its task. One intra-op thread: more only cost CPU on models this small."""

    def __init__(
        self, session: onnxruntime.InferenceSession, output: str, scores: Scores, task: Task
    ) -> None:
        model_input = session.get_inputs()[0]
        self.digest = b""
        self.classes: tuple[int, ...] = ()
        self._session = session
        self._input = model_input.name
        self._type = np.dtype(_TYPES[model_input.type])
        self._batches = not isinstance(model_input.shape[0], int)
        self._output = output
        self._scores = scores
        self._task = task

    @classmethod
    def load(
        cls,
        path: Path,
        task: Task,
        *,
        labels: Sequence[str] | None = None,
        scores: Scores = "logits",
        output: str | None = None,
    ) -> "OnnxModel":
        """Load and check. labels: the task's labels that the outputs stand for, in order; all of
        them if None. output: the name of the output to read, where there are several.

        Raises ModelError, which names the file, what does not fit, and the next step.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ModelError(
                f"cannot read model {os.path.normpath(path)}: {error.strerror}; check 'path' in [model]"
            ) from None
        path = Path(os.path.normpath(path))  # as messages show it
        try:
            session = _session(content)
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types
            raise ModelError(
                f"{path} is not a model that ONNX Runtime loads: {_reason(error)}; check 'path' in [model]"
            ) from None
        _check_input(path, session, task)
        model = cls(session, _find_output(path, session, output), scores, task)
        model.digest = hashlib.blake2b(content, digest_size=8, person=b"fi1 model").digest()
        model.classes = _match_labels(path, task, labels)
        model._probe(path)
        return model

    def infer(self, tensors: Sequence[Tensor]) -> list[Array | None]:
        """Logits of each tensor, (model classes,), or None where the model failed on it."""
        results: list[Array | None] = []
        step = MAX_BATCH if self._batches else 1
        for start in range(0, len(tensors), step):
            results += self._run(tensors[start : start + step])
        return results

    def _run(self, tensors: Sequence[Tensor]) -> list[Array | None]:
        try:
            return list(self._logits(self._batch(tensors)))
        except Exception:  # as above; one bad input must not take its batch along
            if len(tensors) == 1:
                return [None]
            return [self._run([tensor])[0] for tensor in tensors]

    def _batch(self, tensors: Sequence[Tensor]) -> NDArray[np.generic]:
        joined = b"".join(tensor.content for tensor in tensors)
        batch = np.frombuffer(joined, np.dtype(self._task.dtype).newbyteorder("<"))
        return batch.reshape(-1, *self._task.shape).astype(self._type)

    def _logits(self, batch: NDArray[np.generic]) -> Array:
        scores = self._session.run([self._output], {self._input: batch})[0]
        scores = np.asarray(scores, np.float64)
        if self._scores == "logits":
            return scores
        return np.asarray(np.log(np.maximum(scores, LEAST_PROBABILITY)))

    def _probe(self, path: Path) -> None:
        """Run once on made-up inputs: the shape of the output, and what its numbers look like."""
        size = int(np.prod(self._task.shape))
        # Small whole numbers: every element type can hold them.
        patterns = np.stack([np.zeros(size), np.arange(size) % 17, np.arange(size) * 7 % 13])
        batch = patterns.reshape(-1, *self._task.shape).astype(self._type)
        try:
            parts = [batch] if self._batches else [batch[i : i + 1] for i in range(len(batch))]
            rows = [self._session.run([self._output], {self._input: part})[0] for part in parts]
            scores = np.concatenate(rows).astype(np.float64)
        except Exception as error:
            raise ModelError(
                f"{path} fails on an input of task {self._task.name}: {_reason(error)}"
            ) from None
        if scores.shape != (len(batch), len(self.classes)):
            outputs = scores.shape[-1] if scores.ndim > 1 else 1
            raise ModelError(
                f"{path} gives {outputs} scores a query, but stands for {len(self.classes)} labels of "
                f"task {self._task.name}: name in 'labels' the one that each score is for, in order"
            )
        finite = np.isfinite(scores).all()
        sums_to_1 = np.abs(scores.sum(axis=1) - 1).max() < 1e-3 and scores.min() >= 0
        if self._scores == "probabilities" and finite and not sums_to_1:
            raise ModelError(
                f"{path}: output {self._output} does not sum to 1, so it gives no probabilities; "
                f"set scores = 'logits'"
            )
        if self._scores == "logits" and finite and sums_to_1:
            raise ModelError(
                f"{path}: output {self._output} sums to 1, so it gives probabilities and not logits; "
                f"set scores = 'probabilities'"
            )


def embedding(content: bytes, name: str) -> Callable[[Array], Array]:
    """Runs a feature map's network: (n, *shape) into (n, d). name: of it, in errors. Raises ModelError."""
    try:
        session = _session(content)
        (its_input,) = session.get_inputs()
        (its_output, *_) = session.get_outputs()
        element = np.dtype(_TYPES[its_input.type])
    except Exception as error:  # as below
        raise ModelError(f"{name} is no network of one input: {_reason(error)}") from None

    def run(queries: Array) -> Array:
        step = 1 if isinstance(its_input.shape[0], int) else MAX_BATCH
        try:
            parts = [
                session.run(
                    [its_output.name], {its_input.name: queries[start : start + step].astype(element)}
                )[0]
                for start in range(0, len(queries), step)
            ]
        except Exception as error:
            raise ModelError(f"{name} fails on a query: {_reason(error)}") from None
        return np.concatenate(parts).reshape(len(queries), -1).astype(np.float64)

    return run


def load_embedding(path: Path) -> tuple[bytes, Callable[[Array], Array]]:
    """A network from its file, and what runs it. Raises ModelError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {os.path.normpath(path)}: {error.strerror}; check --network") from None
    return content, embedding(content, os.path.normpath(path))


def _session(content: bytes) -> onnxruntime.InferenceSession:
    """One thread, and no word on stderr: what is wrong is an exception, and told by whoever called."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _reason(error: Exception) -> str:
    """The first line of an error of ONNX Runtime; its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _check_input(path: Path, session: onnxruntime.InferenceSession, task: Task) -> None:
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(one.name for one in inputs) or "none"
        raise ModelError(f"{path} must have one input, a batch of queries, but has: {names}")
    (only,) = inputs
    wanted = f"task {task.name} asks {task.dtype} {list(task.shape)}"
    if only.type not in _TYPES or not np.can_cast(task.dtype, _TYPES[only.type], "safe"):
        raise ModelError(
            f"{path}: input {only.name} is {only.type}, but {wanted}; "
            f"export the model with an input that holds {task.dtype} without loss"
        )
    sizes = only.shape[1:]
    fits = len(only.shape) == len(task.shape) + 1 and all(
        not isinstance(size, int) or size == expected
        for size, expected in zip(sizes, task.shape, strict=True)
    )
    if not fits or (isinstance(only.shape[0], int) and only.shape[0] != 1):
        raise ModelError(
            f"{path}: input {only.name} has shape {only.shape}, but {wanted} behind a batch axis; "
            f"export the model with input shape ['batch', {', '.join(map(str, task.shape))}]"
        )


def _find_output(path: Path, session: onnxruntime.InferenceSession, output: str | None) -> str:
    names = [one.name for one in session.get_outputs()]
    if output is None and len(names) == 1:
        return str(names[0])
    if output in names:
        return str(output)
    wrong = "has several outputs" if output is None else f"has no output {output!r}"
    raise ModelError(f"{path} {wrong}: set 'output' to one of {', '.join(names)}")


def _match_labels(path: Path, task: Task, labels: Sequence[str] | None) -> tuple[int, ...]:
    if labels is None:
        return tuple(range(task.classes))
    for label in labels:
        if label not in task.labels:
            raise ModelError(
                f"{path}: label {label!r} is none of task {task.name}: {', '.join(task.labels[:20])}"
            )
    if not labels or len(set(labels)) != len(labels):
        raise ModelError(f"{path}: 'labels' must name each label once, and one at least")
    return tuple(task.labels.index(label) for label in labels)
