"""`edge-fi ask` and `edge-fi feedback`: what an outcome says of itself, and how its answer is told later."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from live import free_port
from numpy.typing import NDArray
from parties import OPEN, Done, Parties, main_here, model_options

from edge_fi.cli.ask import NO_OUTCOME, _as_text, as_fields
from edge_fi.demo.members import heldout
from edge_fi.errors import ConfigError, TransportError
from edge_fi.messages import Outcome, Status, Task

TASK = Task(name="sorts", number=1, labels=("a", "b", "c"), shape=(2,), dtype="uint8")
USAGE = 2


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("declined", "every device that answered abstained"),
        ("unfamiliar", "unlike anything that a device has learnt from"),
        ("unsure", "least confidence"),
        ("of a later version", "it abstained"),
    ],
)
def test_why_a_federation_abstains_is_said(reason: str, words: str) -> None:
    outcome = Outcome(status=Status.ABSTAINED, reason=reason)
    assert _as_text(outcome, TASK).startswith("no outcome: ") and words in _as_text(outcome, TASK)
    assert as_fields(outcome, TASK)["reason"] == reason


def test_a_label_set_names_the_others() -> None:
    answered = Outcome(
        status=Status.ANSWERED, label=1, probabilities=(0.1, 0.5, 0.4), label_set=(1, 2), epoch=5, seq=6
    )
    assert "\nor c" in _as_text(answered, TASK)
    assert as_fields(answered, TASK)["label_set"] == ["b", "c"]
    assert as_fields(answered, TASK)["query"] == "5-6"
    unsure = Outcome(status=Status.ABSTAINED, reason="unsure", label_set=(1, 2))
    assert "\nperhaps b, c" in _as_text(unsure, TASK)
    assert as_fields(unsure, TASK)["query"] is None


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A client's configuration, in a federation of one device, which has a gate."""
    folder = tmp_path_factory.mktemp("feedback")
    with Parties(folder, OPEN) as parties:
        parties.start_gateway()
        for role, name, options in (("device", "pi-1", model_options("pi-02")), ("client", "desk", [])):
            invite = (parties.invite(name, role=role) / f"{name}.invite").read_text()
            assert main_here(role, "join", "--out", folder / name, *options, stdin=invite).code == 0
        images, labels = heldout()
        known = [n for n, label in enumerate(labels) if label in (4, 6, 7, 8)]
        queries = np.stack([np.frombuffer(images[n].content, np.uint8).reshape(8, 8) for n in known])
        np.savez(folder / "own.npz", queries=queries, labels=labels[known])
        path = folder / "pi-1" / "device.toml"
        familiarize = ("device", "familiarize", "--config", path, "--data", folder / "own.npz", "--json")
        assert main_here(*familiarize).fields["unseen"] == ["0", "1", "2", "3", "5", "9"]
        parties.start_devices(path)
        yield folder / "desk" / "client.toml"


def ask(desk: Path, image: NDArray[np.uint8]) -> Done:
    """What a federation says of it."""
    np.save(desk.with_name("image.npy"), image)
    return main_here("ask", "--config", desk, "--input", desk.with_name("image.npy"), "--json")


def asked(desk: Path) -> str:
    """The name of a query that was answered: of an image as its device has learnt from."""
    images, labels = heldout()
    content = images[labels.tolist().index(4)].content
    fields = ask(desk, np.frombuffer(content, np.uint8).reshape(8, 8)).fields
    assert fields["status"] == "answered" and fields["strategy"] == "familiarity"
    return str(fields["query"])


def test_a_query_unlike_anything_has_no_outcome_by_the_gate_that_was_registered(desk: Path) -> None:
    checkered = np.indices((8, 8)).sum(axis=0) % 2 * 255
    ended = ask(desk, checkered.astype(np.uint8))
    assert ended.code == NO_OUTCOME
    assert (ended.fields["status"], ended.fields["reason"]) == ("abstained", "unfamiliar")


def test_an_answer_is_noted_once(desk: Path) -> None:
    query = asked(desk)
    words = ("feedback", "--config", desk, "--query", query)
    ended = main_here(*words, "--label", "4", "--json")
    assert ended.code == 0
    assert ended.fields == {"query": query, "label": "4", "status": "answered", "noted": True}
    again = main_here(*words, "--label", "4")
    assert again.code == NO_OUTCOME and again.out.startswith(
        "not noted: the gateway does not know this query"
    )
    assert main_here("feedback", "--config", desk, "--query", asked(desk), "--label", "9").out == "noted\n"


def test_a_query_that_the_gateway_does_not_know_is_refused(desk: Path) -> None:
    ended = main_here("feedback", "--config", desk, "--query", "1-1", "--label", "4", "--json")
    assert ended.code == NO_OUTCOME and ended.fields["status"] == "refused" and not ended.fields["noted"]


@pytest.mark.parametrize("query", ["7", "a-b", "1-", "4294967296-1", "1-2-3"])
def test_what_names_no_query_is_refused(desk: Path, query: str) -> None:
    ended = main_here("feedback", "--config", desk, "--query", query, "--label", "4")
    assert ended.code == USAGE and "--query is two numbers" in ended.err


def test_what_names_no_label_or_task_is_refused(desk: Path) -> None:
    for options, words in (
        (["--label", "x"], "label 'x' is none of task digits: 0, 1, 2"),
        (["--label", "10"], "label '10' is none of task digits"),
        (["--label", "4", "--task", "letters"], "name the task with --task: digits"),
    ):
        ended = main_here("feedback", "--config", desk, "--query", "1-1", *options)
        assert ended.code == ConfigError.exit_code and words in ended.err


def test_a_broker_that_is_not_there_is_named(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_FI_BROKER__PORT", str(free_port()))
    words = ("feedback", "--config", desk, "--query", "1-1", "--label", "4", "--timeout", "0.5")
    ended = main_here(*words)
    assert ended.code == TransportError.exit_code and "cannot be reached" in ended.err
