"""Gates: familiar with their own region, small, and nothing to fear from one that is damaged."""

import math
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_fi.errors import DecodeError
from edge_fi.messages import MAX_CLASSES, Array
from edge_fi.voting import features, gate
from edge_fi.voting.clusters import LEAST, LEAST_SPREAD, Clusters
from edge_fi.voting.features import MAX_AXES, FeatureMap
from edge_fi.voting.gate import (
    ALONE,
    FAR,
    LEAST_ROWS,
    MAX_BYTES,
    MAX_CLUSTERS,
    RANDOM_FEATURES,
    Gate,
    Gates,
    gate_digest,
    most_clusters,
    random_features,
)

HERE, THERE = np.array([2.0, 0, 0, 0, 0]), np.array([-2.0, 0, 0, 0, 0])
"""Where two devices have their data."""
HEAD = struct.Struct(">3s8sBBHfff")


def around(place: Array, count: int, seed: int) -> Array:
    """Rows of this region."""
    return place + np.random.default_rng(seed).normal(0, 0.5, (count, len(place)))


def labels(count: int, classes: int = 3) -> Any:
    """One class after another."""
    return np.arange(count) % classes


@pytest.fixture(scope="module")
def shared() -> FeatureMap:
    """Of public queries of both regions, as it is shipped."""
    queries = np.vstack([around(HERE, 100, 1), around(THERE, 100, 2)])
    return FeatureMap.decode(gate.anchored(features.fit(queries)).encoded)


@pytest.fixture(scope="module")
def bare(shared: FeatureMap) -> FeatureMap:
    """The map without its public queries."""
    return FeatureMap.decode(replace(shared, public=shared.public[:0]).encoded)


@pytest.fixture(scope="module")
def here(shared: FeatureMap) -> Gate:
    """Of the device whose data are here."""
    return gate.fit(shared.rows(around(HERE, 150, 3)), labels(150), shared, classes=3)


@pytest.fixture(scope="module")
def there(shared: FeatureMap) -> Gate:
    """Of the device whose data are there."""
    return gate.fit(shared.rows(around(THERE, 150, 4)), labels(150), shared, classes=3)


@pytest.fixture(scope="module")
def dense(bare: FeatureMap) -> Gate:
    """Of a device that had no public queries: a density alone."""
    return gate.fit(bare.rows(around(HERE, 150, 3)), labels(150), bare, classes=3)


# What it says


def test_a_device_is_more_familiar_with_its_own_region(
    shared: FeatureMap, here: Gate, there: Gate, dense: Gate, bare: FeatureMap
) -> None:
    near, far = shared.rows(around(HERE, 50, 5)), shared.rows(around(THERE, 50, 6))
    for own, its_map, mine, other in (
        (here, shared, near, far),
        (there, shared, far, near),
        (dense, bare, near, far),
    ):
        weights = own.weigh_all(mine, its_map)
        assert np.isfinite(weights).all()
        # Regions touch: all but the outer quarters.
        assert np.quantile(weights, 0.25) > np.quantile(own.weigh_all(other, its_map), 0.75)
    assert (here.weigh_all(near, shared) > there.weigh_all(near, shared)).all()


def test_one_cluster_alone_weighs_by_its_density_in_closed_form(bare: FeatureMap) -> None:
    own = Gate(
        map_digest=bare.digest,
        own=Clusters(np.zeros((1, 5)), np.array([20.0]), np.array([0.5])),
        coverage=np.zeros(3),
    )
    # The squared distance is 4.
    density = math.log(20) - bare.dimension / 2 * (math.log(0.5) + 4 / 0.5)
    row = np.array([0, 2.0, 0, 0, 0])
    assert own.weigh(row, bare) == pytest.approx(ALONE * density - bare.origin)


