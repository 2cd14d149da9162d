"""Batched k-means: as good as k-means of one set, the same for any blocks and neighbours, and few waits for a GPU.

Shapes: L sets, N points of a set, R points of a sample, S starts, K clusters, D width.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainer.fake_gpu import GPU, fake_gpu
from trainer.data.split import load_split
from trainer.model.backbone import Backbone
from trainer.prompt_init import batched_kmeans as batched
from trainer.prompt_init import kmeans as single
from trainer.prompt_init.batched_kmeans import BLOCK_POINTS, BLOCK_VALUES, LOOK_EVERY, batched_kmeans, block_points
from trainer.prompt_init.kmeans import SAMPLE, inertia, kmeans

aten = torch.ops.aten


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def separate_clusters(num_sets: int, num_clusters: int, num_points: int) -> Tensor:
    """Return sets of points ``[L, N, D]`` in clusters of `num_points` that are far from each other."""
    noise = torch.randn(num_sets, num_clusters, num_points, num_clusters, generator=seeded(5))
    return (100 * torch.eye(num_clusters)[:, None] + noise).flatten(1, 2)


def tokens_of(backbone: Backbone, data_root: str, num_images: int) -> Tensor:
    """Return the tokens ``[L, N, D]`` of digits."""
    images = load_split(data_root, "demo/digits", "train", num_images, 32).all_images()
    return torch.stack([tokens_BND.flatten(0, 1) for tokens_BND in backbone.patch_tokens(images)])


@pytest.mark.parametrize("num_clusters", [1, 3, 20])
def test_each_set_gets_the_centres_that_it_gets_alone(backbone: Backbone, data_root: str, num_clusters: int) -> None:
    # In float64, where rounding does not decide to which of two centres a token is nearer.
    tokens_LND = tokens_of(backbone, data_root, 10).double()
    generator = seeded()
    alone_LKD = torch.stack([kmeans(tokens_ND, num_clusters, generator) for tokens_ND in tokens_LND])
    torch.testing.assert_close(batched_kmeans(tokens_LND, num_clusters, seeded()), alone_LKD)


def test_the_starts_compete_on_a_sample_and_the_best_continues_with_all_points() -> None:
    points_LND = torch.randn(2, SAMPLE + 901, 2, generator=seeded(), dtype=torch.float64)
    generator = seeded(1)
    alone_LKD = torch.stack([kmeans(points_ND, 3, generator) for points_ND in points_LND])
    torch.testing.assert_close(batched_kmeans(points_LND, 3, seeded(1)), alone_LKD)


@pytest.mark.slow
def test_batched_kmeans_is_as_good_as_scikit_learn_on_real_tokens(backbone: Backbone, data_root: str) -> None:
    # The law of `kmeans`, with its bounds.
    tokens_LND = tokens_of(backbone, data_root, 80)[[0, 2, 4]]
    ratios = []
    for num_clusters, seed in itertools.product((5, 20, 50), (1, 2)):
        centres_LKD = batched_kmeans(tokens_LND, num_clusters, seeded(seed))
        for tokens_ND, centres_KD in zip(tokens_LND, centres_LKD, strict=True):
            theirs = KMeans(num_clusters, n_init=1, random_state=seed).fit(tokens_ND.numpy())
            ratios.append(inertia(tokens_ND, centres_KD) / theirs.inertia_)
    assert max(ratios) < 1.01 and sum(ratios) / len(ratios) < 1.005


@pytest.mark.parametrize("seed", range(3))
def test_all_sets_find_the_means_of_separate_clusters(seed: int) -> None:
    points_LND = separate_clusters(3, 25, 8)
    centres_LKD = batched_kmeans(points_LND, 25, seeded(seed))
    for points_ND, centres_KD in zip(points_LND, centres_LKD, strict=True):
        torch.testing.assert_close(centres_KD[centres_KD.argmax(dim=0)], points_ND.view(25, 8, 25).mean(dim=1))


def test_a_set_that_has_converged_does_not_move_while_others_go_on() -> None:
    # Alone, a set ends with the first iteration that moves it less than the tolerance. These do after 8 to 28.
    points_LND = torch.randn(4, 600, 6, generator=seeded(), dtype=torch.float64)
    starts_LSKD = points_LND[:, None, :5]
    together_LSKD = batched._lloyd(points_LND, starts_LSKD, 100)
    for points_ND, starts_SKD, centres_SKD in zip(points_LND, starts_LSKD, together_LSKD, strict=True):
        alone_KD = single._lloyd(points_ND, starts_SKD[0], max_iterations=100)
        torch.testing.assert_close(centres_SKD[0], alone_KD)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 2), (2, 1)])
def test_groups_of_sets_get_the_centres_of_all_sets_together(sizes: tuple[int, ...]) -> None:
    points_LND = separate_clusters(3, 7, 30)
    together_LKD = batched_kmeans(points_LND, 7, seeded(3))
    generator = seeded(3)
    groups = [batched_kmeans(points_lND, 7, generator) for points_lND in points_LND.split(sizes)]
    torch.testing.assert_close(torch.cat(groups), together_LKD)


@pytest.mark.parametrize("size", [1, 7, 209, 210, 211])
def test_the_size_of_blocks_does_not_matter(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    points_LND = separate_clusters(2, 7, 30)
    whole_LKD = batched_kmeans(points_LND, 7, seeded())
    monkeypatch.setattr(batched, "BLOCK_POINTS", size)
    torch.testing.assert_close(batched_kmeans(points_LND, 7, seeded()), whole_LKD)


@pytest.mark.parametrize("num_centres", [1, 240, 1024, 1025, 12_000, 2**26, 2**30])
def test_a_block_holds_at_least_a_point_and_no_more_distances_than_it_may(num_centres: int) -> None:
    size = block_points(num_centres)
    assert 1 <= size <= BLOCK_POINTS
    assert size == 1 or size * num_centres <= BLOCK_VALUES


@pytest.mark.parametrize("clusters", [20, 30, 140])
def test_repeated_points_leave_no_cluster_without_a_point(clusters: int) -> None:
    # 20 places, 7 points in each; with more clusters than places some lose all their points and restart at a point.
    places_LRD = torch.randn(2, 20, 6, generator=seeded()) + 5
    centres_LKD = batched_kmeans(places_LRD.repeat(1, 7, 1), clusters, seeded())
    assert centres_LKD.shape == (2, clusters, 6)
    for places_RD, centres_KD in zip(places_LRD, centres_LKD, strict=True):
        distance_KR = (centres_KD[:, None] - places_RD).abs().amax(dim=2)
        assert float(distance_KR.min(dim=1).values.max()) < 1e-5
        assert set(distance_KR.argmin(dim=1).tolist()) == set(range(20))


def test_several_empty_clusters_restart_at_different_far_points() -> None:
    points_1ND = torch.tensor([0.0, 1.0, 2.0, 50.0, 90.0]).view(1, 5, 1)
    # Two starts: in the first, clusters 1 and 3 lose all points to the others; in the second none does.
    starts_1SKD = torch.tensor([[1.0, -900.0, 1.5, 900.0], [0.0, 1.0, 50.0, 90.0]]).view(1, 2, 4, 1)
    means_1SKD, _ = batched._means(points_1ND, batched._squares(points_1ND), starts_1SKD)
    expected = [0.5, 90.0, (2 + 50 + 90) / 3, 50.0, 0.0, 1.5, 50.0, 90.0]
    assert means_1SKD.flatten().tolist() == pytest.approx(expected)


def test_equal_points_are_their_centres_and_as_many_clusters_as_points_are_the_points() -> None:
    assert torch.equal(batched_kmeans(torch.full((2, 8, 3), 2.5), 4, seeded()), torch.full((2, 4, 3), 2.5))
    points_LND = torch.randn(2, 9, 4, generator=seeded())
    centres_LKD = batched_kmeans(points_LND, 9, seeded())
    assert [sorted(rows.tolist()) for rows in centres_LKD] == [sorted(rows.tolist()) for rows in points_LND]


def test_more_clusters_than_points_are_refused() -> None:
    with pytest.raises(ValueError, match="clusters") as caught:
        batched_kmeans(torch.zeros(2, 3, 4), 4, seeded())
    assert str(caught.value) == "kmeans needs at least as many points as clusters, got 3 for 4."


@pytest.mark.parametrize("length", [1, 127, 128, 129, 1000, 8192])
def test_running_sums_are_those_of_cumsum(length: int) -> None:
    values_LSR = torch.rand(2, 3, length, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(batched._running_sums(values_LSR)[..., :length], values_LSR.cumsum(dim=2))
    # What is filled up adds nothing, so a draw never falls there.
    assert bool((batched._running_sums(values_LSR)[..., length - 1 :] >= values_LSR.sum(2, keepdim=True) - 1e-9).all())


class Watch(TorchDispatchMode):
    """Counts operations and waits for a GPU, and notes the largest result. Nothing ever converges."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0
        self.by_name: Counter[str] = Counter()
        self.largest = 0
        self.running_sums: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        on_gpu = [value for value in args if isinstance(value, Tensor) and value.device.type == "cuda"]
        if func is aten._local_scalar_dense.default and on_gpu:
            self.waits += 1
            return False

        result = func(*args, **(kwargs or {}))
        outputs = [value for value in (result if isinstance(result, tuple) else (result,)) if isinstance(value, Tensor)]
        if on_gpu and outputs and not func.is_view:
            self.by_name[func._schema.name] += 1
            # A copy to the CPU waits, too.
            self.waits += outputs[0].device.type != "cuda"
            self.largest = max(self.largest, *(output.numel() for output in outputs))
            if func is aten.cumsum.default:
                self.running_sums.add(args[0].dtype)
        return result


