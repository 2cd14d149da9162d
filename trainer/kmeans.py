"""k-means in torch, on the device the points are on: k-means++ seeding, then Lloyd's iterations.

Seeding: Arthur and Vassilvitskii, SODA 2007, in its greedy form (several candidates a step, the best kept), as
scikit-learn does. Shapes: N points, K clusters, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kmeans(points_ND: Tensor, clusters: int, generator: torch.Generator, max_iterations: int = 100) -> Tensor:
    """Cluster centres ``[clusters, D]``.

    Stops when the centres move less than 1e-4 of the points' mean variance, or after `max_iterations`.
    A cluster that loses its last point restarts at the point farthest from its centre.

    Raises:
        ValueError: if there are fewer points than clusters.
    """
    if len(points_ND) < clusters:
        raise ValueError(f"kmeans needs at least as many points as clusters, got {len(points_ND)} for {clusters}.")
    centres_KD = _plus_plus(points_ND, clusters, generator)
    tolerance = 1e-4 * points_ND.var(dim=0, correction=0).mean()
    for _ in range(max_iterations):
        distance_N, nearest_N = _squared_distances(points_ND, centres_KD).min(dim=1)
        counts_K = torch.bincount(nearest_N, minlength=clusters)
        sums_KD = torch.zeros_like(centres_KD).index_add_(0, nearest_N, points_ND)
        moved_KD = sums_KD / counts_K.clamp(min=1)[:, None]
        empty_K = (counts_K == 0).nonzero()[:, 0]
        moved_KD[empty_K] = points_ND[distance_N.topk(len(empty_K)).indices]
        shift = (moved_KD - centres_KD).square().sum()
        centres_KD = moved_KD
        if shift <= tolerance:
            break
    return centres_KD


def inertia(points_ND: Tensor, centres_KD: Tensor) -> float:
    """Sum of the squared distances of the points to their nearest centre."""
    return float(_squared_distances(points_ND, centres_KD).min(dim=1).values.double().sum())


def _squared_distances(points_ND: Tensor, centres_KD: Tensor) -> Tensor:
    products_NK = points_ND @ centres_KD.T
    distances_NK = points_ND.square().sum(dim=1, keepdim=True) - 2 * products_NK + centres_KD.square().sum(dim=1)
    return distances_NK.clamp(min=0)


def _plus_plus(points_ND: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    candidates = 2 + int(math.log(clusters))
    first = int(torch.randint(len(points_ND), (1,), generator=generator))
    centres = [points_ND[first]]
    nearest_N = _squared_distances(points_ND, points_ND[first : first + 1])[:, 0]
    while len(centres) < clusters:
        mass_N = nearest_N.double().cumsum(0)
        drawn = torch.rand(candidates, generator=generator, dtype=torch.float64).to(mass_N.device) * mass_N[-1]
        rows = torch.searchsorted(mass_N, drawn).clamp(max=len(points_ND) - 1)
        tried_NC = torch.minimum(nearest_N[:, None], _squared_distances(points_ND, points_ND[rows]))
        best = int(tried_NC.sum(dim=0).argmin())
        nearest_N = tried_NC[:, best]
        centres.append(points_ND[rows[best]])
    return torch.stack(centres)