def test_the_densities_of_clusters_add_up(bare: FeatureMap) -> None:
    def own(*counts: float) -> Gate:
        count = len(counts)
        same = Clusters(np.ones((count, 5)), np.array(counts), np.full(count, 0.3))
        return Gate(map_digest=bare.digest, own=same, coverage=np.zeros(3))

    row = np.array([1.0, 1, 0, 1, 1])
    assert own(7, 13, 5).weigh(row, bare) == pytest.approx(own(25).weigh(row, bare))


def test_twice_as_many_samples_are_twice_the_density(bare: FeatureMap, dense: Gate) -> None:
    doubled = replace(dense, own=dense.own._replace(counts=2 * dense.own.counts))
    row = bare.rows(HERE[None])
    more = doubled.weigh_all(row, bare) - dense.weigh_all(row, bare)
    np.testing.assert_allclose(more, ALONE * math.log(2))


def test_a_ratio_and_a_density_are_heard_alike(shared: FeatureMap, here: Gate) -> None:
    rows = shared.rows(around(HERE, 5, 7))
    alone = replace(here, ratio=None).weigh_all(rows, shared) + shared.origin
    assert here.ratio is not None
    log_odds = random_features(rows) @ here.ratio + here.bias
    np.testing.assert_allclose(
        here.weigh_all(rows, shared), (alone / ALONE + log_odds) / 2 - shared.origin, rtol=1e-9
    )


def test_a_weight_is_told_from_the_origin(shared: FeatureMap, here: Gate) -> None:
    moved = replace(shared, origin=shared.origin + 3)
    row = shared.rows(HERE[None])[0]
    assert here.weigh(row, moved) == pytest.approx(here.weigh(row, shared) - 3)


def test_one_row_weighs_as_among_others(shared: FeatureMap, here: Gate) -> None:
    rows = shared.rows(around(HERE, 5, 8))
    one_by_one = [here.weigh(row, shared) for row in rows]
    np.testing.assert_allclose(here.weigh_all(rows, shared), one_by_one, rtol=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e3, 1e200])
def test_what_is_far_out_or_not_finite_is_unfamiliar(
    shared: FeatureMap, here: Gate, bare: FeatureMap, dense: Gate, value: float
) -> None:
    rows = shared.rows(np.vstack([HERE, HERE]))
    rows[0, 2] = value
    for own, its_map in ((here, shared), (dense, bare)):
        weights = own.weigh_all(rows, its_map)
        assert weights[0] == -math.inf
        assert math.isfinite(weights[1])


def test_almost_all_of_its_own_data_are_familiar(shared: FeatureMap, here: Gate) -> None:
    assert np.isfinite(here.weigh_all(shared.rows(around(HERE, 150, 3)), shared)).all()


def test_below_its_floor_a_query_is_unfamiliar(bare: FeatureMap, dense: Gate) -> None:
    row = bare.rows(HERE[None])[0]
    density = (dense.weigh(row, bare) + bare.origin) / ALONE
    assert replace(dense, floor=density - 1e-6).weigh(row, bare) == dense.weigh(row, bare)
    assert replace(dense, floor=density + 1e-6).weigh(row, bare) == -math.inf
    assert replace(dense, floor=math.inf).weigh(row, bare) == -math.inf


# Making one


def test_a_gate_tells_how_many_samples_of_each_class_there_are(shared: FeatureMap) -> None:
    rows = np.zeros((LEAST_ROWS, 5))
    told = gate.fit(rows, np.array([0, 2, 2, 0, 2, 2, 2, 2, 0, 2]), shared, classes=4)
    assert told.coverage.tolist() == [3, 0, 7, 0]


def test_more_samples_of_a_class_than_two_bytes_hold_are_the_most_they_hold(bare: FeatureMap) -> None:
    told = gate.fit(np.zeros((70_000, 5)), np.zeros(70_000, np.int64), bare, classes=2)
    assert told.coverage.tolist() == [65_535, 0]
    assert told.own.counts.tolist() == [65_535]


