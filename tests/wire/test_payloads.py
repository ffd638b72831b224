"""Payloads: hand-written bytes, round trips, and refusal of anything short, long or out of range."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_fi.errors import DecodeError
from edge_fi.messages import DTYPES, VOTE_FORMS, Fate, Form, Outcome, Query, Status, Task, Tensor, Trust
from edge_fi.wire.payloads import (
    Accept,
    Ask,
    Feedback,
    Hello,
    Ready,
    Refusal,
    Rekey,
    Welcome,
    decode_accept,
    decode_ask,
    decode_forms,
    decode_hello,
    decode_outcome,
    decode_query,
    decode_ready,
    decode_rekey,
    decode_roster,
    decode_welcome,
    encode_accept,
    encode_ask,
    encode_feedback,
    encode_forms,
    encode_hello,
    encode_outcome,
    encode_query,
    encode_ready,
    encode_rekey,
    encode_roster,
    encode_welcome,
)

DAY_MS = 24 * 60 * 60 * 1000
TENSOR = Tensor("uint8", (2,), b"\x01\x02")
TENSOR_BYTES = bytes.fromhex("02 01 00000002 0102")
QUERY = Query(
    task=1,
    forms=frozenset({Form.LABEL, Form.LOGITS_8}),
    deadline_ms=2000,
    settle=b"settle-8",
    tensor=TENSOR,
)
QUERY_BYTES = bytes.fromhex("01 0082 000007d0") + b"settle-8" + TENSOR_BYTES
OUTCOME = Outcome(
    status=Status.ANSWERED,
    label=1,
    probabilities=(0.25, 0.75),
    agreement=0.5,
    strategy="linear",
    reason="unsure",
    label_set=(0, 1),
    fates=(("pi-1", Fate.COUNTED), ("pi-2", Fate.MISSING)),
    epoch=4,
    seq=3,
    elapsed_us=1000,
)
# 65,535 times 0.5, 0.25 and 0.75 is 32,767.5, 16,383.75 and 49,151.25: half up.
OUTCOME_BYTES = (
    bytes.fromhex("00000007 00 0001 8000 00000004 00000003 000003e8 0002 0002")
    + bytes.fromhex("4000 bfff 0000 0001")
    + b"\x06linear"
    + b"\x06unsure"
    + b"\x01\x04pi-1"
    + b"\x04\x04pi-2"
)

REKEY = Rekey(epoch=0x01020304, grace_ms=2000, epoch_key=b"k" * 32, verify=b"v" * 32)
APPLES = Task(name="apples", number=7, labels=("ripe", "r\xf6d"), shape=(2, 3), dtype="float32")
CELLS = Task(
    name="cells",
    number=9,
    labels=("a", "b", "c"),
    shape=(4,),
    dtype="int8",
    log_weight=(-1, 2),
    features=b"features",
)
ACCEPT = Accept(
    index=0x0102, version=0x03040506, task=7, tasks=(APPLES, CELLS), features=(b"", b"the map of cells")
)
APPLES_BYTES = (
    b"\x06apples"
    + bytes.fromhex("07 00 02 00000002 00000003 fff8 0000 0002")
    + b"\x04ripe"
    + b"\x04r\xc3\xb6d"
    + bytes.fromhex("00 00000000")
)
CELLS_BYTES = (
    b"\x05cells"
    + bytes.fromhex("09 03 01 00000004 ffff 0002 0003")
    + b"\x01a\x01b\x01c"
    + b"\x08features"
    + bytes.fromhex("00000010")
    + b"the map of cells"
)
GREATER = replace(CELLS, name="greater", labels=tuple("abcdefghijkl"))
MAP_BYTES = len(b"the map of cells")
ACCEPT_BYTES = bytes.fromhex("0102 03040506 07 02") + APPLES_BYTES + CELLS_BYTES
ROSTER_BYTES = bytes.fromhex("0102 0003 0007 0102")

forms = st.frozensets(st.sampled_from(VOTE_FORMS))
u32 = st.integers(0, 2**32 - 1)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Small tensors of every type and rank."""
    dtype = draw(st.sampled_from(list(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    size = DTYPES[dtype]
    for length in shape:
        size *= length
    return Tensor(dtype, shape, draw(st.binary(min_size=size, max_size=size)))


queries = st.builds(
    Query,
    task=st.integers(0, 255),
    forms=forms,
    deadline_ms=st.integers(1, DAY_MS),
    settle=st.binary(min_size=8, max_size=8),
    tensor=tensors(),
)
asks = st.builds(Ask, st.integers(1, 255), st.integers(1, DAY_MS), tensors())
names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", max_size=24)
shares = st.integers(0, 65535).map(lambda step: step / 65535)  # those that travel exactly


@st.composite
def outcomes(draw: st.DrawFn) -> Outcome:
    """Outcomes as a client reads them: without votes, numbers in steps."""
    probabilities = tuple(draw(st.lists(shares, max_size=5)))
    labels = st.integers(0, len(probabilities) - 1) if probabilities else st.nothing()
    label_set = tuple(n for n in range(len(probabilities)) if draw(st.booleans()))
    return Outcome(
        status=draw(st.sampled_from(Status)),
        label=draw(st.none() | labels),
        probabilities=probabilities,
        agreement=draw(shares),
        strategy=draw(names),
        reason=draw(names),
        label_set=label_set,
        fates=tuple(draw(st.lists(st.tuples(names, st.sampled_from(Fate)), max_size=4))),
        epoch=draw(u32),
        seq=draw(u32),
        elapsed_us=draw(st.integers(0, 2**32 - 1)),
    )


# Forms


def test_forms_are_bits_by_their_number() -> None:
    assert encode_forms(frozenset()) == 0
    assert encode_forms(frozenset({Form.LABEL})) == 0b10
    assert encode_forms(frozenset(VOTE_FORMS)) == 0b11111110


def test_to_abstain_needs_no_bit() -> None:
    assert encode_forms(frozenset({Form.ABSTAIN, Form.PROBS_4})) == 0b10000


def test_a_form_of_a_later_version_is_overlooked() -> None:
    assert decode_forms(0b1000000000010010) == {Form.LABEL, Form.PROBS_4}
    assert decode_forms(1) == frozenset()


# Ready and rekey


@given(forms, u32)
def test_ready_is_read_as_it_was_written(offered: frozenset[Form], epoch: int) -> None:
    assert decode_ready(encode_ready(Ready(offered, epoch))) == Ready(offered, epoch)


def test_ready_is_the_forms_and_the_epoch() -> None:
    ready = Ready(frozenset({Form.LABEL, Form.LOGITS_8}), 0x01020304)
    assert encode_ready(ready) == bytes.fromhex("0082 01020304")


@pytest.mark.parametrize("size", [0, 1, 2, 5, 7])
def test_ready_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(DecodeError, match=r"^payload$"):
        decode_ready(bytes(size))


def test_a_rekey_is_these_bytes() -> None:
    assert encode_rekey(REKEY) == bytes.fromhex("01020304 000007d0") + b"k" * 32 + b"v" * 32
    assert decode_rekey(encode_rekey(REKEY)) == REKEY


@pytest.mark.parametrize("size", [0, 71, 73])
def test_a_rekey_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(DecodeError, match=r"^payload$"):
        decode_rekey(bytes(size))


def test_a_grace_is_at_most_a_day() -> None:
    for grace_ms in (0, DAY_MS):
        assert decode_rekey(encode_rekey(replace(REKEY, grace_ms=grace_ms))).grace_ms == grace_ms
    with pytest.raises(DecodeError, match=r"^payload$"):
        decode_rekey(encode_rekey(replace(REKEY, grace_ms=DAY_MS + 1)))


def test_a_rekey_does_not_show_the_epoch_key() -> None:
    assert "kkkk" not in repr(REKEY) and b"kkkk".hex() not in repr(REKEY)


# Query and ask


def test_a_query_is_these_bytes() -> None:
    assert encode_query(QUERY) == QUERY_BYTES


@given(queries)
def test_a_query_is_read_as_it_was_written(query: Query) -> None:
    assert decode_query(encode_query(query)) == query


def test_an_ask_is_these_bytes() -> None:
    assert encode_ask(Ask(1, 2000, TENSOR)) == bytes.fromhex("01 000007d0") + TENSOR_BYTES


@given(asks)
def test_an_ask_is_read_as_it_was_written(ask: Ask) -> None:
    assert decode_ask(encode_ask(ask)) == ask


@pytest.mark.parametrize(
    ("code", "dtype", "size"), [(0, "float32", 4), (1, "float16", 2), (2, "uint8", 1), (3, "int8", 1)]
)
def test_every_element_type_has_its_code(code: int, dtype: str, size: int) -> None:
    ask = Ask(1, 1, Tensor(dtype, (3,), bytes(3 * size)))
    payload = encode_ask(ask)
    assert payload[5] == code
    assert decode_ask(payload) == ask


@pytest.mark.parametrize(
    "tensor",
    [
        "",
        "02",
        "02 01",
        "02 01 000000",
        "04 01 00000002 0102",  # no such type
        "ff 01 00000002 0102",
        "02 00 01",  # a scalar
        "02 09" + "00000001" * 9 + "01",  # too many dimensions
        "02 01 00000000",  # nothing in it
        "02 02 00000000 00000002",
        "02 01 00000002 01",
        "02 01 00000002 010203",
        "00 01 00000002 0102",  # the size of uint8, not of float32
        "02 08" + "ffffffff" * 8 + "01",  # a product of almost 2^256
        "02 02 00010000 00010000",  # 2^32: zero, were it taken in 32 bits
        "02 02 10000001 00000010" + "00" * 16,  # 2^32 + 16: sixteen, were it taken in 32 bits
    ],
)
def test_a_tensor_that_is_none_is_refused(tensor: str) -> None:
    with pytest.raises(DecodeError, match=r"^payload$"):
        decode_query(bytes.fromhex("01 0082 000007d0") + bytes(8) + bytes.fromhex(tensor))
    with pytest.raises(DecodeError, match=r"^payload$"):
        decode_ask(bytes.fromhex("01 000007d0" + tensor))


def test_a_tensor_may_have_eight_dimensions() -> None:
    ask = Ask(1, 1, Tensor("int8", (1,) * 7 + (2,), b"\x01\x02"))
    assert decode_ask(encode_ask(ask)) == ask


@pytest.mark.parametrize(("dtype", "elements"), [("uint8", 900_000), ("float32", 225_000)])
def test_a_tensor_is_at_most_900_000_bytes(dtype: str, elements: int) -> None:
    largest = Ask(1, 1, Tensor(dtype, (elements,), bytes(900_000)))
    assert decode_ask(encode_ask(largest)) == largest
    larger = Tensor(dtype, (elements + 1,), bytes((elements + 1) * DTYPES[dtype]))
    with pytest.raises(DecodeError, match=r"^payload$"):
        decode_ask(encode_ask(Ask(1, 1, larger)))


@pytest.mark.parametrize("size", [0, 1, 14])
def test_a_query_shorter_than_its_fixed_part_is_refused(size: int) -> None:
    with pytest.raises(DecodeError, match=r"^payload$"):
        decode_query(QUERY_BYTES[:size])


@pytest.mark.parametrize("size", [0, 1, 4])
def test_an_ask_shorter_than_its_fixed_part_is_refused(size: int) -> None:
    with pytest.raises(DecodeError, match=r"^payload$"):
        decode_ask(encode_ask(Ask(1, 2000, TENSOR))[:size])


def test_a_deadline_is_at_most_a_day() -> None:
    tensor = TENSOR_BYTES
    settle = bytes(8)
    day, more = (86_400_000).to_bytes(4, "big"), (86_400_001).to_bytes(4, "big")
    assert decode_query(b"\1\0\2" + day + settle + tensor).deadline_ms == DAY_MS
    assert decode_ask(b"\1" + day + tensor) == Ask(1, DAY_MS, TENSOR)
    with pytest.raises(DecodeError, match=r"^payload$"):
        decode_query(b"\1\0\2" + more + settle + tensor)
    with pytest.raises(DecodeError, match=r"^payload$"):
        decode_ask(b"\1" + more + tensor)


def test_a_deadline_is_at_least_a_millisecond() -> None:
    tensor, settle = TENSOR_BYTES, bytes(8)
    assert decode_query(b"\1\0\2\0\0\0\1" + settle + tensor).deadline_ms == 1
    with pytest.raises(DecodeError, match=r"^payload$"):
        decode_query(b"\1\0\2\0\0\0\0" + settle + tensor)
    assert decode_ask(b"\1\0\0\0\1" + tensor) == Ask(1, 1, TENSOR)
    with pytest.raises(DecodeError, match=r"^payload$"):
        decode_ask(b"\1\0\0\0\0" + tensor)


def test_feedback_is_an_ask_of_no_task() -> None:
    feedback = Feedback(0x01020304, 0x05060708, 0x0102)
    assert encode_feedback(feedback) == bytes.fromhex("00 01020304 05060708 0102")
    assert decode_ask(encode_feedback(feedback)) == feedback


@given(u32, u32, st.integers(0, 65_535))
def test_feedback_is_read_as_it_was_written(epoch: int, seq: int, label: int) -> None:
    assert decode_ask(encode_feedback(Feedback(epoch, seq, label))) == Feedback(epoch, seq, label)


@pytest.mark.parametrize("size", [1, 5, 10, 12, 20])
def test_feedback_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(DecodeError, match=r"^payload$"):
        decode_ask(bytes(size))


# Hello and welcome


def test_a_hello_is_these_bytes() -> None:
    payload = encode_hello(Hello(b"model-01", 7, b"task-dig"))
    assert payload == b"model-01\x07task-dig" + bytes(5)
    assert decode_hello(payload) == Hello(b"model-01", 7, b"task-dig", Trust.NOBODY, bytes(4))


def test_a_hello_says_who_tells_how_familiar_a_query_is_and_names_what_is_registered() -> None:
    for its in (
        Hello(b"model-01", 7, b"task-dig", Trust.DEVICE),
        Hello(b"model-01", 7, b"task-dig", Trust.GATE, b"gate"),
    ):
        assert encode_hello(its) == b"model-01\x07task-dig" + bytes([its.trust]) + its.gate
        assert decode_hello(encode_hello(its)) == its


@pytest.mark.parametrize("trust", ["03", "ff"])
def test_a_hello_with_a_trust_that_is_none_is_refused(trust: str) -> None:
    with pytest.raises(DecodeError, match=r"^payload$"):
        decode_hello(b"model-01\x07task-dig" + bytes.fromhex(trust) + bytes(4))


@pytest.mark.parametrize("trust", [Trust.NOBODY, Trust.DEVICE])
@pytest.mark.parametrize("at", range(4))
def test_a_hello_that_registers_nothing_names_no_gate(trust: Trust, at: int) -> None:
    name = bytes(at) + b"\x01" + bytes(3 - at)
    with pytest.raises(DecodeError, match=r"^payload$"):
        decode_hello(encode_hello(Hello(b"model-01", 7, b"task-dig", trust, name)))


def test_trusts_have_the_numbers_of_the_wire() -> None:
    assert {trust.name: trust.value for trust in Trust} == {"NOBODY": 0, "DEVICE": 1, "GATE": 2}


@pytest.mark.parametrize("size", [0, 17, 21, 23])
def test_a_hello_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(DecodeError, match=r"^payload$"):
        decode_hello(bytes(size))


def test_a_welcome_of_a_device_is_these_bytes() -> None:
    welcome = Welcome(
        session=15,
        boot=0x01020304,
        rejoin_window_ms=100,
        epoch=5,
        floor=6,
        epoch_key=b"k" * 32,
        verify=b"v" * 32,
    )
    payload = encode_welcome(welcome)
    assert payload == bytes.fromhex("0f 01020304 0064 00000005 00000006") + b"k" * 32 + b"v" * 32
    assert len(payload) == 79
    assert decode_welcome(payload, is_device=True) == welcome


def test_a_welcome_that_wants_the_gate_has_the_highest_bit_of_its_first_byte() -> None:
    welcome = Welcome(
        session=5,
        boot=1,
        rejoin_window_ms=2,
        epoch=3,
        floor=4,
        epoch_key=b"k" * 32,
        verify=b"v" * 32,
        wants_gate=True,
    )
    payload = encode_welcome(welcome)
    assert payload == b"\x85" + encode_welcome(replace(welcome, wants_gate=False))[1:]
    assert decode_welcome(payload, is_device=True) == welcome


@pytest.mark.parametrize("first", [0x10, 0x40, 0x90, 0xFF])
def test_the_other_bits_of_that_byte_are_0(first: int) -> None:
    with pytest.raises(DecodeError, match=r"^payload$"):
        decode_welcome(bytes([first]).ljust(79, b"\0"), is_device=True)


def test_nobody_wants_the_gate_of_a_client() -> None:
    with pytest.raises(DecodeError, match=r"^payload$"):
        decode_welcome(b"\x80".ljust(7, b"\0"), is_device=False)


def test_a_welcome_of_a_client_has_no_epoch() -> None:
    welcome = Welcome(session=3, boot=0x01020304, rejoin_window_ms=65535)
    payload = encode_welcome(welcome)
    assert payload == bytes.fromhex("03 01020304 ffff")
    assert decode_welcome(payload, is_device=False) == welcome


@pytest.mark.parametrize(("is_device", "sizes"), [(True, (0, 7, 47, 78, 80)), (False, (0, 6, 8, 79))])
def test_a_welcome_of_another_size_is_refused(is_device: bool, sizes: tuple[int, ...]) -> None:
    for size in sizes:
        with pytest.raises(DecodeError, match=r"^payload$"):
            decode_welcome(bytes(size), is_device=is_device)


@pytest.mark.parametrize(("is_device", "size"), [(True, 79), (False, 7)])
def test_a_session_has_a_number_of_four_bits(is_device: bool, size: int) -> None:
    assert decode_welcome(b"\x0f".ljust(size, b"\0"), is_device=is_device).session == 15
    with pytest.raises(DecodeError, match=r"^payload$"):
        decode_welcome(b"\x10".ljust(size, b"\0"), is_device=is_device)


def test_a_welcome_does_not_show_the_epoch_key() -> None:
    welcome = Welcome(session=1, boot=2, rejoin_window_ms=3, epoch=4, floor=5, epoch_key=b"k" * 32)
    assert "kkkk" not in repr(welcome)
    assert b"kkkk".hex() not in repr(welcome)


# Accept and refusal


def test_refusals_have_the_numbers_of_the_wire() -> None:
    assert {refusal.name: refusal.value for refusal in Refusal} == {
        "USED": 1,
        "EXPIRED": 2,
        "WITHDRAWN": 3,
        "NAME_TAKEN": 4,
        "FULL": 5,
        "BUSY": 6,
    }


def test_an_accept_is_these_bytes() -> None:
    assert encode_accept(ACCEPT, longest=1000) == ACCEPT_BYTES
    assert decode_accept(ACCEPT_BYTES) == ACCEPT


def test_an_accept_of_no_tasks_is_eight_bytes() -> None:
    accept = Accept(index=65_535, version=0, task=0, tasks=(), features=())
    assert encode_accept(accept, longest=8) == bytes.fromhex("ffff 00000000 00 00")
    assert decode_accept(encode_accept(accept, longest=8)) == accept


def test_a_task_that_would_not_fit_is_left_out_and_a_smaller_one_behind_it_is_not() -> None:
    swapped = replace(ACCEPT, tasks=(CELLS, APPLES), features=ACCEPT.features[::-1])
    apples, cells, mapless = (APPLES, b""), (CELLS, ACCEPT.features[1]), (CELLS, b"")
    whole, large, small = len(ACCEPT_BYTES), 8 + len(CELLS_BYTES) - MAP_BYTES, 8 + len(APPLES_BYTES)
    for accept, longest, said in (
        (ACCEPT, whole, (apples, cells)),
        (ACCEPT, whole - 1, (apples, mapless)),
        (ACCEPT, whole - MAP_BYTES, (apples, mapless)),
        (ACCEPT, whole - MAP_BYTES - 1, (apples,)),
        (ACCEPT, small, (apples,)),
        (swapped, large, (mapless,)),
        (swapped, large - 1, (apples,) if small < large else ()),
        (replace(ACCEPT, tasks=(GREATER, APPLES), features=(b"", b"")), small, (apples,)),
    ):
        payload = encode_accept(accept, longest=longest)
        assert len(payload) <= longest
        tasks, maps = tuple(task for task, _ in said), tuple(its for _, its in said)
        assert decode_accept(payload) == replace(ACCEPT, tasks=tasks, features=maps)


def test_a_map_that_would_not_fit_is_left_out_and_a_smaller_one_behind_it_is_not() -> None:
    small = replace(CELLS, name="small", number=8)
    accept = Accept(index=1, version=1, task=0, tasks=(CELLS, small), features=(bytes(1000), b"map"))
    assert decode_accept(encode_accept(accept, longest=200)) == replace(accept, features=(b"", b"map"))


def test_every_task_has_a_map_or_says_that_it_has_none() -> None:
    with pytest.raises(ValueError, match="zip"):
        encode_accept(replace(ACCEPT, features=(b"",)), longest=1000)


@pytest.mark.parametrize("size", range(len(ACCEPT_BYTES)))
def test_an_accept_that_is_cut_off_is_refused(size: int) -> None:
    with pytest.raises(DecodeError, match=r"^payload$"):
        decode_accept(ACCEPT_BYTES[:size])


ONE = "0001 00000000 00 01"
MADE = (
    "0161 01 02 01 00000001 fff8 0000 0002 0161 0162 00 00000000"  # task "a": 1 uint8, labels a and b, no map
)


@pytest.mark.parametrize(
    "payload",
    [
        ACCEPT_BYTES.hex() + "00",
        "0000 00000000 00 00",  # no index
        f"{ONE}",
        f"{ONE} 0141 {MADE[4:]}",  # a task cannot be called A
        f"{ONE} 01e9 {MADE[4:]}",
        f"{ONE} 00 {MADE[4:]}",
        f"{ONE} 0161 00 {MADE[7:]}",  # no task 0
        f"{ONE} 0161 01 04 {MADE[10:]}",  # no such type
        f"{ONE} 0161 01 ff {MADE[10:]}",
        f"{ONE} 0161 01 02 00 fff8 0000 0002 0161 0162 00 00000000",  # a scalar
        f"{ONE} 0161 01 02 09 {'00000001' * 9} fff8 0000 0002 0161 0162 00 00000000",
        f"{ONE} 0161 01 02 ff {'00000001' * 255} fff8 0000 0002 0161 0162 00 00000000",
        f"{ONE} 0161 01 02 01 00000000 fff8 0000 0002 0161 0162 00 00000000",
        f"{ONE} 0161 01 02 02 ffffffff ffffffff fff8 0000 0002 0161 0162 00 00000000",
        f"{ONE} 0161 01 02 01 00000001 0000 0000 0002 0161 0162 00 00000000",  # a scale of nothing
        f"{ONE} 0161 01 02 01 00000001 fff8 0000 0000 00 00000000",
        f"{ONE} 0161 01 02 01 00000001 fff8 0000 0001 0161 00 00000000",
        f"{ONE} 0161 01 02 01 00000001 fff8 0000 ffff 0161 0162 00 00000000",
        f"{ONE} 0161 01 02 01 00000001 fff8 0000 0002 0161 0161 00 00000000",  # one label twice
        f"{ONE} 0161 01 02 01 00000001 fff8 0000 0002 0161 00 00 00000000",
        f"{ONE} 0161 01 02 01 00000001 fff8 0000 0002 0161 01ff 00 00000000",  # no UTF-8
        f"{ONE} {MADE[:-11]} 07 {'00' * 7} 00000000",  # no digest
        f"{ONE} {MADE[:-11]} 08 {'00' * 8} 00000001",  # a map that is cut off
        f"{ONE} {MADE[:-8]} 00000001 00",  # a map that the task does not name
    ],
)
def test_an_accept_that_is_none_is_refused(payload: str) -> None:
    assert decode_accept(bytes.fromhex(f"{ONE} {MADE}")).tasks[0].labels == ("a", "b")
    with pytest.raises(DecodeError, match=r"^payload$"):
        decode_accept(bytes.fromhex(payload))


@given(data=st.data())
def test_an_accept_that_is_read_is_what_is_written(data: st.DataObject) -> None:
    payload = bytearray(ACCEPT_BYTES)
    for _ in range(data.draw(st.integers(0, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        accept = decode_accept(bytes(payload))
    except DecodeError:
        return
    assert encode_accept(accept, longest=len(payload)) == payload


# Roster


def test_a_roster_word_is_these_bytes() -> None:
    assert encode_roster(0x0102, frozenset({7, 3, 0x0102})) == ROSTER_BYTES
    assert decode_roster(ROSTER_BYTES) == (0x0102, frozenset({3, 7, 0x0102}))


@given(st.frozensets(st.integers(1, 65_535), max_size=10), st.integers(0, 65_535))
def test_a_roster_word_is_read_as_it_was_written(revoked: frozenset[int], given: int) -> None:
    highest = max([given, *revoked])
    assert decode_roster(encode_roster(highest, revoked)) == (highest, revoked)


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "00",
        "0005 03",
        "0005 0003 0003",  # twice
        "0005 0004 0003",  # out of order
        "0005 0000",
        "0005 0006",  # one that was never given
        "0000 0001",
    ],
)
def test_a_roster_word_that_is_none_is_refused(payload: str) -> None:
    with pytest.raises(DecodeError, match=r"^payload$"):
        decode_roster(bytes.fromhex(payload))


# Outcome


def test_an_outcome_is_these_bytes() -> None:
    assert encode_outcome(7, OUTCOME) == OUTCOME_BYTES


def test_an_outcome_is_read_in_steps_of_a_65535th() -> None:
    counter, read = decode_outcome(OUTCOME_BYTES)
    assert counter == 7
    assert read.probabilities == (0x4000 / 65535, 0xBFFF / 65535)
    assert read.agreement == 0x8000 / 65535
    assert (read.status, read.label, read.strategy) == (Status.ANSWERED, 1, "linear")
    assert read.fates == (("pi-1", Fate.COUNTED), ("pi-2", Fate.MISSING))
    assert (read.reason, read.label_set) == ("unsure", (0, 1))
    assert (read.epoch, read.seq, read.elapsed_us, read.votes) == (4, 3, 1000, ())


@given(st.integers(0, 2**32 - 1), outcomes())
def test_an_outcome_is_read_as_it_was_written(counter: int, outcome: Outcome) -> None:
    assert decode_outcome(encode_outcome(counter, outcome)) == (counter, outcome)


def test_an_outcome_without_label_says_so() -> None:
    payload = encode_outcome(0, Outcome(status=Status.NO_QUORUM))
    assert payload == bytes.fromhex("00000000 01 ffff 0000 00000000 00000000 00000000 0000 0000 00 00")
    assert decode_outcome(payload) == (0, Outcome(status=Status.NO_QUORUM))


def test_a_time_above_an_hour_is_told_as_the_longest_that_fits() -> None:
    payload = encode_outcome(0, Outcome(status=Status.NO_QUORUM, elapsed_us=2**33))
    assert decode_outcome(payload)[1].elapsed_us == 2**32 - 1


def test_a_probability_a_rounding_error_above_1_still_fits() -> None:
    outcome = Outcome(status=Status.ANSWERED, label=0, probabilities=(1 + 2**-52, 0.0), agreement=1.0)
    assert decode_outcome(encode_outcome(0, outcome))[1].probabilities == (1.0, 0.0)


HEAD = "00000007"
TAIL = "8000 00000004 00000003 000003e8"


# Fixed part to 25, probabilities to 29, the set to 33, strategy to 40, reason to 47, one fate and name to 53,
# the other to 59.
@pytest.mark.parametrize("size", sorted(set(range(59)) - {47, 53}))
def test_an_outcome_that_is_cut_off_is_refused(size: int) -> None:
    with pytest.raises(DecodeError, match=r"^payload$"):
        decode_outcome(OUTCOME_BYTES[:size])


def test_an_outcome_has_as_many_fates_as_follow() -> None:
    fates = [decode_outcome(OUTCOME_BYTES[:size])[1].fates for size in (47, 53, 59)]
    assert fates == [(), OUTCOME.fates[:1], OUTCOME.fates]


@pytest.mark.parametrize(
    "payload",
    [
        OUTCOME_BYTES.hex() + "00",  # a fate without a name
        OUTCOME_BYTES.hex() + "0001",
        f"{HEAD} 07 0001 {TAIL} 0002 0000 4000 bfff 00 00",  # no such status
        f"{HEAD} 00 0002 {TAIL} 0002 0000 4000 bfff 00 00",  # no such class
        f"{HEAD} 00 fffe {TAIL} 0002 0000 4000 bfff 00 00",
        f"{HEAD} 00 0000 {TAIL} 0000 0000 00 00",
        f"{HEAD} 00 0001 {TAIL} 1001 0000 {'0000' * 4097} 00 00",  # too many classes
        f"{HEAD} 00 0001 {TAIL} ffff 0000 00 00",
        f"{HEAD} 00 0001 {TAIL} 0002 ffff 4000 bfff 00 00",
        f"{HEAD} 00 0001 {TAIL} 0002 0001 4000 bfff 0002 00 00",  # a set with a class that there is not
        f"{HEAD} 00 0001 {TAIL} 0002 0002 4000 bfff 0001 0000 00 00",  # out of order
        f"{HEAD} 00 0001 {TAIL} 0002 0002 4000 bfff 0001 0001 00 00",  # twice
        f"{HEAD} 00 0001 {TAIL} 0002 0000 4000 bfff 01 e9 00",  # not ASCII
        f"{HEAD} 00 0001 {TAIL} 0002 0000 4000 bfff 00 01 e9",
        f"{HEAD} 00 0001 {TAIL} 0002 0000 4000 bfff 00 00 07 01 61",  # no such fate
    ],
)
def test_an_outcome_that_is_none_is_refused(payload: str) -> None:
    with pytest.raises(DecodeError, match=r"^payload$"):
        decode_outcome(bytes.fromhex(payload))


def test_an_outcome_may_have_4096_classes() -> None:
    payload = bytes.fromhex(f"{HEAD} 00 0fff {TAIL} 1000 0000 {'0000' * 4096} 00 00")
    assert decode_outcome(payload)[1].label == 4095


# Hostile bytes

Decoder = Callable[[bytes], object]
DECODERS: dict[str, tuple[Decoder, bytes]] = {
    "query": (decode_query, QUERY_BYTES),
    "ask": (decode_ask, encode_ask(Ask(1, 2000, TENSOR))),
    "hello": (decode_hello, bytes(22)),
    "feedback": (decode_ask, encode_feedback(Feedback(4, 3, 2))),
    "ready": (decode_ready, bytes(6)),
    "rekey": (decode_rekey, encode_rekey(REKEY)),
    "accept": (decode_accept, ACCEPT_BYTES),
    "roster": (decode_roster, ROSTER_BYTES),
    "welcome of a device": (lambda payload: decode_welcome(payload, is_device=True), bytes(79)),
    "welcome of a client": (lambda payload: decode_welcome(payload, is_device=False), bytes(7)),
    "outcome": (decode_outcome, OUTCOME_BYTES),
}


@pytest.mark.parametrize("name", DECODERS)
@given(payload=st.binary(max_size=100))
def test_arbitrary_bytes_are_read_or_refused_and_nothing_else(name: str, payload: bytes) -> None:
    with suppress(DecodeError):
        DECODERS[name][0](payload)


@pytest.mark.parametrize("name", DECODERS)
@given(data=st.data())
def test_a_mutated_payload_is_read_or_refused_and_nothing_else(name: str, data: st.DataObject) -> None:
    decode, genuine = DECODERS[name]
    mutated = bytearray(genuine)
    for _ in range(data.draw(st.integers(1, 3))):
        mutated[data.draw(st.integers(0, len(genuine) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(genuine)))
    for payload in (bytes(mutated), bytes(mutated[:cut])):
        with suppress(DecodeError):
            decode(payload)


@given(st.binary(max_size=60).map(lambda rest: OUTCOME_BYTES[:25] + rest))
def test_an_outcome_that_is_read_is_what_is_written(payload: bytes) -> None:
    try:
        counter, outcome = decode_outcome(payload)
    except DecodeError:
        return
    assert encode_outcome(counter, outcome) == payload
