"""`edge-fi gateway new`: a folder that works as it is, or nothing."""

import os
import stat
from pathlib import Path

import pytest
from parties import DIGITS, main_here

from edge_fi import config
from edge_fi.adapters import keyfile
from edge_fi.adapters.state import State
from edge_fi.errors import ConfigError, KeyFileError

ACME = ("gateway", "new", "--federation", "acme", "--task", DIGITS)


def test_what_it_makes_is_whole_and_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = main_here(*ACME, "--json")
    assert ended.fields == {"folder": "acme", "config": "acme/gateway.toml", "federation": "acme"}
    path = tmp_path / "acme" / "gateway.toml"
    settings = config.load(path, config.GatewayConfig, {})
    assert settings.broker == config.Broker() and settings.round == config.Round()
    assert list(config.load_tasks(path.parent, settings.tasks)) == ["digits"]
    identity = keyfile.read_gateway(path.parent / settings.key)
    with State.open(path.parent / settings.state, "acme", identity.static.public) as state:
        assert state.roster().members == ()
    for name in ("gateway.key", "state.db"):
        assert stat.S_IMODE((path.parent / name).stat().st_mode) == 0o600


def test_with_a_host_it_expects_tls_there(tmp_path: Path) -> None:
    ended = main_here(*ACME, "--host", "broker.local", "--out", tmp_path / "gw")
    assert f"next: edge-fi broker config mosquitto --config {tmp_path / 'gw' / 'gateway.toml'}" in ended.out
    broker = config.load(tmp_path / "gw" / "gateway.toml", config.GatewayConfig, {}).broker
    assert (broker.host, broker.port, broker.tls, broker.ca) == ("broker.local", 8883, True, "broker/ca.pem")
    main_here(*ACME, "--port", "9000", "--out", tmp_path / "plain")
    broker = config.load(tmp_path / "plain" / "gateway.toml", config.GatewayConfig, {}).broker
    assert (broker.host, broker.port, broker.tls) == ("127.0.0.1", 9000, False)


def test_tasks_of_one_file_name_are_both_there(tmp_path: Path) -> None:
    for name, number in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "digits.features").write_bytes(DIGITS.with_suffix(".features").read_bytes())
        text = DIGITS.read_text().replace('"digits"', f'"{name}"').replace("number = 1", f"number = {number}")
        (tmp_path / name / "task.toml").write_text(text)
    tasks = [option for name in ("one", "two") for option in ("--task", tmp_path / name / "task.toml")]
    ended = main_here("gateway", "new", "--federation", "acme", *tasks, "--out", tmp_path / "acme")
    assert ended.code == 0
    settings = config.load(tmp_path / "acme" / "gateway.toml", config.GatewayConfig, {})
    assert list(config.load_tasks(tmp_path / "acme", settings.tasks)) == ["one", "two"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    assert main_here(*ACME, "--out", tmp_path).code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    ended = main_here(*ACME, "--out", tmp_path)
    assert ended.code == ConfigError.exit_code
    assert "gateway.toml exists and is not overwritten: choose another folder with --out" in ended.err
    (tmp_path / "gateway.toml").unlink()
    ended = main_here(*ACME, "--out", tmp_path)
    assert ended.code == KeyFileError.exit_code and "gateway.key exists and is not overwritten" in ended.err
    before.pop(tmp_path / "gateway.toml")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_folder_of_its_tasks_may_be_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tasks").mkdir()
    for suffix in (".toml", ".features"):
        Path("tasks/digits").with_suffix(suffix).write_bytes(DIGITS.with_suffix(suffix).read_bytes())
    options = ("--federation", "acme", "--task", "tasks/digits.toml", "--out", ".")
    assert main_here("gateway", "new", *options).code == 0
    assert Path("tasks/digits.toml").read_bytes() == DIGITS.read_bytes()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--federation", "Not OK", "--task", DIGITS], 4, "federation 'Not OK' must be 1 to 16 of"),
        (["--federation", "acme", "--task", "gone.toml"], 3, "cannot read gone.toml"),
        (
            ["--federation", "acme", "--task", DIGITS, "--host", 'a"b'],
            3,
            "must be a DNS name or an IP address",
        ),
        (["--federation", "acme", "--task", DIGITS, "--task", DIGITS], 3, "name or number is that of task"),
        (["--federation", "acme", "--task", DIGITS, "--port", "0"], 2, "--port"),
        (["--federation", "acme"], 2, "Missing option '--task'"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], code: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = main_here("gateway", "new", *options)
    assert ended.code == code and words in ended.err and "Traceback" not in ended.err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("obstacle", ["state.db", "tasks"])
def test_what_cannot_be_finished_is_not_begun(tmp_path: Path, obstacle: str) -> None:
    """So that the same command can be given again, when the obstacle is gone."""
    (tmp_path / obstacle).write_text("in the way, as a full disk would be")
    ended = main_here(*ACME, "--out", tmp_path)
    assert ended.code not in (0, 2) and obstacle in ended.err and ended.err.count("\n") == 1
    assert os.listdir(tmp_path) == [obstacle]
    (tmp_path / obstacle).unlink()
    assert main_here(*ACME, "--out", tmp_path).code == 0
