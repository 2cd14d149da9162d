"""The patch tokens nearest to a prompt: brute force agrees, and neither batches nor repeats nor ties change them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trainer.model.backbone import Backbone
from trainer.plots.nearest_patches import NearestPatches, nearest_patches
from trainer.prompt_init.strategies import PROMPT_INITS, build_prototypes
from trainer.prompt_init.token_stream import TokenStream


def noise_images(count: int) -> Tensor:
    """Images without two equal patches."""
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def stream_of(backbone: Backbone, images_MCHW: Tensor, batch_size: int = 64, num_layers: int = 5) -> TokenStream:
    return TokenStream(
        backbone=backbone,
        num_images=len(images_MCHW),
        images_of=lambda rows_B: images_MCHW[rows_B],
        num_layers=num_layers,
        batch_size=batch_size,
    )


def same_patches(one: NearestPatches, other: NearestPatches) -> bool:
    return torch.equal(one.image_LPK, other.image_LPK) and torch.equal(one.patch_LPK, other.patch_LPK)


@pytest.mark.parametrize("num_layers", [1, 5])
@pytest.mark.parametrize("prompt_length", [1, 7, 200])
def test_a_prompt_that_is_a_token_is_nearest_to_that_very_token(
    backbone: Backbone, prompt_length: int, num_layers: int
) -> None:
    images = noise_images(5)
    stream = stream_of(backbone, images, num_layers=num_layers)
    prompt_LPD = build_prototypes(stream, prompt_init="random", prompt_length=prompt_length, seed=1)
    found = nearest_patches(prompt_LPD, stream, nearest=1)
    assert found.image_LPK.shape == found.patch_LPK.shape == found.distance_LPK.shape == (num_layers, prompt_length, 1)
    for layer, tokens_MND in zip(range(num_layers), backbone.patch_tokens(images), strict=False):
        its_token_PD = tokens_MND[found.image_LPK[layer, :, 0], found.patch_LPK[layer, :, 0]]
        torch.testing.assert_close(its_token_PD, prompt_LPD[layer], rtol=0, atol=1e-5)
    assert float(found.distance_LPK.max()) < 1e-6
    # Drawn without replacement: no token is the nearest of two prompts of a layer.
    place_LP = (found.image_LPK * 64 + found.patch_LPK)[..., 0]
    assert all(len(place_P.unique()) == prompt_length for place_P in place_LP)


@pytest.mark.parametrize("nearest", [1, 3, 128])
@pytest.mark.parametrize("prompt_init", PROMPT_INITS)
def test_brute_force_finds_the_same(backbone: Backbone, prompt_init: str, nearest: int) -> None:
    images = noise_images(2)
    stream = stream_of(backbone, images)
    prompt_LPD = build_prototypes(stream, prompt_init=prompt_init, prompt_length=6, seed=0)
    found = nearest_patches(prompt_LPD, stream, nearest=nearest)
    for layer, tokens_MND in enumerate(backbone.patch_tokens(images)):
        tokens_RD = tokens_MND.flatten(0, 1).double()
        distance_PR = (prompt_LPD[layer].double()[:, None] - tokens_RD).square().sum(dim=2)
        expected_PK = distance_PR.sort(dim=1).values[:, :nearest]
        torch.testing.assert_close(found.distance_LPK[layer], expected_PK, rtol=1e-4, atol=1e-6)
        place_PK = found.image_LPK[layer] * 64 + found.patch_LPK[layer]
        torch.testing.assert_close(distance_PR.gather(1, place_PK), expected_PK, rtol=1e-4, atol=1e-6)
        assert all(len(place_K.unique()) == nearest for place_K in place_PK), "no token twice"


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_the_batch_size_of_the_stream_does_not_matter(backbone: Backbone, batch_size: int) -> None:
    stream = stream_of(backbone, noise_images(9), batch_size=4)
    prompt_LPD = build_prototypes(stream, prompt_init="kmeans", prompt_length=8, seed=0)
    expected = nearest_patches(prompt_LPD, stream)
    found = nearest_patches(prompt_LPD, dataclasses.replace(stream, batch_size=batch_size))
    assert same_patches(found, expected)
    torch.testing.assert_close(found.distance_LPK, expected.distance_LPK, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_of_equal_tokens_the_earlier_image_and_then_the_earlier_patch_comes_first(
    backbone: Backbone, batch_size: int
) -> None:
    # Grey images: at the first layer, which knows no positions, all patches are the same token.
    stream = stream_of(backbone, torch.full((7, 3, 32, 32), 90, dtype=torch.uint8), batch_size, num_layers=1)
    prompt_LPD = torch.linspace(-1, 1, 2 * 96).view(1, 2, 96)
    found = nearest_patches(prompt_LPD, stream, nearest=70)
    assert found.image_LPK.tolist() == [[[0] * 64 + [1] * 6] * 2]
    assert found.patch_LPK.tolist() == [[[*range(64), *range(6)]] * 2]


class Forgetful(TokenStream):
    """Tells of every batch twice, as a stream does where memory ends in the middle of the network."""

    def look(self, rows_M: Tensor, see: Callable[[Tensor, int, Tensor], None]) -> None:
        """As the stream, and each batch again in two halves."""
        for rows_B in rows_M.split(self.batch_size):
            super().for_each_batch(rows_B, see)
            for half in rows_B.chunk(2):
                super().for_each_batch(half, see)


def test_images_that_are_told_again_count_once(backbone: Backbone) -> None:
    images = noise_images(6)
    stream = stream_of(backbone, images, batch_size=3)
    prompt_LPD = build_prototypes(stream, prompt_init="mean_pool", prompt_length=4, seed=0)
    again = Forgetful(**{field.name: getattr(stream, field.name) for field in dataclasses.fields(stream)})
    assert same_patches(nearest_patches(prompt_LPD, again), nearest_patches(prompt_LPD, stream))


def test_what_cannot_be_is_refused(backbone: Backbone) -> None:
    stream = stream_of(backbone, noise_images(1))
    with pytest.raises(ValueError, match="layers") as caught:
        nearest_patches(torch.zeros(2, 1, 96), stream)
    assert str(caught.value) == "the prompt has 2 layers, the stream 5."
    with pytest.raises(ValueError, match="nearest") as caught:
        nearest_patches(torch.zeros(5, 1, 96), stream, nearest=65)
    assert str(caught.value) == "65 nearest tokens were asked for, and there are 64; use more images."
