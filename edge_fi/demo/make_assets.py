"""Make the demo's assets: five devices, each with its own kind of model, trained on its own digits only.

Needs the extra `train`. The demo itself runs on the committed files, so this is run only to change them:
`python -m edge_fi.demo.make_assets [--out DIR]`. No training image is written, only held-out ones. Afterwards
`edge_fi.demo.make_gates` gives the members their gates, and needs scikit-learn alone.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.utils import Extractor
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from edge_fi.demo.make_gates import ALPHA, HELDOUT, LABELS, SEED, Images, Labels, load
from edge_fi.errors import ModelError

FULL_INK = 16.0  # the brightest pixel
SCORE_TOLERANCE = 1e-4  # float32 in the graph against float64 in scikit-learn
BATCH_TOLERANCE = 1e-5  # batch sizes may take different kernels, which round differently
# The oldest onnxruntime allowed, 1.20, reads IR 10, opset 21 and ai.onnx.ml 5: stay well below.
IR_VERSION, OPSET, ML_OPSET = 8, 17, 3
CNN_EPOCHS, CNN_BATCHES = 60, 8

TASK = """\
name = "digits"
number = 1
labels = ["0","1","2","3","4","5","6","7","8","9"]
shape = [8, 8]
dtype = "uint8"
features = "digits.features"
description = "Handwritten digits: scikit-learn digits (UCI optical recognition of handwritten digits, \
Alpaydin and Kaynak 1998), 8x8 pixels of 0..16"
"""

Scores = NDArray[np.float64]
Train = Callable[[Images, Labels], "Trained"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A trained model, and the same as ONNX."""

    labels: Labels
    """What its outputs stand for, in order."""
    score: Callable[[Images], Scores]
    model: onnx.ModelProto

    @property
    def scores(self) -> str:
        """Name and meaning of the output: `probabilities` or `logits`."""
        return str(self.model.graph.output[0].name)


def ink(images: Images) -> Images:
    """Pixels in 0..1, as every graph scales them itself."""
    return images / np.float32(FULL_INK)


def build_model(nodes: list[Any], constants: list[Any], *, output: str, n_labels: int) -> onnx.ModelProto:
    """A model from `image` to `output`. `nodes` read `ink`, (n, 8, 8) in 0..1, and give (n, n_labels)."""
    scale = numpy_helper.from_array(np.array(1 / FULL_INK, dtype=np.float32), "scale")
    graph = helper.make_graph(
        [helper.make_node("Mul", ["image", "scale"], ["ink"]), *nodes],
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 8, 8])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", n_labels])],
        [scale, *constants],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="edge_fi")
    onnx.checker.check_model(model, full_check=True)
    return model


def train_sklearn(estimator: Any) -> Train:
    """Training of a scikit-learn classifier."""

    def score(images: Images) -> Scores:
        return np.asarray(estimator.predict_proba(ink(images).reshape(len(images), -1)))

    def train(images: Images, labels: Labels) -> Trained:
        estimator.fit(ink(images).reshape(len(images), -1), labels)
        converted = convert_sklearn(
            estimator,
            name="digits",  # the default is a random one
            initial_types=[("pixels", FloatTensorType([None, 64]))],
            options={"zipmap": False},
            target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
        )
        core = Extractor(converted).extract_model(["pixels"], ["probabilities"]).graph
        model = build_model(
            [helper.make_node("Flatten", ["ink"], ["pixels"]), *core.node],
            list(core.initializer),
            output="probabilities",
            n_labels=len(estimator.classes_),
        )
        return Trained(labels=estimator.classes_, score=score, model=model)

    return train