NOT_REPEATABLE = {
    "aten::bincount", "aten::histc", "aten::index_add", "aten::index_add_", "aten::index_put", "aten::index_put_",
    "aten::kthvalue", "aten::median", "aten::put_", "aten::scatter_add", "aten::scatter_add_", "aten::scatter_reduce",
    "aten::scatter_reduce_", "aten::cumprod",
}  # fmt: skip
"""Operations that torch's documents name among those that may differ from call to call on a GPU."""


def test_a_gpu_is_waited_for_once_in_ten_iterations_and_repeats_its_bits() -> None:
    with fake_gpu(), Watch() as watch:
        centres_LKD = batched_kmeans(torch.empty(12, 1000, 768, device=GPU), 20, seeded(), max_iterations=20)
    assert centres_LKD.shape == (12, 20, 768) and centres_LKD.device == torch.device(GPU)
    # Nothing here converges, so these are the most: the looks of the starts and of the last iterations.
    assert watch.waits == 2 * 20 // LOOK_EVERY == 4
    assert not NOT_REPEATABLE & set(watch.by_name)
    assert not any(dtype.is_floating_point for dtype in watch.running_sums)


def test_all_tokens_of_cub_take_a_block_of_memory_beside_them_and_few_operations() -> None:
    num_tokens = 5994 * 196
    with fake_gpu():
        tokens_LND = torch.empty(12, num_tokens, 768, device=GPU)
        with Watch() as watch:
            batched._lloyd(tokens_LND, torch.empty(12, 1, 20, 768, device=GPU), 10)
    # A block of distances is the largest, 63 MB; the distances to the nearest centre are kept for each token, 56 MB.
    assert watch.largest == 12 * 20 * BLOCK_POINTS == 15_728_640 > 12 * num_tokens
    # Ten iterations of all twelve layers: each has 18 blocks of twelve operations, and twenty more.
    assert watch.waits == 1 and watch.by_name.total() <= 10 * (18 * 12 + 20)
