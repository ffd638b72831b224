"""Histograms of oriented gradients: what an image looks like, without where exactly its strokes are."""

import numpy as np

from edge_fi.messages import Array

ORIENTATIONS = 8


def hog(images: Array) -> Array:
    """(n, height, width) into (n, rows * columns * 8), after Dalal and Triggs 2005.

    Unsigned gradients, each shared by its two nearest orientations; a cell's histogram is scaled by the
    energy of its 3 x 3 neighbourhood. About 7 cells a side, of 2 pixels at least. Each image by itself.
    """
    images = np.asarray(images, np.float64)
    _, height, width = images.shape
    cell = max(2, min(height, width) // 7)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)), mode="edge")
    down = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    across = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    strength = np.hypot(down, across)
    place = np.mod(np.arctan2(down, across), np.pi) * (ORIENTATIONS / np.pi)
    low = np.floor(place).astype(np.int64) % ORIENTATIONS
    part = place - np.floor(place)
    rows, columns = height // cell, width // cell
    kept = (slice(None), slice(0, rows * cell), slice(0, columns * cell))
    histograms = np.zeros((len(images), rows, columns, ORIENTATIONS))
    for orientation in range(ORIENTATIONS):
        here = np.where(low == orientation, 1 - part, 0) + np.where(
            (low + 1) % ORIENTATIONS == orientation, part, 0
        )
        parts = (strength * here)[kept].reshape(len(images), rows, cell, columns, cell)
        histograms[..., orientation] = parts.sum(axis=(2, 4))
    energy = np.pad((histograms**2).sum(axis=3), ((0, 0), (1, 1), (1, 1)))
    around = sum(energy[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3))
    # Below a hundredth of an image's own range, a gradient is noise.
    floor = 1e-3 * np.ptp(images, axis=(1, 2))[:, None, None] ** 2 + 1e-12
    scaled = np.minimum(histograms / np.sqrt(around + floor)[..., None], 0.5)
    return np.asarray(np.sqrt(scaled).reshape(len(images), -1))
