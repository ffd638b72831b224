"""The command line: help with examples, JSON, one sentence and a numbered exit code for each error."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import pytest

from edge_fi.adapters import keyfile
from edge_fi.cli.main import edge_fi, main

Run = Callable[..., tuple[int, str, str]]

DIGITS = str(Path(__file__).parents[2] / "configs" / "tasks" / "digits.toml")
ASSETS = Path(__file__).parents[2] / "edge_fi" / "demo" / "assets"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process: exit code, stdout, stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["edge-fi", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with the keys of a gateway, a device and a client."""
    out = tmp_path / "keys"
    gateway = keyfile.make_gateway(out / "gateway.key", "acme", os.urandom)
    keyfile.introduce(out, [("device", "pi-01"), ("client", "laptop")], gateway, os.urandom)
    return out


VERBS = [
    "demo",
    "gateway new",
    "gateway run",
    "gateway invite",
    "gateway rotate",
    "gateway backup",
    "gateway restore",
    "gateway install-service",
    "device join",
    "device run",
    "device familiarize",
    "task features",
    "feedback",
    "device install-service",
    "client join",
    "helper join",
    "ask",
    "roster list",
    "roster show",
    "roster revoke",
    "roster label",
    "roster export",
    "roster withdraw",
    "roster trust-clock",
    "roster contribution",
    "broker config",
    "broker renew",
    "broker check",
    "task show",
]


def device_toml(folder: Path, **changes: str) -> Path:
    fields = {
        "key": '"keys/pi-01.key"',
        "task": json.dumps(DIGITS),
        "path": json.dumps(str(ASSETS / "pi-02.onnx")),
        "labels": '["4", "6", "7", "8"]',
        "scores": '"probabilities"',
    } | changes
    lines = [f"{name} = {fields[name]}" for name in ("key", "task")]
    lines += ["[model]"] + [f"{name} = {fields[name]}" for name in ("path", "labels", "scores")]
    path = folder / "device.toml"
    path.write_text("\n".join(lines))
    return path


def client_toml(folder: Path, port: int = 1) -> Path:
    path = folder / "client.toml"
    path.write_text(f'key = "keys/laptop.key"\ntasks = [{json.dumps(DIGITS)}]\n[broker]\nport = {port}\n')
    return path


def image(folder: Path) -> Path:
    path = folder / "image.npy"
    np.save(path, np.zeros((8, 8), np.uint8))
    return path


def test_the_list_above_has_every_verb() -> None:
    def leaves(group: click.Command, name: str) -> Iterator[str]:
        if isinstance(group, click.Group):
            for its_name, command in group.commands.items():
                yield from leaves(command, f"{name} {its_name}".strip())
        else:
            yield name

    assert set(VERBS) == set(leaves(edge_fi, ""))


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_every_verb_helps_with_an_example(run: Run, verb: str) -> None:
    code, out, _ = run(*verb.split(), "--help")
    assert code == 0
    assert f"edge-fi {verb}".strip() in out.split("\n", 1)[1]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_json(run: Run, verb: str) -> None:
    assert "--json" in run(*verb.split(), "--help")[1]


@pytest.mark.parametrize("verb", ["gateway run", "device run", "ask"])
def test_a_verb_with_a_configuration_says_what_overrides_it(run: Run, verb: str) -> None:
    assert "EDGE_FI_BROKER__HOST" in run(*verb.split(), "--help")[1]


