"""Feature maps: the same space for everybody, and over the wire."""

import math
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_fi.errors import DecodeError
from edge_fi.messages import MAX_TENSOR_BYTES, Array, Tensor
from edge_fi.voting import features
from edge_fi.voting.features import KINDS, LEAST_PUBLIC, MAX_AXES, FeatureMap, intrinsic_dimension
from edge_fi.voting.hog import hog

PIXELS = np.array([[[x], [y]] for x in (-4.0, 4.0) for y in (-1.0, 1.0)] * 10)
"""40 images of 2 x 1 pixels; their standard deviations are 4 and 1, and nothing goes with anything."""


def normal(*size: int, seed: int = 1) -> Array:
    """Independent, of variance 1."""
    return np.random.default_rng(seed).normal(size=size)


def twice(queries: Array) -> Array:
    """Stands for a frozen network."""
    return np.asarray(2 * queries.reshape(len(queries), -1))


@pytest.fixture(scope="module")
def made() -> FeatureMap:
    """Of queries of 5 columns."""
    return features.fit(normal(100, 5))


# The space


def test_an_axis_is_divided_by_the_fourth_root_of_its_variance() -> None:
    # Over the largest spread the variances are 1 and 1/16, half-whitened 1 and 1/4; their mean is to be 1.
    made = features.fit(PIXELS, kind="pixels")
    np.testing.assert_allclose(made.public.var(axis=0), [1.6, 0.4])
    np.testing.assert_allclose(made.public.mean(axis=0), [0, 0], atol=1e-12)
    np.testing.assert_allclose(np.abs(made.rows(np.array([[[8.0], [0.0]]]))), [[2 * math.sqrt(1.6), 0]])


def test_columns_are_in_units_of_their_own() -> None:
    one = features.fit(normal(100, 4))
    other = features.fit(normal(100, 4) * [1, 1e3, 1e-3, 1] + [0, 5, 0, -1e4])
    np.testing.assert_allclose(np.abs(other.public), np.abs(one.public), atol=1e-6)


def test_the_public_queries_are_carried_in_the_space(made: FeatureMap) -> None:
    np.testing.assert_allclose(made.rows(normal(100, 5)), made.public, atol=1e-12)
    assert made.public.shape == (100, 5)
    np.testing.assert_allclose((made.public**2).mean(), 1)


def test_only_the_first_axes_are_kept_and_none_of_rounding() -> None:
    assert len(features.fit(normal(100, 8), axes=3).steps) == 3
    copied = np.hstack([normal(100, 3), normal(100, 3)])
    assert len(features.fit(copied).steps) == 3
    assert len(features.fit(normal(200, MAX_AXES + 10)).steps) == MAX_AXES


@pytest.mark.parametrize("constant", [0.0, 0.1, -3e5])
def test_a_constant_column_tells_nothing(constant: float) -> None:
    # The standard deviation of many 0.1 is no exact 0.
    public = np.column_stack([normal(100, 3), np.full(100, constant)])
    made = features.fit(public)
    assert len(made.steps) == 3
    np.testing.assert_allclose(made.rows(public[:5] + np.array([0, 0, 0, 1e-3])), made.public[:5], atol=1e-2)


def test_the_dimension_is_that_of_the_public_queries() -> None:
    plane = normal(300, 2) @ normal(2, 6, seed=2)
    assert 1.6 < features.fit(plane).dimension <= 2.4
    # An estimate is never above what there is.
    assert features.fit(normal(LEAST_PUBLIC, 1)).dimension == 1


# Intrinsic dimension


def test_a_square_has_two_dimensions_wherever_it_lies() -> None:
    square = np.random.default_rng(1).random((800, 2))
    flat = intrinsic_dimension(square)
    assert flat == pytest.approx(2, abs=0.3)
    turned = square @ np.linalg.qr(normal(7, 7))[0][:2] * 3 + 1
    assert intrinsic_dimension(turned) == pytest.approx(flat, rel=1e-6)


@pytest.mark.parametrize("dimension", [1, 3, 5])
def test_a_cube_has_its_dimensions(dimension: int) -> None:
    cube = np.random.default_rng(2).random((800, dimension))
    assert intrinsic_dimension(cube) == pytest.approx(dimension, rel=0.25)