def test_samples_that_are_all_the_same_make_a_gate(shared: FeatureMap) -> None:
    own = gate.fit(np.ones((40, 5)), labels(40), shared, classes=3)
    assert own.own.spreads.tolist() == [LEAST_SPREAD]
    assert math.isfinite(own.weigh(np.ones(5), shared))


def test_data_like_the_public_ones_have_a_ratio_that_tells_nothing(shared: FeatureMap) -> None:
    own = gate.fit(shared.public, labels(200), shared, classes=3)
    assert own.ratio is not None
    log_odds = random_features(shared.public) @ own.ratio + own.bias
    np.testing.assert_allclose(log_odds, math.log(200), atol=1e-4)
    # This is the gate whose typical weight is the origin.
    assert np.median(own.weigh_all(shared.public, shared)) == pytest.approx(0, abs=0.5)


def test_a_ratio_of_zeros_travels(shared: FeatureMap, here: Gate) -> None:
    flat = replace(here, ratio=np.zeros(RANDOM_FEATURES))
    decoded = Gate.decode(flat.encode(shared), shared)
    assert decoded.ratio is not None and not decoded.ratio.any()


def test_samples_at_the_border_of_what_is_taken_make_a_gate(shared: FeatureMap) -> None:
    rows = shared.rows(around(HERE, 60, 9))
    rows[0] = FAR
    own = gate.fit(rows, labels(60), shared, classes=3)
    assert own.own.counts.sum() == 60
    assert not np.isnan(own.weigh_all(rows, shared)).any()


def test_the_same_data_make_the_same_gate(bare: FeatureMap, dense: Gate) -> None:
    again = gate.fit(bare.rows(around(HERE, 150, 3)), labels(150), bare, classes=3)
    assert again.encode(bare) == dense.encode(bare)


def test_random_features_are_the_same_for_everybody() -> None:
    rows = np.array([[0.0, 0.0], [1.0, 0.0]])
    made = random_features(rows)
    assert made.shape == (2, RANDOM_FEATURES) and made.min() == 0
    np.testing.assert_array_equal(random_features(rows), made)
    # Half the biases are positive; W's rows have length 1 on the average.
    assert (made[0] > 0).mean() == pytest.approx(0.5, abs=0.05)
    weights = random_features(np.array([[1e6, 0.0]])) / 1e6
    assert (weights**2).sum() == pytest.approx(RANDOM_FEATURES / 2 / 2, rel=0.1)