def test_task_show_tells_what_travels(run: Run) -> None:
    code, out, _ = run("task", "show", DIGITS, "--json")
    shown = json.loads(out)
    assert code == 0
    assert shown["tensor_bytes"] == 64 and shown["labels"] == list("0123456789")
    assert shown["vote_bytes"]["label"] == 2 and shown["vote_bytes"]["probs-4"] == 6
    code, out, _ = run("task", "show", DIGITS)
    assert code == 0 and "uint8, 8 x 8: 64 bytes" in out and shown["digest"] in out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["nonsense"], 2),
        (["ask"], 2),
        (["ask", "--config", "gone.toml", "--input", "x", "--timeout", "-1"], 2),
        (["demo", "--queries", "0"], 2),
        (["gateway", "run", "--config", "gone.toml"], 3),
        (["device", "run", "--config", "gone.toml"], 3),
        (["ask", "--config", "gone.toml", "--input", "x"], 3),
        (["task", "show", "gone.toml"], 3),
        (["gateway", "new", "--federation", "acme"], 2),
        (["gateway", "new", "--federation", "acme", "--task", "gone.toml"], 3),
        (["gateway", "new", "--federation", "NOT OK", "--task", DIGITS], 4),
        (["gateway", "invite", "pi-01"], 3),
        (["gateway", "invite", "pi", "--count", "3"], 2),
        (["gateway", "invite", "pi-01", "--lifetime", "1s"], 2),
        (["gateway", "rotate"], 3),
        (["gateway", "backup", "x.tar"], 3),
        (["gateway", "restore", "gone.tar", "--out", "there"], 3),
        (["device", "join", "--file", "gone.invite"], 3),
        (["client", "join", "FI1:SECRET"], 2),
        (["roster", "list"], 3),
        (["broker", "config", "nats"], 3),
        (["broker", "config", "rabbit"], 2),
        (["broker", "check"], 3),
    ],
)
def test_an_error_has_its_exit_code_and_one_sentence(
    run: Run, arguments: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    got, _, err = run(*arguments)
    assert got == code
    assert "Traceback" not in err
    if code > 2:
        assert err.startswith("edge-fi: ") and err.count("\n") == 1


def test_with_json_an_error_is_an_object(run: Run) -> None:
    code, out, err = run("task", "show", "gone.toml", "--json")
    fields = json.loads(out)
    assert code == fields["exit_code"] == 3
    assert err == f"edge-fi: {fields['error']}\n"


@pytest.mark.parametrize("arguments", [["ask"], ["task", "show"], ["gateway"], ["ask", "--nonsense"]])
def test_with_json_a_wrong_command_line_is_an_object_too(run: Run, arguments: list[str]) -> None:
    code, out, err = run(*arguments, "--json")
    fields = json.loads(out)
    assert code == fields["exit_code"] == 2
    assert fields["error"] in err and "Usage: " in err


def test_an_interruption_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edge_fi.cli.task.load_task", interrupt)
    code, out, err = run("task", "show", DIGITS, "--json")
    assert code == json.loads(out)["exit_code"] == 130
    assert err.strip() == "edge-fi: interrupted"


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """A command of a shell, where `edge-fi` is this one."""
    return subprocess.run(
        ["bash", "-c", f'edge-fi() {{ "{sys.executable}" -m edge_fi "$@"; }}; set -o pipefail; {command}'],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
@pytest.mark.parametrize(
    "arguments", [f"task show {DIGITS}", f"task show {DIGITS} --json", "--version", "task show --help"]
)
def test_output_that_cannot_be_written_is_one_sentence(arguments: str) -> None:
    done = shell(f"edge-fi {arguments} > /dev/full")
    assert done.returncode == 1
    assert done.stderr == "edge-fi: input or output failed: No space left on device\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_with_nowhere_to_say_it_the_exit_code_is_right_all_the_same() -> None:
    assert shell("edge-fi task show gone.toml --json > /dev/full 2> /dev/full").returncode == 3
    assert shell("edge-fi task show gone.toml --json >&- 2>&-").returncode == 3
    assert shell(f"edge-fi task show {DIGITS} >&-").returncode == 0


def test_a_reader_that_has_gone_away_is_no_news() -> None:
    done = shell(f"edge-fi task show {DIGITS} | true")
    assert done.stderr == "" and done.returncode in (0, 1)


def test_a_key_that_others_may_read_is_refused(run: Run, keys: Path, tmp_path: Path) -> None:
    (keys / "pi-01.key").chmod(0o644)
    code, _, err = run("device", "run", "--config", device_toml(tmp_path))
    assert code == 4 and "chmod 600" in err


def test_a_client_key_is_no_device_key(run: Run, keys: Path, tmp_path: Path) -> None:
    path = device_toml(tmp_path, key='"keys/laptop.key"')
    code, _, err = run("device", "run", "--config", path)
    assert code == 4 and "a device key is needed here" in err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": '["4", "6", "7"]'}, "gives 4 scores a query, but stands for 3 labels"),
        ({"labels": '["4", "6", "7", "x"]'}, "label 'x' is none of task digits"),
        ({"scores": '"logits"'}, "set scores = 'probabilities'"),
        ({"path": '"gone.onnx"'}, "cannot read model"),
    ],
)
def test_a_model_that_does_not_fit_is_named(
    run: Run, keys: Path, tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    code, _, err = run("device", "run", "--config", device_toml(tmp_path, **changes))
    assert code == 5 and words in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", "[1, 2", "neither .npy nor JSON"),
        ("a.json", "[1, 2]", "has shape [2], but task digits takes uint8 [8, 8]"),
        ("a.json", json.dumps([[0.5] * 8] * 8), "values that uint8 cannot hold"),
        ("a.json", json.dumps([[-1] * 8] * 8), "values that uint8 cannot hold"),
        ("a.json", json.dumps([["a"] * 8] * 8), "holds <U1"),
        ("a.npy", "nothing", "neither .npy nor JSON"),
        ("a.npy", "", "neither .npy nor JSON"),
        ("a.npy", "PK\x03\x04 no archive", "neither .npy nor JSON"),
        ("a.npy", "\x93NUMPY", "neither .npy nor JSON"),
        ("a.json", "", "neither .npy nor JSON"),
        ("gone.npy", None, "No such file"),
    ],
)
def test_an_input_that_is_no_query_is_named(
    run: Run, keys: Path, tmp_path: Path, name: str, content: str | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    code, _, err = run("ask", "--config", client_toml(tmp_path), "--input", tmp_path / name)
    assert code == 3 and words in err and err.count("\n") == 1


def test_an_archive_of_arrays_is_no_query(run: Run, keys: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", np.zeros((8, 8), np.uint8))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    code, _, err = run("ask", "--config", client_toml(tmp_path), "--input", tmp_path / "a.npy")
    assert code == 3 and "neither .npy nor JSON" in err and err.count("\n") == 1


def test_a_task_that_the_client_does_not_have_is_named(run: Run, keys: Path, tmp_path: Path) -> None:
    path = client_toml(tmp_path)
    code, _, err = run("ask", "--config", path, "--task", "letters", "--input", image(tmp_path))
    assert code == 3 and "no task 'letters'" in err and "digits" in err


def test_a_broker_that_is_not_there_is_named(run: Run, keys: Path, tmp_path: Path) -> None:
    path = client_toml(tmp_path, port=1)
    code, _, err = run("ask", "--config", path, "--input", image(tmp_path), "--timeout", "0.5")
    assert code == 6
    assert "broker 127.0.0.1:1 cannot be reached: Connection refused; check [broker]" in err


def test_the_demo_says_which_package_it_lacks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rich.console", None)
    code, _, err = run("demo")
    assert code == 3 and "pip install 'edge-fi[demo]'" in err