def test_squared_distances_are_what_they_say() -> None:
    rows, others = np.array([[0.0, 0], [3, 4]]), np.array([[0.0, 0], [3, 0], [0, 1]])
    assert features.squared_distances(rows, others).tolist() == [[0, 9, 1], [25, 16, 18]]


def test_rounding_makes_no_negative_distance() -> None:
    rows = normal(50, 20) * 1e6
    assert features.squared_distances(rows, rows).min() >= 0


# Kinds


def test_pixels_are_means_of_blocks() -> None:
    images = np.random.default_rng(3).random((40, 28, 30))
    made = features.fit(images, kind="pixels")
    assert made.side == 2 and len(made.mean) == 14 * 15
    np.testing.assert_allclose(made.mean.reshape(14, 15)[3, 7], images[:, 6:8, 14:16].mean(), rtol=1e-12)
    assert len(features.fit(images, kind="pixels", side=7).mean) == 4 * 4


def test_small_images_keep_their_pixels() -> None:
    assert features.fit(normal(40, 8, 8), kind="pixels").side == 1


def test_hog_is_of_the_image() -> None:
    images = np.random.default_rng(4).random((40, 14, 14))
    np.testing.assert_allclose(features.fit(images, kind="hog").mean, hog(images).mean(axis=0))


@pytest.mark.parametrize("kind", ["pixels", "hog"])
def test_a_colour_image_is_looked_at_in_grey_wherever_its_channels_are(kind: str) -> None:
    images = np.random.default_rng(5).random((40, 9, 9, 3))
    grey = features.fit(images.mean(axis=3), kind=kind)
    for coloured in (images, np.moveaxis(images, 3, 1)):
        made = features.fit(coloured, kind=kind)
        np.testing.assert_allclose(made.mean, grey.mean)
        np.testing.assert_allclose(made.rows(coloured), made.public, atol=1e-9)


def test_columns_take_any_shape() -> None:
    queries = normal(100, 2, 3, 4)
    np.testing.assert_allclose(
        features.fit(queries).public, features.fit(queries.reshape(100, 24)).public, atol=1e-12
    )


def test_a_network_is_run_and_carried() -> None:
    made = features.fit(normal(40, 2, 3), kind="onnx", network=b"model", embedding=twice)
    np.testing.assert_allclose(made.mean, 2 * normal(40, 2, 3).reshape(40, 6).mean(axis=0))
    decoded = FeatureMap.decode(made.encoded)
    assert decoded.network == b"model" and decoded.encoded == made.encoded
    with pytest.raises(ValueError, match="needs something that runs its network"):
        decoded.rows(normal(1, 2, 3))
    running = replace(decoded, embedding=twice)
    np.testing.assert_allclose(running.rows(normal(40, 2, 3)), made.public, atol=0.02)


# Queries


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int8"])
def test_a_query_is_one_row(made: FeatureMap, dtype: str) -> None:
    elements = np.array([3, 1, 0, 2, 5], np.dtype(dtype).newbyteorder("<"))
    row = made.row(Tensor(dtype, (5,), elements.tobytes()))
    np.testing.assert_allclose(row, made.rows(np.array([[3.0, 1, 0, 2, 5]]))[0])


@pytest.mark.parametrize(
    "tensor",
    [Tensor("uint8", (4,), bytes(4)), Tensor("uint8", (5, 1), bytes(5)), Tensor("uint8", (5,), bytes(6))],
)
def test_a_query_of_another_shape_is_refused(made: FeatureMap, tensor: Tensor) -> None:
    with pytest.raises(ValueError):
        made.row(tensor)


def test_the_shape_that_was_expected_is_named(made: FeatureMap) -> None:
    with pytest.raises(ValueError, match=r"features are of queries \[5\], not \[2, 3\]"):
        made.rows(normal(1, 2, 3))


