"""Models: loaded, held against their task, run in batches."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_fi.adapters.onnx import MAX_BATCH, OnnxModel, embedding, load_embedding
from edge_fi.demo.members import ASSETS, heldout, members
from edge_fi.demo.members import task as digits
from edge_fi.errors import ModelError
from edge_fi.messages import Task, Tensor

TASK = Task(name="sorts", number=1, labels=("a", "b", "c"), shape=(2,), dtype="uint8")


def save(
    path: Path,
    *,
    shape: list[int | str] | None = None,
    element: int = TensorProto.FLOAT,
    classes: int = 3,
    softmax: bool = False,
    outputs: int = 1,
    bias: float = 0.0,
) -> Path:
    """A linear model: scores = input @ weights + bias."""
    shape = ["batch", 2] if shape is None else shape
    size = shape[-1] if isinstance(shape[-1], int) else 2
    weights = np.arange(size * classes, dtype=np.float32).reshape(size, classes)
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["s"]),
        helper.make_node("Softmax" if softmax else "Identity", ["s"], ["scores"]),
        helper.make_node("Identity", ["s"], ["other"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", element, shape)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [shape[0], classes])
            for name in ("scores", "other")[:outputs]
        ],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.full(classes, bias, np.float32), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def tensor(first: int, second: int) -> Tensor:
    return Tensor("uint8", (2,), bytes([first, second]))


def test_logits_are_what_the_graph_computes(tmp_path: Path) -> None:
    model = OnnxModel.load(save(tmp_path / "m.onnx"), TASK)
    (scores,) = model.infer([tensor(1, 2)])
    assert scores is not None
    assert scores.tolist() == [6.0, 9.0, 12.0]
    assert model.classes == (0, 1, 2)


def test_a_batch_gives_what_single_queries_give(tmp_path: Path) -> None:
    model = OnnxModel.load(save(tmp_path / "m.onnx"), TASK)
    tensors = [tensor(i % 200, i % 7) for i in range(MAX_BATCH + 5)]
    together = model.infer(tensors)
    assert len(together) == MAX_BATCH + 5
    for one, its_scores in zip(tensors, together, strict=True):
        (alone,) = model.infer([one])
        assert its_scores is not None and alone is not None
        assert its_scores.tolist() == alone.tolist()


def test_a_model_of_batch_one_is_run_one_by_one(tmp_path: Path) -> None:
    model = OnnxModel.load(save(tmp_path / "m.onnx", shape=[1, 2]), TASK)
    scores = model.infer([tensor(1, 2), tensor(0, 1)])
    assert [None if row is None else row.tolist() for row in scores] == [[6, 9, 12], [3, 4, 5]]


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    one = OnnxModel.load(save(tmp_path / "1.onnx"), TASK)
    other = OnnxModel.load(save(tmp_path / "2.onnx", bias=1.0), TASK)
    again = OnnxModel.load(save(tmp_path / "3.onnx"), TASK)
    assert len(one.digest) == 8
    assert one.digest == again.digest != other.digest


def test_probabilities_become_logits_and_zero_stays_finite(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", softmax=True)
    model = OnnxModel.load(path, TASK, scores="probabilities")
    (scores,) = model.infer([tensor(200, 200)])
    assert scores is not None
    assert np.isfinite(scores).all()
    assert scores[2] == pytest.approx(0.0, abs=1e-6)
    assert scores[0] == pytest.approx(np.log(1e-9))


def test_a_model_may_know_only_some_labels(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", classes=2)
    assert OnnxModel.load(path, TASK, labels=["c", "a"]).classes == (2, 0)


def test_a_named_output_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", softmax=True, outputs=2)
    model = OnnxModel.load(path, TASK, output="other")
    (scores,) = model.infer([tensor(1, 2)])
    assert scores is not None and scores.tolist() == [6.0, 9.0, 12.0]


def test_one_query_that_fails_does_not_take_its_batch_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = OnnxModel.load(save(tmp_path / "m.onnx"), TASK)
    bad = Tensor("uint8", (2,), b"\x01")  # as no frame lets through; stands for any failure
    scores = model.infer([tensor(1, 2), bad, tensor(0, 1)])
    assert [None if row is None else row.tolist() for row in scores] == [[6, 9, 12], None, [3, 4, 5]]


@pytest.mark.parametrize(
    "element", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.UINT8]
)
def test_an_input_that_holds_the_tasks_elements_without_loss_is_taken(tmp_path: Path, element: int) -> None:
    model = OnnxModel.load(save(tmp_path / "m.onnx", element=element), TASK)
    (scores,) = model.infer([tensor(255, 0)])
    assert scores is not None and scores.tolist() == [0.0, 255.0, 510.0]


@pytest.mark.parametrize(
    ("options", "loading", "words"),
    [
        ({"element": TensorProto.INT8}, {}, ["input x is tensor(int8)", "uint8 [2]"]),
        ({"element": TensorProto.BOOL}, {}, ["input x is tensor(bool)"]),
        ({"shape": ["batch", 4]}, {}, ["has shape ['batch', 4]", "uint8 [2]", "['batch', 2]"]),
        ({"shape": [5, 2]}, {}, ["has shape [5, 2]"]),
        ({"shape": ["batch", 1, 2]}, {}, ["has shape ['batch', 1, 2]"]),
        ({"classes": 2}, {}, ["gives 2 scores", "3 labels", "'labels'"]),
        ({"classes": 2}, {"labels": ["a", "z"]}, ["label 'z' is none of task sorts: a, b, c"]),
        ({"classes": 2}, {"labels": ["a", "a"]}, ["each label once"]),
        ({"outputs": 2}, {}, ["several outputs", "scores, other"]),
        ({}, {"output": "nope"}, ["no output 'nope'", "scores"]),
        ({"softmax": True}, {}, ["sums to 1", "scores = 'probabilities'"]),
        ({}, {"scores": "probabilities"}, ["does not sum to 1", "scores = 'logits'"]),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, options: dict[str, object], loading: dict[str, object], words: list[str]
) -> None:
    path = save(tmp_path / "m.onnx", **options)  # type: ignore[arg-type]
    with pytest.raises(ModelError) as caught:
        OnnxModel.load(path, TASK, **loading)  # type: ignore[arg-type]
    assert str(path) in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_file_that_is_not_there_or_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"cannot read model .*gone\.onnx: No such file.*; check 'path'"
    ) as caught:
        OnnxModel.load(tmp_path / "configs" / ".." / "gone.onnx", TASK)
    assert str(tmp_path / "gone.onnx") in str(caught.value)
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ModelError, match=r"text\.onnx is not a model that ONNX Runtime loads"):
        OnnxModel.load(tmp_path / "text.onnx", TASK)


@pytest.mark.parametrize(
    ("error", "words"),
    [(RuntimeError(), "RuntimeError"), (ValueError("\n"), "ValueError"), (ValueError("a\nb"), "a")],
)
def test_a_failure_of_the_runtime_is_one_line_whatever_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    path = save(tmp_path / "m.onnx")
    with monkeypatch.context() as patched:
        patched.setattr(onnxruntime.InferenceSession, "run", fail)
        with pytest.raises(ModelError, match=f"fails on an input of task sorts: {words}$"):
            OnnxModel.load(path, TASK)
    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(ModelError, match=f"ONNX Runtime loads: {words}; check 'path'"):
        OnnxModel.load(path, TASK)


@pytest.mark.parametrize("member", members(), ids=lambda member: member.id)
def test_every_model_of_the_demo_loads_and_knows_more_than_chance(member) -> None:  # type: ignore[no-untyped-def]
    model = OnnxModel.load(ASSETS / member.model, digits(), labels=member.labels, scores=member.scores)
    tensors, truth = heldout()
    known = [number for number, label in enumerate(truth) if str(label) in member.labels]
    scores = model.infer([tensors[number] for number in known])
    right = sum(
        row is not None and model.classes[int(row.argmax())] == truth[number]
        for number, row in zip(known, scores, strict=True)
    )
    assert right / len(known) > 2 / len(member.labels)


@pytest.mark.parametrize("batch", ["batch", 1])
def test_a_maps_network_gives_one_row_of_features_a_query(tmp_path: Path, batch: int | str) -> None:
    content, run = load_embedding(save(tmp_path / "m.onnx", shape=[batch, 2]))
    assert content == (tmp_path / "m.onnx").read_bytes()
    queries = np.tile([[1.0, 2.0], [0.0, 1.0]], (MAX_BATCH, 1))
    assert run(queries).tolist() == [[6, 9, 12], [3, 4, 5]] * MAX_BATCH


def test_a_network_that_is_none_or_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read .*gone\.onnx: No such file.*--network"):
        load_embedding(tmp_path / "gone.onnx")
    with pytest.raises(ModelError, match="the map is no network of one input"):
        embedding(b"hello", "the map")
    _, run = load_embedding(save(tmp_path / "m.onnx"))
    with pytest.raises(ModelError, match=r"m\.onnx fails on a query: "):
        run(np.zeros((1, 5)))
