"""What a smartwatch computes of its motion before it asks: 54 numbers of each four seconds.

The recordings are those of seglearn's `watch_dataset.npy`: wearers who did seven shoulder exercises, with
accelerometer and gyroscope at 50 Hz (Burns et al. 2018, arXiv:1802.01489).
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 50
WINDOW, STEP = 200, 50  # samples: four seconds, a new window each second
LAGS = (10, 25, 50)
EXERCISES = (
    "pendulum",
    "abduction",
    "forward elevation",
    "internal rotation",
    "external rotation",
    "trapezius extension",
    "upright row",
)

SENSORS = ("acceleration x", "acceleration y", "acceleration z", "turning x", "turning y", "turning z")

Rows = NDArray[np.float32]
Labels = NDArray[np.int64]


def windows(path: Path) -> tuple[Rows, Labels, Labels]:
    """Of the data set's file: (n, 54) features of every window, its exercise and its wearer, 0 and up."""
    # The file is a pickle: it is the wheel's, and runs with the rights of whoever installed that.
    series = np.load(path, allow_pickle=True).item()
    rows, exercises, wearers = [], [], []
    for motion, exercise, wearer in zip(series["X"], series["y"], series["subject"], strict=True):
        for start in range(0, len(motion) - WINDOW + 1, STEP):
            rows.append(summary(motion[start : start + WINDOW]))
            exercises.append(int(exercise))
            wearers.append(int(wearer) - 1)
    return np.stack(rows), np.array(exercises, np.int64), np.array(wearers, np.int64)


def summary(window: NDArray[np.float64]) -> Rows:
    """(WINDOW, 6) of accelerometer and gyroscope into (54,): nine numbers of each of the six axes.

    Mean, spread, three quantiles, mean change from one sample to the next, three autocorrelations.
    """
    centred = window - window.mean(axis=0)
    spread = centred.std(axis=0)
    lagged = [(centred[lag:] * centred[:-lag]).mean(axis=0) / (spread**2 + 1e-9) for lag in LAGS]
    quantiles = np.quantile(window, [0.1, 0.5, 0.9], axis=0)
    change = np.abs(np.diff(window, axis=0)).mean(axis=0)
    return np.concatenate([window.mean(axis=0), spread, *quantiles, change, *lagged]).astype(np.float32)
