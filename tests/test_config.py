"""Configuration: checked whole, wrong keys named, overridden by the environment."""

from pathlib import Path

import pytest

from edge_fi import config
from edge_fi.errors import ConfigError
from edge_fi.messages import VOTE_FORMS, Form
from edge_fi.round import RoundPolicy

CONFIGS = Path(__file__).parents[1] / "configs"

DEVICE = """
key = "pi.key"
task = "task.toml"
[model]
path = "model.onnx"
"""


def write(folder: Path, content: str) -> Path:
    path = folder / "file.toml"
    path.write_text(content, encoding="utf-8")
    return path


def test_the_shipped_files_load_and_state_the_defaults() -> None:
    gateway = config.load(CONFIGS / "gateway.toml", config.GatewayConfig, {})
    device = config.load(CONFIGS / "device.toml", config.DeviceConfig, {})
    client = config.load(CONFIGS / "client.toml", config.ClientConfig, {})
    assert gateway.broker == device.broker == client.broker == config.Broker()
    assert config.round_policy(CONFIGS / "gateway.toml", gateway.round) == RoundPolicy()
    tasks = config.load_tasks(CONFIGS, gateway.tasks)
    assert tasks["digits"].labels == tuple("0123456789")
    assert device.model.labels is not None and set(device.model.labels) < set("0123456789")
    assert (CONFIGS / device.model.path).exists()
    assert config.forms(CONFIGS, device.answer_forms) == frozenset(VOTE_FORMS)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (DEVICE + "[broker]\nhots = 'x'", "unknown key broker.hots; did you mean host?"),
        (DEVICE + "[broker]\nzzz = 'x'", "unknown key broker.zzz; known are host, port, mqtt"),
        ("kee = 1\n" + DEVICE, "unknown key kee; did you mean key?"),
        (DEVICE.replace('key = "pi.key"', ""), "key key is missing"),
        (DEVICE.replace('path = "model.onnx"', ""), "key model.path is missing"),
        (DEVICE + "[broker]\nport = 0", "broker.port: input should be greater than or equal to 1"),
        (DEVICE + "[broker]\nport = '1883'", "broker.port: input should be a valid integer"),
        (DEVICE + "[broker]\nmqtt = '4'", "broker.mqtt: input should be '3.1.1' or '5'"),
        (DEVICE + "scores = 'odds'", "model.scores: input should be 'logits' or 'probabilities'"),
        ("key = ", "is not TOML"),
        ("key = '\x00'", "is not TOML"),
    ],
)
def test_what_is_wrong_is_named_in_one_sentence(tmp_path: Path, content: str, words: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        config.load(path, config.DeviceConfig, {})
    assert str(caught.value).startswith(str(path))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_points_to_the_examples(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory; examples are in the folder configs"):
        config.load(tmp_path / "gone.toml", config.DeviceConfig, {})


def test_the_environment_overrides_any_key(tmp_path: Path) -> None:
    environment = {
        "EDGE_FI_BROKER__HOST": "10.0.0.1",
        "EDGE_FI_BROKER__PORT": "8883",
        "EDGE_FI_MODEL__LABELS": '["a", "b"]',
        "EDGE_FI_KEY": "other.key",
        "UNRELATED": "1",
    }
    loaded = config.load(write(tmp_path, DEVICE), config.DeviceConfig, environment)
    assert (loaded.broker.host, loaded.broker.port, loaded.key) == ("10.0.0.1", 8883, "other.key")
    assert loaded.model.labels == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "words"),
    [("EDGE_FI_BROKER__HOTS", "did you mean host?"), ("EDGE_FI_KEY__PATH", "key is no table")],
)
def test_an_environment_variable_that_means_nothing_is_refused(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(write(tmp_path, DEVICE), config.DeviceConfig, {name: "x"})
    assert words in str(caught.value)


TASK = """
name = "sorts"
number = 1
labels = ["a", "b"]
shape = [2]
dtype = "uint8"
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("number = 1", "number = 256", "number must be 1 to 255"),
        ('["a", "b"]', '["a"]', "labels must be 2 to 4096"),
        ('["a", "b"]', '["a", "a"]', "labels must differ"),
        ("[2]", "[0]", "shape must be"),
        ("[2]", "[1000000]", "at most 900000 bytes"),
        ("uint8", "int4", "dtype must be one of float32, float16, uint8, int8"),
        ("uint8", "float64", "dtype must be"),
        ('name = "sorts"', "", "key name is missing"),
        ('name = "sorts"', 'name = "sorts"\nlog_weight = [0]', "log_weight must be two"),
        ('name = "sorts"', 'name = "sorts"\nlog_weight = [0, -8]', "the lower first"),
    ],
)
def test_a_task_file_is_checked(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = write(tmp_path, TASK.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        config.load_task(path)
    assert str(path) in str(caught.value) and words in str(caught.value)


def test_tasks_of_one_name_or_number_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(TASK)
    (tmp_path / "b.toml").write_text(TASK.replace("number = 1", "number = 2"))
    (tmp_path / "c.toml").write_text(TASK.replace("sorts", "kinds"))
    for other in ("b.toml", "c.toml"):
        with pytest.raises(ConfigError, match="name or number is that of task sorts"):
            config.load_tasks(tmp_path, ["a.toml", other])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("strategy = 'best'", "'best' is none of hard, linear, logarithmic, entropy, confidence"),
        ("quorum = 0", "quorum must be 1 or more"),
        ("timeout_s = 0", "timeout_s must be 0.001 to 86400"),
        ("stop_after = 1\nquorum = 2", "stop_after must be 0 or at least the quorum"),
        ("answer_forms = ['probs-5']", "'probs-5' is none of label, probs-2"),
        ("answer_forms = []", "must name one form at least"),
    ],
)
def test_a_round_section_is_checked(tmp_path: Path, content: str, words: str) -> None:
    path = write(tmp_path, f"key = 'g'\nroster = 'r'\ntasks = ['t']\n[round]\n{content}")
    loaded = config.load(path, config.GatewayConfig, {})
    with pytest.raises(ConfigError) as caught:
        config.round_policy(path, loaded.round)
    assert str(path) in str(caught.value) and words in str(caught.value)


def test_forms_are_read_by_their_names(tmp_path: Path) -> None:
    assert config.forms(tmp_path, ["label", "logits-8"]) == {Form.LABEL, Form.LOGITS_8}


def test_a_password_is_the_first_line_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\nrest\n")
    assert config.read_password(tmp_path, config.Broker(password_file="password")) == "secret"
    assert config.read_password(tmp_path, config.Broker()) is None
    with pytest.raises(ConfigError, match=r"cannot read broker\.password_file"):
        config.read_password(tmp_path, config.Broker(password_file="gone"))
