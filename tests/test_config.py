"""Configuration: checked whole, wrong keys named, overridden by the environment."""

from pathlib import Path

import pytest

from edge_fi import config
from edge_fi.demo import members
from edge_fi.errors import ConfigError
from edge_fi.messages import ROLES, VOTE_FORMS, Form
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
    shared = config.load_features(CONFIGS / gateway.tasks[0], tasks["digits"])
    assert shared is not None and shared.digest == members.task().features, "the map is not the demo's"
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
        (DEVICE + "[broker]\npassword_file = 'p'", "broker: password_file needs a username beside it"),
        (DEVICE + "[broker]\nca = 'ca.pem'", "broker: ca needs tls = true beside it"),
        ("answer_forms = ['probs-5']\n" + DEVICE, "answer_forms: 'probs-5' is none of label, probs-2"),
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
    [
        ("EDGE_FI_BROKER__HOTS", "unknown key broker.hots; did you mean host?"),
        ("EDGE_FI_ROUND__QUORM", "unknown key round.quorm; did you mean quorum?"),
        ("EDGE_FI_BROKR__HOST", "unknown key brokr; did you mean broker?"),
        ("EDGE_FI_KEY__PATH", "key is no table"),
        ("EDGE_FI_BROKER__HOST__NAME", "broker.host is no table"),
        ("EDGE_FI_ZZZ", "unknown key zzz; known are key, task, model"),
        ("EDGE_FI_", "unknown key ; known are key, task, model"),
    ],
)
def test_an_environment_variable_that_means_nothing_is_refused(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(write(tmp_path, DEVICE), config.DeviceConfig, {name: "x"})
    assert str(caught.value).startswith(f"environment variable {name}: {words}")


@pytest.mark.parametrize(
    ("name", "value", "loaded"),
    [
        ("EDGE_FI_BROKER__MQTT", "5", "5"),
        ("EDGE_FI_BROKER__USERNAME", "007", "007"),
        ("EDGE_FI_BROKER__HOST", "true", "true"),
    ],
)
def test_a_text_from_the_environment_is_taken_as_it_stands(
    tmp_path: Path, name: str, value: str, loaded: str
) -> None:
    broker = config.load(write(tmp_path, DEVICE), config.DeviceConfig, {name: value}).broker
    assert broker.model_dump()[name.rsplit("__", 1)[1].lower()] == loaded


def test_each_role_that_joins_has_a_configuration_and_knows_its_own_keys_alone(tmp_path: Path) -> None:
    assert set(config.MEMBERS) == set(ROLES)
    helper = config.load(write(tmp_path, "key = 'h'"), config.HelperConfig, {"EDGE_FI_TASK": "t.toml"})
    assert (helper.key, helper.broker) == ("h", config.Broker())
    with pytest.raises(ConfigError, match="unknown key task; known are key, broker"):
        config.load(write(tmp_path, "key = 'h'\ntask = 't'"), config.HelperConfig, {})


def test_one_environment_serves_every_role(tmp_path: Path) -> None:
    environment = {
        "EDGE_FI_ROUND__QUORUM": "2",
        "EDGE_FI_MODEL__PATH": "other.onnx",
        "EDGE_FI_STATE": "other",
        "EDGE_FI_TASK": "other.toml",
        "EDGE_FI_BROKER__PORT": "8883",
    }
    gateway_file = "key = 'g'\nstate = 'r'\ntasks = ['t']"
    gateway = config.load(write(tmp_path, gateway_file), config.GatewayConfig, environment)
    device = config.load(write(tmp_path, DEVICE), config.DeviceConfig, environment)
    client = config.load(write(tmp_path, "key = 'c'\ntasks = ['t']"), config.ClientConfig, environment)
    assert (gateway.round.quorum, gateway.state, gateway.tasks) == (2, "other", ["t"])
    assert (device.model.path, device.task) == ("other.onnx", "other.toml")
    assert gateway.broker.port == device.broker.port == client.broker.port == 8883


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (
            {"EDGE_FI_BROKER__PORT": "0"},
            "variable EDGE_FI_BROKER__PORT: broker.port: input should be greater",
        ),
        (
            {"EDGE_FI_BROKER__PORT": "one"},
            "variable EDGE_FI_BROKER__PORT: broker.port: input should be a valid",
        ),
        (
            {"EDGE_FI_BROKER__MQTT": "4"},
            "variable EDGE_FI_BROKER__MQTT: broker.mqtt: input should be '3.1.1'",
        ),
        (
            {"EDGE_FI_BROKER": "x", "EDGE_FI_BROKER__PORT": "1"},
            "variable EDGE_FI_BROKER: broker: input should",
        ),
        ({"EDGE_FI_BROKER": "{hots = 1}"}, "variable EDGE_FI_BROKER: unknown key broker.hots"),
        ({"EDGE_FI_TASKS": "[1]"}, "variable EDGE_FI_TASKS: tasks.0: input should be a valid string"),
        ({"EDGE_FI_ROUND__QUORUM": "0"}, "variable EDGE_FI_ROUND__QUORUM: round: quorum must be 1 or more"),
        ({"EDGE_FI_ROUND__STRATEGY": "best"}, "variable EDGE_FI_ROUND__STRATEGY: round.strategy: 'best' is"),
        (
            {"EDGE_FI_ROUND__ANSWER_FORMS": "[]"},
            "variable EDGE_FI_ROUND__ANSWER_FORMS: round.answer_forms: must",
        ),
        (
            {"EDGE_FI_ROUND__QUORUM": "3", "EDGE_FI_ROUND__STOP_AFTER": "2"},
            "variables EDGE_FI_ROUND__QUORUM, EDGE_FI_ROUND__STOP_AFTER: round: stop_after must be 0 or",
        ),
    ],
)
def test_what_the_environment_gets_wrong_is_its_own(
    tmp_path: Path, environment: dict[str, str], words: str
) -> None:
    path = write(tmp_path, "key = 'g'\nstate = 'r'\ntasks = ['t']")
    with pytest.raises(ConfigError) as caught:
        config.load(path, config.GatewayConfig, environment)
    assert str(caught.value).startswith(f"environment {words}")


