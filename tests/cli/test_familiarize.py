"""`edge-fi task features` and `edge-fi device familiarize`: a map, a gate, and every error."""

import re
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from parties import main_here

from edge_fi import config
from edge_fi.cli.familiarity import load_gate, load_map
from edge_fi.cli.joinfiles import absent_maps, task_content
from edge_fi.errors import ConfigError, ModelError
from edge_fi.messages import Array, Task, Trust
from edge_fi.wire.payloads import Accept

TASK = """\
# Two places.
name = "places"
number = 1
labels = ["left", "right", "up"]
shape = [3]
dtype = "float32"
"""
DEVICE = """\
key = "pi-01.key"
task = "places.toml"
[model]
path = "model.onnx"
[broker]
port = 1
"""
rng = np.random.default_rng(0)
PUBLIC = rng.normal(size=(60, 3)).astype(np.float32)
OWN = (rng.normal(size=(40, 3)) * 0.3 + [1, 0, 0]).astype(np.float32)
LABELS = np.repeat([0, 1], 20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A task without a map, a device of it, and data."""
    (tmp_path / "places.toml").write_text(TASK)
    (tmp_path / "device.toml").write_text(DEVICE)
    np.save(tmp_path / "public.npy", PUBLIC)
    np.savez(tmp_path / "own.npz", queries=OWN, labels=LABELS)
    return tmp_path


@pytest.fixture
def mapped(folder: Path) -> Path:
    """The same, with a map."""
    main_here("task", "features", folder / "places.toml", "--data", folder / "public.npy")
    return folder


def familiarize(folder: Path, *options: str | Path, data: str = "own.npz") -> dict[str, object]:
    ended = main_here(
        "device",
        "familiarize",
        "--config",
        folder / "device.toml",
        "--data",
        folder / data,
        "--json",
        *options,
    )
    return dict(ended.fields)


def refused(*words: str | Path, code: int = 3) -> str:
    ended = main_here(*words)
    assert ended.code == code and ended.err.startswith("edge-fi: ")
    return ended.err


def unfamiliar(folder: Path, data: str) -> str:
    words = ("device", "familiarize", "--config", folder / "device.toml", "--data", folder / data)
    return refused(*words)


def test_a_map_is_made_beside_its_task_and_named_in_it(folder: Path) -> None:
    before = config.load_task(folder / "places.toml")
    ended = main_here("task", "features", folder / "places.toml", "--data", folder / "public.npy", "--json")
    assert ended.fields["kind"] == "columns" and ended.fields["axes"] == 3 and ended.fields["travels"]
    task = config.load_task(folder / "places.toml")
    shared = config.load_features(folder / "places.toml", task)
    assert shared is not None and shared.digest == task.features and len(shared.public) == 60
    assert task.digest() != before.digest() and task.log_weight == (-16, 6)
    assert (folder / "places.toml").read_text().startswith("# Two places.")


def test_a_task_that_has_a_map_gets_another_only_on_purpose(mapped: Path) -> None:
    words = ("task", "features", mapped / "places.toml", "--data", mapped / "public.npy")
    assert "--replace" in refused(*words)
    (mapped / "places.features").unlink()  # even where it is lost
    main_here(*words, "--replace", "--axes", "2")
    shared = config.load_features(mapped / "places.toml", config.load_task(mapped / "places.toml"))
    assert shared is not None and len(shared.steps) == 2
    assert (mapped / "places.toml").read_text().count("features =") == 1


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (PUBLIC[:20], "too few"),
        (PUBLIC[:, :2], r"takes float32 \[3\]"),
        (np.full((60, 3), np.nan), "not finite"),
        (np.zeros((60, 3)), "all the same"),
    ],
)
def test_what_public_queries_lack_is_said(folder: Path, values: np.ndarray, says: str) -> None:
    np.save(folder / "bad.npy", values)
    said = refused("task", "features", folder / "places.toml", "--data", folder / "bad.npy")
    assert re.search(says, said)
    assert "features" not in (folder / "places.toml").read_text()


def test_a_gate_is_made_beside_its_device_and_named_there(mapped: Path) -> None:
    told = familiarize(mapped)
    assert told["samples"] == 40 and told["unseen"] == ["up"] and told["share"] is True
    path = mapped / "pi-01.gate"
    assert path.stat().st_size == told["bytes"] and stat.S_IMODE(path.stat().st_mode) == 0o600
    settings = config.load(mapped / "device.toml", config.DeviceConfig, {})
    assert settings.familiarity == config.Familiarity(gate="pi-01.gate")
    assert settings.broker.port == 1  # what stood there stands there
    gate = load_gate(mapped / "device.toml", settings, config.load_task(mapped / "places.toml"))
    assert gate is not None and gate.trust is Trust.GATE


def test_a_gate_made_again_takes_the_place_of_the_first(mapped: Path) -> None:
    familiarize(mapped)
    familiarize(mapped, "--private")
    settings = config.load(mapped / "device.toml", config.DeviceConfig, {})
    assert settings.familiarity == config.Familiarity(gate="pi-01.gate", share=False)
    assert (mapped / "device.toml").read_text().count("[familiarity]") == 1
    gate = load_gate(mapped / "device.toml", settings, config.load_task(mapped / "places.toml"))
    assert gate is not None and gate.trust is Trust.DEVICE


def test_labels_may_be_names_and_a_file_of_their_own(mapped: Path) -> None:
    np.save(mapped / "x.npy", OWN)
    np.save(mapped / "y.npy", np.where(LABELS == 0, "left", "up"))
    assert familiarize(mapped, "--labels", mapped / "y.npy", data="x.npy")["unseen"] == ["right"]


def test_without_a_map_the_next_step_is_named(folder: Path) -> None:
    assert "edge-fi task features" in unfamiliar(folder, "own.npz")


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"queries": OWN[:5], "labels": LABELS[:5]}, "too few"),
        ({"queries": OWN[:, :2], "labels": LABELS}, r"takes float32 \[3\]"),
        ({"queries": OWN, "labels": LABELS[:3]}, "as many labels"),
        ({"queries": OWN, "labels": LABELS + 7}, "0 to 2"),
        ({"queries": OWN, "labels": np.repeat(["left", "down"], 20)}, "'down' is none of task places"),
        ({"queries": OWN, "labels": LABELS * 0.5}, "must be names"),
        ({"queries": OWN * np.inf, "labels": LABELS}, "not finite"),
        ({"queries": OWN}, "no array 'labels'"),
    ],
)
def test_what_samples_lack_is_said(mapped: Path, arrays: dict[str, object], says: str) -> None:
    np.savez(mapped / "bad.npz", **arrays)  # type: ignore[arg-type]
    assert re.search(says, unfamiliar(mapped, "bad.npz"))
    assert "familiarity" not in (mapped / "device.toml").read_text()


def test_a_file_that_is_none_is_said(mapped: Path) -> None:
    assert "cannot read" in unfamiliar(mapped, "nowhere.npz")
    (mapped / "text.npz").write_text("none")
    assert "neither .npy nor .npz" in unfamiliar(mapped, "text.npz")


def test_a_gate_of_another_map_is_refused_when_the_device_starts(mapped: Path) -> None:
    familiarize(mapped)
    np.save(mapped / "public.npy", PUBLIC + 1)
    words = ("task", "features", mapped / "places.toml", "--data", mapped / "public.npy", "--replace")
    main_here(*words)
    settings = config.load(mapped / "device.toml", config.DeviceConfig, {})
    with pytest.raises(ConfigError, match=r"another feature map.*familiarize' again"):
        load_gate(mapped / "device.toml", settings, config.load_task(mapped / "places.toml"))


@pytest.mark.parametrize("damage", ["cut", "gone", "other"])
def test_a_gate_that_is_none_is_refused(mapped: Path, damage: str) -> None:
    familiarize(mapped)
    path = mapped / "pi-01.gate"
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[:-1] if damage == "cut" else b"something else")
    settings = config.load(mapped / "device.toml", config.DeviceConfig, {})
    with pytest.raises(ConfigError, match="familiarize"):
        load_gate(mapped / "device.toml", settings, config.load_task(mapped / "places.toml"))


def test_a_gate_without_a_map_is_refused(mapped: Path) -> None:
    familiarize(mapped)
    (mapped / "places.toml").write_text(TASK)
    settings = config.load(mapped / "device.toml", config.DeviceConfig, {})
    with pytest.raises(ConfigError, match="no feature map"):
        load_gate(mapped / "device.toml", settings, config.load_task(mapped / "places.toml"))


@pytest.mark.parametrize("damage", ["cut", "gone", "shape"])
def test_a_map_that_is_none_is_refused(mapped: Path, damage: str) -> None:
    path = mapped / "places.features"
    if damage == "shape":
        text = (mapped / "places.toml").read_text()
        (mapped / "places.toml").write_text(text.replace("[3]", "[4]"))
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    with pytest.raises(ConfigError, match="feature"):
        config.load_features(mapped / "places.toml", config.load_task(mapped / "places.toml"))


def test_a_new_gateway_takes_the_map_along(mapped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mapped)
    main_here("gateway", "new", "--federation", "acme", "--task", "places.toml")
    path = mapped / "acme" / "tasks" / "places.toml"
    task = config.load_task(path)
    assert task == config.load_task(mapped / "places.toml") and config.load_features(path, task) is not None


def test_a_network_that_is_none_is_refused(folder: Path) -> None:
    (folder / "net.onnx").write_bytes(b"none")
    words = ("task", "features", folder / "places.toml", "--data", folder / "public.npy", "--kind", "onnx")
    assert "no network" in refused(*words, "--network", folder / "net.onnx", code=5)
    assert "cannot read" in refused(*words, "--network", folder / "nowhere.onnx", code=5)


def test_a_frozen_network_can_be_the_map(folder: Path) -> None:
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    words = ("task", "features", folder / "places.toml", "--data", folder / "public.npy", "--kind", "onnx")
    main_here(*words, "--network", folder / "net.onnx")
    familiarize(folder)
    settings = config.load(folder / "device.toml", config.DeviceConfig, {})
    gate = load_gate(folder / "device.toml", settings, config.load_task(folder / "places.toml"))
    assert gate is not None and gate.features.kind == "onnx" and gate.content


def test_both_verbs_print_what_comes_next(folder: Path) -> None:
    ended = main_here("task", "features", folder / "places.toml", "--data", folder / "public.npy")
    assert "edge-fi device familiarize" in ended.out
    ended = main_here(
        "device", "familiarize", "--config", folder / "device.toml", "--data", folder / "own.npz"
    )
    assert "never seen: up" in ended.out and "start the device again" in ended.out


def test_map_and_gate_may_stand_elsewhere(folder: Path) -> None:
    task, elsewhere = folder / "places.toml", folder / "maps" / "one.features"
    main_here("task", "features", task, "--data", folder / "public.npy", "--out", elsewhere)
    assert config.load_features(task, config.load_task(task)) is not None
    assert 'features = "maps/one.features"' in task.read_text()
    familiarize(folder, "--out", folder / "gates" / "one.gate")
    settings = config.load(folder / "device.toml", config.DeviceConfig, {})
    assert settings.familiarity == config.Familiarity(gate="gates/one.gate")
    assert load_gate(folder / "device.toml", settings, config.load_task(task)) is not None


def test_a_section_with_a_remark_is_replaced_as_well(mapped: Path) -> None:
    (mapped / "device.toml").write_text(DEVICE + '[familiarity]  # by hand\ngate = "x"')
    familiarize(mapped)
    settings = config.load(mapped / "device.toml", config.DeviceConfig, {})
    assert settings.familiarity == config.Familiarity(gate="pi-01.gate") and settings.broker.port == 1


def test_samples_scaled_otherwise_than_queries_are_refused(folder: Path) -> None:
    """Or the gate would find every query unfamiliar, and nobody would know why."""
    (folder / "places.toml").write_text(TASK.replace("float32", "uint8"))
    np.save(folder / "scaled.npy", np.abs(PUBLIC) % 1)
    said = refused("task", "features", folder / "places.toml", "--data", folder / "scaled.npy")
    assert "scaled.npy has values that uint8 cannot hold" in said


def test_a_map_keeps_so_many_public_queries_and_says_when_it_cannot_travel(folder: Path) -> None:
    (folder / "places.toml").write_text(TASK.replace("[3]", "[200]"))
    np.save(folder / "many.npy", rng.normal(size=(1600, 200)).astype(np.float32))
    words = ("task", "features", folder / "places.toml", "--data", folder / "many.npy")
    assert main_here(*words, "--json").fields["public"] == 1500
    np.save(folder / "wide.npy", rng.normal(size=(1600, 2000)).astype(np.float32))
    (folder / "places.toml").write_text(TASK.replace("[3]", "[2000]"))
    ended = main_here("task", "features", folder / "places.toml", "--data", folder / "wide.npy")
    assert "too large to come with an invite: copy it to each device" in ended.err


def test_a_gate_of_another_task_is_refused(mapped: Path) -> None:
    familiarize(mapped)
    text = (mapped / "places.toml").read_text()
    (mapped / "places.toml").write_text(text.replace(', "up"', ""))
    settings = config.load(mapped / "device.toml", config.DeviceConfig, {})
    with pytest.raises(ConfigError, match="is of another task"):
        load_gate(mapped / "device.toml", settings, config.load_task(mapped / "places.toml"))


def test_kind_onnx_needs_a_network_and_no_other_does(folder: Path) -> None:
    words = ("task", "features", folder / "places.toml", "--data", folder / "public.npy")
    for options in (["--kind", "onnx"], ["--network", "net.onnx"]):
        ended = main_here(*words, *options)
        assert ended.code == 2 and "--kind onnx and --network go together" in ended.err


def test_a_map_that_did_not_come_along_is_named(tmp_path: Path) -> None:
    tasks = [
        Task(name=name, number=number, labels=("a", "b"), shape=(1,), dtype="uint8", features=digest)
        for number, (name, digest) in enumerate([("one", bytes(8)), ("two", bytes(8)), ("three", b"")], 1)
    ]
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "two.features").write_bytes(b"here")
    accept = Accept(index=1, version=1, task=0, tasks=tuple(tasks), features=(b"", b"here", b""))
    assert absent_maps(tmp_path / "device.toml", accept) == [tmp_path / "tasks" / "one.features"]
    (tmp_path / "tasks" / "one.toml").write_text(task_content(tasks[0]))
    with pytest.raises(
        ConfigError, match=r"one\.features of .*one\.toml: No such file.*copy it from the gateway"
    ):
        config.load_task(tmp_path / "tasks" / "one.toml")


def test_a_network_that_gives_other_features_than_the_map_was_made_of_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test_a_frozen_network_can_be_the_map(folder)
    path = folder / "places.toml"

    def narrow(content: bytes, name: str) -> Callable[[Array], Array]:
        return lambda queries: queries[:, :1]  # which NumPy would spread over all

    monkeypatch.setattr("edge_fi.adapters.onnx.embedding", narrow)
    with pytest.raises(ModelError, match="gives 1 features, not the 3 it was made of"):
        load_map(path, config.load_task(path))