def train_cnn(images: Images, labels: Labels) -> Trained:
    """Training of a convolutional network of two layers."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # the order of a parallel sum would change the weights
    known, targets = np.unique(labels, return_inverse=True)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(16 * 4 * 4, len(known)),
    )
    inputs, wanted = torch.from_numpy(ink(images)[:, None]), torch.from_numpy(targets)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    random = np.random.default_rng(SEED)
    for _ in range(CNN_EPOCHS):
        for batch in np.array_split(random.permutation(len(inputs)), CNN_BATCHES):
            optimizer.zero_grad()
            torch.autograd.backward(torch.nn.functional.cross_entropy(network(inputs[batch]), wanted[batch]))
            optimizer.step()

    def score(images: Images) -> Scores:
        with torch.no_grad():
            logits = network(torch.from_numpy(ink(images)[:, None]))
        return np.asarray(logits.numpy(), dtype=np.float64)

    return Trained(labels=known, score=score, model=cnn_model(network.state_dict(), n_labels=len(known)))


def cnn_model(weights: dict[str, torch.Tensor], *, n_labels: int) -> onnx.ModelProto:
    """The network of `train_cnn` as ONNX, written by hand: torch's exporter would need one package more."""
    constants = [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in weights.items()]
    constants.append(numpy_helper.from_array(np.array([1], dtype=np.int64), "channel"))
    nodes = [
        helper.make_node("Unsqueeze", ["ink", "channel"], ["plane"]),
        helper.make_node("Conv", ["plane", "0.weight", "0.bias"], ["conv1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv1"], ["relu1"]),
        helper.make_node("Conv", ["relu1", "2.weight", "2.bias"], ["conv2"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv2"], ["relu2"]),
        helper.make_node("MaxPool", ["relu2"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "6.weight", "6.bias"], ["logits"], transB=1),
    ]
    return build_model(nodes, constants, output="logits", n_labels=n_labels)


def verified_scores(device_id: str, trained: Trained, images: Images) -> Scores:
    """What the ONNX model gives for `images`. Raises ModelError where it differs from the trained one."""
    content = trained.model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def infer(batch: Images) -> Scores:
        (scores,) = session.run([trained.scores], {"image": batch})
        return np.asarray(scores, dtype=np.float64)

    scores, expected = infer(images), trained.score(images)
    if scores.shape != expected.shape or not np.allclose(scores, expected, rtol=0, atol=SCORE_TOLERANCE):
        raise ModelError(f"{device_id}: the ONNX scores differ from the trained model's")
    if not np.array_equal(scores.argmax(axis=1), expected.argmax(axis=1)):
        raise ModelError(f"{device_id}: the ONNX labels differ from the trained model's")
    batch = infer(images[:64])
    singles = np.concatenate([infer(image[None]) for image in images[:64]])
    if not np.allclose(batch, singles, rtol=0, atol=BATCH_TOLERANCE):
        raise ModelError(f"{device_id}: a batch of 64 and 64 batches of 1 differ")
    return scores


def votes(trained: Trained, scores: Scores) -> Scores:
    """Probabilities of all the task's labels, (n, 10): 0 for those the device does not know."""
    probabilities = np.zeros((len(scores), LABELS))
    if trained.scores == "logits":
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities[:, trained.labels] = scores / scores.sum(axis=1, keepdims=True)
    return probabilities


def pooled(votes: Scores) -> dict[str, Labels]:
    """Outcomes of the classic rules; votes: (n_devices, n, 10). Ties go to the lower label."""
    safe = np.where(votes > 0, votes, 1.0)
    entropy = -(votes * np.log(safe)).sum(axis=2, keepdims=True)
    weights = 1 - entropy / np.log(LABELS)
    hard = np.eye(LABELS)[votes.argmax(axis=2)]
    return {
        "linear pool": votes.sum(axis=0).argmax(axis=1),
        "entropy weighting": (weights * votes).sum(axis=0).argmax(axis=1),
        "hard vote": hard.sum(axis=0).argmax(axis=1),
    }


def member_table(device_id: str, kind: str, trained: Trained, *, samples: int) -> str:
    """One `[[member]]` table. A JSON string or list of strings is TOML too."""
    return (
        f'[[member]]\nid = "{device_id}"\nmodel = "{device_id}.onnx"\ngate = "{device_id}.gate"\n'
        f'kind = "{kind}"\n'
        f'scores = "{trained.scores}"\nlabels = {json.dumps([str(label) for label in trained.labels])}\n'
        f"samples = {samples}\n"
    )


RECIPES: dict[str, Train] = {
    "logistic regression": train_sklearn(LogisticRegression(max_iter=1000)),
    "multilayer perceptron": train_sklearn(MLPClassifier((32,), max_iter=1000, random_state=SEED)),
    "convolutional network": train_cnn,
    "random forest": train_sklearn(RandomForestClassifier(40, max_depth=8, random_state=SEED)),
    # Not a support vector machine: scikit-learn 1.9 deprecates SVC(probability=True), and its replacement
    # cross-validates, which is not sound where a device has a single sample of a label, as here.
    "gradient boosting": train_sklearn(
        GradientBoostingClassifier(n_estimators=40, max_depth=2, random_state=SEED)
    ),
}


def make_assets(out: Path) -> None:
    """Train, verify and write everything into `out`; print what it is worth."""
    digits = load()
    images, labels, unseen, truth = digits.images, digits.labels, digits.unseen, digits.truth
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / "heldout.npz", images=unseen.astype(np.uint8), labels=truth.astype(np.uint8))
    (out / "digits.toml").write_text(TASK)
    row = "{:<20}{:<23}{:>8}  {:<16}{:>8}{:>10}".format
    print(f"Dirichlet({ALPHA}) shares of seed {digits.seed}; accuracy on {HELDOUT} held-out images")
    print(row("device", "kind", "samples", "labels", "bytes", "accuracy"))
    tables, ballots = [], []
    for number, ((kind, train), own) in enumerate(zip(RECIPES.items(), digits.owned, strict=True), start=1):
        device_id = f"pi-{number:02}"
        trained = train(images[own], labels[own])
        ballot = votes(trained, verified_scores(device_id, trained, unseen))
        content = trained.model.SerializeToString(deterministic=True)
        (out / f"{device_id}.onnx").write_bytes(content)
        tables.append(member_table(device_id, kind, trained, samples=len(own)))
        ballots.append(ballot)
        accuracy = f"{(ballot.argmax(axis=1) == truth).mean():.1%}"
        print(row(device_id, kind, len(own), " ".join(map(str, trained.labels)), len(content), accuracy))
    (out / "members.toml").write_text("\n".join(tables))
    for rule, outcome in pooled(np.stack(ballots)).items():
        print(row(rule, "", "", "", "", f"{(outcome == truth).mean():.1%}"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the demo's models and write its assets.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "assets", metavar="DIR")
    make_assets(parser.parse_args().out)
