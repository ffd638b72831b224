"""Vote codes: a distribution over classes in 2 bytes, or a few more.

All codes are absolute, so a vote means the same wherever it is read. `log_weight` is the device's
claim for itself in nats, on the task's scale [low, high]:

* label: `label | share 3 bits | weight 5 bits`, one big-endian integer of 2 bytes (3 above 256
  classes). Share s stands for a top probability in the middle of the s-th eighth of [1/C, 1]; the
  rest is spread evenly. With 16 classes or fewer this is a 12-bit code.
* probs-b: weight u8, then b bits a class, class 0 first, the most significant bit first, padded with
  zeros. Each is the probability relative to the greatest, in 2^b - 1 steps.
* logits-8: weight u8, then u8 a class: log-probability below the greatest, in sixteenths of a nat;
  254 is that or less, 255 is probability 0 (a class that the model does not know).
* abstain: no bytes.

Rounding is half up. Encoding needs finite input; the caller abstains otherwise.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from edge_fi.errors import DecodeError
from edge_fi.messages import Array, Form

SHARE_STEPS = 8
LABEL_WEIGHT_STEPS = 31
WEIGHT_STEPS = 255
LOGIT_STEPS_PER_NAT = 16
_UNKNOWN_CLASS = 255

_LIKELIHOODS = np.append(np.exp(np.arange(_UNKNOWN_CLASS) / -LOGIT_STEPS_PER_NAT), 0.0)
"""By code of logits-8: relative to the greatest."""
_PLACE_VALUES = {bits: 2.0 ** np.arange(bits - 1, -1, -1) for bits in (2, 3, 4, 6, 8)}
_BITS = {Form.PROBS_2: 2, Form.PROBS_3: 3, Form.PROBS_4: 4, Form.PROBS_6: 6, Form.PROBS_8: 8}


def size(form: Form, classes: int) -> int:
    """Bytes of a vote of this form."""
    if form is Form.ABSTAIN:
        return 0
    if form is Form.LABEL:
        return 2 if classes <= 256 else 3
    if form is Form.LOGITS_8:
        return 1 + classes
    return 1 + (classes * _BITS[form] + 7) // 8


def quantize(form: Form, probabilities: Array, log_weight: float, *, scale: tuple[int, int]) -> bytes:
    """Encode a vote. probabilities: (classes,), finite, sums to 1. scale: the task's log_weight."""
    if form is Form.LABEL:
        label = int(probabilities.argmax())
        top = float(probabilities[label])
        return quantize_label(label, top, log_weight, classes=len(probabilities), scale=scale)
    leading = bytes([_round(_share_of(scale, log_weight) * WEIGHT_STEPS)])
    greatest = float(probabilities.max())
    if form is Form.LOGITS_8:
        with np.errstate(divide="ignore"):
            below = np.log(greatest) - np.log(probabilities)
        steps = np.minimum(np.floor(below * LOGIT_STEPS_PER_NAT + 0.5), _UNKNOWN_CLASS - 1)
        codes = np.where(probabilities > 0, steps, _UNKNOWN_CLASS)
        return leading + codes.astype(np.uint8).tobytes()
    bits = _BITS[form]
    codes = np.floor(probabilities / greatest * (2**bits - 1) + 0.5).astype(np.uint8)
    planes = np.unpackbits(codes[:, None], axis=1)[:, 8 - bits :]
    return leading + np.packbits(planes.reshape(-1)).tobytes()


def quantize_label(
    label: int, top: float, log_weight: float, *, classes: int, scale: tuple[int, int]
) -> bytes:
    """Encode a label vote. top: the label's probability, at least 1 / classes."""
    above_chance = (top - 1 / classes) / (1 - 1 / classes)
    share = min(max(math.floor(above_chance * SHARE_STEPS), 0), SHARE_STEPS - 1)
    value = label << 8 | share << 5 | _round(_share_of(scale, log_weight) * LABEL_WEIGHT_STEPS)
    return value.to_bytes(size(Form.LABEL, classes), "big")


def dequantize(form: Form, code: bytes, classes: int, *, scale: tuple[int, int]) -> tuple[Array, float]:
    """Decode a vote of a form other than ABSTAIN: (classes,) probabilities and the log weight.

    Raises DecodeError("vote") for a code that no encoder makes.
    """
    if len(code) != size(form, classes):
        raise DecodeError("vote")
    low, high = scale
    if form is Form.LABEL:
        value = int.from_bytes(code, "big")
        label = value >> 8
        if label >= classes:
            raise DecodeError("vote")
        log_weight = low + (high - low) * (value & 31) / LABEL_WEIGHT_STEPS
        return _spread_label(label, value >> 5 & 7, classes), log_weight
    log_weight = low + (high - low) * code[0] / WEIGHT_STEPS
    if form is Form.LOGITS_8:
        likelihoods = _LIKELIHOODS[np.frombuffer(code, np.uint8, offset=1)]
        if likelihoods.max() != 1.0:
            raise DecodeError("vote")
    else:
        likelihoods = _unpack(code, classes, _BITS[form])
    return likelihoods / likelihoods.sum(), log_weight


def cheapest_first(forms: Sequence[Form], classes: int) -> list[Form]:
    """The same forms, by the bytes of a vote of so many classes."""
    return sorted(forms, key=lambda form: (size(form, classes), form))


def _share_of(scale: tuple[int, int], log_weight: float) -> float:
    """Where a weight lies on the scale, 0 to 1."""
    low, high = scale
    return (min(max(log_weight, low), high) - low) / (high - low)


@lru_cache(maxsize=256)  # all that 10 classes have; 8 MB at 4,096 classes
def _spread_label(label: int, share: int, classes: int) -> Array:
    """The distribution of a label's share, read-only."""
    top = 1 / classes + (1 - 1 / classes) * (share + 0.5) / SHARE_STEPS
    probabilities = np.full(classes, (1 - top) / (classes - 1))
    probabilities[label] = top
    probabilities.flags.writeable = False
    return probabilities


def _unpack(code: bytes, classes: int, bits: int) -> Array:
    stream = np.unpackbits(np.frombuffer(code, np.uint8, offset=1))
    used = classes * bits
    values = stream[:used].reshape(classes, bits) @ _PLACE_VALUES[bits]
    padding = code[-1] & (1 << len(stream) - used) - 1
    if padding or values.max() != 2**bits - 1:
        raise DecodeError("vote")
    return np.asarray(values)


def _round(value: float) -> int:
    return math.floor(value + 0.5)
