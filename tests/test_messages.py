"""The values everything else speaks of: what they refuse, and what they say of themselves."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from nacl.bindings import crypto_generichash_blake2b_salt_personal

from edge_fi import errors
from edge_fi.effects import Deliver, Infer, Joined, Noticed, Publish, Rejected, Ticket
from edge_fi.messages import VOTE_FORMS, Fate, Form, Outcome, Query, Status, Task, Tensor, Vote

FIELDS: dict[str, Any] = {
    "name": "sorts",
    "number": 7,
    "labels": ("ripe", "rotten"),
    "shape": (2, 3),
    "dtype": "float32",
}


def task(**changes: Any) -> Task:
    """A task that differs from the one above in this."""
    return Task(**{**FIELDS, **changes})


# Tasks


def test_a_task_knows_its_sizes() -> None:
    assert task().classes == 2
    assert task().tensor_bytes == 2 * 3 * 4
    assert task().log_weight == (-8, 0)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("float16", 2), ("uint8", 1), ("int8", 1)])
def test_an_element_has_its_size(dtype: str, size: int) -> None:
    assert task(dtype=dtype, shape=(5,)).tensor_bytes == 5 * size


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "-"},
        {"name": "a-9" + "z" * 29},
        {"number": 1},
        {"number": 255},
        {"labels": tuple(str(number) for number in range(4096))},
        {"labels": ("a", "b" * 255)},
        {"labels": ("a", "\N{GREEK SMALL LETTER ALPHA}" * 127)},
        {"shape": (1,)},
        {"shape": (1,) * 8},
        {"shape": (225_000,)},
        {"dtype": "uint8", "shape": (900, 1000)},
        {"log_weight": (-32768, 32767)},
        {"log_weight": (-1, 0)},
    ],
)
def test_a_task_may_have_this(changes: dict[str, Any]) -> None:
    task(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "name '' must be 1 to 32 of the characters a-z, 0-9 and '-'"),
        ({"name": "a" * 33}, f"name '{'a' * 33}' must be 1 to 32 of the characters a-z, 0-9 and '-'"),
        ({"name": "Sorts"}, "name 'Sorts' must be 1 to 32 of the characters a-z, 0-9 and '-'"),
        ({"name": "two words"}, "name 'two words' must be 1 to 32 of the characters a-z, 0-9 and '-'"),
        ({"name": "é"}, "name 'é' must be 1 to 32 of the characters a-z, 0-9 and '-'"),
        ({"number": 0}, "number must be 1 to 255"),
        ({"number": 256}, "number must be 1 to 255"),
        ({"labels": ("a",)}, "labels must be 2 to 4096 names"),
        ({"labels": tuple(str(number) for number in range(4097))}, "labels must be 2 to 4096 names"),
        ({"labels": ("a", "b", "a")}, "labels must differ from one another"),
        ({"labels": ("a", "")}, "each label must be 1 to 255 bytes of UTF-8"),
        ({"labels": ("a", "b" * 256)}, "each label must be 1 to 255 bytes of UTF-8"),
        (
            {"labels": ("a", "\N{GREEK SMALL LETTER ALPHA}" * 128)},
            "each label must be 1 to 255 bytes of UTF-8",
        ),
        ({"dtype": "float64"}, "dtype must be one of float32, float16, uint8, int8"),
        ({"shape": ()}, "shape must be 1 to 8 positive sizes"),
        ({"shape": (1,) * 9}, "shape must be 1 to 8 positive sizes"),
        ({"shape": (2, 0)}, "shape must be 1 to 8 positive sizes"),
        ({"shape": (-2, -3)}, "shape must be 1 to 8 positive sizes"),
        ({"shape": (225_001,)}, "shape times dtype must be at most 900000 bytes"),
        ({"shape": (2**32, 2**32)}, "shape times dtype must be at most 900000 bytes"),
        ({"log_weight": (0, 0)}, "log_weight must be two whole numbers of nats, the lower first"),
        ({"log_weight": (1, 0)}, "log_weight must be two whole numbers of nats, the lower first"),
        ({"log_weight": (-32769, 0)}, "log_weight must be two whole numbers of nats, the lower first"),
        ({"log_weight": (0, 32768)}, "log_weight must be two whole numbers of nats, the lower first"),
    ],
)
def test_a_task_may_not_have_this(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        task(**changes)


def test_the_digest_of_a_task_is_over_these_bytes() -> None:
    content = bytes.fromhex("07 00 02")  # number, float32, rank
    content += bytes.fromhex("00000002 00000003 fff8 0000 0002")  # sizes, -8 and 0 nats, labels
    content += b"\x04ripe" + b"\x06rotten" + b"\x00"
    expected = crypto_generichash_blake2b_salt_personal(
        content, digest_size=8, person=b"fi1 task".ljust(16, b"\0")
    )
    assert task().definition() == content
    assert task().digest() == expected


def test_whatever_changes_the_meaning_of_a_vote_changes_the_digest() -> None:
    digests = {
        task().digest(),
        task(number=8).digest(),
        task(labels=("rotten", "ripe")).digest(),
        task(labels=("ripe", "rotten", "raw")).digest(),
        task(labels=("riper", "otten")).digest(),
        task(shape=(3, 2)).digest(),
        task(shape=(6,)).digest(),
        task(dtype="float16").digest(),
        task(log_weight=(-9, 0)).digest(),
        task(log_weight=(-8, 1)).digest(),
    }
    assert len(digests) == 10


def test_names_and_descriptions_do_not_change_the_digest() -> None:
    assert task(name="other", description="of apples").digest() == task().digest()


# Tensors, votes and outcomes


def test_a_tensor_fits_its_task() -> None:
    assert Tensor("float32", (2, 3), bytes(24)).fits(task())


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor("int8", (2, 3), bytes(24)),
        Tensor("float32", (3, 2), bytes(24)),
        Tensor("float32", (6,), bytes(24)),
        Tensor("float32", (2, 3), bytes(23)),
        Tensor("float32", (2, 3), bytes(25)),
    ],
)
def test_any_other_tensor_does_not_fit(tensor: Tensor) -> None:
    assert not tensor.fits(task())


def test_a_vote_is_for_its_likeliest_class_and_of_equal_ones_for_the_lowest() -> None:
    for probabilities, label in (([0.2, 0.5, 0.3], 1), ([0.4, 0.2, 0.4], 0)):
        vote = Vote(device="pi-1", probabilities=np.array(probabilities), log_weight=0.0, form=Form.LABEL)
        assert vote.label == label
        assert isinstance(vote.label, int)


def test_an_outcome_tells_who_met_which_fate() -> None:
    fates = (("pi-3", Fate.COUNTED), ("pi-1", Fate.MISSING), ("pi-2", Fate.COUNTED))
    outcome = Outcome(status=Status.ANSWERED, fates=fates)
    assert outcome.members(Fate.COUNTED) == ("pi-3", "pi-2")
    assert outcome.members(Fate.MISSING) == ("pi-1",)
    assert outcome.members(Fate.LATE) == ()


def test_an_outcome_of_nothing_is_empty() -> None:
    outcome = Outcome(status=Status.NO_MEMBERS)
    assert (outcome.label, outcome.probabilities, outcome.agreement, outcome.votes) == (None, (), 0.0, ())
    assert (outcome.seq, outcome.elapsed_us) == (0, 0)


# Numbers that travel


def test_forms_fates_and_statuses_have_the_numbers_of_the_wire() -> None:
    assert [(form.name, form.value) for form in Form] == [
        ("ABSTAIN", 0),
        ("LABEL", 1),
        ("PROBS_2", 2),
        ("PROBS_3", 3),
        ("PROBS_4", 4),
        ("PROBS_6", 5),
        ("PROBS_8", 6),
        ("LOGITS_8", 7),
    ]
    assert [fate.name for fate in sorted(Fate)] == [
        "ASKED",
        "COUNTED",
        "DECLINED",
        "SILENCED",
        "MISSING",
        "LATE",
        "REVOKED",
    ]
    assert [fate.value for fate in Fate] == list(range(7))
    assert [status.name for status in sorted(Status)] == [
        "ANSWERED",
        "NO_QUORUM",
        "ABSTAINED",
        "NO_MEMBERS",
        "OVERLOADED",
        "REFUSED",
        "UNREACHABLE",
    ]
    assert [status.value for status in Status] == list(range(7))


def test_a_form_is_named_as_in_configuration_files() -> None:
    assert [form.title for form in VOTE_FORMS] == [
        "label",
        "probs-2",
        "probs-3",
        "probs-4",
        "probs-6",
        "probs-8",
        "logits-8",
    ]


def test_to_abstain_is_no_form_of_a_vote() -> None:
    assert set(Form) - set(VOTE_FORMS) == {Form.ABSTAIN}


# All of them


@pytest.mark.parametrize(
    "value",
    [
        task(),
        Tensor("int8", (1,), b"\0"),
        Query(task=1, forms=frozenset(), deadline_ms=1, settle=bytes(8), tensor=Tensor("int8", (1,), b"\0")),
        Vote(device="pi-1", probabilities=np.ones(1), log_weight=0.0, form=Form.LABEL),
        Outcome(status=Status.NO_QUORUM),
        Publish("topic", b""),
        Ticket(1, 2),
        Infer(Ticket(1, 2), Tensor("int8", (1,), b"\0")),
        Deliver(None, Outcome(status=Status.NO_QUORUM)),
        Rejected(reason="late"),
        Joined("pi-1"),
        Noticed("pi-1", "ready"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_value_and_no_effect_can_be_changed(value: Any) -> None:
    names = getattr(value, "_fields", None) or [field.name for field in dataclasses.fields(value)]
    for name in names:
        with pytest.raises(AttributeError):  # FrozenInstanceError is one
            setattr(value, name, None)


def test_a_message_is_sent_once_and_not_kept_unless_told() -> None:
    assert (Publish("topic", b"").qos, Publish("topic", b"").retain) == (0, False)


# Errors


def test_every_error_has_its_own_exit_code() -> None:
    assert errors.EdgeFiError("x").exit_code == 1
    assert errors.ConfigError("x").exit_code == 3
    assert errors.KeyFileError("x").exit_code == 4
    assert errors.ModelError("x").exit_code == 5
    assert errors.TransportError("x").exit_code == 6


@pytest.mark.parametrize("kind", [errors.DecodeError, errors.SealError])
def test_a_protocol_error_is_its_reason(kind: type[errors.ProtocolError]) -> None:
    error = kind("length")
    assert (error.reason, str(error)) == ("length", "length")
    assert isinstance(error, errors.ProtocolError)
    assert isinstance(error, errors.EdgeFiError)
