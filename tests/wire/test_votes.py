"""Vote codes: hand-computed bytes, error bounds for each form, and refusal of all that no encoder makes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_fi.errors import DecodeError
from edge_fi.messages import VOTE_FORMS, Array, Form
from edge_fi.wire.votes import cheapest_first, dequantize, quantize, size

SCALE = (-8, 0)
CLASSES = (2, 10, 17, 257, 4096)
STEPS = {Form.PROBS_2: 3, Form.PROBS_3: 7, Form.PROBS_4: 15, Form.PROBS_6: 63, Form.PROBS_8: 255}


def distribution(classes: int, seed: int, sharpness: float) -> Array:
    """A distribution that the seed alone decides; sharp ones have zeros and near zeros."""
    scores = np.random.default_rng(seed).normal(size=classes) * sharpness
    likelihoods = np.exp(scores - scores.max())
    return np.asarray(likelihoods / likelihoods.sum())


any_distribution = st.builds(
    distribution,
    st.sampled_from(CLASSES),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.1, 1.0, 10.0, 1000.0]),
)


# Sizes


@pytest.mark.parametrize(
    ("classes", "sizes"),
    [
        # label, probs-2, -3, -4, -6, -8, logits-8
        (2, (2, 2, 2, 2, 3, 3, 3)),
        (10, (2, 4, 5, 6, 9, 11, 11)),
        (17, (2, 6, 8, 10, 14, 18, 18)),
        (256, (2, 65, 97, 129, 193, 257, 257)),
        (257, (3, 66, 98, 130, 194, 258, 258)),
        (4096, (3, 1025, 1537, 2049, 3073, 4097, 4097)),
    ],
)
def test_the_size_of_a_vote_follows_from_form_and_classes(classes: int, sizes: tuple[int, ...]) -> None:
    assert tuple(size(form, classes) for form in VOTE_FORMS) == sizes


def test_an_abstention_has_no_bytes() -> None:
    assert size(Form.ABSTAIN, 10) == 0


@given(any_distribution, st.sampled_from(VOTE_FORMS))
def test_a_vote_has_the_size_that_is_told_for_it(probabilities: Array, form: Form) -> None:
    assert len(quantize(form, probabilities, -1.0, scale=SCALE)) == size(form, len(probabilities))


@pytest.mark.parametrize("classes", CLASSES)
def test_a_richer_form_never_costs_less(classes: int) -> None:
    costs = [size(form, classes) for form in VOTE_FORMS]
    assert costs == sorted(costs)


@pytest.mark.parametrize("classes", CLASSES)
def test_forms_are_ordered_by_their_cost_and_of_equal_ones_the_poorer_goes_first(classes: int) -> None:
    assert cheapest_first(VOTE_FORMS[::-1], classes) == list(VOTE_FORMS)
    assert cheapest_first([Form.LOGITS_8, Form.LABEL], classes) == [Form.LABEL, Form.LOGITS_8]


# Bytes worked out by hand


@pytest.mark.parametrize(
    ("form", "probabilities", "code"),
    [
        # (0.7 - 1/4) / (3/4) = 0.6, the 4th eighth; weight 31, so 1 << 8 | 4 << 5 | 31.
        (Form.LABEL, [0.1, 0.7, 0.1, 0.1], "019f"),
        # Certainty is the last eighth, not a ninth.
        (Form.LABEL, [0.0, 0.0, 1.0], "02ff"),
        # Chance is the first.
        (Form.LABEL, [0.25, 0.25, 0.25, 0.25], "001f"),
        # 3 * (1, 1/2, 1/4, 1/4) = 3, 1.5, 0.75, 0.75, half up: 11 10 01 01.
        (Form.PROBS_2, [0.5, 0.25, 0.125, 0.125], "ffe5"),
        # 7 * (1/2, 1, 1/2) = 3.5, 7, 3.5, half up: 100 111 100, then 7 zeros.
        (Form.PROBS_3, [0.25, 0.5, 0.25], "ff9e00"),
        # 15 * (1/2, 1, 1/2) = 7.5, 15, 7.5: 8 f 8, then 4 zeros.
        (Form.PROBS_4, [0.25, 0.5, 0.25], "ff8f80"),
        # 63 * (1, 1/3): 111111 010101, then 4 zeros.
        (Form.PROBS_6, [0.75, 0.25], "fffd50"),
        # 255 * (1, 1/3).
        (Form.PROBS_8, [0.75, 0.25], "ffff55"),
        # 16 * ln 2 = 11.09; the class with probability 0 is unknown.
        (Form.LOGITS_8, [0.5, 0.25, 0.25, 0.0], "ff000b0bff"),
        # 16 * 20 nats is beyond 254, and still not unknown.
        (Form.LOGITS_8, [1.0, math.exp(-20)], "ff00fe"),
    ],
)
def test_a_vote_is_these_bytes(form: Form, probabilities: list[float], code: str) -> None:
    assert quantize(form, np.array(probabilities), 0.0, scale=SCALE).hex() == code


def test_above_256_classes_a_label_takes_three_bytes() -> None:
    probabilities = np.zeros(257)
    probabilities[256] = 1.0
    assert quantize(Form.LABEL, probabilities, 0.0, scale=SCALE).hex() == "0100ff"


def test_with_16_classes_a_label_is_a_code_of_12_bits() -> None:
    probabilities = np.zeros(16)
    probabilities[15] = 1.0
    assert quantize(Form.LABEL, probabilities, 0.0, scale=SCALE).hex() == "0fff"


def test_a_tie_is_a_vote_for_the_lower_class() -> None:
    assert quantize(Form.LABEL, np.array([0.0, 0.5, 0.5]), -8.0, scale=SCALE)[0] == 1


@pytest.mark.parametrize("share", range(8))
def test_a_share_stands_for_the_middle_of_its_eighth(share: int) -> None:
    # Five classes: eighths of [1/5, 1] are 1/10 wide, their middles 0.25, 0.35, ... 0.95.
    top = 0.25 + share / 10
    probabilities, _ = dequantize(Form.LABEL, bytes([3, share << 5]), 5, scale=SCALE)
    rest = (1 - top) / 4
    np.testing.assert_allclose(probabilities, [rest, rest, rest, top, rest], rtol=1e-12)


@pytest.mark.parametrize(
    ("form", "code", "likelihoods"),
    [
        (Form.PROBS_2, "00e5", [3, 2, 1, 1]),
        (Form.PROBS_3, "009e00", [4, 7, 4]),
        (Form.PROBS_4, "008f80", [8, 15, 8]),
        (Form.PROBS_6, "00fd50", [63, 21]),
        (Form.PROBS_8, "00ff55", [255, 85]),
        (Form.LOGITS_8, "000010ff", [1, math.exp(-1), 0]),
        (Form.LOGITS_8, "0000fe", [1, math.exp(-15.875)]),
    ],
)
def test_these_bytes_are_a_vote(form: Form, code: str, likelihoods: list[float]) -> None:
    probabilities, log_weight = dequantize(form, bytes.fromhex(code), len(likelihoods), scale=SCALE)
    np.testing.assert_allclose(probabilities, np.array(likelihoods) / sum(likelihoods), rtol=1e-12)
    assert log_weight == -8.0


# Weights


@pytest.mark.parametrize(
    ("log_weight", "byte", "five_bits"),
    [
        (-8.0, 0, 0),
        (0.0, 255, 31),
        (-4.0, 128, 16),  # 127.5 and 15.5: half up
        (-2.0, 191, 23),  # 191.25 and 23.25
        (-100.0, 0, 0),
        (3.0, 255, 31),
    ],
)
def test_a_weight_is_a_step_of_the_scale_and_never_beyond_it(
    log_weight: float, byte: int, five_bits: int
) -> None:
    probabilities = np.array([0.5, 0.5])
    assert quantize(Form.PROBS_8, probabilities, log_weight, scale=SCALE)[0] == byte
    assert quantize(Form.LOGITS_8, probabilities, log_weight, scale=SCALE)[0] == byte
    assert quantize(Form.LABEL, probabilities, log_weight, scale=SCALE)[1] & 31 == five_bits


def test_half_a_step_of_a_weight_is_rounded_up_and_not_to_the_even_one() -> None:
    probabilities = np.array([0.5, 0.5])
    # Steps of two nats: one nat above the lowest is half a step.
    assert quantize(Form.PROBS_8, probabilities, -509.0, scale=(-510, 0))[0] == 1
    assert quantize(Form.LABEL, probabilities, -61.0, scale=(-62, 0))[1] & 31 == 1


@pytest.mark.parametrize("scale", [(-8, 0), (-3, 5), (-32768, 32767), (2, 3)])
@pytest.mark.parametrize("form", [Form.LABEL, Form.PROBS_2, Form.LOGITS_8])
def test_the_ends_of_the_scale_travel_exactly(form: Form, scale: tuple[int, int]) -> None:
    for end in scale:
        code = quantize(form, np.array([0.9, 0.1]), float(end), scale=scale)
        assert dequantize(form, code, 2, scale=scale)[1] == end


def test_the_weight_of_a_label_has_32_steps() -> None:
    _, log_weight = dequantize(Form.LABEL, b"\x00\x17", 4, scale=(-31, 0))
    assert log_weight == -8  # 23 steps of one nat above -31


def test_the_weight_of_the_other_forms_has_256_steps() -> None:
    _, log_weight = dequantize(Form.LOGITS_8, b"\x17\x00\x00", 2, scale=(-255, 0))
    assert log_weight == -232  # 23 steps of one nat above -255


@given(st.floats(-8, 0), st.sampled_from(VOTE_FORMS))
def test_a_weight_is_at_most_half_a_step_off(log_weight: float, form: Form) -> None:
    code = quantize(form, np.array([0.9, 0.1]), log_weight, scale=SCALE)
    step = 8 / (31 if form is Form.LABEL else 255)
    assert abs(dequantize(form, code, 2, scale=SCALE)[1] - log_weight) <= step / 2 + 1e-12


# Error bounds


@given(any_distribution)
def test_a_label_keeps_the_first_choice_and_its_share_within_half_an_eighth(probabilities: Array) -> None:
    classes = len(probabilities)
    read, _ = dequantize(
        Form.LABEL, quantize(Form.LABEL, probabilities, 0, scale=SCALE), classes, scale=SCALE
    )
    assert read.argmax() == probabilities.argmax()
    assert abs(read.max() - probabilities.max()) <= (1 - 1 / classes) / 16 + 1e-12


@given(any_distribution, st.sampled_from(list(STEPS)))
def test_a_probability_relative_to_the_greatest_is_at_most_half_a_step_off(
    probabilities: Array, form: Form
) -> None:
    classes = len(probabilities)
    read, _ = dequantize(form, quantize(form, probabilities, 0, scale=SCALE), classes, scale=SCALE)
    error = np.abs(read / read.max() - probabilities / probabilities.max())
    assert error.max() <= 0.5 / STEPS[form] + 1e-12


@given(any_distribution)
def test_a_log_probability_is_at_most_half_a_sixteenth_of_a_nat_off(probabilities: Array) -> None:
    classes = len(probabilities)
    code = quantize(Form.LOGITS_8, probabilities, 0, scale=SCALE)
    read, _ = dequantize(Form.LOGITS_8, code, classes, scale=SCALE)
    known = probabilities > 0
    below = np.log(probabilities.max()) - np.log(probabilities[known])
    read_below = np.log(read.max()) - np.log(read[known])
    within = below < 254 / 16
    assert np.abs(read_below - below)[within].max() <= 1 / 32 + 1e-9
    np.testing.assert_allclose(read_below[~within], 254 / 16)
    assert not read[~known].any()


@given(any_distribution, st.sampled_from(VOTE_FORMS))
def test_what_is_read_sums_to_1(probabilities: Array, form: Form) -> None:
    code = quantize(form, probabilities, 0, scale=SCALE)
    read, _ = dequantize(form, code, len(probabilities), scale=SCALE)
    assert read.shape == probabilities.shape
    assert read.min() >= 0
    assert abs(read.sum() - 1) < 1e-9


# Hostile bytes


@pytest.mark.parametrize("form", VOTE_FORMS)
@pytest.mark.parametrize("classes", CLASSES)
def test_a_vote_that_is_a_byte_short_or_long_is_refused(form: Form, classes: int) -> None:
    code = quantize(form, distribution(classes, 1, 1.0), 0, scale=SCALE)
    for wrong in (code[:-1], code + b"\0", b""):
        with pytest.raises(DecodeError, match=r"^vote$"):
            dequantize(form, wrong, classes, scale=SCALE)


@pytest.mark.parametrize(
    ("form", "code", "classes"),
    [
        (Form.LABEL, "0400", 4),
        (Form.LABEL, "010100", 257),
        (Form.PROBS_2, "ff95", 4),  # 10 01 01 01: nothing is the greatest
        (Form.PROBS_8, "fffe00", 2),
        (Form.PROBS_8, "ff0000", 2),  # would divide by zero
        (Form.PROBS_3, "ff9e01", 3),  # padding
        (Form.PROBS_3, "ff9e40", 3),
        (Form.LOGITS_8, "ff0101", 2),  # nothing is the greatest
        (Form.LOGITS_8, "ffffff", 2),  # every class unknown: would divide by zero
    ],
)
def test_a_code_that_no_encoder_makes_is_refused(form: Form, code: str, classes: int) -> None:
    with pytest.raises(DecodeError, match=r"^vote$"):
        dequantize(form, bytes.fromhex(code), classes, scale=SCALE)


def test_the_last_class_is_a_label() -> None:
    assert dequantize(Form.LABEL, b"\x03\x00", 4, scale=SCALE)[0].argmax() == 3
    assert dequantize(Form.LABEL, b"\x01\x00\x00", 257, scale=SCALE)[0].argmax() == 256


@given(st.sampled_from(VOTE_FORMS), st.sampled_from((2, 3, 10, 17)), st.data())
def test_arbitrary_bytes_are_refused_or_are_what_an_encoder_makes(
    form: Form, classes: int, data: st.DataObject
) -> None:
    right_size = st.binary(min_size=size(form, classes), max_size=size(form, classes))
    # Few random codes have a greatest class: give that one to some of them.
    zero_or_full = right_size.map(
        lambda code: code[:1] + (b"\0" if form is Form.LOGITS_8 else b"\xff") + code[2:]
    )
    code = data.draw(st.one_of(st.binary(max_size=30), right_size, zero_or_full))
    try:
        probabilities, log_weight = dequantize(form, code, classes, scale=SCALE)
    except DecodeError:
        return
    assert quantize(form, probabilities, log_weight, scale=SCALE) == code


@pytest.mark.parametrize("form", VOTE_FORMS)
@pytest.mark.parametrize("classes", CLASSES)
def test_a_vote_read_and_written_again_is_the_same_bytes(form: Form, classes: int) -> None:
    for seed in range(8):
        code = quantize(form, distribution(classes, seed, 2.0), -seed, scale=SCALE)
        probabilities, log_weight = dequantize(form, code, classes, scale=SCALE)
        assert quantize(form, probabilities, log_weight, scale=SCALE) == code
