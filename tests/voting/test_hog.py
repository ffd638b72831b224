"""Histograms of oriented gradients, of edges and slopes whose gradients are known."""

import math

import numpy as np
import pytest

from edge_fi.messages import Array
from edge_fi.voting.hog import ORIENTATIONS, hog

DOWN, ACROSS = np.mgrid[0:14, 0:14].astype(float)
"""14 x 14 pixels: 7 x 7 cells of 2 x 2."""


def histograms(image: Array) -> Array:
    """Of one 14 x 14 image: (7, 7, orientations)."""
    return np.asarray(hog(image[None]).reshape(7, 7, ORIENTATIONS))


def test_a_vertical_edge_is_in_its_cells_and_in_the_first_orientation_alone() -> None:
    # A cell has 2 of gradient, its neighbourhood at least the root of 8: above the limit of 1/2.
    expected = np.zeros((7, 7, ORIENTATIONS))
    expected[:, 3, 0] = math.sqrt(0.5)
    np.testing.assert_allclose(histograms((ACROSS >= 7).astype(float)), expected, atol=1e-9)


def test_a_horizontal_edge_is_half_a_turn_of_orientations_away() -> None:
    expected = np.zeros((7, 7, ORIENTATIONS))
    expected[3, :, ORIENTATIONS // 2] = math.sqrt(0.5)
    np.testing.assert_allclose(histograms((DOWN >= 7).astype(float)), expected, atol=1e-9)


@pytest.mark.parametrize("orientation", range(ORIENTATIONS))
def test_a_slope_is_in_the_orientation_it_climbs(orientation: int) -> None:
    angle = orientation * math.pi / ORIENTATIONS
    inner = histograms(math.cos(angle) * ACROSS + math.sin(angle) * DOWN)[3, 3]
    # 4 pixels of gradient 1, in a neighbourhood of nine such cells: a third.
    expected = np.zeros(ORIENTATIONS)
    expected[orientation] = math.sqrt(1 / 3)
    np.testing.assert_allclose(inner, expected, atol=0.01)


@pytest.mark.parametrize("orientation", range(ORIENTATIONS))
def test_a_slope_between_two_orientations_is_shared_by_both(orientation: int) -> None:
    angle = (orientation + 0.5) * math.pi / ORIENTATIONS
    inner = histograms(math.cos(angle) * ACROSS + math.sin(angle) * DOWN)[3, 3]
    # Half of 4 each, and the energy of nine cells is 72: the root of 2 over the root of 72.
    expected = np.zeros(ORIENTATIONS)
    expected[[orientation, (orientation + 1) % ORIENTATIONS]] = math.sqrt(2 / math.sqrt(72))
    np.testing.assert_allclose(inner, expected, atol=0.01)


def test_brightness_contrast_and_negatives_change_nothing() -> None:
    images = np.random.default_rng(1).random((3, 14, 14))
    for other in (images + 7, 5 * images, -images):
        np.testing.assert_allclose(hog(other), hog(images), atol=1e-6)


def test_a_flat_image_has_no_gradients() -> None:
    assert not hog(np.full((2, 14, 14), 0.3)).any()


def test_images_are_seen_each_by_itself() -> None:
    images = np.random.default_rng(2).random((3, 10, 12)) * [[[1]], [[100]], [[1e-3]]]
    np.testing.assert_array_equal(hog(images), np.vstack([hog(image[None]) for image in images]))


@pytest.mark.parametrize(
    ("shape", "cells"), [((28, 28), 49), ((15, 29), 7 * 14), ((8, 8), 16), ((3, 5), 2), ((1, 9), 0)]
)
def test_cells_are_about_seven_a_side_and_two_pixels_at_least(shape: tuple[int, int], cells: int) -> None:
    found = hog(np.random.default_rng(3).random((2, *shape)))
    assert found.shape == (2, cells * ORIENTATIONS)
    assert (found >= 0).all() and (found <= math.sqrt(0.5)).all()
