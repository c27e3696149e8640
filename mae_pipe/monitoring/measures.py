"""What features say of themselves, in float64: [n, D] -> a number."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float64]
Labels = NDArray[np.int64]

EPS = 1e-7  # RankMe's
ALPHA, T = 2, 2  # exponents of alignment and uniformity (Wang and Isola 2020)
NEAREST, TEMPERATURE = 20, 0.07  # of the vote (DINO, Caron et al. 2021)


def rankme(features: Features) -> float:
    """How many directions the features take, in [1, min(n, D)] (Garrido et al. 2023, equations 1 and 2).

    The exponential of the entropy of the singular values, as shares of their sum. NaN where features are not finite.
    """
    if not np.isfinite(features).all():
        return float("nan")
    values = np.linalg.svd(features, compute_uv=False)
    if not values.any():
        return 1.0  # all of them zero: a point
    shares = values / values.sum() + EPS
    return float(np.exp(-(shares * np.log(shares)).sum()))


def unit(features: Features) -> Features:
    """Each of length 1."""
    length: Features = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(length, 1e-12)


def mean_cosine(features: Features) -> float:
    """Of all pairs of two images: 1 where all features point the same way."""
    count = len(features)
    if count < 2:
        return float("nan")
    total = np.square(unit(features).sum(axis=0)).sum()  # of all pairs, and of each with itself
    return float((total - count) / (count * (count - 1)))


def alignment(ones: Features, others: Features) -> float:
    """The mean squared distance of two views of an image, on the sphere: in [0, 4], low where views agree."""
    return float((np.linalg.norm(unit(ones) - unit(others), axis=1) ** ALPHA).mean())


def uniformity(features: Features) -> float:
    """The logarithm of the mean of exp(-2 d^2) over all pairs, on the sphere: in [-8, 0], 0 where all is one point."""
    if len(features) < 2:
        return float("nan")
    cosine = unit(features) @ unit(features).T
    squares = np.maximum(2 - 2 * cosine[np.triu_indices(len(features), 1)], 0.0)
    return float(np.log(np.exp(-T * squares).mean()))


def vote(bank: Features, known: Labels, features: Features, labels: Labels) -> float:
    """The share of ``features`` whose class the 20 nearest of ``bank`` vote for, each by exp(cosine / 0.07)."""
    cosine = unit(features) @ unit(bank).T  # [n, bank]
    near = np.argsort(-cosine, axis=1, kind="stable")[:, :NEAREST]
    weights = np.exp((np.take_along_axis(cosine, near, axis=1) - 1) / TEMPERATURE)
    votes = np.zeros((len(features), int(max(known.max(), labels.max())) + 1))
    np.add.at(votes, (np.arange(len(features))[:, None], known[near]), weights)
    return float((votes.argmax(axis=1) == labels).mean())