@pytest.mark.parametrize(
    ("rows", "own_labels", "message"),
    [
        (np.zeros((20, 4)), labels(20), "rows have 4 features, but the task's map gives 5"),
        (np.zeros(5), labels(5), "rows have 5 features"),
        (np.zeros((LEAST_ROWS - 1, 5)), labels(LEAST_ROWS - 1), f"{LEAST_ROWS - 1} samples are too few"),
        (np.zeros((0, 5)), labels(0), "0 samples are too few"),
        (np.where(np.eye(20, 5), np.nan, 0), labels(20), "not finite"),
        (np.where(np.eye(20, 5), np.inf, 0), labels(20), "not finite"),
        (np.where(np.eye(20, 5), -1.1 * FAR, 0), labels(20), "nothing like the public queries"),
        (np.zeros((20, 5)), labels(19), "each of 20 samples needs one label, 0 to 2"),
        (np.zeros((20, 5)), labels(20, 4), "needs one label"),
        (np.zeros((20, 5)), labels(20) - 1, "needs one label"),
    ],
)
def test_what_makes_no_gate_is_named(shared: FeatureMap, rows: Array, own_labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gate.fit(rows, own_labels, shared, classes=3)


def test_more_classes_than_a_gate_has_room_for_are_named(shared: FeatureMap) -> None:
    with pytest.raises(
        ValueError, match=f"a gate of {MAX_CLASSES} classes does not fit in {MAX_BYTES} bytes"
    ):
        gate.fit(np.zeros((20, 5)), labels(20), shared, classes=MAX_CLASSES)


# The map's origin


def test_an_origin_is_half_of_what_all_public_queries_say_of_one_of_them(shared: FeatureMap) -> None:
    again = gate.anchored(replace(shared, origin=5.0))
    assert again.origin == pytest.approx(shared.origin, abs=0.05)
    assert again.public is shared.public


# Bytes


def test_a_gate_of_the_most_axes_stays_below_its_limit() -> None:
    random = np.random.default_rng(10)
    wide = features.fit(random.normal(size=(200, MAX_AXES)))
    assert len(wide.steps) == MAX_AXES
    full = gate.fit(random.normal(size=(1500, MAX_AXES)), labels(1500, 4), wide, classes=4)
    content = full.encode(wide)
    assert len(content) < MAX_BYTES
    assert full.own.counts.min() >= LEAST
    assert Gate.decode(content, wide).encode(wide) == content


@pytest.mark.parametrize("classes", [2, 4, 100, 2900])
@pytest.mark.parametrize("m", [1, 5, 32, MAX_AXES])
def test_so_many_clusters_fit(m: int, classes: int) -> None:
    most = most_clusters(m, classes)
    size = HEAD.size + 2 * classes + RANDOM_FEATURES
    assert 1 <= most <= MAX_CLUSTERS
    assert size + most * (6 + m) <= MAX_BYTES
    assert most == MAX_CLUSTERS or size + (most + 1) * (6 + m) > MAX_BYTES


def test_what_is_decoded_has_the_same_bytes_and_says_the_same(
    shared: FeatureMap, here: Gate, bare: FeatureMap, dense: Gate
) -> None:
    for own, its_map in ((here, shared), (dense, bare)):
        content = own.encode(its_map)
        decoded = Gate.decode(content, its_map)
        assert decoded.encode(its_map) == content
        assert decoded.coverage.tolist() == own.coverage.tolist() == [50, 50, 50]
        assert decoded.floor == pytest.approx(own.floor, rel=1e-6)
        rows = its_map.rows(around(HERE, 20, 11))
        np.testing.assert_allclose(decoded.weigh_all(rows, its_map), own.weigh_all(rows, its_map), atol=1e-4)
    assert len(here.encode(shared)) == len(dense.encode(bare)) + RANDOM_FEATURES


def test_a_gate_without_a_floor_travels(bare: FeatureMap, dense: Gate) -> None:
    assert Gate.decode(replace(dense, floor=-math.inf).encode(bare), bare).floor == -math.inf


def test_a_gate_is_named_by_eight_bytes(shared: FeatureMap, here: Gate, there: Gate) -> None:
    one, other = gate_digest(here.encode(shared)), gate_digest(there.encode(shared))
    assert len(one) == len(other) == 8 and one != other


def test_a_gate_of_another_map_is_a_decode_error(shared: FeatureMap, bare: FeatureMap, here: Gate) -> None:
    with pytest.raises(DecodeError, match="gate"):
        Gate.decode(here.encode(shared), bare)


@given(st.data())
def test_damaged_bytes_are_a_decode_error_or_a_gate_that_weighs(
    shared: FeatureMap, here: Gate, data: st.DataObject
) -> None:
    damaged = bytearray(here.encode(shared))
    places = st.one_of(st.integers(11, 60), st.integers(0, len(damaged) - 1))
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    try:
        decoded = Gate.decode(bytes(damaged), shared)
    except DecodeError:
        return
    weights = decoded.weigh_all(np.vstack([shared.public[:3], np.full((1, 5), np.nan)]), shared)
    assert not np.isnan(weights).any()
    assert weights.max() < math.inf and weights[-1] == -math.inf


@given(st.binary(max_size=200), st.booleans())
def test_noise_is_a_decode_error(shared: FeatureMap, content: bytes, has_head: bool) -> None:
    with pytest.raises(DecodeError):
        Gate.decode((b"GA1" + shared.digest) * has_head + content, shared)


def test_cut_or_lengthened_bytes_are_a_decode_error(shared: FeatureMap, here: Gate) -> None:
    content = here.encode(shared)
    for length in range(len(content)):
        with pytest.raises(DecodeError, match="gate"):
            Gate.decode(content[:length], shared)
    with pytest.raises(DecodeError, match="gate"):
        Gate.decode(content + b"\0", shared)


def small(its_map: FeatureMap, **changes: Any) -> bytes:
    """A gate of one cluster and 2 classes, without a ratio."""
    is_so: dict[str, Any] = {
        "magic": b"GA1",
        "digest": its_map.digest,
        "k": 1,
        "m": 5,
        "classes": 2,
        "floor": -9.0,
        "bias": 0.0,
        "step": 0.0,
        "count": 10,
        "spread": 0.5,
        **changes,
    }
    head: bytes = HEAD.pack(
        *(is_so[key] for key in ("magic", "digest", "k", "m", "classes", "floor", "bias", "step"))
    )
    cluster = struct.pack(">Hf5b", is_so["count"], is_so["spread"], 0, 0, 0, 0, 0)
    coverage = bytes(2 * is_so["classes"])
    ratio = bytes(RANDOM_FEATURES if is_so["step"] else 0)
    return b"".join([head, coverage, *[cluster] * is_so["k"], ratio])


@pytest.mark.parametrize(
    "changes",
    [
        {"magic": b"GA2"},
        {"digest": bytes(8)},
        {"m": 4},
        {"k": 0},
        {"classes": 3500},
        {"k": 255, "classes": 2500},
        {"floor": math.nan},
        {"bias": math.inf},
        {"bias": math.nan},
        {"step": math.inf},
        {"step": math.nan},
        {"step": -1.0},
        {"count": 0},
        {"spread": 0.0},
        {"spread": -1.0},
        {"spread": LEAST_SPREAD / 2},
        {"spread": math.inf},
        {"spread": math.nan},
    ],
)
def test_an_absurd_gate_is_a_decode_error(shared: FeatureMap, changes: dict[str, Any]) -> None:
    assert Gate.decode(small(shared), shared).own.counts.tolist() == [10]
    with pytest.raises(DecodeError, match="gate"):
        Gate.decode(small(shared, **changes), shared)


def test_the_least_spread_is_no_absurdity(shared: FeatureMap) -> None:
    assert Gate.decode(small(shared, spread=LEAST_SPREAD), shared).own.spreads.tolist() == [LEAST_SPREAD]


# Together


def test_gates_asked_together_say_what_each_says(shared: FeatureMap, here: Gate, there: Gate) -> None:
    alone = replace(here, ratio=None, bias=0.0)
    closed = replace(there, floor=math.inf)
    every = [here, alone, there, closed, Gate.decode(small(shared), shared)]
    together = Gates(every, shared)
    rows = np.vstack([shared.rows(around(HERE, 5, 12)), shared.rows(around(THERE, 5, 13)), np.zeros((1, 5))])
    rows = np.vstack([rows, np.full((1, 5), np.nan), np.full((1, 5), 1e200), np.full((1, 5), np.inf)])
    for row in rows:
        expected = [own.weigh(row, shared) for own in every]
        np.testing.assert_allclose(together.weigh(row), expected, rtol=1e-9)


def test_one_gate_alone_can_be_asked_so(shared: FeatureMap, here: Gate) -> None:
    row = shared.rows(HERE[None])[0]
    np.testing.assert_allclose(Gates([here], shared).weigh(row), [here.weigh(row, shared)])


def test_the_map_of_a_gate_is_told_before_it_is_decoded(shared: FeatureMap, here: Gate) -> None:
    assert gate.map_of(here.encode(shared)) == shared.digest
    assert gate.map_of(b"no gate") == b""
