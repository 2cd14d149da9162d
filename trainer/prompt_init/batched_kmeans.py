"""k-means of several sets of points at once, for a GPU: the starts and the sets are one batch of matrix products.

The algorithm and the draws are those of `kmeans`, so the centres differ from its by rounding. A GPU gives the same bits
each time, because all sums are matrix products or reductions: no scatter, and no running sum of floating-point numbers.
It computes without waiting, except that the iterations look every `LOOK_EVERY` times whether all sets have converged.
Memory beside the points is that of a block of points.

Shapes: L sets, N points of a set, B points of a block, R points of a sample, S starts, K clusters, C candidates,
F all centres of a set (S x K or S x C), D width, r rows and c columns that R numbers are folded into.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.prompt_init.kmeans import SAMPLE, STARTS

LOOK_EVERY = 10
"""Iterations between two looks at convergence. A look waits for the GPU; a set that has converged stays as it is."""
BLOCK_VALUES = 2**26
"""Most distances of a block: 256 MiB. A block takes two and a quarter times that."""
BLOCK_POINTS = 2**16
"""Most points of a block. A product adds them up in float32, and the sums of blocks are added in float64."""


class Draws(NamedTuple):
    """All random numbers of a call, on the device of the points. `kmeans` draws the same ones, set after set."""

    rows_LR: Tensor
    """Points of the sample on which the starts compete."""
    first_LS: Tensor
    """First centre of each start, a row of the sample."""
    positions_KLSC: Tensor
    """Where in the running sum of the distances the candidates of the other K - 1 centres are, in 0..1."""


def batched_kmeans(
    points_LND: Tensor, num_clusters: int, generator: torch.Generator, max_iterations: int = 100
) -> Tensor:
    """Return the cluster centres ``[L, K, D]`` of each set of points.

    The iterations of a set end as in `kmeans`. A GPU is waited for at most ``2 * max_iterations / LOOK_EVERY`` times.

    Raises:
        ValueError: if a set has fewer points than clusters.
    """
    num_sets, num_points, _ = points_LND.shape
    if num_points < num_clusters:
        raise ValueError(f"kmeans needs at least as many points as clusters, got {num_points} for {num_clusters}.")

    draws = _draw(num_sets, num_points, num_clusters, generator, points_LND.device)
    sample_LRD = _take(points_LND, draws.rows_LR)
    starts_LSKD = _lloyd(sample_LRD, _plus_plus(sample_LRD, draws), max_iterations)

    # The best start of each set continues with all points. Starts that found the same clusters in another order are as
    # good as each other but for rounding, so the first of them is taken: then rounding does not decide the order.
    _, distance_LSR = _means(sample_LRD, _squares(sample_LRD), starts_LSKD)
    inertia_LS = distance_LSR.double().sum(dim=2)
    rounding = torch.finfo(points_LND.dtype).eps ** 0.5
    is_best_LS = inertia_LS <= (1 + rounding) * inertia_LS.amin(dim=1, keepdim=True)
    best_L1 = is_best_LS.int().argmax(dim=1, keepdim=True)
    best_L1KD = torch.take_along_dim(starts_LSKD, best_L1[:, :, None, None], dim=1)
    return _lloyd(points_LND, best_L1KD, max_iterations)[:, 0]


def block_points(num_centres: int) -> int:
    """Return the number of points of a block, if each is compared with so many centres of all sets together."""
    return max(1, min(BLOCK_POINTS, BLOCK_VALUES // num_centres))


def _draw(num_sets: int, num_points: int, num_clusters: int, generator: torch.Generator, device: torch.device) -> Draws:
    """Draw all random numbers on the CPU, in the order in which `kmeans` draws them."""
    num_sampled = min(num_points, max(SAMPLE, 40 * num_clusters))
    num_candidates = 2 + int(math.log(num_clusters))

    rows = []
    first = []
    positions = []
    for _ in range(num_sets):
        rows.append(torch.randperm(num_points, generator=generator)[:num_sampled])
        for _ in range(STARTS):
            first.append(torch.randint(num_sampled, (1,), generator=generator))
            positions.append(torch.rand(num_clusters - 1, num_candidates, generator=generator, dtype=torch.float64))

    first_LS = torch.cat(first).view(num_sets, STARTS)
    positions_KLSC = torch.stack(positions, dim=1).unflatten(1, (num_sets, STARTS))
    return Draws(torch.stack(rows).to(device), first_LS.to(device), positions_KLSC.to(device))


def _plus_plus(points_LRD: Tensor, draws: Draws) -> Tensor:
    """Return the start centres ``[L, S, K, D]``, drawn as `kmeans` draws them."""
    squares_LR = _squares(points_LRD)
    num_points = points_LRD.shape[1]

    rows = [draws.first_LS]
    nearest_LSR = _squared_distances(points_LRD, squares_LR, _take(points_LRD, draws.first_LS))

    for positions_LSC in draws.positions_KLSC:
        mass_LSR = _running_sums(nearest_LSR.double())
        candidates_LSC = torch.searchsorted(mass_LSR, positions_LSC * mass_LSR[..., -1:]).clamp(max=num_points - 1)

        # Keep the candidate that leaves the smallest sum of squared distances.
        candidates_LFD = _take(points_LRD, candidates_LSC.flatten(1))
        distance_LFR = _squared_distances(points_LRD, squares_LR, candidates_LFD)
        distance_LSCR = distance_LFR.unflatten(1, candidates_LSC.shape[1:])
        remaining_LSCR = torch.minimum(nearest_LSR[:, :, None], distance_LSCR)
        best_LS1 = remaining_LSCR.sum(dim=3).argmin(dim=2, keepdim=True)
        nearest_LSR = torch.take_along_dim(remaining_LSCR, best_LS1[..., None], dim=2)[:, :, 0]
        rows.append(candidates_LSC.gather(2, best_LS1)[:, :, 0])

    rows_LSK = torch.stack(rows, dim=2)
    centres_LFD = _take(points_LRD, rows_LSK.flatten(1))
    return centres_LFD.view(*rows_LSK.shape, -1)


def _lloyd(points_LND: Tensor, centres_LSKD: Tensor, max_iterations: int) -> Tensor:
    """Return the centres after Lloyd's iterations from given centres. What has converged does not move any more."""
    squares_LN = _squares(points_LND)
    tolerance_L1 = 1e-4 * points_LND.var(dim=1, correction=0).mean(dim=1, keepdim=True)
    has_converged_LS = torch.zeros(centres_LSKD.shape[:2], dtype=torch.bool, device=points_LND.device)

    for iteration in range(1, max_iterations + 1):
        moved_LSKD, _ = _means(points_LND, squares_LN, centres_LSKD)
        shift_LS = (moved_LSKD - centres_LSKD).square().sum(dim=(2, 3))
        centres_LSKD = torch.where(has_converged_LS[:, :, None, None], centres_LSKD, moved_LSKD)
        has_converged_LS |= shift_LS <= tolerance_L1
        if iteration % LOOK_EVERY == 0 and bool(has_converged_LS.all()):
            break

    return centres_LSKD