@pytest.mark.parametrize("kind", ["columns", "pixels", "hog", "onnx"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("place", [(4, 4), (14, 14)])
def test_what_is_not_finite_stays_so_and_in_its_row(kind: str, value: float, place: tuple[int, int]) -> None:
    # The last row and column of 15 are in no block of 2 x 2, nor in a cell.
    images = np.random.default_rng(6).random((40, 15, 15))
    network, embedding = (b"model", twice) if kind == "onnx" else (b"", None)
    made = features.fit(images, kind=kind, side=2, network=network, embedding=embedding)
    asked = images[:2].copy()
    asked[0][place] = value
    rows = made.rows(asked)
    assert not np.isfinite(rows[0]).any()
    np.testing.assert_allclose(rows[1], made.public[1], atol=1e-9)


# Bytes


@pytest.mark.parametrize("kind", ["columns", "pixels", "hog"])
def test_what_is_decoded_is_the_map_rounded_and_has_the_same_bytes(kind: str) -> None:
    made = replace(features.fit(np.random.default_rng(7).random((60, 8, 8)), kind=kind), origin=-1.5)
    decoded = FeatureMap.decode(made.encoded)
    assert decoded.encoded == made.encoded
    assert decoded.digest == made.digest == features.digest(made.encoded)
    assert (decoded.kind, decoded.shape, decoded.side, decoded.origin) == (kind, (8, 8), made.side, -1.5)
    assert decoded.dimension == pytest.approx(made.dimension, rel=1e-6)
    np.testing.assert_allclose(decoded.public, made.public, atol=float(made.steps.max()) * 0.51)
    queries = np.random.default_rng(8).random((9, 8, 8))
    np.testing.assert_allclose(decoded.rows(queries), made.rows(queries), atol=0.02)


def test_a_map_may_carry_no_public_queries(made: FeatureMap) -> None:
    bare = replace(made, public=np.zeros((0, 5)))
    assert FeatureMap.decode(bare.encoded).public.shape == (0, 5)


def test_a_digest_is_of_everything(made: FeatureMap) -> None:
    others = [
        replace(made, origin=1.0),
        replace(made, dimension=2.0),
        replace(made, mean=made.mean + 1),
        replace(made, public=made.public[:-1]),
        replace(made, shape=(5, 1)),
    ]
    digests = {each.digest for each in (made, *others)}
    assert len(digests) == 6
    assert {len(each) for each in digests} == {8}


@given(st.data())
def test_damaged_bytes_are_a_decode_error_or_another_map(made: FeatureMap, data: st.DataObject) -> None:
    damaged = bytearray(made.encoded)
    # The head is short, and hit too seldom by chance.
    places = st.one_of(st.integers(0, 39), st.integers(0, len(damaged) - 1))
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    try:
        decoded = FeatureMap.decode(bytes(damaged))
    except DecodeError:
        pass
    else:
        assert decoded.rows(np.zeros((1, *decoded.shape))).shape == (1, 5)


@given(st.binary(max_size=200), st.booleans())
def test_noise_is_a_decode_error(content: bytes, has_magic: bool) -> None:
    with pytest.raises(DecodeError):
        FeatureMap.decode(b"FM1" * has_magic + content)


def test_cut_or_lengthened_bytes_are_a_decode_error(made: FeatureMap) -> None:
    for length in (*range(60), *range(60, len(made.encoded), 7)):
        with pytest.raises(DecodeError, match="features"):
            FeatureMap.decode(made.encoded[:length])
    with pytest.raises(DecodeError, match="features"):
        FeatureMap.decode(made.encoded + b"\0")


def head(**changes: Any) -> bytes:
    """The start of a map of one column and one axis, all of whose other bytes are zero."""
    is_so: dict[str, Any] = {"kind": 0, "side": 1, "shape": (1,), "d": 1, "m": 1, "p": 0, **changes}
    shape = is_so["shape"]
    return (
        b"FM1"
        + struct.pack(f">BBB{len(shape)}I", is_so["kind"], is_so["side"], len(shape), *shape)
        + struct.pack(">IHIff", is_so["d"], is_so["m"], is_so["p"], 1.0, 0.0)
    )


BODY = np.array([0, 1], "<f4").tobytes() + np.array([1], "<f2").tobytes() + np.array([1], "<f4").tobytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": len(KINDS)},
        {"side": 0},
        {"kind": 1, "side": 0, "shape": (1, 1)},
        {"kind": 1, "side": 2, "shape": (1, 1)},
        {"shape": ()},
        {"shape": (1,) * 9},
        {"shape": (0,)},
        {"shape": (2,)},
        {"d": 0},
        {"m": 0},
        {"m": MAX_AXES + 1},
        {"p": 2**32 - 1},
        {"kind": 1, "shape": (2**32 - 1, 2**32 - 1)},
        {"kind": 2, "shape": (MAX_TENSOR_BYTES, 2)},
        {"kind": 3},
    ],
)
def test_an_absurd_head_is_a_decode_error_without_any_great_array(changes: dict[str, Any]) -> None:
    assert FeatureMap.decode(head() + BODY).shape == (1,)
    with pytest.raises(DecodeError, match="features"):
        FeatureMap.decode(head(**changes) + BODY)