def test_what_the_file_gets_wrong_is_not_blamed_on_the_environment(tmp_path: Path) -> None:
    path = write(tmp_path, "broker = 1\n" + DEVICE)
    with pytest.raises(ConfigError) as caught:
        config.load(path, config.DeviceConfig, {"EDGE_FI_BROKER__PORT": "1", "EDGE_FI_KEY": "k"})
    assert str(caught.value).startswith(f"{path}: broker: input should be")


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
        ('"sorts"', '""', "name '' must be 1 to 32 of the characters"),
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
        ('name = "sorts"', 'name = "sorts"\nlog_weight = []', "log_weight must be two"),
        ('name = "sorts"', 'name = "sorts"\nfeatures = "gone.features"', "cannot read the feature map"),
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
        (
            "strategy = 'best'",
            "round.strategy: 'best' is none of hard, linear, logarithmic, entropy, consensus, spectral",
        ),
        ("least_confidence = 1.0", "round: least_confidence must be 0 or more, and below 1"),
        ("reask_s = nan", "round: reask_s must be above 0"),
        ("quorum = 0", "quorum must be 1 or more"),
        ("timeout_s = 0", "timeout_s must be 0.001 to 86400"),
        ("stop_after = 1\nquorum = 2", "stop_after must be 0 or at least the quorum"),
        ("answer_forms = ['probs-5']", "round.answer_forms: 'probs-5' is none of label, probs-2"),
        ("answer_forms = []", "round.answer_forms: must name one form at least"),
    ],
)
def test_a_round_section_is_checked(tmp_path: Path, content: str, words: str) -> None:
    path = write(tmp_path, f"key = 'g'\nstate = 'r'\ntasks = ['t']\n[round]\n{content}")
    with pytest.raises(ConfigError) as caught:
        config.load(path, config.GatewayConfig, {})
    assert str(path) in str(caught.value) and words in str(caught.value)


def test_forms_are_read_by_their_names(tmp_path: Path) -> None:
    assert config.forms(tmp_path, ["label", "logits-8"]) == {Form.LABEL, Form.LOGITS_8}
    with pytest.raises(ConfigError, match="answer_forms: 'probs-5' is none of label"):
        config.forms(tmp_path, ["probs-5"])


def test_a_changed_round_section_is_checked_again(tmp_path: Path) -> None:
    changed = config.Round().model_copy(update={"quorum": 0})
    with pytest.raises(ConfigError, match="round: quorum must be 1 or more"):
        config.round_policy(tmp_path, changed)


def test_a_path_is_shown_without_detours(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load_tasks(tmp_path / "configs", ["../gone.toml"])
    assert f"cannot read {tmp_path / 'gone.toml'}: " in str(caught.value)


def with_password(name: str) -> config.Broker:
    return config.Broker(username="gateway", password_file=name)


@pytest.mark.parametrize(
    "content", ["secret", "secret\n", "secret\nrest\n", "secret\r\n", "secret\r", "secret\r\nrest"]
)
def test_a_password_is_the_first_line_of_its_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "password").write_text(content, newline="")
    (tmp_path / "password").chmod(0o600)
    assert config.read_password(tmp_path, with_password("password")) == "secret"
    assert config.read_password(tmp_path, config.Broker()) is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_password_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "password"
    path.write_text("secret")
    path.chmod(mode)
    (tmp_path / "configs").mkdir()
    with pytest.raises(ConfigError, match=rf"mode {mode:04o}, others may read it: run chmod 600 {path}$"):
        config.read_password(tmp_path / "configs", with_password("../password"))


def test_a_password_file_that_is_none_is_named_without_its_content(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read broker\.password_file .*gone: No such file"):
        config.read_password(tmp_path, with_password("gone"))
    (tmp_path / "password").write_bytes(b"secret\xff")
    (tmp_path / "password").chmod(0o600)
    with pytest.raises(ConfigError, match="it must be a text file") as caught:
        config.read_password(tmp_path, with_password("password"))
    assert "secret" not in str(caught.value)