def _means(points_LND: Tensor, squares_LN: Tensor, centres_LSKD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of each cluster's points, and each point's squared distance to its nearest centre.

    An empty cluster restarts at a point far from its centre.

    Returns:
        the means ``[L, S, K, D]``, and the distances ``[L, S, N]``.
    """
    num_sets, num_starts, num_clusters, width = centres_LSKD.shape
    centres_LFD = centres_LSKD.flatten(1, 2)
    clusters_K1 = torch.arange(num_clusters, device=points_LND.device)[:, None]

    sums_LFD = torch.zeros(centres_LFD.shape, dtype=torch.float64, device=points_LND.device)
    counts_LF = sums_LFD.new_zeros(sums_LFD.shape[:2])
    distances = []
    size = block_points(num_sets * num_starts * num_clusters)
    for points_LBD, squares_LB in zip(points_LND.split(size, dim=1), squares_LN.split(size, dim=1), strict=True):
        distance_LFB = _squared_distances(points_LBD, squares_LB, centres_LFD)
        distance_LSB, nearest_LSB = distance_LFB.unflatten(1, (num_starts, num_clusters)).min(dim=2)
        member_LFB = (nearest_LSB[:, :, None] == clusters_K1).flatten(1, 2).to(points_LND.dtype)
        sums_LFD += torch.bmm(member_LFB, points_LBD)
        counts_LF += member_LFB.sum(dim=2)
        distances.append(distance_LSB)

    means_LFD = (sums_LFD / counts_LF.clamp(min=1)[:, :, None]).to(points_LND.dtype)
    distance_LSN = torch.cat(distances, dim=2)

    # How many clusters are empty is known to the GPU alone, so each gets the farthest points, and the empty ones use
    # them in turn. A running sum of whole numbers is exact, so it repeats.
    far_LSK = distance_LSN.topk(num_clusters, dim=2).indices
    is_empty_LSK = (counts_LF == 0).view(num_sets, num_starts, num_clusters)
    rank_LSK = (is_empty_LSK.long().cumsum(dim=2) - 1).clamp(min=0)
    restart_LFD = _take(points_LND, far_LSK.gather(2, rank_LSK).flatten(1))
    means_LFD = torch.where(is_empty_LSK.flatten(1)[:, :, None], restart_LFD, means_LFD)
    return means_LFD.view(num_sets, num_starts, num_clusters, width), distance_LSN


def _take(points_LND: Tensor, rows_LF: Tensor) -> Tensor:
    """Return some points of each set ``[L, F, D]``."""
    sets_L1 = torch.arange(len(points_LND), device=points_LND.device)[:, None]
    return points_LND[sets_L1, rows_LF]


def _squares(points_LND: Tensor) -> Tensor:
    """Return the squared length of each point, without a copy of the points."""
    squares_LN: Tensor = torch.linalg.vector_norm(points_LND, dim=2).square()
    return squares_LN


def _squared_distances(points_LBD: Tensor, squares_LB: Tensor, centres_LFD: Tensor) -> Tensor:
    """Return the squared distance ``[L, F, B]`` of each point to each centre."""
    # In place, because the matrix is large. Rounding can make small distances negative.
    products_LFB = torch.baddbmm(squares_LB[:, None], centres_LFD, points_LBD.mT, alpha=-2)
    return products_LFB.add_(centres_LFD.square().sum(dim=2, keepdim=True)).clamp_(min=0)


SIDE = 128
"""Numbers that one product of `_running_sums` adds up."""


def _running_sums(values_LSR: Tensor) -> Tensor:
    """Return the running sums along the last axis, which is filled up to a multiple of `SIDE`.

    They are products with triangles of ones, because a GPU's `cumsum` differs from call to call.
    """
    filled_LSrc = F.pad(values_LSR, (0, -values_LSR.shape[-1] % SIDE)).unflatten(-1, (-1, SIDE))
    within_LSrc = filled_LSrc @ filled_LSrc.new_ones(SIDE, SIDE).triu()

    # What the rows before a row add up to.
    num_rows = filled_LSrc.shape[-2]
    before_LSr = within_LSrc[..., -1] @ filled_LSrc.new_ones(num_rows, num_rows).triu(diagonal=1)
    sums_LSR: Tensor = (within_LSrc + before_LSr[..., None]).flatten(-2)
    return sums_LSR