def test_steps_that_are_not_finite_are_a_decode_error() -> None:
    for step in (np.inf, np.nan, 0, -1):
        with pytest.raises(DecodeError, match="features"):
            FeatureMap.decode(head(p=1) + BODY[:-4] + np.array([step], "<f4").tobytes() + b"\0")


# Refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "wavelets"}, "kind must be one of"),
        ({"kind": "onnx"}, "onnx with a network"),
        ({"network": b"model"}, "onnx with a network"),
        ({"scale": np.ones(4)}, "do not fit"),
        ({"axes": np.ones((5, 4))}, "do not fit"),
        ({"public": np.ones((9, 4))}, "do not fit"),
        ({"mean": np.full(5, np.nan)}, "do not fit"),
        ({"origin": math.inf}, "do not fit"),
        ({"steps": np.ones(0), "axes": np.ones((0, 5)), "public": np.ones((9, 0))}, "do not fit"),
        ({"scale": np.zeros(5)}, "must be positive"),
        ({"steps": -np.ones(5)}, "must be positive"),
        ({"dimension": 0.0}, "must be positive"),
        ({"dimension": math.nan}, "must be positive"),
        ({"dimension": 5.5}, "must be positive"),
        ({"shape": (6,)}, r"does not give 5 columns for shape \[6\]"),
        ({"side": 256}, "side must be 1 to 255"),
    ],
)
def test_parts_that_do_not_fit_are_refused(made: FeatureMap, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(made, **changes)


@pytest.mark.parametrize(
    ("queries", "options", "message"),
    [
        (normal(LEAST_PUBLIC - 1, 5), {}, f"{LEAST_PUBLIC - 1} public queries are too few"),
        (np.full((40, 5), 0.1), {}, "all the same"),
        (np.full((40, 6, 6), 0.1), {"kind": "pixels"}, "all the same"),
        (np.where(np.eye(40), np.nan, 0), {}, "not finite"),
        (normal(40, 5), {"kind": "pixels"}, r"shape \[5\] is no image: use kind columns"),
        (normal(40, 5), {"kind": "hog"}, r"shape \[5\] is no image"),
        (normal(40, 5, 5, 5), {"kind": "hog"}, r"shape \[5, 5, 5\] is no image"),
        (normal(40, 1, 9), {"kind": "hog"}, r"an image of shape \[1, 9\] is too small for kind hog"),
        (normal(40, 4, 4), {"kind": "pixels", "side": 5}, "too small for kind pixels"),
        (normal(40, 4, 4), {"kind": "pixels", "side": 0}, "side must be"),
        (normal(40, 5), {"axes": 0}, f"axes must be 1 to {MAX_AXES}"),
        (normal(40, 5), {"axes": MAX_AXES + 1}, f"axes must be 1 to {MAX_AXES}"),
        (normal(40, 5), {"kind": "onnx", "network": b"model"}, "runs its network"),
        (normal(40, 5), {"kind": "onnx", "embedding": twice}, "onnx with a network"),
        (np.zeros((LEAST_PUBLIC, 65_537)), {}, "65537 columns are too many"),
    ],
)
def test_what_makes_no_map_is_named(queries: Array, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        features.fit(queries, **options)


def test_where_all_rows_are_copies_there_is_one_dimension() -> None:
    assert features.intrinsic_dimension(np.ones((40, 3))) == 1.0
