"""k-means in torch, for a CPU: k-means++ seeding, then Lloyd's iterations. A GPU computes `batched_kmeans`.

Seeding: Arthur and Vassilvitskii, SODA 2007, in its greedy form, as scikit-learn does: each step draws several
candidates and keeps the best. Shapes: N points, R points of a sample, K clusters, C candidates, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

STARTS = 5
"""Number of seedings that compete. A single one depends on luck (scikit-learn's own differ by several per cent)."""
SAMPLE = 8192
"""Number of points on which the starts compete, at least 40 per cluster. The best then continues with all points."""


def kmeans(points_ND: Tensor, num_clusters: int, generator: torch.Generator, max_iterations: int = 100) -> Tensor:
    """Return the cluster centres ``[K, D]`` of points.

    The iterations end when the centres move less than 1e-4 of the points' mean variance, or after `max_iterations`.

    Raises:
        ValueError: if there are fewer points than clusters.
    """
    if len(points_ND) < num_clusters:
        raise ValueError(f"kmeans needs at least as many points as clusters, got {len(points_ND)} for {num_clusters}.")

    # The starts compete on a sample: on all points each of them would cost as much as the final iterations.
    rows_R = torch.randperm(len(points_ND), generator=generator)[: max(SAMPLE, 40 * num_clusters)]
    sample_RD = points_ND[rows_R]
    starts = [
        _lloyd(sample_RD, _plus_plus(sample_RD, num_clusters, generator), max_iterations=max_iterations)
        for _ in range(STARTS)
    ]

    best_KD = min(starts, key=lambda centres_KD: inertia(sample_RD, centres_KD))
    return _lloyd(points_ND, best_KD, max_iterations=max_iterations)


def inertia(points_ND: Tensor, centres_KD: Tensor) -> float:
    """Return the sum of the squared distances of the points to their nearest centre."""
    return float(_squared_distances(points_ND, _squares(points_ND), centres_KD).min(dim=1).values.double().sum())


def _lloyd(points_ND: Tensor, centres_KD: Tensor, *, max_iterations: int) -> Tensor:
    """Return the centres after Lloyd's iterations from given centres."""
    squares_N = _squares(points_ND)
    tolerance = 1e-4 * points_ND.var(dim=0, correction=0).mean()

    for _ in range(max_iterations):
        distance_N, nearest_N = _squared_distances(points_ND, squares_N, centres_KD).min(dim=1)
        moved_KD = _means(points_ND, distance_N, nearest_N, len(centres_KD))
        shift = (moved_KD - centres_KD).square().sum()
        centres_KD = moved_KD
        if shift <= tolerance:
            break

    return centres_KD


def _squares(points_ND: Tensor) -> Tensor:
    """Return the squared length of each point, without a copy of the points."""
    squares_N: Tensor = torch.linalg.vector_norm(points_ND, dim=1).square()
    return squares_N


def _means(points_ND: Tensor, distance_N: Tensor, nearest_N: Tensor, num_clusters: int) -> Tensor:
    """Return the mean of each cluster's points. An empty cluster restarts at a point far from its centre."""
    counts_K = torch.bincount(nearest_N, minlength=num_clusters)

    # A matrix product adds in blocks: adding point after point in float32 would lose three digits.
    member_KN = points_ND.new_zeros(num_clusters, len(points_ND)).scatter_(0, nearest_N[None], 1)
    means_KD = member_KN @ points_ND / counts_K.clamp(min=1)[:, None]

    empty_K = (counts_K == 0).nonzero()[:, 0]
    means_KD[empty_K] = points_ND[distance_N.topk(len(empty_K)).indices]
    return means_KD


def _squared_distances(points_ND: Tensor, squares_N: Tensor, centres_KD: Tensor) -> Tensor:
    # In place, because the matrix is large. Rounding can make small distances negative.
    products_NK = points_ND @ centres_KD.T
    return products_NK.mul_(-2).add_(squares_N[:, None]).add_(centres_KD.square().sum(dim=1)).clamp_(min=0)


def _plus_plus(points_ND: Tensor, num_clusters: int, generator: torch.Generator) -> Tensor:
    """Return start centres: each next one is drawn with a probability proportional to the squared distance."""
    squares_N = _squares(points_ND)
    num_candidates = 2 + int(math.log(num_clusters))

    rows = [int(torch.randint(len(points_ND), (1,), generator=generator))]
    nearest_N = _squared_distances(points_ND, squares_N, points_ND[rows])[:, 0]

    while len(rows) < num_clusters:
        # In float64, because a float32 running sum over many points loses the small distances.
        mass_N = nearest_N.double().cumsum(0)
        drawn_C = torch.rand(num_candidates, generator=generator, dtype=torch.float64) * mass_N[-1]
        candidates_C = torch.searchsorted(mass_N, drawn_C).clamp(max=len(points_ND) - 1)

        # Keep the candidate that leaves the smallest sum of squared distances.
        distance_NC = _squared_distances(points_ND, squares_N, points_ND[candidates_C])
        nearest_NC = torch.minimum(nearest_N[:, None], distance_NC)
        best = int(nearest_NC.sum(dim=0).argmin())
        nearest_N = nearest_NC[:, best]
        rows.append(int(candidates_C[best]))

    return points_ND[rows]
